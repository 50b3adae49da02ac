//! Reading GGUF version 2 and 3.
//!
//! The header is read in one pass from a buffered file; every count is checked against the bytes that remain before
//! memory is reserved for it.

use super::shards::{self, SPLIT_KEYS};
use super::value::{Array, Metadata, Value};
use super::{DEFAULT_ALIGNMENT, MAGIC, TensorInfo};
use crate::FormatError;
use crate::map::Mapped;
use kbit_types::GgmlType;
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Depth of arrays in arrays; no known file has more than one.
const MAX_DEPTH: u32 = 4;
/// Axes of a tensor, as ggml has them.
const MAX_AXES: u32 = 4;

/// An opened GGUF model: one file, or all shards of a set.
#[derive(Debug)]
pub struct Gguf {
    /// The first file is the one that it was opened from.
    files: Vec<OneFile>,
    version: u32,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

#[derive(Debug)]
struct OneFile {
    path: PathBuf,
    file: File,
    bytes: u64,
    data_start: u64,
}

impl Gguf {
    /// Reads the header of `path`; where it is the first of several shards, of all of them.
    ///
    /// # Errors
    /// When a file cannot be read, is not GGUF 2 or 3, or contradicts itself; when a shard is missing, is not the first, or
    /// belongs to another set.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let mut model = Self::open_file(path)?;
        let Some(place) = shards::place(&model.metadata, path)? else { return Ok(model) };
        let mut seen: HashSet<String> = model.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        for (number, path) in shards::paths_of_set(path, &place)?.into_iter().enumerate().skip(1) {
            let shard = Self::open_file(&path)?;
            shards::check_shard(&path, &shard.metadata, number, &place)?;
            for tensor in shard.tensors {
                if !seen.insert(tensor.name.clone()) {
                    return Err(FormatError::tensor(&path, &tensor.name, "it stands in two shards"));
                }
                model.tensors.push(TensorInfo { shard: number, ..tensor });
            }
            model.files.extend(shard.files);
        }
        if let Some(stated) = place.tensors.filter(|stated| *stated != model.tensors.len() as u64) {
            let reason = format!(
                "its {} shards hold {} tensors where the metadata say {stated}; they are damaged or mixed up: get them anew",
                place.count,
                model.tensors.len()
            );
            return Err(shards::shard_error(path, reason));
        }
        for key in SPLIT_KEYS {
            model.metadata.remove(key);
        }
        Ok(model)
    }

    /// Reads the header of the one file `path`, be it a shard or not.
    ///
    /// # Errors
    /// When the file cannot be read, is not GGUF 2 or 3, or contradicts itself.
    pub fn open_file(path: &Path) -> Result<Self, FormatError> {
        let file = File::open(path).map_err(FormatError::io(path, "opening"))?;
        let file_bytes = file.metadata().map_err(FormatError::io(path, "looking at the file"))?.len();
        let reader = BufReader::with_capacity(1 << 18, &file);
        let mut header = Header { path, reader, position: 0, file_bytes };
        let version = header.version()?;
        let n_tensors = header.u64()?;
        let n_keys = header.u64()?;
        let metadata = header.metadata(n_keys)?;
        let alignment = alignment(path, &metadata)?;
        let mut tensors = header.tensors(n_tensors)?;
        let data_start = header
            .position
            .checked_next_multiple_of(alignment)
            .ok_or_else(|| header.damaged("an alignment past the end of the file"))?;
        place_tensors(path, &mut tensors, data_start, alignment, file_bytes)?;
        let file = OneFile { path: path.to_owned(), file, bytes: file_bytes, data_start };
        Ok(Self { files: vec![file], version, alignment, metadata, tensors })
    }

    fn first(&self) -> &OneFile {
        &self.files[0]
    }

    /// Path that it was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.first().path
    }

    /// Paths of all its files: itself, or all shards.
    pub fn paths(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.files.iter().map(|file| file.path.as_path())
    }

    /// Bytes of all its files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Version: 2 or 3.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// Tensors start at multiples of this.
    #[must_use]
    pub const fn alignment(&self) -> u64 {
        self.alignment
    }

    /// Bytes before the first tensor of the (first) file.
    #[must_use]
    pub fn data_start(&self) -> u64 {
        self.first().data_start
    }

    /// Metadata, in the order of the file; of a set, without the keys that tie its shards together.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Tensors, in the order of the file.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Reads `out.len()` bytes of `tensor` from `offset`. Any thread.
    ///
    /// # Errors
    /// When they lie past its end, or the file was truncated meanwhile.
    pub fn read_at(&self, tensor: &TensorInfo, offset: u64, out: &mut [u8]) -> Result<(), FormatError> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > tensor.bytes) {
            return Err(FormatError::tensor(self.path(), &tensor.name, "a read past its end"));
        }
        let OneFile { path, file, .. } = &self.files[tensor.shard];
        file.read_exact_at(out, tensor.offset + offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                FormatError::tensor(path, &tensor.name, "the file was truncated while it was read")
            }
            _ => FormatError::io(path, "reading")(error),
        })
    }

    /// Maps all its files.
    ///
    /// # Errors
    /// When the system refuses, or a file is shorter than it was.
    pub fn map(&self) -> Result<Maps, FormatError> {
        let map = |file: &OneFile| Ok(Arc::new(Mapped::new(&file.file, &file.path, file.bytes)?));
        Ok(Maps { files: self.files.iter().map(map).collect::<Result<_, FormatError>>()? })
    }
}

/// The mapped files of a model.
#[derive(Clone, Debug)]
pub struct Maps {
    files: Vec<Arc<Mapped>>,
}

impl Maps {
    /// The map of the file that holds `tensor`, a tensor of the same model; [`Mapped::range`] says where.
    #[must_use]
    pub fn of(&self, tensor: &TensorInfo) -> &Arc<Mapped> {
        &self.files[tensor.shard]
    }
}

fn alignment(path: &Path, metadata: &Metadata) -> Result<u64, FormatError> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(value)) if value.is_power_of_two() && (8..=1 << 20).contains(value) => {
            Ok((*value).into())
        }
        Some(_) => Err(FormatError::metadata(
            path,
            "general.alignment",
            "is not a power of two from 8 to 1048576 stored as u32; the file is damaged: get it anew",
        )),
    }
}

/// Turns offsets into absolute ones and checks that every tensor lies inside the file, none overlaps another, and none leaves
/// bytes unused behind it: then its shape or type is not that of what was written. ggml refuses such files as well.
fn place_tensors(
    path: &Path,
    tensors: &mut [TensorInfo],
    data_start: u64,
    alignment: u64,
    file_bytes: u64,
) -> Result<(), FormatError> {
    for tensor in tensors.iter_mut() {
        let fail = |reason: String| Err(FormatError::tensor(path, &tensor.name, reason));
        if !tensor.offset.is_multiple_of(alignment) {
            return fail(format!(
                "its offset {} is not a multiple of the alignment {alignment}",
                tensor.offset
            ));
        }
        let start = data_start.checked_add(tensor.offset);
        let end = start.and_then(|start| start.checked_add(tensor.bytes));
        match (start, end) {
            (Some(start), Some(end)) if end <= file_bytes => tensor.offset = start,
            _ => {
                return fail(format!(
                    "{} bytes at offset {} of the data reach past the end of the file ({file_bytes} bytes)",
                    tensor.bytes, tensor.offset
                ));
            }
        }
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|tensor| tensor.offset);
    for pair in order.windows(2) {
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            return Err(FormatError::tensor(
                path,
                &pair[1].name,
                format!("it overlaps tensor {}", pair[0].name),
            ));
        }
        let end = pair[0].offset + pair[0].bytes;
        if end.next_multiple_of(alignment) < pair[1].offset {
            let reason = format!(
                "it has {} bytes, and {} more stand before the next tensor, {}: its shape or type is not that of its data",
                pair[0].bytes,
                pair[1].offset - end,
                pair[1].name
            );
            return Err(FormatError::tensor(path, &pair[0].name, reason));
        }
    }
    Ok(())
}

struct Header<'a, R> {
    path: &'a Path,
    reader: R,
    position: u64,
    file_bytes: u64,
}

impl<R: Read> Header<'_, R> {
    fn damaged(&self, reason: impl Into<String>) -> FormatError {
        FormatError::damaged(self.path, self.position, reason)
    }

    const fn remaining(&self) -> u64 {
        self.file_bytes.saturating_sub(self.position)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<(), FormatError> {
        if out.len() as u64 > self.remaining() {
            return Err(self.damaged("the header ends in the middle of a value"));
        }
        self.reader.read_exact(out).map_err(FormatError::io(self.path, "reading the header"))?;
        self.position += out.len() as u64;
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, FormatError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, least: u64, what: &str) -> Result<usize, FormatError> {
        let count = self.u64()?;
        self.check_count(count, least, what)
    }

    fn check_count(&self, count: u64, least: u64, what: &str) -> Result<usize, FormatError> {
        let fits = count.checked_mul(least).is_some_and(|bytes| bytes <= self.remaining());
        usize::try_from(count).ok().filter(|_| fits).ok_or_else(|| {
            self.damaged(format!("{count} {what} cannot fit the {} bytes that remain", self.remaining()))
        })
    }

    fn version(&mut self) -> Result<u32, FormatError> {
        if self.bytes::<4>()? != MAGIC {
            self.position = 0;
            return Err(self.damaged("not a GGUF file: it does not start with GGUF"));
        }
        let refuse = |reason: &str| {
            Err(FormatError::Version { path: self.path.to_owned(), reason: reason.to_owned() })
        };
        let version = u32::from_le_bytes({
            let mut bytes = [0; 4];
            self.reader.read_exact(&mut bytes).map_err(FormatError::io(self.path, "reading the header"))?;
            self.position += 4;
            bytes
        });
        match version {
            2 | 3 => Ok(version),
            1 => refuse("GGUF version 1 is from before the format was settled; convert the model anew"),
            _ if version.swap_bytes() <= 3 => {
                refuse("a big-endian GGUF file; convert it to little-endian (gguf-convert-endian)")
            }
            _ => refuse(&format!(
                "GGUF version {version} is newer than this kbit knows (2 and 3); update kbit"
            )),
        }
    }

    fn string(&mut self) -> Result<String, FormatError> {
        let start = self.position;
        let length = self.count(1, "bytes of text")?;
        let mut bytes = vec![0; length];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes)
            .map_err(|_| FormatError::damaged(self.path, start, "a text that is not UTF-8"))
    }

    fn metadata(&mut self, count: u64) -> Result<Metadata, FormatError> {
        // A key takes at least its length, its type and one byte of value.
        let count = self.check_count(count, 13, "metadata keys")?;
        let mut metadata = Metadata::new();
        let mut seen = HashSet::with_capacity(count);
        for _ in 0..count {
            let start = self.position;
            let key = self.string()?;
            let type_id = self.u32()?;
            let value = self.value(type_id, &key)?;
            if !seen.insert(key.clone()) {
                return Err(FormatError::damaged(
                    self.path,
                    start,
                    format!("the metadata key {key} stands twice"),
                ));
            }
            metadata.push(key, value);
        }
        Ok(metadata)
    }

    fn boolean(&mut self) -> Result<bool, FormatError> {
        match self.bytes()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.damaged(format!("{other} where true (1) or false (0) must stand"))),
        }
    }

    fn value(&mut self, type_id: u32, key: &str) -> Result<Value, FormatError> {
        Ok(match type_id {
            0 => Value::U8(u8::from_le_bytes(self.bytes()?)),
            1 => Value::I8(i8::from_le_bytes(self.bytes()?)),
            2 => Value::U16(u16::from_le_bytes(self.bytes()?)),
            3 => Value::I16(i16::from_le_bytes(self.bytes()?)),
            4 => Value::U32(u32::from_le_bytes(self.bytes()?)),
            5 => Value::I32(i32::from_le_bytes(self.bytes()?)),
            6 => Value::F32(f32::from_le_bytes(self.bytes()?)),
            7 => Value::Bool(self.boolean()?),
            8 => Value::String(self.string()?),
            9 => Value::Array(self.array(key, 0)?),
            10 => Value::U64(u64::from_le_bytes(self.bytes()?)),
            11 => Value::I64(i64::from_le_bytes(self.bytes()?)),
            12 => Value::F64(f64::from_le_bytes(self.bytes()?)),
            other => return Err(self.damaged(format!("metadata {key} has the unknown type {other}"))),
        })
    }

    fn numbers<const N: usize, T>(&mut self, convert: impl Fn([u8; N]) -> T) -> Result<Vec<T>, FormatError> {
        let count = self.count(N as u64, "array elements")?;
        let mut bytes = vec![0; count * N];
        self.fill(&mut bytes)?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)).collect())
    }

    fn array(&mut self, key: &str, depth: u32) -> Result<Array, FormatError> {
        if depth > MAX_DEPTH {
            return Err(self.damaged(format!("metadata {key} nests arrays more than {MAX_DEPTH} deep")));
        }
        let type_id = self.u32()?;
        Ok(match type_id {
            0 => Array::U8(self.numbers(u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(f32::from_le_bytes)?),
            7 => {
                let count = self.count(1, "array elements")?;
                Array::Bool((0..count).map(|_| self.boolean()).collect::<Result<_, _>>()?)
            }
            8 => {
                let count = self.count(8, "texts")?;
                Array::String((0..count).map(|_| self.string()).collect::<Result<_, _>>()?)
            }
            9 => {
                let count = self.count(12, "arrays")?;
                Array::Nested((0..count).map(|_| self.array(key, depth + 1)).collect::<Result<_, _>>()?)
            }
            10 => Array::U64(self.numbers(u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(f64::from_le_bytes)?),
            other => {
                return Err(self.damaged(format!("metadata {key} is an array of the unknown type {other}")));
            }
        })
    }

    /// Tensor entries, with offsets still relative to the start of the data.
    fn tensors(&mut self, count: u64) -> Result<Vec<TensorInfo>, FormatError> {
        // An entry takes at least name length, number of axes, one axis, type and offset.
        let count = self.check_count(count, 32, "tensors")?;
        let mut tensors = Vec::with_capacity(count);
        let mut seen = HashSet::with_capacity(count);
        for _ in 0..count {
            let name = self.string()?;
            let axes = self.u32()?;
            if axes == 0 || axes > MAX_AXES {
                return Err(self.damaged(format!("tensor {name} has {axes} axes; ggml has 1 to {MAX_AXES}")));
            }
            let dims: Vec<u64> = (0..axes).map(|_| self.u64()).collect::<Result<_, _>>()?;
            let type_id = self.u32()?;
            let offset = self.u64()?;
            let Some(ty) = GgmlType::from_id(type_id) else {
                return Err(
                    self.damaged(format!("tensor {name} has the unknown ggml type {type_id}; update kbit"))
                );
            };
            let bytes = super::tensor_bytes(&dims, ty).ok_or_else(|| {
                self.damaged(format!(
                    "tensor {name}: shape {dims:?} does not fit type {ty}, whose rows are blocks of {}",
                    ty.block_elements()
                ))
            })?;
            if !seen.insert(name.clone()) {
                return Err(self.damaged(format!("tensor {name} stands twice")));
            }
            tensors.push(TensorInfo { name, dims, ty, offset, bytes, shard: 0 });
        }
        Ok(tensors)
    }
}
