//! Results as the findings see them: schemes with a bit width and a block size, and what else they are.

use crate::runs;
use kbit_results::{Measurement, SchemeInfo};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The paper's data types, as kbit names their families.
pub const DATA_TYPES: [&str; 4] = ["int", "float", "dynamic", "quantile"];
/// Family of the scheme that leaves a share of the input dimensions in 16 bits.
pub const MIXED: &str = "mixed";

/// Values of the parameters of the paper's data types at which they are what the paper means by them.
const USUAL: [(&str, &str); 8] = [
    ("symmetric", "true"),
    ("levels", "full"),
    ("granularity", "block"),
    ("scale_search", "absmax"),
    ("scale", "f16"),
    ("scale_bits", "0"),
    ("codebook", "normal"),
    ("exponent", "-1"),
];

/// A model under a scheme.
#[derive(Clone, Debug)]
pub struct Tested<'a> {
    pub model: &'a str,
    pub architecture: &'a str,
    pub params: u64,
    /// log2 of the total bits.
    pub size: f64,
    /// Nats a token.
    pub loss: f64,
    /// KL divergence from the unquantized model.
    pub divergence: Option<f64>,
    pub scheme: &'a SchemeInfo,
    /// Bit width; 16 or more for the unquantized model.
    pub width: u32,
    pub block: Option<u64>,
    pub centred: bool,
    /// Other parameters, as text.
    pub rest: String,
}

/// A parameter's value as text, whether it was written as a word or as a number.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl<'a> Tested<'a> {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a bit width between 1 and 32, checked"
    )]
    fn of(about: &'a Measurement, loss: f64, divergence: Option<f64>) -> Option<Self> {
        let scheme = &about.scheme;
        let unquantized = scheme.family == "none";
        let nominal = scheme.params.get("bits").and_then(Value::as_f64);
        let nominal = if unquantized { scheme.bits.or(Some(16.0)) } else { nominal };
        let width = nominal.filter(|bits| (1.0..=64.0).contains(bits) && bits.fract() == 0.0)? as u32;
        let own = ["bits", "block", "center"];
        let rest: Vec<String> = scheme
            .params
            .iter()
            .filter(|(name, _)| !own.contains(&name.as_str()))
            .map(|(name, value)| format!("{name}={}", plain(value)))
            .collect();
        let usable = loss.is_finite() && loss > 0.0 && about.total_bits > 0.0;
        usable.then(|| Self {
            model: &about.model.id,
            architecture: &about.model.architecture,
            params: about.model.params,
            size: about.total_bits.log2(),
            loss,
            divergence,
            scheme,
            width,
            block: scheme.params.get("block").and_then(Value::as_u64),
            centred: scheme.params.get("center").and_then(Value::as_bool).unwrap_or(false),
            rest: rest.join(","),
        })
    }

    pub fn family(&self) -> &'a str {
        &self.scheme.family
    }

    pub fn unquantized(&self) -> bool {
        self.scheme.family == "none"
    }

    /// True for a scheme without centring, mixed precision or a parameter that makes it other than the paper's.
    pub fn usual(&self) -> bool {
        let of_paper = DATA_TYPES.contains(&self.family());
        let as_usual = |(name, value): (&String, &Value)| {
            !of_paper || USUAL.iter().all(|(known, usual)| known != name || plain(value) == *usual)
        };
        !self.unquantized()
            && !self.centred
            && self.family() != MIXED
            && self.scheme.params.iter().all(as_usual)
    }

    /// Base and share, of mixed precision.
    pub fn mixture(&self) -> Option<(&'a str, f64)> {
        let params = &self.scheme.params;
        let of_mixed = self.family() == MIXED;
        of_mixed.then_some(())?;
        Some((params.get("base")?.as_str()?, params.get("share")?.as_f64()?))
    }
}

/// The results in `measurements` that the findings can use, in their order. A block longer than every row makes the file that a
/// shorter one made: only the shortest of them counts.
pub fn tested(measurements: &[Measurement]) -> Vec<Tested<'_>> {
    let all = runs(measurements);
    let all = all
        .iter()
        .filter_map(|run| Tested::of(run.about, run.nll?.0, run.kld.map(|(divergence, _)| divergence)));
    let mut all: Vec<Tested<'_>> = all.collect();
    let mut shortest: BTreeMap<_, u64> = BTreeMap::new();
    let key = |one: &Tested<'_>| {
        let scheme = (one.family().to_owned(), one.rest.clone(), one.width, one.centred);
        (one.model.to_owned(), scheme, one.size.to_bits())
    };
    for one in &all {
        let Some(block) = one.block else { continue };
        let least = shortest.entry(key(one)).or_insert(block);
        *least = (*least).min(block);
    }
    all.retain(|one| one.block.is_none_or(|block| shortest.get(&key(one)) == Some(&block)));
    all
}

/// Models that make curves over size, of each architecture: of the same number of weights, the best; and of several sizes, those that
/// are better than every smaller one, since a worse larger one was made in another way.
pub fn ladder<'a>(all: &[Tested<'a>]) -> BTreeSet<&'a str> {
    let mut best: BTreeMap<&str, (&str, u64, f64)> = BTreeMap::new();
    for one in all {
        let model = best.entry(one.model).or_insert((one.architecture, one.params, one.loss));
        model.2 = model.2.min(one.loss);
    }
    let mut models: Vec<(&str, u64, f64, &str)> = best
        .into_iter()
        .map(|(model, (architecture, params, loss))| (architecture, params, loss, model))
        .collect();
    models.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)).then(a.3.cmp(b.3)));
    let mut kept = BTreeSet::new();
    let mut last: Option<(&str, f64)> = None;
    for (architecture, _, loss, model) in models {
        if last.is_some_and(|(same, lowest)| same == architecture && loss >= lowest) {
            continue;
        }
        last = Some((architecture, loss));
        kept.insert(model);
    }
    kept
}
