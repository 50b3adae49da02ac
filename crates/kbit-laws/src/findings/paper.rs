//! The findings of the paper, one function a finding.

use super::correlation;
use super::curve::{Curve, Gap};
use super::effect::{Effect, by_model};
use super::tested::{DATA_TYPES, Tested, ladder, tested};
use super::{Finding, Verdict};
use crate::solve::{Linear, Resampling};
use kbit_results::Measurement;
use std::collections::{BTreeMap, BTreeSet};

/// Where the findings are from.
pub const SOURCE: &str = "Dettmers and Zettlemoyer, arXiv 2212.09720";
/// Loss, in nats a token, that is as good as none: one percent of perplexity.
const MEANINGFUL: f64 = 0.01;
/// Slopes that differ by less than this share of the 4-bit curve's are near-parallel.
const PARALLEL: f64 = 0.25;
/// Resamples of the slopes.
const DRAWS: usize = 2000;
/// The bit width that the paper is about.
const FOUR: u32 = 4;
/// Bit widths at which data types are compared; with more bits the paper finds no difference, but for integers at 5.
const FEW_BITS: [u32; 2] = [3, 4];
/// The paper's block sizes of choice.
const SMALL_BLOCKS: std::ops::RangeInclusive<u64> = 64..=128;
/// The paper's share of dimensions in 16 bits.
const SHARE: f64 = 0.02;

/// What an effect must be for its claim to hold.
#[derive(Clone, Copy)]
enum Claim {
    /// Above zero.
    Greater,
    /// Not below zero by a meaningful loss.
    NotLess,
    /// Within so much of zero.
    Near(f64),
}

impl Claim {
    fn holds(self, (low, high): (f64, f64)) -> bool {
        match self {
            Self::Greater => low > 0.0,
            Self::NotLess => low > -MEANINGFUL && high >= 0.0,
            Self::Near(margin) => low > -margin && high < margin,
        }
    }

    fn fails(self, (low, high): (f64, f64)) -> bool {
        match self {
            Self::Greater | Self::NotLess => high < 0.0,
            Self::Near(margin) => low >= margin || high <= -margin,
        }
    }

    /// By how much the interval is on the claim's side; the part of least is what a claim about all of them hangs on.
    fn margin(self, (low, high): (f64, f64)) -> f64 {
        match self {
            Self::Greater | Self::NotLess => low,
            Self::Near(_) => -low.abs().max(high.abs()),
        }
    }
}

/// A claim with its parts: it holds where all parts hold, and does not where one fails.
struct Parts {
    claim: &'static str,
    kind: Claim,
    statistic: &'static str,
    parts: Vec<(String, Effect)>,
    /// What the claim takes and is not there.
    missing: Vec<String>,
    notes: Vec<String>,
}

impl Parts {
    fn new(claim: &'static str, kind: Claim, statistic: &'static str) -> Self {
        Self { claim, kind, statistic, parts: Vec::new(), missing: Vec::new(), notes: Vec::new() }
    }

    /// Adds the part `name`, or notes that it is missing.
    fn add(&mut self, name: impl Into<String>, effect: Option<Effect>) {
        let name = name.into();
        match effect {
            Some(effect) => self.parts.push((name, effect)),
            None => self.missing.push(name),
        }
    }

    fn finding(self) -> Finding {
        let count = self.parts.len();
        // All parts must hold, each at its own level; that one of several fails takes intervals of all of them together.
        let failed = |effect: &Effect| self.kind.fails(effect.interval(count));
        let alone = |effect: &Effect| self.kind.holds(effect.interval(1));
        let verdict = if self.parts.iter().any(|(_, effect)| failed(effect)) {
            Verdict::DoesNotHold
        } else if count == 0 || !self.missing.is_empty() {
            Verdict::NotMeasured
        } else if self.parts.iter().all(|(_, effect)| alone(effect)) {
            Verdict::Holds
        } else {
            Verdict::NotDistinguishable
        };
        let side = |effect: &Effect| self.kind.margin(effect.interval(1));
        let decisive = self.parts.iter().min_by(|a, b| {
            let rank = |effect: &Effect| !failed(effect);
            (rank(&a.1)).cmp(&rank(&b.1)).then(side(&a.1).total_cmp(&side(&b.1)))
        });
        let models: BTreeSet<&String> = self.parts.iter().flat_map(|(_, effect)| &effect.models).collect();
        let mut notes = Vec::new();
        if count > 1 {
            let part = |(name, effect): &(String, Effect)| format!("{name}: {}", shown(effect));
            notes.push(self.parts.iter().map(part).collect::<Vec<_>>().join("; "));
        }
        notes.extend(self.notes);
        if models.len() == 1 {
            notes.push(
                "one model: the interval is of its settings and says nothing of other models".to_owned(),
            );
        }
        if !self.missing.is_empty() {
            notes.push(format!("not measured: {}", self.missing.join("; ")));
        }
        let about = decisive.filter(|_| count > 1).map_or_else(String::new, |(name, _)| format!(" ({name})"));
        let smallest = decisive.map(|(_, effect)| effect.smallest()).filter(|smallest| smallest.is_finite());
        Finding {
            claim: self.claim.to_owned(),
            source: SOURCE.to_owned(),
            verdict,
            statistic: format!("{}{about}", self.statistic),
            value: decisive.map(|(_, effect)| effect.value),
            interval: decisive.map(|(_, effect)| effect.interval(1)),
            comparisons: self.parts.iter().map(|(_, effect)| effect.comparisons).sum(),
            models: models.len(),
            smallest_effect: smallest,
            note: notes.join(". "),
        }
    }
}

fn shown(effect: &Effect) -> String {
    let (low, high) = effect.interval(1);
    format!("{:+.4} ({low:.4} to {high:.4})", effect.value)
}

/// All results and the curves that they make.
struct Results<'a> {
    all: Vec<Tested<'a>>,
    ladder: BTreeSet<&'a str>,
    seed: u64,
}

/// What makes a curve: architecture, family, other parameters, bit width, block and centring.
type Key<'k> = (&'k str, &'k str, &'k str, u32, Option<u64>, bool);
/// Architecture, family and other parameters.
type Setting<'k> = (&'k str, &'k str, &'k str);

fn key<'k>(one: &'k Tested<'_>) -> Key<'k> {
    (one.architecture, one.family(), &one.rest, one.width, one.block, one.centred)
}

/// See [`super::findings`].
pub fn findings(measurements: &[Measurement], seed: u64) -> Vec<Finding> {
    let all = tested(measurements);
    let results = Results { ladder: ladder(&all), all, seed };
    let mut findings = vec![
        results.four_bits(),
        results.three_bits(),
        results.blocks(),
        results.quantile_and_float(),
        results.float_and_integer(),
        results.integer_at_five(),
        results.centring(),
        results.outliers_steady_three(),
        results.outliers_do_not_beat_four(),
        results.outliers_at_four(),
        results.parallel(),
    ];
    findings.extend(correlation::findings(&results.all, measurements, seed));
    findings
}

impl<'a> Results<'a> {
    /// The curves of the results that `keep` takes, of at least two sizes.
    fn curves<'s>(&'s self, keep: impl Fn(&Tested<'a>) -> bool) -> BTreeMap<Key<'s>, Curve<'a>> {
        let mut groups: BTreeMap<Key<'s>, Vec<&Tested<'a>>> = BTreeMap::new();
        for one in self.all.iter().filter(|one| self.ladder.contains(one.model) && keep(one)) {
            groups.entry(key(one)).or_default().push(one);
        }
        groups.retain(|_, group| group.len() > 1);
        groups.into_iter().map(|(key, group)| (key, Curve::of(&group))).collect()
    }

    /// The block size at which a setting was measured at the most bit widths; the smallest of several.
    fn main_blocks(&self) -> BTreeMap<Setting<'_>, Option<u64>> {
        let mut widths: BTreeMap<Setting<'_>, BTreeMap<Option<u64>, BTreeSet<u32>>> = BTreeMap::new();
        for one in self.all.iter().filter(|one| one.usual()) {
            let setting = (one.architecture, one.family(), one.rest.as_str());
            widths.entry(setting).or_default().entry(one.block).or_default().insert(one.width);
        }
        let most = |blocks: BTreeMap<Option<u64>, BTreeSet<u32>>| {
            let best = blocks.values().map(BTreeSet::len).max()?;
            blocks.into_iter().find(|(_, widths)| widths.len() == best).map(|(block, _)| block)
        };
        widths.into_iter().filter_map(|(setting, blocks)| Some((setting, most(blocks)?))).collect()
    }

    /// At equal total bits, the curve of every bit width less the 4-bit curve of the same setting.
    fn against_four(&self) -> BTreeMap<u32, Vec<Gap<'a>>> {
        let main = self.main_blocks();
        let curves = self.curves(|one| {
            let setting = (one.architecture, one.family(), one.rest.as_str());
            one.unquantized() || one.usual() && main.get(&setting) == Some(&one.block)
        });
        let mut gaps: BTreeMap<u32, Vec<Gap<'a>>> = BTreeMap::new();
        for (of_four, four) in &curves {
            if of_four.3 != FOUR || of_four.1 == "none" {
                continue;
            }
            for (rival, curve) in &curves {
                let same = rival.0 == of_four.0
                    && (rival.1 == "none"
                        || (rival.1, rival.2, rival.4) == (of_four.1, of_four.2, of_four.4));
                if same && rival.3 != FOUR {
                    gaps.entry(rival.3).or_default().extend(curve.gaps(four));
                }
            }
        }
        gaps.retain(|_, gaps| !gaps.is_empty());
        gaps
    }

    fn effect(&self, gaps: &[Gap<'a>]) -> Option<Effect> {
        let differences: Vec<(&str, f64)> = gaps.iter().map(|gap| (gap.model, gap.difference)).collect();
        Effect::of(&differences, self.seed)
    }

    fn four_bits(&self) -> Finding {
        let mut parts = Parts::new(
            "At equal total bits, 4 bits a weight are best",
            Claim::Greater,
            "loss at the other bit width less loss at 4 bits, at equal total bits, nats a token",
        );
        let gaps = self.against_four();
        for (width, gaps) in &gaps {
            parts.add(bits(*width), self.effect(gaps));
        }
        let needed = [("3 bits", 1..FOUR), ("more than 4 bits", FOUR + 1..u32::MAX)];
        for (name, widths) in needed {
            if !gaps.keys().any(|width| widths.contains(width)) {
                parts
                    .missing
                    .push(format!("4 bits and {name} of one scheme, of two or more sizes of one family"));
            }
        }
        let others: Vec<String> =
            [5, 6, 7, 8, 16].into_iter().filter(|width| !gaps.contains_key(width)).map(bits).collect();
        if !others.is_empty() && others.len() < 5 {
            parts.notes.push(format!("nothing is known of {}", others.join(", ")));
        }
        parts.finding()
    }

    fn three_bits(&self) -> Finding {
        let mut parts = Parts::new(
            "At equal total bits, 3 bits are worse than 4",
            Claim::Greater,
            "loss at 3 bits less loss at 4 bits, at equal total bits, nats a token",
        );
        let effect = self.against_four().get(&3).and_then(|gaps| self.effect(gaps));
        parts.add("3 and 4 bits of one scheme, of two or more sizes of one family", effect);
        parts.finding()
    }

    fn blocks(&self) -> Finding {
        let mut parts = Parts::new(
            "At equal total bits, blocks of 64 or 128 weights are better than larger ones",
            Claim::Greater,
            "loss with larger blocks less loss with blocks of 64 and 128, at equal total bits, nats a token",
        );
        let curves = self.curves(|one| !one.centred && one.block.is_some());
        let mut gaps = Vec::new();
        let mut by_block: BTreeMap<u64, Vec<Gap<'a>>> = BTreeMap::new();
        for (small, reference) in &curves {
            if !small.4.is_some_and(|block| SMALL_BLOCKS.contains(&block)) {
                continue;
            }
            for (large, curve) in &curves {
                let same = (large.0, large.1, large.2, large.3) == (small.0, small.1, small.2, small.3);
                let Some(block) = large.4.filter(|block| same && block > SMALL_BLOCKS.end()) else {
                    continue;
                };
                let found = curve.gaps(reference);
                by_block.entry(block).or_default().extend(&found);
                gaps.extend(found);
            }
        }
        parts.add(
            "blocks of 64 or 128 and larger ones of one scheme, of two or more sizes of one family",
            self.effect(&gaps),
        );
        let each = by_block
            .iter()
            .filter_map(|(block, gaps)| Some(format!("{block}: {}", shown(&self.effect(gaps)?))));
        let each: Vec<String> = each.collect();
        if !each.is_empty() {
            parts.notes.push(format!("by block: {}", each.join("; ")));
        }
        parts.finding()
    }

    /// Pairs of the same model, bit width and block under two data types: the loss of `worse` less that of `better`.
    fn pairs(&self, worse: &str, better: &str, widths: &[u32]) -> Vec<(&'a str, f64)> {
        let of =
            |family: &'static str| self.all.iter().filter(move |one| one.family() == family && one.usual());
        let families = |name: &str| DATA_TYPES.into_iter().find(|family| *family == name);
        let (Some(worse), Some(better)) = (families(worse), families(better)) else { return Vec::new() };
        let mut pairs = Vec::new();
        for first in of(worse).filter(|one| widths.contains(&one.width)) {
            let same = |other: &&Tested<'a>| {
                (other.model, other.width, other.block) == (first.model, first.width, first.block)
            };
            pairs.extend(of(better).filter(same).map(|second| (first.model, first.loss - second.loss)));
        }
        pairs
    }

    fn types(&self, parts: &mut Parts, worse: &str, better: &str, widths: &[u32]) {
        let pairs = self.pairs(worse, better, widths);
        match Effect::of(&pairs, self.seed) {
            Some(effect) => parts.parts.push((worse.to_owned(), effect)),
            None => {
                let widths: Vec<String> = widths.iter().map(u32::to_string).collect();
                let widths = widths.join(" and ");
                parts.missing.push(format!("{worse} and {better} at {widths} bits, of two models or blocks"));
            }
        }
        if widths.len() > 1 {
            let each = widths.iter().filter_map(|width| {
                let effect = Effect::of(&self.pairs(worse, better, &[*width]), self.seed)?;
                Some(format!("{}: {}", bits(*width), shown(&effect)))
            });
            let each: Vec<String> = each.collect();
            if !each.is_empty() {
                parts.notes.push(each.join("; "));
            }
        }
    }

    fn quantile_and_float(&self) -> Finding {
        let mut parts = Parts::new(
            "Quantile levels are at least as good as floating point",
            Claim::NotLess,
            "loss with float less loss with quantile, same model, bits and block, nats a token",
        );
        self.types(&mut parts, "float", "quantile", &FEW_BITS);
        parts.finding()
    }

    fn float_and_integer(&self) -> Finding {
        let mut parts = Parts::new(
            "Floating point is better than integers",
            Claim::Greater,
            "loss with int less loss with float, same model, bits and block, nats a token",
        );
        self.types(&mut parts, "int", "float", &FEW_BITS);
        parts.finding()
    }

    fn integer_at_five(&self) -> Finding {
        let mut parts = Parts::new(
            "At 5 bits, integers are best",
            Claim::Greater,
            "loss with the other data type less loss with int, same model and block, 5 bits, nats a token",
        );
        for other in ["float", "quantile"] {
            self.types(&mut parts, other, "int", &[5]);
        }
        // The claim can be told without this one.
        let dynamic = Effect::of(&self.pairs("dynamic", "int", &[5]), self.seed);
        parts.parts.extend(dynamic.map(|effect| ("dynamic".to_owned(), effect)));
        parts.finding()
    }

    /// The gaps between every two curves for which `pair` is true of the first's key and the second's.
    fn between<'s>(
        curves: &BTreeMap<Key<'s>, Curve<'a>>,
        pair: impl Fn(&Key<'s>, &Key<'s>) -> bool,
    ) -> Vec<Gap<'a>> {
        let mut gaps = Vec::new();
        for (first, curve) in curves {
            for (second, other) in curves {
                if pair(first, second) {
                    gaps.extend(curve.gaps(other));
                }
            }
        }
        gaps
    }

    fn centring(&self) -> Finding {
        let mut parts = Parts::new(
            "Centring the weights never helps",
            Claim::NotLess,
            "loss with centring less loss without, at equal total bits, nats a token",
        );
        let curves = self.curves(|one| !one.unquantized());
        let pair = |centred: &Key<'_>, plain: &Key<'_>, width: Option<u32>| {
            centred.5
                && !plain.5
                && (centred.0, centred.1, centred.2, centred.3, centred.4)
                    == (plain.0, plain.1, plain.2, plain.3, plain.4)
                && width.is_none_or(|width| centred.3 == width)
        };
        let gaps = Self::between(&curves, |a, b| pair(a, b, None));
        parts.add(
            "schemes with and without `center: true`, of two or more sizes of one family",
            self.effect(&gaps),
        );
        let widths: BTreeSet<u32> = curves.keys().filter(|key| key.5).map(|key| key.3).collect();
        let each = widths.iter().filter_map(|width| {
            let effect = self.effect(&Self::between(&curves, |a, b| pair(a, b, Some(*width))))?;
            Some(format!("{}: {}", bits(*width), shown(&effect)))
        });
        let each: Vec<String> = each.collect();
        if each.len() > 1 {
            parts.notes.push(each.join("; "));
        }
        parts.finding()
    }

    /// The curves of mixed precision at `mixed` bits less those of the plain base at `plain` bits.
    fn mixed(&self, mixed: u32, plain: u32) -> Option<Effect> {
        let paper_share =
            |one: &Tested<'_>| one.mixture().is_some_and(|(_, share)| (share - SHARE).abs() < 1e-6);
        let curves = self.curves(|one| one.usual() || paper_share(one));
        // The base of a mixture by the parameters that are in its key.
        let bases: BTreeMap<&str, &str> = self
            .all
            .iter()
            .filter_map(|one| one.mixture().map(|(base, _)| (one.rest.as_str(), base)))
            .collect();
        let gaps = Self::between(&curves, |first, second| {
            bases.get(first.2).is_some_and(|base| {
                first.1 == super::tested::MIXED
                    && *base == second.1
                    && (first.0, first.4) == (second.0, second.4)
                    && (first.3, second.3) == (mixed, plain)
            })
        });
        self.effect(&gaps)
    }

    fn outliers_steady_three(&self) -> Finding {
        let mut parts = Parts::new(
            "2 % of the input dimensions in 16 bits make 3 bits better",
            Claim::Greater,
            "loss at 3 bits less loss with 2 % in 16 bits and the rest in 3, at equal total bits, nats a token",
        );
        // As what is gained.
        let gained = self.mixed(3, 3).map(Effect::negated);
        parts.add(missing_mixed("3 bits", "3 bits"), gained);
        parts.finding()
    }

    fn outliers_do_not_beat_four(&self) -> Finding {
        let mut parts = Parts::new(
            "3 bits with 2 % of the input dimensions in 16 bits do not beat 4 bits",
            Claim::NotLess,
            "loss with 2 % in 16 bits and the rest in 3 less loss at 4 bits, at equal total bits, nats a token",
        );
        parts.add(missing_mixed("3 bits", "4 bits"), self.mixed(3, FOUR));
        parts.finding()
    }

    fn outliers_at_four(&self) -> Finding {
        let mut parts = Parts::new(
            "2 % of the input dimensions in 16 bits do not make 4 bits better",
            Claim::NotLess,
            "loss with 2 % in 16 bits and the rest in 4 less loss at 4 bits, at equal total bits, nats a token",
        );
        parts.add(missing_mixed("4 bits", "4 bits"), self.mixed(FOUR, FOUR));
        parts.finding()
    }

    fn parallel(&self) -> Finding {
        let mut parts = Parts::new(
            "The curves of the bit widths are near-parallel",
            Claim::Near(PARALLEL),
            "slope of the curve less slope of the 4-bit curve over log2 of the total bits, as a share of the latter",
        );
        let fours = self.curves(|one| one.usual() && one.width == FOUR);
        let slopes: Vec<f64> = fours.values().filter_map(Curve::slope).collect();
        #[expect(clippy::cast_precision_loss, reason = "a count of curves")]
        let slope = slopes.iter().sum::<f64>() / slopes.len() as f64;
        for (width, gaps) in self.against_four() {
            parts.parts.extend(self.slope_of(&gaps, slope).map(|effect| (bits(width), effect)));
        }
        if parts.parts.is_empty() {
            parts
                .missing
                .push("4 bits and others of one scheme, of three or more sizes of one family".to_owned());
        }
        parts.finding()
    }

    /// The slope of the models' mean gaps over their size, as a share of `slope`.
    #[expect(clippy::cast_precision_loss, reason = "counts of models")]
    fn slope_of(&self, gaps: &[Gap<'a>], slope: f64) -> Option<Effect> {
        let pairs: Vec<(&str, (f64, f64))> =
            gaps.iter().map(|gap| (gap.model, (gap.x, gap.difference))).collect();
        let (models, groups) = by_model(&pairs);
        let mean = |group: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| {
            group.iter().map(of).sum::<f64>() / group.len() as f64
        };
        let rows: Vec<Vec<f64>> = groups.iter().map(|group| vec![1.0, mean(group, |pair| pair.0)]).collect();
        let middle = rows.iter().map(|row| row[1]).sum::<f64>() / rows.len() as f64;
        let rows: Vec<Vec<f64>> = rows.iter().map(|row| vec![1.0, row[1] - middle]).collect();
        let values: Vec<f64> = groups.iter().map(|group| mean(group, |pair| pair.1)).collect();
        let freedom = rows.len().checked_sub(2).filter(|freedom| *freedom > 0)?;
        let squares: f64 = rows.iter().map(|row| row[1].powi(2)).sum();
        let problem = Linear { rows, values };
        let resampling = Resampling { draws: DRAWS, seed: self.seed, groups: &[] };
        let solution = problem.solve(&resampling)?;
        let found = solution.constants[1];
        let residuals = problem.rows.iter().zip(&problem.values);
        let residuals = residuals.map(|(row, value)| value - Linear::predict(&solution.constants, row));
        let variance = residuals.map(|residual| residual.powi(2)).sum::<f64>() / freedom as f64;
        let scale = slope.abs();
        if scale == 0.0 || !scale.is_finite() {
            return None;
        }
        // A curve that falls faster has a greater slope: shares are of the fall.
        let share = |slope: f64| -slope / scale;
        let drawn: Vec<f64> = solution.draws.iter().map(|draw| share(draw[1] - found)).collect();
        let error = (variance / squares).sqrt() / scale;
        Some(Effect::resampled(share(found), error, freedom, &drawn, gaps.len(), models))
    }
}

fn bits(width: u32) -> String {
    format!("{width} bits")
}

fn missing_mixed(mixed: &str, plain: &str) -> String {
    format!("`mixed` with share 0.02 at {mixed} and its base at {plain}, of two or more sizes of one family")
}
