//! Kernels by instruction set. A kernel is a method of a value that exists only where the CPU has the features, so owning the value
//! is the proof. The search and the rotation give equal bits with every set; products differ in that the portable ones round a
//! product before they add it.

/// Calls the step that is compiled for the bits that `of` drops and the step before it dropped, of the pairs that rates have.
#[cfg(target_arch = "x86_64")]
macro_rules! step_of_bits {
    ($of:expr, $step:ident) => {
        match ($of.bits, $of.from_bits) {
            (2, 2) => $step::<2, 2>($of),
            (2, 3) => $step::<2, 3>($of),
            (3, 2) => $step::<3, 2>($of),
            (3, 3) => $step::<3, 3>($of),
            (3, 4) => $step::<3, 4>($of),
            (4, 3) => $step::<4, 3>($of),
            (4, 4) => $step::<4, 4>($of),
            _ => portable::step($of),
        }
    };
}

mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

use crate::code::{Code, UNIT};
use kbit_plugin::Isa;

/// Groups that a step takes together.
pub(crate) const LANES: usize = 16;

/// One step of a search.
pub(crate) struct Step<'a> {
    /// Values of the states; see [`Trellis`](crate::search::Trellis).
    pub(crate) table: &'a [f32],
    /// Bits that the step drops, 2 to 4.
    pub(crate) bits: u32,
    /// Cost of each group before the step, at least 16 more numbers than there are groups.
    pub(crate) from: &'a [f32],
    /// Bits that the step before dropped: a state is in the group that it is when shifted right by so many.
    pub(crate) from_bits: u32,
    /// What the value should be.
    pub(crate) x: f32,
    /// Cost of each group after the step.
    pub(crate) to: &'a mut [f32],
    /// What the best state of each group drops.
    pub(crate) dropped: &'a mut [u8],
}

/// The kernels of one instruction set, which the CPU has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kernels {
    /// The target's baseline.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    /// AVX-512 F, BW, DQ, VL; for products also VBMI.
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

/// Calls the same function of whichever set it is.
macro_rules! dispatch {
    ($self:expr, $name:ident($($argument:expr),*)) => {
        match $self {
            Kernels::Portable => portable::$name($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx2(kernels) => kernels.$name($($argument),*),
            #[cfg(target_arch = "x86_64")]
            Kernels::Avx512(kernels) => kernels.$name($($argument),*),
        }
    };
}

impl Kernels {
    /// The best set of this CPU that is not above `limit`.
    pub(crate) fn up_to(limit: Isa) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if limit >= Isa::Avx512
                && let Some(kernels) = avx512::Avx512::new()
            {
                return Self::Avx512(kernels);
            }
            if limit >= Isa::Avx2
                && let Some(kernels) = avx2::Avx2::new()
            {
                return Self::Avx2(kernels);
            }
        }
        let _ = limit;
        Self::Portable
    }

    /// Name of the set, for logs.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(kernels) => kernels.name(),
        }
    }

    /// `to[g] = min(from + (x - value)^2)` over the states of group `g`.
    pub(crate) fn step(self, step: Step<'_>) {
        dispatch!(self, step(step));
    }

    /// The Walsh-Hadamard transform of `x`, whose length is a power of two, over the root of the length: orthonormal, and its own
    /// inverse.
    pub(crate) fn hadamard(self, x: &mut [f32]) {
        dispatch!(self, hadamard(x));
    }

    /// The values of whole rows, in 8192ths: `out`: `[rows, cols]`.
    pub(crate) fn values(self, code: Code, rows: &[u8], cols: usize, out: &mut [f32]) {
        assert_eq!((rows.len() % code.row_bytes(cols), cols % UNIT), (0, 0), "whole rows of whole units");
        assert_eq!(rows.len() / code.row_bytes(cols) * cols, out.len(), "a place for each value");
        dispatch!(self, values(code, rows, cols, out));
    }

    /// `out[r]` = the values of row `r` times `x`, which holds `cols` floats as bytes. Column `c` goes to sum `c % 32`, in order, and
    /// the 32 sums are added in halves: the upper half to the lower one.
    pub(crate) fn dot(self, code: Code, rows: &[u8], x: &[u8], out: &mut [f32]) {
        let cols = x.len() / size_of::<f32>();
        assert_eq!(
            (cols % UNIT, rows.len()),
            (0, code.row_bytes(cols) * out.len()),
            "whole rows of whole units"
        );
        dispatch!(self, dot(code, rows, x, out));
    }

    /// As [`Kernels::dot`], and equal to it, of values that [`Kernels::values`] gave, and with one or several activations of the same
    /// length: `out`: `[activations, rows]`.
    pub(crate) fn products(self, values: &[f32], x: &[&[u8]], out: &mut [f32]) {
        let cols = x.first().map_or(0, |x| x.len() / size_of::<f32>());
        assert!(cols > 0 && cols.is_multiple_of(UNIT), "whole units");
        assert!(x.iter().all(|other| other.len() == x[0].len()), "activations of one length");
        assert_eq!(values.len() / cols * x.len(), out.len(), "a place for each product");
        assert!(values.len().is_multiple_of(cols), "whole rows");
        if !out.is_empty() {
            dispatch!(self, products(values, x, out));
        }
    }
}

#[cfg(test)]
impl Kernels {
    /// The best set of this CPU.
    pub(crate) fn best() -> Self {
        Self::up_to(Isa::Best)
    }

    /// All sets of this CPU.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().map(Self::up_to)
    }
}

/// Bytes that are read from the start of a unit on, at most.
const READ: usize = 32;

/// A row in the midst of others. Its last units are read from a copy that goes on with the first bytes of the row.
struct Row<'a> {
    /// From the row on.
    bytes: &'a [u8],
    unit: usize,
    /// Units that can be read where they stand.
    whole: usize,
    rest: [u8; 64],
    /// Where in `rest` the first unit that cannot starts.
    start: usize,
}

impl<'a> Row<'a> {
    /// The row of `len` bytes at the start of `bytes`, with units of `unit` bytes, 8 to 16.
    #[inline]
    fn new(bytes: &'a [u8], len: usize, unit: usize) -> Self {
        let (row, last) = (&bytes[..len], len / unit - 1);
        let whole = last.min((bytes.len() + unit).saturating_sub(READ) / unit);
        let mut rest = [0; 64];
        // As nearly all rows: with copies of fixed length.
        let start = if let (Some(end), true) = (row.last_chunk::<16>(), whole == last) {
            rest[..16].copy_from_slice(end);
            rest[16..18].copy_from_slice(&row[..2]);
            16 - unit
        } else {
            let end = &row[whole * unit..];
            rest[..end.len()].copy_from_slice(end);
            rest[end.len()..end.len() + 2].copy_from_slice(&row[..2]);
            0
        };
        Self { bytes, unit, whole, rest, start }
    }

    /// The bytes of each two units that can be read where they stand, and what follows.
    #[inline]
    fn pairs(&self) -> impl ExactSizeIterator<Item = &'a [u8; 2 * READ]> + use<'a> {
        let (bytes, step) = (self.bytes, 2 * self.unit);
        let readable = (bytes.len() + step).saturating_sub(2 * READ) / step;
        let pairs = readable.min(self.whole / 2);
        (0..pairs).map(move |pair| {
            bytes[pair * step..].first_chunk().unwrap_or_else(|| unreachable!("a pair of units"))
        })
    }

    /// The bytes of unit `index` and what follows.
    #[inline]
    fn unit(&self, index: usize) -> &[u8; READ] {
        let bytes = match index.checked_sub(self.whole) {
            None => &self.bytes[index * self.unit..],
            Some(index) => &self.rest[self.start + index * self.unit..],
        };
        bytes.first_chunk().unwrap_or(&[0; READ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbit_scheme_kit::testing::gaussian;

    fn codes() -> impl Iterator<Item = Code> {
        [2.0, 2.5, 3.0, 3.5, 4.0]
            .into_iter()
            .flat_map(|rate| [8, 12, 16].map(|window| Code::new(rate, window).unwrap()))
    }

    fn noise(count: usize) -> Vec<u8> {
        let mut state = 5;
        (0..count).map(|_| (crate::rotation::split_mix(&mut state) >> 56) as u8).collect()
    }

    #[test]
    fn every_instruction_set_reads_the_values_of_the_code() {
        for code in codes() {
            for (rows, cols) in [(1, 32), (3, 64), (2, 96), (2, 576)] {
                let bytes = noise(rows * code.row_bytes(cols));
                let wanted: Vec<f32> = bytes
                    .chunks(code.row_bytes(cols))
                    .flat_map(|row| (0..cols).map(|t| f32::from(code.value(code.read(row, t) as u16))))
                    .collect();
                for kernels in Kernels::all() {
                    let mut out = vec![f32::NAN; rows * cols];
                    kernels.values(code, &bytes, cols, &mut out);
                    assert_eq!(out, wanted, "{code:?}, {rows} x {cols}, {}", kernels.name());
                }
            }
        }
    }

    #[test]
    fn products_are_those_of_the_values() {
        for code in codes() {
            for (rows, cols) in [(1, 32), (5, 64), (9, 96), (7, 576)] {
                let bytes = noise(rows * code.row_bytes(cols));
                let x = gaussian(cols);
                let packed: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
                for kernels in Kernels::all() {
                    let place = format!("{code:?}, {rows} x {cols}, {}", kernels.name());
                    let mut values = vec![0.0; rows * cols];
                    kernels.values(code, &bytes, cols, &mut values);
                    let (mut fused, mut out) = (vec![f32::NAN; rows], vec![f32::NAN; rows]);
                    kernels.dot(code, &bytes, &packed, &mut fused);
                    kernels.products(&values, &[&packed], &mut out);
                    assert_eq!(fused, out, "{place}");
                    // Two activations at a time, of which the second is the first one's negative.
                    let negative: Vec<u8> = x.iter().flat_map(|x| (-x).to_le_bytes()).collect();
                    for some in 1..=rows.min(4) {
                        let mut both = vec![f32::NAN; 2 * some];
                        kernels.products(&values[..some * cols], &[&packed, &negative], &mut both);
                        let wanted = out[..some].iter().copied().chain(out[..some].iter().map(|sum| -sum));
                        assert!(both.iter().copied().eq(wanted), "{place}, {some} rows");
                    }
                    for (row, found) in values.chunks(cols).zip(&out) {
                        let terms = || row.iter().zip(&x).map(|(v, x)| f64::from(*v) * f64::from(*x));
                        let (exact, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                        // Sums of at most 18 + 5 terms, each rounded once or twice.
                        assert!((f64::from(*found) - exact).abs() < 3e-6 * size, "{place}: {found}, {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn sets_with_fused_multiply_add_give_equal_products() {
        let code = Code::new(2.5, 16).unwrap();
        let bytes = noise(5 * code.row_bytes(576));
        let packed: Vec<u8> = gaussian(576).iter().flat_map(|x| x.to_le_bytes()).collect();
        let found = [Isa::Avx2, Isa::Avx512].map(|isa| {
            let kernels = Kernels::up_to(isa);
            let mut out = vec![0.0; 5];
            kernels.dot(code, &bytes, &packed, &mut out);
            (matches!(kernels, Kernels::Portable), out)
        });
        assert!(found[0].0 || found[0].1 == found[1].1, "{found:?}");
    }

    #[test]
    fn the_transform_is_that_of_hadamards_matrix() {
        for n in [1usize, 2, 16, 64] {
            let x = gaussian(n);
            for kernels in Kernels::all() {
                let mut out = x.clone();
                kernels.hadamard(&mut out);
                for (i, found) in out.iter().enumerate() {
                    let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                    let wanted = x.iter().enumerate().map(|(j, x)| f64::from(*x) * sign(j)).sum::<f64>();
                    let wanted = wanted / (n as f64).sqrt();
                    assert!((f64::from(*found) - wanted).abs() < 1e-5, "{n}, {i}: {found}, {wanted}");
                }
            }
        }
    }
}
