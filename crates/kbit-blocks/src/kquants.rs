//! Super-blocks of 256 weights: Q2_K to Q6_K, in the order of operations of ggml's `quantize_row_*_K_ref`,
//! `quantize_row_*_K_impl` and `dequantize_row_*_K`.
//!
//! Searches run one super-block a lane (see [`crate::lanes`]), part after part, on the transposed weights of a batch. What
//! follows them, levels anew against the scales as stored and the packing, has no sums: it works on one super-block at a time.

use crate::block::{Block, Half, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K};
use crate::even::{Even, LevelStep, whole};
use crate::lanes::{
    Batch, EncodeLanes, Floats, MOST, Simd, WeightedLanes, codes_of_lane, stored, transpose_part,
    transpose_part_into,
};
use crate::search::{
    Affine, NEGLIGIBLE, Scale, Steps, code, codes_of_scale, error_weights, fit_levels, fit_positive,
    fit_scale, fit_scale_and_minimum, greatest, nearest, squares, sum, sum_of_squares,
};

type Weights = [f32; 256];
type Codes = [u8; 256];

/// Part `part` of parts of equal length.
#[inline(always)]
pub(crate) fn part<T, const LEN: usize>(x: &[T; 256], part: usize) -> &[T; LEN] {
    &x.as_chunks().0[part]
}

#[inline(always)]
fn part_mut<T, const LEN: usize>(x: &mut [T; 256], part: usize) -> &mut [T; LEN] {
    &mut x.as_chunks_mut().0[part]
}

/// A number of each of the `P` parts of each block of a batch, one block a lane.
type Parts<const P: usize> = [[f32; MOST]; P];

/// Those of one block.
#[inline(always)]
fn of_lane<const P: usize>(parts: &Parts<P>, lane: usize) -> [f32; P] {
    std::array::from_fn(|part| parts[part][lane])
}

/// What [`fit_scale_and_minimum`] found for all parts of a batch.
struct Affines<F, const P: usize> {
    scales: [F; P],
    below: [F; P],
    inverses: [F; P],
    from: [F; P],
}

impl<F: Floats, const P: usize> Affines<F, P> {
    #[inline(always)]
    fn new(zero: F) -> Self {
        Self { scales: [zero; P], below: [zero; P], inverses: [zero; P], from: [zero; P] }
    }

    #[inline(always)]
    fn set(&mut self, part: usize, found: Affine<F>) {
        (self.scales[part], self.below[part]) = (found.scale, found.below);
        (self.inverses[part], self.from[part]) = (found.inverse, found.from);
    }
}

/// The codes that the search itself chose, for parts whose stored scale is zero.
struct Chosen<const P: usize> {
    inverses: Parts<P>,
    from: Parts<P>,
}

impl<const P: usize> Chosen<P> {
    #[inline(always)]
    fn codes<const LEN: usize>(&self, part: usize, lane: usize, x: &[f32; LEN], most: i32) -> [u8; LEN] {
        let (inverse, from) = (self.inverses[part][lane], self.from[part][lane]);
        x.map(|x| code(nearest(inverse * (x - from)).min(most).max(0)))
    }
}

/// Codes that [`fit_scale`] chose, for parts whose stored scale is zero.
#[inline(always)]
fn chosen_around<const LEN: usize>(x: &[f32; LEN], inverse: f32, half: i32) -> [u8; LEN] {
    if x.iter().all(|x| x.abs() < NEGLIGIBLE) {
        return [0; LEN];
    }
    x.map(|x| code(nearest(inverse * x).min(half - 1).max(-half) + half))
}

/// Weights of the error of part `index`, and their sum.
#[inline(always)]
fn part_weights<S: Simd, const LEN: usize>(
    simd: S,
    x: &[S::Floats; LEN],
    importance: &Batch<'_, Weights>,
    index: usize,
    mean_square: S::Floats,
) -> ([S::Floats; LEN], S::Floats) {
    let weights = error_weights(x, &transpose_part(simd, importance, index), mean_square);
    (weights, sum(simd, &weights))
}

/// Codes 0 to `most` of `x + minimum` in steps of `d`.
#[inline(always)]
fn round_above<const LEN: usize>(x: &[f32; LEN], d: f32, minimum: f32, most: i32) -> [u8; LEN] {
    let mut codes = [0; LEN];
    for (x, out) in x.iter().zip(&mut codes) {
        *out = code(nearest((x + minimum) / d).min(most).max(0));
    }
    codes
}

/// Codes of levels -`half` to `half`-1 in steps of `d`, from 0 up.
#[inline(always)]
fn round_around<const LEN: usize>(x: &[f32; LEN], d: f32, half: i32) -> [u8; LEN] {
    let mut codes = [0; LEN];
    for (x, out) in x.iter().zip(&mut codes) {
        *out = code(nearest(x / d).min(half - 1).max(-half) + half);
    }
    codes
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

/// Codes of three bits: the third bit of weights 32 apart in one byte, and the rest as codes of two bits.
#[inline(always)]
fn pack3(codes: &Codes) -> ([u8; 32], [[u8; 32]; 2]) {
    let mut high = [0; 32];
    for (run, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        for (code, high) in codes.iter().zip(&mut high) {
            *high |= (code >> 2) << run;
        }
    }
    (high, pack2(&codes.map(|code| code & 3)))
}

/// Codes of six bits: four low ones, and two high ones.
#[inline(always)]
fn pack6(codes: &Codes) -> ([[u8; 64]; 2], [[u8; 32]; 2]) {
    let (mut low, mut high) = ([[0; 64]; 2], [[0; 32]; 2]);
    for half in 0..2 {
        for j in 0..32 {
            let at = |run: usize| codes[half * 128 + run * 32 + j];
            low[half][j] = at(0) & 15 | at(2) << 4;
            low[half][j + 32] = at(1) & 15 | at(3) << 4;
            high[half][j] = at(0) >> 4 | at(1) >> 4 << 2 | at(2) >> 4 << 4 | at(3) >> 4 << 6;
        }
    }
    (low, high)
}

impl Q2_K {
    /// Levels anew against the scales as stored, and everything packed.
    #[inline(always)]
    fn finish(x: &Weights, chosen: &Chosen<16>, lane: usize, scales: [u8; 16], d: f32, dmin: f32) -> Self {
        let (d, dmin) = (Half::new(d), Half::new(dmin));
        let mut codes = [0; 256];
        for (index, scale) in scales.iter().enumerate() {
            let (step, minimum) = (d.get() * f32::from(scale & 15), dmin.get() * f32::from(scale >> 4));
            let x = part::<_, 16>(x, index);
            *part_mut(&mut codes, index) =
                if step == 0.0 { chosen.codes(index, lane, x, 3) } else { round_above(x, step, minimum, 3) };
        }
        Self { scales, q: pack2(&codes), d, dmin }
    }

    /// Scales or minimums of 4 bits.
    #[inline(always)]
    fn levels(x: &[f32; 16]) -> (f32, [u8; 16]) {
        let greatest = greatest(x);
        if greatest > 0.0 {
            let inverse = 15.0 / greatest;
            (greatest / 15.0, x.map(|x| code(nearest(inverse * x))))
        } else {
            (0.0, [0; 16])
        }
    }
}

impl EncodeLanes for Q2_K {
    #[inline(always)]
    fn encode_lanes<S: Simd>(simd: S, batch: &Batch<'_, Weights>, out: &mut [Self]) {
        const STEPS: Steps = Steps { first: -0.5, step: 0.1, count: 16, absolute: true };
        let mut found = Affines::<_, 16>::new(simd.splat(0.0));
        for index in 0..16 {
            let x = transpose_part::<_, 16>(simd, batch, index);
            let mut weights = x;
            for weight in &mut weights {
                *weight = weight.abs();
            }
            found.set(index, fit_scale_and_minimum(simd, 3.0, &x, &weights, STEPS));
        }
        let (scales, below) = (stored(&found.scales), stored(&found.below));
        let chosen = Chosen { inverses: stored(&found.inverses), from: stored(&found.from) };
        for (lane, out) in out.iter_mut().enumerate() {
            let ((d, low), (dmin, high)) =
                (Self::levels(&of_lane(&scales, lane)), Self::levels(&of_lane(&below, lane)));
            let scales = std::array::from_fn(|j| low[j] | high[j] << 4);
            *out = Self::finish(batch[lane], &chosen, lane, scales, d, dmin);
        }
    }
}

impl WeightedLanes for Q2_K {
    const OF_ROW: bool = false;

    #[inline(always)]
    fn weighted_lanes<S: Simd>(
        simd: S,
        batch: &Batch<'_, Weights>,
        importance: &Batch<'_, Weights>,
        _: &[f32; MOST],
        out: &mut [Self],
    ) {
        let mean_square = sum_of_squares(simd, batch) / simd.splat(256.0);
        let mut found = Affines::<_, 16>::new(simd.splat(0.0));
        let mut sums = found.scales;
        for (index, sum) in sums.iter_mut().enumerate() {
            let x = transpose_part::<_, 16>(simd, batch, index);
            let weights;
            (weights, *sum) = part_weights(simd, &x, importance, index, mean_square);
            found.set(index, fit_scale_and_minimum(simd, 3.0, &x, &weights, Steps::WEIGHTED));
        }
        let (d, low) = fit_positive(simd, 15.0, &found.scales, &sums);
        let (dmin, high) = fit_positive(simd, 15.0, &found.below, &sums);
        let (d, dmin, low, high) = (d.store(), dmin.store(), stored(&low), stored(&high));
        let chosen = Chosen { inverses: stored(&found.inverses), from: stored(&found.from) };
        for (lane, out) in out.iter_mut().enumerate() {
            let (low, high) = (codes_of_lane(&low, lane), codes_of_lane(&high, lane));
            let scales = std::array::from_fn(|j| low[j] | high[j] << 4);
            *out = Self::finish(batch[lane], &chosen, lane, scales, d[lane], dmin[lane]);
        }
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
        for (part, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (half, inside) = (part / 8, part % 8);
            let dl = self.step(part);
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
    /// Levels anew against the scales as stored (6 bits each, 32 is none), and everything packed; `chosen` are the codes of parts
    /// whose stored scale is zero.
    #[inline(always)]
    fn finish(x: &Weights, levels: [u8; 16], d: f32, chosen: impl Fn(usize, &[f32; 16]) -> [u8; 16]) -> Self {
        let d = Half::new(d);
        let mut scales = [0; 12];
        for (j, level) in levels.iter().enumerate() {
            scales[j % 8] |= (level & 15) << (j / 8 * 4);
            scales[8 + j % 4] |= (level >> 4) << (j / 4 * 2);
        }
        let mut codes = [0; 256];
        for (index, level) in levels.iter().enumerate() {
            let step = d.get() * (f32::from(*level) - 32.0);
            let x = part::<_, 16>(x, index);
            *part_mut(&mut codes, index) =
                if step == 0.0 { chosen(index, x) } else { round_around(x, step, 4) };
        }
        let (high, q) = pack3(&codes);
        Self { high, q, scales, d }
    }

    /// `d` times the scale of part `part`.
    #[inline(always)]
    fn step(&self, part: usize) -> f32 {
        // Four low bits of scales 0..8 and 8..16 share bytes 0..8; two high bits of four scales share bytes 8..12.
        let low = self.scales[part % 8] >> (part / 8 * 4) & 15;
        let top = self.scales[8 + part % 4] >> (part / 4 * 2) & 3;
        self.d.get() * (f32::from(low | top << 4) - 32.0)
    }
}

impl Q3_K {
    /// Scales and levels of all parts, `K` at a time.
    #[inline(always)]
    fn fit_parts<S: Simd, const K: usize>(
        simd: S,
        batch: &Batch<'_, Weights>,
        scales: &mut [S::Floats; 16],
        chosen: &mut [[f32; MOST]; 256],
    ) {
        let (mut x, mut codes) = ([[simd.splat(0.0); 16]; K], [[simd.splat(0.0); 16]; K]);
        for (group, scales) in scales.as_chunks_mut::<K>().0.iter_mut().enumerate() {
            let first = group * K;
            for (inside, x) in x.iter_mut().enumerate() {
                transpose_part_into(simd, batch, first + inside, x);
            }
            *scales = fit_levels(simd, 4.0, &x, &mut codes);
            for (code, chosen) in codes.as_flattened().iter().zip(&mut chosen[first * 16..]) {
                *chosen = code.store();
            }
        }
    }
}

impl EncodeLanes for Q3_K {
    #[inline(always)]
    fn encode_lanes<S: Simd>(simd: S, batch: &Batch<'_, Weights>, out: &mut [Self]) {
        let mut scales = [simd.splat(0.0); 16];
        let mut chosen = [[0f32; MOST]; 256];
        // Each step waits for the one before, so parts go side by side: as many as the registers of the set hold.
        if S::LANES > 8 {
            Self::fit_parts::<S, 4>(simd, batch, &mut scales, &mut chosen);
        } else {
            Self::fit_parts::<S, 2>(simd, batch, &mut scales, &mut chosen);
        }
        let scales = stored(&scales);
        for (lane, out) in out.iter_mut().enumerate() {
            let scales = of_lane(&scales, lane);
            let extreme = extreme(&scales);
            let (mut levels, mut d) = ([0; 16], 0.0);
            if extreme != 0.0 {
                let inverse = -32.0 / extreme;
                // ggml narrows to 8 bits before it limits the level.
                levels = scales.map(|scale| {
                    let level = code(nearest(inverse * scale)).cast_signed().clamp(-32, 31);
                    (level + 32).cast_unsigned()
                });
                d = 1.0 / inverse;
            }
            *out = Self::finish(batch[lane], levels, d, |index, _| {
                codes_of_lane(part::<_, 16>(&chosen, index), lane)
            });
        }
    }
}

impl WeightedLanes for Q3_K {
    const OF_ROW: bool = false;

    #[inline(always)]
    fn weighted_lanes<S: Simd>(
        simd: S,
        batch: &Batch<'_, Weights>,
        importance: &Batch<'_, Weights>,
        _: &[f32; MOST],
        out: &mut [Self],
    ) {
        let mean_square = simd.splat(2.0) * sum_of_squares(simd, batch) / simd.splat(256.0);
        let (mut scales, mut inverses) = ([simd.splat(0.0); 16], [simd.splat(0.0); 16]);
        let mut sums = scales;
        for index in 0..16 {
            let x = transpose_part::<_, 16>(simd, batch, index);
            let (weights, sum) = part_weights(simd, &x, importance, index, mean_square);
            sums[index] = sum;
            Scale { scale: scales[index], inverse: inverses[index] } = fit_scale(simd, 4.0, &x, &weights);
        }
        let Scale { scale: d, inverse } = fit_scale(simd, 32.0, &scales, &sums);
        let levels = stored(&codes_of_scale(simd, 32.0, &scales, inverse));
        let (d, inverses) = (d.store(), stored(&inverses));
        for (lane, out) in out.iter_mut().enumerate() {
            *out = Self::finish(batch[lane], codes_of_lane(&levels, lane), d[lane], |index, x| {
                chosen_around(x, inverses[index][lane], 4)
            });
        }
    }
}

/// The value of largest magnitude; of equal ones, the first. Plus zero where all are zero.
#[inline(always)]
pub(crate) fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0f32, |extreme, x| if x.abs() > extreme.abs() { *x } else { extreme })
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
    fn encode<S: Simd, B: From<Self>>(
        simd: S,
        batch: &Batch<'_, Weights>,
        most: u8,
        steps: Steps,
        out: &mut [B],
    ) {
        let mut found = Affines::<_, 8>::new(simd.splat(0.0));
        for index in 0..8 {
            let x = transpose_part::<_, 32>(simd, batch, index);
            let mean = (sum(simd, &squares(&x)) / simd.splat(32.0)).sqrt();
            let mut weights = x;
            for weight in &mut weights {
                *weight = mean + weight.abs();
            }
            found.set(index, fit_scale_and_minimum(simd, f32::from(most), &x, &weights, steps));
        }
        let (scales, below) = (stored(&found.scales), stored(&found.below));
        let chosen = Chosen { inverses: stored(&found.inverses), from: stored(&found.from) };
        for (lane, out) in out.iter_mut().enumerate() {
            let ((d, low), (dmin, high)) =
                (Self::levels(&of_lane(&scales, lane)), Self::levels(&of_lane(&below, lane)));
            let packed = pack_scales_and_minimums(&low, &high);
            *out = Self::finish(batch[lane], most.into(), &chosen, lane, packed, d, dmin).into();
        }
    }

    /// Scales or minimums of 6 bits.
    #[inline(always)]
    fn levels(x: &[f32; 8]) -> (f32, [u8; 8]) {
        let greatest = greatest(x);
        let inverse = if greatest > 0.0 { 63.0 / greatest } else { 0.0 };
        (greatest / 63.0, x.map(|x| code(nearest(inverse * x)).min(63)))
    }

    /// `cap` limits the levels of scales to what they can be; ggml leaves that out for Q4_K.
    #[inline(always)]
    fn weighted<S: Simd, B: From<Self>>(
        simd: S,
        batch: &Batch<'_, Weights>,
        importance: &Batch<'_, Weights>,
        most: u8,
        cap: u8,
        out: &mut [B],
    ) {
        let mean_square = simd.splat(2.0) * sum_of_squares(simd, batch) / simd.splat(256.0);
        let mut found = Affines::<_, 8>::new(simd.splat(0.0));
        let mut sums = found.scales;
        for (index, sum) in sums.iter_mut().enumerate() {
            let x = transpose_part::<_, 32>(simd, batch, index);
            let weights;
            (weights, *sum) = part_weights(simd, &x, importance, index, mean_square);
            found.set(index, fit_scale_and_minimum(simd, f32::from(most), &x, &weights, Steps::WEIGHTED));
        }
        let (d, low) = fit_positive(simd, 63.0, &found.scales, &sums);
        let (dmin, high) = fit_positive(simd, 63.0, &found.below, &sums);
        let (d, dmin, low, high) = (d.store(), dmin.store(), stored(&low), stored(&high));
        let chosen = Chosen { inverses: stored(&found.inverses), from: stored(&found.from) };
        for (lane, out) in out.iter_mut().enumerate() {
            let [low, high] =
                [&low, &high].map(|levels| codes_of_lane(levels, lane).map(|level| level.min(cap)));
            let packed = pack_scales_and_minimums(&low, &high);
            let (d, dmin) = (d[lane], dmin[lane]);
            *out = Self::finish(batch[lane], most.into(), &chosen, lane, packed, d, dmin).into();
        }
    }

    /// Levels anew against the scales as stored.
    #[inline(always)]
    fn finish(
        x: &Weights,
        most: i32,
        chosen: &Chosen<8>,
        lane: usize,
        scales: [u8; 12],
        d: f32,
        dmin: f32,
    ) -> Self {
        let (d, dmin) = (Half::new(d), Half::new(dmin));
        let mut codes = [0; 256];
        for index in 0..8 {
            let (scale, minimum) = scale_and_minimum(index, &scales);
            let (step, minimum) = (d.get() * scale, dmin.get() * minimum);
            let x = part::<_, 32>(x, index);
            *part_mut(&mut codes, index) = if step == 0.0 {
                chosen.codes(index, lane, x, most)
            } else {
                round_above(x, step, minimum, most)
            };
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

impl EncodeLanes for Q4_K {
    #[inline(always)]
    fn encode_lanes<S: Simd>(simd: S, batch: &Batch<'_, Weights>, out: &mut [Self]) {
        const STEPS: Steps = Steps { first: -1.0, step: 0.1, count: 21, absolute: false };
        Eighths::encode(simd, batch, 15, STEPS, out);
    }
}

impl WeightedLanes for Q4_K {
    const OF_ROW: bool = false;

    #[inline(always)]
    fn weighted_lanes<S: Simd>(
        simd: S,
        batch: &Batch<'_, Weights>,
        importance: &Batch<'_, Weights>,
        _: &[f32; MOST],
        out: &mut [Self],
    ) {
        Eighths::weighted(simd, batch, importance, 15, u8::MAX, out);
    }
}

impl EncodeLanes for Q5_K {
    #[inline(always)]
    fn encode_lanes<S: Simd>(simd: S, batch: &Batch<'_, Weights>, out: &mut [Self]) {
        const STEPS: Steps = Steps { first: -0.5, step: 0.1, count: 16, absolute: false };
        Eighths::encode(simd, batch, 31, STEPS, out);
    }
}

impl WeightedLanes for Q5_K {
    const OF_ROW: bool = false;

    #[inline(always)]
    fn weighted_lanes<S: Simd>(
        simd: S,
        batch: &Batch<'_, Weights>,
        importance: &Batch<'_, Weights>,
        _: &[f32; MOST],
        out: &mut [Self],
    ) {
        Eighths::weighted(simd, batch, importance, 31, 63, out);
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
    /// The block, with the scales of parts and what their levels were made with.
    #[inline(always)]
    fn finish(x: &Weights, fitted: &[f32; 16], inverses: &[f32; 16]) -> Self {
        let extreme = extreme(fitted);
        if extreme.abs() < NEGLIGIBLE {
            return bytemuck::Zeroable::zeroed();
        }
        let inverse = -128.0 / extreme;
        let d = Half::new(1.0 / inverse);
        let scales = fitted.map(|scale| code(nearest(inverse * scale).min(127)).cast_signed());
        let mut codes = [0; 256];
        for (index, scale) in scales.iter().enumerate() {
            let step = d.get() * f32::from(*scale);
            let x = part::<_, 16>(x, index);
            *part_mut(&mut codes, index) =
                if step == 0.0 { chosen_around(x, inverses[index], 32) } else { round_around(x, step, 32) };
        }
        let (low, high) = pack6(&codes);
        Self { low, high, scales, d }
    }

    /// The blocks, with what was found for their parts.
    #[inline(always)]
    fn finish_all<S: Simd>(batch: &Batch<'_, Weights>, fitted: &[Scale<S::Floats>; 16], out: &mut [Self]) {
        let (mut scales, mut inverses) = ([[0.0; MOST]; 16], [[0.0; MOST]; 16]);
        for (index, fitted) in fitted.iter().enumerate() {
            (scales[index], inverses[index]) = (fitted.scale.store(), fitted.inverse.store());
        }
        for (lane, out) in out.iter_mut().enumerate() {
            *out = Self::finish(batch[lane], &of_lane(&scales, lane), &of_lane(&inverses, lane));
        }
    }
}

impl Even for Q2_K {
    const PART: usize = 16;
    const MOST: u8 = 3;

    fn level_step(&self, part: usize) -> LevelStep {
        let scale = self.scales[part];
        LevelStep {
            step: self.d.get() * f32::from(scale & 15),
            least: -(self.dmin.get() * f32::from(scale >> 4)),
        }
    }

    fn with_codes(&self, codes: &[u8]) -> Self {
        Self { q: pack2(whole(codes)), ..*self }
    }
}

impl Even for Q3_K {
    const PART: usize = 16;
    const MOST: u8 = 7;

    fn level_step(&self, part: usize) -> LevelStep {
        let step = self.step(part);
        LevelStep { step, least: -4.0 * step }
    }

    fn with_codes(&self, codes: &[u8]) -> Self {
        let (high, q) = pack3(whole(codes));
        Self { high, q, ..*self }
    }
}

/// The levels of a part of Q4_K or Q5_K.
fn eighth(d: Half, dmin: Half, scales: &[u8; 12], part: usize) -> LevelStep {
    let (scale, minimum) = scale_and_minimum(part, scales);
    LevelStep { step: d.get() * scale, least: -(dmin.get() * minimum) }
}

impl Even for Q4_K {
    const PART: usize = 32;
    const MOST: u8 = 15;

    fn level_step(&self, part: usize) -> LevelStep {
        eighth(self.d, self.dmin, &self.scales, part)
    }

    fn with_codes(&self, codes: &[u8]) -> Self {
        Eighths { d: self.d, dmin: self.dmin, scales: self.scales, codes: *whole(codes) }.into()
    }
}

impl Even for Q5_K {
    const PART: usize = 32;
    const MOST: u8 = 31;

    fn level_step(&self, part: usize) -> LevelStep {
        eighth(self.d, self.dmin, &self.scales, part)
    }

    fn with_codes(&self, codes: &[u8]) -> Self {
        Eighths { d: self.d, dmin: self.dmin, scales: self.scales, codes: *whole(codes) }.into()
    }
}

impl Even for Q6_K {
    const PART: usize = 16;
    const MOST: u8 = 63;

    fn level_step(&self, part: usize) -> LevelStep {
        let step = self.d.get() * f32::from(self.scales[part]);
        LevelStep { step, least: -32.0 * step }
    }

    fn with_codes(&self, codes: &[u8]) -> Self {
        let (low, high) = pack6(whole(codes));
        Self { low, high, ..*self }
    }
}

impl EncodeLanes for Q6_K {
    #[inline(always)]
    fn encode_lanes<S: Simd>(simd: S, batch: &Batch<'_, Weights>, out: &mut [Self]) {
        let mut fitted = [Scale { scale: simd.splat(0.0), inverse: simd.splat(0.0) }; 16];
        for (index, fitted) in fitted.iter_mut().enumerate() {
            let x = transpose_part::<_, 16>(simd, batch, index);
            *fitted = fit_scale(simd, 32.0, &x, &squares(&x));
        }
        Self::finish_all::<S>(batch, &fitted, out);
    }
}

impl WeightedLanes for Q6_K {
    const OF_ROW: bool = false;

    #[inline(always)]
    fn weighted_lanes<S: Simd>(
        simd: S,
        batch: &Batch<'_, Weights>,
        importance: &Batch<'_, Weights>,
        _: &[f32; MOST],
        out: &mut [Self],
    ) {
        let mut fitted = [Scale { scale: simd.splat(0.0), inverse: simd.splat(0.0) }; 16];
        for (index, fitted) in fitted.iter_mut().enumerate() {
            let x = transpose_part::<_, 16>(simd, batch, index);
            *fitted = fit_scale(simd, 32.0, &x, &transpose_part(simd, importance, index));
        }
        Self::finish_all::<S>(batch, &fitted, out);
    }
}
