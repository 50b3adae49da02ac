//! Bytes and floats do not depend on the instruction set: blocks of many kinds, with importance of many kinds.

use kbit_blocks::{InstructionSet, Kernels, can_decode, can_encode, needs_importance, uses_importance};
use kbit_types::GgmlType;
use proptest::prelude::*;

/// Columns: whole blocks of every type.
const COLS: usize = 512;

#[derive(Clone, Copy, Debug)]
enum Weights {
    Gaussian,
    HeavyTailed,
    Bf16,
    Sparse,
    SignedZeros,
    Tied,
    NearPowersOfTwo,
    Denormal,
    Constant,
    Signs,
    ManyMagnitudes,
}

#[derive(Clone, Copy, Debug)]
enum Importance {
    Squares,
    Ones,
    WithZeros,
    ManyMagnitudes,
}

/// A xorshift generator: uniform numbers below 1, and normal ones.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    fn uniform(&mut self) -> f32 {
        (self.bits() >> 8) as f32 / (1u32 << 24) as f32
    }

    fn normal(&mut self) -> f32 {
        let (radius, angle) = (-2.0 * self.uniform().max(1e-9).ln(), std::f32::consts::TAU * self.uniform());
        radius.sqrt() * angle.cos()
    }

    fn weight(&mut self, kind: Weights, scale: f32) -> f32 {
        let x = self.normal();
        match kind {
            Weights::Gaussian => x * scale,
            Weights::HeavyTailed => x * x * x * scale / (self.uniform() + 0.01),
            Weights::Bf16 => f32::from_bits((x * scale).to_bits() & 0xffff_0000),
            Weights::Sparse if self.bits().is_multiple_of(8) => x * scale,
            Weights::Sparse => 0.0,
            // Zeros of both signs are the least, so the first one's sign is that of a minimum.
            Weights::SignedZeros if self.bits().is_multiple_of(4) => x.abs() * scale,
            Weights::SignedZeros => 0f32.copysign(x),
            Weights::Tied => (2.0 * x).round() * scale,
            Weights::NearPowersOfTwo => {
                let power = (3.0 * x).exp2().to_bits() & 0xff80_0000;
                f32::from_bits((power + self.bits() % 3 - 1) | self.bits() & 1 << 31)
            }
            Weights::Denormal => x * 1e-39,
            Weights::Constant => scale,
            Weights::Signs => scale.copysign(x),
            Weights::ManyMagnitudes => x * (40.0 * self.uniform() - 35.0).exp2(),
        }
    }

    fn importance(&mut self, kind: Importance) -> f32 {
        let x = self.normal();
        match kind {
            Importance::Squares => x * x,
            Importance::Ones => 1.0,
            Importance::WithZeros if self.bits().is_multiple_of(3) => 0.0,
            Importance::WithZeros => x * x,
            Importance::ManyMagnitudes => (40.0 * self.uniform() - 20.0).exp2(),
        }
    }
}

fn kernels() -> impl Iterator<Item = Kernels> {
    let sets = [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512];
    sets.into_iter()
        .map(|set| (set, Kernels::up_to(set)))
        .filter(|(set, kernels)| kernels.instruction_set() == *set)
        .map(|(_, kernels)| kernels)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn bytes_and_floats_do_not_depend_on_the_instruction_set(
        weights in prop::sample::select(vec![
            Weights::Gaussian, Weights::HeavyTailed, Weights::Bf16, Weights::Sparse, Weights::SignedZeros, Weights::Tied,
            Weights::NearPowersOfTwo, Weights::Denormal, Weights::Constant, Weights::Signs, Weights::ManyMagnitudes,
        ]),
        importance in prop::sample::select(vec![
            Importance::Squares, Importance::Ones, Importance::WithZeros, Importance::ManyMagnitudes,
        ]),
        exponent in -20i8..4,
        seed in 1u64..,
    ) {
        let mut random = Random(seed);
        let scale = f32::from(exponent).exp2() * (1.0 + random.uniform());
        let x: Vec<f32> = (0..COLS).map(|_| random.weight(weights, scale)).collect();
        let importance: Vec<f32> = (0..COLS).map(|_| random.importance(importance)).collect();
        for ty in GgmlType::ALL.iter().copied().filter(|ty| can_encode(*ty)) {
            let size = usize::try_from(ty.bytes_for(COLS as u64).unwrap()).unwrap();
            let importances = [(!needs_importance(ty)).then_some(None), uses_importance(ty).then_some(Some(&importance[..]))];
            for importance in importances.into_iter().flatten() {
                let mut first: Option<(Vec<u8>, Vec<u32>)> = None;
                for kernels in kernels() {
                    let mut bytes = vec![0xa5; size];
                    // What cannot be encoded at all cannot with any instruction set.
                    let encoded = kernels.encode_row_range(ty, &x, COLS, importance, &mut bytes);
                    if encoded.is_err() {
                        bytes.clear();
                    }
                    let mut floats = vec![f32::NAN; COLS];
                    if encoded.is_ok() && can_decode(ty) {
                        kernels.decode(ty, &bytes, &mut floats).unwrap();
                    }
                    let this = (bytes, floats.iter().map(|x| x.to_bits()).collect());
                    if let Some(first) = &first {
                        prop_assert!(*first == this, "{} {:?}", ty, kernels);
                    } else {
                        first = Some(this);
                    }
                }
            }
        }
    }
}

/// Squares overflow, so with importance of zero all weights of the error are NaN: the search for the scale takes none, as in ggml.
#[test]
fn weights_whose_squares_overflow_without_importance_are_zeros_in_iq2_xxs() {
    let rows: Vec<f32> = (0..=255u8).map(|i| (f32::from(i) - 127.5) * 1e26).collect();
    for set in [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512] {
        let kernels = Kernels::up_to(set);
        let mut out = [0xff; 66];
        kernels.encode_row_range(GgmlType::IQ2_XXS, &rows, 256, Some(&[0.0; 256]), &mut out).unwrap();
        assert_eq!(out, [0; 66], "{set:?}");
    }
}
