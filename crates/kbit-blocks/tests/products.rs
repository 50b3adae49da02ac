//! Products: the same numbers with every instruction set, for one row and for many, and what is refused.

use kbit_blocks::{BlockError, InstructionSet, Kernels, activation_type};
use kbit_types::GgmlType;
use proptest::prelude::*;

/// Whole blocks of every type.
const COLS: usize = 512;

fn bytes(ty: GgmlType) -> usize {
    ty.bytes_for(COLS as u64).and_then(|bytes| usize::try_from(bytes).ok()).expect("whole blocks")
}

fn types() -> impl Iterator<Item = (GgmlType, GgmlType)> {
    GgmlType::ALL.iter().filter_map(|ty| activation_type(*ty).map(|activations| (*ty, activations)))
}

/// Floats to compare by their bits; which NaN it is does not count.
fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| if value.is_nan() { u32::MAX } else { value.to_bits() }).collect()
}

proptest! {
    /// Any bytes are blocks; those of activations, too, which are more than `encode_activations` makes.
    #[test]
    fn instruction_sets_agree_on_any_bytes(
        rows in 0usize..10, count in 0usize..4, extra in 0usize..3, random in any::<[u8; 32]>(),
    ) {
        // Bytes of a generator: proptest is slow at long vectors.
        let mut state = u64::from_le_bytes(random.as_chunks::<8>().0[0]) | 1;
        let mut fill = |length: usize| -> Vec<u8> {
            (0..length).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state.to_le_bytes()[7]
            }).collect()
        };
        for (ty, activation_type) in types() {
            let weights = fill(rows * bytes(ty));
            let activations = fill(count * bytes(activation_type));
            let stride = rows + extra;
            let multiply = |kernels: Kernels| {
                let mut out = vec![7.0; count * stride];
                kernels.dot_rows(ty, &weights, &activations, COLS, &mut out, stride).map(|()| bits(&out))
            };
            let expected = multiply(Kernels::up_to(InstructionSet::Portable));
            for set in [InstructionSet::Avx2, InstructionSet::Avx512] {
                prop_assert_eq!(&multiply(Kernels::up_to(set)), &expected, "{} {:?}", ty, set);
            }
            let expected = expected.expect("sizes that fit");
            for (index, expected) in expected.iter().enumerate() {
                let (activation, row) = (index / stride, index % stride);
                if row >= rows {
                    prop_assert_eq!(*expected, 7f32.to_bits(), "{}: written past the rows", ty);
                    continue;
                }
                let weights = &weights[row * bytes(ty)..][..bytes(ty)];
                let activations = &activations[activation * bytes(activation_type)..][..bytes(activation_type)];
                let alone = Kernels::best().dot(ty, weights, activations, COLS).expect("sizes that fit");
                prop_assert_eq!(bits(&[alone])[0], *expected, "{} row {}", ty, row);
            }
        }
    }

    #[test]
    fn instruction_sets_agree_on_activations(
        x in prop::collection::vec(prop_oneof![Just(0.0f32), -4.0f32..4.0, Just(f32::MIN_POSITIVE), -900.0f32..900.0], COLS),
        small in prop_oneof![Just(1.0f32), Just(1e-38), Just(1e-43)],
    ) {
        let x: Vec<f32> = x.iter().map(|x| x * small).collect();
        for ty in [GgmlType::Q8_0, GgmlType::Q8_1, GgmlType::Q8_K] {
            let encode = |set| {
                let mut out = vec![0xa5; bytes(ty)];
                Kernels::up_to(set).encode_activations(ty, &x, COLS, &mut out).map(|()| out)
            };
            let expected = encode(InstructionSet::Portable);
            prop_assert_eq!(&encode(InstructionSet::Avx2), &expected, "{}", ty);
            prop_assert_eq!(&encode(InstructionSet::Avx512), &expected, "{}", ty);
        }
    }

}

proptest! {
    // Searches for the best codes take most of the time.
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Against the sum of the decoded weights times the activations in double precision. What remains is the rounding of the
    /// activations: half a step of 1/127 of the largest, 3, for each weight.
    #[test]
    fn products_are_near_those_of_decoded_weights(x in prop::collection::vec(-3.0f32..3.0, COLS), row in 0usize..COLS) {
        let weights: Vec<f32> = (0..COLS).map(|j| x[(j + row) % COLS] * 0.1 + 0.01).collect();
        for (ty, activation_type) in types().filter(|(ty, _)| kbit_blocks::can_encode(*ty)) {
            let (mut encoded, mut activations) = (vec![0; bytes(ty)], vec![0; bytes(activation_type)]);
            // Some types need importance.
            let importance = [1.0; COLS];
            kbit_blocks::encode_row_range(ty, &weights, COLS, Some(&importance), &mut encoded).expect("finite");
            Kernels::best().encode_activations(activation_type, &x, COLS, &mut activations).expect("finite");
            let mut decoded = vec![0.0; COLS];
            kbit_blocks::decode(ty, &encoded, &mut decoded).expect("it decodes");
            let exact: f64 = decoded.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
            let bound: f64 = decoded.iter().map(|w| f64::from(w.abs()) * 3.0 / 127.0).sum();
            let found = f64::from(Kernels::best().dot(ty, &encoded, &activations, COLS).expect("a product"));
            prop_assert!((found - exact).abs() <= bound, "{}: {} for {} within {}", ty, found, exact, bound);
        }
    }
}

#[test]
fn refuses_buffers_that_do_not_fit_each_other() {
    let kernels = Kernels::best();
    let (weights, activations) = (vec![0; 2 * 36], vec![0; 2 * 68]);
    let dot = |weights: &[u8], activations: &[u8], cols, out: &mut [f32], stride| {
        kernels.dot_rows(GgmlType::Q4_0, weights, activations, cols, out, stride)
    };
    assert_eq!(dot(&weights, &activations, 64, &mut [0.0; 4], 2), Ok(()));
    assert_eq!(dot(&weights, &activations, 64, &mut [0.0; 5], 3), Ok(()));
    for error in [
        dot(&weights[1..], &activations, 64, &mut [0.0; 4], 2),
        dot(&weights, &activations[1..], 64, &mut [0.0; 4], 2),
        dot(&weights, &activations, 64, &mut [0.0; 3], 2),
        dot(&weights, &activations, 64, &mut [0.0; 4], 1),
        dot(&weights, &activations, 64, &mut [0.0; 4], usize::MAX),
    ] {
        assert!(matches!(error, Err(BlockError::Size { .. })), "{error:?}");
    }
    assert!(matches!(dot(&weights, &activations, 65, &mut [0.0; 4], 2), Err(BlockError::Columns { .. })));
    assert!(matches!(dot(&weights, &activations, 0, &mut [0.0; 4], 2), Err(BlockError::Columns { .. })));
    let error = kernels.dot(GgmlType::F16, &[0; 128], &[0; 128], 64).unwrap_err();
    assert!(error.to_string().contains("F16 cannot be multiplied"), "{error}");
}

#[test]
fn refuses_activations_that_8_bits_cannot_hold() {
    let kernels = Kernels::best();
    for (ty, block, value, refused) in [
        (GgmlType::Q8_0, 34, f32::NAN, true),
        (GgmlType::Q8_0, 34, f32::INFINITY, true),
        (GgmlType::Q8_0, 34, 9e6, true),
        (GgmlType::Q8_0, 34, -8e6, false),
        // The scaled sum is the activation itself where the others are zero.
        (GgmlType::Q8_1, 36, 70000.0, true),
        (GgmlType::Q8_1, 36, 60000.0, false),
    ] {
        let mut x = [0.0; 64];
        x[40] = value;
        let result = kernels.encode_activations(ty, &x, 64, &mut vec![0; 2 * block]);
        assert_eq!(result.is_err(), refused, "{ty} {value}");
        if let Err(error) = result {
            assert!(error.to_string().contains("at row 0, column 40 does not fit"), "{error}");
        }
    }
    let error = kernels.encode_activations(GgmlType::Q4_0, &[0.0; 64], 64, &mut [0; 36]).unwrap_err();
    assert!(error.to_string().contains("choose one of Q8_0, Q8_1, Q8_K"), "{error}");
}
