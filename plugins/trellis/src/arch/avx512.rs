//! AVX-512 F, BW, DQ and VL; products also with VBMI.
//!
//! Invariant: an [`Avx512`] exists only where the CPU has the first four, and AVX2 and FMA; a [`Vbmi`] only where it has all. Loads
//! and stores go through references to whole vectors' worth of numbers; nothing else is unsafe.
#![expect(unsafe_code, reason = "vector instructions, loads and stores")]

use super::avx2::{Avx2, WIDENED};
use super::{LANES, READ, Row, Step, portable};
use crate::code::{Code, UNIT};
use std::arch::x86_64::*;

/// Rows that are multiplied side by side.
const ABREAST: usize = 4;
/// Bytes that are asked for ahead.
const AHEAD: usize = 2048;

/// Proof that the CPU has the features.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512 {
    avx2: Avx2,
    vbmi: Option<Vbmi>,
}

/// Proof that the CPU has VBMI, too.
#[derive(Clone, Copy, Debug)]
struct Vbmi(());

impl Avx512 {
    /// The proof, if it holds.
    pub(crate) fn new() -> Option<Self> {
        let avx2 = Avx2::new()?;
        let vbmi = is_x86_feature_detected!("avx512vbmi").then_some(Vbmi(()));
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl"))
        .then_some(Self { avx2, vbmi })
    }

    /// Name of the set.
    pub(crate) const fn name(self) -> &'static str {
        if self.vbmi.is_some() { "avx512-vbmi" } else { "avx512" }
    }

    /// See [`Kernels::step`](super::Kernels::step).
    pub(crate) fn step(self, of: Step<'_>) {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { step_of_bits!(of, step) }
    }

    /// See [`Kernels::hadamard`](super::Kernels::hadamard). The compiler's longer vectors are no faster there.
    pub(crate) fn hadamard(self, x: &mut [f32]) {
        self.avx2.hadamard(x);
    }

    /// See [`Kernels::values`](super::Kernels::values).
    pub(crate) fn values(self, code: Code, rows: &[u8], cols: usize, out: &mut [f32]) {
        match self.vbmi {
            // SAFETY: the proof exists only where the CPU has VBMI.
            Some(Vbmi(())) => unsafe { values(code, rows, cols, out) },
            None => self.avx2.values(code, rows, cols, out),
        }
    }

    /// See [`Kernels::dot`](super::Kernels::dot).
    pub(crate) fn dot(self, code: Code, rows: &[u8], x: &[u8], out: &mut [f32]) {
        match self.vbmi {
            // SAFETY: the proof exists only where the CPU has VBMI.
            Some(Vbmi(())) => unsafe { dot(code, rows, x, out) },
            None => self.avx2.dot(code, rows, x, out),
        }
    }

    /// See [`Kernels::products`](super::Kernels::products).
    pub(crate) fn products(self, values: &[f32], x: &[&[u8]], out: &mut [f32]) {
        // SAFETY: `self` exists only where the CPU has the features.
        unsafe { products(values, x, out) }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn load(x: &[f32; LANES]) -> __m512 {
    // SAFETY: reads the 64 bytes of `x`; the instruction needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn load_bytes(x: &[u8; 4 * LANES]) -> __m512 {
    // SAFETY: reads the 64 bytes of `x`; the instruction needs no alignment.
    unsafe { _mm512_loadu_ps(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn load_integers(x: &[u8; 4 * LANES]) -> __m512i {
    // SAFETY: reads the 64 bytes of `x`; the instruction needs no alignment.
    unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn store(x: __m512, out: &mut [f32; LANES]) {
    // SAFETY: writes the 64 bytes of `out`; the instruction needs no alignment.
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) }
}

/// The operations of [`portable::step`], on vectors.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn step<const BITS: u32, const FROM_BITS: u32>(step: Step<'_>) {
    let Step { table, from, x, to, dropped, .. } = step;
    let groups = to.len();
    let lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let spread = _mm512_srlv_epi32(lanes, _mm512_set1_epi32(FROM_BITS as i32));
    let low = _mm512_set1_epi32((1 << BITS) - 1);
    let x = _mm512_set1_ps(x);
    let blocks = table.chunks_exact(LANES << BITS).zip(to.as_chunks_mut::<LANES>().0);
    for (block, ((table, to), dropped)) in blocks.zip(dropped.as_chunks_mut::<LANES>().0).enumerate() {
        let mut best = _mm512_set1_epi32(-1);
        for (choice, values) in (0..).zip(table.as_chunks::<LANES>().0) {
            let first = (choice as usize * groups + block * LANES) >> FROM_BITS;
            let before = match from[first..].first_chunk() {
                Some(costs) if FROM_BITS < 4 => _mm512_permutexvar_ps(spread, load(costs)),
                _ => _mm512_set1_ps(from[first]),
            };
            let away = _mm512_sub_ps(x, load(values));
            let cost = _mm512_add_ps(_mm512_mul_ps(away, away), before);
            // The choice where `low` has bits, else the cost.
            let choice = _mm512_set1_epi32(choice);
            let key = _mm512_ternarylogic_epi32::<0xca>(low, choice, _mm512_castps_si512(cost));
            best = _mm512_min_epu32(best, key);
        }
        store(_mm512_castsi512_ps(_mm512_andnot_si512(low, best)), to);
        let choices = _mm512_cvtepi32_epi8(_mm512_and_si512(low, best));
        // SAFETY: writes the 16 bytes of `dropped`; the instruction needs no alignment.
        unsafe { _mm_storeu_si128(dropped.as_mut_ptr().cast(), choices) }
    }
}

/// How the values of a unit come out of its bytes.
///
/// The fours of a vector lie in such an order that the lower halves of its four lanes hold the first 16 weights.
#[derive(Clone, Copy)]
struct Reader {
    /// The eight bytes that hold the windows of four weights, for each four: of a unit and what follows.
    bytes: __m512i,
    /// The same of the last unit of a row, where it is the end of 16 bytes, which the first of the row follow.
    last_bytes: __m512i,
    /// For each byte of 32 numbers of 16 bits, which bits of those 64 bits it is.
    bits: __m512i,
    multiplier: __m512i,
    factors: [__m512i; 3],
    unit: usize,
}

impl Reader {
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
    fn new(code: Code) -> Self {
        let (mut bytes, mut bits) = ([0u8; 64], [0u8; 64]);
        for (lane, four) in [0, 4, 1, 5, 2, 6, 3, 7].into_iter().enumerate() {
            let first = code.start(4 * four) / 8;
            for byte in 0..8 {
                bytes[8 * lane + byte] = (first + byte) as u8;
            }
            for weight in 0..4 {
                let start = (code.start(4 * four + weight) - 8 * first) as u8;
                let number = 4 * lane + weight;
                (bits[2 * number], bits[2 * number + 1]) = (start, start + 8);
            }
        }
        let bytes = load_integers(&bytes);
        let before = _mm512_set1_epi8((16 - code.unit_bytes()) as i8);
        Self {
            bytes,
            last_bytes: _mm512_add_epi8(bytes, before),
            bits: load_integers(&bits),
            multiplier: _mm512_set1_epi16(code.multiplier().cast_signed()),
            factors: code.factors().map(|factor| _mm512_set1_epi16(factor)),
            unit: code.unit_bytes(),
        }
    }

    /// Values of each unit, as [`Code::value`] has them. Several units take hardly longer than one: each step of the arithmetic waits for
    /// the one before.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    fn read<const UNITS: usize>(&self, units: [&[u8; READ]; UNITS]) -> [__m512i; UNITS] {
        let mut bytes = [_mm256_setzero_si256(); UNITS];
        for (bytes, unit) in bytes.iter_mut().zip(units) {
            // SAFETY: reads the 32 bytes of `unit`; the instruction needs no alignment.
            *bytes = unsafe { _mm256_loadu_si256(unit.as_ptr().cast()) };
        }
        self.values(bytes, self.bytes)
    }

    /// Values of the last unit of each row.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    fn read_last<const ROWS: usize>(&self, ends: [[&[u8; 16]; 2]; ROWS]) -> [__m512i; ROWS] {
        let mut bytes = [_mm256_setzero_si256(); ROWS];
        for (bytes, [last, first]) in bytes.iter_mut().zip(ends) {
            // SAFETY: reads the 16 bytes of each; the instruction needs no alignment.
            *bytes = unsafe { _mm256_loadu2_m128i(first.as_ptr().cast(), last.as_ptr().cast()) };
        }
        self.values(bytes, self.last_bytes)
    }

    /// Values of units, whose bytes are in the places `order` of `bytes`.
    #[inline]
    #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
    fn values<const UNITS: usize>(&self, bytes: [__m256i; UNITS], order: __m512i) -> [__m512i; UNITS] {
        let mut t = [_mm512_setzero_si512(); UNITS];
        for (t, bytes) in t.iter_mut().zip(bytes) {
            let fours = _mm512_permutexvar_epi8(order, _mm512_castsi256_si512(bytes));
            let windows = _mm512_multishift_epi64_epi8(self.bits, fours);
            *t = _mm512_mullo_epi16(windows, self.multiplier);
        }
        let mut power = t;
        for _ in 0..2 {
            square(&mut power);
        }
        let mut values = power;
        for value in &mut values {
            *value = _mm512_add_epi16(self.factors[0], _mm512_mulhrs_epi16(self.factors[1], *value));
        }
        for _ in 0..3 {
            square(&mut power);
        }
        for (value, (t, power)) in values.iter_mut().zip(t.iter().zip(&power)) {
            let sum = _mm512_add_epi16(*value, _mm512_mulhrs_epi16(self.factors[2], *power));
            *value = _mm512_mulhrs_epi16(sum, *t);
        }
        values
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn square(numbers: &mut [__m512i]) {
    for x in numbers {
        *x = _mm512_mulhrs_epi16(*x, *x);
    }
}

/// 32 values, times [`WIDENED`].
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn widened(values: __m512i) -> [__m512i; 2] {
    let zero = _mm512_setzero_si512();
    [_mm512_unpacklo_epi16(zero, values), _mm512_unpackhi_epi16(zero, values)]
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn values(code: Code, rows: &[u8], cols: usize, out: &mut [f32]) {
    let reader = Reader::new(code);
    let len = code.row_bytes(cols);
    for (index, out) in out.chunks_exact_mut(cols).enumerate() {
        let row = Row::new(&rows[index * len..], len, reader.unit);
        for (unit, out) in out.as_chunks_mut::<LANES>().0.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let [values] = reader.read([row.unit(unit)]);
            for (values, out) in widened(values).into_iter().zip(out) {
                store(_mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(values)), out);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn dot(code: Code, rows: &[u8], x: &[u8], out: &mut [f32]) {
    let reader = Reader::new(code);
    let x = x.as_chunks::<{ 4 * LANES }>().0.as_chunks::<2>().0;
    let len = rows.len() / out.len();
    // Rows behind which enough can be read.
    let free = if len < 16 { 0 } else { rows.len().saturating_sub(READ) / len / ABREAST * ABREAST };
    let (together, others) = out.split_at_mut(free);
    for (index, out) in together.as_chunks_mut().0.iter_mut().enumerate() {
        *out = dot_of_rows(&reader, &rows[index * ABREAST * len..], len, x);
    }
    for (index, out) in others.iter_mut().enumerate() {
        let row = Row::new(&rows[(free + index) * len..], len, reader.unit);
        let mut sums = [_mm512_setzero_ps(); 2];
        for (unit, x) in x.iter().enumerate() {
            let [values] = reader.read([row.unit(unit)]);
            add_products(&mut sums, values, x);
        }
        *out = total(sums) / WIDENED;
    }
}

/// Products of rows of `len` bytes, 16 or more, at the start of `rows`, behind which as much can be read as for a unit.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
fn dot_of_rows(reader: &Reader, rows: &[u8], len: usize, x: &[[[u8; 4 * LANES]; 2]]) -> [f32; ABREAST] {
    let mut sums = [[_mm512_setzero_ps(); 2]; ABREAST];
    let Some((last, before)) = x.split_last() else { return [0.0; ABREAST] };
    for (unit, x) in before.iter().enumerate() {
        let mut units = [&[0; READ]; ABREAST];
        for (row, bytes) in units.iter_mut().enumerate() {
            *bytes = rows[row * len + unit * reader.unit..].first_chunk().expect("bytes of a unit");
            _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(AHEAD).cast());
        }
        for (sums, values) in sums.iter_mut().zip(reader.read(units)) {
            add_products(sums, values, x);
        }
    }
    let mut ends = [[&[0; 16]; 2]; ABREAST];
    for (row, ends) in ends.iter_mut().enumerate() {
        let row = &rows[row * len..][..len];
        *ends = [row.last_chunk().expect("16 bytes"), row.first_chunk().expect("16 bytes")];
    }
    for (sums, values) in sums.iter_mut().zip(reader.read_last(ends)) {
        add_products(sums, values, last);
    }
    let mut out = totals(sums);
    out.iter_mut().for_each(|sum| *sum /= WIDENED);
    out
}

/// Adds the products of a unit, times [`WIDENED`].
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn add_products(sums: &mut [__m512; 2], values: __m512i, x: &[[u8; 4 * LANES]; 2]) {
    for ((sum, values), x) in sums.iter_mut().zip(widened(values)).zip(x) {
        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(values), load_bytes(x), *sum);
    }
}

#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn products(values: &[f32], x: &[&[u8]], out: &mut [f32]) {
    let count = out.len() / x.len();
    match (x, <&mut [f32; 8]>::try_from(&mut *out)) {
        (&[one, two], Ok(out)) => *out = tile(values, [one, two]),
        _ => {
            for (x, out) in x.iter().zip(out.chunks_exact_mut(count)) {
                for (values, out) in values.chunks_exact(values.len() / count).zip(out) {
                    *out = row(values, x);
                }
            }
        }
    }
}

/// Product of a row.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn row(values: &[f32], x: &[u8]) -> f32 {
    let mut sums = [_mm512_setzero_ps(); 2];
    let units = values.as_chunks::<LANES>().0.as_chunks::<2>().0;
    for (values, x) in units.iter().zip(x.as_chunks::<{ 4 * LANES }>().0.as_chunks::<2>().0) {
        sums[0] = _mm512_fmadd_ps(load(&values[0]), load_bytes(&x[0]), sums[0]);
        sums[1] = _mm512_fmadd_ps(load(&values[1]), load_bytes(&x[1]), sums[1]);
    }
    total(sums)
}

/// Products of four rows and two activations, which share each other's loads.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn tile(values: &[f32], x: [&[u8]; 2]) -> [f32; 8] {
    let count = x[0].len() / (4 * UNIT);
    let x = x.map(|x| &x.as_chunks::<{ 4 * LANES }>().0.as_chunks::<2>().0[..count]);
    let values = values.as_chunks::<LANES>().0.as_chunks::<2>().0;
    let values: [&[[[f32; LANES]; 2]]; 4] = std::array::from_fn(|row| &values[row * count..][..count]);
    let mut sums = [[[_mm512_setzero_ps(); 2]; 4]; 2];
    for unit in 0..count {
        for half in 0..2 {
            let x = [load_bytes(&x[0][unit][half]), load_bytes(&x[1][unit][half])];
            for row in 0..4 {
                let values = load(&values[row][unit][half]);
                for activation in 0..2 {
                    let sum = &mut sums[activation][row][half];
                    *sum = _mm512_fmadd_ps(values, x[activation], *sum);
                }
            }
        }
    }
    // Eighths of both activations' sums come together in one vector.
    let [one, two] = [quarters(sums[0]), quarters(sums[1])];
    let pairs = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(one, two), _mm512_shuffle_ps::<0xee>(one, two));
    let mut all = [0.0; LANES];
    store(_mm512_add_ps(pairs, _mm512_permute_ps::<0xb1>(pairs)), &mut all);
    std::array::from_fn(|index| all[4 * (index % 4) + 2 * (index / 4)])
}

/// The sums of four rows, as [`total`] adds them, but for the last two steps: those of a row are four neighbours.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn quarters(rows: [[__m512; 2]; 4]) -> __m512 {
    let rows = rows.map(|[lower, upper]| _mm512_add_ps(lower, upper));
    let halves = |a: __m512, b: __m512| {
        _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b))
    };
    let (a, b) = (halves(rows[0], rows[1]), halves(rows[2], rows[3]));
    _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b))
}

/// As [`total`], of four rows.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn totals(rows: [[__m512; 2]; 4]) -> [f32; 4] {
    let quarters = quarters(rows);
    let pairs = _mm512_add_ps(quarters, _mm512_permute_ps::<0x4e>(quarters));
    let mut all = [0.0; LANES];
    store(_mm512_add_ps(pairs, _mm512_permute_ps::<0xb1>(pairs)), &mut all);
    std::array::from_fn(|row| all[4 * row])
}

/// The sum of 32 sums, added in halves.
#[inline]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn total(sums: [__m512; 2]) -> f32 {
    let sums = _mm512_add_ps(sums[0], sums[1]);
    let sums = _mm256_add_ps(_mm512_castps512_ps256(sums), _mm512_extractf32x8_ps::<1>(sums));
    super::avx2::total(sums)
}
