//! Bytes and floats against ggml's own output: a small fixture here, and the full reference data where it lies beside the
//! repository.
#![expect(clippy::print_stderr, reason = "says what it skipped")]

use kbit_blocks::{InstructionSet, Kernels};
use kbit_types::GgmlType;
use safetensors::SafeTensors;
use std::path::{Path, PathBuf};

const ENCODED: &[GgmlType] = &[
    GgmlType::F16,
    GgmlType::BF16,
    GgmlType::Q8_0,
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
    GgmlType::IQ4_NL,
    GgmlType::IQ4_XS,
];
const DECODED: &[GgmlType] = &[];

fn floats(data: &SafeTensors<'_>, name: &str) -> Option<Vec<f32>> {
    let tensor = data.tensor(name).ok()?;
    Some(tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// Compares every set of `path`; the number of comparisons made.
fn compare(ty: GgmlType, path: &Path) -> usize {
    let bytes = std::fs::read(path).expect("the golden file");
    let data = SafeTensors::deserialize(&bytes).expect("safetensors");
    let weights = floats(&data, "weights").expect("weights");
    let cols = weights.len();
    let mut compared = 0;
    for set in ["normal", "heavy", "outlier", "edge"] {
        let Some(input) = floats(&data, &format!("{set}.input")) else { continue };
        for (suffix, importance) in [("", None), ("_w", Some(weights.as_slice()))] {
            let Ok(packed) = data.tensor(&format!("{set}.packed{suffix}")) else { continue };
            if kbit_blocks::can_encode(ty) {
                for instructions in [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512] {
                    let kernels = Kernels::up_to(instructions);
                    let mut out = vec![0xa5; packed.data().len()];
                    kernels.encode_row_range(ty, &input, cols, importance, &mut out).expect("it encodes");
                    assert!(out == packed.data(), "{ty} {set}{suffix}, {instructions:?}: bytes differ");
                }
                compared += 1;
            }
            let expected = floats(&data, &format!("{set}.decoded{suffix}")).expect("decoded");
            let mut out = vec![f32::NAN; expected.len()];
            kbit_blocks::decode(ty, packed.data(), &mut out).expect("it decodes");
            let same = out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{ty} {set}{suffix}: floats differ");
            compared += 1;
        }
    }
    compared
}

#[test]
fn the_fixture_reproduces() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for ty in ENCODED.iter().chain(DECODED) {
        assert!(compare(*ty, &folder.join(format!("{ty}.safetensors"))) > 0);
    }
}

#[test]
fn the_full_reference_reproduces() {
    let folder: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/reference/quant");
    if !folder.exists() {
        eprintln!("skipped: no reference data at ../shared/reference/quant");
        return;
    }
    for ty in ENCODED {
        assert!(compare(*ty, &folder.join(format!("{ty}.safetensors"))) >= 16, "{ty}");
    }
    for ty in DECODED {
        assert!(compare(*ty, &folder.join(format!("{ty}.safetensors"))) >= 8, "{ty}");
    }
}

#[test]
fn rows_that_are_not_whole_blocks_and_values_that_are_not_finite_are_refused() {
    let mut out = vec![0; 18];
    let error = kbit_blocks::encode_row_range(GgmlType::Q4_0, &[0.0; 33], 33, None, &mut out).unwrap_err();
    assert!(error.to_string().contains("whole blocks of 32"), "{error}");
    let mut values = [0.0; 64];
    values[40] = f32::NAN;
    let error = kbit_blocks::encode_row_range(GgmlType::Q4_0, &values, 32, None, &mut [0; 36]).unwrap_err();
    assert!(error.to_string().contains("NaN at row 1, column 8"), "{error}");
    assert!(kbit_blocks::decode(GgmlType::Q4_0, &[0; 17], &mut [0.0; 32]).is_err());
    assert!(kbit_blocks::decode(GgmlType::IQ1_S, &[0; 50], &mut [0.0; 256]).is_err());
}

#[test]
fn every_f16_and_bf16_comes_back() {
    for ty in [GgmlType::F16, GgmlType::BF16] {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut values = vec![0.0; 65536];
        kbit_blocks::decode(ty, &bytes, &mut values).unwrap();
        for (index, value) in values.iter().enumerate().filter(|(_, value)| value.is_finite()) {
            let mut back = [0; 2];
            kbit_blocks::encode_row_range(ty, &[*value], 1, None, &mut back).unwrap();
            assert_eq!(usize::from(u16::from_le_bytes(back)), index, "{ty}");
        }
    }
}
