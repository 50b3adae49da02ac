//! Writing a GGUF file as llama-imatrix does, with second moments where they were gathered.
//!
//! The second moments of an input that tensors share lie in `FIRST.moments` `[cols (cols + 1) / 2, slices]`, F32, after the first of the
//! tensors: rows of the lower triangle of the mean of `x x^T`. The metadata arrays `kbit.moments.tensors` and `kbit.moments.of` name, for
//! each tensor, that first one.

use crate::gather::is_of_experts;
use crate::matrix::{
    CHUNK_COUNT, CHUNK_SIZE, COUNTS, DATASETS, MOMENTS, MOMENTS_OF, MOMENTS_TENSORS, SUMS, TYPE,
};
use crate::{CalibrateError, Moments, SharedInput};
use kbit_formats::FormatError;
use kbit_formats::gguf::{Array, GgufLayout, GgufWriter, Metadata, NewTensor, Value, WriteOptions};
use kbit_types::GgmlType;
use std::collections::BTreeMap;
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
    let sizes: Vec<Size<'_>> = entries.iter().map(|entry| Size::of(entry)).collect();
    let (metadata, tensors) = contents(&sizes, datasets, chunk_count, chunk_size)?;
    let layout = GgufLayout::new(&metadata, &tensors, 32)?;
    let writer = GgufWriter::create(&layout, path, &WriteOptions { overwrite, keep_partial: false })?;
    for (index, entry) in entries.iter().enumerate() {
        write_entry(&writer, index, entry)?;
    }
    writer.finish()?;
    Ok(())
}

/// Name and size of an entry.
struct Size<'e> {
    name: &'e str,
    sums: usize,
    counts: usize,
}

impl<'e> Size<'e> {
    fn of(entry: &'e Gathered) -> Self {
        Self { name: &entry.name, sums: entry.sums.len(), counts: entry.counts.len() }
    }
}

/// Metadata, and two tensors for each entry.
fn contents(
    entries: &[Size<'_>],
    datasets: &[String],
    chunk_count: u32,
    chunk_size: u32,
) -> Result<(Metadata, Vec<NewTensor>), CalibrateError> {
    let mut metadata = Metadata::new();
    metadata.insert(TYPE, Value::String("imatrix".to_owned()));
    metadata.insert(DATASETS, Value::Array(Array::String(datasets.to_vec())));
    metadata.insert(CHUNK_COUNT, Value::U32(chunk_count));
    metadata.insert(CHUNK_SIZE, Value::U32(chunk_size));
    let mut tensors = Vec::with_capacity(entries.len() * 2);
    for Size { name, sums: values, counts: experts } in entries {
        if *values == 0 || *experts == 0 || !values.is_multiple_of(*experts) {
            let reason = format!("{values} sums cannot be shared out among {experts} counts");
            return Err(FormatError::Unwritable { what: (*name).to_owned(), reason }.into());
        }
        let tensor = |ending: &str, cols: usize| NewTensor {
            name: format!("{name}{ending}"),
            dims: vec![cols as u64, *experts as u64],
            ty: GgmlType::F32,
        };
        tensors.extend([tensor(SUMS, values / experts), tensor(COUNTS, 1)]);
    }
    Ok((metadata, tensors))
}

/// Writes the sums and counts of the entry at place `index`.
fn write_entry(writer: &GgufWriter, index: usize, entry: &Gathered) -> Result<(), CalibrateError> {
    #[expect(clippy::cast_possible_truncation, reason = "the format has sums in single precision")]
    let sums: Vec<u8> = entry.sums.iter().flat_map(|sum| (*sum as f32).to_le_bytes()).collect();
    #[expect(clippy::cast_precision_loss, reason = "the format has counts in single precision")]
    let counts: Vec<u8> = entry.counts.iter().flat_map(|count| (*count as f32).to_le_bytes()).collect();
    writer.write_at(2 * index, 0, &sums)?;
    writer.write_at(2 * index + 1, 0, &counts)?;
    Ok(())
}

/// An importance matrix with second moments, which are written while they are gathered. Nothing stands at its path before
/// [`MomentsFile::finish`].
#[derive(Debug)]
pub struct MomentsFile {
    writer: GgufWriter,
    /// Names of the entries, in their order.
    entries: Vec<String>,
    inputs: Vec<SharedInput>,
}

impl MomentsFile {
    /// A file at `path` for the second moments of `inputs`; the rest as for [`write()`].
    ///
    /// # Errors
    /// As for [`write()`].
    pub fn create(
        path: &Path,
        inputs: &[SharedInput],
        datasets: &[String],
        chunk_count: u32,
        chunk_size: u32,
        overwrite: bool,
    ) -> Result<Self, CalibrateError> {
        let mut shapes: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        let (mut names, mut of) = (Vec::new(), Vec::new());
        for input in inputs {
            for tensor in &input.tensors {
                shapes.entry(tensor).or_insert((input.slices, input.cols));
                names.push(tensor.clone());
                of.push(input.tensors[0].clone());
            }
        }
        let size = |(name, (slices, cols)): (&&str, &(usize, usize))| -> (String, usize, usize) {
            ((*name).to_owned(), slices * cols, if is_of_experts(name) { *slices } else { 1 })
        };
        let sizes: Vec<(String, usize, usize)> = shapes.iter().map(size).collect();
        let sized: Vec<Size<'_>> =
            sizes.iter().map(|(name, sums, counts)| Size { name, sums: *sums, counts: *counts }).collect();
        let (mut metadata, mut tensors) = contents(&sized, datasets, chunk_count, chunk_size)?;
        metadata.insert(MOMENTS_TENSORS, Value::Array(Array::String(names)));
        metadata.insert(MOMENTS_OF, Value::Array(Array::String(of)));
        tensors.extend(inputs.iter().map(|input| NewTensor {
            name: format!("{}{MOMENTS}", input.tensors[0]),
            dims: vec![input.triangle() as u64, input.slices as u64],
            ty: GgmlType::F32,
        }));
        let layout = GgufLayout::new(&metadata, &tensors, 32)?;
        let writer = GgufWriter::create(&layout, path, &WriteOptions { overwrite, keep_partial: false })?;
        let entries = sizes.into_iter().map(|(name, ..)| name).collect();
        Ok(Self { writer, entries, inputs: inputs.to_vec() })
    }

    /// Writes the second moments of one input.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, moments: &Moments<'_>) -> Result<(), CalibrateError> {
        let bytes = moments.slice as u64 * self.inputs[moments.input].triangle() as u64 * 4;
        let values: Vec<u8> = moments.means.iter().flat_map(|mean| mean.to_le_bytes()).collect();
        Ok(self.writer.write_at(2 * self.entries.len() + moments.input, bytes, &values)?)
    }

    /// Writes the sums, and puts the file in its place.
    ///
    /// # Errors
    /// When sums are of other tensors than the inputs are, or the file cannot be written.
    pub fn finish(self, gathered: &[Gathered]) -> Result<(), CalibrateError> {
        if let Some(other) = gathered.iter().find(|entry| !self.entries.contains(&entry.name)) {
            let reason = "its inputs have no second moments, as those of the other tensors have".to_owned();
            return Err(FormatError::Unwritable { what: other.name.clone(), reason }.into());
        }
        for (index, name) in self.entries.iter().enumerate() {
            let entry = gathered.iter().find(|entry| entry.name == *name);
            let entry = entry.ok_or_else(|| FormatError::Unwritable {
                what: name.clone(),
                reason: "no token reached this tensor".to_owned(),
            })?;
            write_entry(&self.writer, index, entry)?;
        }
        self.writer.finish()?;
        Ok(())
    }
}
