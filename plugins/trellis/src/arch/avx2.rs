//! AVX2 and FMA.
//!
//! Invariant: an [`Avx2`] exists only where the CPU has both, so the functions here, which need them, may be called. Loads and
//! stores go through references to whole vectors' worth of numbers; nothing else is unsafe.
#![expect(unsafe_code, reason = "vector instructions, loads and stores")]

use super::{LANES, READ, Row, Step, portable};
use crate::code::{Code, UNIT};
use std::arch::x86_64::*;

/// Numbers of a vector.
const HALF: usize = LANES / 2;

/// Proof that the CPU has AVX2 and FMA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The proof, if it holds.
    pub(crate) fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Self(()))
    }

    /// See [`Kernels::step`](super::Kernels::step).
    pub(crate) fn step(self, of: Step<'_>) {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { step_of_bits!(of, step) }
    }

    /// See [`Kernels::hadamard`](super::Kernels::hadamard).
    pub(crate) fn hadamard(self, x: &mut [f32]) {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { hadamard(x) }
    }

    /// See [`Kernels::values`](super::Kernels::values).
    pub(crate) fn values(self, code: Code, rows: &[u8], cols: usize, out: &mut [f32]) {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { values(code, rows, cols, out) }
    }

    /// See [`Kernels::dot`](super::Kernels::dot).
    pub(crate) fn dot(self, code: Code, rows: &[u8], x: &[u8], out: &mut [f32]) {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { dot(code, rows, x, out) }
    }

    /// See [`Kernels::products`](super::Kernels::products).
    pub(crate) fn products(self, values: &[f32], x: &[&[u8]], out: &mut [f32]) {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { products(values, x, out) }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load(x: &[f32; HALF]) -> __m256 {
    // SAFETY: reads the 32 bytes of `x`; the instruction needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_bytes(x: &[u8; 4 * HALF]) -> __m256 {
    // SAFETY: reads the 32 bytes of `x`; the instruction needs no alignment.
    unsafe { _mm256_loadu_ps(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn load_integers(x: &[u32; HALF]) -> __m256i {
    // SAFETY: reads the 32 bytes of `x`; the instruction needs no alignment.
    unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn store(x: __m256, out: &mut [f32; HALF]) {
    // SAFETY: writes the 32 bytes of `out`; the instruction needs no alignment.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
}

#[target_feature(enable = "avx2,fma")]
fn hadamard(x: &mut [f32]) {
    portable::hadamard(x);
}

/// The operations of [`portable::step`], on vectors.
#[target_feature(enable = "avx2,fma")]
fn step<const BITS: u32, const FROM_BITS: u32>(step: Step<'_>) {
    let Step { table, from, x, to, dropped, .. } = step;
    let groups = to.len();
    let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    let spread = _mm256_srlv_epi32(lanes, _mm256_set1_epi32(FROM_BITS as i32));
    let low = _mm256_set1_epi32((1 << BITS) - 1);
    let x = _mm256_set1_ps(x);
    let blocks = table.chunks_exact(LANES << BITS).zip(to.as_chunks_mut::<LANES>().0);
    for (block, ((table, to), dropped)) in blocks.zip(dropped.as_chunks_mut::<LANES>().0).enumerate() {
        for half in 0..2 {
            let mut best = _mm256_set1_epi32(-1);
            for (choice, values) in (0..).zip(table.as_chunks::<HALF>().0.iter().skip(half).step_by(2)) {
                let first = (choice as usize * groups + block * LANES + half * HALF) >> FROM_BITS;
                let before = match from[first..].first_chunk() {
                    Some(costs) if FROM_BITS < 3 => _mm256_permutevar8x32_ps(load(costs), spread),
                    _ => _mm256_set1_ps(from[first]),
                };
                let away = _mm256_sub_ps(x, load(values));
                let cost = _mm256_add_ps(_mm256_mul_ps(away, away), before);
                let cost = _mm256_andnot_si256(low, _mm256_castps_si256(cost));
                best = _mm256_min_epu32(best, _mm256_or_si256(cost, _mm256_set1_epi32(choice)));
            }
            let (costs, choices) = (_mm256_andnot_si256(low, best), _mm256_and_si256(low, best));
            store(_mm256_castsi256_ps(costs), &mut to.as_chunks_mut().0[half]);
            let mut wide = [0u32; HALF];
            // SAFETY: writes the 32 bytes of `wide`; the instruction needs no alignment.
            unsafe { _mm256_storeu_si256(wide.as_mut_ptr().cast(), choices) }
            for (out, choice) in dropped[half * HALF..].iter_mut().zip(wide) {
                *out = choice as u8;
            }
        }
    }
}

/// How the values of 16 weights come out of their bytes.
#[derive(Clone, Copy)]
struct Reader {
    /// For each even and each odd weight, the three bytes that hold its window, in the lower and in the upper three of four.
    bytes: [__m256i; 2],
    /// How far the windows have to be moved, down and up, to the lower and the upper 16 bits of 32.
    shifts: [__m256i; 2],
    multiplier: __m256i,
    factors: [__m256i; 3],
    unit: usize,
}

impl Reader {
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn new(code: Code) -> Self {
        // Bytes of which the uppermost bit is set become zero.
        let lower = |byte: u8| u32::from_le_bytes([byte, byte + 1, byte + 2, 0x80]);
        let upper = |byte: u8| u32::from_le_bytes([0x80, byte, byte + 1, byte + 2]);
        let byte = |weight: usize| (code.start(weight) / 8) as u8;
        let bit = |weight: usize| (code.start(weight) % 8) as u32;
        let [even, odd] =
            [std::array::from_fn(|i| lower(byte(2 * i))), std::array::from_fn(|i| upper(byte(2 * i + 1)))];
        let [down, up] = [std::array::from_fn(|i| bit(2 * i)), std::array::from_fn(|i| 8 - bit(2 * i + 1))];
        Self {
            bytes: [load_integers(&even), load_integers(&odd)],
            shifts: [load_integers(&down), load_integers(&up)],
            multiplier: _mm256_set1_epi16(code.multiplier().cast_signed()),
            factors: code.factors().map(|factor| _mm256_set1_epi16(factor)),
            unit: code.unit_bytes(),
        }
    }

    /// Values of 16 weights, as [`Code::value`] has them; their windows start at byte `at`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn read(&self, bytes: &[u8; READ], at: usize) -> [__m256; 2] {
        let mut here = [0u8; 16];
        here.copy_from_slice(&bytes[at..at + 16]);
        // SAFETY: reads the 16 bytes of `here`; the instruction needs no alignment.
        let here = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(here.as_ptr().cast()) });
        let even = _mm256_srlv_epi32(_mm256_shuffle_epi8(here, self.bytes[0]), self.shifts[0]);
        let odd = _mm256_sllv_epi32(_mm256_shuffle_epi8(here, self.bytes[1]), self.shifts[1]);
        let t = _mm256_mullo_epi16(_mm256_blend_epi16::<0xaa>(even, odd), self.multiplier);
        let square = _mm256_mulhrs_epi16(t, t);
        let fourth = _mm256_mulhrs_epi16(square, square);
        let eighth = _mm256_mulhrs_epi16(fourth, fourth);
        let sixteenth = _mm256_mulhrs_epi16(eighth, eighth);
        let power = _mm256_mulhrs_epi16(sixteenth, sixteenth);
        let sum = _mm256_add_epi16(self.factors[0], _mm256_mulhrs_epi16(self.factors[1], fourth));
        let sum = _mm256_add_epi16(sum, _mm256_mulhrs_epi16(self.factors[2], power));
        let values = _mm256_mulhrs_epi16(sum, t);
        let (lower, upper) = (_mm256_castsi256_si128(values), _mm256_extracti128_si256::<1>(values));
        [lower, upper].map(|half| _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(half)))
    }
}

#[target_feature(enable = "avx2,fma")]
fn values(code: Code, rows: &[u8], cols: usize, out: &mut [f32]) {
    let reader = Reader::new(code);
    let len = code.row_bytes(cols);
    for (index, out) in out.chunks_exact_mut(cols).enumerate() {
        let row = Row::new(&rows[index * len..], len, reader.unit);
        for (unit, out) in out.as_chunks_mut::<HALF>().0.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let bytes = row.unit(unit);
            for (half, at) in [0, reader.unit / 2].into_iter().enumerate() {
                let [lower, upper] = reader.read(bytes, at);
                store(lower, &mut out[2 * half]);
                store(upper, &mut out[2 * half + 1]);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn dot(code: Code, rows: &[u8], x: &[u8], out: &mut [f32]) {
    let reader = Reader::new(code);
    let x = x.as_chunks::<{ 4 * HALF }>().0.as_chunks::<4>().0;
    let len = rows.len() / out.len();
    for (index, out) in out.iter_mut().enumerate() {
        let row = Row::new(&rows[index * len..], len, reader.unit);
        let mut sums = [_mm256_setzero_ps(); 4];
        for (unit, x) in x.iter().enumerate() {
            let bytes = row.unit(unit);
            let lower = reader.read(bytes, 0);
            sums[0] = _mm256_fmadd_ps(lower[0], load_bytes(&x[0]), sums[0]);
            sums[1] = _mm256_fmadd_ps(lower[1], load_bytes(&x[1]), sums[1]);
            let upper = reader.read(bytes, reader.unit / 2);
            sums[2] = _mm256_fmadd_ps(upper[0], load_bytes(&x[2]), sums[2]);
            sums[3] = _mm256_fmadd_ps(upper[1], load_bytes(&x[3]), sums[3]);
        }
        *out = total_of_four(sums);
    }
}

#[target_feature(enable = "avx2,fma")]
fn products(values: &[f32], x: &[&[u8]], out: &mut [f32]) {
    let count = out.len() / x.len();
    for (x, out) in x.iter().zip(out.chunks_exact_mut(count)) {
        let cols = values.len() / count;
        let (pairs, rest) = out.as_chunks_mut::<2>();
        let (many, few) = values.split_at(2 * cols * pairs.len());
        for (values, out) in many.chunks_exact(2 * cols).zip(pairs) {
            *out = rows(values, x);
        }
        for (values, out) in few.chunks_exact(cols).zip(rest) {
            *out = rows::<1>(values, x)[0];
        }
    }
}

/// Products of some rows, which share the loads of `x`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn rows<const ROWS: usize>(values: &[f32], x: &[u8]) -> [f32; ROWS] {
    let units = x.as_chunks::<{ 4 * HALF }>().0.as_chunks::<4>().0;
    let values: [&[[f32; UNIT]]; ROWS] =
        std::array::from_fn(|row| &values.as_chunks::<UNIT>().0[row * units.len()..][..units.len()]);
    let mut sums = [[_mm256_setzero_ps(); 4]; ROWS];
    for (unit, x) in units.iter().enumerate() {
        for (quarter, x) in x.iter().enumerate() {
            let x = load_bytes(x);
            for row in 0..ROWS {
                let values = &values[row][unit].as_chunks::<HALF>().0[quarter];
                sums[row][quarter] = _mm256_fmadd_ps(load(values), x, sums[row][quarter]);
            }
        }
    }
    let mut out = [0.0; ROWS];
    for row in 0..ROWS {
        out[row] = total_of_four(sums[row]);
    }
    out
}

/// The sum of 32 sums, added in halves.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn total_of_four(sums: [__m256; 4]) -> f32 {
    let (lower, upper) = (_mm256_add_ps(sums[0], sums[2]), _mm256_add_ps(sums[1], sums[3]));
    total(_mm256_add_ps(lower, upper))
}

/// The sum of eight sums, added in halves.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn total(sums: __m256) -> f32 {
    let sums = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps::<1>(sums));
    let sums = _mm_add_ps(sums, _mm_movehl_ps(sums, sums));
    _mm_cvtss_f32(_mm_add_ss(sums, _mm_movehdup_ps(sums)))
}
