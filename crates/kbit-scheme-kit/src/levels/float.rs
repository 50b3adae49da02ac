//! Small floating-point data types at 3 to 8 bits: sign, exponent, mantissa, and a scale a block.

use crate::{
    CENTER_PARAM, Codebook, Fit, Levels, SCALE_PARAM, Setup, Summary, absmax_fit, bits_param, block_param,
    decode_with, encode_with,
};
use kbit_plugin::{DefaultValue, Error, Param, ParamKind, Params, SchemeInfo};

/// The levels of the scheme `float`.
pub struct Float {
    book: Codebook,
}

const PARAMS: &[Param] = &[
    bits_param(3, 4),
    Param {
        key: "exponent",
        doc: "Bits of the exponent, at most bits - 1; the rest but the sign are mantissa. -1: half the bits, rounded up.",
        unit: "bits",
        kind: ParamKind::Int { min: -1, max: 7 },
        default: DefaultValue::Int(-1),
    },
    CENTER_PARAM,
    block_param(64),
    SCALE_PARAM,
];

/// All values with `exponent` bits of exponent and `mantissa` bits of mantissa, subnormals included, none reserved for
/// infinity or NaN; the greatest is 1.
fn values(exponent: u32, mantissa: u32) -> Vec<f32> {
    let steps = 1u32 << mantissa;
    let mut magnitudes = Vec::new();
    // Powers of two as products, so that every value is exact.
    let mut power = 1f32;
    for field in 0..1u32 << exponent {
        for step in 0..steps {
            let fraction = step as f32 / steps as f32;
            magnitudes.push(if field == 0 { fraction * power } else { (1.0 + fraction) * power });
        }
        // Subnormals and the first normal numbers share their power.
        if field > 0 {
            power *= 2.0;
        }
    }
    let greatest = magnitudes.last().copied().unwrap_or(1.0);
    magnitudes.iter().flat_map(|magnitude| [magnitude / greatest, -magnitude / greatest]).collect()
}

impl Levels for Float {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.kbit.float/1",
        title: "Floating point",
        doc: "A float of k bits with subnormals and without infinities, scaled so that the block's largest magnitude is the \
              type's largest value; nearest value. Plus and minus zero are one level.",
        citation: "Dettmers and Zettlemoyer 2022, arXiv 2212.09720 (exponent of half the bits, rounded up)",
        ggml_type: -1,
        params: PARAMS,
    };

    fn open(params: &Params) -> Result<(Self, Setup), Error> {
        let bits = u32::try_from(params.int("bits")?).map_err(|_| Error::param("bits: 3 to 8"))?;
        let exponent = u32::try_from(params.int("exponent")?).unwrap_or(bits.div_ceil(2));
        if exponent >= bits {
            return Err(Error::param(format!(
                "exponent={exponent}: at most {}, one bit less than bits={bits}",
                bits - 1
            )));
        }
        let setup = Setup::of_blocks(bits, params)?;
        Ok((Self { book: Codebook::new(values(exponent, bits - 1 - exponent)) }, setup))
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
    fn four_bits_with_two_of_exponent_are_e2m1() {
        // OCP microscaling formats 1.0, table of FP4: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
        let book = Codebook::new(values(2, 1));
        let positive: Vec<f32> =
            book.values().iter().filter(|value| **value >= 0.0).map(|value| value * 6.0).collect();
        assert_eq!(positive, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]);
    }

    #[test]
    fn every_type_has_all_its_values() {
        for bits in 3..=8u32 {
            for exponent in 0..bits {
                let book = Codebook::new(values(exponent, bits - 1 - exponent));
                // Both zeros are one value.
                assert_eq!(book.values().len(), (1 << bits) - 1, "{bits} bits, {exponent} of exponent");
                assert_eq!(book.largest(), 1.0);
            }
        }
    }

    #[test]
    fn keeps_the_rules_of_the_abi() {
        for settings in [
            "bits=3",
            "bits=4",
            "bits=5,exponent=0",
            "bits=8,exponent=4,scale=f32",
            "bits=6,exponent=5,block=128",
        ] {
            testing::keeps_the_rules::<BlockScheme<Float>>(settings);
        }
    }

    #[test]
    fn refuses_an_exponent_without_a_sign() {
        let params = Params::parse(PARAMS, "bits=4,exponent=4").unwrap();
        assert!(Float::open(&params).err().unwrap().message.contains("at most 3"));
    }
}
