//! One importance matrix: entries, counts, and the means of one slice at a time.
//!
//! Sources: llama.cpp's `imatrix.cpp` for what the files hold, its `quantize.cpp` for what is made of them: an expert that
//! saw no token counts as 1 in every column, and every quotient is taken in single precision.

use crate::legacy;
use crate::shrink::shrink;
use crate::{CalibrateError, SharedInput};
use kbit_formats::gguf::{Array, Gguf, TensorInfo, Value};
use kbit_formats::hash;
use kbit_types::GgmlType;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Values that are read at once.
const CHUNK: usize = 1 << 16;
/// Endings of the two tensors of an entry.
pub(crate) const SUMS: &str = ".in_sum2";
pub(crate) const COUNTS: &str = ".counts";
/// Ending of the tensor of second moments.
pub(crate) const MOMENTS: &str = ".moments";
/// Metadata keys.
pub(crate) const MOMENTS_TENSORS: &str = "kbit.moments.tensors";
pub(crate) const MOMENTS_OF: &str = "kbit.moments.of";
pub(crate) const TYPE: &str = "general.type";
pub(crate) const DATASETS: &str = "imatrix.datasets";
pub(crate) const CHUNK_COUNT: &str = "imatrix.chunk_count";
pub(crate) const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// Which of llama.cpp's two formats a file has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// GGUF: sums of squares, and how many tokens each expert saw.
    Gguf,
    /// The older `.dat`: means, without counts for experts.
    Legacy,
}

/// What the values of an entry are to be divided by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Counts {
    /// Tokens that each expert (or the one matrix) saw.
    Experts(Vec<u64>),
    /// Calls; 0 leaves the values as they are.
    Calls(u64),
}

/// The data of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub(crate) values: u64,
    pub(crate) counts: Counts,
    /// Offset of the values from the start of the file.
    pub(crate) offset: u64,
}

impl Entry {
    /// Number of values: columns times experts.
    #[must_use]
    pub const fn values(&self) -> u64 {
        self.values
    }

    /// Tokens that each expert saw, one number for a plain matrix; `None` in files that do not tell.
    #[must_use]
    pub fn counts(&self) -> Option<&[u64]> {
        match &self.counts {
            Counts::Experts(counts) => Some(counts),
            Counts::Calls(_) => None,
        }
    }

    /// Tokens behind value `index`; `None` in files that do not tell.
    pub(crate) fn count_of(&self, index: u64) -> Option<u64> {
        let counts = self.counts()?;
        let each = self.values / counts.len() as u64;
        counts.get(usize::try_from(index / each).ok()?).copied()
    }
}

/// An opened importance matrix.
#[derive(Debug)]
pub struct ImportanceMatrix {
    path: PathBuf,
    file: File,
    kind: FileKind,
    sha256: String,
    datasets: Vec<String>,
    chunk_count: u64,
    chunk_size: Option<u64>,
    entries: BTreeMap<String, Entry>,
    moments: SecondMoments,
}

/// Second moments.
#[derive(Debug, Default)]
struct SecondMoments {
    /// In the order of the file.
    inputs: Vec<SharedInput>,
    /// For each input, the offset of its first triangle from the start of the file.
    offsets: Vec<u64>,
    /// Which of the inputs a tensor has.
    of: BTreeMap<String, usize>,
}

impl SecondMoments {
    /// The input of the tensor `name`, and its offset.
    fn of(&self, name: &str) -> Option<(&SharedInput, u64)> {
        let input = *self.of.get(name)?;
        Some((self.inputs.get(input)?, *self.offsets.get(input)?))
    }
}

/// Numbers of the lower triangle of a matrix of so many columns.
const fn triangle(cols: u64) -> Option<u64> {
    match cols.checked_add(1) {
        Some(next) => match cols.checked_mul(next) {
            Some(twice) => Some(twice / 2),
            None => None,
        },
        None => None,
    }
}

impl ImportanceMatrix {
    /// Opens `path` and checks every value of it.
    ///
    /// # Errors
    /// When it is no importance matrix, contradicts itself, or holds a value that no mean square can be: NaN, infinite or
    /// negative.
    pub fn open(path: &Path) -> Result<Self, CalibrateError> {
        let file = File::open(path).map_err(io(path, "opening"))?;
        let bytes = file.metadata().map_err(io(path, "looking at the file"))?.len();
        let mut magic = [0; 4];
        let is_gguf = file.read_exact_at(&mut magic, 0).is_ok() && &magic == b"GGUF";
        let mut matrix = if is_gguf {
            Self::from_gguf(file, path)?
        } else {
            let legacy = legacy::read(&file, path, bytes)?;
            Self {
                path: path.to_owned(),
                file,
                kind: FileKind::Legacy,
                sha256: String::new(),
                datasets: legacy.datasets,
                chunk_count: legacy.chunk_count,
                chunk_size: None,
                entries: legacy.entries,
                moments: SecondMoments::default(),
            }
        };
        matrix.check_values()?;
        matrix.sha256 = hash::file_hex(path)?;
        Ok(matrix)
    }

    /// True where `gguf` says that it is an importance matrix.
    #[must_use]
    pub fn is_one(gguf: &Gguf) -> bool {
        let metadata = gguf.metadata();
        metadata.get(TYPE) == Some(&Value::String("imatrix".to_owned()))
            || metadata.get(CHUNK_COUNT).is_some() && metadata.get(DATASETS).is_some()
    }

    fn from_gguf(file: File, path: &Path) -> Result<Self, CalibrateError> {
        let gguf = Gguf::open_file(path)?;
        let metadata = gguf.metadata();
        let absent = |what: &str| CalibrateError::NotAnImportanceMatrix {
            path: path.to_owned(),
            reason: format!("{what} is missing"),
        };
        let datasets = match metadata.get(DATASETS) {
            Some(Value::Array(Array::String(datasets))) => datasets.clone(),
            _ => return Err(absent(DATASETS)),
        };
        let whole = |key: &str| metadata.opt_u32(key)?.map(u64::from).ok_or_else(|| absent(key));
        let (chunk_count, chunk_size) = (whole(CHUNK_COUNT)?, whole(CHUNK_SIZE)?);
        let mut pairs: BTreeMap<&str, [Option<usize>; 2]> = BTreeMap::new();
        for (index, tensor) in gguf.tensors().iter().enumerate() {
            for (which, ending) in [SUMS, COUNTS].into_iter().enumerate() {
                if let Some(name) = tensor.name.strip_suffix(ending).filter(|name| !name.is_empty()) {
                    pairs.entry(name).or_default()[which] = Some(index);
                }
            }
        }
        if pairs.is_empty() {
            return Err(absent("any tensor NAME.in_sum2"));
        }
        let mut entries = BTreeMap::new();
        for (name, pair) in pairs {
            let wrong = |reason: String| entry_error(path, name, reason);
            let [Some(sums), Some(counts)] = pair else {
                return Err(wrong(format!("one of {name}{SUMS} and {name}{COUNTS} is missing")));
            };
            let entry =
                entry(&gguf, &gguf.tensors()[sums], &gguf.tensors()[counts]).map_err(
                    |error| match error {
                        EntryTrouble::Read(error) => error,
                        EntryTrouble::Wrong(reason) => wrong(reason),
                    },
                )?;
            entries.insert(name.to_owned(), entry);
        }
        let moments = moments(&gguf, &entries).map_err(|(name, reason)| entry_error(path, &name, reason))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            kind: FileKind::Gguf,
            sha256: String::new(),
            datasets,
            chunk_count,
            chunk_size: Some(chunk_size),
            entries,
            moments,
        })
    }

    fn check_values(&self) -> Result<(), CalibrateError> {
        let mut values = vec![0.0; CHUNK];
        for (name, entry) in &self.entries {
            let mut done = 0;
            while done < entry.values {
                let count = usize::try_from(entry.values - done).unwrap_or(CHUNK).min(CHUNK);
                let values = &mut values[..count];
                self.raw(entry, done, values)?;
                if let Some(at) = values.iter().position(|value| !value.is_finite() || *value < 0.0) {
                    let reason = format!(
                        "value {} is {}, which no sum of squares can be",
                        done + at as u64,
                        values[at]
                    );
                    return Err(entry_error(&self.path, name, reason));
                }
                done += count as u64;
            }
        }
        Ok(())
    }

    /// Path that it was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// SHA-256 of the file.
    #[must_use]
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// Which format the file has.
    #[must_use]
    pub const fn kind(&self) -> FileKind {
        self.kind
    }

    /// Texts that it was gathered on, as the file names them.
    #[must_use]
    pub fn datasets(&self) -> &[String] {
        &self.datasets
    }

    /// Windows of text that it was gathered on; 0 where the file does not tell.
    #[must_use]
    pub const fn chunk_count(&self) -> u64 {
        self.chunk_count
    }

    /// Tokens in a window, where the file tells.
    #[must_use]
    pub const fn chunk_size(&self) -> Option<u64> {
        self.chunk_size
    }

    /// Entries by tensor name, in the order of the names.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_str(), entry))
    }

    /// The entry of the tensor `name`.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    /// Names of the tensors that have an entry: the fact "importance present" of each.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&str> {
        self.entries.keys().map(String::as_str).collect()
    }

    /// Mean squared inputs of slice `slice` of the tensor `name`, as llama-quantize reckons them: sum by count, 1 for an
    /// expert without tokens. `out`: `[cols]`.
    ///
    /// # Errors
    /// When there is no such entry, the slice lies past its end, or the file cannot be read.
    pub fn read(&self, name: &str, slice: u64, out: &mut [f32]) -> Result<(), CalibrateError> {
        let (entry, start) = self.slice(name, slice, out.len())?;
        self.raw(entry, start, out)?;
        match &entry.counts {
            Counts::Calls(0) => {}
            Counts::Calls(calls) => divide(out, *calls),
            Counts::Experts(counts) => {
                let each = entry.values / counts.len() as u64;
                let mut rest = out;
                let mut at = start;
                while !rest.is_empty() {
                    let within = usize::try_from(each - at % each).unwrap_or(usize::MAX).min(rest.len());
                    let (part, more) = rest.split_at_mut(within);
                    match entry.count_of(at) {
                        Some(count) if count > 0 => divide(part, count),
                        _ => part.fill(1.0),
                    }
                    at += within as u64;
                    rest = more;
                }
            }
        }
        Ok(())
    }

    /// Number of tensors with second moments of their inputs.
    #[must_use]
    pub fn moments_count(&self) -> usize {
        self.moments.of.len()
    }

    /// The inputs that there are second moments of.
    #[must_use]
    pub fn moment_inputs(&self) -> &[SharedInput] {
        &self.moments.inputs
    }

    /// True where there are second moments of the inputs of the tensor `name`, which has `slices` matrices of `cols` columns.
    #[must_use]
    pub fn has_moments(&self, name: &str, slices: u64, cols: u64) -> bool {
        let same =
            |(input, _): (&SharedInput, u64)| (input.slices as u64, input.cols as u64) == (slices, cols);
        self.moments.of(name).is_some_and(same)
    }

    /// Second moments of the inputs of slice `slice` of the tensor `name`, `[cols][cols]`: the mean of `x x^T`.
    ///
    /// # Errors
    /// When there are none, the slice lies past their end, one is not finite, or the file cannot be read.
    pub fn read_moments(&self, name: &str, slice: u64) -> Result<Vec<f32>, CalibrateError> {
        let cols = self.moments.of(name).map_or(0, |(input, _)| input.cols);
        let too_large = || entry_error(&self.path, name, format!("{cols} columns are too many"));
        let count = cols.checked_mul(cols).ok_or_else(too_large)?;
        let mut square: Vec<f32> = Vec::new();
        square.try_reserve_exact(count).map_err(|_| too_large())?;
        square.resize(count, 0.0);
        self.moment_rows(name, slice, |row, means| square[row * cols..][..=row].copy_from_slice(means))?;
        for row in 0..cols {
            for col in 0..row {
                square[col * cols + row] = square[row * cols + col];
            }
        }
        Ok(square)
    }

    /// The best estimate of second moments, `[cols][cols]`: those of [`Self::read_moments`], but for unlike columns taken towards zero by the
    /// share that chance has in them, which is large where tokens were few for so many columns.
    ///
    /// # Errors
    /// As for [`Self::read_moments`].
    pub fn estimate_moments(&self, name: &str, slice: u64) -> Result<Vec<f32>, CalibrateError> {
        let mut moments = self.read_moments(name, slice)?;
        let cols = self.moments.of(name).map_or(0, |(input, _)| input.cols);
        let tokens = self.entry(name).and_then(|entry| entry.count_of(slice * cols as u64)).unwrap_or(0);
        shrink(&mut moments, cols, tokens);
        Ok(moments)
    }

    /// Gives rows of the lower triangle of the second moments, from the first: row `row` has `row + 1` means.
    ///
    /// # Errors
    /// As for [`Self::read_moments`].
    pub(crate) fn moment_rows(
        &self,
        name: &str,
        slice: u64,
        mut each: impl FnMut(usize, &[f32]),
    ) -> Result<(), CalibrateError> {
        let wrong = |reason: String| entry_error(&self.path, name, reason);
        let found = self.moments.of(name).filter(|(input, _)| slice < input.slices as u64);
        let (input, first) = found.ok_or_else(|| wrong(format!("has no second moments of slice {slice}")))?;
        let cols = input.cols;
        let mut offset = first + slice * input.triangle() as u64 * 4;
        let mut means = vec![0.0f32; cols];
        for row in 0..cols {
            let own = &mut means[..=row];
            self.file
                .read_exact_at(bytemuck::cast_slice_mut(own), offset)
                .map_err(io(&self.path, "reading"))?;
            if let Some(col) = own.iter().position(|value| !value.is_finite()) {
                return Err(wrong(format!("the second moment of columns {row} and {col} is {}", own[col])));
            }
            each(row, own);
            offset += (row as u64 + 1) * 4;
        }
        Ok(())
    }

    /// The stored values of slice `slice`, undivided.
    pub(crate) fn sums(&self, name: &str, slice: u64, out: &mut [f32]) -> Result<(), CalibrateError> {
        let (entry, start) = self.slice(name, slice, out.len())?;
        self.raw(entry, start, out)
    }

    fn slice(&self, name: &str, slice: u64, cols: usize) -> Result<(&Entry, u64), CalibrateError> {
        let wrong = |reason: String| entry_error(&self.path, name, reason);
        let entry = self.entry(name).ok_or_else(|| wrong("is not in the file".to_owned()))?;
        let start = slice.checked_mul(cols as u64);
        let end = start.and_then(|start| start.checked_add(cols as u64));
        match (start, end) {
            (Some(start), Some(end)) if end <= entry.values => Ok((entry, start)),
            _ => Err(wrong(format!("{} values have no slice {slice} of {cols} columns", entry.values))),
        }
    }

    fn raw(&self, entry: &Entry, start: u64, out: &mut [f32]) -> Result<(), CalibrateError> {
        let offset = entry.offset + start * 4;
        self.file.read_exact_at(bytemuck::cast_slice_mut(out), offset).map_err(io(&self.path, "reading"))
    }
}

#[expect(clippy::cast_precision_loss, reason = "llama-quantize divides by the count in single precision")]
fn divide(values: &mut [f32], count: u64) {
    values.iter_mut().for_each(|value| *value /= count as f32);
}

enum EntryTrouble {
    Read(CalibrateError),
    Wrong(String),
}

/// The entry of a pair of tensors.
fn entry(gguf: &Gguf, sums: &TensorInfo, counts: &TensorInfo) -> Result<Entry, EntryTrouble> {
    let wrong = |reason: String| Err(EntryTrouble::Wrong(reason));
    if sums.ty != GgmlType::F32 || counts.ty != GgmlType::F32 {
        return wrong(format!("sums and counts are {} and {}, not F32", sums.ty, counts.ty));
    }
    let (values, experts) = (sums.bytes / 4, counts.bytes / 4);
    if values == 0 || experts == 0 || !values.is_multiple_of(experts) {
        return wrong(format!("{values} sums cannot be shared out among {experts} counts"));
    }
    let mut stored = vec![0f32; usize::try_from(experts).unwrap_or(usize::MAX)];
    gguf.read_at(counts, 0, bytemuck::cast_slice_mut(&mut stored))
        .map_err(|error| EntryTrouble::Read(error.into()))?;
    let mut whole = Vec::with_capacity(stored.len());
    for (expert, count) in stored.iter().enumerate() {
        // Beyond 2^53 no count was ever made one by one.
        if !(0.0..9.0e15).contains(count) {
            return wrong(format!("the count of expert {expert} is {count}"));
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be in range"
        )]
        whole.push(count.round() as u64);
    }
    Ok(Entry { values, counts: Counts::Experts(whole), offset: sums.offset })
}

/// Second moments. Errors are the entry's name and the reason.
fn moments(gguf: &Gguf, entries: &BTreeMap<String, Entry>) -> Result<SecondMoments, (String, String)> {
    let names = |key: &str| match gguf.metadata().get(key) {
        Some(Value::Array(Array::String(names))) => names.as_slice(),
        _ => &[],
    };
    let (tensors, of) = (names(MOMENTS_TENSORS), names(MOMENTS_OF));
    if tensors.len() != of.len() {
        let reason = format!("it has {} names, {MOMENTS_OF} {}", tensors.len(), of.len());
        return Err((MOMENTS_TENSORS.to_owned(), reason));
    }
    let mut all = SecondMoments::default();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, of) in tensors.iter().zip(of) {
        let wrong = |reason: String| Err((name.clone(), reason));
        let Some(tensor) = gguf.tensor(&format!("{of}{MOMENTS}")) else {
            return wrong(format!("its second moments, {of}{MOMENTS}, are missing"));
        };
        let (numbers, slices) = match tensor.dims.as_slice() {
            [numbers] => (*numbers, 1),
            [numbers, slices] => (*numbers, *slices),
            _ => return wrong(format!("{} has {} axes", tensor.name, tensor.dims.len())),
        };
        let values = entries.get(name.as_str()).map_or(0, Entry::values);
        let cols = values.checked_div(slices).unwrap_or(0);
        if tensor.ty != GgmlType::F32 || cols == 0 || triangle(cols) != Some(numbers) {
            return wrong(format!(
                "{} is {} of {numbers} x {slices}, not the triangles of {values} columns",
                tensor.name, tensor.ty
            ));
        }
        let (Ok(slices), Ok(cols)) = (usize::try_from(slices), usize::try_from(cols)) else {
            return wrong(format!("{slices} matrices of {cols} columns are too many"));
        };
        let place = *places.entry(of).or_insert(all.inputs.len());
        match all.inputs.get_mut(place) {
            Some(input) => input.tensors.push(name.clone()),
            None => {
                all.inputs.push(SharedInput { tensors: vec![name.clone()], slices, cols });
                all.offsets.push(tensor.offset);
            }
        }
        all.of.insert(name.clone(), place);
    }
    Ok(all)
}

fn entry_error(path: &Path, entry: &str, reason: String) -> CalibrateError {
    CalibrateError::Entry { path: path.to_owned(), entry: entry.to_owned(), reason }
}

fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> CalibrateError {
    let path = path.to_owned();
    move |error| CalibrateError::Io { path, action, error }
}
