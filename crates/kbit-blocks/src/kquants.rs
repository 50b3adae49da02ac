//! Super-blocks of 256 weights: Q2_K to Q6_K, in the order of operations of ggml's `quantize_row_*_K_ref`,
//! `quantize_row_*_K_impl` and `dequantize_row_*_K`.

use crate::block::{Block, Encode, EncodeImportant, Half, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K};
use crate::search::{
    NEGLIGIBLE, Steps, code, fit_levels, fit_positive, fit_scale, fit_scale_and_minimum, greatest, nearest,
};

type Weights = [f32; 256];
type Codes = [u8; 256];

/// Part `part` of parts of equal length.
#[inline(always)]
fn part<T, const LEN: usize>(x: &[T; 256], part: usize) -> &[T; LEN] {
    &x.as_chunks().0[part]
}

#[inline(always)]
fn part_mut<T, const LEN: usize>(x: &mut [T; 256], part: usize) -> &mut [T; LEN] {
    &mut x.as_chunks_mut().0[part]
}

/// Sum of squares, in order.
#[inline(always)]
fn squares(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |sum, x| sum + x * x)
}

/// Weights of the error of a part: `mean_square` is that of the super-block, by a factor of the type's own.
#[inline(always)]
fn error_weights<const LEN: usize>(x: &[f32; LEN], importance: &[f32; LEN], mean_square: f32) -> [f32; LEN] {
    let mut weights = [0.0; LEN];
    for ((x, importance), weight) in x.iter().zip(importance).zip(&mut weights) {
        *weight = importance * (mean_square + x * x).sqrt();
    }
    weights
}

/// Codes 0 to `most` of `x + minimum` in steps of `d`; where `d` is zero, the codes stay.
#[inline(always)]
fn round_above<const LEN: usize>(x: &[f32; LEN], d: f32, minimum: f32, most: i32, codes: &mut [u8; LEN]) {
    if d != 0.0 {
        for (x, out) in x.iter().zip(codes) {
            *out = code(nearest((x + minimum) / d).min(most).max(0));
        }
    }
}

/// Codes of levels -`half` to `half`-1 in steps of `d`, from 0 up; where `d` is zero, the codes stay.
#[inline(always)]
fn round_around<const LEN: usize>(x: &[f32; LEN], d: f32, half: i32, codes: &mut [u8; LEN]) {
    if d != 0.0 {
        for (x, out) in x.iter().zip(codes) {
            *out = code(nearest(x / d).min(half - 1).max(-half) + half);
        }
    }
}

/// Codes of two bits: weights 32 apart share a byte, 128 weights share 32 bytes.
#[inline(always)]
fn pack2(codes: &Codes) -> [[u8; 32]; 2] {
    let mut out = [[0; 32]; 2];
    for (half, out) in out.iter_mut().enumerate() {
        for (j, byte) in out.iter_mut().enumerate() {
            let at = |run: usize| codes[half * 128 + run * 32 + j];
            *byte = at(0) | at(1) << 2 | at(2) << 4 | at(3) << 6;
        }
    }
    out
}

impl Q2_K {
    /// Levels anew against the scales as stored, and everything packed.
    #[inline(always)]
    fn finish(x: &Weights, mut codes: Codes, scales: [u8; 16], d: f32, dmin: f32) -> Self {
        let (d, dmin) = (Half::new(d), Half::new(dmin));
        for (index, scale) in scales.iter().enumerate() {
            let (step, minimum) = (d.get() * f32::from(scale & 15), dmin.get() * f32::from(scale >> 4));
            round_above(part::<_, 16>(x, index), step, minimum, 3, part_mut(&mut codes, index));
        }
        Self { scales, q: pack2(&codes), d, dmin }
    }
}

impl Encode for Q2_K {
    #[inline(always)]
    fn encode(x: &Weights) -> Self {
        const STEPS: Steps = Steps { first: -0.5, step: 0.1, count: 16, absolute: true };
        let (mut scales, mut minimums, mut codes) = ([0.0; 16], [0.0; 16], [0; 256]);
        for index in 0..16 {
            let x = part::<_, 16>(x, index);
            let found = fit_scale_and_minimum(3, x, &x.map(f32::abs), STEPS);
            (scales[index], minimums[index], *part_mut(&mut codes, index)) = found;
        }
        let levels = |x: &[f32; 16]| {
            let greatest = greatest(x);
            let inverse = 15.0 / greatest;
            if greatest > 0.0 {
                (greatest / 15.0, x.map(|x| code(nearest(inverse * x))))
            } else {
                (0.0, [0; 16])
            }
        };
        let ((d, low), (dmin, high)) = (levels(&scales), levels(&minimums));
        Self::finish(x, codes, std::array::from_fn(|j| low[j] | high[j] << 4), d, dmin)
    }
}

impl EncodeImportant for Q2_K {
    #[inline(always)]
    fn encode_important(x: &Weights, importance: &Weights) -> Self {
        let mean_square = squares(x) / 256.0;
        let (mut scales, mut minimums, mut codes) = ([0.0; 16], [0.0; 16], [0; 256]);
        let mut sums = [0f32; 16];
        for index in 0..16 {
            let x = part::<_, 16>(x, index);
            let weights = error_weights(x, part(importance, index), mean_square);
            sums[index] = weights.iter().fold(0.0, |sum, weight| sum + weight);
            let found = fit_scale_and_minimum(3, x, &weights, Steps::WEIGHTED);
            (scales[index], minimums[index], *part_mut(&mut codes, index)) = found;
        }
        let (d, low) = fit_positive(15, &scales, &sums);
        let (dmin, high) = fit_positive(15, &minimums, &sums);
        Self::finish(x, codes, std::array::from_fn(|j| low[j] | high[j] << 4), d, dmin)
    }
}

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

impl Q3_K {
    /// Levels anew against the scales as stored (6 bits each, 32 is none), and everything packed.
    #[inline(always)]
    fn finish(x: &Weights, mut codes: Codes, levels: [u8; 16], d: f32) -> Self {
        let d = Half::new(d);
        let mut scales = [0; 12];
        for (j, level) in levels.iter().enumerate() {
            scales[j % 8] |= (level & 15) << (j / 8 * 4);
            scales[8 + j % 4] |= (level >> 4) << (j / 4 * 2);
        }
        for (index, level) in levels.iter().enumerate() {
            let step = d.get() * (f32::from(*level) - 32.0);
            round_around(part::<_, 16>(x, index), step, 4, part_mut(&mut codes, index));
        }
        let mut high = [0; 32];
        for (run, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
            for (code, high) in codes.iter().zip(&mut high) {
                *high |= (code >> 2) << run;
            }
        }
        Self { high, q: pack2(&codes.map(|code| code & 3)), scales, d }
    }
}

impl Encode for Q3_K {
    #[inline(always)]
    fn encode(x: &Weights) -> Self {
        let (mut scales, mut codes) = ([0f32; 16], [0; 256]);
        let mut extreme = 0f32;
        for (index, scale) in scales.iter_mut().enumerate() {
            (*scale, *part_mut(&mut codes, index)) = fit_levels(4, part::<_, 16>(x, index));
            if scale.abs() > extreme.abs() {
                extreme = *scale;
            }
        }
        if extreme == 0.0 {
            return Self::finish(x, codes, [0; 16], 0.0);
        }
        let inverse = -32.0 / extreme;
        let levels = scales.map(|scale| code(nearest(inverse * scale).clamp(-32, 31) + 32));
        Self::finish(x, codes, levels, 1.0 / inverse)
    }
}

impl EncodeImportant for Q3_K {
    #[inline(always)]
    fn encode_important(x: &Weights, importance: &Weights) -> Self {
        let mean_square = 2.0 * squares(x) / 256.0;
        let (mut scales, mut sums, mut codes) = ([0f32; 16], [0f32; 16], [0; 256]);
        for index in 0..16 {
            let x = part::<_, 16>(x, index);
            let weights = error_weights(x, part(importance, index), mean_square);
            sums[index] = weights.iter().fold(0.0, |sum, weight| sum + weight);
            (scales[index], *part_mut(&mut codes, index)) = fit_scale(4, x, &weights);
        }
        let (d, levels) = fit_scale(32, &scales, &sums);
        Self::finish(x, codes, levels, d)
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

/// Packs scales and minimums of six bits; what is above them falls where ggml lets it fall.
#[inline(always)]
fn pack_scales_and_minimums(scales: &[u8; 8], minimums: &[u8; 8]) -> [u8; 12] {
    let mut out = [0; 12];
    for j in 0..4 {
        (out[j], out[j + 4]) = (scales[j], minimums[j]);
    }
    for j in 4..8 {
        out[j + 4] = scales[j] & 15 | (minimums[j] & 15) << 4;
        out[j - 4] |= scales[j] >> 4 << 6;
        out[j] |= minimums[j] >> 4 << 6;
    }
    out
}

/// What Q4_K and Q5_K have in common: 8 parts of 32 codes with a scale and a minimum.
struct Eighths {
    d: Half,
    dmin: Half,
    scales: [u8; 12],
    codes: Codes,
}

impl Eighths {
    #[inline(always)]
    fn new(x: &Weights, most: i32, steps: Steps) -> Self {
        let (mut scales, mut minimums, mut codes) = ([0.0; 8], [0.0; 8], [0; 256]);
        for index in 0..8 {
            let x = part::<_, 32>(x, index);
            let mean = (squares(x) / 32.0).sqrt();
            let found = fit_scale_and_minimum(most, x, &x.map(|x| mean + x.abs()), steps);
            (scales[index], minimums[index], *part_mut(&mut codes, index)) = found;
        }
        let levels = |x: &[f32; 8]| {
            let greatest = greatest(x);
            let inverse = if greatest > 0.0 { 63.0 / greatest } else { 0.0 };
            (greatest / 63.0, x.map(|x| code(nearest(inverse * x)).min(63)))
        };
        let ((d, low), (dmin, high)) = (levels(&scales), levels(&minimums));
        Self::finish(x, most, codes, pack_scales_and_minimums(&low, &high), d, dmin)
    }

    /// `cap` limits the levels of scales to what they can be; ggml leaves that out for Q4_K.
    #[inline(always)]
    fn important(x: &Weights, importance: &Weights, most: i32, cap: u8) -> Self {
        let mean_square = 2.0 * squares(x) / 256.0;
        let (mut scales, mut minimums, mut codes) = ([0.0; 8], [0.0; 8], [0; 256]);
        let mut sums = [0f32; 8];
        for index in 0..8 {
            let x = part::<_, 32>(x, index);
            let weights = error_weights(x, part(importance, index), mean_square);
            sums[index] = weights.iter().fold(0.0, |sum, weight| sum + weight);
            let found = fit_scale_and_minimum(most, x, &weights, Steps::WEIGHTED);
            (scales[index], minimums[index], *part_mut(&mut codes, index)) = found;
        }
        let (d, low) = fit_positive(63, &scales, &sums);
        let (dmin, high) = fit_positive(63, &minimums, &sums);
        let packed =
            pack_scales_and_minimums(&low.map(|level| level.min(cap)), &high.map(|level| level.min(cap)));
        Self::finish(x, most, codes, packed, d, dmin)
    }

    /// Levels anew against the scales as stored.
    #[inline(always)]
    fn finish(x: &Weights, most: i32, mut codes: Codes, scales: [u8; 12], d: f32, dmin: f32) -> Self {
        let (d, dmin) = (Half::new(d), Half::new(dmin));
        for index in 0..8 {
            let (scale, minimum) = scale_and_minimum(index, &scales);
            let (step, minimum) = (d.get() * scale, dmin.get() * minimum);
            round_above(part::<_, 32>(x, index), step, minimum, most, part_mut(&mut codes, index));
        }
        Self { d, dmin, scales, codes }
    }

    /// The low four bits: two parts share 32 bytes.
    #[inline(always)]
    fn low(&self) -> [[u8; 32]; 4] {
        let mut out = [[0; 32]; 4];
        for (pair, out) in out.iter_mut().enumerate() {
            for (j, byte) in out.iter_mut().enumerate() {
                *byte = self.codes[pair * 64 + j] & 15 | self.codes[pair * 64 + 32 + j] << 4;
            }
        }
        out
    }
}

impl From<Eighths> for Q4_K {
    #[inline(always)]
    fn from(fitted: Eighths) -> Self {
        Self { d: fitted.d, dmin: fitted.dmin, scales: fitted.scales, q: fitted.low() }
    }
}

impl From<Eighths> for Q5_K {
    #[inline(always)]
    fn from(fitted: Eighths) -> Self {
        let mut high = [0; 32];
        for (part, codes) in fitted.codes.as_chunks::<32>().0.iter().enumerate() {
            for (code, high) in codes.iter().zip(&mut high) {
                *high |= (code >> 4) << part;
            }
        }
        Self { d: fitted.d, dmin: fitted.dmin, scales: fitted.scales, high, q: fitted.low() }
    }
}

impl Encode for Q4_K {
    #[inline(always)]
    fn encode(x: &Weights) -> Self {
        Eighths::new(x, 15, Steps { first: -1.0, step: 0.1, count: 21, absolute: false }).into()
    }
}

impl EncodeImportant for Q4_K {
    #[inline(always)]
    fn encode_important(x: &Weights, importance: &Weights) -> Self {
        Eighths::important(x, importance, 15, u8::MAX).into()
    }
}

impl Encode for Q5_K {
    #[inline(always)]
    fn encode(x: &Weights) -> Self {
        Eighths::new(x, 31, Steps { first: -0.5, step: 0.1, count: 16, absolute: false }).into()
    }
}

impl EncodeImportant for Q5_K {
    #[inline(always)]
    fn encode_important(x: &Weights, importance: &Weights) -> Self {
        Eighths::important(x, importance, 31, 63).into()
    }
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

impl Q6_K {
    /// The block, with `weights` of a part's error.
    #[inline(always)]
    fn fit(x: &Weights, weights: impl Fn(usize, &[f32; 16]) -> [f32; 16]) -> Self {
        let (mut fitted, mut codes) = ([0f32; 16], [0; 256]);
        let mut extreme = 0f32;
        for (index, scale) in fitted.iter_mut().enumerate() {
            let x = part::<_, 16>(x, index);
            (*scale, *part_mut(&mut codes, index)) = fit_scale(32, x, &weights(index, x));
            if scale.abs() > extreme.abs() {
                extreme = *scale;
            }
        }
        if extreme.abs() < NEGLIGIBLE {
            return bytemuck::Zeroable::zeroed();
        }
        let inverse = -128.0 / extreme;
        let d = Half::new(1.0 / inverse);
        let scales = fitted.map(|scale| code(nearest(inverse * scale).min(127)).cast_signed());
        for (index, scale) in scales.iter().enumerate() {
            let step = d.get() * f32::from(*scale);
            round_around(part::<_, 16>(x, index), step, 32, part_mut(&mut codes, index));
        }
        let (mut low, mut high) = ([[0; 64]; 2], [[0; 32]; 2]);
        for half in 0..2 {
            for j in 0..32 {
                let at = |run: usize| codes[half * 128 + run * 32 + j];
                low[half][j] = at(0) & 15 | at(2) << 4;
                low[half][j + 32] = at(1) & 15 | at(3) << 4;
                high[half][j] = at(0) >> 4 | at(1) >> 4 << 2 | at(2) >> 4 << 4 | at(3) >> 4 << 6;
            }
        }
        Self { low, high, scales, d }
    }
}

impl Encode for Q6_K {
    #[inline(always)]
    fn encode(x: &Weights) -> Self {
        Self::fit(x, |_, x| x.map(|x| x * x))
    }
}

impl EncodeImportant for Q6_K {
    #[inline(always)]
    fn encode_important(x: &Weights, importance: &Weights) -> Self {
        Self::fit(x, |index, _| *part(importance, index))
    }
}
