//! Eight numbers side by side, for searches that try one candidate, or work on one part of a block, in each lane.
//!
//! The compiler makes vectors of simple loops by itself ([`super::shared_kernels`]), but not of these: it unrolls them first. The
//! operations are those of single numbers, each rounded by itself.

use std::ops::{Add, BitAnd, Div, Mul, Sub};

/// Lanes of a vector.
pub(crate) const LANES: usize = 8;

/// An instruction set, whose value proves that its vectors may be made.
pub(crate) trait Lanes: Copy {
    /// Eight floats.
    type Floats: Floats;
    /// The same number in all lanes.
    fn all(self, x: f32) -> Self::Floats;
    /// A number a lane.
    fn floats(self, x: &[f32; LANES]) -> Self::Floats;
    /// An integer a lane.
    fn integers(self, x: &[u32; LANES]) -> <Self::Floats as Floats>::Integers;
    /// A small integer a lane.
    fn small(self, x: &[i8; LANES]) -> Self::Floats;
}

/// Eight floats.
pub(crate) trait Floats:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// Eight integers of 32 bits.
    type Integers: Integers<Floats = Self>;
    /// What a comparison gives.
    type Mask: Mask;
    fn array(self) -> [f32; LANES];
    /// Where these are less.
    fn less(self, other: Self) -> Self::Mask;
    /// These numbers where `mask` holds, else the others.
    fn or(self, mask: Self::Mask, others: Self) -> Self;
    /// Turns the signs of the lanes whose bit is set.
    fn turned(self, bits: u8) -> Self;
    /// The bits.
    fn bits(self) -> Self::Integers;
    /// The number at the place that the lowest bits of each index name: three where `D` is 4, of eight numbers; two where it is 8,
    /// of four numbers, which must be there twice.
    fn look_up<const D: usize>(self, indices: Self::Integers) -> Self;
    /// ggml's `nearest_int`, as in [`crate::search::nearest`], but `0x40_0000` too large.
    #[inline(always)]
    fn nearest_and_more(self, magic: Self, mask: Self::Integers) -> Self::Integers {
        (self + magic).bits().and(mask)
    }
}

/// Lanes where something holds.
pub(crate) trait Mask: Copy + BitAnd<Output = Self> {
    /// Where `other` holds, but this does not.
    fn and_not(self, other: Self) -> Self;
    /// True where it holds in any lane.
    fn any(self) -> bool;
}

/// Eight integers of 32 bits.
pub(crate) trait Integers: Copy + Add<Output = Self> + Sub<Output = Self> {
    type Floats: Floats<Integers = Self>;
    fn array(self) -> [u32; LANES];
    fn and(self, other: Self) -> Self;
    fn min(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    /// Shifts to the left.
    fn times_two_to<const BITS: i32>(self) -> Self;
    /// Shifts to the right, filling with zeros.
    fn shifted(self, bits: usize) -> Self;
    /// The integers, with a sign, as floats.
    fn floats(self) -> Self::Floats;
    /// Where these are equal.
    fn equal(self, other: Self) -> <Self::Floats as Floats>::Mask;
    /// These numbers where `mask` holds, else the others.
    fn or(self, mask: <Self::Floats as Floats>::Mask, others: Self) -> Self;
}

/// Lanes one by one.
#[derive(Clone, Copy)]
pub(crate) struct Each<T>([T; LANES]);

impl<T: Copy> Each<T> {
    #[inline(always)]
    fn with<U>(self, other: Each<T>, of: impl Fn(T, T) -> U) -> Each<U> {
        Each(std::array::from_fn(|lane| of(self.0[lane], other.0[lane])))
    }
}

impl Lanes for crate::grid::OneByOne {
    type Floats = Each<f32>;

    #[inline(always)]
    fn all(self, x: f32) -> Each<f32> {
        Each([x; LANES])
    }

    #[inline(always)]
    fn floats(self, x: &[f32; LANES]) -> Each<f32> {
        Each(*x)
    }

    #[inline(always)]
    fn integers(self, x: &[u32; LANES]) -> Each<u32> {
        Each(*x)
    }

    #[inline(always)]
    fn small(self, x: &[i8; LANES]) -> Each<f32> {
        Each(x.map(f32::from))
    }
}

macro_rules! operators {
    ($($ty:ty: $operator:ident $name:ident $of:expr;)*) => {
        $(impl $operator for Each<$ty> {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                self.with(other, $of)
            }
        })*
    };
}

operators! {
    f32: Add add |a, b| a + b;
    f32: Sub sub |a, b| a - b;
    f32: Mul mul |a, b| a * b;
    f32: Div div |a, b| a / b;
    u32: Add add u32::wrapping_add;
    u32: Sub sub u32::wrapping_sub;
}

impl BitAnd for Each<bool> {
    type Output = Self;

    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        self.with(other, |a, b| a & b)
    }
}

impl Mask for Each<bool> {
    #[inline(always)]
    fn and_not(self, other: Self) -> Self {
        self.with(other, |this, other| other & !this)
    }

    #[inline(always)]
    fn any(self) -> bool {
        self.0.contains(&true)
    }
}

impl Floats for Each<f32> {
    type Integers = Each<u32>;
    type Mask = Each<bool>;

    #[inline(always)]
    fn array(self) -> [f32; LANES] {
        self.0
    }

    #[inline(always)]
    fn less(self, other: Self) -> Each<bool> {
        self.with(other, |a, b| a < b)
    }

    #[inline(always)]
    fn or(self, mask: Each<bool>, others: Self) -> Self {
        Each(std::array::from_fn(|lane| if mask.0[lane] { self.0[lane] } else { others.0[lane] }))
    }

    #[inline(always)]
    fn turned(self, bits: u8) -> Self {
        Each(std::array::from_fn(|lane| {
            f32::from_bits(self.0[lane].to_bits() ^ (u32::from(bits) << (31 - lane) & 1 << 31))
        }))
    }

    #[inline(always)]
    fn bits(self) -> Each<u32> {
        Each(self.0.map(f32::to_bits))
    }

    #[inline(always)]
    fn look_up<const D: usize>(self, indices: Each<u32>) -> Self {
        Each(indices.0.map(|index| self.0[index as usize % LANES]))
    }
}

impl Integers for Each<u32> {
    type Floats = Each<f32>;

    #[inline(always)]
    fn array(self) -> [u32; LANES] {
        self.0
    }

    #[inline(always)]
    fn and(self, other: Self) -> Self {
        self.with(other, |a, b| a & b)
    }

    #[inline(always)]
    fn min(self, other: Self) -> Self {
        self.with(other, |a, b| a.cast_signed().min(b.cast_signed()).cast_unsigned())
    }

    #[inline(always)]
    fn max(self, other: Self) -> Self {
        self.with(other, |a, b| a.cast_signed().max(b.cast_signed()).cast_unsigned())
    }

    #[inline(always)]
    fn times_two_to<const BITS: i32>(self) -> Self {
        Each(self.0.map(|x| x << BITS))
    }

    #[inline(always)]
    fn shifted(self, bits: usize) -> Self {
        Each(self.0.map(|x| x >> bits))
    }

    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "as the instruction rounds")]
    fn floats(self) -> Each<f32> {
        Each(self.0.map(|x| x.cast_signed() as f32))
    }

    #[inline(always)]
    fn equal(self, other: Self) -> Each<bool> {
        self.with(other, |a, b| a == b)
    }

    #[inline(always)]
    fn or(self, mask: Each<bool>, others: Self) -> Self {
        Each(std::array::from_fn(|lane| if mask.0[lane] { self.0[lane] } else { others.0[lane] }))
    }
}
