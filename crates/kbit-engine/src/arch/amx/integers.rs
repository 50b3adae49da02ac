//! Products of integers: of both operands with sign, so that nothing has to be taken off afterwards.
//!
//! Weights of blocks whose parts have integer scales are multiplied with these beforehand: what then no longer fits into a byte is two
//! bytes, `128 * high + low`, each multiplied on its own for all of the block. Sums of integers are exact either way, so the results are
//! those of all other kernels. Blocks of 32 with a scale in floats gain nothing: their sums would leave the tiles as often as vectors of
//! sums are full.

use super::{AMX_TOKENS, Amx, Lines, ROW, ROW_UNITS, TILE, Tiles};
use crate::arch::avx512::first as lanes_below;
use crate::packed::{Groups, INTEGER_COLS, IntegerProduct, IntegerRows, PANEL};
use kbit_types::{IntegerLayout, Terms};
use std::arch::asm;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// Units of a block that has parts.
const BLOCK_UNITS: usize = 64;
/// Units of a panel that are multiplied at a time, at most.
const UNITS: usize = INTEGER_COLS / 4;
/// Activations whose sums are kept together, where caches are near.
const BAND: usize = 4 * AMX_TOKENS;
/// Lanes of a vector.
const LANES: usize = 16;

/// A row of a panel.
type Row<T> = [T; PANEL];
/// Products of 32 activations with a panel.
type Products = Lines<[Row<i32>; AMX_TOKENS]>;
/// Sums of a band.
type Sums = Lines<[Row<f32>; BAND]>;

impl Amx {
    /// How it wants activations to be packed; `None` for blocks that it does not multiply.
    pub(crate) fn integer_groups(self, layout: IntegerLayout) -> Option<Groups> {
        (layout.block == 4 * BLOCK_UNITS && [16, 32].contains(&layout.part) && layout.terms.has_parts())
            .then_some(Groups { tokens: AMX_TOKENS, run: ROW_UNITS })
    }

    /// See [`Kernels::multiply_integers`](crate::Kernels::multiply_integers); of blocks that [`Amx::integer_groups`] takes.
    pub(crate) fn multiply_integers(self, product: &mut IntegerProduct<'_, '_>) {
        let (layout, units) = (product.cols().layout(), product.cols().units());
        assert_eq!(
            Some(product.cols().groups()),
            self.integer_groups(layout),
            "activations as tiles want them"
        );
        assert!(units <= UNITS, "{units} units at a time");
        // SAFETY: the CPU has the features, and the layout is that of the function.
        unsafe {
            match (layout.part, layout.terms) {
                (32, Terms::Parts) => of_parts::<8, 0>(self, product),
                (32, Terms::PartsAndMinimums) => of_parts::<8, 4>(self, product),
                (16, Terms::Parts) => of_parts::<4, 0>(self, product),
                (16, Terms::PartsAndMinimums) => of_parts::<4, 8>(self, product),
                (part, terms) => unreachable!("{terms:?} of {part}"),
            }
        }
    }
}

/// The sums so far of activations from `first` on.
#[inline]
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
fn load_sums(product: &mut IntegerProduct<'_, '_>, first: usize, sums: &mut [Row<f32>]) {
    if !product.add() {
        sums.fill([0.0; PANEL]);
        return;
    }
    let rows = product.out().cols();
    let (out, stride) = product.out().tile(first, sums.len(), 0, rows).parts();
    for (m, sums) in sums.iter_mut().enumerate() {
        for (half, sums) in sums.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let place = out.wrapping_add(m * stride + half * LANES);
            // SAFETY: the lanes of the mask are columns of that row of the output; 16 floats.
            unsafe {
                let sum = _mm512_maskz_loadu_ps(lanes_below(rows.saturating_sub(half * LANES)), place);
                _mm512_storeu_ps(sums.as_mut_ptr(), sum);
            }
        }
    }
}

/// The other way.
#[inline]
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
fn store_sums(product: &mut IntegerProduct<'_, '_>, first: usize, sums: &[Row<f32>]) {
    let rows = product.out().cols();
    let (out, stride) = product.out().tile(first, sums.len(), 0, rows).parts();
    for (m, sums) in sums.iter().enumerate() {
        for (half, sum) in floats(sums).into_iter().enumerate() {
            let place = out.wrapping_add(m * stride + half * LANES);
            // SAFETY: the lanes of the mask are columns of that row of the output.
            unsafe { _mm512_mask_storeu_ps(place, lanes_below(rows.saturating_sub(half * LANES)), sum) };
        }
    }
}

/// Blocks of 256 with parts of `U` units, and `PAIRS` pairs of parts with minimums.
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
fn of_parts<const U: usize, const PAIRS: usize>(amx: Amx, product: &mut IntegerProduct<'_, '_>) {
    let (w, blocks, tokens) = (product.w(), product.cols().blocks(), product.out().rows());
    let mut weights = [const { Lines([MaybeUninit::uninit(); UNITS]) }; 2];
    split::<U>(w, product.cols().layout().offset, &mut weights);
    let mut products: [Products; 2] = [const { Lines([[0; PANEL]; AMX_TOKENS]) }; 2];
    let mut tiles = Tiles::new(amx);
    let mut sums: Sums = Lines([[0.0; PANEL]; BAND]);
    for band in (0..tokens).step_by(BAND) {
        let sums = &mut sums.0[..BAND.min(tokens - band)];
        load_sums(product, band, sums);
        for block in 0..blocks {
            let scale = floats(row(w.scales, block));
            let least_scale = if PAIRS > 0 { floats(row(w.minimum_scales, block)) } else { scale };
            let mut minimums = [[_mm512_setzero_si512(); 2]; PAIRS];
            for (pair, minimums) in minimums.iter_mut().enumerate() {
                *minimums = integers(row(w.minimums, block * PAIRS + pair));
            }
            for (first, sums) in (band..).step_by(AMX_TOKENS).zip(sums.chunks_mut(AMX_TOKENS)) {
                let x = product.x(first);
                let count = x.count;
                tiles.set(count, PANEL);
                let levels = &x.levels[block * BLOCK_UNITS * count..][..BLOCK_UNITS * count];
                for (weights, products) in weights.iter().zip(&mut products) {
                    let weights = &weights.0[block * BLOCK_UNITS..][..BLOCK_UNITS];
                    multiply_block(&tiles, levels, weights, products);
                }
                let scales = &x.scales[block * count..][..count];
                for (m, (sums, y)) in sums.iter_mut().zip(scales).enumerate() {
                    let y = _mm512_set1_ps(*y);
                    let [low, high] = [0, 1].map(|plane: usize| integers(&products[plane].0[m]));
                    let mut least = [_mm512_setzero_si512(); 2];
                    for (pair, minimums) in minimums.iter().enumerate() {
                        let sums = x.sums[(block * PAIRS + pair) * count + m].cast_signed();
                        for (least, minimums) in least.iter_mut().zip(minimums) {
                            *least = _mm512_dpwssd_epi32(*least, *minimums, _mm512_set1_epi32(sums));
                        }
                    }
                    let before = floats(sums);
                    for half in 0..2 {
                        let total = _mm512_add_epi32(low[half], _mm512_slli_epi32::<7>(high[half]));
                        let mut term =
                            _mm512_mul_ps(_mm512_cvtepi32_ps(total), _mm512_mul_ps(scale[half], y));
                        if PAIRS > 0 {
                            let least = _mm512_cvtepi32_ps(least[half]);
                            term = _mm512_sub_ps(
                                term,
                                _mm512_mul_ps(least, _mm512_mul_ps(least_scale[half], y)),
                            );
                        }
                        let sums = &mut sums[half * LANES..][..LANES];
                        // SAFETY: 16 floats.
                        unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_add_ps(before[half], term)) };
                    }
                }
            }
        }
        store_sums(product, band, sums);
    }
}

/// Levels less their offset, times the scales of their parts, which have `U` units: the low seven bits, and the others.
#[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
fn split<const U: usize>(
    w: IntegerRows<'_>,
    offset: u8,
    out: &mut [Lines<[MaybeUninit<Row<u32>>; UNITS]>; 2],
) {
    let zero = _mm512_setzero_si512();
    let offset = _mm512_set1_epi16(i16::from(offset));
    // Of four rows in 16 bytes, the scales of the first two, four times each, and of the others.
    let spread = [0x0100_u32, 0x0908].map(|first| {
        let first = first * 0x1_0001;
        let second = first + 0x0404_0404;
        let order = [first, first, second, second].map(u32::cast_signed);
        _mm512_broadcast_i32x4(_mm_setr_epi32(order[0], order[1], order[2], order[3]))
    });
    let seven = _mm512_set1_epi16(127);
    let [low, high] = out;
    let levels = w.levels.as_chunks::<PANEL>().0;
    for (part, levels) in levels.chunks_exact(U).enumerate() {
        let scales = integers(row(w.part_scales, part));
        let scales = scales.map(|scales| spread.map(|order| _mm512_shuffle_epi8(scales, order)));
        for (unit, levels) in levels.iter().enumerate() {
            for (half, levels) in integers(levels).into_iter().enumerate() {
                let levels = [_mm512_unpacklo_epi8(levels, zero), _mm512_unpackhi_epi8(levels, zero)];
                let [a, b] = [0, 1]
                    .map(|i: usize| _mm512_mullo_epi16(_mm512_sub_epi16(levels[i], offset), scales[half][i]));
                let lows = _mm512_packs_epi16(_mm512_and_si512(a, seven), _mm512_and_si512(b, seven));
                let highs = _mm512_packs_epi16(_mm512_srai_epi16::<7>(a), _mm512_srai_epi16::<7>(b));
                for (out, bytes) in [(&mut *low, lows), (&mut *high, highs)] {
                    let out = out.0[part * U + unit].as_mut_ptr().cast::<i32>();
                    // SAFETY: a half of the row.
                    unsafe { _mm512_storeu_epi32(out.add(half * LANES), bytes) };
                }
            }
        }
    }
}

/// Products of up to 32 activations `levels` `[4, count, 64 bytes]` with 256 columns of a panel.
fn multiply_block(tiles: &Tiles, levels: &[u32], weights: &[MaybeUninit<Row<u32>>], products: &mut Products) {
    let count = tiles.tokens;
    assert_eq!(levels.len(), BLOCK_UNITS * count, "activations");
    assert_eq!(weights.len(), BLOCK_UNITS, "weights");
    let (x, w, out) = (levels.as_ptr(), weights.as_ptr(), products.0.as_mut_ptr());
    // SAFETY: four times there are 16 units of each activation one after another, and 16 units of 32 rows of weights (which are
    // written before); tiles 0, 1 and 4 have as many rows as there are activations, at most 16, and 2, 3 and 5 the others; where there are
    // none, these are passed over.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "test {second}, {second}",
            "jz 2f",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{x} + {row}]",
            "tileloadd tmm6, [{w} + {row} * 2]",
            "tdpbssd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w} + {row} * 2 + 64]",
            "tdpbssd tmm1, tmm4, tmm7",
            "test {second}, {second}",
            "jz 3f",
            "tileloadd tmm5, [{x} + {row} + 1024]",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "3:",
            "add {x}, {step}",
            "add {w}, 2048",
            "dec {left}",
            "jnz 2b",
            "tilestored [{out} + {row} * 2], tmm0",
            "tilestored [{out} + {row} * 2 + 64], tmm1",
            "test {second}, {second}",
            "jz 4f",
            "tilestored [{out} + {row} * 2 + 2048], tmm2",
            "tilestored [{out} + {row} * 2 + 2112], tmm3",
            "4:",
            second = in(reg) usize::from(count > TILE),
            x = inout(reg) x => _,
            w = inout(reg) w => _,
            left = inout(reg) BLOCK_UNITS / ROW_UNITS => _,
            row = in(reg) ROW,
            step = in(reg) ROW * count,
            out = in(reg) out,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Row `index` of a panel.
#[inline]
fn row<T>(rows: &[T], index: usize) -> &Row<T> {
    rows[index * PANEL..].first_chunk().expect("a row of a panel")
}

/// A row as two vectors.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
fn integers<T: bytemuck::Pod>(row: &Row<T>) -> [__m512i; 2] {
    const { assert!(size_of::<T>() == 4) };
    let (first, second) = (row.as_ptr(), row[LANES..].as_ptr());
    // SAFETY: 16 integers each.
    unsafe { [_mm512_loadu_epi32(first.cast()), _mm512_loadu_epi32(second.cast())] }
}

/// As [`integers`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
fn floats(row: &Row<f32>) -> [__m512; 2] {
    // SAFETY: 16 floats each.
    unsafe { [_mm512_loadu_ps(row.as_ptr()), _mm512_loadu_ps(row[LANES..].as_ptr())] }
}
