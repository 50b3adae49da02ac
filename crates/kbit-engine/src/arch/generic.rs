//! Arithmetic that every instruction set shares, written so that the compiler vectorises it.
//!
//! Each `arch` module compiles these functions again with its own CPU features switched on. They are generic over
//! [`Arithmetic`], which says whether `a * b + c` rounds once or twice, and do everything else in a fixed order with
//! 16 partial sums; so all CPUs with fused multiply-add get equal bits, whatever the width of their vectors.

use crate::cache::SoftmaxStep;
use crate::packed::{Groups, IntegerProduct, PANEL, Units};
use kbit_types::Terms;

/// Partial sums of every reduction; lane `i` sums the elements with index `i` modulo 16, in order.
pub(crate) const LANES: usize = 16;

/// How `a * b + c` rounds.
pub(crate) trait Arithmetic {
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
    fn mul_add_f64(a: f64, b: f64, c: f64) -> f64;
}

/// Once: fused multiply-add.
pub(crate) struct Fused;

impl Arithmetic for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }

    #[inline(always)]
    fn mul_add_f64(a: f64, b: f64, c: f64) -> f64 {
        a.mul_add(b, c)
    }
}

/// Twice: for CPUs that would have to emulate the fused form.
pub(crate) struct Separate;

impl Arithmetic for Separate {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }

    #[inline(always)]
    fn mul_add_f64(a: f64, b: f64, c: f64) -> f64 {
        a * b + c
    }
}

/// Adds up 16 lanes: halves onto each other, as the vector kernels do.
#[inline(always)]
pub(crate) fn add_lanes(lanes: [f32; LANES]) -> f32 {
    let mut sums = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// As [`add_lanes`].
#[inline(always)]
pub(crate) fn add_lanes_f64(lanes: [f64; LANES]) -> f64 {
    let mut sums = lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Packs units from unit `first` on of all rows: `to[unit * width + row]`. What lies beside the rows is left as it was.
#[inline(always)]
pub(crate) fn interleave(from: Units<'_>, width: usize, to: &mut [u32], first: usize) {
    let needed = from.len().saturating_sub(1) * width + from.rows();
    assert!(from.rows() <= width && to.len() >= needed, "size of the packed operand");
    for row in 0..from.rows() {
        for unit in first..from.len() {
            to[unit * width + row] = from.unit(row, unit);
        }
    }
}

/// See [`Kernels::multiply_integers`](crate::Kernels::multiply_integers).
#[inline(always)]
pub(crate) fn multiply_integers(product: &mut IntegerProduct<'_, '_>) {
    let (layout, blocks) = (product.cols().layout(), product.cols().blocks());
    let w = product.w();
    let (all, rows) = (product.out().rows(), product.out().cols());
    let (units, parts) = (layout.part / 4, layout.block / layout.part);
    let each = layout.activation_scales();
    let row = |index: usize| index * PANEL..(index + 1) * PANEL;
    let of_group = Groups::INTEGERS.tokens;
    for index in 0..all {
        let (first, token) = (index / of_group * of_group, index % of_group);
        let x = product.x(first);
        let tokens = x.count;
        let mut sums = [0.0; PANEL];
        if product.add() {
            sums[..rows].copy_from_slice(product.out().row_mut(index));
        }
        for block in 0..blocks {
            let (mut totals, mut scaled) = ([0_i32; PANEL], [0.0_f32; PANEL]);
            for part in block * parts..(block + 1) * parts {
                let mut products = [x.corrections[part * tokens + token]; PANEL];
                for unit in part * units..(part + 1) * units {
                    let levels = x.levels[unit * tokens + token]
                        .to_le_bytes()
                        .map(|level| i32::from(level.cast_signed()));
                    for (product, w) in products.iter_mut().zip(&w.levels[row(unit)]) {
                        let w = [w & 255, w >> 8 & 255, w >> 16 & 255, w >> 24].map(u32::cast_signed);
                        *product += w[0] * levels[0] + w[1] * levels[1] + w[2] * levels[2] + w[3] * levels[3];
                    }
                }
                if layout.terms.has_parts() {
                    for ((total, product), scale) in
                        totals.iter_mut().zip(products).zip(&w.part_scales[row(part)])
                    {
                        *total += product * scale;
                    }
                } else if layout.terms == Terms::ScalesOfActivationParts {
                    let y = x.scales[part * tokens + token];
                    for (scaled, product) in scaled.iter_mut().zip(products) {
                        *scaled += y * product as f32;
                    }
                } else {
                    totals = products;
                }
            }
            let mut least = [0_i32; PANEL];
            if layout.terms.has_minimums() {
                for pair in block * parts / 2..(block + 1) * parts / 2 {
                    let halves = |pair: u32| {
                        [pair as u16, (pair >> 16) as u16].map(|half| i32::from(half.cast_signed()))
                    };
                    let x = halves(x.sums[pair * tokens + token]);
                    for (least, w) in least.iter_mut().zip(&w.minimums[row(pair)]) {
                        let w = halves(*w);
                        *least += w[0] * x[0] + w[1] * x[1];
                    }
                }
            }
            let y = |which| x.scales[(block * each + which) * tokens + token];
            for (lane, sum) in sums.iter_mut().enumerate() {
                let (total, scale) = (totals[lane] as f32, w.scales[block * PANEL + lane]);
                *sum += match layout.terms {
                    Terms::ScalesInTurn => total * scale * y(0),
                    Terms::Scales | Terms::Parts => total * (scale * y(0)),
                    Terms::PartsAndMinimums => {
                        total * (scale * y(0))
                            - least[lane] as f32 * (w.minimum_scales[block * PANEL + lane] * y(0))
                    }
                    Terms::ScalesAndMinimums => {
                        total * (scale * y(0)) + w.minimum_scales[block * PANEL + lane] * y(1)
                    }
                    Terms::ScalesOfActivationParts => scale * scaled[lane],
                };
            }
        }
        product.out().row_mut(index).copy_from_slice(&sums[..rows]);
    }
}

/// Sums of the levels of each part of `levels`, `part` of them, which are at most 256.
#[inline(always)]
pub(crate) fn sum_parts(levels: &[i8], part: usize, sums: &mut [i16]) {
    assert!(part <= 256 && levels.len() == part * sums.len(), "{} levels in parts of {part}", levels.len());
    /// Parts of a fixed size become vector code. 256 times -128 fits 16 bits.
    #[inline(always)]
    fn each<const N: usize>(levels: &[i8], sums: &mut [i16]) {
        for (levels, sum) in levels.as_chunks::<N>().0.iter().zip(sums) {
            *sum = levels.iter().map(|level| i16::from(*level)).sum();
        }
    }
    match part {
        16 => each::<16>(levels, sums),
        32 => each::<32>(levels, sums),
        _ => {
            for (levels, sum) in levels.chunks_exact(part).zip(sums) {
                *sum = levels.iter().map(|level| i16::from(*level)).sum();
            }
        }
    }
}

/// `x` rounded to bf16, to nearest even. Subnormal numbers become zero, since the instructions that multiply bf16 take them for it.
#[inline(always)]
pub(crate) fn round_bf16(x: &[f32], out: &mut [u16]) {
    assert!(x.len() == out.len(), "{} floats, {} bf16", x.len(), out.len());
    for (x, out) in x.iter().zip(out) {
        let bits = x.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let number = if magnitude < 0x0080_0000 { bits & 0x8000_0000 } else { rounded };
        // A NaN keeps a bit of its payload, whatever is cut off.
        let any = if magnitude > 0x7f80_0000 { bits | 0x0040_0000 } else { number };
        *out = (any >> 16) as u16;
    }
}

/// Bf16 without an exponent become zero.
#[inline(always)]
pub(crate) fn normalize_bf16(units: &mut [u32]) {
    for number in bytemuck::cast_slice_mut::<u32, u16>(units) {
        *number = if *number & 0x7f80 == 0 { 0 } else { *number };
    }
}

/// The Walsh-Hadamard transform of each `run` numbers of `x`, a power of two, over the root of `run`: orthonormal, and its own inverse.
#[inline(always)]
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "rounded to f32 once")]
pub(crate) fn hadamard(x: &mut [f32], run: usize) {
    /// Sums and differences of lanes `HALF` apart: a shuffled vector, and one with half of its signs turned.
    #[inline(always)]
    fn within<const HALF: usize>(group: &mut [f32; LANES]) {
        let (mut other, mut signed) = ([0.0; LANES], [0.0; LANES]);
        for i in 0..LANES {
            other[i] = group[i ^ HALF];
            signed[i] = if i & HALF == 0 { group[i] } else { -group[i] };
        }
        for i in 0..LANES {
            group[i] = other[i] + signed[i];
        }
    }
    /// Sums and differences of `N` numbers and `N` others; through arrays of their own, which cannot overlap.
    #[inline(always)]
    fn between<const N: usize>(one: &mut [f32], other: &mut [f32]) {
        for (a, b) in one.as_chunks_mut::<N>().0.iter_mut().zip(other.as_chunks_mut::<N>().0) {
            let (mut sums, mut differences) = ([0.0; N], [0.0; N]);
            for i in 0..N {
                (sums[i], differences[i]) = (a[i] + b[i], a[i] - b[i]);
            }
            (*a, *b) = (sums, differences);
        }
    }
    let factor = (1.0 / (run as f64).sqrt()) as f32;
    for x in x.chunks_exact_mut(run) {
        let mut half = 1;
        if run >= LANES {
            for group in x.as_chunks_mut::<LANES>().0 {
                // One group is as wide as a vector; the compiler would gather lanes of several instead.
                let group = std::hint::black_box(group);
                within::<1>(group);
                within::<2>(group);
                within::<4>(group);
                within::<8>(group);
            }
            half = LANES;
        }
        while half < run {
            for pair in x.chunks_exact_mut(2 * half) {
                let (one, other) = pair.split_at_mut(half);
                if half < LANES {
                    between::<1>(one, other);
                } else {
                    between::<LANES>(one, other);
                }
            }
            half *= 2;
        }
        x.iter_mut().for_each(|x| *x *= factor);
    }
}

/// The last, incomplete group of a slice, filled up to 16.
#[inline(always)]
fn fill(rest: &[f32], filler: f32) -> [f32; LANES] {
    let mut group = [filler; LANES];
    group[..rest.len()].copy_from_slice(rest);
    group
}

/// `1.5 * 2^23`: adding it rounds to a whole number.
const TO_WHOLE: f32 = 12_582_912.0;
/// 355 / 512.
const LN2_HIGH: f32 = 0.693_359_4;
/// The rest of the logarithm of 2.
const LN2_LOW: f32 = -2.121_944_4e-4;

/// `e^r` for `|r| <= ln(2) / 2`.
#[inline(always)]
fn exp_fraction<A: Arithmetic>(r: f32) -> f32 {
    let mut p = 1.987_569_1e-4;
    p = A::mul_add(p, r, 1.398_2e-3);
    p = A::mul_add(p, r, 8.333_452e-3);
    p = A::mul_add(p, r, 4.166_579_6e-2);
    p = A::mul_add(p, r, 1.666_666_5e-1);
    p = A::mul_add(p, r, 0.5);
    A::mul_add(p, r * r, r) + 1.0
}

/// `e^x`, at most 1 unit in the last place from the true value; 0 below -104, infinite above 88.73, NaN for NaN.
///
/// `x = n ln 2 + r` with whole `n` and `|r| <= ln(2) / 2`; then `e^r` by a polynomial (coefficients of Cephes'
/// `expf`, Moshier 1989) and `2^n` in two factors, so that subnormal results are rounded once.
#[inline(always)]
pub(crate) fn exp<A: Arithmetic>(x: f32) -> f32 {
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = A::mul_add(x, std::f32::consts::LOG2_E, TO_WHOLE);
    let n = shifted - TO_WHOLE;
    let p = exp_fraction::<A>(A::mul_add(n, -LN2_LOW, A::mul_add(n, -LN2_HIGH, x)));
    // The whole number stands in the low bits of `shifted`.
    let n = shifted.to_bits().wrapping_sub(TO_WHOLE.to_bits()).cast_signed();
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n - half)
}

/// As [`exp`] for `x <= 0`, but 0 for all `x` below -87, where results would be subnormal: for weights of a softmax, which are sums of
/// such beside a 1.
#[inline(always)]
pub(crate) fn exp_negative<A: Arithmetic>(x: f32) -> f32 {
    let shifted = A::mul_add(x, std::f32::consts::LOG2_E, TO_WHOLE);
    let n = shifted - TO_WHOLE;
    let p = exp_fraction::<A>(A::mul_add(n, -LN2_LOW, A::mul_add(n, -LN2_HIGH, x)));
    // The whole number moves to the exponent, whatever stands above it.
    let value = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    // NaN is below nothing.
    let value = if x < -87.0 { 0.0 } else { value };
    if x.is_nan() { x } else { value }
}

/// `2^n` for `-126 <= n <= 127`; any other `n` (which only a NaN leads to) gives some number.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127).cast_unsigned() & 0xff) << 23)
}

/// `e^x` in double precision for `x <= 0`, at most 2 units in the last place from the true value; 0 below -708.
///
/// As [`exp`], with the Taylor polynomial of degree 13 (remainder below 2^-55 for `|r| <= ln(2) / 2`).
#[inline(always)]
pub(crate) fn exp_f64<A: Arithmetic>(x: f64) -> f64 {
    const TO_WHOLE: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1; // fdlibm: 33 bits, so that n * LN2_HIGH is exact
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    let clamped = if x < -708.0 { -708.0 } else { x };
    let shifted = A::mul_add_f64(clamped, std::f64::consts::LOG2_E, TO_WHOLE);
    let n = shifted - TO_WHOLE;
    let r = A::mul_add_f64(n, -LN2_LOW, A::mul_add_f64(n, -LN2_HIGH, clamped));
    let mut p = 1.0 / 6_227_020_800.0;
    p = A::mul_add_f64(p, r, 1.0 / 479_001_600.0);
    p = A::mul_add_f64(p, r, 1.0 / 39_916_800.0);
    p = A::mul_add_f64(p, r, 1.0 / 3_628_800.0);
    p = A::mul_add_f64(p, r, 1.0 / 362_880.0);
    p = A::mul_add_f64(p, r, 1.0 / 40_320.0);
    p = A::mul_add_f64(p, r, 1.0 / 5_040.0);
    p = A::mul_add_f64(p, r, 1.0 / 720.0);
    p = A::mul_add_f64(p, r, 1.0 / 120.0);
    p = A::mul_add_f64(p, r, 1.0 / 24.0);
    p = A::mul_add_f64(p, r, 1.0 / 6.0);
    p = A::mul_add_f64(p, r, 0.5);
    let p = A::mul_add_f64(p, r * r, r) + 1.0;
    let n = shifted.to_bits().wrapping_sub(TO_WHOLE.to_bits());
    let power = f64::from_bits((n.wrapping_add(1023) & 0x7ff) << 52);
    let value = p * power;
    if x < -708.0 { 0.0 } else { value }
}

/// Largest element; NaN where there is one, negative infinity of none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    #[inline(always)]
    fn step(lanes: &mut [f32; LANES], group: &[f32; LANES]) {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            // Not `f32::max`, which drops NaN: once a lane holds one, no comparison replaces it.
            *lane = if x > *lane || x.is_nan() { x } else { *lane };
        }
    }
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        step(&mut lanes, group);
    }
    if !rest.is_empty() {
        step(&mut lanes, &fill(rest, f32::NEG_INFINITY));
    }
    halve::<8>(&mut lanes);
    halve::<4>(&mut lanes);
    halve::<2>(&mut lanes);
    halve::<1>(&mut lanes);
    return lanes[0];

    /// Each lane with the one `HALF` away: whole vectors, which compare faster than single numbers.
    #[inline(always)]
    fn halve<const HALF: usize>(lanes: &mut [f32; LANES]) {
        let before = *lanes;
        for i in 0..LANES {
            let (a, b) = (before[i], before[i ^ HALF]);
            lanes[i] = if b > a || b.is_nan() { b } else { a };
        }
    }
}

/// See [`Kernels::softmax_step`](crate::Kernels::softmax_step).
#[inline(always)]
pub(crate) fn softmax_step<A: Arithmetic>(step: &mut SoftmaxStep<'_>) {
    let SoftmaxStep { scores, maxima, totals, factors, sums } = step;
    for row in 0..scores.rows() {
        let (old, largest) = (maxima[row], max(scores.row_mut(row)));
        let rises = largest > old || largest.is_nan();
        maxima[row] = if rises { largest } else { old };
        factors[row] = if rises { old - largest } else { 0.0 };
    }
    // From differences of maxima to factors: 1 where a maximum stays.
    let _ = exp_below::<A>(factors, 0.0);
    for row in 0..scores.rows() {
        let x = scores.row_mut(row);
        let maximum = maxima[row];
        if maximum == f32::NEG_INFINITY {
            x.fill(0.0);
            continue;
        }
        let mut lanes = [0.0; LANES];
        let (groups, rest) = x.as_chunks_mut::<LANES>();
        for group in groups {
            for (lane, x) in lanes.iter_mut().zip(group) {
                *x = exp_negative::<A>(*x - maximum);
                *lane += *x;
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *x = exp_negative::<A>(*x - maximum);
            *lane += *x;
        }
        totals[row] = totals[row] * factors[row] + add_lanes(lanes);
        #[expect(clippy::float_cmp, reason = "exactly 1 where the maximum stays")]
        if factors[row] != 1.0 {
            sums.row_mut(row).iter_mut().for_each(|sum| *sum *= factors[row]);
        }
    }
}

/// Turns each head of `width` numbers in `x` by angles of these cosines and sines: pairs of neighbours, or of the numbers of one half and
/// the other, from number `first` on.
#[inline(always)]
pub(crate) fn rotate(
    x: &mut [f32],
    width: usize,
    first: usize,
    adjacent: bool,
    (cos, sin): (&[f32], &[f32]),
) {
    let pairs = cos.len();
    for head in x.chunks_exact_mut(width) {
        let head = &mut head[first..][..2 * pairs];
        if adjacent {
            for (([a, b], cos), sin) in head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        } else {
            let (one, other) = head.split_at_mut(pairs);
            for (((a, b), cos), sin) in one.iter_mut().zip(other).zip(cos).zip(sin) {
                (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
            }
        }
    }
}

/// `x[i] <- e^(x[i] - max(x))`; the sum of the new values.
#[inline(always)]
pub(crate) fn exp_and_sum<A: Arithmetic>(x: &mut [f32]) -> f32 {
    exp_below::<A>(x, max(x))
}

/// `gate[i] <- gate[i] / (1 + e^-gate[i]) * up[i]`.
#[inline(always)]
pub(crate) fn silu_mul<A: Arithmetic>(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp::<A>(-*gate)) * up;
    }
}

/// `x[i] <- x[i] / (1 + e^-x[i])`.
#[inline(always)]
pub(crate) fn silu<A: Arithmetic>(x: &mut [f32]) {
    for x in x {
        *x /= 1.0 + exp::<A>(-*x);
    }
}

/// `x[i] <- e^(x[i] - max)`; the sum of the new values.
#[inline(always)]
pub(crate) fn exp_below<A: Arithmetic>(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (groups, rest) = x.as_chunks_mut::<LANES>();
    for group in groups {
        for (lane, x) in lanes.iter_mut().zip(group) {
            *x = exp::<A>(*x - max);
            *lane += *x;
        }
    }
    if !rest.is_empty() {
        let mut group = fill(rest, f32::NEG_INFINITY);
        for (lane, x) in lanes.iter_mut().zip(&mut group) {
            *x = exp::<A>(*x - max);
            *lane += *x;
        }
        // Padding is e^-inf = 0 unless everything is -inf or NaN, which is NaN either way.
        rest.copy_from_slice(&group[..rest.len()]);
    }
    add_lanes(lanes)
}

/// `x[i] <- max(x[i], 0)`; NaN stays.
#[inline(always)]
pub(crate) fn relu(x: &mut [f32]) {
    for x in x {
        *x = if *x < 0.0 { 0.0 } else { *x };
    }
}

/// `x[i] <- x[i] * (1 + tanh(u)) / 2` with `u = sqrt(2 / pi) * (x + 0.044715 x^3)`, which is `x / (1 + e^(-2 u))`.
#[inline(always)]
pub(crate) fn gelu_tanh<A: Arithmetic>(x: &mut [f32]) {
    const TWICE_ROOT: f32 = 1.595_769; // 2 sqrt(2 / pi)
    for x in x {
        let u = *x * A::mul_add(*x * *x, 0.044_715, 1.0) * TWICE_ROOT;
        *x /= 1.0 + exp::<A>(-u);
    }
}

/// `x[i] <- x[i] * (1 + erf(x[i] / sqrt(2))) / 2`, in double precision.
///
/// The complementary error function is a Chebyshev fit, off by 1.2e-7 of its value at most (Press et al., Numerical Recipes,
/// section 6.2).
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "rounded to f32 once")]
pub(crate) fn gelu<A: Arithmetic>(x: &mut [f32]) {
    const FIT: [f64; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_87,
        -1.135_203_98,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_68,
        -1.265_512_23,
    ];
    for x in x {
        let wide = f64::from(*x);
        let z = wide.abs() * std::f64::consts::FRAC_1_SQRT_2;
        let t = 1.0 / A::mul_add_f64(0.5, z, 1.0);
        let mut p = FIT[0];
        for coefficient in &FIT[1..] {
            p = A::mul_add_f64(p, t, *coefficient);
        }
        let tail = 0.5 * t * exp_f64::<A>(A::mul_add_f64(-z, z, p));
        *x = (wide * if wide < 0.0 { tail } else { 1.0 - tail }) as f32;
    }
}

/// `gate[i] <- g / (1 + e^(-alpha g)) * (u + 1)` with `g = min(gate[i], limit)` and `u = up[i]` within `-limit..limit`.
#[inline(always)]
pub(crate) fn clamped_swiglu<A: Arithmetic>(gate: &mut [f32], up: &[f32], alpha: f32, limit: f32) {
    for (gate, &up) in gate.iter_mut().zip(up) {
        let g = if *gate > limit { limit } else { *gate };
        let u = if up > limit { limit } else { up };
        let u = if u < -limit { -limit } else { u };
        *gate = g / (1.0 + exp::<A>(-alpha * g)) * (u + 1.0);
    }
}

/// `x[i] <- cap * tanh(x[i] / cap)`, in double precision.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "rounded to f32 once")]
pub(crate) fn soft_cap<A: Arithmetic>(x: &mut [f32], cap: f32) {
    let cap = f64::from(cap);
    for x in x {
        let u = f64::from(*x) / cap;
        let e = exp_f64::<A>(-2.0 * u.abs());
        let bounded = cap * (1.0 - e) / (1.0 + e);
        *x = (if u < 0.0 { -bounded } else { bounded }) as f32;
    }
}

/// Sum of `(x[i] - mean)^2` in double precision.
#[inline(always)]
pub(crate) fn sum_of_squares<A: Arithmetic>(x: &[f32], mean: f64) -> f64 {
    let mut lanes = [0.0; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            let x = f64::from(x) - mean;
            *lane = A::mul_add_f64(x, x, *lane);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        let x = f64::from(x) - mean;
        *lane = A::mul_add_f64(x, x, *lane);
    }
    add_lanes_f64(lanes)
}

/// Sum of `x` in double precision.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f64 {
    let mut lanes = [0.0; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane += f64::from(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f64::from(x);
    }
    add_lanes_f64(lanes)
}

/// `out[i] = x[i] / sqrt(mean(x^2) + epsilon) * weight[i]`.
#[inline(always)]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a factor is rounded to f32 once"
)]
pub(crate) fn rms_norm<A: Arithmetic>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let mean_square = sum_of_squares::<A>(x, 0.0) / x.len() as f64;
    let factor = (1.0 / (mean_square + f64::from(epsilon)).sqrt()) as f32;
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * factor * weight;
    }
}

/// `out[i] = (x[i] - mean(x)) / sqrt(var(x) + epsilon) * weight[i]`.
#[inline(always)]
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "mean and factor are rounded once"
)]
pub(crate) fn layer_norm<A: Arithmetic>(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
    let mean = sum(x) / x.len() as f64;
    let variance = sum_of_squares::<A>(x, mean) / x.len() as f64;
    let factor = (1.0 / (variance + f64::from(epsilon)).sqrt()) as f32;
    let mean = mean as f32;
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = (x - mean) * factor * weight;
    }
}

/// `ln(sum(e^x))`, in double precision; `max` is the largest of `x`.
#[inline(always)]
pub(crate) fn log_sum_exp_below<A: Arithmetic>(x: &[f32], max: f32) -> f64 {
    let max = f64::from(max);
    if !max.is_finite() {
        return max;
    }
    let mut lanes = [0.0; LANES];
    let (groups, rest) = x.as_chunks::<LANES>();
    for group in groups {
        for (lane, &x) in lanes.iter_mut().zip(group) {
            *lane += exp_f64::<A>(f64::from(x) - max);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += exp_f64::<A>(f64::from(x) - max);
    }
    max + add_lanes_f64(lanes).ln()
}

/// `sum(P ln(P / Q))` in nats, where `P = e^(p - p_lse)` and `Q = e^(q - q_lse)`, in double precision.
#[inline(always)]
pub(crate) fn kl_divergence<A: Arithmetic>(p: &[f32], p_lse: f64, q: &[f32], q_lse: f64) -> f64 {
    #[inline(always)]
    fn step<A: Arithmetic>(sum: f64, p: f32, p_lse: f64, q: f32, q_lse: f64) -> f64 {
        let log_p = f64::from(p) - p_lse;
        A::mul_add_f64(exp_f64::<A>(log_p), log_p - (f64::from(q) - q_lse), sum)
    }
    let mut lanes = [0.0; LANES];
    let (p_groups, p_rest) = p.as_chunks::<LANES>();
    let (q_groups, q_rest) = q.as_chunks::<LANES>();
    for (p, q) in p_groups.iter().zip(q_groups) {
        for ((lane, &p), &q) in lanes.iter_mut().zip(p).zip(q) {
            *lane = step::<A>(*lane, p, p_lse, q, q_lse);
        }
    }
    for ((lane, &p), &q) in lanes.iter_mut().zip(p_rest).zip(q_rest) {
        *lane = step::<A>(*lane, p, p_lse, q, q_lse);
    }
    add_lanes_f64(lanes)
}
