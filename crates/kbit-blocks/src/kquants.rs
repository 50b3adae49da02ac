//! Decoding super-blocks of 256 weights: Q2_K to Q6_K, in the order of operations of ggml's `dequantize_row_*_K`.

use crate::block::{Block, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K};

type Weights = [f32; 256];

impl Block for Q2_K {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let (d, dmin) = (self.d.get(), self.dmin.get());
        for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            // 128 weights share 32 bytes; within, each pair of parts takes the next two bits.
            let (half, inside) = (part / 8, part % 8);
            let scale = self.scales[part];
            let (dl, ml) = (d * f32::from(scale & 15), dmin * f32::from(scale >> 4));
            let q = &self.q[half].as_chunks::<16>().0[inside % 2];
            for (out, q) in out.iter_mut().zip(q) {
                *out = dl * f32::from(q >> (inside / 2 * 2) & 3) - ml;
            }
        }
    }
}

impl Block for Q3_K {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let d = self.d.get();
        for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (half, inside) = (part / 8, part % 8);
            // Four low bits of scales 0..8 and 8..16 share bytes 0..8; two high bits of four scales share bytes 8..12.
            let low = self.scales[part % 8] >> (part / 8 * 4) & 15;
            let top = self.scales[8 + part % 4] >> (part / 4 * 2) & 3;
            let dl = d * (f32::from(low | top << 4) - 32.0);
            let q = &self.q[half].as_chunks::<16>().0[inside % 2];
            let high = &self.high.as_chunks::<16>().0[inside % 2];
            for ((out, q), high) in out.iter_mut().zip(q).zip(high) {
                let level = q >> (inside / 2 * 2) & 3 | (high >> (half * 4 + inside / 2) & 1) << 2;
                *out = dl * (f32::from(level) - 4.0);
            }
        }
    }
}

/// Scale and minimum `j` of the twelve packed bytes of Q4_K and Q5_K, six bits each.
#[inline(always)]
fn scale_and_minimum(j: usize, packed: &[u8; 12]) -> (f32, f32) {
    let (scale, minimum) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

impl Block for Q4_K {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let (d, dmin) = (self.d.get(), self.dmin.get());
        for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, minimum) = scale_and_minimum(part, &self.scales);
            let (dl, ml) = (d * scale, dmin * minimum);
            for (out, q) in out.iter_mut().zip(&self.q[part / 2]) {
                *out = dl * f32::from(q >> (part % 2 * 4) & 15) - ml;
            }
        }
    }
}

impl Block for Q5_K {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let (d, dmin) = (self.d.get(), self.dmin.get());
        for (part, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, minimum) = scale_and_minimum(part, &self.scales);
            let (dl, ml) = (d * scale, dmin * minimum);
            for ((out, q), high) in out.iter_mut().zip(&self.q[part / 2]).zip(&self.high) {
                let level = q >> (part % 2 * 4) & 15 | (high >> part & 1) << 4;
                *out = dl * f32::from(level) - ml;
            }
        }
    }
}

impl Block for Q6_K {
    type Weights = Weights;

    #[inline(always)]
    fn decode(&self, out: &mut Weights) {
        let d = self.d.get();
        for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            // 128 weights share 64 low bytes and 32 high ones: four runs of 32.
            let (half, run, piece) = (part / 8, part % 8 / 2, part % 2);
            let scale = d * f32::from(self.scales[part]);
            let low = &self.low[half].as_chunks::<16>().0[run % 2 * 2 + piece];
            let high = &self.high[half].as_chunks::<16>().0[piece];
            for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
                let level = low >> (run / 2 * 4) & 15 | (high >> (run * 2) & 3) << 4;
                *out = scale * (f32::from(level) - 32.0);
            }
        }
    }
}
