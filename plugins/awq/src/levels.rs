//! The levels of the scaled matrix: whole numbers, in ranges that may be clipped where that makes the weighted error smaller.

use kbit_plugin::{DefaultValue, Error, Param, ParamKind, Params, SchemeInfo};
use kbit_scheme_kit::levels::Int;
use kbit_scheme_kit::{
    Codebook, Fit, Levels, SCALE_PARAM, SYMMETRIC_PARAM, Setup, Summary, bits_param, block_param,
};

/// Ranges that are tried besides the whole one, each smaller than the one before by a twentieth of it: down to half, as the authors have it.
const CLIPS: u8 = 10;
const CLIP: f32 = 0.05;

const PARAMS: &[Param] = &[
    bits_param(2, 4),
    SYMMETRIC_PARAM,
    block_param(16),
    Param {
        key: "grid",
        doc: "Steps from 0 to 1 of the power of the inputs' magnitude that is searched, a power of two; then the two half steps beside the \
              best are tried.",
        unit: "",
        kind: ParamKind::Int { min: 1, max: 32 },
        default: DefaultValue::Int(16),
    },
    Param {
        key: "clip",
        doc: "Try smaller ranges for each block, down to half, and take the one of least weighted error.",
        unit: "",
        kind: ParamKind::Bool,
        default: DefaultValue::Bool(true),
    },
    SCALE_PARAM,
];

/// The levels of `int`, with clipped ranges.
pub struct Clipped {
    int: Int,
    clip: bool,
    /// Steps from the least to the greatest level.
    steps: f32,
    symmetric: bool,
}

impl Levels for Clipped {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.kbit.awq/1",
        title: "Activation-aware",
        doc: "Integers in blocks, as int, of a matrix whose columns are multiplied by a power of the magnitude of their inputs before rounding \
              and divided by it after; the power is searched for the least error of the outputs. Needs importance.",
        citation: "Lin et al. 2023, arXiv 2306.00978 (AWQ)",
        ggml_type: -1,
        params: PARAMS,
    };
    const REFINES: bool = true;

    fn open(params: &Params) -> Result<(Self, Setup), Error> {
        let (bits, symmetric) = (params.int("bits")?, params.bool("symmetric")?);
        let settings = format!(
            "bits={bits},symmetric={symmetric},block={},scale={}",
            params.int("block")?,
            params.str("scale")?
        );
        let (int, setup) = Int::open(&Params::parse(Int::INFO.params, &settings)?)?;
        let steps = f32::from(u8::MAX >> (8 - setup.bits));
        Ok((Self { int, clip: params.bool("clip")?, steps, symmetric }, setup))
    }

    fn fit(&self, summary: &Summary) -> Fit {
        self.int.fit(summary)
    }

    fn refine_weighed(&self, values: &[f32], weights: &[f32], fit: Fit) -> Fit {
        if !self.clip {
            return fit;
        }
        let mut best = (f64::INFINITY, fit);
        let mut codes = vec![0; values.len()];
        let mut decoded = vec![0.0; values.len()];
        for clip in 0..=CLIPS {
            let share = 1.0 - CLIP * f32::from(clip);
            let lost = if self.symmetric { 0.0 } else { fit.scale * self.steps * (1.0 - share) / 2.0 };
            let candidate = Fit { scale: fit.scale * share, minimum: fit.minimum + lost };
            if candidate.scale == 0.0 {
                break;
            }
            self.int.encode(values, candidate, None, &mut codes);
            self.int.decode(&codes, candidate, None, &mut decoded);
            let error: f64 = values
                .iter()
                .zip(&decoded)
                .zip(weights)
                .map(|((value, decoded), weight)| {
                    let off = f64::from(value - decoded);
                    f64::from(*weight) * off * off
                })
                .sum();
            if error < best.0 {
                best = (error, candidate);
            }
        }
        best.1
    }

    fn encode(&self, values: &[f32], fit: Fit, book: Option<&Codebook>, codes: &mut [u8]) {
        self.int.encode(values, fit, book, codes);
    }

    fn decode(&self, codes: &[u8], fit: Fit, book: Option<&Codebook>, out: &mut [f32]) {
        self.int.decode(codes, fit, book, out);
    }
}
