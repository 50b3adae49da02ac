//! Tiles of the matrix multiply: two vectors of outputs for each of up to 6 activations, so 12 of 16 registers; of bf16, whose units are
//! two floats, up to 4. A panel is two such pairs of vectors wide.

use super::Avx2;
use super::integers::integers;
use crate::arch::generic;
use crate::packed::{BLOCK, PANEL, Tile, Units};
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Lanes of a vector.
const LANES: usize = 8;
impl Avx2 {
    /// See [`Kernels::interleave`](crate::Kernels::interleave).
    pub(crate) fn interleave(self, from: Units<'_>, width: usize, to: &mut [u32]) {
        // SAFETY: the CPU has the features.
        unsafe { interleave(from, width, to) }
    }

    /// See [`Kernels::tile_f32`](crate::Kernels::tile_f32).
    pub(crate) fn tile_f32(self, mut tile: Tile<'_, '_>) {
        // SAFETY: the CPU has the features.
        unsafe { tiles_f32(&mut tile) }
    }

    /// See [`Kernels::tile_bf16`](crate::Kernels::tile_bf16).
    pub(crate) fn tile_bf16(self, mut tile: Tile<'_, '_>) {
        // SAFETY: the CPU has the features.
        unsafe { tiles_bf16(&mut tile) }
    }

    /// As [`Avx2::busy`]: there are no kernels for integers.
    pub(crate) fn busy_int8(self, rounds: u64, factor: f32) -> (u64, f32) {
        self.busy(rounds, factor)
    }

    /// As `busy`: there are no instructions for bf16.
    pub(crate) fn busy_bf16(self, rounds: u64, factor: f32) -> (u64, f32) {
        self.busy(rounds, factor)
    }
}

/// Columns of four units, of rows that stand in the halves of four vectors: row `i` and row `4 + i` in vector `i`.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn transposed(lines: [__m256i; 4]) -> [__m256i; 4] {
    let low = [_mm256_unpacklo_epi32(lines[0], lines[1]), _mm256_unpacklo_epi32(lines[2], lines[3])];
    let high = [_mm256_unpackhi_epi32(lines[0], lines[1]), _mm256_unpackhi_epi32(lines[2], lines[3])];
    [
        _mm256_unpacklo_epi64(low[0], low[1]),
        _mm256_unpackhi_epi64(low[0], low[1]),
        _mm256_unpacklo_epi64(high[0], high[1]),
        _mm256_unpackhi_epi64(high[0], high[1]),
    ]
}

/// 8 rows at a time: four units of each are loaded as half a vector, and halves are transposed.
#[target_feature(enable = "avx2,fma")]
fn interleave(from: Units<'_>, width: usize, to: &mut [u32]) {
    let (rows, units) = (from.rows(), from.len());
    assert!(rows <= width && to.len() >= units * width, "size of the packed operand");
    let whole = from.bytes() / 16 * 4;
    for group in (0..rows).step_by(LANES) {
        let lanes = (width - group).min(LANES);
        // Lanes without a row repeat the last one.
        let row = |lane: usize| from.data()[(group + lane).min(rows - 1) * from.stride()..].as_ptr();
        let starts: [*const u8; LANES] = std::array::from_fn(row);
        for unit in (0..whole).step_by(4) {
            // SAFETY: 16 bytes from unit `unit` on lie inside each row.
            let half = |lane: usize| unsafe { _mm_loadu_si128(starts[lane].add(4 * unit).cast()) };
            let lines: [__m256i; 4] = std::array::from_fn(|i| {
                _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(half(i)), half(4 + i))
            });
            for (column, lanes_of) in transposed(lines).into_iter().enumerate() {
                let to = &mut to[(unit + column) * width + group..][..lanes];
                let mut all = [0; LANES];
                // SAFETY: both have 8 lanes.
                unsafe {
                    if lanes == LANES {
                        _mm256_storeu_si256(to.as_mut_ptr().cast(), lanes_of);
                    } else {
                        _mm256_storeu_si256(all.as_mut_ptr().cast(), lanes_of);
                        to.copy_from_slice(&all[..lanes]);
                    }
                }
            }
        }
    }
    generic::interleave(from, width, to, whole);
}

/// Floats of the activations of a pass of bf16: of each unit the second ones, then the first ones. What is written last of a vector is
/// written again, or lies in the last one.
type Wide = [MaybeUninit<f32>; 2 * BLOCK * PASS_OF_BF16 + LANES];
/// Activations of a pass of bf16.
const PASS_OF_BF16: usize = 4;

/// A function that computes a tile, `$pass` activations at a time, and the one for a fixed number of activations that it calls: `$float`s are
/// the floats of a unit, in the order in which they are multiplied. Sums, weights and an activation have to fit into 16 registers.
/// `$floats` finds the floats of activations: where they begin, and how far it is from one to the next.
macro_rules! tiles {
    ($tiles:ident, $tile:ident, $pass:expr, $floats:ident: $($float:ident)*) => {
        #[target_feature(enable = "avx2,fma")]
        fn $tiles(tile: &mut Tile<'_, '_>) {
            let (tokens, rows) = (tile.out().rows(), tile.out().cols());
            let mut room: Wide = [MaybeUninit::uninit(); size_of::<Wide>() / size_of::<f32>()];
            for token in (0..tokens).step_by($pass) {
                let count = $pass.min(tokens - token);
                let floats = $floats(tile, token, count, &mut room);
                for col in (0..rows).step_by(2 * LANES) {
                    macro_rules! of {
                        ($count:literal) => {
                            // SAFETY: the tile has as many activations from `token` on, whose floats these are.
                            unsafe { $tile::<$count>(tile, token, floats, col) }
                        };
                    }
                    match count {
                        1 => of!(1),
                        2 => of!(2),
                        3 => of!(3),
                        4 => of!(4),
                        5 => of!(5),
                        _ => of!(6),
                    }
                }
            }
        }

        /// # Safety
        /// The tile has `M` activations from `token` on, and its panel columns `col..col + 16`. M floats may be read from `x`, from
        /// `x + step`, and so on, for each float of its units.
        #[inline(never)]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $tile<const M: usize>(
            tile: &mut Tile<'_, '_>,
            token: usize,
            (mut x, step): (*const f32, usize),
            col: usize,
        ) {
            let mut sums = [[_mm256_setzero_ps(); 2]; M];
            let w = tile.w().as_ptr().cast::<i32>();
            for unit in 0..tile.units() {
                // SAFETY: `w` has PANEL units for each of the tile's, and `x` what is said above.
                unsafe {
                    let w = w.add(unit * PANEL + col);
                    $({
                        let w = [$float(integers(w)), $float(integers(w.add(LANES)))];
                        for (m, sums) in sums.iter_mut().enumerate() {
                            let x = _mm256_broadcast_ss(&*x.add(m));
                            sums[0] = _mm256_fmadd_ps(_mm256_castsi256_ps(w[0]), x, sums[0]);
                            sums[1] = _mm256_fmadd_ps(_mm256_castsi256_ps(w[1]), x, sums[1]);
                        }
                        x = x.wrapping_add(step);
                    })*
                }
            }
            let (width, more) = (tile.out().cols() - col, tile.add());
            // Another array, so that the sums above need no place in memory.
            let sums = sums;
            for (m, sums) in sums.iter().enumerate() {
                let mut all = [0.0; 2 * LANES];
                for (all, sum) in all.chunks_exact_mut(LANES).zip(sums) {
                    // SAFETY: 8 floats.
                    unsafe { _mm256_storeu_ps(all.as_mut_ptr(), *sum) };
                }
                let out = &mut tile.out().row_mut(token + m)[col..];
                for (out, sum) in out.iter_mut().zip(&all[..width.min(2 * LANES)]) {
                    *out = if more { *out + sum } else { *sum };
                }
            }
        }
    };
}

tiles! { tiles_f32, tile_f32, 6, in_place: only }
tiles! { tiles_bf16, tile_bf16, PASS_OF_BF16, widened: second first }

/// Activations `token..token + count` of a tile of floats.
fn in_place(tile: &mut Tile<'_, '_>, token: usize, _: usize, _: &mut Wide) -> (*const f32, usize) {
    (tile.x()[token..].as_ptr().cast(), tile.out().rows())
}

/// Activations `token..token + count` of a tile of bf16, as floats in `room`.
#[target_feature(enable = "avx2,fma")]
fn widened(tile: &mut Tile<'_, '_>, token: usize, count: usize, room: &mut Wide) -> (*const f32, usize) {
    let (x, tokens) = (tile.x(), tile.out().rows());
    for unit in 0..tile.units() {
        let x = &x[unit * tokens + token..];
        let mut last = [0_u32; LANES];
        let eight = x.first_chunk().unwrap_or_else(|| {
            last[..count].copy_from_slice(&x[..count]);
            &last
        });
        let room = &mut room[2 * count * unit..][..count + LANES];
        // SAFETY: reads and writes 8 words, twice.
        unsafe {
            let pairs = integers(eight.as_ptr().cast());
            _mm256_storeu_si256(room.as_mut_ptr().cast(), second(pairs));
            _mm256_storeu_si256(room[count..].as_mut_ptr().cast(), first(pairs));
        }
    }
    (room.as_ptr().cast(), count)
}

/// The only float of each unit.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn only(float: __m256i) -> __m256i {
    float
}

/// The first bf16 of each unit, as a float.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn first(pair: __m256i) -> __m256i {
    _mm256_slli_epi32::<16>(pair)
}

/// The second bf16 of each unit, as a float.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn second(pair: __m256i) -> __m256i {
    _mm256_and_si256(pair, _mm256_set1_epi32(0xffff_0000_u32.cast_signed()))
}
