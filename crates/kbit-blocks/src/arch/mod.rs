//! Kernels by instruction set. A kernel is a method of a value that exists only where the CPU has the features, so owning the
//! value is the proof.
//!
//! Most kernels are the loops of [`portable`] compiled again with the features of the set ([`shared_kernels`]): the compiler
//! vectorises them, never contracts a multiplication with an addition and never reorders sums, so all sets give equal bytes.
//! Written by hand are those where it does not see the instruction: half-precision conversion and the packing of codes.
//! Searches run one block a lane ([`crate::lanes`]) over vectors that each set implements ([`lane_kernels`]).

use crate::dot::Operands;
use crate::panel::Source;
use kbit_types::IntegerPanel;

pub(crate) mod lanes;
pub(crate) mod portable;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

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

/// Methods of [`Kernels`] that choose the set.
macro_rules! dispatch {
    ($($name:ident($($argument:ident: $ty:ty),*) $(-> $result:ty)?;)*) => {
        impl Kernels {
            $(pub(crate) fn $name(self, $($argument: $ty),*) $(-> $result)? {
                match self.0 {
                    Set::Portable => portable::$name($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    Set::Avx2(kernels) => kernels.$name($($argument),*),
                    #[cfg(target_arch = "x86_64")]
                    Set::Avx512(kernels) => kernels.$name($($argument),*),
                }
            })*
        }
    };
}

dispatch! {
    largest_bits(x: &[f32]) -> u32;
    encode_f32(x: &[f32], out: &mut [u8]);
    encode_f16(x: &[f32], out: &mut [u8]);
    encode_bf16(x: &[f32], out: &mut [u8]);
    encode_q8_0(x: &[f32], out: &mut [u8]);
    encode_q4_0(x: &[f32], out: &mut [u8]);
    encode_q4_1(x: &[f32], out: &mut [u8]);
    encode_q5_0(x: &[f32], out: &mut [u8]);
    encode_q5_1(x: &[f32], out: &mut [u8]);
    encode_q2_k(x: &[f32], out: &mut [u8]);
    encode_q3_k(x: &[f32], out: &mut [u8]);
    encode_q4_k(x: &[f32], out: &mut [u8]);
    encode_q5_k(x: &[f32], out: &mut [u8]);
    encode_q6_k(x: &[f32], out: &mut [u8]);
    encode_iq4_nl(x: &[f32], out: &mut [u8]);
    encode_iq4_xs(x: &[f32], out: &mut [u8]);
    weighted_q4_0(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q4_1(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q5_0(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q5_1(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q2_k(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q3_k(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q4_k(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q5_k(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_q6_k(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_iq4_nl(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_iq4_xs(rows: &[f32], importance: &[f32], out: &mut [u8]);
    decode_f32(bytes: &[u8], out: &mut [f32]);
    decode_f16(bytes: &[u8], out: &mut [f32]);
    decode_bf16(bytes: &[u8], out: &mut [f32]);
    decode_q8_0(bytes: &[u8], out: &mut [f32]);
    decode_q4_0(bytes: &[u8], out: &mut [f32]);
    decode_q4_1(bytes: &[u8], out: &mut [f32]);
    decode_q5_0(bytes: &[u8], out: &mut [f32]);
    decode_q5_1(bytes: &[u8], out: &mut [f32]);
    decode_q2_k(bytes: &[u8], out: &mut [f32]);
    decode_q3_k(bytes: &[u8], out: &mut [f32]);
    decode_q4_k(bytes: &[u8], out: &mut [f32]);
    decode_q5_k(bytes: &[u8], out: &mut [f32]);
    decode_q6_k(bytes: &[u8], out: &mut [f32]);
    encode_tq1_0(x: &[f32], out: &mut [u8]);
    encode_tq2_0(x: &[f32], out: &mut [u8]);
    encode_mxfp4(x: &[f32], out: &mut [u8]);
    encode_nvfp4(x: &[f32], out: &mut [u8]);
    encode_q1_0(x: &[f32], out: &mut [u8]);
    encode_q2_0(x: &[f32], out: &mut [u8]);
    decode_tq1_0(bytes: &[u8], out: &mut [f32]);
    decode_tq2_0(bytes: &[u8], out: &mut [f32]);
    decode_mxfp4(bytes: &[u8], out: &mut [f32]);
    decode_nvfp4(bytes: &[u8], out: &mut [f32]);
    decode_q1_0(bytes: &[u8], out: &mut [f32]);
    decode_q2_0(bytes: &[u8], out: &mut [f32]);
    encode_q8_1(x: &[f32], out: &mut [u8]);
    encode_q8_k(x: &[f32], out: &mut [u8]);
    dot_q8_0(operands: Operands<'_, '_>);
    dot_q4_0(operands: Operands<'_, '_>);
    dot_q4_1(operands: Operands<'_, '_>);
    dot_q5_0(operands: Operands<'_, '_>);
    dot_q5_1(operands: Operands<'_, '_>);
    dot_q2_k(operands: Operands<'_, '_>);
    dot_q3_k(operands: Operands<'_, '_>);
    dot_q4_k(operands: Operands<'_, '_>);
    dot_q5_k(operands: Operands<'_, '_>);
    dot_q6_k(operands: Operands<'_, '_>);
    dot_tq1_0(operands: Operands<'_, '_>);
    dot_tq2_0(operands: Operands<'_, '_>);
    dot_mxfp4(operands: Operands<'_, '_>);
    dot_nvfp4(operands: Operands<'_, '_>);
    dot_q1_0(operands: Operands<'_, '_>);
    dot_q2_0(operands: Operands<'_, '_>);
    dot_iq4_nl(operands: Operands<'_, '_>);
    dot_iq4_xs(operands: Operands<'_, '_>);
    dot_iq2_xxs(operands: Operands<'_, '_>);
    dot_iq2_xs(operands: Operands<'_, '_>);
    dot_iq2_s(operands: Operands<'_, '_>);
    dot_iq3_xxs(operands: Operands<'_, '_>);
    dot_iq3_s(operands: Operands<'_, '_>);
    dot_iq1_s(operands: Operands<'_, '_>);
    dot_iq1_m(operands: Operands<'_, '_>);
    decode_iq2_xxs(bytes: &[u8], out: &mut [f32]);
    decode_iq2_xs(bytes: &[u8], out: &mut [f32]);
    decode_iq2_s(bytes: &[u8], out: &mut [f32]);
    decode_iq3_xxs(bytes: &[u8], out: &mut [f32]);
    decode_iq3_s(bytes: &[u8], out: &mut [f32]);
    decode_iq1_s(bytes: &[u8], out: &mut [f32]);
    decode_iq1_m(bytes: &[u8], out: &mut [f32]);
    encode_iq2_s(x: &[f32], out: &mut [u8]);
    encode_iq3_xxs(x: &[f32], out: &mut [u8]);
    encode_iq3_s(x: &[f32], out: &mut [u8]);
    encode_iq1_m(x: &[f32], out: &mut [u8]);
    weighted_iq2_xxs(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_iq2_xs(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_iq2_s(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_iq3_xxs(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_iq3_s(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_iq1_s(rows: &[f32], importance: &[f32], out: &mut [u8]);
    weighted_iq1_m(rows: &[f32], importance: &[f32], out: &mut [u8]);
    decode_iq4_nl(bytes: &[u8], out: &mut [f32]);
    decode_iq4_xs(bytes: &[u8], out: &mut [f32]);
    unpack_q8_0(source: Source<'_>, panel: IntegerPanel<'_>);
    unpack_q4_0(source: Source<'_>, panel: IntegerPanel<'_>);
    unpack_q5_0(source: Source<'_>, panel: IntegerPanel<'_>);
    unpack_iq4_nl(source: Source<'_>, panel: IntegerPanel<'_>);
    unpack_mxfp4(source: Source<'_>, panel: IntegerPanel<'_>);
    unpack_q2_k(source: Source<'_>, panel: IntegerPanel<'_>);
    unpack_q3_k(source: Source<'_>, panel: IntegerPanel<'_>);
    unpack_q4_k(source: Source<'_>, panel: IntegerPanel<'_>);
    unpack_q5_k(source: Source<'_>, panel: IntegerPanel<'_>);
    unpack_q6_k(source: Source<'_>, panel: IntegerPanel<'_>);
    unpack_iq4_xs(source: Source<'_>, panel: IntegerPanel<'_>);
}

/// Methods that run the portable loops, compiled with the features of a set.
#[cfg(target_arch = "x86_64")]
macro_rules! shared_kernels {
    (
        $kernels:ty, $features:literal;
        $($name:ident($($argument:ident: $ty:ty),*) $(-> $result:ty)?;)*
    ) => {
        impl $kernels {
            $(pub(crate) fn $name(self, $($argument: $ty),*) $(-> $result)? {
                #[target_feature(enable = $features)]
                fn run($($argument: $ty),*) $(-> $result)? {
                    $crate::arch::portable::$name($($argument),*)
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run($($argument),*) }
            })*
        }
    };
}
#[cfg(target_arch = "x86_64")]
use shared_kernels;

/// Methods that run the searches in lanes ([`portable::search`]) over the vectors of a set.
#[cfg(target_arch = "x86_64")]
macro_rules! lane_kernels {
    ($kernels:ty, $features:literal; $($name:ident($($argument:ident: $ty:ty),*);)*) => {
        impl $kernels {
            $(pub(crate) fn $name(self, $($argument: $ty),*) {
                #[target_feature(enable = $features)]
                fn run(kernels: $kernels, $($argument: $ty),*) {
                    $crate::arch::portable::search::$name(kernels, $($argument),*)
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(self, $($argument),*) }
            })*
        }
    };
}
#[cfg(target_arch = "x86_64")]
use lane_kernels;

/// Methods written by hand in the same module, as functions with the features of a set.
#[cfg(target_arch = "x86_64")]
macro_rules! own_kernels {
    ($kernels:ty; $($name:ident($($argument:ident: $ty:ty),*);)*) => {
        impl $kernels {
            $(pub(crate) fn $name(self, $($argument: $ty),*) {
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { $name($($argument),*) }
            })*
        }
    };
}
#[cfg(target_arch = "x86_64")]
use own_kernels;

/// Methods that run the portable loops over blocks with points of a grid, compiled with the features of a set, with its own search
/// for the nearest point.
#[cfg(target_arch = "x86_64")]
macro_rules! searching_kernels {
    ($kernels:ty, $features:literal; $($name:ident($($argument:ident: $ty:ty),*);)*) => {
        impl $kernels {
            $(pub(crate) fn $name(self, $($argument: $ty),*) {
                #[target_feature(enable = $features)]
                fn run(kernels: $kernels, $($argument: $ty),*) {
                    $crate::arch::portable::searching::$name(kernels, $($argument),*);
                }
                // SAFETY: `self` exists only where the CPU has the features.
                unsafe { run(self, $($argument),*) }
            })*
        }
    };
}
#[cfg(target_arch = "x86_64")]
use searching_kernels;
