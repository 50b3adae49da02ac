//! What takes the place of a block type where rows are not whole blocks of it.

use kbit_types::GgmlType;

/// Types with long blocks, and the type of 32-blocks that stands in for each. Source: llama-quantize.
const SHORTER: &[(GgmlType, &[GgmlType])] = &[
    (
        GgmlType::IQ4_NL,
        &[
            GgmlType::IQ1_S,
            GgmlType::IQ1_M,
            GgmlType::IQ2_XXS,
            GgmlType::IQ2_XS,
            GgmlType::IQ2_S,
            GgmlType::IQ3_XXS,
            GgmlType::IQ3_S,
            GgmlType::IQ4_XS,
        ],
    ),
    (GgmlType::Q4_0, &[GgmlType::Q2_0, GgmlType::Q2_K, GgmlType::Q3_K, GgmlType::TQ1_0, GgmlType::TQ2_0]),
    (GgmlType::Q5_0, &[GgmlType::Q4_K]),
    (GgmlType::Q5_1, &[GgmlType::Q5_K]),
    (GgmlType::Q8_0, &[GgmlType::Q6_K]),
];

/// The type that stores rows of `columns` weights where `wanted` cannot; `None` where it can.
///
/// A type with 32-blocks at nearly as many bits where one is known and fits, else F16. llama-quantize stops at types with long blocks
/// for which it knows no other (Q1_0, NVFP4); here these become F16 too.
#[must_use]
pub fn fallback(wanted: GgmlType, columns: u64) -> Option<GgmlType> {
    if columns.is_multiple_of(wanted.block_elements()) {
        return None;
    }
    let shorter = SHORTER.iter().find(|(_, wide)| wide.contains(&wanted)).map(|(shorter, _)| *shorter);
    Some(shorter.filter(|ty| columns.is_multiple_of(ty.block_elements())).unwrap_or(GgmlType::F16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_blocks_give_way_to_short_ones_and_these_to_f16() {
        for (wanted, columns, stored) in [
            (GgmlType::Q4_K, 256, None),
            (GgmlType::Q4_K, 96, Some(GgmlType::Q5_0)),
            (GgmlType::IQ2_XS, 96, Some(GgmlType::IQ4_NL)),
            (GgmlType::Q6_K, 33, Some(GgmlType::F16)),
            (GgmlType::Q8_0, 33, Some(GgmlType::F16)),
            (GgmlType::Q2_0, 96, Some(GgmlType::Q4_0)),
            (GgmlType::Q1_0, 64, Some(GgmlType::F16)),
            (GgmlType::F32, 33, None),
        ] {
            assert_eq!(fallback(wanted, columns), stored, "{wanted} {columns}");
        }
    }
}
