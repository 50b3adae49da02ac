//! IQ4_NL and IQ4_XS: levels from a fixed grid that is finer near zero, in the order of operations of ggml's
//! `quantize_row_iq4_nl_impl` as `ggml_quantize_chunk` calls it, and `dequantize_row_iq4_*`.

use crate::block::{Block, Half, IQ4_NL, IQ4_XS};
use crate::kquants::{extreme, part};
use crate::lanes::{Batch, EncodeLanes, Floats, Grid, MOST, Simd, WeightedLanes, transpose, transpose_part};
use crate::legacy::inverse;
use crate::search::{error_weights, fit_grid, nearest, squares, sum, sum_of_squares};

/// The levels of both types: `kvalues_iq4nl` of ggml.
pub(crate) const LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

const GRID: Grid = Grid::new({
    let mut levels = [0.0; 16];
    let mut index = 0;
    while index < 16 {
        levels[index] = LEVELS[index] as f32;
        index += 1;
    }
    levels
});

/// The nearest levels of 32 weights, two a byte: weight `j` in the low half, `j + 16` in the high half.
#[inline(always)]
fn pack(x: &[f32; 32], inverse: f32) -> [u8; 16] {
    let mut codes = [0; 32];
    for (x, out) in x.iter().zip(&mut codes) {
        *out = GRID.index(inverse * x);
    }
    let mut q = [0; 16];
    for (j, byte) in q.iter_mut().enumerate() {
        *byte = codes[j] | codes[j + 16] << 4;
    }
    q
}

#[inline(always)]
fn unpack(q: &[u8; 16], scale: f32, out: &mut [f32; 32]) {
    let (low, high) = out.split_at_mut(16);
    for ((q, low), high) in q.iter().zip(low).zip(high) {
        *low = scale * GRID.values[usize::from(q & 15)];
        *high = scale * GRID.values[usize::from(q >> 4)];
    }
}

impl Block for IQ4_NL {
    type Weights = [f32; 32];

    #[inline(always)]
    fn decode(&self, out: &mut [f32; 32]) {
        unpack(&self.q, self.d.get(), out);
    }
}

impl IQ4_NL {
    #[inline(always)]
    fn fit<S: Simd>(
        simd: S,
        batch: &Batch<'_, [f32; 32]>,
        x: &[S::Floats; 32],
        weights: &[S::Floats; 32],
        out: &mut [Self],
    ) {
        let scales = fit_grid(simd, &GRID, x, weights).store();
        for ((out, x), scale) in out.iter_mut().zip(batch).zip(scales) {
            *out = Self { d: Half::new(scale), q: pack(x, inverse(scale)) };
        }
    }
}

impl EncodeLanes for IQ4_NL {
    #[inline(always)]
    fn encode_lanes<S: Simd>(simd: S, batch: &Batch<'_, [f32; 32]>, out: &mut [Self]) {
        let x = transpose(simd, batch);
        Self::fit(simd, batch, &x, &squares(&x), out);
    }
}

impl WeightedLanes for IQ4_NL {
    const OF_ROW: bool = false;

    #[inline(always)]
    fn weighted_lanes<S: Simd>(
        simd: S,
        batch: &Batch<'_, [f32; 32]>,
        importance: &Batch<'_, [f32; 32]>,
        _: &[f32; MOST],
        out: &mut [Self],
    ) {
        let x = transpose(simd, batch);
        let mean_square = sum(simd, &squares(&x)) * simd.splat(2.0 / 32.0);
        let weights = error_weights(&x, &transpose(simd, importance), mean_square);
        Self::fit(simd, batch, &x, &weights, out);
    }
}

impl Block for IQ4_XS {
    type Weights = [f32; 256];

    #[inline(always)]
    fn decode(&self, out: &mut [f32; 256]) {
        let d = self.d.get();
        let high = u16::from_le_bytes(self.high);
        for (index, (q, out)) in self.q.iter().zip(out.as_chunks_mut().0).enumerate() {
            let low = self.low[index / 2] >> (index % 2 * 4) & 15;
            let [top, _] = (high >> (2 * index) & 3).to_le_bytes();
            unpack(q, d * (f32::from(low | top << 4) - 32.0), out);
        }
    }
}

impl IQ4_XS {
    /// The blocks, with the scales of their parts.
    #[inline(always)]
    fn finish_all(batch: &Batch<'_, [f32; 256]>, scales: &[[f32; MOST]; 8], out: &mut [Self]) {
        for (lane, out) in out.iter_mut().enumerate() {
            *out = Self::finish(batch[lane], &std::array::from_fn(|index| scales[index][lane]));
        }
    }

    /// The block, with the scales of parts.
    #[inline(always)]
    fn finish(x: &[f32; 256], scales: &[f32; 8]) -> Self {
        let d = -extreme(scales) / 32.0;
        let id = inverse(d);
        let (mut low, mut high, mut q) = ([0; 4], 0u16, [[0; 16]; 8]);
        for (index, scale) in scales.iter().enumerate() {
            #[expect(clippy::cast_possible_truncation, reason = "from -32 to 31")]
            let level = nearest(id * scale).clamp(-32, 31) as i8;
            q[index] = pack(part(x, index), inverse(d * f32::from(level)));
            let level = (level + 32).cast_unsigned();
            low[index / 2] |= (level & 15) << (index % 2 * 4);
            high |= u16::from(level >> 4) << (2 * index);
        }
        Self { d: Half::new(d), high: high.to_le_bytes(), low, q }
    }
}

impl EncodeLanes for IQ4_XS {
    #[inline(always)]
    fn encode_lanes<S: Simd>(simd: S, batch: &Batch<'_, [f32; 256]>, out: &mut [Self]) {
        let mut scales = [[0.0; MOST]; 8];
        for (index, scale) in scales.iter_mut().enumerate() {
            let x = transpose_part::<_, 32>(simd, batch, index);
            *scale = fit_grid(simd, &GRID, &x, &squares(&x)).store();
        }
        Self::finish_all(batch, &scales, out);
    }
}

impl WeightedLanes for IQ4_XS {
    const OF_ROW: bool = false;

    #[inline(always)]
    fn weighted_lanes<S: Simd>(
        simd: S,
        batch: &Batch<'_, [f32; 256]>,
        importance: &Batch<'_, [f32; 256]>,
        _: &[f32; MOST],
        out: &mut [Self],
    ) {
        let mean_square = sum_of_squares(simd, batch) * simd.splat(2.0 / 256.0);
        let mut scales = [[0.0; MOST]; 8];
        for (index, scale) in scales.iter_mut().enumerate() {
            let x = transpose_part::<_, 32>(simd, batch, index);
            let weights = error_weights(&x, &transpose_part(simd, importance, index), mean_square);
            *scale = fit_grid(simd, &GRID, &x, &weights).store();
        }
        Self::finish_all(batch, &scales, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lanes::Portable;

    /// What ggml's `best_index_int8` finds.
    fn by_distance(x: f32) -> u8 {
        let values = &GRID.values;
        if x <= values[0] {
            return 0;
        }
        let above = values.iter().position(|value| x < *value).unwrap_or(15);
        let nearer_below = x < values[15] && x - values[above - 1] < values[above] - x;
        u8::try_from(if nearer_below { above - 1 } else { above }).expect("below 16")
    }

    #[test]
    fn the_index_is_that_of_the_nearest_value() {
        let around =
            |x: f32| (-40i32..=40).map(move |step| f32::from_bits(x.to_bits().wrapping_add_signed(step)));
        let plain = (-300_000i32..300_000).map(|x| x as f32 / 2048.0);
        let halves = (-260i16..260).flat_map(|x| around(f32::from(x) / 2.0));
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX, f32::MIN_POSITIVE];
        for x in plain.chain(halves).filter(|x| !x.is_nan()).chain(special) {
            assert_eq!(GRID.index(x), by_distance(x), "{x}");
            let found = Portable.splat(x).nearest_of(&GRID).store()[0];
            assert_eq!(found, GRID.values[usize::from(GRID.index(x))], "{x}");
        }
        assert_eq!(GRID.index(f32::NAN), 15);
    }
}
