//! llama.cpp's number of a file's type, where only its tensors are known.

use kbit_types::GgmlType;

/// Types, and the number (`enum llama_ftype`) of a file whose tensors mostly have them. Source: llama.cpp's model loader.
const NUMBERS: &[(GgmlType, u32)] = &[
    (GgmlType::F32, 0),
    (GgmlType::F16, 1),
    (GgmlType::Q4_0, 2),
    (GgmlType::Q4_1, 3),
    (GgmlType::Q8_0, 7),
    (GgmlType::Q5_0, 8),
    (GgmlType::Q5_1, 9),
    (GgmlType::Q2_K, 10),
    (GgmlType::Q3_K, 12),
    (GgmlType::Q4_K, 15),
    (GgmlType::Q5_K, 17),
    (GgmlType::Q6_K, 18),
    (GgmlType::IQ2_XXS, 19),
    (GgmlType::IQ2_XS, 20),
    (GgmlType::IQ3_XXS, 23),
    (GgmlType::IQ1_S, 24),
    (GgmlType::IQ4_NL, 25),
    (GgmlType::IQ3_S, 26),
    (GgmlType::IQ2_S, 28),
    (GgmlType::IQ4_XS, 30),
    (GgmlType::IQ1_M, 31),
    (GgmlType::BF16, 32),
    (GgmlType::TQ1_0, 36),
    (GgmlType::TQ2_0, 37),
    (GgmlType::MXFP4, 38),
    (GgmlType::NVFP4, 39),
    (GgmlType::Q1_0, 40),
    (GgmlType::Q2_0, 41),
];

/// llama.cpp's number for a file whose matrices mostly have the type `ty`; `None` where it has none.
#[must_use]
pub fn file_type_of(ty: GgmlType) -> Option<u32> {
    NUMBERS.iter().find(|(known, _)| *known == ty).map(|(_, number)| *number)
}

/// What llama.cpp takes a file for that does not state its type: the number of the type of most of its tensors, marked as guessed.
/// `types`: of all tensors, in llama-quantize's order.
#[must_use]
pub fn guessed_file_type(types: impl IntoIterator<Item = GgmlType>) -> u32 {
    const GUESSED: u32 = 1024;
    let mut counts: Vec<(GgmlType, usize)> = Vec::new();
    let (mut most, mut winner) = (0, GgmlType::F32);
    for ty in types {
        let index = counts.iter().position(|(known, _)| *known == ty).unwrap_or_else(|| {
            counts.push((ty, 0));
            counts.len() - 1
        });
        counts[index].1 += 1;
        if counts[index].1 > most {
            (most, winner) = (counts[index].1, ty);
        }
    }
    // The loader's own table has no MXFP4.
    let number = if winner == GgmlType::MXFP4 { None } else { file_type_of(winner) };
    number.unwrap_or(0) | GUESSED
}
