//! Which models and schemes differ: the pairs in the records of runs, tested.

use super::sample::{Paired, Sample, Tested, holm};
use kbit_results::{DataInfo, Items, Measurement, contradict};
use serde::Serialize;
use std::collections::BTreeMap;

/// Names of the unquantized model.
const UNQUANTIZED: [&str; 2] = ["none", "unquantized"];
/// Tokenizers differ where the mean bytes of a token differ by more than this share.
const SAME_BYTES: f64 = 1e-9;

/// Records of one file, for errors that name it.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Path, as errors name it.
    pub name: String,
    /// Values item by item, each with its line.
    pub items: Vec<(usize, Items)>,
    /// The figures beside them, which tell tokenizers apart.
    pub measurements: Vec<Measurement>,
}

/// How to compare.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// Metric of the items: `nll`, `kl_divergence`, or one of a task.
    pub metric: String,
    /// Names of models, schemes, or `MODEL/SCHEME`: none for all pairs, one to compare with all others, or several.
    pub names: Vec<String>,
    /// Draws of the bootstrap and of the permutation test.
    pub resamples: usize,
    /// Their seed.
    pub seed: u64,
    /// A difference counts where its corrected p value is below this.
    pub alpha: f64,
}

/// One side of a pair.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Side {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Arithmetic of the engine.
    pub mode: String,
    /// Types of its KV cache.
    pub cache_type: String,
}

impl Side {
    /// `MODEL/SCHEME`, as `--help` writes it.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.model, self.scheme)
    }

    /// How `name` names this side, if it does.
    fn named(&self, name: &str) -> Option<Named> {
        let scheme = |name: &str| {
            self.scheme == name || UNQUANTIZED.contains(&name) && UNQUANTIZED.contains(&self.scheme.as_str())
        };
        let rest = name.strip_prefix(self.model.as_str()).and_then(|rest| rest.strip_prefix('/'));
        if rest.is_some_and(scheme) {
            Some(Named::Whole)
        } else {
            (self.model == name || scheme(name)).then_some(Named::Part)
        }
    }
}

/// How a name names a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    /// By model and scheme.
    Whole,
    /// By one of them.
    Part,
}

/// What can be said of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The first is better.
    First,
    /// The second is better.
    Second,
    /// The difference may be chance.
    NotDistinguishable,
    /// Every item has the same value.
    Equal,
}

/// A pair on one text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Text {
    /// Name.
    pub name: String,
    /// Figure of the first.
    pub value_a: f64,
    /// Figure of the second.
    pub value_b: f64,
    /// First less second.
    pub difference: f64,
    /// Standard error of the difference.
    pub stderr: Option<f64>,
    /// Items.
    pub items: usize,
}

/// A pair, compared.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// The first.
    pub a: Side,
    /// The second.
    pub b: Side,
    /// Figure of the first: the mean over texts.
    pub value_a: f64,
    /// Figure of the second.
    pub value_b: f64,
    /// The difference, first less second, with its test.
    #[serde(flatten)]
    pub tested: Tested,
    /// p value corrected for the number of pairs.
    pub p_corrected: Option<f64>,
    /// What can be said.
    pub verdict: Verdict,
    /// Each text.
    pub texts: Vec<Text>,
}

/// Pairs, compared.
#[derive(Clone, Debug, Serialize)]
pub struct Comparisons {
    /// Metric.
    pub metric: String,
    /// True where less is better.
    pub lower_is_better: bool,
    /// Corrected p values below it count.
    pub alpha: f64,
    /// The pairs.
    pub pairs: Vec<Compared>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// Why nothing can be compared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// No items of the metric.
    #[error("no values of {metric} are recorded item by item{}: run with a kbit that writes items.jsonl, and name its folder", known(.found))]
    NoItems {
        /// Metric.
        metric: String,
        /// Metrics that are recorded.
        found: Vec<String>,
    },
    /// A name that nothing has.
    #[error("nothing measured is called `{name}`; there are: {}", .found.join(", "))]
    Unknown {
        /// The name.
        name: String,
        /// All models with schemes.
        found: Vec<String>,
    },
    /// Nothing forms a pair.
    #[error("there is no pair to compare: {why}")]
    NoPair {
        /// Why, and what to do.
        why: String,
    },
    /// Two records of the same thing that differ.
    #[error(
        "{what} differs between {} and {}: one of them is of other files or of another kbit; measure again, or leave one out", places[0], places[1]
    )]
    Contradiction {
        /// Metric, model, scheme, text.
        what: String,
        /// Files with lines.
        places: [String; 2],
    },
    /// A record whose numbers do not fit together.
    #[error(
        "{place}: {values} values and {weights} weights, whose sum must be above 0; remove the line, or run the measurement again"
    )]
    Shape {
        /// File with line.
        place: String,
        /// Values.
        values: usize,
        /// Weights.
        weights: usize,
    },
}

fn known(found: &[String]) -> String {
    if found.is_empty() { String::new() } else { format!(", only of {}", found.join(", ")) }
}

/// True of metrics of which less is better.
#[must_use]
pub fn lower_is_better(metric: &str) -> bool {
    let losses = ["nll", "perplexity", "bits_per_token", "bits_per_byte", "kl_divergence", "sensitivity"];
    losses.iter().any(|loss| metric.starts_with(loss) || metric.ends_with(loss))
}

/// Digest, windows: what makes two texts the same.
type DataKey = (String, [Option<u64>; 3]);

fn data_key(data: &DataInfo) -> DataKey {
    (data.sha256.clone(), [data.context, data.stride, data.chunks])
}

/// What was recorded of a side on one text.
struct Recorded<'a> {
    items: &'a Items,
    place: String,
}

/// Every side with its texts, in their order.
type Sides<'a> = Vec<(Side, Vec<(DataKey, Recorded<'a>)>)>;

fn sides<'a>(sources: &'a [Source], metric: &str) -> Result<Sides<'a>, CompareError> {
    let mut found: Sides<'a> = Vec::new();
    for source in sources {
        for (line, items) in source.items.iter().filter(|(_, items)| items.metric == metric) {
            let place = format!("{}:{line}", source.name);
            let (values, weights) =
                (items.values.len(), items.weights.as_ref().map_or(items.values.len(), Vec::len));
            if Paired::new(&items.values, &items.values, items.weights.as_deref()).is_none() {
                return Err(CompareError::Shape { place, values, weights });
            }
            let side = Side {
                model: items.model.clone(),
                scheme: items.scheme.clone(),
                mode: items.mode.clone(),
                cache_type: items.cache_type.clone(),
            };
            let index = found.iter().position(|(known, _)| *known == side).unwrap_or_else(|| {
                found.push((side.clone(), Vec::new()));
                found.len() - 1
            });
            let key = data_key(&items.data);
            let texts = &mut found[index].1;
            match texts.iter().find(|(known, _)| *known == key) {
                None => texts.push((key, Recorded { items, place })),
                Some((_, first)) if same(first.items, items) => {}
                Some((_, first)) => {
                    return Err(CompareError::Contradiction {
                        what: format!("{metric} of {} on {}", side.name(), items.data.name),
                        places: [first.place.clone(), place],
                    });
                }
            }
        }
    }
    Ok(found)
}

/// True where two records of the same thing agree but for rounding.
fn same(a: &Items, b: &Items) -> bool {
    a.weights == b.weights
        && a.values.len() == b.values.len()
        && a.values.iter().zip(&b.values).all(|(a, b)| !contradict(*a, *b) || (a - b).abs() < 1e-9)
}

/// Mean bytes of a token of each model on each text, where the figures tell: bits a token over bits a byte.
fn bytes_per_token(sources: &[Source]) -> BTreeMap<(String, DataKey), f64> {
    let mut bits: BTreeMap<(String, String, DataKey), [Option<f64>; 2]> = BTreeMap::new();
    for measurement in sources.iter().flat_map(|source| &source.measurements) {
        let slot = match measurement.metric.as_str() {
            "bits_per_token" => 0,
            "bits_per_byte" => 1,
            _ => continue,
        };
        let Some(data) = &measurement.data else { continue };
        let arithmetic = format!("{} {}", measurement.scheme.label, measurement.arithmetic());
        let key = (measurement.model.id.clone(), arithmetic, data_key(data));
        bits.entry(key).or_default()[slot] = Some(measurement.value);
    }
    let ratio = |((model, _, data), [token, byte]): ((String, String, DataKey), [Option<f64>; 2])| {
        Some(((model, data), token? / byte?))
    };
    bits.into_iter().filter_map(ratio).collect()
}

/// The pairs that the names ask for.
fn pairs(sides: &Sides<'_>, names: &[String]) -> Result<Vec<(usize, usize)>, CompareError> {
    let all = || (0..sides.len()).map(|index| (index, Named::Part)).collect::<Vec<_>>();
    let mut chosen: Vec<Vec<(usize, Named)>> = Vec::new();
    for name in names {
        let named = sides.iter().enumerate();
        let found: Vec<(usize, Named)> =
            named.filter_map(|(index, (side, _))| Some((index, side.named(name)?))).collect();
        if found.is_empty() {
            let mut known: Vec<String> = sides.iter().map(|(side, _)| side.name()).collect();
            known.sort();
            known.dedup();
            return Err(CompareError::Unknown { name: name.clone(), found: known });
        }
        chosen.push(found);
    }
    while chosen.len() < 2 {
        chosen.push(all());
    }
    let mut found = Vec::new();
    for (one, left) in chosen.iter().enumerate() {
        for right in &chosen[one + 1..] {
            for (&(a, named_a), &(b, named_b)) in left.iter().flat_map(|a| right.iter().map(move |b| (a, b)))
            {
                let (x, y) = (&sides[a].0, &sides[b].0);
                let same_engine = x.mode == y.mode && x.cache_type == y.cache_type;
                // What is named in full is compared with whatever; else only the model or only the scheme may differ.
                let one_differs = (x.model == y.model) != (x.scheme == y.scheme);
                let in_full = named_a == Named::Whole && named_b == Named::Whole && a != b;
                if same_engine
                    && (one_differs || in_full)
                    && !found.contains(&(a, b))
                    && !found.contains(&(b, a))
                {
                    found.push((a, b));
                }
            }
        }
    }
    Ok(found)
}

fn figure(items: &Items) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a count of items")]
    let total = items.weights.as_ref().map_or(items.values.len() as f64, |weights| weights.iter().sum());
    items.values.iter().sum::<f64>() / total
}

/// Compares the pairs that `options` name, over all texts that both have.
///
/// # Errors
/// When nothing is recorded of the metric or a name, nothing forms a pair, or records contradict each other.
pub fn compare(sources: &[Source], options: &CompareOptions) -> Result<Comparisons, CompareError> {
    let sides = sides(sources, &options.metric)?;
    if sides.is_empty() {
        let mut found: Vec<String> = sources
            .iter()
            .flat_map(|source| source.items.iter().map(|(_, items)| items.metric.clone()))
            .collect();
        found.sort();
        found.dedup();
        return Err(CompareError::NoItems { metric: options.metric.clone(), found });
    }
    let bytes = bytes_per_token(sources);
    let lower = lower_is_better(&options.metric);
    let mut compared = Vec::new();
    let mut refused: Vec<String> = Vec::new();
    for (a, b) in pairs(&sides, &options.names)? {
        match pair(&sides[a], &sides[b], &bytes, options) {
            Ok(found) => compared.push(found),
            Err(why) => {
                if !refused.contains(&why) {
                    refused.push(why);
                }
            }
        }
    }
    if compared.is_empty() {
        let why = match refused.first() {
            Some(why) => why.clone(),
            None => format!(
                "only one model and scheme was measured in each arithmetic, or the names are of models and schemes that differ in both; \
                 write MODEL/SCHEME for both. There are: {}",
                sides.iter().map(|(side, _)| side.name()).collect::<Vec<_>>().join(", ")
            ),
        };
        return Err(CompareError::NoPair { why });
    }
    let tested: Vec<usize> =
        (0..compared.len()).filter(|index| compared[*index].tested.p_value.is_some()).collect();
    let p_values: Vec<f64> = tested.iter().filter_map(|index| compared[*index].tested.p_value).collect();
    for (index, corrected) in tested.into_iter().zip(holm(&p_values)) {
        let found = &mut compared[index];
        found.p_corrected = Some(corrected);
        if found.verdict == Verdict::NotDistinguishable && corrected < options.alpha {
            let first = (found.tested.difference < 0.0) == lower;
            found.verdict = if first { Verdict::First } else { Verdict::Second };
        }
    }
    Ok(Comparisons {
        metric: options.metric.clone(),
        lower_is_better: lower,
        alpha: options.alpha,
        pairs: compared,
        notes: refused,
    })
}

type Sided<'a> = (Side, Vec<(DataKey, Recorded<'a>)>);

/// One pair over the texts of both, or why it cannot be compared.
fn pair(
    (a, texts_a): &Sided<'_>,
    (b, texts_b): &Sided<'_>,
    bytes: &BTreeMap<(String, DataKey), f64>,
    options: &CompareOptions,
) -> Result<Compared, String> {
    let mut texts = Vec::new();
    let mut samples = Vec::new();
    let mut equal = true;
    for (key, x) in texts_a {
        let Some((_, y)) = texts_b.iter().find(|(other, _)| other == key) else { continue };
        let of = |side: &Side| bytes.get(&(side.model.clone(), key.clone())).copied();
        if let (Some(one), Some(other)) = (of(a), of(b))
            && (one - other).abs() > SAME_BYTES * one.abs()
        {
            return Err(format!(
                "{} and {} split {} into other tokens ({one:.3} and {other:.3} bytes each), so that their windows hold other text: compare \
                 models that share a tokenizer, or their bits_per_byte on whole texts",
                a.model, b.model, x.items.data.name
            ));
        }
        let paired = (x.items.weights == y.items.weights)
            .then(|| Paired::new(&x.items.values, &y.items.values, x.items.weights.as_deref()))
            .flatten();
        let Some(paired) = paired else {
            return Err(format!(
                "{} and {} have other items on {} ({} and {}: {} and {} items): their tokenizers or versions of kbit differ; measure both in one run",
                a.name(),
                b.name(),
                x.items.data.name,
                x.place,
                y.place,
                x.items.values.len(),
                y.items.values.len()
            ));
        };
        equal &= x.items.values == y.items.values;
        texts.push(Text {
            name: x.items.data.name.clone(),
            value_a: figure(x.items),
            value_b: figure(y.items),
            difference: paired.mean(),
            stderr: paired.stderr(),
            items: paired.len(),
        });
        samples.push(paired);
    }
    let Some(sample) = Sample::new(samples) else {
        let names = |texts: &[(DataKey, Recorded<'_>)]| {
            let name = |data: &DataInfo| match (data.context, data.chunks) {
                (Some(context), Some(chunks)) => {
                    format!("{}, {chunks} windows of {context} tokens", data.name)
                }
                _ => data.name.clone(),
            };
            texts.iter().map(|(_, found)| name(&found.items.data)).collect::<Vec<_>>().join("; ")
        };
        return Err(format!(
            "{} and {} were not measured on the same text in the same windows ({}, and {}): measure both in one run",
            a.name(),
            b.name(),
            names(texts_a),
            names(texts_b)
        ));
    };
    #[expect(clippy::cast_precision_loss, reason = "a count of texts")]
    let mean = |value: fn(&Text) -> f64| texts.iter().map(value).sum::<f64>() / texts.len() as f64;
    Ok(Compared {
        a: a.clone(),
        b: b.clone(),
        value_a: mean(|text| text.value_a),
        value_b: mean(|text| text.value_b),
        tested: sample.test(options.resamples, options.seed),
        p_corrected: None,
        verdict: if equal { Verdict::Equal } else { Verdict::NotDistinguishable },
        texts,
    })
}
