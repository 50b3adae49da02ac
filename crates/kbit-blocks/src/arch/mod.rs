//! Kernels by instruction set. A kernel is a method of a value that exists only where the CPU has the features, so owning the
//! value is the proof.
//!
//! Most kernels are the loops of [`portable`] compiled again with the features of the set: the compiler vectorises them, never
//! contracts a multiplication with an addition and never reorders sums, so all sets give equal bytes. Where it does not see the
//! instructions, loops are generic over the vectors that each set implements: searches run one block a lane
//! ([`crate::lanes`]), blocks without a search lie side by side in vectors ([`crate::legacy::SideBySide`]). Half-precision
//! conversion and products are written by hand.

use crate::dot::Operands;
use crate::panel::Source;
use kbit_types::{GgmlType, IntegerPanel, PackedActivation};

pub(crate) mod lanes;
pub(crate) mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
mod rows;

/// Instruction sets that there are kernels for, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum InstructionSet {
    /// The target's baseline.
    Portable,
    /// AVX2 and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ, VL; for products also VNNI and VBMI where the CPU has them.
    Avx512,
}

/// The kernels of one instruction set, which the CPU has.
#[derive(Clone, Copy, Debug)]
pub struct Kernels(Set);

#[derive(Clone, Copy, Debug)]
enum Set {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

impl Kernels {
    /// The best set of this CPU that is not above `limit`.
    #[must_use]
    pub fn up_to(limit: InstructionSet) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if limit >= InstructionSet::Avx512
                && let Some(avx512) = avx512::Avx512::new()
            {
                return Self(Set::Avx512(avx512));
            }
            if limit >= InstructionSet::Avx2
                && let Some(avx2) = avx2::Avx2::new()
            {
                return Self(Set::Avx2(avx2));
            }
        }
        let _ = limit;
        Self(Set::Portable)
    }

    /// The best set of this CPU.
    #[must_use]
    pub fn best() -> Self {
        Self::up_to(InstructionSet::Avx512)
    }

    /// The instruction set.
    #[must_use]
    pub const fn instruction_set(self) -> InstructionSet {
        match self.0 {
            Set::Portable => InstructionSet::Portable,
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(_) => InstructionSet::Avx2,
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(_) => InstructionSet::Avx512,
        }
    }
}

impl Kernels {
    /// Products of rows with one activation; false where there are none for the type, the set, or so few rows.
    pub(crate) fn dot_rows_of_integers(
        self,
        ty: GgmlType,
        source: Source<'_>,
        x: PackedActivation<'_>,
        out: &mut [f32],
    ) -> bool {
        match self.0 {
            Set::Portable => {
                let _ = (ty, source, x, out);
                false
            }
            #[cfg(target_arch = "x86_64")]
            Set::Avx2(kernels) => kernels.dot_integers(ty, source, x, out),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512(kernels) => kernels.dot_integers(ty, source, x, out),
        }
    }
}
/// The only list of kernels, by signature, which it hands to a macro. After the name: how AVX2 and how AVX-512 come by it, as
/// an arm of [`kernel`].
macro_rules! for_kernels {
    ($callback:ident) => {
        $callback! {
            [(x: &[f32]) -> u32] {
                largest_bits shared shared;
            }
            [(x: &[f32], out: &mut [u8])] {
                encode_f32 shared shared;
                encode_f16 own own;
                encode_bf16 shared shared;
                encode_q8_0 generic generic;
                encode_q4_0 generic generic;
                encode_q4_1 generic generic;
                encode_q5_0 generic generic;
                encode_q5_1 generic generic;
                encode_q2_k generic generic;
                encode_q3_k generic generic;
                encode_q4_k generic generic;
                encode_q5_k generic generic;
                encode_q6_k generic generic;
                encode_iq4_nl generic generic;
                encode_iq4_xs generic generic;
                encode_tq1_0 shared shared;
                encode_tq2_0 shared shared;
                encode_mxfp4 shared shared;
                encode_nvfp4 shared shared;
                encode_q1_0 shared avx2;
                encode_q2_0 shared shared;
                encode_q8_1 generic generic;
                encode_q8_k shared shared;
                encode_iq2_s generic generic;
                encode_iq3_xxs generic generic;
                encode_iq3_s generic generic;
                encode_iq1_m generic generic;
            }
            [(rows: &[f32], importance: &[f32], out: &mut [u8])] {
                weighted_q4_0 generic generic;
                weighted_q4_1 generic generic;
                weighted_q5_0 generic generic;
                weighted_q5_1 generic generic;
                weighted_q2_k generic generic;
                weighted_q3_k generic generic;
                weighted_q4_k generic generic;
                weighted_q5_k generic generic;
                weighted_q6_k generic generic;
                weighted_iq4_nl generic generic;
                weighted_iq4_xs generic generic;
                weighted_iq2_xxs generic generic;
                weighted_iq2_xs generic generic;
                weighted_iq2_s generic generic;
                weighted_iq3_xxs generic generic;
                weighted_iq3_s generic generic;
                weighted_iq1_s generic generic;
                weighted_iq1_m generic generic;
            }
            [(bytes: &[u8], out: &mut [f32])] {
                decode_f32 shared shared;
                decode_f16 own own;
                decode_bf16 shared shared;
                decode_q8_0 shared shared;
                decode_q4_0 shared avx2;
                decode_q4_1 shared avx2;
                decode_q5_0 shared shared;
                decode_q5_1 shared shared;
                decode_q2_k shared avx2;
                decode_q3_k shared shared;
                decode_q4_k shared shared;
                decode_q5_k shared shared;
                decode_q6_k shared avx2;
                decode_tq1_0 shared shared;
                decode_tq2_0 shared shared;
                decode_mxfp4 shared shared;
                decode_nvfp4 shared avx2;
                decode_q1_0 shared shared;
                decode_q2_0 shared shared;
                decode_iq2_xxs generic generic;
                decode_iq2_xs generic generic;
                decode_iq2_s generic generic;
                decode_iq3_xxs generic generic;
                decode_iq3_s generic generic;
                decode_iq1_s generic generic;
                decode_iq1_m generic generic;
                decode_iq4_nl shared shared;
                decode_iq4_xs shared shared;
            }
            [(operands: Operands<'_, '_>)] {
                dot_q8_0 own vnni;
                dot_q4_0 own vnni;
                dot_q4_1 shared shared;
                dot_q5_0 shared shared;
                dot_q5_1 shared shared;
                dot_q2_k own avx2;
                dot_q3_k own avx2;
                dot_q4_k own vnni;
                dot_q5_k own avx2;
                dot_q6_k own avx2;
                dot_tq1_0 shared shared;
                dot_tq2_0 shared shared;
                dot_mxfp4 own vnni;
                dot_nvfp4 shared shared;
                dot_q1_0 shared shared;
                dot_q2_0 shared avx2;
                dot_iq4_nl own vnni;
                dot_iq4_xs own vnni;
                dot_iq2_xxs shared shared;
                dot_iq2_xs shared shared;
                dot_iq2_s shared shared;
                dot_iq3_xxs shared shared;
                dot_iq3_s shared shared;
                dot_iq1_s shared shared;
                dot_iq1_m shared shared;
            }
            [(source: Source<'_>, panel: IntegerPanel<'_>)] {
                unpack_q8_0 shared own;
                unpack_q4_0 shared own;
                unpack_q4_1 shared shared;
                unpack_q5_0 shared own;
                unpack_q5_1 shared shared;
                unpack_iq4_nl shared own;
                unpack_mxfp4 shared own;
                unpack_q2_k shared shared;
                unpack_q3_k shared shared;
                unpack_q4_k shared own;
                unpack_q5_k shared own;
                unpack_q6_k shared own;
                unpack_iq4_xs shared own;
                unpack_iq2_xxs shared shared;
                unpack_iq2_xs shared shared;
                unpack_iq2_s shared shared;
                unpack_iq3_xxs shared shared;
                unpack_iq3_s shared shared;
                unpack_tq1_0 shared shared;
                unpack_tq2_0 shared shared;
                unpack_q1_0 shared shared;
                unpack_q2_0 shared shared;
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
use for_kernels;

/// Methods of [`Kernels`] that choose the set.
macro_rules! dispatch {
    (@one [($($argument:ident: $ty:ty),*) $(-> $result:ty)?] $name:ident) => {
        pub(crate) fn $name(self, $($argument: $ty),*) $(-> $result)? {
            match self.0 {
                Set::Portable => portable::$name($($argument),*),
                #[cfg(target_arch = "x86_64")]
                Set::Avx2(kernels) => kernels.$name($($argument),*),
                #[cfg(target_arch = "x86_64")]
                Set::Avx512(kernels) => kernels.$name($($argument),*),
            }
        }
    };
    ($($signature:tt { $($name:ident $avx2:ident $avx512:ident;)* })*) => {
        impl Kernels {
            $($(dispatch! { @one $signature $name })*)*
        }
    };
}
for_kernels!(dispatch);

/// A method of a set with `$features`.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel {
    // The portable loops, compiled with the features.
    (shared $set:ty, $features:literal, [($($argument:ident: $ty:ty),*) $(-> $result:ty)?] $name:ident) => {
        pub(crate) fn $name(self, $($argument: $ty),*) $(-> $result)? {
            #[target_feature(enable = $features)]
            fn run($($argument: $ty),*) $(-> $result)? {
                $crate::arch::portable::$name($($argument),*)
            }
            // SAFETY: `self` exists only where the CPU has the features.
            unsafe { run($($argument),*) }
        }
    };
    // The generic loops over the vectors of the set, and its search for the nearest point of a grid.
    (generic $set:ty, $features:literal, [($($argument:ident: $ty:ty),*)] $name:ident) => {
        pub(crate) fn $name(self, $($argument: $ty),*) {
            #[target_feature(enable = $features)]
            fn run(kernels: $set, $($argument: $ty),*) {
                $crate::arch::portable::generic::$name(kernels, $($argument),*);
            }
            // SAFETY: `self` exists only where the CPU has the features.
            unsafe { run(self, $($argument),*) }
        }
    };
    // A function with the features, written by hand in the module of the set.
    (own $set:ty, $features:literal, [($($argument:ident: $ty:ty),*)] $name:ident) => {
        pub(crate) fn $name(self, $($argument: $ty),*) {
            // SAFETY: `self` exists only where the CPU has the features.
            unsafe { $name($($argument),*) }
        }
    };
    // The kernel of AVX2, where it is as fast or faster.
    (avx2 $set:ty, $features:literal, [($($argument:ident: $ty:ty),*)] $name:ident) => {
        pub(crate) fn $name(self, $($argument: $ty),*) {
            self.avx2.$name($($argument),*);
        }
    };
    // A function with VNNI where the CPU has it, written by hand in the module of the set, else the kernel of AVX2.
    (vnni $set:ty, $features:literal, [($($argument:ident: $ty:ty),*)] $name:ident) => {
        pub(crate) fn $name(self, $($argument: $ty),*) {
            match self.vnni {
                // SAFETY: the proof exists only where the CPU has VNNI and VBMI.
                Some(Vnni(())) => unsafe { $name($($argument),*) },
                None => self.avx2.$name($($argument),*),
            }
        }
    };
}
#[cfg(target_arch = "x86_64")]
use kernel;

/// `Vector`, one register of a set, as the vector of the searches that run one block a lane: how it is made, and its operators.
/// Everything is sound because vectors come only from the value that proves the CPU's features.
#[cfg(target_arch = "x86_64")]
macro_rules! vector {
    (
        $set:ty, $lanes:literal; set: $splat:ident, load: $load:ident;
        $($operator:ident $method:ident $intrinsic:ident;)*
    ) => {
        impl Simd for $set {
            const LANES: usize = $lanes;
            type Floats = Vector;

            #[inline(always)]
            fn splat(self, x: f32) -> Vector {
                // SAFETY: `self` is the proof that the CPU has the features.
                Vector(unsafe { $splat(x) })
            }

            #[inline(always)]
            fn load(self, x: &[f32; $crate::lanes::MOST]) -> Vector {
                const { assert!($lanes <= $crate::lanes::MOST) };
                // SAFETY: `self` is the proof that the CPU has the features; reads the first lanes of `x`, which need no alignment.
                Vector(unsafe { $load(x.as_ptr()) })
            }
        }

        impl Vector {
            /// A number in all lanes of another vector.
            #[inline(always)]
            fn like(self, x: f32) -> Self {
                // SAFETY: vectors exist only where the CPU has the features.
                Self(unsafe { $splat(x) })
            }
        }

        $(impl $operator for Vector {
            type Output = Self;

            #[inline(always)]
            fn $method(self, other: Self) -> Self {
                // SAFETY: vectors exist only where the CPU has the features.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        })*
    };
}
#[cfg(target_arch = "x86_64")]
use vector;

/// Methods of [`crate::lanes::Floats`] that are one instruction in every set, or follow from `low_bits`.
#[cfg(target_arch = "x86_64")]
macro_rules! vector_methods {
    (store: $store:ident, least: $least:ident, greatest: $greatest:ident, sqrt: $sqrt:ident) => {
        #[inline(always)]
        fn store(self) -> [f32; $crate::lanes::MOST] {
            let mut out = [0.0; $crate::lanes::MOST];
            // SAFETY: vectors exist only where the CPU has the features; writes the first lanes of `out`, which need no alignment.
            unsafe { $store(out.as_mut_ptr(), self.0) }
            out
        }

        #[inline(always)]
        fn least(self, other: Self) -> Self {
            // SAFETY: vectors exist only where the CPU has the features.
            Self(unsafe { $least(self.0, other.0) })
        }

        #[inline(always)]
        fn greatest(self, other: Self) -> Self {
            // SAFETY: vectors exist only where the CPU has the features.
            Self(unsafe { $greatest(self.0, other.0) })
        }

        #[inline(always)]
        fn sqrt(self) -> Self {
            // SAFETY: vectors exist only where the CPU has the features.
            Self(unsafe { $sqrt(self.0) })
        }

        #[inline(always)]
        fn nearest(self) -> Self {
            self.low_bits($crate::lanes::MANTISSA) - self.like($crate::lanes::ROUNDER)
        }

        #[inline(always)]
        fn low_byte(self) -> Self {
            self.low_bits(0xff) - self.like(f32::from_bits($crate::lanes::INTEGERS))
        }
    };
}
#[cfg(target_arch = "x86_64")]
use vector_methods;
