//! Rows may be split anywhere: batches that go on across rows change no byte, for weights that searches find hard.

use kbit_blocks::{BlockError, InstructionSet, Kernels, can_encode, needs_importance, uses_importance};
use kbit_types::GgmlType;
use proptest::prelude::*;

/// A number whose search may tie, overflow, vanish or be lost in rounding.
fn weight() -> impl Strategy<Value = f32> {
    prop_oneof![
        8 => -1.0f32..1.0,
        2 => (-1.0f32..1.0).prop_map(|x| x * x * x * 1000.0),
        2 => Just(0.0f32),
        1 => Just(-0.0f32),
        2 => (-4i8..=4).prop_map(f32::from),
        1 => (-126i32..8, -2i32..=2).prop_map(|(exponent, step)| {
            f32::from_bits(2f32.powi(exponent).to_bits().wrapping_add_signed(step))
        }),
        1 => (0u32..0x0080_0000).prop_map(f32::from_bits),
    ]
}

/// A part of a row: any weights, equal ones, or ones of the same sign or size.
fn part() -> impl Strategy<Value = Vec<f32>> {
    prop_oneof![
        4 => prop::collection::vec(weight(), 32),
        1 => weight().prop_map(|x| vec![x; 32]),
        1 => prop::collection::vec(weight().prop_map(f32::abs), 32),
        1 => prop::collection::vec(weight().prop_map(|x| -x.abs() * 1e-12), 32),
    ]
}

fn rows(cols: usize, count: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(part(), cols * count / 32).prop_map(|parts| parts.concat())
}

fn importance(cols: usize) -> impl Strategy<Value = Vec<f32>> {
    let one = prop_oneof![3 => 0.0f32..1.0, 1 => Just(0.0f32), 1 => 0.0f32..1e6, 1 => Just(1.0f32)];
    prop::collection::vec(one, cols)
}

/// `None` of weights that are too small for the scales of the type.
fn encoded(
    set: InstructionSet,
    ty: GgmlType,
    x: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
) -> Option<Vec<u8>> {
    let mut out = vec![0xa5; usize::try_from(ty.bytes_for(x.len() as u64).expect("whole blocks")).unwrap()];
    match Kernels::up_to(set).encode_row_range(ty, x, cols, importance, &mut out) {
        Ok(()) => Some(out),
        Err(BlockError::TooSmall { .. }) => None,
        Err(other) => panic!("{ty} {set:?}: {other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn may_be_split_anywhere(
        x in rows(768, 5),
        importance in importance(768),
        first in 1usize..5,
    ) {
        for ty in GgmlType::ALL.iter().copied().filter(|ty| can_encode(*ty)) {
            let plain = (!needs_importance(ty)).then_some(None);
            let weighted = uses_importance(ty).then_some(Some(importance.as_slice()));
            for importance in plain.into_iter().chain(weighted) {
                let expected = encoded(InstructionSet::Portable, ty, &x, 768, importance);
                for set in [InstructionSet::Avx2, InstructionSet::Avx512] {
                    let (head, tail) = x.split_at(first * 768);
                    let split = [head, tail].map(|x| encoded(set, ty, x, 768, importance));
                    let split = split.into_iter().collect::<Option<Vec<_>>>().map(|parts| parts.concat());
                    prop_assert!(encoded(set, ty, &x, 768, importance) == expected, "{} {:?}", ty, set);
                    prop_assert!(split == expected, "{} {:?}, split after row {}", ty, set, first);
                }
            }
        }
    }
}
