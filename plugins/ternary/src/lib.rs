//! Absmean ternary weights: -1, 0 or 1 times the mean magnitude, five to a byte.

use kbit_plugin::{DefaultValue, Error, Param, ParamKind, Params, SchemeInfo, export_plugin};
use kbit_scheme_kit::{
    BlockScheme, Codebook, Fit, Granularity, Levels, SCALE_PARAM, ScaleType, Setup, Summary, block_param,
    round_half_even,
};

struct Ternary;

const PARAMS: &[Param] = &[
    Param {
        key: "granularity",
        doc: "What shares a scale: block weights of a row, a row, or the matrix (as BitNet b1.58 has it).",
        unit: "",
        kind: ParamKind::Choice(&["block", "row", "tensor"]),
        default: DefaultValue::Str("block"),
    },
    block_param(64),
    SCALE_PARAM,
];

impl Levels for Ternary {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.kbit.ternary/1",
        title: "Absmean ternary",
        doc: "clamp(round(W/S), -1, 1) times S with S = mean|W|, five weights to a byte (1.6 bits a weight and the scales).",
        citation: "Ma et al. 2024, arXiv 2402.17764 (BitNet b1.58)",
        ggml_type: -1,
        params: PARAMS,
    };
    const NEEDS_MEAN: bool = true;

    fn open(params: &Params) -> Result<(Self, Setup), Error> {
        let block = usize::try_from(params.int("block")?).map_err(|_| Error::param("block: 64 to 4096"))?;
        let granularity = match params.str("granularity")? {
            "row" => Granularity::Row,
            "tensor" => Granularity::Tensor,
            _ => Granularity::Block(block),
        };
        let setup = Setup {
            bits: 0,
            granularity,
            scale: ScaleType::parse(params.str("scale")?)?,
            double: None,
            with_minimum: false,
            center: false,
            search: false,
            empirical: false,
        };
        Ok((Self, setup))
    }

    fn fit(&self, summary: &Summary) -> Fit {
        Fit { scale: summary.mean_magnitude, minimum: 0.0 }
    }

    fn encode(&self, values: &[f32], fit: Fit, _: Option<&Codebook>, codes: &mut [u8]) {
        for (value, code) in values.iter().zip(codes) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "0 to 2 by the clamp"
            )]
            {
                *code = (round_half_even((value / fit.scale).clamp(-1.0, 1.0)) + 1.0) as u8;
            }
        }
    }

    fn decode(&self, codes: &[u8], fit: Fit, _: Option<&Codebook>, out: &mut [f32]) {
        for (code, out) in codes.iter().zip(out) {
            *out = (f32::from(*code) - 1.0) * fit.scale;
        }
    }
}

export_plugin! {
    id: "org.kbit.ternary",
    vendor: "kbit",
    url: "https://github.com/kbit-dev/kbit",
    license: "MIT OR Apache-2.0",
    schemes: [BlockScheme<Ternary>],
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbit_scheme_kit::testing;

    type Scheme = BlockScheme<Ternary>;

    #[test]
    fn is_the_formula_of_bitnet() {
        let values = testing::gaussian(1280);
        let decoded = testing::round_trip::<Scheme>("granularity=tensor,scale=f32", 20, 64, &values);
        let mean = values.iter().map(|w| f64::from(w.abs())).sum::<f64>() / 1280.0;
        for (w, v) in values.iter().zip(&decoded) {
            let level = (f64::from(*w) / mean).round().clamp(-1.0, 1.0);
            assert!((f64::from(*v) - level * mean).abs() < 1e-6, "{w} {v}");
        }
    }

    #[test]
    fn five_weights_take_a_byte() {
        assert_eq!(testing::bytes::<Scheme>("block=64", 10, 320), 10 * (64 + 5 * 2));
    }

    #[test]
    fn keeps_the_rules_of_the_abi() {
        for settings in
            ["block=64", "granularity=row,scale=f32", "granularity=tensor", "block=128,scale=bf16"]
        {
            testing::keeps_the_rules::<Scheme>(settings);
        }
    }
}
