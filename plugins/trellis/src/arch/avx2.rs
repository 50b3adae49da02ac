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
/// 16 bits in the upper half of 32 are so many times as much. A power of two: sums of products are exact multiples, too, and finite for
/// activations up to 1e28.
pub(super) const WIDENED: f32 = 65536.0;

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

/// Calls the function that is compiled for the bits of two weights.
macro_rules! of_pair {
    ($code:expr, $function:ident($($argument:expr),*)) => {
        match $code.pair() {
            4 => $function::<4>($($argument),*),
            5 => $function::<5>($($argument),*),
            6 => $function::<6>($($argument),*),
            7 => $function::<7>($($argument),*),
            _ => $function::<8>($($argument),*),
        }
    };
}

/// How the values of 16 weights come out of their bytes, `PAIR` bits for two weights.
///
/// A pair of windows fits into 32 bits. The pairs of a vector lie in such an order that the lower halves of its two lanes hold the first
/// eight weights.
#[derive(Clone, Copy)]
struct Reader<const PAIR: usize> {
    /// The four bytes that hold a pair.
    bytes: __m256i,
    /// How far they have to be moved down.
    shifts: __m256i,
    multiplier: __m256i,
    factors: [__m256i; 3],
}

impl<const PAIR: usize> Reader<PAIR> {
    /// Not inlined: what compilers make of known places of bytes is slower than to load them twice.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma")]
    fn new(code: Code) -> Self {
        let (mut bytes, mut shifts) = ([0; HALF], [0; HALF]);
        for (lane, pair) in [0, 1, 4, 5, 2, 3, 6, 7].into_iter().enumerate() {
            let start = code.start(2 * pair);
            let first = (start / 8) as u8;
            bytes[lane] = u32::from_le_bytes([first, first + 1, first + 2, first + 3]);
            shifts[lane] = (start % 8) as u32;
        }
        Self {
            bytes: load_integers(&bytes),
            shifts: load_integers(&shifts),
            multiplier: _mm256_set1_epi16(code.multiplier().cast_signed()),
            factors: code.factors().map(|factor| _mm256_set1_epi16(factor)),
        }
    }

    /// The windows that start there, times the multiplier.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn phases(&self, bytes: &[u8]) -> __m256i {
        let here = &bytes[..16];
        // SAFETY: reads the 16 bytes of `here`; the instruction needs no alignment.
        let here = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(here.as_ptr().cast()) });
        let even = _mm256_srlv_epi32(_mm256_shuffle_epi8(here, self.bytes), self.shifts);
        let odd = match PAIR / 2 {
            2 => _mm256_slli_epi32::<14>(even),
            3 => _mm256_slli_epi32::<13>(even),
            _ => _mm256_slli_epi32::<12>(even),
        };
        _mm256_mullo_epi16(_mm256_blend_epi16::<0xaa>(even, odd), self.multiplier)
    }

    /// Values of the 32 weights of each unit, as [`Code::value`] has them, 16 after 16. Several units take hardly longer than one: each
    /// step of the arithmetic waits for the one before.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn read<const UNITS: usize>(&self, units: [&[u8; READ]; UNITS]) -> [[__m256i; 2]; UNITS] {
        let mut t = [[_mm256_setzero_si256(); 2]; UNITS];
        for (unit, t) in t.iter_mut().enumerate() {
            for (half, t) in t.iter_mut().enumerate() {
                *t = self.phases(&units[unit][half * PAIR..]);
            }
        }
        let mut power = t;
        square(power.as_flattened_mut());
        square(power.as_flattened_mut());
        let mut values = power;
        for value in values.as_flattened_mut() {
            *value = _mm256_add_epi16(self.factors[0], _mm256_mulhrs_epi16(self.factors[1], *value));
        }
        for _ in 0..3 {
            square(power.as_flattened_mut());
        }
        let others = t.as_flattened().iter().zip(power.as_flattened());
        for (value, (t, power)) in values.as_flattened_mut().iter_mut().zip(others) {
            let sum = _mm256_add_epi16(*value, _mm256_mulhrs_epi16(self.factors[2], *power));
            *value = _mm256_mulhrs_epi16(sum, *t);
        }
        values
    }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn square(numbers: &mut [__m256i]) {
    for x in numbers {
        *x = _mm256_mulhrs_epi16(*x, *x);
    }
}

/// 16 values, times [`WIDENED`].
#[inline]
#[target_feature(enable = "avx2,fma")]
fn widened(values: __m256i) -> [__m256i; 2] {
    let zero = _mm256_setzero_si256();
    [_mm256_unpacklo_epi16(zero, values), _mm256_unpackhi_epi16(zero, values)]
}

#[target_feature(enable = "avx2,fma")]
fn values(code: Code, rows: &[u8], cols: usize, out: &mut [f32]) {
    of_pair!(code, values_of(code, rows, cols, out));
}

#[target_feature(enable = "avx2,fma")]
fn values_of<const PAIR: usize>(code: Code, rows: &[u8], cols: usize, out: &mut [f32]) {
    let reader = Reader::<PAIR>::new(code);
    let len = code.row_bytes(cols);
    for (index, out) in out.chunks_exact_mut(cols).enumerate() {
        let row = Row::new(&rows[index * len..], len, 2 * PAIR);
        for (unit, out) in out.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let [values] = reader.read([row.unit(unit)]);
            for (values, out) in values.into_iter().zip(out) {
                for (values, out) in widened(values).into_iter().zip(out.as_chunks_mut().0) {
                    store(_mm256_cvtepi32_ps(_mm256_srai_epi32::<16>(values)), out);
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma")]
fn dot(code: Code, rows: &[u8], x: &[u8], out: &mut [f32]) {
    of_pair!(code, dot_of(code, rows, x, out));
}

#[target_feature(enable = "avx2,fma")]
fn dot_of<const PAIR: usize>(code: Code, rows: &[u8], x: &[u8], out: &mut [f32]) {
    let reader = Reader::<PAIR>::new(code);
    let x = x.as_chunks::<{ 4 * HALF }>().0.as_chunks::<4>().0;
    let len = rows.len() / out.len();
    for (index, out) in out.iter_mut().enumerate() {
        let row = Row::new(&rows[index * len..], len, 2 * PAIR);
        let mut sums = [_mm256_setzero_ps(); 4];
        let pairs = row.pairs();
        let (many, few) = x.split_at(2 * pairs.len());
        for (bytes, x) in pairs.zip(many.as_chunks::<2>().0) {
            let [first, second] = reader.read([at::<0>(bytes), at::<PAIR>(bytes)]);
            add_products(&mut sums, first, &x[0]);
            add_products(&mut sums, second, &x[1]);
        }
        let (pairs, last) = few.as_chunks::<2>();
        for (pair, x) in pairs.iter().enumerate() {
            let unit = many.len() + 2 * pair;
            let [first, second] = reader.read([row.unit(unit), row.unit(unit + 1)]);
            add_products(&mut sums, first, &x[0]);
            add_products(&mut sums, second, &x[1]);
        }
        for x in last {
            let [values] = reader.read([row.unit(many.len() + 2 * pairs.len())]);
            add_products(&mut sums, values, x);
        }
        *out = total_of_four(sums) / WIDENED;
    }
}

/// The bytes of a unit that starts at byte 2 * `HALF` of two.
#[inline]
fn at<const HALF: usize>(pair: &[u8; 2 * READ]) -> &[u8; READ] {
    pair[2 * HALF..].first_chunk().unwrap_or(&[0; READ])
}

/// Adds the products of a unit, times [`WIDENED`].
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_products(sums: &mut [__m256; 4], values: [__m256i; 2], x: &[[u8; 4 * HALF]; 4]) {
    for (half, values) in values.into_iter().enumerate() {
        for (quarter, values) in (2 * half..).zip(widened(values)) {
            sums[quarter] =
                _mm256_fmadd_ps(_mm256_cvtepi32_ps(values), load_bytes(&x[quarter]), sums[quarter]);
        }
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
