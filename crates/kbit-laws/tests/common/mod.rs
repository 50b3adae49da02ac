//! What the tests of laws share: noise and figures.
#![allow(dead_code, reason = "each test file uses a part")]

use kbit_results::{Bpw, Measurement, ModelInfo, SCHEMA, SchemeInfo};
use std::collections::BTreeMap;

/// A stream of numbers from the standard normal distribution (sums of twelve uniform ones).
pub struct Noise(pub u64);

impl Noise {
    /// The stream of `seed`; neighbouring seeds give unrelated streams.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xbf58_476d_1ce4_e5b9))
    }

    /// The next number.
    pub fn next(&mut self) -> f64 {
        let mut uniform = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 11) as f64 / (1u64 << 53) as f64
        };
        (0..12).map(|_| uniform()).sum::<f64>() - 6.0
    }
}

/// A figure of the model with `params` weights under a scheme of `bits` bits.
pub fn figure(params: u64, family: &str, bits: f64, metric: &str, value: f64) -> Measurement {
    let total_bits = params as f64 * bits;
    Measurement {
        schema: SCHEMA,
        model: ModelInfo {
            id: format!("m{params}"),
            architecture: "llama".into(),
            params,
            tokens: Some(20 * params),
            flops: Some(120.0 * (params as f64).powi(2)),
        },
        scheme: SchemeInfo {
            label: if family == "none" { "none".into() } else { format!("{family}:bits={bits}") },
            id: format!("org.example.{family}/1"),
            family: family.into(),
            params: BTreeMap::new(),
            bits: Some(bits.floor()),
        },
        bpw: Bpw { file: bits, decoder: bits },
        bytes: (total_bits / 8.0) as u64,
        total_bits,
        metric: metric.into(),
        tensor: None,
        value,
        stderr: Some(0.01),
        difference: None,
        seed: None,
        count: 1000,
        mode: "f32".into(),
        cache_type: "f32".into(),
        data: None,
        file_sha256: None,
    }
}

/// Names of the four knots of the base curve over runs of these total bits.
pub fn base_curve_knots(totals: &[f64]) -> Vec<String> {
    let logs: Vec<f64> = totals.iter().map(|total| total.log2()).collect();
    let low = logs.iter().copied().fold(f64::INFINITY, f64::min);
    let high = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (0..4).map(|knot| format!("base[{:.2}]", low + (high - low) / 3.0 * f64::from(knot))).collect()
}
