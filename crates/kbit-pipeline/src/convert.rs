//! Runs a [`FilePlan`]: reads the source by slabs, encodes them in parallel, writes each byte to its place, and
//! finishes the file by an atomic rename. A journal beside the partial file lets a killed run resume at the tensor.
//!
//! Work is cut into chunks of a fixed number of weights, whatever the thread count; sums over chunks are merged in
//! order. So bytes, hashes and error figures are the same for one thread and for many.

use crate::error::PipelineError;
use crate::journal::{Entry, Journal};
use crate::plan::{FilePlan, PlannedTensor, Store};
use crate::progress::Bar;
use crate::slice::{CHUNK_WEIGHTS, SLAB_WEIGHTS, SliceSource, bounded, ranges, rows_for, rows_of, weights};
use crate::statistics::{ErrorSums, TensorError};
use kbit_formats::Checkpoint;
use kbit_formats::gguf::{GgufWriter, WriteOptions};
use kbit_formats::hash::{Checksum, Sha256};
use kbit_host::{Bytes, Job, MatrixInfo, PluginCodec, TensorBytes, TensorPlan};
use kbit_models::{Conversion, OutputTensor};
use kbit_types::{Codec, GgmlType, MatrixShape};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::LocalKey;

/// Bytes that are copied at once.
const COPY_BYTES: u64 = 4 << 20;
/// Written bytes after which the journal is brought up to date.
const SYNC_BYTES: u64 = 256 << 20;

/// Choices for running a plan.
#[derive(Clone, Default)]
pub struct RunOptions {
    /// Replace an existing output.
    pub overwrite: bool,
    /// Decode what was written and compare.
    pub error_statistics: bool,
    /// Set from another thread to stop.
    pub cancel: Arc<AtomicBool>,
}

/// What writing a file gave.
#[derive(Debug)]
pub struct Written {
    /// The file, or its shards.
    pub paths: Vec<PathBuf>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Error of each quantized tensor, in file order; empty where statistics are off.
    pub errors: Vec<(String, TensorError)>,
    /// Tensors taken over from an interrupted run.
    pub resumed: usize,
}

/// Writes `plan` to `out`.
///
/// # Errors
/// A source that cannot be read, a weight that is NaN or infinite, a scheme that refuses, a full disk, an existing
/// output. Nothing stands at `out` then; the partial file goes too, except where the run was cancelled.
pub fn write_file(
    checkpoint: &Checkpoint,
    conversion: &Conversion,
    plan: &FilePlan,
    out: &Path,
    options: &RunOptions,
    bar: &Bar,
) -> Result<Written, PipelineError> {
    plan.check()?;
    let mut journal = Journal::open(out, &plan_fingerprint(checkpoint, plan)?)?;
    let write_options = WriteOptions { overwrite: options.overwrite, keep_partial: true };
    let resumed =
        if journal.is_empty() { None } else { GgufWriter::resume(&plan.layout, out, &write_options).ok() };
    let writer = match resumed {
        Some(writer) => writer,
        None => {
            journal.clear()?;
            GgufWriter::create(&plan.layout, out, &write_options)?
        }
    };
    let mut run = FileRun { checkpoint, conversion, plan, options, bar, writer, journal, resumed: 0 };
    match run.all_tensors() {
        Ok(entries) => run.finish(entries),
        Err(PipelineError::Cancelled) => Err(PipelineError::Cancelled),
        Err(error) => {
            run.journal.remove()?;
            run.writer.discard()?;
            Err(error)
        }
    }
}

/// Equal for equal headers (names, plan, plugin hashes) and unchanged source files.
fn plan_fingerprint(checkpoint: &Checkpoint, plan: &FilePlan) -> Result<String, PipelineError> {
    let mut hash = Sha256::new();
    hash.update(plan.fingerprint().to_string().as_bytes());
    hash.update(checkpoint.fingerprint()?.as_bytes());
    Ok(hash.hex())
}

/// Checksums of the stored tensors, SHA-256 of the source's values where the file holds it, error figures.
type Hashes = (Vec<String>, Option<String>, Option<TensorError>);

struct FileRun<'a> {
    checkpoint: &'a Checkpoint,
    conversion: &'a Conversion,
    plan: &'a FilePlan,
    options: &'a RunOptions,
    bar: &'a Bar,
    writer: GgufWriter,
    journal: Journal,
    resumed: usize,
}

impl FileRun<'_> {
    fn all_tensors(&mut self) -> Result<Vec<Entry>, PipelineError> {
        let mut entries: Vec<Entry> = Vec::with_capacity(self.plan.tensors.len());
        let mut journaled = 0;
        let mut unsynced = 0;
        for (index, tensor) in self.plan.tensors.iter().enumerate() {
            let entry = match self.resume(index)? {
                Some(entry) => {
                    self.bar.advance(tensor.shape.elements().unwrap_or(0).saturating_mul(4));
                    self.resumed += 1;
                    entry
                }
                None => {
                    unsynced += tensor.bytes;
                    self.tensor(index, tensor)?
                }
            };
            entries.push(entry);
            if unsynced >= SYNC_BYTES {
                self.writer.sync_data()?;
                self.journal.append(&entries[journaled..])?;
                (journaled, unsynced) = (entries.len(), 0);
            }
        }
        Ok(entries)
    }

    /// The journal's entry for tensor `index`, if what stands in the partial file still has its checksum.
    fn resume(&self, index: usize) -> Result<Option<Entry>, PipelineError> {
        let Some(entry) = self.journal.entry(index) else { return Ok(None) };
        let tensor = &self.plan.tensors[index];
        if self.options.error_statistics
            && entry.error.is_none()
            && matches!(tensor.store, Store::Scheme { .. })
        {
            return Ok(None);
        }
        for (offset, expected) in entry.stored.iter().enumerate() {
            if &self.writer.tensor_checksum(tensor.first_stored + offset, self.checksum())? != expected {
                return Ok(None);
            }
        }
        Ok(Some(entry.clone()))
    }

    fn tensor(&self, index: usize, tensor: &PlannedTensor) -> Result<Entry, PipelineError> {
        let output = &self.conversion.tensors[tensor.source];
        let (stored, source_sha256, error) = match &tensor.store {
            Store::F32 => self.plain(output, tensor)?,
            Store::Copy { ty } => self.copied(output, tensor, *ty)?,
            Store::NoEncoder { ty } => {
                let tensors = vec![format!("{} ({ty})", output.name)];
                return Err(PipelineError::NoEncoder { label: self.plan.label.clone(), tensors });
            }
            Store::Scheme { scheme, plan, parts } => self.encoded(output, tensor, *scheme, plan, parts)?,
        };
        Ok(Entry { tensor: index, stored, source_sha256, error })
    }

    /// A checksum of stored bytes: one that readers can check where the file holds it, else only for resuming.
    fn checksum(&self) -> Checksum {
        if self.plan.provenance { Checksum::Sha256(Sha256::new()) } else { Checksum::Xxh64(Box::default()) }
    }

    /// Stores the values themselves.
    fn plain(&self, output: &OutputTensor, tensor: &PlannedTensor) -> Result<Hashes, PipelineError> {
        let shape = tensor.shape;
        let mut hash = self.checksum();
        let mut values = Vec::new();
        let mut bytes = Vec::new();
        let mut offset = 0;
        for slice in 0..shape.slices {
            for rows in ranges(0..shape.rows, rows_for(SLAB_WEIGHTS, shape.cols, 1)) {
                self.check_cancelled()?;
                values.resize(weights(&rows, shape.cols), 0.0);
                output.expr.read_rows(self.checkpoint, slice, rows.clone(), &mut values)?;
                refuse_not_finite(&values, output, rows.start, shape.cols)?;
                bytes.clear();
                bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                hash.update(&bytes);
                self.writer.write_at(tensor.first_stored, offset, &bytes)?;
                offset += bytes.len() as u64;
                self.bar.advance(bytes.len() as u64);
            }
        }
        let hash = hash.hex();
        Ok((vec![hash.clone()], self.plan.provenance.then_some(hash), None))
    }

    /// Takes over the bytes of the source.
    fn copied(
        &self,
        output: &OutputTensor,
        tensor: &PlannedTensor,
        ty: GgmlType,
    ) -> Result<Hashes, PipelineError> {
        if output.expr.block_type() == Some(ty) {
            return self.repacked(output, tensor, ty);
        }
        let name = output.expr.sources().first().copied().unwrap_or_default().to_owned();
        let Some(source) = self.checkpoint.tensor(&name) else {
            return Err(kbit_models::ModelError::MissingTensors { names: vec![name] }.into());
        };
        let elements = tensor.shape.elements().unwrap_or(0);
        let mut hash = self.checksum();
        let mut bytes = Vec::new();
        for range in ranges(0..tensor.bytes, COPY_BYTES) {
            self.check_cancelled()?;
            bytes.resize(bounded(range.end - range.start), 0);
            self.checkpoint.read_at(source, range.start, &mut bytes)?;
            refuse_halves_not_finite(&bytes, ty, output, range.start / 2, tensor.shape.cols)?;
            hash.update(&bytes);
            self.writer.write_at(tensor.first_stored, range.start, &bytes)?;
        }
        self.bar.advance(elements.saturating_mul(4));
        let hash = hash.hex();
        Ok((vec![hash.clone()], self.plan.provenance.then_some(hash), None))
    }

    /// Takes over the codes and scales of the source as blocks of `ty`.
    fn repacked(
        &self,
        output: &OutputTensor,
        tensor: &PlannedTensor,
        ty: GgmlType,
    ) -> Result<Hashes, PipelineError> {
        let MatrixShape { rows, cols, slices } = tensor.shape;
        let a_row = ty.bytes_for(cols).unwrap_or(tensor.bytes);
        let mut hash = self.checksum();
        let mut bytes = Vec::new();
        let mut offset = 0;
        for slice in 0..slices {
            for rows in ranges(0..rows, (COPY_BYTES / a_row.max(1)).max(1)) {
                self.check_cancelled()?;
                bytes.resize(bounded((rows.end - rows.start) * a_row), 0);
                output.expr.read_blocks(self.checkpoint, slice, rows.clone(), &mut bytes)?;
                hash.update(&bytes);
                self.writer.write_at(tensor.first_stored, offset, &bytes)?;
                offset += bytes.len() as u64;
                self.bar.advance((rows.end - rows.start).saturating_mul(cols).saturating_mul(4));
            }
        }
        let hash = hash.hex();
        Ok((vec![hash.clone()], self.plan.provenance.then_some(hash), None))
    }

    fn encoded(
        &self,
        output: &OutputTensor,
        tensor: &PlannedTensor,
        scheme: usize,
        plan: &TensorPlan,
        parts: &[(usize, Option<usize>)],
    ) -> Result<Hashes, PipelineError> {
        let source = self.plan.provenance.then(Sha256::new);
        let mut hashes = SlabHashes::new(source, parts, || self.checksum());
        let mut sums = ErrorSums::default();
        for slice in 0..tensor.shape.slices {
            let info = MatrixInfo { tensor: output.name.clone(), shape: tensor.shape, slice };
            let open = &self.plan.schemes[scheme].open;
            let source = SliceSource {
                checkpoint: self.checkpoint,
                conversion: self.conversion,
                file: self.plan,
                cancel: &self.options.cancel,
                output,
                tensor,
                open,
                plan,
                info,
            };
            let work = SliceWork { run: self, source, parts };
            let whole = if plan.whole_matrix { Some(work.source.read_whole()?) } else { None };
            let (job, heads) = work.source.begin(whole.as_deref())?;
            for ((_, head), bytes) in parts.iter().zip(&heads) {
                if let Some(head) = head {
                    self.writer.write_at(tensor.first_stored + head, slice * bytes.len() as u64, bytes)?;
                    hashes.stored[*head].update(bytes);
                }
            }
            let codec = if self.options.error_statistics { Some(work.open_written(heads)?) } else { None };
            let values = match &whole {
                Some(whole) => Values::Whole(whole),
                None if hashes.source.is_some() => Values::Slab,
                None => Values::Chunk,
            };
            work.encode(&job, values, codec.as_ref(), &mut hashes, &mut sums)?;
        }
        let error = self.options.error_statistics.then(|| sums.finish());
        Ok((hashes.stored.into_iter().map(Checksum::hex).collect(), hashes.source.map(Sha256::hex), error))
    }

    fn check_cancelled(&self) -> Result<(), PipelineError> {
        if self.options.cancel.load(Ordering::Relaxed) { Err(PipelineError::Cancelled) } else { Ok(()) }
    }

    fn finish(self, entries: Vec<Entry>) -> Result<Written, PipelineError> {
        if self.plan.provenance {
            let mut root = Sha256::new();
            let mut stored = 0;
            for (index, entry) in entries.iter().enumerate() {
                let source = entry.source_sha256.as_deref().unwrap_or_default();
                self.writer.patch_metadata_string("kbit.source.sha256", Some(index), source)?;
                root.update(source.as_bytes());
                for hash in &entry.stored {
                    self.writer.patch_metadata_string("kbit.tensor_sha256", Some(stored), hash)?;
                    stored += 1;
                }
            }
            self.writer.patch_metadata_string("kbit.source.root", None, &root.hex())?;
        }
        let paths = self.writer.finish()?;
        self.journal.remove()?;
        let name =
            |entry: &Entry| self.conversion.tensors[self.plan.tensors[entry.tensor].source].name.clone();
        Ok(Written {
            paths,
            bytes: self.plan.layout.file_bytes(),
            errors: entries.iter().filter_map(|entry| Some((name(entry), entry.error?))).collect(),
            resumed: self.resumed,
        })
    }
}

/// Running checksums of one tensor: of its values, and of each array that stores it.
struct SlabHashes {
    /// Where the file will hold it.
    source: Option<Sha256>,
    stored: Vec<Checksum>,
    /// For each part, which of `stored` its body is.
    bodies: Vec<usize>,
}

impl SlabHashes {
    fn new(
        source: Option<Sha256>,
        parts: &[(usize, Option<usize>)],
        checksum: impl Fn() -> Checksum,
    ) -> Self {
        let arrays = parts.iter().map(|(body, head)| 1 + head.unwrap_or(0).max(*body)).max().unwrap_or(0);
        Self {
            source,
            stored: (0..arrays).map(|_| checksum()).collect(),
            bodies: parts.iter().map(|(body, _)| *body).collect(),
        }
    }

    fn update(&mut self, slab: &Slab, values: &[f32]) {
        let source = &mut self.source;
        let stored = &mut self.stored;
        let bodies = &self.bodies;
        rayon::join(
            || {
                if let Some(source) = source {
                    source.update(bytemuck::cast_slice(values));
                }
            },
            || {
                for (body, bytes) in bodies.iter().zip(&slab.parts) {
                    stored[*body].update(bytes);
                }
            },
        );
    }
}

/// Where the weights of a slice are while they are encoded.
#[derive(Clone, Copy)]
enum Values<'a> {
    /// All are in memory.
    Whole(&'a [f32]),
    /// Each slab keeps its own, since they are hashed in their order.
    Slab,
    /// Nobody needs them after their chunk is encoded: they never leave the core's cache.
    Chunk,
}

/// Rows in memory: their values where they are kept, and the bytes of each part that encodes them.
#[derive(Default)]
struct Slab {
    rows: Range<u64>,
    values: Vec<f32>,
    parts: Vec<Vec<u8>>,
}

impl Slab {
    /// The values to hash; none where nothing hashes them.
    fn values<'a>(&'a self, values: Values<'a>, cols: u64) -> &'a [f32] {
        match values {
            Values::Whole(whole) => rows_of(whole, &self.rows, cols),
            Values::Slab | Values::Chunk => &self.values,
        }
    }
}

/// The encoding of one slice of a tensor.
struct SliceWork<'a> {
    run: &'a FileRun<'a>,
    source: SliceSource<'a>,
    parts: &'a [(usize, Option<usize>)],
}

impl SliceWork<'_> {
    /// The slice as it stands in the partial file, to decode what was written.
    fn open_written(&self, heads: Vec<Vec<u8>>) -> Result<PluginCodec, PipelineError> {
        let mut bodies = Vec::new();
        for ((body, _), part) in self.parts.iter().zip(&self.source.plan.parts) {
            let stored = self.source.tensor.first_stored + body;
            let offset = self.run.plan.layout.tensor(stored).map_or(0, |(_, offset, _)| offset);
            let bytes = self.source.plan.groups(self.source.tensor.shape.rows) * part.group_bytes;
            let start = offset + self.source.info.slice * bytes;
            bodies.push(Bytes::new(self.run.writer.map(stored)?, bounded(start)..bounded(start + bytes)));
        }
        let heads = heads.into_iter().map(Bytes::from).collect();
        Ok(self.source.open.open_tensor(&self.source.info, TensorBytes { heads, parts: bodies })?)
    }

    fn encode(
        &self,
        job: &Job,
        values: Values<'_>,
        codec: Option<&PluginCodec>,
        hashes: &mut SlabHashes,
        sums: &mut ErrorSums,
    ) -> Result<(), PipelineError> {
        let cols = self.source.tensor.shape.cols;
        let mut previous: Option<Slab> = None;
        let mut spare = Slab::default();
        for rows in self.source.slabs() {
            self.source.check_cancelled()?;
            let mut current = std::mem::take(&mut spare);
            current.rows = rows;
            let (slab_sums, ()) = rayon::join(
                || self.encode_slab(job, values, codec, &mut current),
                || {
                    if let Some(slab) = &previous {
                        hashes.update(slab, slab.values(values, cols));
                    }
                },
            );
            for chunk_sums in &slab_sums? {
                sums.merge(chunk_sums);
            }
            self.run.bar.advance(weights(&current.rows, cols) as u64 * 4);
            spare = previous.replace(current).unwrap_or_default();
        }
        if let Some(slab) = &previous {
            hashes.update(slab, slab.values(values, cols));
        }
        Ok(())
    }

    /// Reads, encodes and writes the rows of `slab`, chunks in parallel; error sums of its chunks in order.
    fn encode_slab(
        &self,
        job: &Job,
        values: Values<'_>,
        codec: Option<&PluginCodec>,
        slab: &mut Slab,
    ) -> Result<Vec<ErrorSums>, PipelineError> {
        let cols = self.source.tensor.shape.cols;
        let rows = slab.rows.clone();
        let groups = self.source.plan.groups(rows.end - rows.start);
        slab.parts.resize_with(self.source.plan.parts.len(), Vec::new);
        for (bytes, part) in slab.parts.iter_mut().zip(&self.source.plan.parts) {
            bytes.resize(bounded(groups * part.group_bytes), 0);
        }
        if matches!(values, Values::Slab) {
            slab.values.resize(weights(&rows, cols), 0.0);
        }
        let chunk = self.source.chunk_rows();
        let chunk_weights = weights(&(0..chunk), cols);
        let mut pieces: Vec<_> = slab
            .parts
            .iter_mut()
            .zip(&self.source.plan.parts)
            .map(|(bytes, part)| {
                bytes.chunks_mut(bounded(self.source.plan.groups(chunk) * part.group_bytes).max(1))
            })
            .collect();
        let mut kept = slab.values.chunks_mut(chunk_weights);
        let chunks: Vec<_> = ranges(rows, chunk)
            .map(|rows| Chunk {
                rows,
                kept: kept.next().unwrap_or_default(),
                parts: pieces.iter_mut().map(|piece| piece.next().unwrap_or_default()).collect(),
            })
            .collect();
        chunks.into_par_iter().map(|chunk| self.encode_chunk(job, values, codec, chunk)).collect()
    }

    fn encode_chunk(
        &self,
        job: &Job,
        values: Values<'_>,
        codec: Option<&PluginCodec>,
        chunk: Chunk<'_>,
    ) -> Result<ErrorSums, PipelineError> {
        let cols = self.source.tensor.shape.cols;
        let Chunk { rows, kept, parts } = chunk;
        match values {
            Values::Whole(whole) => {
                self.encode_values(job, codec, rows.clone(), rows_of(whole, &rows, cols), parts)
            }
            Values::Slab => {
                self.source.read(rows.clone(), kept)?;
                self.encode_values(job, codec, rows, kept, parts)
            }
            Values::Chunk => with_floats(&CHUNK_VALUES, weights(&rows, cols), |read| {
                self.source.read(rows.clone(), read)?;
                self.encode_values(job, codec, rows, read, parts)
            }),
        }
    }

    /// Encodes and writes `rows`, whose weights are `values`; the error of what was written where `codec` reads it.
    fn encode_values(
        &self,
        job: &Job,
        codec: Option<&PluginCodec>,
        rows: Range<u64>,
        values: &[f32],
        mut parts: Vec<&mut [u8]>,
    ) -> Result<ErrorSums, PipelineError> {
        job.encode(rows.clone(), values, &mut parts)?;
        let first_group = rows.start / self.source.group();
        let all_groups = self.source.plan.groups(self.source.tensor.shape.rows);
        for ((bytes, part), (body, _)) in parts.iter().zip(&self.source.plan.parts).zip(self.parts) {
            let offset = (self.source.info.slice * all_groups + first_group) * part.group_bytes;
            self.run.writer.write_at(self.source.tensor.first_stored + body, offset, bytes)?;
        }
        let Some(codec) = codec else { return Ok(ErrorSums::default()) };
        with_floats(&DECODED, values.len(), |decoded| {
            codec.decode(rows, decoded, bounded(self.source.tensor.shape.cols))?;
            Ok(ErrorSums::of(values, decoded))
        })
    }
}

/// Runs `work` with `count` floats of unspecified contents, which this thread keeps for the next time.
fn with_floats<T>(
    kept: &'static LocalKey<RefCell<Vec<f32>>>,
    count: usize,
    work: impl FnOnce(&mut [f32]) -> T,
) -> T {
    // Taken, so that a chunk that is begun inside of another finds no borrowed buffer.
    let mut floats = kept.take();
    if floats.len() < count {
        floats.resize(count, 0.0);
    }
    let result = work(&mut floats[..count]);
    kept.set(floats);
    result
}

thread_local! {
    /// The weights of the chunk that this thread encodes.
    static CHUNK_VALUES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// What they became.
    static DECODED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of memory that writing `tensor` takes for slabs: two of them with their encoded bytes, statistics, or a whole slice.
#[must_use]
pub fn memory_bytes(tensor: &PlannedTensor) -> u64 {
    let shape = tensor.shape;
    if matches!(tensor.store, Store::Copy { .. }) {
        return COPY_BYTES.min(tensor.bytes);
    }
    let Store::Scheme { plan, .. } = &tensor.store else {
        return rows_for(SLAB_WEIGHTS, shape.cols, 1).min(shape.rows) * shape.cols * 8;
    };
    let chunk = rows_for(CHUNK_WEIGHTS, shape.cols, plan.row_group);
    let rows = rows_for(SLAB_WEIGHTS, shape.cols, chunk).min(shape.rows);
    let encoded: u64 = plan.parts.iter().map(|part| plan.groups(rows) * part.group_bytes).sum();
    let whole = if plan.whole_matrix { shape.rows * shape.cols * 4 } else { 0 };
    2 * (rows * shape.cols * 4 + encoded) + plan.groups(shape.rows) * plan.stat_bytes + whole
}

/// One unit of parallel work.
struct Chunk<'a> {
    rows: Range<u64>,
    /// Their place in the slab where it keeps its values, else empty.
    kept: &'a mut [f32],
    parts: Vec<&'a mut [u8]>,
}

/// Refuses NaN and infinity; the values begin at row `first_row`.
pub(crate) fn refuse_not_finite(
    values: &[f32],
    output: &OutputTensor,
    first_row: u64,
    cols: u64,
) -> Result<(), PipelineError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(PipelineError::NotFinite {
            tensor: output.name.clone(),
            value: if values[index].is_nan() { "NaN" } else { "infinity" },
            row: first_row + index as u64 / cols.max(1),
            column: index as u64 % cols.max(1),
        }),
    }
}

/// Refuses NaN and infinity in copied half-precision values, the first of which is value `first` of the tensor. Values of other types
/// are taken as they are.
fn refuse_halves_not_finite(
    bytes: &[u8],
    ty: GgmlType,
    output: &OutputTensor,
    first: u64,
    cols: u64,
) -> Result<(), PipelineError> {
    let exponent = match ty {
        GgmlType::F16 => 0x7c00,
        GgmlType::BF16 => 0x7f80,
        _ => return Ok(()),
    };
    let halves = || bytes.as_chunks::<2>().0.iter().map(|half| u16::from_le_bytes(*half) & 0x7fff);
    match halves().position(|half| half >= exponent) {
        None => Ok(()),
        Some(index) => Err(PipelineError::NotFinite {
            tensor: output.name.clone(),
            value: if halves().nth(index) == Some(exponent) { "infinity" } else { "NaN" },
            row: (first + index as u64) / cols.max(1),
            column: (first + index as u64) % cols.max(1),
        }),
    }
}
