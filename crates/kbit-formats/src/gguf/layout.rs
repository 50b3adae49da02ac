//! The exact bytes of a file's header and the place of every tensor, without any I/O.

use super::value::{Array, Metadata, Value};
use super::{MAGIC, tensor_bytes};
use crate::FormatError;
use kbit_types::GgmlType;
use std::collections::{HashMap, HashSet};

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

/// Where everything of a new file goes.
#[derive(Clone, Debug)]
pub struct GgufLayout {
    header: Vec<u8>,
    /// Start of each text in the header: of a text value, or of each element of a list of texts.
    texts: HashMap<String, Vec<(usize, usize)>>,
    tensors: Vec<(String, u64, u64)>,
    file_bytes: u64,
}

impl GgufLayout {
    /// Lays out a file of version 3.
    ///
    /// # Errors
    /// A name that is too long or stands twice, a shape that does not fit its type, an alignment that is no power of two.
    pub fn new(metadata: &Metadata, tensors: &[NewTensor], alignment: u64) -> Result<Self, FormatError> {
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
        let mut out = Encoder { header: Vec::new(), texts: HashMap::new() };
        out.header.extend(MAGIC);
        out.header.extend(3u32.to_le_bytes());
        out.header.extend((tensors.len() as u64).to_le_bytes());
        out.header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.iter() {
            out.text(key);
            out.header.extend(value.type_id().to_le_bytes());
            out.value(key, value);
        }
        let mut placed = Vec::with_capacity(tensors.len());
        let mut seen = HashSet::with_capacity(tensors.len());
        let mut next = 0u64;
        let overflow =
            |name: &str| unwritable(name, "the file would exceed 2^63 bytes; split the model".to_owned());
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
            out.text(&tensor.name);
            out.header.extend(u32::try_from(tensor.dims.len()).unwrap_or(4).to_le_bytes());
            for axis in &tensor.dims {
                out.header.extend(axis.to_le_bytes());
            }
            out.header.extend(tensor.ty.id().to_le_bytes());
            out.header.extend(next.to_le_bytes());
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
        Ok(Self { header: out.header, texts: out.texts, tensors: placed, file_bytes: start + next })
    }

    /// The bytes before the first tensor, padding included.
    #[must_use]
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Bytes of the whole file.
    #[must_use]
    pub const fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Number of tensors.
    #[must_use]
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Name, offset in the file, and bytes of tensor `index`.
    #[must_use]
    pub fn tensor(&self, index: usize) -> Option<(&str, u64, u64)> {
        self.tensors.get(index).map(|(name, offset, bytes)| (name.as_str(), *offset, *bytes))
    }

    /// Offset and length of the text under `key`: the value itself, or element `index` of a list.
    pub(super) fn text_place(&self, key: &str, index: Option<usize>) -> Option<(usize, usize)> {
        self.texts.get(key)?.get(index.unwrap_or(0)).copied()
    }
}

fn unwritable(what: &str, reason: String) -> FormatError {
    FormatError::Unwritable { what: what.to_owned(), reason }
}

struct Encoder {
    header: Vec<u8>,
    texts: HashMap<String, Vec<(usize, usize)>>,
}

impl Encoder {
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
