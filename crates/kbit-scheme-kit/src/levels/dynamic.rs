//! The dynamic-exponent (tree) data type at 3 to 8 bits.

use crate::{
    CENTER_PARAM, Codebook, Fit, Levels, SCALE_PARAM, Setup, Summary, absmax_fit, bits_param, block_param,
    decode_with, encode_with,
};
use kbit_plugin::{Error, Param, Params, SchemeInfo};

/// The levels of the scheme `dynamic`.
pub struct Dynamic {
    book: Codebook,
}

const PARAMS: &[Param] = &[bits_param(3, 8), CENTER_PARAM, block_param(64), SCALE_PARAM];

/// The 2^k values: for each number of leading zero bits, a power of ten; the bits after the first one set choose among
/// equal steps between a tenth and one. Zero and one complete the set.
fn values(bits: u32) -> Vec<f32> {
    let exponents = bits - 1;
    let mut all = vec![0.0, 1.0];
    let mut power = 1f64;
    for zeros in 0..exponents {
        let steps = 1u32 << (exponents - 1 - zeros);
        for step in 0..steps {
            let edge = |i: u32| 0.1 + 0.9 * f64::from(i) / f64::from(steps);
            #[expect(clippy::cast_possible_truncation, reason = "levels in single precision")]
            let value = ((edge(step) + edge(step + 1)) / 2.0 / power) as f32;
            all.extend([value, -value]);
        }
        power *= 10.0;
    }
    all
}

impl Levels for Dynamic {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.kbit.dynamic/1",
        title: "Dynamic exponent",
        doc: "The dynamic tree data type: leading zero bits are a decimal exponent, the rest a fraction, so that small and \
              large magnitudes are kept alike; scaled by the block's largest magnitude, nearest value.",
        citation: "Dettmers et al. 2021, arXiv 2110.02861 (dynamic tree quantization)",
        ggml_type: -1,
        params: PARAMS,
    };

    fn open(params: &Params) -> Result<(Self, Setup), Error> {
        let bits = u32::try_from(params.int("bits")?).map_err(|_| Error::param("bits: 3 to 8"))?;
        let setup = Setup::of_blocks(bits, params)?;
        Ok((Self { book: Codebook::new(values(bits)) }, setup))
    }

    fn fit(&self, summary: &Summary) -> Fit {
        absmax_fit(&self.book, summary)
    }

    fn encode(&self, values: &[f32], fit: Fit, _: Option<&Codebook>, codes: &mut [u8]) {
        encode_with(&self.book, values, fit, codes);
    }

    fn decode(&self, codes: &[u8], fit: Fit, _: Option<&Codebook>, out: &mut [f32]) {
        decode_with(&self.book, codes, fit, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BlockScheme, testing};

    #[test]
    fn eight_bits_have_the_published_properties() {
        let book = Codebook::new(values(8));
        assert_eq!(book.values().len(), 256);
        // 64 values between 0.1 and 1 on each side, the greatest 0.99297 below 1; the least magnitude 0.55e-6.
        let count = book.values().iter().filter(|value| **value > 0.1 && **value < 1.0).count();
        assert_eq!(count, 64);
        assert!((book.values()[254] - 0.992_968_75).abs() < 1e-6);
        let least = book.values().iter().filter(|value| **value > 0.0).copied().fold(1.0, f32::min);
        assert!((least - 0.55e-6).abs() < 1e-9);
        assert_eq!(book.values()[0], -book.values()[254]);
    }

    #[test]
    fn every_width_has_all_its_values() {
        for bits in 3..=8 {
            assert_eq!(Codebook::new(values(bits)).values().len(), 1 << bits);
        }
    }

    #[test]
    fn keeps_the_rules_of_the_abi() {
        for settings in ["bits=3", "bits=5,block=128", "bits=8,scale=f32", "bits=6,scale=bf16"] {
            testing::keeps_the_rules::<BlockScheme<Dynamic>>(settings);
        }
    }
}
