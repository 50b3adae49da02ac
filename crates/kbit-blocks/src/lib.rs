//! ggml block types: encode and decode, with the bytes and floats of ggml's reference code.
//!
//! Reference: `ggml-quants.c` of ggml 0.25 as vendored by llama.cpp at the time of llama-cpp-python 0.3.36, compiled without
//! fused multiply-add. Sums run in source order, C's float-to-integer conversions are reproduced (they truncate, and what does not
//! fit becomes the low byte of the "integer indefinite" of x86), so encoded bytes are equal, with and without importance.
//! `tests/golden.rs` compares with ggml's own output.
#![forbid(unsafe_code)]

mod codec;
mod kquants;
mod legacy;
mod plain;
mod search;

pub use codec::BlockCodec;

use kbit_types::GgmlType;

/// Why a row could not be encoded or decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// No code for the type.
    #[error("{ty} cannot be {action} by this kbit; known: {known}")]
    Type {
        /// Type.
        ty: GgmlType,
        /// `encoded` or `decoded`.
        action: &'static str,
        /// The types that can.
        known: String,
    },
    /// Rows are not whole blocks, or a buffer has another size.
    #[error("{ty}: {message}")]
    Size {
        /// Type.
        ty: GgmlType,
        /// What does not fit, and the cure.
        message: String,
    },
    /// NaN or infinity.
    #[error("{value} at row {row}, column {column}; the checkpoint is damaged: get it anew")]
    NotFinite {
        /// `NaN` or `infinity`.
        value: &'static str,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
    },
}

/// Encodes one block of weights.
type EncodeBlock = fn(&[f32], &mut [u8]);
/// Encodes one block of weights by importance; the last argument is the row's mean square.
type EncodeWeighted = fn(&[f32], &[f32], f32, &mut [u8]);
/// Decodes one block.
type DecodeBlock = fn(&[u8], &mut [f32]);

/// What is known of a type: one line a type, the only such list.
struct Kind {
    ty: GgmlType,
    encode: Option<EncodeBlock>,
    weighted: Option<EncodeWeighted>,
    decode: DecodeBlock,
}

/// Plain types are treated in runs of this many weights.
const RUN: usize = 256;

const KINDS: &[Kind] = &[
    Kind { ty: GgmlType::F32, encode: Some(plain::encode_f32), weighted: None, decode: plain::decode_f32 },
    Kind { ty: GgmlType::F16, encode: Some(plain::encode_f16), weighted: None, decode: plain::decode_f16 },
    Kind { ty: GgmlType::BF16, encode: Some(plain::encode_bf16), weighted: None, decode: plain::decode_bf16 },
    Kind {
        ty: GgmlType::Q8_0,
        encode: Some(legacy::encode_q8_0),
        weighted: None,
        decode: legacy::decode_q8_0,
    },
    Kind {
        ty: GgmlType::Q4_0,
        encode: Some(legacy::encode_q4_0),
        weighted: Some(legacy::encode_q4_0_weighted),
        decode: legacy::decode_q4_0,
    },
    Kind {
        ty: GgmlType::Q4_1,
        encode: Some(legacy::encode_q4_1),
        weighted: Some(legacy::encode_q4_1_weighted),
        decode: legacy::decode_q4_1,
    },
    Kind {
        ty: GgmlType::Q5_0,
        encode: Some(legacy::encode_q5_0),
        weighted: Some(legacy::encode_q5_0_weighted),
        decode: legacy::decode_q5_0,
    },
    Kind {
        ty: GgmlType::Q5_1,
        encode: Some(legacy::encode_q5_1),
        weighted: Some(legacy::encode_q5_1_weighted),
        decode: legacy::decode_q5_1,
    },
    Kind { ty: GgmlType::Q2_K, encode: None, weighted: None, decode: kquants::decode_q2_k },
    Kind { ty: GgmlType::Q3_K, encode: None, weighted: None, decode: kquants::decode_q3_k },
    Kind { ty: GgmlType::Q4_K, encode: None, weighted: None, decode: kquants::decode_q4_k },
    Kind { ty: GgmlType::Q5_K, encode: None, weighted: None, decode: kquants::decode_q5_k },
    Kind { ty: GgmlType::Q6_K, encode: None, weighted: None, decode: kquants::decode_q6_k },
];

fn kind(ty: GgmlType) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.ty == ty)
}

fn unknown(ty: GgmlType, action: &'static str, has: fn(&Kind) -> bool) -> BlockError {
    let known =
        KINDS.iter().filter(|kind| has(kind)).map(|kind| kind.ty.name()).collect::<Vec<_>>().join(", ");
    BlockError::Type { ty, action, known }
}

/// True where rows can be encoded.
#[must_use]
pub fn can_encode(ty: GgmlType) -> bool {
    kind(ty).is_some_and(|kind| kind.encode.is_some())
}

/// True where blocks can be decoded.
#[must_use]
pub fn can_decode(ty: GgmlType) -> bool {
    kind(ty).is_some()
}

/// True where importance weights change the bytes.
#[must_use]
pub fn uses_importance(ty: GgmlType) -> bool {
    kind(ty).is_some_and(|kind| kind.weighted.is_some())
}

/// Weights and bytes of the pieces that rows are treated in.
fn piece(ty: GgmlType) -> (usize, usize) {
    let (elements, bytes) = (ty.block_elements(), ty.block_bytes());
    let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    if elements == 1 { (RUN, RUN * size(bytes)) } else { (size(elements), size(bytes)) }
}

/// Encodes `rows` (row-major, `cols` floats each) into `out`; `importance` `[cols]` weighs the columns.
///
/// # Errors
/// A type without encoder, rows that are not whole blocks, a buffer of another size, or a weight that is NaN or infinite.
pub fn encode_row_range(
    ty: GgmlType,
    rows: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), BlockError> {
    let found = kind(ty).filter(|kind| kind.encode.is_some());
    let Some(Kind { encode: Some(encode), weighted, .. }) = found else {
        return Err(unknown(ty, "encoded", |kind| kind.encode.is_some()));
    };
    let size = |message: String| BlockError::Size { ty, message };
    let row_bytes =
        ty.bytes_for(cols as u64).and_then(|bytes| usize::try_from(bytes).ok()).ok_or_else(|| {
            size(format!(
                "{cols} columns are not whole blocks of {}; store the tensor as f16",
                ty.block_elements()
            ))
        })?;
    if cols == 0
        || !rows.len().is_multiple_of(cols)
        || Some(out.len()) != (rows.len() / cols).checked_mul(row_bytes)
    {
        return Err(size(format!("{} weights in rows of {cols} do not fit {} bytes", rows.len(), out.len())));
    }
    if let Some(importance) = importance
        && importance.len() != cols
    {
        return Err(size(format!("{} importance weights for {cols} columns", importance.len())));
    }
    if let Some(index) = rows.iter().position(|value| !value.is_finite()) {
        let value = if rows[index].is_nan() { "NaN" } else { "infinity" };
        return Err(BlockError::NotFinite { value, row: index / cols, column: index % cols });
    }
    let (weights, bytes) = piece(ty);
    for (row, out) in rows.chunks(cols).zip(out.chunks_mut(row_bytes)) {
        match (weighted, importance) {
            (Some(weighted), Some(importance)) => {
                // ggml's order: one sum over the row, then the mean.
                let sum = row.iter().fold(0f32, |sum, x| sum + x * x);
                #[expect(clippy::cast_precision_loss, reason = "as ggml divides by the float of the length")]
                let mean_square = sum / cols as f32;
                for ((block, importance), out) in
                    row.chunks(weights).zip(importance.chunks(weights)).zip(out.chunks_mut(bytes))
                {
                    weighted(block, importance, mean_square, out);
                }
            }
            _ => {
                for (block, out) in row.chunks(weights).zip(out.chunks_mut(bytes)) {
                    encode(block, out);
                }
            }
        }
    }
    Ok(())
}

/// Decodes whole blocks.
///
/// # Errors
/// A type without decoder, or sizes that do not fit.
pub fn decode(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), BlockError> {
    let Some(kind) = kind(ty) else { return Err(unknown(ty, "decoded", |_| true)) };
    if ty.bytes_for(out.len() as u64) != Some(bytes.len() as u64) {
        let message = format!("{} bytes do not hold {} weights", bytes.len(), out.len());
        return Err(BlockError::Size { ty, message });
    }
    let (weights, block_bytes) = piece(ty);
    for (block, out) in bytes.chunks(block_bytes).zip(out.chunks_mut(weights)) {
        (kind.decode)(block, out);
    }
    Ok(())
}
