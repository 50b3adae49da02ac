//! Comparing two checkpoints: metadata, tensors, bytes.

use crate::{Checkpoint, Element, FormatError};
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::Path;

/// How two checkpoints differ.
#[derive(Clone, Debug, Serialize)]
pub struct Diff {
    /// True where nothing differs.
    pub equal: bool,
    /// Metadata keys that differ (GGUF only).
    pub metadata: Vec<MetadataChange>,
    /// Tensors that differ.
    pub tensors: Vec<TensorChange>,
    /// True where the same tensors stand in another order.
    pub order_differs: bool,
    /// Tensors that both have.
    pub common_tensors: usize,
}

/// A metadata key that differs.
#[derive(Clone, Debug, Serialize)]
pub struct MetadataChange {
    /// Key.
    pub key: String,
    /// `only in a`, `only in b`, `type`, `value`.
    pub kind: &'static str,
    /// Value in the first file.
    pub a: Option<serde_json::Value>,
    /// Value in the second file.
    pub b: Option<serde_json::Value>,
}

/// A tensor that differs.
#[derive(Clone, Debug, Serialize)]
pub struct TensorChange {
    /// Tensor.
    pub name: String,
    /// `only in a`, `only in b`, `type`, `shape`, `bytes`.
    pub kind: &'static str,
    /// What the first has.
    pub a: Option<String>,
    /// What the second has.
    pub b: Option<String>,
    /// Offset in the tensor of the first byte that differs.
    pub first_difference: Option<u64>,
    /// Number of bytes that differ.
    pub different_bytes: Option<u64>,
}

/// Compares the checkpoints at `a` and `b`.
///
/// # Errors
/// When one cannot be read.
pub fn diff(a: &Path, b: &Path) -> Result<Diff, FormatError> {
    let (a, b) = (Checkpoint::open(a)?, Checkpoint::open(b)?);
    let metadata = compare_metadata(&a, &b);
    let mut tensors = Vec::new();
    let mut common_tensors = 0;
    for ours in a.tensors() {
        let Some(theirs) = b.tensor(&ours.name) else {
            tensors.push(change(&ours.name, "only in a", None, None));
            continue;
        };
        common_tensors += 1;
        if ours.element != theirs.element {
            let (x, y) = (element_name(ours.element), element_name(theirs.element));
            tensors.push(change(&ours.name, "type", Some(x), Some(y)));
        } else if ours.shape != theirs.shape {
            let (x, y) = (format!("{:?}", ours.shape), format!("{:?}", theirs.shape));
            tensors.push(change(&ours.name, "shape", Some(x), Some(y)));
        } else {
            tensors.extend(compare_bytes(&a, ours, &b, theirs)?);
        }
    }
    let only_b = b.tensors().iter().filter(|tensor| a.tensor(&tensor.name).is_none());
    tensors.extend(only_b.map(|tensor| change(&tensor.name, "only in b", None, None)));
    let shared = |x: &Checkpoint, y: &Checkpoint| -> Vec<String> {
        let names = x.tensors().iter().map(|tensor| &tensor.name);
        names.filter(|name| y.tensor(name).is_some()).cloned().collect()
    };
    let order_differs = shared(&a, &b) != shared(&b, &a);
    Ok(Diff {
        equal: metadata.is_empty() && tensors.is_empty() && !order_differs,
        metadata,
        tensors,
        order_differs,
        common_tensors,
    })
}

fn change(name: &str, kind: &'static str, a: Option<String>, b: Option<String>) -> TensorChange {
    TensorChange { name: name.to_owned(), kind, a, b, first_difference: None, different_bytes: None }
}

/// The name of an element type, as GGUF and safetensors print it.
#[must_use]
pub fn element_name(element: Element) -> String {
    match element {
        Element::Plain(dtype) => dtype.to_string(),
        Element::Block(ty) => ty.to_string(),
    }
}

fn compare_metadata(a: &Checkpoint, b: &Checkpoint) -> Vec<MetadataChange> {
    let (Some(a), Some(b)) = (a.gguf(), b.gguf()) else { return Vec::new() };
    let (a, b) = (a.metadata(), b.metadata());
    let keys: BTreeSet<&str> = a.iter().chain(b.iter()).map(|(key, _)| key).collect();
    let compare = |key: &str| {
        let (x, y) = (a.get(key), b.get(key));
        let kind = match (x, y) {
            (Some(_), None) => "only in a",
            (None, Some(_)) => "only in b",
            (Some(x), Some(y)) if x == y => return None,
            (Some(x), Some(y)) if x.type_id() == y.type_id() => "value",
            _ => "type",
        };
        let json = |value: Option<&crate::gguf::Value>| value.map(|value| summary(value.to_json()));
        Some(MetadataChange { key: key.to_owned(), kind, a: json(x), b: json(y) })
    };
    keys.into_iter().filter_map(compare).collect()
}

/// A long list as its length and first items.
#[must_use]
pub fn summary(value: serde_json::Value) -> serde_json::Value {
    const LONGEST: usize = 1024;
    match value {
        serde_json::Value::Array(items) if items.len() > LONGEST => {
            serde_json::json!({ "length": items.len(), "first": items[..8] })
        }
        other => other,
    }
}

fn compare_bytes(
    a: &Checkpoint,
    ours: &crate::SourceTensor,
    b: &Checkpoint,
    theirs: &crate::SourceTensor,
) -> Result<Option<TensorChange>, FormatError> {
    let mut x = vec![0; 1 << 20];
    let mut y = vec![0; 1 << 20];
    let (mut first, mut count, mut done) = (None, 0, 0);
    while done < ours.bytes {
        let piece = usize::try_from(ours.bytes - done).unwrap_or(usize::MAX).min(x.len());
        a.read_at(ours, done, &mut x[..piece])?;
        b.read_at(theirs, done, &mut y[..piece])?;
        if x[..piece] != y[..piece] {
            for index in (0..piece).filter(|index| x[*index] != y[*index]) {
                first.get_or_insert(done + index as u64);
                count += 1;
            }
        }
        done += piece as u64;
    }
    Ok(first.map(|first| TensorChange {
        first_difference: Some(first),
        different_bytes: Some(count),
        ..change(&ours.name, "bytes", None, None)
    }))
}
