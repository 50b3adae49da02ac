//! Half-quadratic quantization: whole numbers from a minimum up, which is chosen so that the errors are few and large rather than
//! many and small.
//!
//! Badri and Shaji (2023) minimise the p-norm, p < 1, of what is lost, by splitting it: a sparse error is taken away from the weights,
//! and the zero point is the mean of what the codes leave of the rest; both in turn. No data is needed. Here errors are measured in units
//! of the block's scale, so that a matrix and its multiples have the same codes, and p is such that powers are square roots, which
//! every machine computes alike. The zero point is stored as the weight of code 0 (the minimum).

use kbit_plugin::{DefaultValue, Error, Param, ParamKind, Params, SchemeInfo, export_plugin};
use kbit_scheme_kit::{
    BlockScheme, Codebook, Fit, Granularity, Levels, SCALE_PARAM, ScaleType, Setup, Summary, bits_param,
    block_param, round_half_even,
};

/// How much a unit of sparse error weighs against one of the rest, at first, and what it grows by: the authors' figures.
const BETA: f32 = 10.0;
const GROWTH: f32 = 1.01;

/// The levels of the scheme `hqq`.
struct Hqq {
    /// 2^k - 1.
    most: f32,
    /// x to the power of p - 1.
    power: fn(f32) -> f32,
    steps: u32,
}

const PARAMS: &[Param] = &[
    bits_param(2, 4),
    block_param(16),
    Param {
        key: "norm",
        doc: "The norm of the errors that is minimised: the smaller its p, the fewer and larger the errors.",
        unit: "",
        kind: ParamKind::Choice(&["l0.5", "l0.75"]),
        default: DefaultValue::Str("l0.75"),
    },
    Param {
        key: "steps",
        doc: "Steps of the optimisation, at most; it stops where a step makes the mean error no smaller. 0 rounds to nearest.",
        unit: "",
        kind: ParamKind::Int { min: 0, max: 100 },
        default: DefaultValue::Int(20),
    },
    SCALE_PARAM,
];

impl Hqq {
    /// The nearest code of a weight that is `x` scales above the minimum.
    fn code(&self, x: f32) -> f32 {
        round_half_even(x.clamp(0.0, self.most))
    }

    /// What of an error counts as sparse.
    fn shrink(&self, error: f32, beta: f32) -> f32 {
        let magnitude = error.abs();
        if magnitude == 0.0 {
            return 0.0;
        }
        (magnitude - (self.power)(magnitude) / beta).max(0.0).copysign(error)
    }
}

impl Levels for Hqq {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.kbit.hqq/1",
        title: "Half-quadratic",
        doc: "Whole multiples of a scale from a minimum up, as int with symmetric=false, with the minimum that makes the p-norm (p below 1) \
              of the errors small. Needs no data.",
        citation: "Badri and Shaji 2023, Half-Quadratic Quantization of Large Machine Learning Models",
        ggml_type: -1,
        params: PARAMS,
    };
    const REFINES: bool = true;

    fn open(params: &Params) -> Result<(Self, Setup), Error> {
        let bits = u32::try_from(params.int("bits")?).map_err(|_| Error::param("bits: 2 to 8"))?;
        let block = usize::try_from(params.int("block")?).map_err(|_| Error::param("block: 16 to 4096"))?;
        let steps = u32::try_from(params.int("steps")?).map_err(|_| Error::param("steps: 0 to 100"))?;
        let setup = Setup {
            bits,
            granularity: Granularity::Block(block),
            scale: ScaleType::parse(params.str("scale")?)?,
            double: None,
            with_minimum: true,
            center: false,
            search: false,
            empirical: false,
        };
        let power: fn(f32) -> f32 = match params.str("norm")? {
            "l0.5" => |x| 1.0 / x.sqrt(),
            _ => |x| 1.0 / x.sqrt().sqrt(),
        };
        Ok((Self { most: f32::from(u8::MAX >> (8 - bits)), power, steps }, setup))
    }

    fn fit(&self, summary: &Summary) -> Fit {
        Fit { scale: (summary.max - summary.min) / self.most, minimum: summary.min }
    }

    fn refine(&self, values: &[f32], fit: Fit) -> Fit {
        let (mut minimum, mut beta) = (fit.minimum, BETA);
        let mut best = (f64::INFINITY, fit.minimum);
        for _ in 0..=self.steps {
            let (mut error, mut next) = (0.0, 0.0);
            for value in values {
                let x = (value - minimum) / fit.scale;
                let code = self.code(x);
                let lost = x - code;
                error += f64::from(lost.abs());
                next += f64::from((x - self.shrink(lost, beta)) - code);
            }
            if error >= best.0 {
                break;
            }
            best = (error, minimum);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_precision_loss,
                reason = "a mean in single precision"
            )]
            {
                minimum += (next / values.len() as f64) as f32 * fit.scale;
            }
            beta *= GROWTH;
        }
        Fit { minimum: best.1, ..fit }
    }

    fn encode(&self, values: &[f32], fit: Fit, _: Option<&Codebook>, codes: &mut [u8]) {
        for (value, code) in values.iter().zip(codes) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "0 to 255 by the clamp"
            )]
            {
                *code = self.code((value - fit.minimum) / fit.scale) as u8;
            }
        }
    }

    fn decode(&self, codes: &[u8], fit: Fit, _: Option<&Codebook>, out: &mut [f32]) {
        for (code, out) in codes.iter().zip(out) {
            *out = f32::from(*code) * fit.scale + fit.minimum;
        }
    }
}

export_plugin! {
    id: "org.kbit.hqq",
    vendor: "kbit",
    url: "https://github.com/kbit-dev/kbit",
    license: "MIT OR Apache-2.0",
    schemes: [BlockScheme<Hqq>],
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbit_scheme_kit::{levels::Int, testing};

    type Scheme = BlockScheme<Hqq>;

    fn mean_error(values: &[f32], decoded: &[f32]) -> f64 {
        values.iter().zip(decoded).map(|(w, v)| f64::from((w - v).abs())).sum::<f64>() / values.len() as f64
    }

    #[test]
    fn without_steps_it_rounds_to_nearest() {
        let values = testing::gaussian(4096);
        for bits in [2, 3, 4, 8] {
            let own = testing::round_trip::<Scheme>(&format!("bits={bits},steps=0"), 32, 128, &values);
            let settings = format!("bits={bits},symmetric=false");
            let plain = testing::round_trip::<BlockScheme<Int>>(&settings, 32, 128, &values);
            assert_eq!(own, plain, "{bits} bits");
        }
    }

    #[test]
    fn steps_make_the_mean_error_smaller() {
        let values = testing::gaussian(1 << 16);
        for bits in [2, 3, 4] {
            for norm in ["l0.5", "l0.75"] {
                let of = |steps: u32| {
                    let settings = format!("bits={bits},norm={norm},steps={steps},scale=f32");
                    mean_error(&values, &testing::round_trip::<Scheme>(&settings, 256, 256, &values))
                };
                let (before, after) = (of(0), of(20));
                assert!(after < before, "{bits} bits, norm {norm}: {after}, without {before}");
            }
        }
    }

    #[test]
    fn a_multiple_of_a_matrix_has_the_same_codes() {
        let values = testing::gaussian(4096);
        let larger: Vec<f32> = values.iter().map(|x| x * 64.0).collect();
        let of = |values: &[f32]| testing::round_trip::<Scheme>("bits=3,scale=f32", 32, 128, values);
        let scaled: Vec<f32> = of(&values).iter().map(|x| x * 64.0).collect();
        assert_eq!(scaled, of(&larger));
    }

    #[test]
    fn keeps_the_rules_of_the_abi() {
        for settings in
            ["", "bits=2,block=16,norm=l0.5", "bits=8,scale=bf16", "bits=3,block=4096,steps=100,scale=f32"]
        {
            testing::keeps_the_rules::<Scheme>(settings);
        }
    }
}
