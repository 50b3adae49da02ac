//! How keys and values of past tokens are kept.
//!
//! A position is stored by itself, so what attention reads of it depends on nothing but that position: not on the tokens that came with
//! it, nor on those after it. Attention computes in f32 with every type: it widens a block of one head at a time, in the layout that f32
//! has anyway, and goes on as with f32.
//!
//! The arithmetic is that of ggml's types of the same names: a half-precision number (F16), or groups of 32 neighbours in a head with a
//! half-precision scale, 8-bit levels up to 127 times the scale (`Q8_0`) or 4-bit levels from -8 to 7 (`Q4_0`). The last group of a head
//! may be shorter.
//!
//! A few numbers of a key are often much larger than the others, and levels that reach to them leave little for the rest. So before
//! numbers become integers each head goes through a Walsh-Hadamard transform, which spreads them, and queries go through the
//! same: products of orthonormal transforms are the products themselves. What attention makes of values is
//! transformed back. `QuaRot` (Ashkboos et al. 2024) does so; llama.cpp does where 64 divides the width of a head. On SmolLM2-135M it takes
//! away four fifths of what 4 bits cost.

use crate::EngineError;
use crate::buffer::{Aligned, Rows};
use std::fmt;
use std::str::FromStr;

/// Positions in a block.
pub(crate) const BLOCK: usize = 128;
/// Positions in a panel of keys: what one tile of the kernel takes at a time.
pub(crate) const PANEL: usize = 64;
/// Neighbours in a head that have a scale in common.
const GROUP: usize = 32;

/// What keys or values are kept as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CacheType {
    /// As they are: 32 bits.
    #[default]
    F32,
    /// Rounded to half precision: 16 bits. Nothing beyond 65504 can be kept.
    F16,
    /// 8-bit integers, 32 with a scale: 8.5 bits.
    Q8,
    /// 4-bit integers, 32 with a scale: 4.5 bits.
    Q4,
}

impl CacheType {
    /// All, from the largest to the smallest.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Q8, Self::Q4];

    /// Bytes that `width` numbers of one head and position take.
    #[must_use]
    pub fn bytes(self, width: usize) -> usize {
        let scales = width.div_ceil(GROUP) * size_of::<u16>();
        match self {
            Self::F32 => width * size_of::<f32>(),
            Self::F16 => width * size_of::<u16>(),
            Self::Q8 => width + scales,
            Self::Q4 => pairs(width) + scales,
        }
    }
}

impl fmt::Display for CacheType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        })
    }
}

/// Types of the cache: of keys, and of values.
///
/// ```
/// use kbit_engine::{CacheType, CacheTypes};
/// let types: CacheTypes = "q8,f16".parse()?;
/// assert_eq!((types.keys, types.values), (CacheType::Q8, CacheType::F16));
/// assert_eq!("q4".parse(), Ok(CacheTypes { keys: CacheType::Q4, values: CacheType::Q4 }));
/// # Ok::<(), kbit_engine::UnknownCacheType>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CacheTypes {
    /// Of keys.
    pub keys: CacheType,
    /// Of values.
    pub values: CacheType,
}

impl fmt::Display for CacheTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.keys == self.values {
            self.keys.fmt(f)
        } else {
            f.pad(&format!("{},{}", self.keys, self.values))
        }
    }
}

/// A text that names no [`CacheTypes`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no type of the KV cache: choose f32, f16, q8 or q4, or one for keys and one for values, as q8,f16"
)]
pub struct UnknownCacheType(pub String);

impl FromStr for CacheTypes {
    type Err = UnknownCacheType;

    fn from_str(text: &str) -> Result<Self, UnknownCacheType> {
        let (keys, values) = text.split_once(',').unwrap_or((text, text));
        let named = |name: &str| CacheType::ALL.into_iter().find(|ty| ty.to_string() == name);
        named(keys)
            .zip(named(values))
            .map(|(keys, values)| Self { keys, values })
            .ok_or_else(|| UnknownCacheType(text.to_owned()))
    }
}

/// Bytes of the 4-bit levels of `width` numbers: each group's second half stands in the high bits beside its first.
fn pairs(width: usize) -> usize {
    width / GROUP * (GROUP / 2) + (width % GROUP).div_ceil(2)
}

/// In which order a block holds the numbers of its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// `[panels][numbers][PANEL]`: positions along the rows, so that scores are sums of rows. For keys.
    Panels,
    /// `[BLOCK][numbers]`, position by position. For values.
    Rows,
}

/// Form of the keys, or of the values, of one head and block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Form {
    pub(crate) ty: CacheType,
    /// Numbers of a position.
    pub(crate) width: usize,
    pub(crate) order: Order,
}

/// A number that is too large for its type.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TooLarge {
    /// Place in the rows that were to be stored.
    pub(crate) row: usize,
    pub(crate) value: f32,
}

impl Form {
    /// How many numbers go through a transform together before they are stored; 1 for none. The largest power of two that fits the width
    /// evenly.
    pub(crate) fn run(&self) -> usize {
        match self.ty {
            CacheType::F32 | CacheType::F16 => 1,
            CacheType::Q8 | CacheType::Q4 => 1 << self.width.trailing_zeros().min(16),
        }
    }

    /// Memory for [`BLOCK`] positions.
    pub(crate) fn allocate(&self) -> Result<Aligned, EngineError> {
        Aligned::zeroed(BLOCK * self.ty.bytes(self.width) / size_of::<f32>())
    }

    /// Numbers in a widened block.
    pub(crate) fn len(&self) -> usize {
        BLOCK * self.width
    }

    /// Rows of levels that a position has.
    fn levels(&self) -> usize {
        if self.ty == CacheType::Q4 { pairs(self.width) } else { self.width }
    }

    /// Where the numbers of `position` begin among `rows` of each position, and how far they lie apart.
    #[inline(always)]
    fn place(&self, rows: usize, position: usize) -> (usize, usize) {
        match self.order {
            Order::Panels => (position / PANEL * PANEL * rows + position % PANEL, PANEL),
            Order::Rows => (position * rows, 1),
        }
    }

    /// Stores rows `[n, width]` at the positions from `first` on. What is not a number, or infinite, makes its group NaN, so that it is
    /// not hidden.
    #[inline(always)]
    pub(crate) fn encode(&self, memory: &mut [f32], first: usize, rows: Rows<'_>) -> Result<(), TooLarge> {
        let groups = self.width.div_ceil(GROUP);
        match self.ty {
            CacheType::F32 => {
                for row in 0..rows.rows() {
                    let (start, step) = self.place(self.width, first + row);
                    scatter(&mut memory[start..], step, rows.row(row));
                }
            }
            CacheType::F16 => {
                let memory: &mut [u16] = bytemuck::cast_slice_mut(memory);
                for row in 0..rows.rows() {
                    let (start, step) = self.place(self.width, first + row);
                    for (group, x) in rows.row(row).chunks(GROUP).enumerate() {
                        let mut halves = [0; GROUP];
                        for (half, &x) in halves.iter_mut().zip(x) {
                            *half = to_f16(x + x * 0.0);
                        }
                        if let Some(&value) = x.iter().find(|x| x.is_finite() && x.abs() >= F16_OVERFLOW) {
                            return Err(TooLarge { row, value });
                        }
                        scatter(&mut memory[start + group * GROUP * step..], step, &halves[..x.len()]);
                    }
                }
            }
            CacheType::Q8 | CacheType::Q4 => {
                let is_q8 = self.ty == CacheType::Q8;
                let memory: &mut [u8] = bytemuck::cast_slice_mut(memory);
                let (levels, scales) = memory.split_at_mut(BLOCK * self.levels());
                let scales: &mut [u16] = bytemuck::cast_slice_mut(&mut scales[..BLOCK * groups * 2]);
                for row in 0..rows.rows() {
                    let (start, step) = self.place(self.levels(), first + row);
                    let (scale_start, scale_step) = self.place(groups, first + row);
                    let mut at = start;
                    for (group, x) in rows.row(row).chunks(GROUP).enumerate() {
                        let mut bytes = [0; GROUP];
                        let scale = if is_q8 { quantize8(x, &mut bytes) } else { quantize4(x, &mut bytes) };
                        let half = to_f16(scale);
                        if scale.is_finite() && scale.abs() >= F16_OVERFLOW {
                            let largest = |a: f32, b: f32| if b.abs() > a.abs() { b } else { a };
                            return Err(TooLarge { row, value: x.iter().copied().fold(0.0, largest) });
                        }
                        scales[scale_start + group * scale_step] = half;
                        let count = if is_q8 { x.len() } else { x.len().div_ceil(2) };
                        scatter(&mut levels[at..], step, &bytes[..count]);
                        at += count * step;
                    }
                }
            }
        }
        Ok(())
    }

    /// Widens the first `count` positions to f32, in this order; panels whole.
    #[inline(always)]
    pub(crate) fn decode(&self, memory: &[f32], count: usize, out: &mut [f32]) {
        let width = self.width;
        // Panels are filled up.
        let count = if self.order == Order::Panels { count.next_multiple_of(PANEL) } else { count };
        let out = &mut out[..count * width];
        match self.ty {
            CacheType::F32 => out.copy_from_slice(&memory[..count * width]),
            CacheType::F16 => {
                let memory: &[u16] = bytemuck::cast_slice(memory);
                for (out, half) in out.iter_mut().zip(memory) {
                    *out = from_f16(*half);
                }
            }
            CacheType::Q8 | CacheType::Q4 => {
                let memory: &[u8] = bytemuck::cast_slice(memory);
                let (levels, scales) = memory.split_at(BLOCK * self.levels());
                let scales: &[u16] = bytemuck::cast_slice(&scales[..BLOCK * width.div_ceil(GROUP) * 2]);
                match (self.order, self.ty) {
                    (Order::Panels, CacheType::Q8) => panels8(width, levels, scales, out),
                    (Order::Panels, _) => panels4(width, levels, scales, out),
                    (Order::Rows, CacheType::Q8) => rows8(width, levels, scales, out),
                    (Order::Rows, _) => rows4(width, levels, scales, out),
                }
            }
        }
    }
}

/// `to[i * step] = from[i]`.
#[inline(always)]
fn scatter<T: Copy>(to: &mut [T], step: usize, from: &[T]) {
    if step == 1 {
        return to[..from.len()].copy_from_slice(from);
    }
    for (to, from) in to.iter_mut().step_by(step).zip(from) {
        *to = *from;
    }
}

#[inline(always)]
fn panels8(width: usize, levels: &[u8], scales: &[u16], out: &mut [f32]) {
    let panels = out.chunks_exact_mut(PANEL * width).zip(levels.chunks_exact(PANEL * width));
    for ((out, levels), scales) in panels.zip(scales.chunks_exact(PANEL * width.div_ceil(GROUP))) {
        let groups = out.chunks_mut(PANEL * GROUP).zip(levels.chunks(PANEL * GROUP));
        for ((out, levels), scales) in groups.zip(scales.as_chunks::<PANEL>().0) {
            let scales = scales.map(from_f16);
            for (out, levels) in out.as_chunks_mut::<PANEL>().0.iter_mut().zip(levels.as_chunks::<PANEL>().0)
            {
                for i in 0..PANEL {
                    out[i] = f32::from(levels[i].cast_signed()) * scales[i];
                }
            }
        }
    }
}

#[inline(always)]
fn panels4(width: usize, levels: &[u8], scales: &[u16], out: &mut [f32]) {
    let panels = out.chunks_exact_mut(PANEL * width).zip(levels.chunks_exact(PANEL * pairs(width)));
    for ((out, levels), scales) in panels.zip(scales.chunks_exact(PANEL * width.div_ceil(GROUP))) {
        let groups = out.chunks_mut(PANEL * GROUP).zip(levels.chunks(PANEL * GROUP / 2));
        for ((out, levels), scales) in groups.zip(scales.as_chunks::<PANEL>().0) {
            let scales = scales.map(from_f16);
            let out = out.as_chunks_mut::<PANEL>().0;
            let (low, high) = out.split_at_mut(out.len().div_ceil(2));
            let levels = levels.as_chunks::<PANEL>().0;
            for (out, levels) in low.iter_mut().zip(levels) {
                for i in 0..PANEL {
                    out[i] = f32::from((levels[i] & 15).cast_signed() - 8) * scales[i];
                }
            }
            for (out, levels) in high.iter_mut().zip(levels) {
                for i in 0..PANEL {
                    out[i] = f32::from((levels[i] >> 4).cast_signed() - 8) * scales[i];
                }
            }
        }
    }
}

#[inline(always)]
fn rows8(width: usize, levels: &[u8], scales: &[u16], out: &mut [f32]) {
    /// Whole groups become vector code.
    #[inline(always)]
    fn group(levels: &[u8], scale: f32, out: &mut [f32]) {
        for (out, level) in out.iter_mut().zip(levels) {
            *out = f32::from(level.cast_signed()) * scale;
        }
    }
    let rows = out.chunks_exact_mut(width).zip(levels.chunks_exact(width));
    for ((out, levels), scales) in rows.zip(scales.chunks_exact(width.div_ceil(GROUP))) {
        let (out, out_rest) = out.as_chunks_mut::<GROUP>();
        let (levels, levels_rest) = levels.as_chunks::<GROUP>();
        for ((out, levels), scale) in out.iter_mut().zip(levels).zip(scales) {
            group(levels, from_f16(*scale), out);
        }
        group(levels_rest, scales.last().map_or(0.0, |scale| from_f16(*scale)), out_rest);
    }
}

#[inline(always)]
fn rows4(width: usize, levels: &[u8], scales: &[u16], out: &mut [f32]) {
    #[inline(always)]
    fn group(levels: &[u8], scale: f32, out: &mut [f32]) {
        let (low, high) = out.split_at_mut(levels.len());
        for (out, level) in low.iter_mut().zip(levels) {
            *out = f32::from((level & 15).cast_signed() - 8) * scale;
        }
        for (out, level) in high.iter_mut().zip(levels) {
            *out = f32::from((level >> 4).cast_signed() - 8) * scale;
        }
    }
    let rows = out.chunks_exact_mut(width).zip(levels.chunks_exact(pairs(width)));
    for ((out, levels), scales) in rows.zip(scales.chunks_exact(width.div_ceil(GROUP))) {
        let (out, out_rest) = out.as_chunks_mut::<GROUP>();
        let (levels, levels_rest) = levels.split_at(out.len() * (GROUP / 2));
        let levels = levels.as_chunks::<{ GROUP / 2 }>().0;
        for ((out, levels), scale) in out.iter_mut().zip(levels).zip(scales) {
            group(levels, from_f16(*scale), out);
        }
        group(levels_rest, scales.last().map_or(0.0, |scale| from_f16(*scale)), out_rest);
    }
}

/// Levels of a group in `Q8_0`, halves rounded away from zero; gives the scale: the largest magnitude over 127, NaN where a number is
/// not finite.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "within 127 of zero, or of no matter"
)]
fn quantize8(x: &[f32], levels: &mut [u8; GROUP]) -> f32 {
    /// The largest number below a half: added to a number, it rounds up whatever is a half or more.
    const ALMOST_HALF: f32 = 0.499_999_97;
    let mut group = [0.0; GROUP];
    group[..x.len()].copy_from_slice(x);
    let mut largest = 0.0_f32;
    // Zero times infinity is NaN, and that stays.
    let mut strange = 0.0_f32;
    for x in group {
        largest = if x.abs() > largest { x.abs() } else { largest };
        strange += x * 0.0;
    }
    let scale = largest / 127.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    for (level, x) in levels.iter_mut().zip(group) {
        let x = x * inverse;
        *level = (x + ALMOST_HALF.copysign(x)) as i32 as u8;
    }
    scale + strange
}

/// Levels of a group in `Q4_0`, two in a byte; gives the scale: the number of largest magnitude over -8, NaN where a number is not
/// finite.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 15, or of no matter")]
fn quantize4(x: &[f32], levels: &mut [u8; GROUP]) -> f32 {
    let mut largest = 0.0_f32;
    let mut strange = 0.0_f32;
    for x in x {
        largest = if x.abs() > largest.abs() { *x } else { largest };
        strange += x * 0.0;
    }
    let scale = largest / -8.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let level = |x: f32| ((x * inverse + 8.5) as i32).min(15) as u8;
    let (low, high) = x.split_at(x.len().div_ceil(2));
    for (byte, x) in levels.iter_mut().zip(low) {
        *byte = level(*x);
    }
    for (byte, x) in levels.iter_mut().zip(high) {
        *byte |= level(*x) << 4;
    }
    scale + strange
}

/// What is at least as large becomes infinite in half precision.
const F16_OVERFLOW: f32 = 65520.0;

/// `x` in half precision, to nearest even.
#[inline(always)]
fn to_f16(x: f32) -> u16 {
    /// From one bias of exponents to the other.
    const REBIAS: u32 = (127 - 15) << 23;
    let bits = x.to_bits();
    let (sign, magnitude) = ((bits >> 16) & 0x8000, bits & 0x7fff_ffff);
    let normal = (magnitude.wrapping_add(0xfff + (magnitude >> 13 & 1)).wrapping_sub(REBIAS)) >> 13;
    // Next to a half, the unit of an f32 is the smallest number of half precision.
    let small = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0.5_f32.to_bits());
    let half = if magnitude < (127 - 14) << 23 { small } else { normal };
    let half = if magnitude >= F16_OVERFLOW.to_bits() { 0x7c00 } else { half };
    let half = if magnitude > f32::INFINITY.to_bits() { 0x7e00 } else { half };
    #[expect(clippy::cast_possible_truncation, reason = "16 bits are left")]
    {
        (sign | half) as u16
    }
}

/// A half-precision number as f32.
#[inline(always)]
fn from_f16(half: u16) -> f32 {
    const REBIAS: u32 = (127 - 15) << 23;
    let half = u32::from(half);
    let (sign, magnitude) = ((half & 0x8000) << 16, (half & 0x7fff) << 13);
    let normal = magnitude + REBIAS;
    // Below the smallest normal number: its fraction beside that number's one, and that taken away again.
    let smallest: u32 = (127 - 14) << 23;
    let small = (f32::from_bits(magnitude | smallest) - f32::from_bits(smallest)).to_bits();
    let bits = if magnitude < 1 << 23 { small } else { normal };
    let bits = if magnitude >= 31 << 23 { magnitude | 0x7f80_0000 } else { bits };
    f32::from_bits(sign | bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InstructionSet, Kernels};
    use kbit_types::GgmlType;

    fn noise(len: usize) -> Vec<f32> {
        let mut state = 7u64;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / 8_388_608.0 - 1.0) * 3.0
            })
            .collect()
    }

    /// The number at a position and place of a widened block.
    fn at(form: &Form, block: &[f32], position: usize, index: usize) -> f32 {
        let (start, step) = form.place(form.width, position);
        block[start + index * step]
    }

    fn forms(width: usize) -> impl Iterator<Item = Form> {
        CacheType::ALL
            .into_iter()
            .flat_map(move |ty| [Order::Panels, Order::Rows].map(|order| Form { ty, width, order }))
    }

    /// What the cache gives back for `rows` of `width`, position by position.
    fn round_trip(kernels: &Kernels, form: &Form, rows: &[f32]) -> Vec<f32> {
        let count = rows.len() / form.width;
        let mut memory = form.allocate().unwrap();
        // In pieces, of which none begins with a block or panel.
        let mut done = 0;
        for piece in [1, 62, 3, BLOCK].iter().copied() {
            let piece = piece.min(count - done);
            let rows = Rows::new(&rows[done * form.width..], piece, form.width, form.width);
            kernels.store(form, memory.as_mut_slice(), done, rows).unwrap();
            done += piece;
        }
        let mut space = vec![f32::NAN; form.len()];
        let block = kernels.widened(*form, &memory, count, &mut space);
        (0..count)
            .flat_map(|position| (0..form.width).map(move |index| (position, index)))
            .map(|(position, index)| at(form, block, position, index))
            .collect()
    }

    fn all_kernels() -> Vec<Kernels> {
        InstructionSet::ALL.into_iter().filter_map(Kernels::of).collect()
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for keys in CacheType::ALL {
            for values in CacheType::ALL {
                let types = CacheTypes { keys, values };
                assert_eq!(types.to_string().parse(), Ok(types));
            }
        }
        for text in ["", "q5", "Q8", "q8_0", "q8,", ",q8", "q8,f16,f16", "q8 f16"] {
            let error = text.parse::<CacheTypes>().unwrap_err();
            assert!(error.to_string().contains("choose f32, f16, q8 or q4"), "{error}");
        }
    }

    #[test]
    fn types_take_the_bytes_that_they_say() {
        let bytes = |width| CacheType::ALL.map(|ty| ty.bytes(width));
        assert_eq!(bytes(64), [256, 128, 68, 36]);
        assert_eq!(bytes(80), [320, 160, 86, 46]);
        assert_eq!(bytes(33), [132, 66, 37, 21]);
        for width in [1, 33, 64, 80] {
            for form in forms(width) {
                assert_eq!(form.allocate().unwrap().as_slice().len() * 4, BLOCK * form.ty.bytes(width));
            }
        }
    }

    #[test]
    fn half_precision_is_that_of_the_standard() {
        for half in 0..=u16::MAX {
            let (got, want) = (from_f16(half), half::f16::from_bits(half).to_f32());
            assert!(
                got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()),
                "{half:#x}: {got} {want}"
            );
        }
        let mut bits = 0u32;
        loop {
            let x = f32::from_bits(bits);
            let (got, want) = (to_f16(x), half::f16::from_f32(x));
            assert!(
                got == want.to_bits() || (want.is_nan() && got & 0x7fff > 0x7c00),
                "{x}: {got:#x} {want}"
            );
            let Some(next) = bits.checked_add(9973) else { break };
            bits = next;
        }
        for x in [
            65504.0,
            65519.99,
            65520.0,
            1e9,
            f32::INFINITY,
            6e-8,
            2.9e-8,
            2.98023e-8,
            6.1e-5,
            f32::MIN_POSITIVE,
        ] {
            assert_eq!(to_f16(x), half::f16::from_f32(x).to_bits(), "{x}");
            assert_eq!(to_f16(-x), half::f16::from_f32(-x).to_bits(), "-{x}");
        }
    }

    #[test]
    fn groups_are_those_of_ggml() {
        let (width, count) = (64, BLOCK);
        let mut rows = noise(width * count);
        // A group of zeros, one whose scale is subnormal, a large one, and halves between levels.
        rows[..32].fill(0.0);
        rows[32..64].iter_mut().for_each(|x| *x *= 1e-6);
        rows[64..96].iter_mut().for_each(|x| *x *= 1e4);
        for (index, x) in rows[96..128].iter_mut().enumerate() {
            *x = if index == 0 { 127.0 } else { index as f32 - 16.5 };
        }
        for (ty, ggml) in [
            (CacheType::F16, GgmlType::F16),
            (CacheType::Q8, GgmlType::Q8_0),
            (CacheType::Q4, GgmlType::Q4_0),
        ] {
            let mut bytes = vec![0; ggml.bytes_for(rows.len() as u64).unwrap() as usize];
            kbit_blocks::encode_row_range(ggml, &rows, width, None, &mut bytes).unwrap();
            let mut want = vec![0.0; rows.len()];
            kbit_blocks::decode(ggml, &bytes, &mut want).unwrap();
            for form in forms(width).filter(|form| form.ty == ty) {
                for kernels in all_kernels() {
                    let got = round_trip(&kernels, &form, &rows);
                    let same = got
                        .iter()
                        .zip(&want)
                        .all(|(got, want)| got.to_bits() == want.to_bits() || (*got == 0.0 && *want == 0.0));
                    assert!(same, "{form:?} {kernels:?}");
                }
            }
        }
    }

    #[test]
    fn any_width_and_count_come_back() {
        for width in [1, 2, 31, 32, 33, 47, 64, 80, 96, 129] {
            for count in [1, 5, 63, 64, 65, 128] {
                let rows = noise(width * count);
                for form in forms(width) {
                    let mut first: Option<Vec<f32>> = None;
                    for kernels in all_kernels() {
                        let got = round_trip(&kernels, &form, &rows);
                        for (got, want) in got.chunks(width).zip(rows.chunks(width)) {
                            for (got, want) in got.chunks(GROUP).zip(want.chunks(GROUP)) {
                                let largest = want.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                                // Half a unit of what is left of the largest; in q4 a whole one, since levels end at 7 where the largest is
                                // at -8. The scale itself is rounded to 11 bits.
                                let bound = match form.ty {
                                    CacheType::F32 => 0.0,
                                    CacheType::F16 => largest / 2048.0,
                                    CacheType::Q8 => largest * (0.5 / 127.0 + 1.0 / 2048.0),
                                    CacheType::Q4 => largest * (1.0 / 8.0 + 1.0 / 2048.0),
                                };
                                for (got, want) in got.iter().zip(want) {
                                    assert!(
                                        (got - want).abs() <= bound * 1.001,
                                        "{form:?} {kernels:?}: {got} for {want}"
                                    );
                                }
                            }
                        }
                        assert_eq!(*first.get_or_insert_with(|| got.clone()), got, "{form:?} {kernels:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_not_hidden() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [0, 31, 32, 39] {
                let mut row = noise(40);
                row[place] = bad;
                for form in forms(40) {
                    for kernels in all_kernels() {
                        let got = round_trip(&kernels, &form, &row);
                        assert!(!got[place].is_finite(), "{form:?} {kernels:?}: {bad} became {}", got[place]);
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let cases = [
            (CacheType::F16, 65519.0, 65520.0),
            (CacheType::Q8, 8.3e6, 8.4e6),
            (CacheType::Q4, 5.2e5, -5.3e5),
        ];
        for (ty, fits, too_large) in cases {
            for order in [Order::Panels, Order::Rows] {
                let form = Form { ty, width: 40, order };
                for kernels in all_kernels() {
                    let mut memory = form.allocate().unwrap();
                    let mut rows = noise(3 * 40);
                    rows[2 * 40 + 35] = fits;
                    let mut store = |rows: &[f32]| {
                        kernels.store(&form, memory.as_mut_slice(), 60, Rows::new(rows, 3, 40, 40))
                    };
                    assert_eq!(store(&rows), Ok(()), "{form:?} {kernels:?}");
                    rows[2 * 40 + 35] = too_large;
                    assert_eq!(
                        store(&rows),
                        Err(TooLarge { row: 2, value: too_large }),
                        "{form:?} {kernels:?}"
                    );
                }
            }
        }
    }
}
