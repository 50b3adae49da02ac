//! Plain loops, for every CPU; those without products are compiled again for the other sets.

use super::{LANES, READ, Row, Step};
use crate::code::{Code, UNIT};

/// See [`Kernels::step`](super::Kernels::step).
pub(crate) fn step(step: Step<'_>) {
    match step.from_bits {
        2 => step_from::<2>(step),
        3 => step_from::<3>(step),
        _ => step_from::<4>(step),
    }
}

/// A step after one that dropped `FROM_BITS` bits.
fn step_from<const FROM_BITS: u32>(step: Step<'_>) {
    let Step { table, bits, from, x, to, dropped, .. } = step;
    let groups = to.len();
    let low = (1i32 << bits) - 1;
    let blocks = table.chunks_exact(LANES << bits).zip(to.as_chunks_mut::<LANES>().0);
    for (block, ((table, to), dropped)) in blocks.zip(dropped.as_chunks_mut::<LANES>().0).enumerate() {
        let mut best = [i32::MAX; LANES];
        for (choice, values) in (0..).zip(table.as_chunks::<LANES>().0) {
            let first = (choice as usize * groups + block * LANES) >> FROM_BITS;
            let Some(from) = from[first..].first_chunk::<LANES>() else { continue };
            for lane in 0..LANES {
                let away = x - values[lane];
                let cost = away * away + from[lane >> FROM_BITS];
                // Costs are not negative, so their bits are in the order of the costs; the choice takes the lowest.
                let key = cost.to_bits().cast_signed() & !low | choice;
                best[lane] = best[lane].min(key);
            }
        }
        for lane in 0..LANES {
            to[lane] = f32::from_bits((best[lane] & !low).cast_unsigned());
            dropped[lane] = (best[lane] & low) as u8;
        }
    }
}

/// See [`Kernels::hadamard`](super::Kernels::hadamard).
#[inline(always)]
pub(crate) fn hadamard(x: &mut [f32]) {
    let len = x.len();
    let mut half = 1;
    if len >= LANES {
        for x in x.as_chunks_mut::<LANES>().0 {
            *x = stage::<8>(stage::<4>(stage::<2>(stage::<1>(*x))));
        }
        half = LANES;
    }
    while half < len {
        for pair in x.chunks_exact_mut(2 * half) {
            let (lower, upper) = pair.split_at_mut(half);
            for (a, b) in lower.iter_mut().zip(upper) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let unit = 1.0 / (len as f32).sqrt();
    x.iter_mut().for_each(|x| *x *= unit);
}

/// Sums and differences of numbers `HALF` places apart; vectors, to the compiler.
#[inline(always)]
fn stage<const HALF: usize>(x: [f32; LANES]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for lane in 0..LANES {
        let (own, other) = (x[lane], x[lane ^ HALF]);
        out[lane] = if lane & HALF == 0 { own + other } else { other - own };
    }
    out
}

/// Values of a unit.
#[inline]
fn read(code: Code, bytes: &[u8; READ]) -> [f32; UNIT] {
    let mut windows = [0u16; UNIT];
    for (weight, window) in windows.iter_mut().enumerate() {
        let (byte, bit) = (code.start(weight) / 8, code.start(weight) % 8);
        // What is above the window goes with the product's upper bits.
        let three = u32::from_le_bytes([bytes[byte], bytes[byte + 1], bytes[byte + 2], 0]);
        *window = (three >> bit) as u16;
    }
    windows.map(|window| f32::from(code.value(window)))
}

/// See [`Kernels::values`](super::Kernels::values).
pub(crate) fn values(code: Code, rows: &[u8], cols: usize, out: &mut [f32]) {
    let len = code.row_bytes(cols);
    for (index, out) in out.chunks_exact_mut(cols).enumerate() {
        let row = Row::new(&rows[index * len..], len, code.unit_bytes());
        for (unit, out) in out.as_chunks_mut::<UNIT>().0.iter_mut().enumerate() {
            *out = read(code, row.unit(unit));
        }
    }
}

/// See [`Kernels::dot`](super::Kernels::dot).
pub(crate) fn dot(code: Code, rows: &[u8], x: &[u8], out: &mut [f32]) {
    let len = rows.len() / out.len();
    let x = x.as_chunks::<4>().0.as_chunks::<UNIT>().0;
    for (index, out) in out.iter_mut().enumerate() {
        let row = Row::new(&rows[index * len..], len, code.unit_bytes());
        let mut sums = [0.0; UNIT];
        for (unit, x) in x.iter().enumerate() {
            add(&mut sums, &read(code, row.unit(unit)), x);
        }
        *out = total(sums);
    }
}

/// See [`Kernels::products`](super::Kernels::products).
pub(crate) fn products(values: &[f32], x: &[&[u8]], out: &mut [f32]) {
    let count = out.len() / x.len();
    for (x, out) in x.iter().zip(out.chunks_exact_mut(count)) {
        for (values, out) in values.chunks_exact(values.len() / count).zip(out) {
            *out = product(values, x);
        }
    }
}

fn product(values: &[f32], x: &[u8]) -> f32 {
    let mut sums = [0.0; UNIT];
    for (values, x) in values.as_chunks::<UNIT>().0.iter().zip(x.as_chunks::<4>().0.as_chunks::<UNIT>().0) {
        add(&mut sums, values, x);
    }
    total(sums)
}

/// Adds the products of a unit, each rounded, to as many sums.
#[inline]
fn add(sums: &mut [f32; UNIT], values: &[f32; UNIT], x: &[[u8; 4]; UNIT]) {
    for lane in 0..UNIT {
        sums[lane] += values[lane] * f32::from_le_bytes(x[lane]);
    }
}

/// The sum of the sums, added in halves.
fn total(mut sums: [f32; UNIT]) -> f32 {
    let mut half = UNIT / 2;
    while half > 0 {
        for lane in 0..half {
            sums[lane] += sums[lane + half];
        }
        half /= 2;
    }
    sums[0]
}
