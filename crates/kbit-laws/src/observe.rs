//! From measurements to observations: what was measured, at which quantities, in which arithmetic.

use crate::law::Quantity;
use kbit_results::Measurement;
use std::collections::BTreeMap;

/// Bits that count for activations and caches in floating point: what the 16-bit formats of deployment have.
const FLOATING: f64 = 16.0;

/// Where a law is evaluated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct At {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// How the engine computed, where not in f32.
    pub arithmetic: String,
    /// N.
    pub params: Option<f64>,
    /// D.
    pub tokens: Option<f64>,
    /// C.
    pub flops: Option<f64>,
    /// P: true bits a weight.
    pub bits: Option<f64>,
    /// k: nominal bits a weight.
    pub nominal_bits: Option<f64>,
    /// Bits of all tensors.
    pub total_bits: Option<f64>,
    /// Bits an activation.
    pub activation_bits: Option<f64>,
    /// Bits of a cached key or value, the mean of both.
    pub cache_bits: Option<f64>,
    /// Relative squared error of each tensor.
    pub errors: BTreeMap<String, f64>,
}

impl At {
    /// The value of `quantity`, where it is one number and known.
    #[must_use]
    pub fn get(&self, quantity: Quantity) -> Option<f64> {
        match quantity {
            Quantity::Params => self.params,
            Quantity::Tokens => self.tokens,
            Quantity::Flops => self.flops,
            Quantity::Bits => self.bits,
            Quantity::NominalBits => self.nominal_bits,
            Quantity::TotalBits => self.total_bits.map(f64::log2),
            Quantity::ActivationBits => self.activation_bits,
            Quantity::CacheBits => self.cache_bits,
            Quantity::TensorErrors => None,
        }
    }

    /// Scheme and arithmetic: what a quantized model is run as.
    #[must_use]
    pub fn setting(&self) -> String {
        match (self.scheme.as_str(), self.arithmetic.as_str()) {
            (scheme, "") => scheme.to_owned(),
            (scheme, arithmetic) => format!("{scheme} ({arithmetic})"),
        }
    }
}

/// What was measured of one model under one scheme and arithmetic.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observation {
    /// Where.
    pub at: At,
    /// Scheme family; `none` unquantized.
    pub family: String,
    /// Scheme id.
    pub scheme_id: String,
    /// True where the arithmetic is the first in which the model and scheme were measured.
    pub first: bool,
    /// Mean negative log-likelihood, or another loss; positive, and less is better.
    pub loss: Option<f64>,
    /// Loss less that of the unquantized model.
    pub added: Option<f64>,
    /// Mean KL divergence from the unquantized model.
    pub divergence: Option<f64>,
}

/// Bits an activation has in the engine's `mode`.
fn activation_bits(mode: &str) -> Option<f64> {
    match mode {
        "f32" | "bf16" => Some(FLOATING),
        "int8" => Some(8.0),
        other => other.strip_prefix("act:")?.split(':').next()?.parse().ok(),
    }
}

/// Bits a cached number has in the `cache_type` of the engine, scales included.
fn cache_bits(cache_type: &str) -> Option<f64> {
    let bits = |name: &str| match name {
        "f32" | "f16" => Some(FLOATING),
        "q8" => Some(8.5),
        "q4" => Some(4.5),
        _ => None,
    };
    match cache_type.split_once(',') {
        Some((keys, values)) => Some((bits(keys)? + bits(values)?) / 2.0),
        None => bits(cache_type),
    }
}

/// The observations in `measurements`, in their order; of several texts, the first counts.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "numbers of weights and tokens, for logarithms")]
pub fn observations(measurements: &[Measurement]) -> Vec<Observation> {
    let mut found: Vec<Observation> = Vec::new();
    let mut errors: BTreeMap<(&str, &str), BTreeMap<String, f64>> = BTreeMap::new();
    for measurement in measurements {
        let (model, scheme) = (measurement.model.id.as_str(), measurement.scheme.label.as_str());
        if let Some(tensor) = &measurement.tensor {
            if measurement.metric == "tensor_relative_mse" {
                errors.entry((model, scheme)).or_default().insert(tensor.clone(), measurement.value);
            }
            continue;
        }
        let arithmetic = match measurement.arithmetic() {
            usual if usual == "f32" => String::new(),
            other => other,
        };
        let known = |seen: &Observation| seen.at.model == model && seen.at.scheme == scheme;
        let place = found.iter().position(|seen| known(seen) && seen.at.arithmetic == arithmetic);
        let place = place.unwrap_or_else(|| {
            let first = !found.iter().any(known);
            found.push(Observation {
                at: At {
                    model: model.to_owned(),
                    scheme: scheme.to_owned(),
                    arithmetic,
                    params: Some(measurement.model.params as f64),
                    tokens: measurement.model.tokens.map(|tokens| tokens as f64),
                    flops: measurement.model.flops,
                    bits: Some(measurement.bpw.file),
                    nominal_bits: measurement.scheme.bits,
                    total_bits: Some(measurement.total_bits),
                    activation_bits: activation_bits(&measurement.mode),
                    cache_bits: cache_bits(&measurement.cache_type),
                    errors: BTreeMap::new(),
                },
                family: measurement.scheme.family.clone(),
                scheme_id: measurement.scheme.id.clone(),
                first,
                ..Observation::default()
            });
            found.len() - 1
        });
        let observation = &mut found[place];
        match measurement.metric.as_str() {
            "nll" => {
                observation.loss.get_or_insert(measurement.value);
                if let Some(difference) = measurement.difference {
                    observation.added.get_or_insert(difference.value);
                }
            }
            "kl_divergence" => {
                observation.divergence.get_or_insert(measurement.value);
            }
            _ => {}
        }
    }
    for observation in &mut found {
        if let Some(of_run) = errors.get(&(observation.at.model.as_str(), observation.at.scheme.as_str())) {
            observation.at.errors.clone_from(of_run);
        }
    }
    complete(&mut found);
    found
}

/// Losses that quantization added, where they were not measured pairwise: this loss less the unquantized model's.
pub(crate) fn complete(observations: &mut [Observation]) {
    let bases: BTreeMap<String, f64> = observations
        .iter()
        .filter(|seen| seen.family == "none" && seen.first)
        .filter_map(|seen| Some((seen.at.model.clone(), seen.loss?)))
        .collect();
    for observation in observations.iter_mut().filter(|seen| seen.family != "none") {
        if let (None, Some(loss), Some(base)) =
            (observation.added, observation.loss, bases.get(&observation.at.model))
        {
            observation.added = Some(loss - base);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_activations_and_caches_follow_from_the_names_of_the_engine() {
        let activations = ["f32", "bf16", "int8", "act:4", "act:6:token", "other"].map(activation_bits);
        assert_eq!(activations, [Some(16.0), Some(16.0), Some(8.0), Some(4.0), Some(6.0), None]);
        let caches = ["f32", "f16", "q8", "q8,q4", "q4", "q5"].map(cache_bits);
        assert_eq!(caches, [Some(16.0), Some(16.0), Some(8.5), Some(6.5), Some(4.5), None]);
    }
}
