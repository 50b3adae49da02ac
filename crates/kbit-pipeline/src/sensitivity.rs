//! What quantizing one part of a model does by itself: the divergence of the unquantized model with the tensors of that part taken
//! from a quantized file.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

/// How a model is cut into parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Each tensor by itself.
    Tensors,
    /// All tensors of a block; those outside of blocks by themselves.
    Layers,
    /// The tensors of one kind in all blocks, as all `attn_q`.
    Kinds,
}

impl By {
    /// Word in configurations.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tensors => "tensors",
            Self::Layers => "layers",
            Self::Kinds => "kinds",
        }
    }

    /// Name of the part that `tensor` belongs to.
    fn part_of(self, tensor: &str) -> String {
        match (self, kbit_models::in_block(tensor)) {
            (Self::Layers, Some((block, _))) => format!("blk.{block}"),
            (Self::Kinds, Some((_, kind))) => kind.strip_suffix(".weight").unwrap_or(kind).to_owned(),
            _ => tensor.to_owned(),
        }
    }
}

/// A word that names no way to cut a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownParts;

impl FromStr for By {
    type Err = UnknownParts;

    fn from_str(word: &str) -> Result<Self, UnknownParts> {
        let all = [Self::Tensors, Self::Layers, Self::Kinds];
        all.into_iter().find(|by| by.word() == word).ok_or(UnknownParts)
    }
}

/// Some tensors of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// A tensor's name, `blk.3` or `attn_q`.
    pub name: String,
    /// Names of its tensors.
    pub tensors: HashSet<String>,
}

/// The parts that `tensors` form, in the order of their first tensors.
#[must_use]
pub fn parts<'t>(by: By, tensors: impl IntoIterator<Item = &'t str>) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    let mut places = HashMap::new();
    for tensor in tensors {
        let name = by.part_of(tensor);
        let place = *places.entry(name.clone()).or_insert_with(|| {
            parts.push(Part { name, tensors: HashSet::new() });
            parts.len() - 1
        });
        parts[place].tensors.insert(tensor.to_owned());
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::{By, parts};

    #[test]
    fn tensors_are_grouped_in_their_order() {
        let tensors = [
            "token_embd.weight",
            "blk.1.attn_q.weight",
            "blk.0.attn_q.weight",
            "blk.0.attn_k.weight",
            "output.weight",
        ];
        let of = |by| -> Vec<(String, usize)> {
            parts(by, tensors).into_iter().map(|part| (part.name, part.tensors.len())).collect()
        };
        let wanted = |all: &[(&str, usize)]| -> Vec<(String, usize)> {
            all.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
        };
        let embedding = ("token_embd.weight", 1);
        let output = ("output.weight", 1);
        assert_eq!(of(By::Layers), wanted(&[embedding, ("blk.1", 1), ("blk.0", 2), output]));
        assert_eq!(of(By::Kinds), wanted(&[embedding, ("attn_q", 2), ("attn_k", 1), output]));
        assert_eq!(of(By::Tensors).len(), tensors.len());
        for by in [By::Tensors, By::Layers, By::Kinds] {
            assert_eq!(by.word().parse(), Ok(by));
        }
    }
}
