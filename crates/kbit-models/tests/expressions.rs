//! Source expressions against plain loops over whole tensors.

mod common;

use common::{Tensor, tensor, write};
use kbit_formats::Checkpoint;
use kbit_formats::gguf::{GgufLayout, GgufWriter, Metadata, NewTensor, WriteOptions};
use kbit_models::{ModelError, SourceExpr};
use kbit_types::{Dtype, GgmlType, MatrixShape};
use proptest::prelude::*;

/// A checkpoint of one file, kept open while the test runs.
fn checkpoint(tensors: &[Tensor]) -> (tempfile::TempDir, Checkpoint) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, tensors);
    (folder, Checkpoint::open(&path).unwrap())
}

fn whole(expr: &SourceExpr, checkpoint: &Checkpoint) -> Vec<f32> {
    let shape = expr.shape();
    let mut all = Vec::new();
    for slice in 0..shape.slices {
        let mut out = vec![0.0; (shape.rows * shape.cols) as usize];
        expr.read_rows(checkpoint, slice, 0..shape.rows, &mut out).unwrap();
        all.extend(out);
    }
    all
}

fn source(checkpoint: &Checkpoint, name: &str) -> Box<SourceExpr> {
    Box::new(SourceExpr::tensor(checkpoint.tensor(name).unwrap()))
}

/// Every range of rows reads the same values as the whole.
fn slabs_agree(expr: &SourceExpr, checkpoint: &Checkpoint) {
    expr.check(checkpoint).unwrap();
    let shape = expr.shape();
    let all = whole(expr, checkpoint);
    for slice in 0..shape.slices {
        for first in 0..shape.rows {
            for last in first..=shape.rows {
                let mut slab = vec![0.0; ((last - first) * shape.cols) as usize];
                expr.read_rows(checkpoint, slice, first..last, &mut slab).unwrap();
                let start = ((slice * shape.rows + first) * shape.cols) as usize;
                assert_eq!(
                    slab,
                    all[start..start + slab.len()],
                    "{expr:?} slice {slice} rows {first}..{last}"
                );
            }
        }
    }
}

#[test]
fn every_plain_type_is_widened() {
    for dtype in [Dtype::F64, Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F8E4M3, Dtype::F8E5M2] {
        let bytes = (0..12 * dtype.bytes()).map(|at| (at * 37 % 120) as u8).collect();
        let t = Tensor { name: "t".to_owned(), dtype, shape: vec![4, 3], bytes };
        let (_folder, checkpoint) = checkpoint(std::slice::from_ref(&t));
        let expr = *source(&checkpoint, "t");
        assert_eq!(whole(&expr, &checkpoint), t.values(), "{dtype}");
        assert_eq!(expr.stored_bits(&checkpoint), Some(dtype.bytes() as f64 * 8.0));
        slabs_agree(&expr, &checkpoint);
    }
}

#[test]
fn rows_of_heads_go_from_halves_to_pairs() {
    let t = tensor("t", &[12, 2]);
    let (_folder, checkpoint) = checkpoint(std::slice::from_ref(&t));
    let expr = SourceExpr::PermuteRows { of: source(&checkpoint, "t"), heads: 2 };
    let rows: Vec<f32> = [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
        .iter()
        .flat_map(|&row| t.values()[row * 2..row * 2 + 2].to_vec())
        .collect();
    assert_eq!(whole(&expr, &checkpoint), rows);
    slabs_agree(&expr, &checkpoint);
}

#[test]
fn a_bias_is_permuted_like_a_column() {
    let t = tensor("t", &[8]);
    let (_folder, checkpoint) = checkpoint(std::slice::from_ref(&t));
    let column = SourceExpr::Reshape { of: source(&checkpoint, "t"), shape: MatrixShape::dense(8, 1) };
    let permuted = SourceExpr::PermuteRows { of: Box::new(column), heads: 2 };
    let expr = SourceExpr::Reshape { of: Box::new(permuted), shape: MatrixShape::dense(1, 8) };
    let wanted: Vec<f32> = [0, 2, 1, 3, 4, 6, 5, 7].iter().map(|&at| t.values()[at]).collect();
    assert_eq!(whole(&expr, &checkpoint), wanted);
    slabs_agree(&expr, &checkpoint);
}

#[test]
fn transposes_slices_stacks_and_sums() {
    let (a, b) = (tensor("a", &[2, 5, 3]), tensor("b", &[5, 3]));
    let (_folder, checkpoint) = checkpoint(&[a.clone(), b.clone()]);
    let stack = SourceExpr::Stack(vec![*source(&checkpoint, "a"), *source(&checkpoint, "b")]);
    assert_eq!(stack.shape(), MatrixShape { slices: 3, rows: 5, cols: 3 });
    assert_eq!(whole(&stack, &checkpoint), [a.values(), b.values()].concat());
    slabs_agree(&stack, &checkpoint);

    let transposed = SourceExpr::Transpose(source(&checkpoint, "b"));
    let wanted: Vec<f32> = (0..3)
        .flat_map(|col| (0..5).map(move |row| (row, col)))
        .map(|(r, c)| b.values()[r * 3 + c])
        .collect();
    assert_eq!(whole(&transposed, &checkpoint), wanted);
    slabs_agree(&transposed, &checkpoint);
    slabs_agree(&SourceExpr::Transpose(Box::new(stack)), &checkpoint);

    let slice = SourceExpr::Slice { of: source(&checkpoint, "a"), rows: 1..4 };
    let wanted = [&a.values()[3..12], &a.values()[18..27]].concat();
    assert_eq!(whole(&slice, &checkpoint), wanted);
    slabs_agree(&slice, &checkpoint);

    let sum = SourceExpr::Add { of: source(&checkpoint, "b"), constant: 1.0 };
    let wanted: Vec<f32> = b.values().iter().map(|value| value + 1.0).collect();
    assert_eq!(whole(&sum, &checkpoint), wanted);
    assert_eq!(sum.sources(), ["b"]);
}

#[test]
fn a_wide_transpose_is_read_by_strips() {
    // A strip of 1024 floats is worth a read a row.
    let t = tensor("t", &[7, 2048]);
    let (_folder, checkpoint) = checkpoint(std::slice::from_ref(&t));
    let expr = SourceExpr::Transpose(source(&checkpoint, "t"));
    let values = t.values();
    let wanted: Vec<f32> = (0..2048)
        .flat_map(|col| (0..7).map(move |row| (row, col)))
        .map(|(r, c)| values[r * 2048 + c])
        .collect();
    let mut strip = vec![0.0; 1024 * 7];
    expr.read_rows(&checkpoint, 0, 512..1536, &mut strip).unwrap();
    assert_eq!(strip, wanted[512 * 7..1536 * 7]);
    assert_eq!(whole(&expr, &checkpoint), wanted);
}

#[test]
fn eight_bit_floats_are_scaled_by_block() {
    let bytes: Vec<u8> = (0..35).map(|at| 0x30 + at % 16).collect();
    let t = Tensor { name: "t".to_owned(), dtype: Dtype::F8E4M3, shape: vec![5, 7], bytes };
    let s = tensor("s", &[3, 3]);
    let (_folder, checkpoint) = checkpoint(&[t.clone(), s.clone()]);
    let expr = SourceExpr::Dequant {
        name: "t".to_owned(),
        shape: MatrixShape::dense(5, 7),
        scale: "s".to_owned(),
        scales: MatrixShape::dense(3, 3),
        zero: None,
        block: [2, 3],
    };
    let wanted: Vec<f32> = t
        .values()
        .iter()
        .enumerate()
        .map(|(at, value)| value * s.values()[at / 7 / 2 * 3 + at % 7 / 3])
        .collect();
    assert_eq!(whole(&expr, &checkpoint), wanted);
    slabs_agree(&expr, &checkpoint);
}

#[test]
fn blocks_of_a_gguf_are_decoded() {
    let (rows, cols) = (6, 64);
    let values = tensor("t", &[rows, cols]).values();
    let mut blocks = vec![0; 6 * 2 * 34];
    kbit_blocks::encode_row_range(GgmlType::Q8_0, &values, 64, None, &mut blocks).unwrap();
    let new = NewTensor { name: "t".to_owned(), dims: vec![cols, rows], ty: GgmlType::Q8_0 };
    let layout = GgufLayout::new(&Metadata::new(), &[new], 32).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.gguf");
    let writer = GgufWriter::create(&layout, &path, &WriteOptions::default()).unwrap();
    writer.write_at(0, 0, &blocks).unwrap();
    writer.finish().unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let expr = *source(&checkpoint, "t");
    let mut wanted = vec![0.0; 6 * 64];
    kbit_blocks::decode(GgmlType::Q8_0, &blocks, &mut wanted).unwrap();
    assert_eq!(whole(&expr, &checkpoint), wanted);
    assert_eq!(expr.stored_bits(&checkpoint), Some(8.5));
    slabs_agree(&expr, &checkpoint);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn permuted_rows_agree_with_a_loop(heads in 1u64..5, half in 1u64..6, cols in 1u64..5) {
        let rows = heads * 2 * half;
        let t = tensor("t", &[rows, cols]);
        let (_folder, checkpoint) = checkpoint(std::slice::from_ref(&t));
        let expr = SourceExpr::PermuteRows { of: source(&checkpoint, "t"), heads };
        let mut wanted = Vec::new();
        for head in 0..heads {
            for j in 0..half {
                for k in 0..2 {
                    let row = (head * 2 * half + k * half + j) * cols;
                    wanted.extend_from_slice(&t.values()[row as usize..(row + cols) as usize]);
                }
            }
        }
        prop_assert_eq!(whole(&expr, &checkpoint), wanted);
        slabs_agree(&expr, &checkpoint);
    }
}

#[test]
fn rejects_integers() {
    let t = Tensor { name: "t".to_owned(), dtype: Dtype::I32, shape: vec![2], bytes: vec![0; 8] };
    let (_folder, checkpoint) = checkpoint(&[t]);
    let error = source(&checkpoint, "t").check(&checkpoint).unwrap_err().to_string();
    assert!(error.contains("tensor t") && error.contains("I32") && error.contains("unquantized"), "{error}");
}

#[test]
fn rejects_rows_past_the_last() {
    let (_folder, checkpoint) = checkpoint(&[tensor("t", &[2, 3])]);
    let expr = *source(&checkpoint, "t");
    assert!(expr.read_rows(&checkpoint, 0, 1..3, &mut [0.0; 6]).is_err());
    assert!(expr.read_rows(&checkpoint, 1, 0..1, &mut [0.0; 3]).is_err());
    assert!(expr.read_rows(&checkpoint, 0, 0..1, &mut [0.0; 2]).is_err());
    #[expect(clippy::reversed_empty_ranges, reason = "a range that is no range")]
    let reversed = 2..1;
    assert!(expr.read_rows(&checkpoint, 0, reversed, &mut []).is_err());
}

#[test]
fn rejects_heads_that_do_not_divide_the_rows() {
    let (_folder, checkpoint) = checkpoint(&[tensor("t", &[6, 3])]);
    for heads in [0, 2, 4] {
        let expr = SourceExpr::PermuteRows { of: source(&checkpoint, "t"), heads };
        assert!(expr.check(&checkpoint).is_err(), "{heads}");
    }
}

#[test]
fn rejects_a_tensor_that_is_not_there() {
    let (_folder, checkpoint) = checkpoint(&[tensor("t", &[6, 3])]);
    let expr = SourceExpr::Tensor { name: "u".to_owned(), shape: MatrixShape::dense(6, 3) };
    assert!(matches!(expr.check(&checkpoint), Err(ModelError::MissingTensors { .. })));
    assert!(expr.read_rows(&checkpoint, 0, 0..1, &mut [0.0; 3]).is_err());
}

#[test]
fn rejects_a_file_that_was_truncated_meanwhile() {
    let (folder, checkpoint) = checkpoint(&[tensor("t", &[64, 64])]);
    let path = folder.path().join("model.safetensors");
    std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(2000).unwrap();
    let expr = *source(&checkpoint, "t");
    let error = expr.read_rows(&checkpoint, 0, 0..64, &mut vec![0.0; 4096]).unwrap_err().to_string();
    assert!(error.contains("tensor t") && error.contains("truncated"), "{error}");
}
