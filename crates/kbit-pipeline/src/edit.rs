//! Changes to a model on the way: metadata set by hand, layers left out.

use crate::error::PipelineError;
use kbit_formats::gguf::{Array, Metadata, Value};
use kbit_models::{Conversion, in_block};
use std::str::FromStr;

/// Changes to a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    /// Metadata to set, in this order. What follows from the metadata (the choices of a mix) follows from these.
    pub metadata: Vec<SetMetadata>,
    /// Numbers of layers to leave out; those behind move up.
    pub prune_layers: Vec<u64>,
}

/// One metadata entry to set, written `key=type:value`.
#[derive(Clone, Debug, PartialEq)]
pub struct SetMetadata {
    /// Key.
    pub key: String,
    /// Value.
    pub value: Value,
}

/// Type words of [`SetMetadata`], and how their values are read. `int` and `float` are llama-quantize's words.
type Reading = fn(&str) -> Option<Value>;
const TYPES: &[(&str, Reading)] = &[
    ("int", |text| text.parse().ok().map(Value::U32)),
    ("float", |text| text.parse().ok().map(Value::F32)),
    ("bool", |text| text.parse().ok().map(Value::Bool)),
    ("str", |text| Some(Value::String(text.to_owned()))),
    ("u8", |text| text.parse().ok().map(Value::U8)),
    ("i8", |text| text.parse().ok().map(Value::I8)),
    ("u16", |text| text.parse().ok().map(Value::U16)),
    ("i16", |text| text.parse().ok().map(Value::I16)),
    ("u32", |text| text.parse().ok().map(Value::U32)),
    ("i32", |text| text.parse().ok().map(Value::I32)),
    ("u64", |text| text.parse().ok().map(Value::U64)),
    ("i64", |text| text.parse().ok().map(Value::I64)),
    ("f32", |text| text.parse().ok().map(Value::F32)),
    ("f64", |text| text.parse().ok().map(Value::F64)),
];

impl FromStr for SetMetadata {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "write key=type:value, as general.name=str:My model or llama.context_length=int:4096";
        let (key, typed) = text.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or(form)?;
        let (word, value) = typed.split_once(':').ok_or(form)?;
        let Some((_, read)) = TYPES.iter().find(|(known, _)| *known == word) else {
            let known: Vec<_> = TYPES.iter().map(|(known, _)| *known).collect();
            return Err(format!("there is no type `{word}`; {}", kbit_yaml::suggestion(word, &known)));
        };
        let value = read(value).ok_or_else(|| format!("`{value}` is not a value of type {word}"))?;
        Ok(Self { key: key.to_owned(), value })
    }
}

impl Edits {
    /// The metadata that choices follow from: that of the whole model, with what is set by hand.
    pub(crate) fn facts(&self, metadata: &Metadata) -> Metadata {
        let mut facts = metadata.clone();
        for set in &self.metadata {
            facts.insert(set.key.clone(), set.value.clone());
        }
        facts
    }

    /// Sets in `metadata` what is set by hand; at the end, as llama-quantize does.
    pub(crate) fn set(&self, metadata: &mut Metadata) {
        for entry in &self.metadata {
            set_last(metadata, &entry.key, entry.value.clone());
        }
    }

    /// Sets in `metadata` what pruning changes; at the end, as llama-quantize does. `facts` is that of the whole model.
    pub(crate) fn prune_metadata(&self, facts: &Metadata, metadata: &mut Metadata) {
        if self.prune_layers.is_empty() {
            return;
        }
        let (prefix, layers) = layers_of(facts);
        for (key, value) in facts.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            if let Value::Array(array) = value
                && array.len() as u64 == layers
            {
                metadata.insert(key, Value::Array(self.pruned_array(array)));
            }
        }
        let left = (0..layers).filter(|layer| !self.prune_layers.contains(layer)).count();
        let left = Value::U32(u32::try_from(left).unwrap_or(u32::MAX));
        set_last(metadata, &format!("{prefix}block_count"), left);
    }

    /// A list with an element a layer, without those of the layers that are left out.
    fn pruned_array(&self, array: &Array) -> Array {
        macro_rules! kept {
            ($($variant:ident),*) => {
                match array {
                    $(Array::$variant(items) => Array::$variant(
                        items.iter().enumerate()
                            .filter(|(layer, _)| !self.prune_layers.contains(&(*layer as u64)))
                            .map(|(_, item)| item.clone()).collect(),
                    ),)*
                }
            };
        }
        kept!(U8, I8, U16, I16, U32, I32, F32, Bool, String, U64, I64, F64, Nested)
    }

    /// Leaves out the layers' tensors, and renames those of the layers behind.
    ///
    /// # Errors
    /// A layer that the model does not have, or none left.
    pub fn prune(&self, conversion: &mut Conversion) -> Result<(), PipelineError> {
        if self.prune_layers.is_empty() {
            return Ok(());
        }
        let (_, layers) = layers_of(&self.facts(&conversion.metadata));
        if let Some(layer) = self.prune_layers.iter().find(|layer| **layer >= layers) {
            return Err(PipelineError::PruneLayer { layer: *layer, layers });
        }
        if (0..layers).all(|layer| self.prune_layers.contains(&layer)) {
            return Err(PipelineError::PruneAll { layers });
        }
        conversion.tensors.retain_mut(|tensor| {
            let Some((layer, rest)) = in_block(&tensor.name) else { return true };
            if self.prune_layers.contains(&layer) {
                return false;
            }
            let before = (0..layer).filter(|earlier| self.prune_layers.contains(earlier)).count() as u64;
            tensor.name = format!("blk.{}.{rest}", layer - before);
            true
        });
        Ok(())
    }

    /// The name that the tensor `name` of the output has in the whole model.
    #[must_use]
    pub fn original_name(&self, name: &str) -> String {
        match in_block(name) {
            Some((layer, rest)) if !self.prune_layers.is_empty() => {
                let kept = (0..).filter(|layer| !self.prune_layers.contains(layer));
                let original =
                    kept.zip(0..).find(|(_, number)| *number == layer).map_or(layer, |(layer, _)| layer);
                format!("blk.{original}.{rest}")
            }
            _ => name.to_owned(),
        }
    }
}

fn set_last(metadata: &mut Metadata, key: &str, value: Value) {
    metadata.remove(key);
    metadata.insert(key, value);
}

/// The prefix of the architecture's keys, and the number of layers that they state.
fn layers_of(metadata: &Metadata) -> (String, u64) {
    let architecture = metadata.opt_str("general.architecture").ok().flatten().unwrap_or_default();
    let layers = metadata.opt_u32(&format!("{architecture}.block_count")).ok().flatten().unwrap_or(0);
    (format!("{architecture}."), layers.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_written_with_its_type() {
        for (text, value) in [
            ("a=int:3", Value::U32(3)),
            ("a=float:1.5", Value::F32(1.5)),
            ("a=bool:true", Value::Bool(true)),
            ("a=str:x=y:z", Value::String("x=y:z".into())),
            ("a=i64:-3", Value::I64(-3)),
        ] {
            assert_eq!(text.parse(), Ok(SetMetadata { key: "a".into(), value }));
        }
    }

    #[test]
    fn refuses_metadata_without_type_or_of_another() {
        for (text, part) in [
            ("a", "key=type:value"),
            ("a=3", "key=type:value"),
            ("a=itn:3", "`int`"),
            ("a=int:-3", "-3"),
            ("=int:3", "key"),
        ] {
            let error = text.parse::<SetMetadata>().unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn layers_behind_a_pruned_one_move_up() {
        let edits = Edits { prune_layers: vec![1, 3], ..Edits::default() };
        assert_eq!(edits.original_name("blk.0.attn_q.weight"), "blk.0.attn_q.weight");
        assert_eq!(edits.original_name("blk.1.attn_q.weight"), "blk.2.attn_q.weight");
        assert_eq!(edits.original_name("blk.2.attn_q.weight"), "blk.4.attn_q.weight");
        assert_eq!(edits.original_name("output.weight"), "output.weight");
    }

    #[test]
    fn lists_of_layers_lose_the_pruned_ones() {
        let edits = Edits { prune_layers: vec![1], ..Edits::default() };
        let mut metadata = Metadata::new();
        metadata.insert("general.architecture", Value::String("deci".into()));
        metadata.insert("deci.block_count", Value::U32(3));
        metadata.insert("deci.attention.head_count", Value::Array(Array::U32(vec![0, 4, 8])));
        let facts = metadata.clone();
        edits.prune_metadata(&facts, &mut metadata);
        assert_eq!(metadata.u32("deci.block_count").ok(), Some(2));
        assert_eq!(metadata.get("deci.attention.head_count"), Some(&Value::Array(Array::U32(vec![0, 8]))));
    }
}
