//! The exact bytes of a file's or shard's header and the place of every tensor, without any I/O.

use super::shards::{self, Split};
use super::value::{Array, Metadata, Value};
use super::{MAGIC, TensorInfo, tensor_bytes};
use crate::FormatError;
use crate::hash::Sha256;
use kbit_types::GgmlType;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Longest tensor name that ggml reads, in bytes (its buffer holds 64 with the terminator).
pub const MAX_NAME: usize = 63;

/// A tensor to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTensor {
    /// Name, at most 63 bytes.
    pub name: String,
    /// Axes in ggml's order: the first is contiguous.
    pub dims: Vec<u64>,
    /// Storage type.
    pub ty: GgmlType,
}

/// Where everything of a new model goes: one file, or several shards.
#[derive(Clone, Debug)]
pub struct GgufLayout {
    files: Vec<FileLayout>,
    /// File of each tensor, and its number there.
    places: Vec<(usize, usize)>,
    is_split: bool,
}

/// One file.
#[derive(Clone, Debug)]
struct FileLayout {
    header: Vec<u8>,
    /// Start of each text in the header: of a text value, or of each element of a list of texts.
    texts: HashMap<String, Vec<(usize, usize)>>,
    tensors: Vec<(String, u64, u64)>,
    bytes: u64,
}

impl GgufLayout {
    /// Lays out a file of version 3.
    ///
    /// # Errors
    /// A name that is too long or stands twice, a shape that does not fit its type, an alignment that is no power of two.
    pub fn new(metadata: &Metadata, tensors: &[NewTensor], alignment: u64) -> Result<Self, FormatError> {
        check_alignment(metadata, alignment)?;
        check_names(tensors)?;
        let file = FileLayout::new(metadata, tensors, alignment)?;
        let places = (0..tensors.len()).map(|index| (0, index)).collect();
        Ok(Self { files: vec![file], places, is_split: false })
    }

    /// Lays out a model in shards as llama-gguf-split does; by [`Split::Files`], as llama-quantize does with `--keep-split`.
    /// `bare_first` leaves the first shard without tensors.
    ///
    /// # Errors
    /// As [`GgufLayout::new`]; when there would be more shards than can be numbered.
    pub fn split(
        metadata: &Metadata,
        tensors: &[NewTensor],
        alignment: u64,
        split: &Split,
        bare_first: bool,
    ) -> Result<Self, FormatError> {
        check_alignment(metadata, alignment)?;
        check_names(tensors)?;
        let shares = shards::share_out(tensors, alignment, split, bare_first)?;
        let count = shares.last().map_or(usize::from(bare_first), |last| *last) + 1;
        let by_quantize = matches!(split, Split::Files(_));
        let (mut files, mut places) = (Vec::with_capacity(count), Vec::with_capacity(tensors.len()));
        for number in 0..count {
            // Only the first shard states an alignment, so only there it holds.
            let (mut metadata, alignment) = match number {
                0 => (metadata.clone(), alignment),
                _ => (Metadata::new(), super::DEFAULT_ALIGNMENT),
            };
            shards::split_metadata(&mut metadata, number, count, tensors.len(), by_quantize);
            let held = shares.iter().filter(|share| **share == number).count();
            let held = &tensors[places.len()..places.len() + held];
            files.push(FileLayout::new(&metadata, held, alignment)?);
            places.extend((0..held.len()).map(|index| (number, index)));
        }
        Ok(Self { files, places, is_split: true })
    }

    /// Paths of the files of a model that is written to `path`: itself, or `<path without .gguf>-00001-of-0000N.gguf`.
    #[must_use]
    pub fn paths(&self, path: &Path) -> Vec<PathBuf> {
        if !self.is_split {
            return vec![path.to_owned()];
        }
        let prefix = match path.extension() {
            Some(extension) if extension == "gguf" => path.with_extension(""),
            _ => path.to_owned(),
        };
        (0..self.files.len()).map(|number| shards::shard_path(&prefix, number, self.files.len())).collect()
    }

    /// The bytes before the first tensor of the first file, padding included.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.files[0].header
    }

    /// SHA-256 over the headers of all files: equal for equal layouts.
    #[must_use]
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        self.files.iter().for_each(|file| hash.update(&file.header));
        hash.hex()
    }

    /// Bytes of all files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    /// Number of files.
    #[must_use]
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Tensors and bytes of each file.
    pub fn shards(&self) -> impl Iterator<Item = (usize, u64)> {
        self.files.iter().map(|file| (file.tensors.len(), file.bytes))
    }

    /// Header and bytes of file `number`.
    pub(super) fn file(&self, number: usize) -> (&[u8], u64) {
        (&self.files[number].header, self.files[number].bytes)
    }

    /// Number of tensors.
    #[must_use]
    pub fn tensor_count(&self) -> usize {
        self.places.len()
    }

    /// File of tensor `index`, from 0.
    #[must_use]
    pub fn shard_of(&self, index: usize) -> Option<usize> {
        self.places.get(index).map(|(file, _)| *file)
    }

    /// Name, offset in its file, and bytes of tensor `index`.
    #[must_use]
    pub fn tensor(&self, index: usize) -> Option<(&str, u64, u64)> {
        let (file, number) = *self.places.get(index)?;
        self.files[file].tensors.get(number).map(|(name, offset, bytes)| (name.as_str(), *offset, *bytes))
    }

    /// Offset and length, in the first file, of the text under `key`: the value itself, or element `index` of a list.
    pub(super) fn text_place(&self, key: &str, index: Option<usize>) -> Option<(usize, usize)> {
        self.files[0].texts.get(key)?.get(index.unwrap_or(0)).copied()
    }

    /// True where `found` is the header of file `number` but for texts that were patched.
    pub(super) fn is_header(&self, number: usize, found: &[u8]) -> bool {
        let FileLayout { header, texts, .. } = &self.files[number];
        if found.len() != header.len() {
            return false;
        }
        let mut blank = found.to_vec();
        for (start, length) in texts.values().flatten() {
            blank[*start..start + length].copy_from_slice(&header[*start..start + length]);
        }
        &blank == header
    }
}

fn check_alignment(metadata: &Metadata, alignment: u64) -> Result<(), FormatError> {
    if !alignment.is_power_of_two() || alignment < 8 {
        return Err(unwritable(
            "the file",
            format!("an alignment of {alignment} is not a power of two from 8 on"),
        ));
    }
    if alignment != super::DEFAULT_ALIGNMENT
        && metadata.get("general.alignment").and_then(Value::as_integer) != Some(alignment.into())
    {
        return Err(unwritable("general.alignment", "must state an alignment other than 32".to_owned()));
    }
    Ok(())
}

fn check_names(tensors: &[NewTensor]) -> Result<(), FormatError> {
    let mut seen = HashSet::with_capacity(tensors.len());
    for tensor in tensors {
        if tensor.name.is_empty() || tensor.name.len() > MAX_NAME {
            return Err(unwritable(
                &tensor.name,
                format!(
                    "tensor names have 1 to {MAX_NAME} bytes, this has {}; choose a scheme with shorter part names",
                    tensor.name.len()
                ),
            ));
        }
        if !seen.insert(tensor.name.as_str()) {
            return Err(unwritable(&tensor.name, "two tensors have this name".to_owned()));
        }
    }
    Ok(())
}

impl FileLayout {
    fn new(metadata: &Metadata, tensors: &[NewTensor], alignment: u64) -> Result<Self, FormatError> {
        let mut out = Encoder { header: Vec::new(), texts: HashMap::new() };
        out.start(3, metadata, tensors.len());
        let mut placed = Vec::with_capacity(tensors.len());
        let mut next = 0u64;
        let overflow =
            |name: &str| unwritable(name, "the file would exceed 2^63 bytes; split the model".to_owned());
        for tensor in tensors {
            if tensor.dims.is_empty() || tensor.dims.len() > 4 {
                return Err(unwritable(
                    &tensor.name,
                    format!("it has {} axes; GGUF has 1 to 4", tensor.dims.len()),
                ));
            }
            let bytes = tensor_bytes(&tensor.dims, tensor.ty).ok_or_else(|| {
                unwritable(
                    &tensor.name,
                    format!("shape {:?} is not made of whole blocks of {}", tensor.dims, tensor.ty),
                )
            })?;
            out.tensor(&tensor.name, &tensor.dims, tensor.ty, next);
            placed.push((tensor.name.clone(), next, bytes));
            next = next
                .checked_add(bytes)
                .and_then(|end| end.checked_next_multiple_of(alignment))
                .filter(|end| *end < 1 << 62)
                .ok_or_else(|| overflow(&tensor.name))?;
        }
        let start = (out.header.len() as u64).next_multiple_of(alignment);
        for (_, offset, _) in &mut placed {
            *offset += start;
        }
        out.header.resize(usize::try_from(start).unwrap_or(usize::MAX), 0);
        Ok(Self { header: out.header, texts: out.texts, tensors: placed, bytes: start + next })
    }
}

/// The header, padding included, of a file with these metadata and with tensors that stay where they are.
pub(super) fn encode_header(
    version: u32,
    metadata: &Metadata,
    tensors: &[TensorInfo],
    data_start: u64,
    alignment: u64,
) -> Vec<u8> {
    let mut out = Encoder { header: Vec::new(), texts: HashMap::new() };
    out.start(version, metadata, tensors.len());
    for tensor in tensors {
        out.tensor(&tensor.name, &tensor.dims, tensor.ty, tensor.offset - data_start);
    }
    let end = (out.header.len() as u64).next_multiple_of(alignment);
    out.header.resize(usize::try_from(end).unwrap_or(usize::MAX), 0);
    out.header
}

fn unwritable(what: &str, reason: String) -> FormatError {
    FormatError::Unwritable { what: what.to_owned(), reason }
}

struct Encoder {
    header: Vec<u8>,
    texts: HashMap<String, Vec<(usize, usize)>>,
}

impl Encoder {
    /// Everything before the tensors.
    fn start(&mut self, version: u32, metadata: &Metadata, tensors: usize) {
        self.header.extend(MAGIC);
        self.header.extend(version.to_le_bytes());
        self.header.extend((tensors as u64).to_le_bytes());
        self.header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            self.text(key);
            self.header.extend(value.type_id().to_le_bytes());
            self.value(key, value);
        }
    }

    fn tensor(&mut self, name: &str, dims: &[u64], ty: GgmlType, offset: u64) {
        self.text(name);
        self.header.extend(u32::try_from(dims.len()).unwrap_or(4).to_le_bytes());
        for axis in dims {
            self.header.extend(axis.to_le_bytes());
        }
        self.header.extend(ty.id().to_le_bytes());
        self.header.extend(offset.to_le_bytes());
    }

    fn text(&mut self, text: &str) -> (usize, usize) {
        self.header.extend((text.len() as u64).to_le_bytes());
        let place = (self.header.len(), text.len());
        self.header.extend(text.as_bytes());
        place
    }

    fn value(&mut self, key: &str, value: &Value) {
        match value {
            Value::U8(value) => self.header.extend(value.to_le_bytes()),
            Value::I8(value) => self.header.extend(value.to_le_bytes()),
            Value::U16(value) => self.header.extend(value.to_le_bytes()),
            Value::I16(value) => self.header.extend(value.to_le_bytes()),
            Value::U32(value) => self.header.extend(value.to_le_bytes()),
            Value::I32(value) => self.header.extend(value.to_le_bytes()),
            Value::F32(value) => self.header.extend(value.to_le_bytes()),
            Value::Bool(value) => self.header.push(u8::from(*value)),
            Value::String(text) => {
                let place = self.text(text);
                self.texts.insert(key.to_owned(), vec![place]);
            }
            Value::U64(value) => self.header.extend(value.to_le_bytes()),
            Value::I64(value) => self.header.extend(value.to_le_bytes()),
            Value::F64(value) => self.header.extend(value.to_le_bytes()),
            Value::Array(items) => self.array(key, items),
        }
    }

    fn array(&mut self, key: &str, array: &Array) {
        self.header.extend(array.type_id().to_le_bytes());
        self.header.extend((array.len() as u64).to_le_bytes());
        macro_rules! numbers {
            ($items:expr) => {
                for item in $items {
                    self.header.extend(item.to_le_bytes());
                }
            };
        }
        match array {
            Array::U8(items) => self.header.extend(items),
            Array::I8(items) => numbers!(items),
            Array::U16(items) => numbers!(items),
            Array::I16(items) => numbers!(items),
            Array::U32(items) => numbers!(items),
            Array::I32(items) => numbers!(items),
            Array::F32(items) => numbers!(items),
            Array::Bool(items) => self.header.extend(items.iter().map(|item| u8::from(*item))),
            Array::String(items) => {
                let places = items.iter().map(|item| self.text(item)).collect();
                self.texts.insert(key.to_owned(), places);
            }
            Array::U64(items) => numbers!(items),
            Array::I64(items) => numbers!(items),
            Array::F64(items) => numbers!(items),
            Array::Nested(items) => {
                for item in items {
                    self.array(key, item);
                }
            }
        }
    }
}
