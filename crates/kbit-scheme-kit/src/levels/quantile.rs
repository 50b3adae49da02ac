//! Quantile codebooks: normal-float (NF-k), and quantiles of the matrix itself with the codebook in the part's head.

use super::normal;
use crate::{
    CENTER_PARAM, Codebook, DoubleQuantization, Fit, Levels, SCALE_BITS_PARAM, SCALE_BLOCK_PARAM,
    SCALE_PARAM, Setup, Summary, absmax_fit, bits_param, block_param, decode_with, encode_with,
};
use kbit_plugin::{DefaultValue, Error, Param, ParamKind, Params, SchemeInfo};

/// The levels of the scheme `quantile`.
pub struct Quantile {
    bits: u32,
    book: Codebook,
}

const PARAMS: &[Param] = &[
    bits_param(2, 4),
    Param {
        key: "codebook",
        doc: "normal: the quantiles of a normal distribution (NF-k). empirical: those of the matrix's own weights over their \
              block's largest magnitude, stored with the matrix.",
        unit: "",
        kind: ParamKind::Choice(&["normal", "empirical"]),
        default: DefaultValue::Str("normal"),
    },
    CENTER_PARAM,
    block_param(64),
    SCALE_PARAM,
    SCALE_BITS_PARAM,
    SCALE_BLOCK_PARAM,
];

impl Levels for Quantile {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.kbit.quantile/1",
        title: "Quantile",
        doc: "Levels that a weight falls on about equally often, scaled by the block's largest magnitude; nearest level. The \
              normal codebook has an exact zero and one level more above it than below.",
        citation: "Dettmers et al. 2023, arXiv 2305.14314 (NF4, double quantization); Dettmers et al. 2021, arXiv 2110.02861 \
                   (quantile quantization)",
        ggml_type: -1,
        params: PARAMS,
    };

    fn open(params: &Params) -> Result<(Self, Setup), Error> {
        let bits = u32::try_from(params.int("bits")?).map_err(|_| Error::param("bits: 2 to 8"))?;
        let setup = Setup {
            double: DoubleQuantization::from_params(params)?,
            empirical: params.str("codebook")? == "empirical",
            ..Setup::of_blocks(bits, params)?
        };
        Ok((Self { bits, book: Codebook::new(normal::normal_float(bits)) }, setup))
    }

    fn fit(&self, summary: &Summary) -> Fit {
        // Both codebooks reach 1.
        absmax_fit(&self.book, summary)
    }

    fn encode(&self, values: &[f32], fit: Fit, book: Option<&Codebook>, codes: &mut [u8]) {
        encode_with(book.unwrap_or(&self.book), values, fit, codes);
    }

    fn decode(&self, codes: &[u8], fit: Fit, book: Option<&Codebook>, out: &mut [f32]) {
        decode_with(book.unwrap_or(&self.book), codes, fit, out);
    }

    /// The probabilities are those of NF-k. Each side of zero has its own quantiles, since the block's largest weight lies on one
    /// side only; a side without weights has the normal distribution's.
    fn codebook(&self, histogram: &[u64]) -> Codebook {
        let (below, above) = histogram.split_at(histogram.len() / 2);
        let below = Side::new(below.iter().rev());
        let above = Side::new(above.iter());
        Codebook::new(normal::quantile_levels(self.bits, |p| above.quantile(p), |p| below.quantile(p)))
    }
}

/// Magnitudes on one side of zero, in bins over (0, 1].
struct Side {
    /// Of the bins up to each.
    cumulative: Vec<u64>,
}

impl Side {
    fn new<'a>(bins: impl Iterator<Item = &'a u64>) -> Self {
        let sums = bins.scan(0, |sum, bin| {
            *sum += bin;
            Some(*sum)
        });
        Self { cumulative: sums.collect() }
    }

    /// The magnitude that weights of this side stay below with probability `2 p - 1`: where the other side is its mirror image, the
    /// quantile at `p` of both.
    #[expect(clippy::cast_precision_loss, reason = "counts of weights, as fractions")]
    fn quantile(&self, p: f64) -> f64 {
        let total = self.cumulative.last().copied().unwrap_or(0);
        if total == 0 {
            return normal::quantile(p);
        }
        let target = (2.0 * p - 1.0) * total as f64;
        let bin =
            self.cumulative.partition_point(|sum| (*sum as f64) < target).min(self.cumulative.len() - 1);
        let before = if bin == 0 { 0 } else { self.cumulative[bin - 1] };
        let inside = (target - before as f64) / (self.cumulative[bin] - before) as f64;
        (bin as f64 + inside) / self.cumulative.len() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockScheme, testing};

    type Scheme = BlockScheme<Quantile>;

    #[test]
    fn four_bits_are_the_published_nf4() {
        // QLoRA, appendix E.
        let published = [
            -1.0,
            -0.696_192_8,
            -0.525_073_05,
            -0.394_917_5,
            -0.284_441_38,
            -0.184_773_43,
            -0.091_050_03,
            0.0,
            0.079_580_3,
            0.160_930_2,
            0.246_112_3,
            0.337_915_24,
            0.440_709_83,
            0.562_617,
            0.722_956_84,
            1.0,
        ];
        let book = Codebook::new(normal::normal_float(4));
        assert_eq!(book.values().len(), 16);
        for (ours, theirs) in book.values().iter().zip(published) {
            // The published figures went through single-precision scipy and torch steps.
            assert!((ours - theirs).abs() < 1e-6, "{ours} {theirs}");
        }
    }

    #[test]
    fn normal_codebooks_have_all_levels_an_exact_zero_and_reach_one() {
        for bits in 2..=8 {
            let book = Codebook::new(normal::normal_float(bits));
            assert_eq!(book.values().len(), 1 << bits);
            assert!(
                book.values().contains(&0.0) && book.values().contains(&1.0) && book.values().contains(&-1.0)
            );
        }
    }

    #[test]
    fn keeps_the_rules_of_the_abi() {
        for settings in [
            "bits=2",
            "bits=4",
            "bits=8,scale=f32",
            "bits=3,codebook=empirical",
            "bits=5,codebook=empirical,block=128",
            "bits=4,scale_bits=8",
            "bits=4,center=true",
            "bits=3,codebook=empirical,center=true",
            "bits=5,center=true,scale_bits=8,scale=f32",
            "bits=4,codebook=empirical,scale_bits=6,scale_block=16",
        ] {
            testing::keeps_the_rules::<Scheme>(settings);
        }
    }

    #[test]
    fn own_quantiles_lie_where_the_weights_are() {
        let (levels, _) =
            Quantile::open(&Params::parse(PARAMS, "bits=4,codebook=empirical").unwrap()).unwrap();
        // As many weights in each bin above zero, none below.
        let histogram: Vec<u64> = (0..1024).map(|bin| if bin < 512 { 0 } else { 100 }).collect();
        let book = levels.codebook(&histogram);
        assert_eq!(book.values().len(), 16);
        for (i, level) in book.values()[8..].iter().enumerate() {
            assert!((level - (i + 1) as f32 / 8.0).abs() < 1e-5, "{i}: {level}");
        }
        let normal = normal::normal_float(4);
        assert!(book.values()[..8].iter().all(|level| normal.contains(level)));
    }

    #[test]
    fn own_quantiles_of_normal_weights_are_about_those_of_the_normal_codebook() {
        let values = testing::gaussian(64 * 512);
        let error = |settings: &str| {
            testing::relative_mse(&values, &testing::round_trip::<Scheme>(settings, 512, 64, &values))
        };
        for bits in 3..=6 {
            let (normal, own) =
                (error(&format!("bits={bits}")), error(&format!("bits={bits},codebook=empirical")));
            assert!((0.9..1.1).contains(&(own / normal)), "{bits} bits: {own} {normal}");
        }
    }

    #[test]
    fn centring_serves_blocks_that_lie_off_zero() {
        let mut values = testing::gaussian(64 * 64);
        values.iter_mut().for_each(|value| *value += 3.0);
        let error = |settings: &str| {
            testing::relative_mse(&values, &testing::round_trip::<Scheme>(settings, 64, 64, &values))
        };
        assert!(error("bits=4,center=true") < error("bits=4") / 2.0);
    }

    #[test]
    fn normal_float_loses_less_than_uniform_levels_would() {
        let values = testing::gaussian(64 * 512);
        let error =
            testing::relative_mse(&values, &testing::round_trip::<Scheme>("bits=4", 512, 64, &values));
        // Uniform levels at 4 bits in blocks of 64 lose about 1.0 %, NF4 about 0.9 %.
        assert!((0.006..0.0098).contains(&error), "{error}");
    }
}
