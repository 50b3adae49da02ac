//! Activations rounded to blocks of 8-bit integers, for products with blocks of weights: Q8_0, Q8_1 and Q8_K, with the bytes of
//! ggml's `quantize_row_q8_{0,1,K}_ref`. Q8_0 is a type of weights too; the other two are in no file.

use crate::block::{Half, Q8_0, Q8_1, Q8_K};
use crate::legacy::{EncodeSideBySide, SideBySide, extreme};
use crate::search::nearest;

impl Q8_1 {
    /// As [`Q8_0`], with the scaled sum of the integers.
    #[inline(always)]
    pub(crate) fn encode<S: SideBySide>(simd: S, x: &[f32; 32]) -> Self {
        let Q8_0 { d, q } = Q8_0::encode(simd, x);
        let sum: i16 = q.iter().map(|q| i16::from(*q)).sum();
        // The scale before it is rounded to half precision.
        Self { d, sum: Half::new(f32::from(sum) * (simd.largest(simd.block(x)) / 127.0)), q }
    }
}

impl Q8_K {
    /// A block of these integers, with their sums.
    #[inline(always)]
    pub(crate) fn new(scale: f32, q: [i8; 256]) -> Self {
        let mut sums = [[0; 2]; 16];
        for (q, sum) in q.as_chunks::<16>().0.iter().zip(&mut sums) {
            *sum = q.iter().map(|q| i16::from(*q)).sum::<i16>().to_le_bytes();
        }
        Self { d: scale.to_le_bytes(), q, sums }
    }

    /// Integers -127 to 127, a scale in single precision, and the sums of 16 integers each. A block of zeros has zeros
    /// everywhere (ggml leaves the sums as they were, which changes no product).
    #[inline(always)]
    pub(crate) fn encode(x: &[f32; 256]) -> Self {
        let extreme = extreme(x);
        let mut levels = [0; 256];
        if extreme == 0.0 {
            return Self::new(0.0, levels);
        }
        let inverse = -127.0 / extreme;
        for (x, q) in x.iter().zip(&mut levels) {
            // Where the inverse is infinite, products are too, or NaN, and the low byte of what comes of them is zero.
            *q = nearest(inverse * x).min(127).to_le_bytes()[0].cast_signed();
        }
        Self::new(1.0 / inverse, levels)
    }

    #[inline(always)]
    pub(crate) fn scale(&self) -> f32 {
        f32::from_le_bytes(self.d)
    }

    /// The sum of 16 integers.
    #[inline(always)]
    pub(crate) fn sum(&self, part: usize) -> i32 {
        i32::from(i16::from_le_bytes(self.sums[part]))
    }
}
