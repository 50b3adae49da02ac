//! How schemes with a layout of their own stand in a GGUF file: `docs/file-layout.md`.
//!
//! Each part of a tensor is a plain typed tensor `<tensor>.<part>`, each head `<tensor>.<part>.head`; parallel arrays under
//! `kbit.` say which scheme made what.

use crate::FormatError;
use crate::gguf::{Array, Gguf, Metadata, Value};
use kbit_types::GgmlType;
use std::path::Path;

/// Version of this layout.
pub const FORMAT: u32 = 1;

/// What a file says of its packed tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedIndex {
    /// Tensors of the model that are stored in parts.
    pub tensors: Vec<PackedTensor>,
    /// Schemes that they refer to.
    pub schemes: Vec<PackedScheme>,
}

/// A tensor that is stored in parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedTensor {
    /// Name in the model.
    pub name: String,
    /// Index into the schemes.
    pub scheme: u32,
    /// Rows of a slice.
    pub rows: u64,
    /// Columns.
    pub cols: u64,
    /// Slices.
    pub slices: u64,
}

/// A scheme with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedScheme {
    /// Scheme id.
    pub id: String,
    /// Parameters, as canonical JSON.
    pub params: String,
    /// Parts, in the scheme's order.
    pub parts: Vec<PackedPart>,
    /// Version of the plugin that wrote the file.
    pub plugin_version: String,
    /// SHA-256 of that plugin.
    pub plugin_sha256: String,
}

/// A part's name and element type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedPart {
    /// Name.
    pub name: String,
    /// `u8`, `i8`, `i16`, `i32`, `f16`, `bf16` or `f32`.
    pub dtype: String,
}

impl PackedPart {
    /// The ggml type that stores the part's elements.
    #[must_use]
    pub fn ggml_type(&self) -> Option<GgmlType> {
        Some(match self.dtype.as_str() {
            "u8" | "i8" => GgmlType::I8,
            "i16" => GgmlType::I16,
            "i32" => GgmlType::I32,
            "f16" => GgmlType::F16,
            "bf16" => GgmlType::BF16,
            "f32" => GgmlType::F32,
            _ => return None,
        })
    }
}

impl PackedIndex {
    /// Adds the index to `metadata`.
    pub fn write(&self, metadata: &mut Metadata) {
        let column =
            |get: fn(&PackedTensor) -> u64| Value::Array(Array::U64(self.tensors.iter().map(get).collect()));
        let names = self.tensors.iter().map(|tensor| tensor.name.clone()).collect();
        let schemes = self.tensors.iter().map(|tensor| tensor.scheme).collect();
        metadata.insert("kbit.format", Value::U32(FORMAT));
        metadata.insert("kbit.tensors.name", Value::Array(Array::String(names)));
        metadata.insert("kbit.tensors.scheme", Value::Array(Array::U32(schemes)));
        metadata.insert("kbit.tensors.rows", column(|tensor| tensor.rows));
        metadata.insert("kbit.tensors.cols", column(|tensor| tensor.cols));
        metadata.insert("kbit.tensors.slices", column(|tensor| tensor.slices));
        for (number, scheme) in self.schemes.iter().enumerate() {
            let parts = scheme.parts.iter().map(|part| format!("{}:{}", part.name, part.dtype)).collect();
            let key = |name: &str| format!("kbit.scheme.{number}.{name}");
            metadata.insert(key("id"), Value::String(scheme.id.clone()));
            metadata.insert(key("params"), Value::String(scheme.params.clone()));
            metadata.insert(key("parts"), Value::Array(Array::String(parts)));
            metadata.insert(key("plugin.version"), Value::String(scheme.plugin_version.clone()));
            metadata.insert(key("plugin.sha256"), Value::String(scheme.plugin_sha256.clone()));
        }
    }

    /// Reads the index of `gguf` and checks it against the tensors that are there; `None` where the file has none.
    ///
    /// # Errors
    /// When the arrays differ in length, a scheme or part is missing, or shapes contradict.
    pub fn read(gguf: &Gguf) -> Result<Option<Self>, FormatError> {
        let metadata = gguf.metadata();
        let path = gguf.path();
        match metadata.opt_u32("kbit.format")? {
            None => return Ok(None),
            Some(FORMAT) => {}
            Some(other) => {
                let reason = format!("is {other}, this kbit reads {FORMAT}; update kbit");
                return Err(FormatError::metadata(path, "kbit.format", &reason));
            }
        }
        let names = metadata.strings("kbit.tensors.name")?;
        let schemes = integers(path, metadata, "kbit.tensors.scheme", names.len())?;
        let rows = integers(path, metadata, "kbit.tensors.rows", names.len())?;
        let cols = integers(path, metadata, "kbit.tensors.cols", names.len())?;
        let slices = integers(path, metadata, "kbit.tensors.slices", names.len())?;
        let mut index = Self::default();
        while metadata.get(&format!("kbit.scheme.{}.id", index.schemes.len())).is_some() {
            let scheme = read_scheme(path, metadata, index.schemes.len())?;
            index.schemes.push(scheme);
        }
        for (number, name) in names.iter().enumerate() {
            let scheme =
                u32::try_from(schemes[number]).ok().filter(|scheme| (*scheme as usize) < index.schemes.len());
            let scheme = scheme.ok_or_else(|| {
                FormatError::tensor(
                    path,
                    name,
                    format!("it refers to scheme {}, which the file does not describe", schemes[number]),
                )
            })?;
            let tensor = PackedTensor {
                name: name.clone(),
                scheme,
                rows: rows[number],
                cols: cols[number],
                slices: slices[number],
            };
            check_parts(gguf, &tensor, &index.schemes[scheme as usize])?;
            index.tensors.push(tensor);
        }
        Ok(Some(index))
    }
}

fn integers(path: &Path, metadata: &Metadata, key: &str, len: usize) -> Result<Vec<u64>, FormatError> {
    let found = match metadata.get(key) {
        Some(Value::Array(Array::U64(items))) => Some(items.clone()),
        Some(Value::Array(Array::U32(items))) => Some(items.iter().map(|item| u64::from(*item)).collect()),
        _ => None,
    };
    found.filter(|items| items.len() == len).ok_or_else(|| {
        FormatError::metadata(
            path,
            key,
            &format!("is not a list of {len} whole numbers; the file is damaged: get it anew"),
        )
    })
}

fn read_scheme(path: &Path, metadata: &Metadata, number: usize) -> Result<PackedScheme, FormatError> {
    let key = |name: &str| format!("kbit.scheme.{number}.{name}");
    let parts = metadata.strings(&key("parts"))?.iter().map(|text| {
        let (name, dtype) = text.split_once(':')?;
        let part = PackedPart { name: name.to_owned(), dtype: dtype.to_owned() };
        part.ggml_type().map(|_| part)
    });
    let parts = parts.collect::<Option<Vec<_>>>().filter(|parts| (1..=8).contains(&parts.len())).ok_or_else(
        || {
            FormatError::metadata(
                path,
                &key("parts"),
                "is not a list of 1 to 8 `name:type`; the file is damaged: get it anew",
            )
        },
    )?;
    Ok(PackedScheme {
        id: metadata.str(&key("id"))?.to_owned(),
        params: metadata.str(&key("params"))?.to_owned(),
        parts,
        plugin_version: metadata.str(&key("plugin.version"))?.to_owned(),
        plugin_sha256: metadata.str(&key("plugin.sha256"))?.to_owned(),
    })
}

fn check_parts(gguf: &Gguf, tensor: &PackedTensor, scheme: &PackedScheme) -> Result<(), FormatError> {
    let elements = tensor.rows.checked_mul(tensor.cols).and_then(|count| count.checked_mul(tensor.slices));
    if elements.is_none_or(|count| count == 0) {
        return Err(FormatError::tensor(gguf.path(), &tensor.name, "its shape is empty or too large"));
    }
    for part in &scheme.parts {
        let name = format!("{}.{}", tensor.name, part.name);
        let fail = |reason: &str| Err(FormatError::tensor(gguf.path(), &name, reason));
        let Some(body) = gguf.tensor(&name) else { return fail("the part is missing") };
        let slices = body.dims.get(2).copied().unwrap_or(1);
        if Some(body.ty) != part.ggml_type() || slices != tensor.slices {
            return fail("its type or number of slices contradicts the index");
        }
        if let Some(head) = gguf.tensor(&format!("{name}.head"))
            && (head.ty != GgmlType::I8 || head.dims.get(1).copied().unwrap_or(1) != tensor.slices)
        {
            return fail("its head contradicts the index");
        }
    }
    Ok(())
}
