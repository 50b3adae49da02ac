//! Tiles of the matrix multiply: two vectors of outputs for each of up to 6 activations, so 12 of 16 registers. A panel is two such
//! pairs of vectors wide.

use super::Avx2;
use super::integers::integers;
use crate::arch::generic;
use crate::packed::{PANEL, Tile, Units};
use std::arch::x86_64::*;

/// Lanes of a vector.
const LANES: usize = 8;
/// Activations that one pass multiplies.
const PASS: usize = 6;

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
            let low = [_mm256_unpacklo_epi32(lines[0], lines[1]), _mm256_unpacklo_epi32(lines[2], lines[3])];
            let high = [_mm256_unpackhi_epi32(lines[0], lines[1]), _mm256_unpackhi_epi32(lines[2], lines[3])];
            let columns = [
                _mm256_unpacklo_epi64(low[0], low[1]),
                _mm256_unpackhi_epi64(low[0], low[1]),
                _mm256_unpacklo_epi64(high[0], high[1]),
                _mm256_unpackhi_epi64(high[0], high[1]),
            ];
            for (column, lanes_of) in columns.into_iter().enumerate() {
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

/// A function that computes a tile, and the one for a fixed number of activations that it calls: `$float`s are the floats of a unit, which
/// are multiplied one after the other, so that 12 sums, two vectors of weights and one of activations fit into 16 registers.
macro_rules! tiles {
    ($tiles:ident, $tile:ident, $($float:ident)*) => {
        #[target_feature(enable = "avx2,fma")]
        fn $tiles(tile: &mut Tile<'_, '_>) {
            let (tokens, rows) = (tile.out().rows(), tile.out().cols());
            for col in (0..rows).step_by(2 * LANES) {
                for token in (0..tokens).step_by(PASS) {
                    macro_rules! of {
                                                ($count:literal) => {
                                                    // SAFETY: the tile holds as many activations from `token` on, and has checked its operands.
                                                    unsafe { $tile::<$count>(tile, token, tokens, col) }
                                                };
                                            }
                    match tokens - token {
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
        /// The tile has `tokens` activations, `M` of them from `token` on, and its panel columns `col..col + 16`.
        #[inline(never)]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $tile<const M: usize>(tile: &mut Tile<'_, '_>, token: usize, tokens: usize, col: usize) {
            let mut sums = [[_mm256_setzero_ps(); 2]; M];
            let (x, w) = (tile.x().as_ptr().cast::<i32>(), tile.w().as_ptr().cast::<i32>());
            for unit in 0..tile.units() {
                // SAFETY: `w` has PANEL units, and `x` has `tokens`, for each of the tile's.
                unsafe {
                    let w = w.add(unit * PANEL + col);
                    $({
                        let w = [$float(integers(w)), $float(integers(w.add(LANES)))];
                        for (m, sums) in sums.iter_mut().enumerate() {
                            let x = $float(_mm256_set1_epi32(*x.add(unit * tokens + token + m)));
                            let x = _mm256_castsi256_ps(x);
                            sums[0] = _mm256_fmadd_ps(_mm256_castsi256_ps(w[0]), x, sums[0]);
                            sums[1] = _mm256_fmadd_ps(_mm256_castsi256_ps(w[1]), x, sums[1]);
                        }
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

tiles! { tiles_f32, tile_f32, only }
tiles! { tiles_bf16, tile_bf16, second first }

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
