//! Tiles of the matrix multiply: two vectors of outputs for each of up to 12 activations.
//!
//! A unit of both vectors is loaded once and multiplied with the broadcast unit of each activation, so that there are two loads and
//! 12 broadcasts to 24 multiply-adds.

use super::{Avx512, first};
use crate::arch::amx::Amx;
use crate::arch::generic;
use crate::packed::{BLOCK, Groups, Line, PANEL, PanelProduct, Tile, Units};
use kbit_types::{STREAM_AHEAD, streams};
use std::arch::x86_64::*;
use std::mem::transmute;

/// Lanes of a vector.
const LANES: usize = 16;
/// Units of a panel that are asked for ahead: panels come from the second-level cache.
const AHEAD: usize = 16;

impl Avx512 {
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
        if self.bf16 {
            // SAFETY: the CPU has the features.
            unsafe { tiles_bf16(&mut tile) }
        } else {
            self.avx2.tile_bf16(tile);
        }
    }

    /// See [`Kernels::bf16_groups`](crate::Kernels::bf16_groups).
    pub(crate) fn bf16_groups(self) -> Groups {
        self.amx.map_or(Groups::FLOATS, |_| Amx::BF16_GROUPS)
    }

    /// See [`Kernels::multiply_bf16`](crate::Kernels::multiply_bf16).
    pub(crate) fn multiply_bf16(self, product: &mut PanelProduct<'_, '_>) {
        self.amx.expect("who asks for groups has AMX").multiply_bf16(product);
    }

    /// See [`Kernels::line`](crate::Kernels::line).
    pub(crate) fn line(self, line: Line, weights: Units<'_>, x: &[u32], out: &mut [f32]) -> bool {
        if let (Line::Bf16, Some(amx)) = (line, self.amx) {
            amx.line_bf16(weights, x, out);
            return true;
        }
        if weights.rows() < LANES {
            return false;
        }
        // SAFETY: the CPU has the features.
        unsafe {
            match line {
                Line::F32 => line_f32(weights, x, out),
                Line::F16 => weights.bytes().is_multiple_of(4) && line_f16(weights, x, out),
                Line::Bf16 if self.bf16 => line_bf16(weights, x, out),
                Line::Bf16 => self.avx2.line(line, weights, x, out),
            }
        }
    }

    /// As [`Avx512::busy_bf16`], of 8-bit integers.
    pub(crate) fn busy_int8(self, rounds: u64, factor: f32) -> (u64, f32) {
        if let Some(amx) = self.amx {
            amx.busy_int8(rounds, factor)
        } else if self.vnni {
            // SAFETY: the CPU has the features.
            (rounds * 24 * 4 * LANES as u64, unsafe { busy_int8(rounds, factor) })
        } else {
            self.avx2.busy(rounds, factor)
        }
    }

    /// Multiply-adds of pairs of bf16 at full speed; returns how many, and a number that depends on all of them. Without such
    /// instructions, as with AVX2.
    pub(crate) fn busy_bf16(self, rounds: u64, factor: f32) -> (u64, f32) {
        if let Some(amx) = self.amx {
            amx.busy_bf16(rounds, factor)
        } else if self.bf16 {
            // SAFETY: the CPU has the features.
            (rounds * 24 * 2 * LANES as u64, unsafe { busy_bf16(rounds, factor) })
        } else {
            self.avx2.busy(rounds, factor)
        }
    }
}

/// Columns of four units of 16 rows, of which rows 0, 4, 8 and 12 begin at `firsts`: quarters of vectors are loaded, and transposed.
///
/// # Safety
/// 16 bytes from `at` on may be read from each row, and the CPU has the features.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
unsafe fn columns(firsts: [*const u8; 4], stride: usize, at: usize) -> [__m512i; 4] {
    let lines: [__m512i; 4] = std::array::from_fn(|i| {
        // SAFETY: as this function's.
        let quarter =
            |four: usize| unsafe { _mm_loadu_si128(firsts[four].wrapping_add(at + i * stride).cast()) };
        let line = _mm512_castsi128_si512(quarter(0));
        let line = _mm512_inserti32x4::<1>(line, quarter(1));
        let line = _mm512_inserti32x4::<2>(line, quarter(2));
        _mm512_inserti32x4::<3>(line, quarter(3))
    });
    let low = [_mm512_unpacklo_epi32(lines[0], lines[1]), _mm512_unpacklo_epi32(lines[2], lines[3])];
    let high = [_mm512_unpackhi_epi32(lines[0], lines[1]), _mm512_unpackhi_epi32(lines[2], lines[3])];
    [
        _mm512_unpacklo_epi64(low[0], low[1]),
        _mm512_unpackhi_epi64(low[0], low[1]),
        _mm512_unpacklo_epi64(high[0], high[1]),
        _mm512_unpackhi_epi64(high[0], high[1]),
    ]
}

/// 16 rows at a time; of a last group with fewer only whole units one by one.
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
fn interleave(from: Units<'_>, width: usize, to: &mut [u32]) {
    let (rows, units, stride) = (from.rows(), from.len(), from.stride());
    assert!(rows <= width && to.len() >= units * width, "size of the packed operand");
    let whole = from.bytes() / 16 * 4;
    let groups = rows / LANES * LANES;
    for group in (0..groups).step_by(LANES) {
        let firsts = [0, 4, 8, 12].map(|row| from.data()[(group + row) * stride..].as_ptr());
        for unit in (0..whole).step_by(4) {
            // The next 16 rows, of which a quarter at a time, since a line of memory is four times as long as what is read here.
            let next = (LANES + unit / 4 % 4) * stride + 4 * unit;
            for first in firsts {
                _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(next).cast());
            }
            // SAFETY: 16 bytes from unit `unit` on lie inside each row.
            let columns = unsafe { columns(firsts, stride, 4 * unit) };
            for (column, words) in columns.into_iter().enumerate() {
                let to = &mut to[(unit + column) * width + group..][..LANES];
                // SAFETY: 16 lanes.
                unsafe { _mm512_storeu_epi32(to.as_mut_ptr().cast(), words) };
            }
        }
        generic::interleave(from.window(group, LANES, 0, units), width, &mut to[group..], whole);
    }
    if rows > groups {
        few(from.window(groups, rows - groups, 0, units), width, &mut to[groups..], whole);
    }
}

/// As [`interleave`], of fewer than 16 rows: lanes without a row repeat the last one, and are not written.
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
fn few(from: Units<'_>, width: usize, to: &mut [u32], whole: usize) {
    let rows = from.rows();
    let mask = first(rows);
    let starts: [*const u8; LANES] =
        std::array::from_fn(|lane| from.data()[lane.min(rows - 1) * from.stride()..].as_ptr());
    for unit in (0..whole).step_by(4) {
        // SAFETY: 16 bytes from unit `unit` on lie inside each row.
        let quarter = |lane: usize| unsafe { _mm_loadu_si128(starts[lane].add(4 * unit).cast()) };
        let lines: [__m512i; 4] = std::array::from_fn(|i| {
            let line = _mm512_castsi128_si512(quarter(i));
            let line = _mm512_inserti32x4::<1>(line, quarter(4 + i));
            let line = _mm512_inserti32x4::<2>(line, quarter(8 + i));
            _mm512_inserti32x4::<3>(line, quarter(12 + i))
        });
        let low = [_mm512_unpacklo_epi32(lines[0], lines[1]), _mm512_unpacklo_epi32(lines[2], lines[3])];
        let high = [_mm512_unpackhi_epi32(lines[0], lines[1]), _mm512_unpackhi_epi32(lines[2], lines[3])];
        let columns = [
            _mm512_unpacklo_epi64(low[0], low[1]),
            _mm512_unpackhi_epi64(low[0], low[1]),
            _mm512_unpacklo_epi64(high[0], high[1]),
            _mm512_unpackhi_epi64(high[0], high[1]),
        ];
        for (column, words) in columns.into_iter().enumerate() {
            let to = &mut to[(unit + column) * width..][..rows];
            // SAFETY: the lanes of the mask.
            unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask, words) };
        }
    }
    generic::interleave(from, width, to, whole);
}

/// Products of rows with one activation: as tiles give them, but each unit is multiplied where it was transposed. `$add` is the sum
/// after one unit, which meets `$n` units of the activation.
macro_rules! lines {
    ($line:ident, $n:literal, $features:literal, |$sum:ident, $w:ident, $x:ident| $add:expr) => {
        #[target_feature(enable = $features)]
        fn $line(from: Units<'_>, x: &[u32], out: &mut [f32]) -> bool {
            let units = from.len();
            let x = x.as_chunks::<$n>().0;
            assert!(x.len() == units && out.len() == from.rows() && units > 0, "size of the operands");
            let whole = from.bytes() / 16 * 4;
            for (first, apart) in streams(from.rows(), LANES) {
                let from = from.spread(first, apart, LANES);
                let stride = from.stride();
                let firsts = [0, 4, 8, 12].map(|row| from.data()[row * stride..].as_ptr());
                let mut total = _mm512_setzero_ps();
                for block in (0..units).step_by(BLOCK / $n) {
                    let end = (block + BLOCK / $n).min(units);
                    let mut sum = _mm512_setzero_ps();
                    let step = |sum: __m512, w: __m512i, unit: usize| {
                        let ($sum, $w) = (sum, w);
                        let $x = x[unit].map(|x| _mm512_set1_epi32(x.cast_signed()));
                        $add
                    };
                    for unit in (block..end.min(whole)).step_by(4) {
                        // A quarter of the rows at a time, since a line of memory is four times as long as what is read here.
                        let ahead = unit / 4 % 4 * stride + 4 * unit + STREAM_AHEAD;
                        for first in firsts {
                            _mm_prefetch::<_MM_HINT_T1>(first.wrapping_add(ahead).cast());
                        }
                        // SAFETY: 16 bytes from unit `unit` on lie inside each row.
                        let columns = unsafe { columns(firsts, stride, 4 * unit) };
                        for (column, w) in columns.into_iter().enumerate() {
                            sum = step(sum, w, unit + column);
                        }
                    }
                    for unit in end.min(whole).max(block)..end {
                        let words: [u32; LANES] = std::array::from_fn(|lane| from.unit(lane, unit));
                        // SAFETY: 16 words.
                        let w = unsafe { _mm512_loadu_epi32(words.as_ptr().cast()) };
                        sum = step(sum, w, unit);
                    }
                    total = if block > 0 { _mm512_add_ps(total, sum) } else { sum };
                }
                let mut sums = [0_f32; LANES];
                // SAFETY: 16 floats.
                unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), total) };
                for (lane, sum) in sums.iter().enumerate() {
                    out[first + lane * apart] = *sum;
                }
            }
            true
        }
    };
}

lines! {
    line_f32, 1, "avx512f,avx512vl,avx512dq,avx2,fma",
    |sum, w, x| _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x[0]), sum)
}
lines! {
    line_f16, 2, "avx512f,avx512vl,avx512dq,avx2,fma",
    |sum, w, x| {
        let half = |w| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(w));
        let sum = _mm512_fmadd_ps(half(w), _mm512_castsi512_ps(x[0]), sum);
        _mm512_fmadd_ps(half(_mm512_srli_epi32::<16>(w)), _mm512_castsi512_ps(x[1]), sum)
    }
}
lines! {
    line_bf16, 1, "avx512bf16,avx512f,avx512vl,avx512dq,avx2,fma",
    // SAFETY: vectors of integers and of bf16 are the same bits.
    |sum, w, x| unsafe {
        _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(w), transmute::<__m512i, __m512bh>(x[0]))
    }
}

/// A function that computes a tile, and the one for a fixed number of activations that it calls: `$add` is the sum after one unit.
macro_rules! tiles {
    ($tiles:ident, $tile:ident, $features:literal, |$sum:ident, $w:ident, $x:ident| $add:expr) => {
        #[target_feature(enable = $features)]
        fn $tiles(tile: &mut Tile<'_, '_>) {
            macro_rules! of {
                ($count:literal) => {
                    // SAFETY: the tile holds as many activations, and has checked its operands.
                    unsafe { $tile::<$count>(tile) }
                };
            }
            match tile.out().rows() {
                1 => of!(1),
                2 => of!(2),
                3 => of!(3),
                4 => of!(4),
                5 => of!(5),
                6 => of!(6),
                7 => of!(7),
                8 => of!(8),
                9 => of!(9),
                10 => of!(10),
                11 => of!(11),
                _ => of!(12),
            }
        }

        /// # Safety
        /// The tile has `M` activations.
        #[inline(never)]
        #[target_feature(enable = $features)]
        unsafe fn $tile<const M: usize>(tile: &mut Tile<'_, '_>) {
            let mut sums = [[_mm512_setzero_ps(); 2]; M];
            let (x, w) = (tile.x().as_ptr().cast::<i32>(), tile.w().as_ptr().cast::<i32>());
            for unit in 0..tile.units() {
                // SAFETY: `w` has PANEL units, and `x` has M, for each of the tile's.
                unsafe {
                    let w = w.add(unit * PANEL);
                    for line in [0, LANES] {
                        _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(AHEAD * PANEL + line).cast());
                    }
                    let w = [_mm512_loadu_epi32(w), _mm512_loadu_epi32(w.add(LANES))];
                    for (m, sums) in sums.iter_mut().enumerate() {
                        let $x = _mm512_set1_epi32(*x.add(unit * M + m));
                        for (sum, $w) in sums.iter_mut().zip(w) {
                            let $sum = *sum;
                            *sum = $add;
                        }
                    }
                }
            }
            store(&sums, tile);
        }
    };
}

tiles! {
    tiles_f32, tile_f32, "avx512f,avx512vl,avx512dq,avx2,fma",
    |sum, w, x| _mm512_fmadd_ps(_mm512_castsi512_ps(w), _mm512_castsi512_ps(x), sum)
}
tiles! {
    tiles_bf16, tile_bf16, "avx512bf16,avx512f,avx512vl,avx512dq,avx2,fma",
    |sum, w, x| _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(w), transmute::<__m512i, __m512bh>(x))
}

/// Writes or adds the sums of a tile.
#[inline]
#[target_feature(enable = "avx512f,avx512vl,avx512dq,avx2,fma")]
fn store<const M: usize>(sums: &[[__m512; 2]; M], tile: &mut Tile<'_, '_>) {
    let (rows, add) = (tile.out().cols(), tile.add());
    let masks = [first(rows), first(rows.saturating_sub(LANES))];
    let (out, stride) = tile.out().parts();
    for (m, sums) in sums.iter().enumerate() {
        for (half, (sum, mask)) in sums.iter().zip(masks).enumerate() {
            let out = out.wrapping_add(m * stride + half * LANES);
            // SAFETY: the lanes of the mask are the tile's columns of output row `m`.
            unsafe {
                let sum = if add { _mm512_add_ps(_mm512_maskz_loadu_ps(mask, out), *sum) } else { *sum };
                if mask == !0 {
                    _mm512_storeu_ps(out, sum);
                } else {
                    _mm512_mask_storeu_ps(out, mask, sum);
                }
            }
        }
    }
}

/// 24 independent chains of multiply-adds.
#[target_feature(enable = "avx512bf16,avx512f,avx512vl,avx512dq,avx2,fma")]
fn busy_bf16(rounds: u64, factor: f32) -> f32 {
    let pair = i32::from((factor.to_bits() >> 16) as u16) * 0x1_0001;
    // SAFETY: vectors of integers and of bf16 are the same bits.
    let factor = unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(pair)) };
    let mut chains = [_mm512_set1_ps(1.0); 24];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = _mm512_dpbf16_ps(*chain, factor, factor);
        }
    }
    chains.into_iter().map(|chain| _mm512_reduce_add_ps(chain)).sum()
}

/// As [`busy_bf16`].
#[target_feature(enable = "avx512vnni,avx512f,avx512vl,avx512dq,avx2,fma")]
fn busy_int8(rounds: u64, factor: f32) -> f32 {
    let factor = _mm512_set1_epi32((factor * 4.0) as i32 * 0x0101_0101);
    let mut chains = [_mm512_set1_epi32(1); 24];
    for _ in 0..rounds {
        for chain in &mut chains {
            *chain = _mm512_dpbusd_epi32(*chain, factor, factor);
        }
    }
    chains.into_iter().map(|chain| _mm512_reduce_add_epi32(chain) as f32).sum()
}
