//! Checking a file: structure, checksums, numbers that are not finite.

use crate::gguf::{Array, Value};
use crate::hash::Sha256;
use crate::packed::PackedIndex;
use crate::{Checkpoint, Element, FormatError};
use serde::Serialize;
use std::path::Path;

/// Metadata key of the checksums of all stored tensors, in file order.
pub const TENSOR_HASHES: &str = "kbit.tensor_sha256";

/// What a check found.
#[derive(Clone, Debug, Serialize)]
pub struct VerifyReport {
    /// True where nothing is wrong.
    pub ok: bool,
    /// Tensors read.
    pub tensors: usize,
    /// Bytes read.
    pub bytes: u64,
    /// True where the file carries checksums.
    pub has_checksums: bool,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

/// Something wrong with a tensor.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// Tensor.
    pub tensor: String,
    /// What is wrong.
    pub message: String,
}

/// Checks the checkpoint at `path`: reads every tensor.
///
/// # Errors
/// When its structure is damaged or it cannot be read.
pub fn verify(path: &Path) -> Result<VerifyReport, FormatError> {
    let checkpoint = Checkpoint::open(path)?;
    let mut expected: Option<Vec<String>> = None;
    if let Some(gguf) = checkpoint.gguf() {
        PackedIndex::read(gguf)?;
        if let Some(Value::Array(Array::String(hashes))) = gguf.metadata().get(TENSOR_HASHES) {
            if hashes.len() != gguf.tensors().len() {
                let reason = format!("has {} entries for {} tensors", hashes.len(), gguf.tensors().len());
                return Err(FormatError::metadata(path, TENSOR_HASHES, &reason));
            }
            expected = Some(hashes.clone());
        }
    }
    let mut problems = Vec::new();
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 20];
    let mut values = vec![0f32; 1 << 20];
    for (index, tensor) in checkpoint.tensors().iter().enumerate() {
        let mut hash = Sha256::new();
        let mut not_finite = 0u64;
        let mut done = 0;
        while done < tensor.bytes {
            let piece = usize::try_from(tensor.bytes - done).unwrap_or(usize::MAX).min(buffer.len());
            let piece = &mut buffer[..piece];
            checkpoint.read_at(tensor, done, piece)?;
            hash.update(piece);
            if let Element::Plain(dtype) = tensor.element
                && dtype.is_float()
            {
                let count = piece.len() / dtype.bytes();
                if dtype.widen(piece, &mut values[..count]).is_ok() {
                    not_finite += values[..count].iter().filter(|value| !value.is_finite()).count() as u64;
                }
            }
            done += piece.len() as u64;
        }
        bytes += tensor.bytes;
        let mut problem = |message: String| problems.push(Problem { tensor: tensor.name.clone(), message });
        if not_finite > 0 {
            problem(format!("{not_finite} values are NaN or infinite"));
        }
        if let Some(expected) = &expected
            && expected[index] != hash.hex()
        {
            problem(
                "its bytes do not have the checksum that the file states: the file is damaged".to_owned(),
            );
        }
    }
    Ok(VerifyReport {
        ok: problems.is_empty(),
        tensors: checkpoint.tensors().len(),
        bytes,
        has_checksums: expected.is_some(),
        problems,
    })
}
