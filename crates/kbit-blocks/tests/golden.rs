//! Bytes and floats against ggml's own output: a small fixture here, and the full reference data where it lies beside the
//! repository.
#![expect(clippy::print_stderr, reason = "says what it skipped")]

use kbit_blocks::{BlockError, InstructionSet, Kernels};
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
    GgmlType::TQ1_0,
    GgmlType::TQ2_0,
    GgmlType::MXFP4,
    GgmlType::NVFP4,
    GgmlType::Q1_0,
    GgmlType::Q2_0,
    GgmlType::IQ1_M,
    GgmlType::IQ2_S,
    GgmlType::IQ3_XXS,
    GgmlType::IQ3_S,
    GgmlType::IQ4_NL,
    GgmlType::IQ4_XS,
];
/// Only with importance.
const WEIGHTED: &[GgmlType] = &[GgmlType::IQ1_S, GgmlType::IQ2_XXS, GgmlType::IQ2_XS];
const DECODED: &[GgmlType] = &[];

fn floats(data: &SafeTensors<'_>, name: &str) -> Option<Vec<f32>> {
    let tensor = data.tensor(name).ok()?;
    Some(tensor.data().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
}

/// The kernels of every instruction set that this CPU has.
fn kernels() -> impl Iterator<Item = Kernels> {
    let sets = [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512];
    sets.into_iter()
        .map(|set| (set, Kernels::up_to(set)))
        .filter(|(set, kernels)| kernels.instruction_set() == *set)
        .map(|(_, kernels)| kernels)
}

/// Compares every set of `path`; the least number of comparisons made with an instruction set.
fn compare(ty: GgmlType, path: &Path) -> usize {
    kernels().map(|kernels| compare_with(kernels, ty, path)).min().unwrap_or(0)
}

fn compare_with(kernels: Kernels, ty: GgmlType, path: &Path) -> usize {
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
                let mut out = vec![0xa5; packed.data().len()];
                kernels.encode_row_range(ty, &input, cols, importance, &mut out).expect("it encodes");
                assert!(out == packed.data(), "{ty} {set}{suffix} {kernels:?}: bytes differ");
                compared += 1;
            }
            let expected = floats(&data, &format!("{set}.decoded{suffix}")).expect("decoded");
            let mut out = vec![f32::NAN; expected.len()];
            kernels.decode(ty, packed.data(), &mut out).expect("it decodes");
            let same = out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{ty} {set}{suffix} {kernels:?}: floats differ");
            compared += 1;
        }
    }
    compared
}

#[test]
fn the_fixture_reproduces() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for ty in ENCODED.iter().chain(WEIGHTED).chain(DECODED) {
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
    for ty in WEIGHTED.iter().chain(DECODED) {
        assert!(compare(*ty, &folder.join(format!("{ty}.safetensors"))) >= 8, "{ty}");
    }
}

/// Products with ggml's generic `ggml_vec_dot_*`, and the activations that they were made of: `tests/python/dots_golden.py`.
#[test]
fn activations_and_products_reproduce() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/dots.safetensors");
    let bytes = std::fs::read(path).expect("the golden file");
    let data = SafeTensors::deserialize(&bytes).expect("safetensors");
    let input = floats(&data, "input").expect("activations");
    let cols = data.tensor("input").expect("activations").shape()[1];
    let activations = |ty: GgmlType| data.tensor(&format!("{ty}.activations")).expect("activations").data();
    for kernels in kernels() {
        for ty in [GgmlType::Q8_0, GgmlType::Q8_1, GgmlType::Q8_K] {
            let mut out = vec![0xa5; activations(ty).len()];
            kernels.encode_activations(ty, &input, cols, &mut out).expect("activations");
            assert!(out == activations(ty), "{ty}, {kernels:?}: bytes differ");
        }
        for ty in GgmlType::ALL {
            let Some(activation_type) = kbit_blocks::activation_type(*ty) else { continue };
            let weights = data.tensor(&format!("{ty}.weights")).expect("weights");
            let expected = floats(&data, &format!("{ty}.products")).expect("products");
            let (rows, row_bytes) = (weights.shape()[0], weights.shape()[1]);
            let activations = activations(activation_type);
            let mut out = vec![0.0; expected.len()];
            kernels.dot_rows(*ty, weights.data(), activations, cols, &mut out, rows).expect("products");
            for (index, (found, expected)) in out.iter().zip(&expected).enumerate() {
                let (activation, row) = (index / rows, index % rows);
                let place = format!("{ty}, {kernels:?}, activation {activation}, row {row}");
                assert_eq!(found.to_bits(), expected.to_bits(), "{place}: {found} for {expected}");
                // The same alone.
                let weights = &weights.data()[row * row_bytes..][..row_bytes];
                let bytes = activations.len() / 3;
                let activations = &activations[activation * bytes..][..bytes];
                let found = kernels.dot(*ty, weights, activations, cols).expect("a product");
                assert_eq!(found.to_bits(), expected.to_bits(), "{place}: {found} for {expected}");
            }
        }
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
    assert!(kbit_blocks::decode(GgmlType::Q8_K, &[0; 292], &mut [0.0; 256]).is_err());
}

#[test]
fn mxfp4_blocks_whose_scale_would_be_nan_are_refused() {
    let mut values = [0.0; 64];
    values[40] = f32::MIN_POSITIVE;
    let error = kbit_blocks::encode_row_range(GgmlType::MXFP4, &values, 64, None, &mut [0; 34]).unwrap_err();
    assert!(error.to_string().contains("at row 0, column 40 is too small"), "{error}");
    values[41] = f32::MIN_POSITIVE * 2.0;
    kbit_blocks::encode_row_range(GgmlType::MXFP4, &values, 64, None, &mut [0; 34]).unwrap();
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

#[test]
fn types_that_need_importance_are_refused_without_it() {
    for ty in WEIGHTED {
        assert!(kbit_blocks::can_encode(*ty) && kbit_blocks::needs_importance(*ty));
        let mut out = vec![0; usize::try_from(ty.block_bytes()).unwrap()];
        let error = kbit_blocks::encode_row_range(*ty, &[0.5; 256], 256, None, &mut out).unwrap_err();
        assert!(matches!(error, BlockError::NeedsImportance { .. }));
        let text = error.to_string();
        assert!(text.contains("importance matrix") && text.contains("IQ2_S"), "{text}");
    }
    assert!(
        !kbit_blocks::needs_importance(GgmlType::IQ2_S) && !kbit_blocks::needs_importance(GgmlType::Q8_K)
    );
}

/// As ggml, which aborts where it finds no point of the grid, and takes no scale, so writes zeros, where no sum is a number.
#[test]
fn importance_that_makes_sums_overflow_is_refused_or_leaves_zeros() {
    let x: Vec<f32> = (0u8..=255).map(|i| f32::from(i) * 37.0 % 11.0 - 5.0).collect();
    let rows = [x.clone(), x].concat();
    let mut importance = vec![1.0; 512];
    importance[256..].fill(f32::MAX);
    let encode = |kernels: Kernels, ty: GgmlType| {
        let block = usize::try_from(ty.block_bytes()).unwrap();
        let mut out = vec![0xff; block * 2];
        kernels.encode_row_range(ty, &rows, 512, Some(&importance), &mut out).map(|()| out.split_off(block))
    };
    for kernels in kernels() {
        for ty in [GgmlType::IQ2_XS, GgmlType::IQ2_S, GgmlType::IQ3_XXS, GgmlType::IQ3_S] {
            let overflow = BlockError::Overflow { ty, row: 0, column: 256 };
            assert_eq!(encode(kernels, ty), Err(overflow), "{ty} {kernels:?}");
        }
        for ty in [GgmlType::IQ1_S, GgmlType::IQ1_M, GgmlType::IQ2_XXS] {
            let block = encode(kernels, ty).unwrap();
            assert!(block.iter().all(|byte| *byte == 0), "{ty} {kernels:?}");
        }
    }
}
