//! Writing a GGUF file as llama-imatrix does.

use crate::CalibrateError;
use crate::matrix::{CHUNK_COUNT, CHUNK_SIZE, COUNTS, DATASETS, SUMS, TYPE};
use kbit_formats::FormatError;
use kbit_formats::gguf::{Array, GgufLayout, GgufWriter, Metadata, NewTensor, Value, WriteOptions};
use kbit_types::GgmlType;
use std::path::Path;

/// What was gathered for one tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Gathered {
    /// Tensor.
    pub name: String,
    /// Sums of squared inputs: columns of the first expert, of the second, and so on.
    pub sums: Vec<f64>,
    /// Tokens that each expert saw; one number for any other tensor.
    pub counts: Vec<u64>,
}

/// Writes `entries` to `path`, in the order of their names. `datasets`: names of the texts; `chunk_count` windows of
/// `chunk_size` tokens.
///
/// # Errors
/// When sums are not a multiple of counts, a name is too long for GGUF (63 bytes with `.in_sum2`) or stands twice, the file
/// exists and is not to be overwritten, or it cannot be written; nothing stands at `path` then.
pub fn write(
    path: &Path,
    entries: &[Gathered],
    datasets: &[String],
    chunk_count: u32,
    chunk_size: u32,
    overwrite: bool,
) -> Result<(), CalibrateError> {
    let mut entries: Vec<&Gathered> = entries.iter().collect();
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    let mut metadata = Metadata::new();
    metadata.insert(TYPE, Value::String("imatrix".to_owned()));
    metadata.insert(DATASETS, Value::Array(Array::String(datasets.to_vec())));
    metadata.insert(CHUNK_COUNT, Value::U32(chunk_count));
    metadata.insert(CHUNK_SIZE, Value::U32(chunk_size));
    let mut tensors = Vec::with_capacity(entries.len() * 2);
    for entry in &entries {
        let (values, experts) = (entry.sums.len(), entry.counts.len());
        if values == 0 || experts == 0 || !values.is_multiple_of(experts) {
            let reason = format!("{values} sums cannot be shared out among {experts} counts");
            return Err(FormatError::Unwritable { what: entry.name.clone(), reason }.into());
        }
        let tensor = |ending: &str, cols: usize| NewTensor {
            name: format!("{}{ending}", entry.name),
            dims: vec![cols as u64, experts as u64],
            ty: GgmlType::F32,
        };
        tensors.extend([tensor(SUMS, values / experts), tensor(COUNTS, 1)]);
    }
    let layout = GgufLayout::new(&metadata, &tensors, 32)?;
    let writer = GgufWriter::create(&layout, path, &WriteOptions { overwrite, keep_partial: false })?;
    for (index, entry) in entries.iter().enumerate() {
        #[expect(clippy::cast_possible_truncation, reason = "the format has sums in single precision")]
        let sums: Vec<u8> = entry.sums.iter().flat_map(|sum| (*sum as f32).to_le_bytes()).collect();
        #[expect(clippy::cast_precision_loss, reason = "the format has counts in single precision")]
        let counts: Vec<u8> = entry.counts.iter().flat_map(|count| (*count as f32).to_le_bytes()).collect();
        writer.write_at(2 * index, 0, &sums)?;
        writer.write_at(2 * index + 1, 0, &counts)?;
    }
    writer.finish()?;
    Ok(())
}
