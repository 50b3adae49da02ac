//! A checkpoint to read: a Hugging Face folder (one safetensors file or shards), one safetensors file, or a GGUF file (one,
//! or shards, opened by the first).
//!
//! Bytes are read by position, from any thread; a file that is truncated meanwhile is an error. What was read is dropped
//! from the page cache's claim on memory only by the system's own choice.

use crate::FormatError;
use crate::gguf::Gguf;
use crate::hash::Sha256;
use crate::safetensors::{self, Entry};
use kbit_types::{Dtype, GgmlType};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Largest index file that is read.
const MAX_INDEX: u64 = 256 << 20;

/// How a tensor's elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Plain little-endian values.
    Plain(Dtype),
    /// ggml blocks along the last axis.
    Block(GgmlType),
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTensor {
    /// Name.
    pub name: String,
    /// Element type.
    pub element: Element,
    /// Row-major shape: the last axis is contiguous.
    pub shape: Vec<u64>,
    /// Stored bytes.
    pub bytes: u64,
    file: usize,
    offset: u64,
}

impl SourceTensor {
    /// Its file among those of the checkpoint, from 0, and the offset of its bytes there.
    #[must_use]
    pub const fn place(&self) -> (usize, u64) {
        (self.file, self.offset)
    }
}

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: Vec<SourceTensor>,
    index: HashMap<String, usize>,
    gguf: Option<Gguf>,
}

impl Checkpoint {
    /// Opens `path` and lists its tensors; no tensor is read.
    ///
    /// # Errors
    /// When there is no checkpoint, or it is damaged.
    pub fn open(path: &Path) -> Result<Self, FormatError> {
        let kind = std::fs::metadata(path).map_err(FormatError::io(path, "opening the checkpoint"))?;
        if kind.is_dir() {
            return Self::open_folder(path);
        }
        let mut magic = [0; 4];
        let file = File::open(path).map_err(FormatError::io(path, "opening"))?;
        let is_gguf = file.read_exact_at(&mut magic, 0).is_ok() && magic == *b"GGUF";
        let named =
            |extension: &str| path.extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
        if is_gguf || named("gguf") {
            return Self::from_gguf(Gguf::open(path)?);
        }
        if named("safetensors") {
            return Self::from_shards(path, vec![(path.to_owned(), file)], None);
        }
        Err(FormatError::NotACheckpoint {
            path: path.to_owned(),
            reason: "neither GGUF nor safetensors".to_owned(),
        })
    }

    fn open_folder(folder: &Path) -> Result<Self, FormatError> {
        let single = folder.join("model.safetensors");
        if single.is_file() {
            let file = File::open(&single).map_err(FormatError::io(&single, "opening"))?;
            return Self::from_shards(folder, vec![(single, file)], None);
        }
        let index = folder.join("model.safetensors.index.json");
        if !index.is_file() {
            let reason = "neither model.safetensors nor model.safetensors.index.json".to_owned();
            return Err(FormatError::NotACheckpoint { path: folder.to_owned(), reason });
        }
        let placed = read_index(&index)?;
        let mut names: Vec<&String> = placed.values().collect();
        names.sort();
        names.dedup();
        let mut files = Vec::with_capacity(names.len());
        for name in names {
            let relative = Path::new(name);
            if relative.components().any(|component| !matches!(component, Component::Normal(_))) {
                return Err(FormatError::damaged(
                    &index,
                    0,
                    format!("the shard {name} lies outside the folder"),
                ));
            }
            let path = folder.join(relative);
            let file = File::open(&path).map_err(FormatError::io(&path, "opening a shard"))?;
            files.push((path, file));
        }
        Self::from_shards(folder, files, Some((&index, &placed)))
    }

    fn from_shards(
        path: &Path,
        files: Vec<(PathBuf, File)>,
        index: Option<(&Path, &BTreeMap<String, String>)>,
    ) -> Result<Self, FormatError> {
        let mut tensors = Vec::new();
        for (number, (file_path, file)) in files.iter().enumerate() {
            for entry in safetensors::read_header(file, file_path)? {
                if let Some((index_path, placed)) = index {
                    check_shard(index_path, placed, file_path, &entry)?;
                }
                let Entry { name, dtype, shape, offset, bytes } = entry;
                tensors.push(SourceTensor {
                    name,
                    element: Element::Plain(dtype),
                    shape,
                    bytes,
                    file: number,
                    offset,
                });
            }
        }
        let checkpoint = Self::new(path, files, tensors, None)?;
        if let Some((index_path, placed)) = index
            && let Some(name) = placed.keys().find(|name| checkpoint.tensor(name).is_none())
        {
            let reason = format!("the index names the tensor {name}, which no shard holds");
            return Err(FormatError::damaged(index_path, 0, reason));
        }
        Ok(checkpoint)
    }

    fn from_gguf(gguf: Gguf) -> Result<Self, FormatError> {
        let tensor = |tensor: &crate::gguf::TensorInfo| SourceTensor {
            name: tensor.name.clone(),
            element: element(tensor.ty),
            shape: tensor.dims.iter().rev().copied().collect(),
            bytes: tensor.bytes,
            file: tensor.shard,
            offset: tensor.offset,
        };
        let tensors = gguf.tensors().iter().map(tensor).collect();
        let open =
            |path: &Path| Ok((path.to_owned(), File::open(path).map_err(FormatError::io(path, "opening"))?));
        let files = gguf.paths().map(open).collect::<Result<_, FormatError>>()?;
        let path = gguf.path().to_owned();
        Self::new(&path, files, tensors, Some(gguf))
    }

    fn new(
        path: &Path,
        files: Vec<(PathBuf, File)>,
        tensors: Vec<SourceTensor>,
        gguf: Option<Gguf>,
    ) -> Result<Self, FormatError> {
        let mut index = HashMap::with_capacity(tensors.len());
        for (number, tensor) in tensors.iter().enumerate() {
            if index.insert(tensor.name.clone(), number).is_some() {
                return Err(FormatError::tensor(path, &tensor.name, "it stands in two shards"));
            }
        }
        Ok(Self { path: path.to_owned(), files, tensors, index, gguf })
    }

    /// Path that it was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder, where the checkpoint is one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        self.path.is_dir().then_some(&self.path)
    }

    /// The GGUF file, where the checkpoint is one.
    #[must_use]
    pub const fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref()
    }

    /// All tensors, in the order of the files.
    #[must_use]
    pub fn tensors(&self) -> &[SourceTensor] {
        &self.tensors
    }

    /// The tensor `name`.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&SourceTensor> {
        self.index.get(name).map(|number| &self.tensors[*number])
    }

    /// Reads `out.len()` bytes of `tensor` from `offset`. Any thread.
    ///
    /// # Errors
    /// When they lie past its end, or the file was truncated meanwhile.
    pub fn read_at(&self, tensor: &SourceTensor, offset: u64, out: &mut [u8]) -> Result<(), FormatError> {
        let (path, file) = &self.files[tensor.file];
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > tensor.bytes) {
            return Err(FormatError::tensor(path, &tensor.name, "a read past its end"));
        }
        file.read_exact_at(out, tensor.offset + offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                FormatError::tensor(path, &tensor.name, "the file was truncated while it was read")
            }
            _ => FormatError::io(path, "reading")(error),
        })
    }

    /// A text that changes when a file of the checkpoint is replaced or written to: paths, sizes, times of change.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn fingerprint(&self) -> Result<String, FormatError> {
        let mut hash = Sha256::new();
        for (path, file) in &self.files {
            let metadata = file.metadata().map_err(FormatError::io(path, "looking at the file"))?;
            let modified = metadata.modified().map_err(FormatError::io(path, "looking at the file"))?;
            let modified = modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
            hash.update(format!("{}\0{}\0{modified}\0", path.display(), metadata.len()).as_bytes());
        }
        Ok(hash.hex())
    }
}

/// ggml's plain types are plain values; the rest are blocks.
const fn element(ty: GgmlType) -> Element {
    Element::Plain(match ty {
        GgmlType::F32 => Dtype::F32,
        GgmlType::F16 => Dtype::F16,
        GgmlType::BF16 => Dtype::Bf16,
        GgmlType::F64 => Dtype::F64,
        GgmlType::I8 => Dtype::I8,
        GgmlType::I16 => Dtype::I16,
        GgmlType::I32 => Dtype::I32,
        GgmlType::I64 => Dtype::I64,
        other => return Element::Block(other),
    })
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, FormatError> {
    let size = std::fs::metadata(path).map_err(FormatError::io(path, "looking at the file"))?.len();
    if size > MAX_INDEX {
        return Err(FormatError::damaged(
            path,
            0,
            format!("an index of {size} bytes is larger than any model's"),
        ));
    }
    let bytes = std::fs::read(path).map_err(FormatError::io(path, "reading"))?;
    let index: Index = serde_json::from_slice(&bytes)
        .map_err(|error| FormatError::damaged(path, 0, format!("not an index of shards: {error}")))?;
    Ok(index.weight_map)
}

fn check_shard(
    index: &Path,
    placed: &BTreeMap<String, String>,
    file: &Path,
    entry: &Entry,
) -> Result<(), FormatError> {
    let expected = placed.get(&entry.name).map(String::as_str);
    if expected.map(std::ffi::OsStr::new) == file.file_name() {
        return Ok(());
    }
    let reason = match expected {
        Some(expected) => format!("the index {} places it in {expected}", index.display()),
        None => format!("the index {} does not name it", index.display()),
    };
    Err(FormatError::tensor(file, &entry.name, reason))
}
