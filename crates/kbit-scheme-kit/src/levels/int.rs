//! Integer quantization at 2 to 8 bits: round to nearest, with a scale (and, asymmetric, a minimum) a block.

use crate::{
    CENTER_PARAM, Codebook, DoubleQuantization, Fit, Granularity, Levels, SCALE_BITS_PARAM,
    SCALE_BLOCK_PARAM, SCALE_PARAM, SYMMETRIC_PARAM, ScaleType, Setup, Summary, bits_param, block_param,
    round_half_even,
};
use kbit_plugin::{DefaultValue, Error, Param, ParamKind, Params, SchemeInfo};

/// Which whole numbers the codes stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Range {
    /// -2^(k-1) to 2^(k-1)-1; the weight of largest magnitude becomes -2^(k-1), so the scale may be negative.
    Full,
    /// -(2^(k-1)-1) to 2^(k-1)-1; the scale is max|Q| / (2^(k-1)-1).
    Narrow,
    /// -2^(k-1) to 2^(k-1)-1; the scale is max|Q| / 2^(k-1), and what exceeds the range is clamped.
    Textbook,
    /// 0 to 2^k-1 from the minimum up.
    FromMinimum,
}

/// The levels of the scheme `int`.
pub struct Int {
    range: Range,
    /// 2^(k-1).
    half: f32,
}

impl Int {
    /// Least and greatest whole number.
    const fn bounds(&self) -> (f32, f32) {
        match self.range {
            Range::Full | Range::Textbook => (-self.half, self.half - 1.0),
            Range::Narrow => (1.0 - self.half, self.half - 1.0),
            Range::FromMinimum => (0.0, 2.0 * self.half - 1.0),
        }
    }

    /// What is added to a whole number to get its code.
    const fn bias(&self) -> f32 {
        if matches!(self.range, Range::FromMinimum) { 0.0 } else { self.half }
    }
}

const PARAMS: &[Param] = &[
    bits_param(2, 4),
    SYMMETRIC_PARAM,
    Param {
        key: "levels",
        doc: "Symmetric levels. full: all 2^k, the largest magnitude on -2^(k-1). narrow: 2^k - 1, as many above as below \
              zero. textbook: clamp(round(Q/S))*S with S = max|Q| / 2^(k-1).",
        unit: "",
        kind: ParamKind::Choice(&["full", "narrow", "textbook"]),
        default: DefaultValue::Str("full"),
    },
    Param {
        key: "granularity",
        doc: "What shares a scale: block weights of a row, block weights of the flattened matrix, a row, or the matrix.",
        unit: "",
        kind: ParamKind::Choice(&["block", "flat", "row", "tensor"]),
        default: DefaultValue::Str("block"),
    },
    CENTER_PARAM,
    block_param(16),
    Param {
        key: "scale_search",
        doc: "absmax: the scale follows the largest magnitude. mse: of that and 24 smaller ones down to 52 %, the one of \
              least squared error.",
        unit: "",
        kind: ParamKind::Choice(&["absmax", "mse"]),
        default: DefaultValue::Str("absmax"),
    },
    SCALE_PARAM,
    SCALE_BITS_PARAM,
    SCALE_BLOCK_PARAM,
];

impl Levels for Int {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.kbit.int/1",
        title: "Integer",
        doc: "Whole multiples of a scale, rounded to nearest (ties to even), packed at exactly k bits. Codes are chosen \
              against the scale as it is stored.",
        citation: "Dettmers and Zettlemoyer 2022, arXiv 2212.09720 (block-wise integers); Dettmers et al. 2023, \
                   arXiv 2305.14314 (double quantization)",
        ggml_type: -1,
        params: PARAMS,
    };

    fn open(params: &Params) -> Result<(Self, Setup), Error> {
        let bits = u32::try_from(params.int("bits")?).map_err(|_| Error::param("bits: 2 to 8"))?;
        let block = usize::try_from(params.int("block")?).map_err(|_| Error::param("block: 16 to 4096"))?;
        let symmetric = params.bool("symmetric")?;
        let range = match (symmetric, params.str("levels")?) {
            (false, _) => Range::FromMinimum,
            (true, "narrow") => Range::Narrow,
            (true, "textbook") => Range::Textbook,
            (true, _) => Range::Full,
        };
        let center = params.bool("center")?;
        if center && !symmetric {
            return Err(Error::param(
                "center=true with symmetric=false: levels from the minimum up need no centre; leave out one of them",
            ));
        }
        let granularity = match params.str("granularity")? {
            "flat" => Granularity::Flat(block),
            "row" => Granularity::Row,
            "tensor" => Granularity::Tensor,
            _ => Granularity::Block(block),
        };
        let setup = Setup {
            bits,
            granularity,
            scale: ScaleType::parse(params.str("scale")?)?,
            double: DoubleQuantization::from_params(params)?,
            with_minimum: center || !symmetric,
            center,
            search: params.str("scale_search")? == "mse",
            empirical: false,
        };
        Ok((Self { range, half: f32::from(1u8 << (bits - 1)) }, setup))
    }

    fn fit(&self, summary: &Summary) -> Fit {
        let magnitude = summary.max.abs().max(summary.min.abs());
        match self.range {
            Range::Full => {
                let extreme = if -summary.min >= summary.max { summary.min } else { summary.max };
                Fit { scale: -extreme / self.half, minimum: 0.0 }
            }
            Range::Narrow => Fit { scale: magnitude / (self.half - 1.0), minimum: 0.0 },
            Range::Textbook => Fit { scale: magnitude / self.half, minimum: 0.0 },
            // Halves first: the difference of two large values of different sign could overflow.
            Range::FromMinimum => Fit {
                scale: (summary.max / 2.0 - summary.min / 2.0) / (self.half - 0.5),
                minimum: summary.min,
            },
        }
    }

    fn encode(&self, values: &[f32], fit: Fit, _: Option<&Codebook>, codes: &mut [u8]) {
        let (least, greatest) = self.bounds();
        let bias = self.bias();
        for (value, code) in values.iter().zip(codes) {
            let level = ((value - fit.minimum) / fit.scale).max(least).min(greatest);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "0 to 255 by the bounds"
            )]
            {
                *code = (round_half_even(level) + bias) as i32 as u8;
            }
        }
    }

    fn decode(&self, codes: &[u8], fit: Fit, _: Option<&Codebook>, out: &mut [f32]) {
        let bias = self.bias();
        for (code, out) in codes.iter().zip(out) {
            *out = (f32::from(*code) - bias) * fit.scale + fit.minimum;
        }
    }
}
