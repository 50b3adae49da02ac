//! Which run to choose: the Pareto front, and the best within a budget, with how sure that is.
//!
//! How sure: the windows of the text are drawn anew many times (the bootstrap, Efron 1979), the same ones for all candidates, and the
//! share of draws in which the choice is still the best is the probability given. Candidates without values window by window vary by
//! their standard error instead, as if independent, which makes close ones look less sure than they are.

use crate::paired::Paired;
use crate::pareto::keep_undominated;
use crate::runs;
use crate::solve::Random;
use kbit_results::{Cost, Items, Measurement};
use serde::Serialize;
use std::cmp::Ordering;

/// A run on the Pareto front.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ParetoPoint {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Bits of all tensors.
    pub total_bits: f64,
    /// Nats a token.
    pub nll: f64,
}

/// The runs that no other beats in both total bits and negative log-likelihood, by size.
#[must_use]
pub fn pareto(measurements: &[Measurement]) -> Vec<ParetoPoint> {
    let mut points: Vec<ParetoPoint> = runs(measurements)
        .iter()
        .filter_map(|run| {
            Some(ParetoPoint {
                model: run.about.model.id.clone(),
                scheme: run.about.scheme.label.clone(),
                total_bits: run.about.total_bits,
                nll: run.nll?.0,
            })
        })
        .collect();
    keep_undominated(&mut points, |point| point.total_bits, |point| point.nll);
    points
}

/// Standard errors to one side that 95 % of a normal distribution are below.
const SURE: f64 = 1.645;
/// A choice is clear from this probability on.
const CLEAR: f64 = 0.95;
/// Fewer windows than these call nothing clear: five of one sign are chance in more than 5 % of cases.
const LEAST_WINDOWS: usize = 6;
/// More than so many times the windows are not asked for.
const MOST_TIMES: f64 = 1000.0;

/// A run that could be chosen.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// True bits a weight.
    pub bits_per_weight: f64,
    /// Nats a token.
    pub nll: f64,
    /// Bits a byte of text, where measured: what models with other tokenizers are compared by.
    pub bits_per_byte: Option<f64>,
    /// Perplexity.
    pub perplexity: f64,
    /// KL divergence from the unquantized model, nats.
    pub kl_divergence: Option<f64>,
    /// Perplexity over the unquantized model's, less 1.
    pub perplexity_increase: Option<f64>,
    /// Fastest measured step, tokens a second.
    pub tokens_per_second: Option<f64>,
    /// Probability that it is truly the best within the budget, given what was measured.
    pub probability: f64,
}

impl Candidate {
    fn named(&self) -> String {
        format!("{} with {}", self.model, self.scheme)
    }
}

/// What a choice must keep to; `None` where it does not matter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Budget {
    /// Bytes of the file at most.
    pub bytes: Option<u64>,
    /// True bits a weight at most.
    pub bits_per_weight: Option<f64>,
    /// Tokens a second at least.
    pub tokens_per_second: Option<f64>,
    /// KL divergence from the unquantized model at most, nats.
    pub kl_divergence: Option<f64>,
    /// Perplexity over the unquantized model's, less 1, at most.
    pub perplexity_increase: Option<f64>,
}

impl Budget {
    /// True where nothing but quality is limited: then the smallest file is wanted.
    #[must_use]
    pub fn wants_smallest(&self) -> bool {
        let limited =
            self.bytes.is_some() || self.bits_per_weight.is_some() || self.tokens_per_second.is_some();
        !limited && (self.kl_divergence.is_some() || self.perplexity_increase.is_some())
    }

    /// True where what is not drawn keeps to the limits.
    fn fixed(&self, candidate: &Candidate) -> bool {
        self.bytes.is_none_or(|most| candidate.bytes <= most)
            && self.bits_per_weight.is_none_or(|most| candidate.bits_per_weight <= most)
            && self
                .tokens_per_second
                .is_none_or(|least| candidate.tokens_per_second.is_some_and(|rate| rate >= least))
    }

    fn quality(&self, drawn: &Drawn) -> bool {
        let within = |limit: Option<f64>, value: Option<f64>| {
            limit.is_none_or(|most| value.is_some_and(|value| value <= most))
        };
        within(self.kl_divergence, drawn.kl_divergence)
            && within(self.perplexity_increase, drawn.added.map(f64::exp_m1))
    }

    fn words(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.bytes.map(|bytes| format!("at most {bytes} bytes")));
        words.extend(self.bits_per_weight.map(|bits| format!("at most {bits} bits a weight")));
        words.extend(self.tokens_per_second.map(|rate| format!("at least {rate} tokens/s")));
        words.extend(self.kl_divergence.map(|kld| format!("a KL divergence of at most {kld} nats")));
        words.extend(
            self.perplexity_increase.map(|share| format!("a perplexity at most {} % higher", share * 100.0)),
        );
        if words.is_empty() { "any size".to_owned() } else { words.join(", ") }
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// `results.jsonl`.
    pub measurements: &'a [Measurement],
    /// `items.jsonl`.
    pub items: &'a [Items],
    /// `costs.jsonl`.
    pub costs: &'a [Cost],
}

/// What to choose for a budget.
#[derive(Clone, Debug, Serialize)]
pub struct Recommendation {
    /// What it had to keep to.
    pub budget: Budget,
    /// The best measured run that fits: of the lowest loss, or the smallest where only quality is limited.
    pub choice: Option<Candidate>,
    /// The next best that fit, at most four.
    pub runners_up: Vec<Candidate>,
    /// Probability that the choice is truly the best of those that fit.
    pub probability: Option<f64>,
    /// True where that is below 95 %, or windows are too few to say so.
    pub close: bool,
    /// The measurement that would settle a close choice.
    pub settle: Option<String>,
    /// The smallest run, for when nothing fits.
    pub smallest: Option<Candidate>,
    /// In words.
    pub reason: String,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// Quality of a candidate, as measured or in one draw.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    /// Bits a byte where all have them, else nats a token.
    loss: f64,
    kl_divergence: Option<f64>,
    /// Nats a token more than the unquantized model.
    added: Option<f64>,
}

/// A candidate with what its quality varies by.
struct Known<'a> {
    candidate: Candidate,
    /// Digest of the text and its windows.
    text: Option<String>,
    text_name: String,
    /// Standard errors of loss, divergence and added loss, in nats.
    errors: [Option<f64>; 3],
    added: Option<f64>,
    nlls: Option<&'a Items>,
    klds: Option<&'a Items>,
    /// The unquantized model's losses.
    base: Option<&'a Items>,
}

/// The candidates in the evidence: each model and scheme in the first arithmetic and on the first text that it was measured on.
fn candidates<'a>(evidence: &Evidence<'a>) -> Vec<Known<'a>> {
    let known = |run: &crate::Run<'_>| {
        let (model, scheme) = (&run.about.model.id, &run.about.scheme.label);
        let of_run = |m: &&Measurement| {
            m.model.id == *model
                && m.scheme.label == *scheme
                && m.tensor.is_none()
                && m.arithmetic() == run.about.arithmetic()
        };
        let nll = evidence.measurements.iter().filter(of_run).find(|m| m.metric == "nll")?;
        let figure = |metric: &str| {
            evidence.measurements.iter().filter(of_run).find(|m| m.metric == metric && m.data == nll.data)
        };
        let items = |scheme: &str, metric: &str| {
            evidence.items.iter().find(|items| {
                items.model == *model
                    && items.scheme == scheme
                    && items.metric == metric
                    && items.mode == nll.mode
                    && items.cache_type == nll.cache_type
                    && Some(&items.data) == nll.data.as_ref()
            })
        };
        let unquantized = run.about.scheme.family == "none";
        let (added, added_error) = match nll.difference {
            Some(difference) => (Some(difference.value), difference.stderr),
            None => (unquantized.then_some(0.0), unquantized.then_some(0.0)),
        };
        let kld = figure("kl_divergence");
        let rates = evidence.costs.iter().filter(|cost| {
            cost.model.id == *model
                && cost.scheme.label == *scheme
                && cost.mode.as_deref() == Some(nll.mode.as_str())
                && cost.cache_type.as_deref().is_none_or(|cache| cache == nll.cache_type)
        });
        Some(Known {
            candidate: Candidate {
                model: model.clone(),
                scheme: scheme.clone(),
                bytes: run.about.bytes,
                bits_per_weight: run.about.bpw.file,
                nll: nll.value,
                bits_per_byte: figure("bits_per_byte").map(|m| m.value),
                perplexity: nll.value.exp(),
                kl_divergence: kld.map(|m| m.value).or(unquantized.then_some(0.0)),
                perplexity_increase: added.map(f64::exp_m1),
                tokens_per_second: rates.filter_map(|cost| cost.tokens_per_second).max_by(f64::total_cmp),
                probability: 0.0,
            },
            text: nll.data.as_ref().map(|data| {
                format!("{} {:?} {:?} {:?}", data.sha256, data.context, data.stride, data.chunks)
            }),
            text_name: nll.data.as_ref().map_or_else(|| "the text".to_owned(), |data| data.name.clone()),
            errors: [nll.stderr, kld.map_or(unquantized.then_some(0.0), |m| m.stderr), added_error],
            added,
            nlls: items(scheme, "nll"),
            klds: items(scheme, "kl_divergence"),
            base: items("none", "nll"),
        })
    };
    runs(evidence.measurements).iter().filter_map(known).collect()
}

/// A mean over the windows that were drawn.
fn mean(items: &Items, windows: &[usize]) -> f64 {
    let weight = |index: usize| items.weights.as_ref().and_then(|w| w.get(index)).copied().unwrap_or(1.0);
    let (sum, total) = windows.iter().fold((0.0, 0.0), |(sum, total), &index| {
        (sum + items.values.get(index).copied().unwrap_or(0.0), total + weight(index))
    });
    sum / total
}

impl Known<'_> {
    /// What nats a token are multiplied by for the loss.
    fn scale(&self, per_byte: bool) -> f64 {
        match self.candidate.bits_per_byte {
            Some(bits) if per_byte && self.candidate.nll > 0.0 => bits / self.candidate.nll,
            _ => 1.0,
        }
    }

    fn measured(&self, per_byte: bool) -> Drawn {
        Drawn {
            loss: self.candidate.nll * self.scale(per_byte),
            kl_divergence: self.candidate.kl_divergence,
            added: self.added,
        }
    }

    /// Its quality on the windows that were drawn; by its standard errors where it has no values of as many windows.
    fn drawn(&self, windows: &[usize], per_byte: bool, random: &mut Random) -> Drawn {
        let usable =
            |items: Option<&'_ Items>| items.is_some_and(|items| items.values.len() == windows.len());
        let mut vary =
            |value: f64, error: Option<f64>| value + error.map_or(0.0, |error| error * normal(random));
        let loss = match self.nlls {
            Some(items) if usable(Some(items)) => mean(items, windows),
            _ => vary(self.candidate.nll, self.errors[0]),
        };
        let kl_divergence = match self.klds {
            Some(items) if usable(Some(items)) => Some(mean(items, windows)),
            _ => self.candidate.kl_divergence.map(|kld| vary(kld, self.errors[1])),
        };
        let added = match (self.nlls, self.base) {
            (Some(_), Some(base)) if usable(self.nlls) && usable(Some(base)) => {
                Some(loss - mean(base, windows))
            }
            _ => self.added.map(|added| vary(added, self.errors[2])),
        };
        Drawn { loss: loss * self.scale(per_byte), kl_divergence, added }
    }
}

/// A number from the standard normal distribution (Box and Muller, 1958).
#[expect(clippy::cast_precision_loss, reason = "below 2^53")]
fn normal(random: &mut Random) -> f64 {
    const STEPS: usize = 1 << 30;
    let mut uniform = || (random.below(STEPS) as f64 + 0.5) / STEPS as f64;
    let (radius, angle) = (uniform(), uniform());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

/// The best measured run that keeps to the budget. `draws` of the windows say how sure that is.
#[must_use]
pub fn recommend(evidence: &Evidence<'_>, budget: &Budget, draws: usize, seed: u64) -> Recommendation {
    let mut notes = Vec::new();
    let all = one_text(candidates(evidence), &mut notes);
    let smallest = all.iter().map(|known| &known.candidate).min_by_key(|candidate| candidate.bytes).cloned();
    let mut fitting: Vec<&Known<'_>> = all.iter().filter(|known| budget.fixed(&known.candidate)).collect();
    if budget.tokens_per_second.is_some() {
        let slow = all.iter().filter(|known| known.candidate.tokens_per_second.is_none()).count();
        if slow > 0 {
            notes.push(format!(
                "{slow} runs have no measured speed (costs.jsonl beside the results) and were left out"
            ));
        }
    }
    let per_byte = fitting.iter().all(|known| known.candidate.bits_per_byte.is_some());
    let smaller_wins = budget.wants_smallest();
    let order = |a: (&Candidate, f64), b: (&Candidate, f64)| -> Ordering {
        let (size, loss) = (a.0.bytes.cmp(&b.0.bytes), a.1.total_cmp(&b.1));
        if smaller_wins { size.then(loss) } else { loss.then(size) }
    };
    let best = |drawn: &[Drawn], fitting: &[&Known<'_>]| {
        (0..fitting.len()).filter(|&index| budget.quality(&drawn[index])).min_by(|&a, &b| {
            order((&fitting[a].candidate, drawn[a].loss), (&fitting[b].candidate, drawn[b].loss))
        })
    };
    fitting.sort_by(|a, b| {
        order((&a.candidate, a.measured(per_byte).loss), (&b.candidate, b.measured(per_byte).loss))
    });
    let windows = fitting.iter().find_map(|known| known.nlls).map_or(0, |items| items.values.len());
    let mut random = Random::new(seed);
    let mut wins = vec![0usize; fitting.len()];
    for _ in 0..draws {
        let places: Vec<usize> = (0..windows).map(|_| random.below(windows)).collect();
        let drawn: Vec<Drawn> =
            fitting.iter().map(|known| known.drawn(&places, per_byte, &mut random)).collect();
        if let Some(winner) = best(&drawn, &fitting) {
            wins[winner] += 1;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of draws")]
    let probability = |index: usize| wins[index] as f64 / draws.max(1) as f64;
    let shown =
        |index: usize| Candidate { probability: probability(index), ..fitting[index].candidate.clone() };
    let measured: Vec<Drawn> = fitting.iter().map(|known| known.measured(per_byte)).collect();
    let Some(choice) = best(&measured, &fitting) else {
        let reason = match &smallest {
            Some(smallest) => format!(
                "no measured run has {}; the smallest is {} at {} bytes",
                budget.words(),
                smallest.named(),
                smallest.bytes
            ),
            None => "the results hold no loss (metric nll); measure perplexity first".to_owned(),
        };
        let (choice, runners_up, probability, settle) = (None, Vec::new(), None, None);
        return Recommendation {
            budget: *budget,
            choice,
            runners_up,
            probability,
            close: false,
            settle,
            smallest,
            reason,
            notes,
        };
    };
    let others: Vec<usize> =
        (0..fitting.len()).filter(|&index| index != choice && budget.quality(&measured[index])).collect();
    // What most likely beats the choice, also where its measured quality is just past a limit.
    let rival = (0..fitting.len())
        .filter(|&index| index != choice)
        .max_by_key(|&index| (wins[index], usize::MAX - index));
    let sure = probability(choice);
    let few = (1..LEAST_WINDOWS).contains(&windows);
    if few && rival.is_some() {
        notes.push(format!(
            "{windows} windows are too few to call a choice clear, and probabilities are rough: measure at least {LEAST_WINDOWS}"
        ));
    }
    let close = rival.is_some() && (sure < CLEAR || few);
    let settle = rival.filter(|_| close).map(|rival| {
        if smaller_wins {
            settle_limit(budget, fitting[choice], fitting[rival])
        } else {
            settle_loss(fitting[choice], fitting[rival], per_byte)
        }
    });
    let chosen = &fitting[choice].candidate;
    let what = if smaller_wins {
        format!("is the smallest ({} bytes)", chosen.bytes)
    } else {
        format!("has the lowest loss ({:.4} nats a token)", chosen.nll)
    };
    let certain = match rival {
        None => "nothing else fits".to_owned(),
        Some(rival) if close => format!(
            "that it is truly the best has a probability of {:.0} %; the runner-up is {}",
            sure * 100.0,
            fitting[rival].candidate.named()
        ),
        Some(_) => format!("that is clear: probability {:.0} %", sure * 100.0),
    };
    Recommendation {
        budget: *budget,
        reason: format!("{} {what} of the runs with {}; {certain}", chosen.named(), budget.words()),
        choice: Some(shown(choice)),
        runners_up: others.into_iter().take(4).map(shown).collect(),
        probability: Some(sure),
        close,
        settle,
        smallest,
        notes,
    }
}

/// The candidates that were measured on the text that most were measured on.
fn one_text<'a>(all: Vec<Known<'a>>, notes: &mut Vec<String>) -> Vec<Known<'a>> {
    let count = |text: &Option<String>| all.iter().filter(|known| known.text == *text).count();
    let mut most: Option<(&Known<'_>, usize)> = None;
    for known in &all {
        let found = count(&known.text);
        if most.is_none_or(|(_, best)| found > best) {
            most = Some((known, found));
        }
    }
    let Some((first, found)) = most else { return all };
    if found < all.len() {
        notes.push(format!(
            "{} of {} runs were measured on another text or in other windows than {} and were left out",
            all.len() - found,
            all.len(),
            first.text_name
        ));
    }
    let text = first.text.clone();
    all.into_iter().filter(|known| known.text == text).collect()
}

/// How many windows would tell two losses apart.
fn settle_loss(choice: &Known<'_>, rival: &Known<'_>, per_byte: bool) -> String {
    let names = format!("{} and {}", choice.candidate.named(), rival.candidate.named());
    let scaled = |known: &Known<'_>, items: &Items| -> Vec<f64> {
        items.values.iter().map(|value| value * known.scale(per_byte)).collect()
    };
    let paired = choice
        .nlls
        .zip(rival.nlls)
        .filter(|(a, b)| a.weights == b.weights)
        .and_then(|(a, b)| Paired::new(&scaled(choice, a), &scaled(rival, b), a.weights.as_deref()));
    match paired.as_ref().and_then(|paired| Some((paired, paired.stderr()?))) {
        None => {
            format!("measure {names} in one run, whose items.jsonl lets them be compared window by window")
        }
        Some((paired, stderr)) => {
            windows_needed(&names, paired.len(), paired.mean(), stderr, &choice.text_name)
        }
    }
}

/// How many windows would tell on which side of a limit the closer of two lies.
fn settle_limit(budget: &Budget, choice: &Known<'_>, rival: &Known<'_>) -> String {
    let margin = |known: &Known<'_>| {
        let of = |limit: Option<f64>, value: Option<f64>, error: Option<f64>| {
            Some((limit? - value?, error?)).filter(|(_, error)| *error > 0.0)
        };
        let added = budget.perplexity_increase.map(f64::ln_1p);
        [
            of(budget.kl_divergence, known.candidate.kl_divergence, known.errors[1]),
            of(added, known.added, known.errors[2]),
        ]
        .into_iter()
        .flatten()
        .min_by(|a, b| (a.0.abs() / a.1).total_cmp(&(b.0.abs() / b.1)))
    };
    let closest = [choice, rival]
        .into_iter()
        .filter_map(|known| Some((known, margin(known)?)))
        .min_by(|(_, a), (_, b)| (a.0.abs() / a.1).total_cmp(&(b.0.abs() / b.1)));
    match closest {
        None => format!("measure {} on a longer text", choice.candidate.named()),
        Some((known, (difference, stderr))) => {
            let windows = known.nlls.or(known.klds).map_or(1, |items| items.values.len());
            windows_needed(&known.candidate.named(), windows, difference, stderr, &known.text_name)
        }
    }
}

/// Standard errors shrink with the root of the number of windows.
#[expect(clippy::cast_precision_loss, reason = "a count of windows")]
fn windows_needed(names: &str, windows: usize, difference: f64, stderr: f64, text: &str) -> String {
    let times = (SURE * stderr / difference).powi(2);
    if !times.is_finite() || times > MOST_TIMES {
        return format!(
            "no text of a usual length would settle it ({names} are {:.1e} apart, with a standard error of {stderr:.1e}): take either",
            difference.abs()
        );
    }
    let needed = (windows as f64 * times.max(1.0)).ceil().max(LEAST_WINDOWS as f64);
    format!("measure about {needed:.0} windows of {names}, where {windows} windows of {text} were measured")
}
