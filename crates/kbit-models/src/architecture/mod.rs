//! Architectures as data: one table each.
//!
//! An [`Architecture`] says which Hugging Face classes it covers, what its blocks are made of, which GGUF metadata
//! its configuration becomes, and which tensors it has: Hugging Face name, GGUF name, shape, role and what has to be
//! done to the rows. Conversion, description and checks all read these tables; none of them names an architecture.
//!
//! To add one, write a table in a file beside `llama.rs` and put it into [`ARCHITECTURES`]. What no table can say
//! yet (another norm, another position scheme) is another variant of the enums, which the engine then must serve.

mod llama;

use crate::description::{Activation, Description, NormKind, Position, Residual, RopeStyle};
use crate::{ModelError, Role};

/// All architectures that kbit knows.
pub const ARCHITECTURES: &[&Architecture] = &[&llama::LLAMA];

/// One architecture.
#[derive(Debug)]
pub struct Architecture {
    /// GGUF's name of it (`general.architecture`).
    pub name: &'static str,
    /// `architectures` in config.json that are this one.
    pub classes: &'static [&'static str],
    /// Normalisation.
    pub norm: NormKind,
    /// Which dimensions of a head turn together.
    pub rope: RopeStyle,
    /// Non-linearity, and the names of it that config.json may use in `hidden_act`.
    pub activation: (Activation, &'static [&'static str]),
    /// True for a gated feed-forward network.
    pub gated: bool,
    /// How sub-layers are joined.
    pub residual: Residual,
    /// Metadata in the order in which llama.cpp's converter writes it.
    pub parameters: &'static [Parameter],
    /// Tensors.
    pub tensors: &'static [TensorRule],
    /// Endings of Hugging Face tensors that hold nothing of the model (buffers that are computed anew).
    pub buffers: &'static [&'static str],
    /// Keys of config.json whose presence (non-null, non-zero) means a model that this table does not cover.
    pub refused: &'static [(&'static str, &'static str)],
}

/// One metadata entry, `<architecture>.<key>` unless the key has its own prefix.
#[derive(Debug)]
pub struct Parameter {
    /// Key after the architecture's name and a dot.
    pub key: &'static str,
    /// Where its value comes from.
    pub from: From,
}

/// Where a metadata value comes from.
#[derive(Debug)]
pub enum From {
    /// U32: the first of these keys of config.json that is there; an error if none.
    Count(&'static [&'static str]),
    /// U32: as [`From::Count`], or this value.
    CountOr(&'static [&'static str], u32),
    /// U32: as [`From::Count`], or the number of query heads.
    CountOrHeads(&'static [&'static str]),
    /// F32: the first of these keys that is there, or this value.
    FloatOr(&'static [&'static str], f64),
    /// U32: `head_dim`, or hidden width divided by query heads.
    HeadDim,
    /// F32: the base of the rotary frequencies, wherever config.json has it, or this value.
    RopeBase(f64),
    /// Several entries `rope.scaling.*`, if config.json asks for scaling.
    RopeScaling,
    /// Not an entry of the architecture: `general.file_type` stands here, which depends on the output.
    FileType,
}

/// One tensor of the model, or one a block where the names say `{layer}`.
#[derive(Debug)]
pub struct TensorRule {
    /// Hugging Face name.
    pub source: &'static str,
    /// GGUF name.
    pub name: &'static str,
    /// What it is.
    pub role: Role,
    /// Shape, row-major: `[rows, cols]` or `[length]`.
    pub shape: &'static [Dim],
    /// What to do to it on the way.
    pub transform: Transform,
    /// Whether the model can be without it.
    pub presence: Presence,
}

/// A length in a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dim {
    /// Tokens.
    Vocab,
    /// Residual stream.
    Hidden,
    /// Inner width of the feed-forward network.
    FeedForward,
    /// All queries.
    Queries,
    /// All keys.
    Keys,
    /// All values.
    Values,
    /// What attention hands on.
    Attention,
    /// Pairs of rotary dimensions.
    RopePairs,
}

/// What is done to a tensor on the way from Hugging Face to GGUF.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Transform {
    /// Nothing.
    Keep,
    /// Rows of each query head go from halves (`i`, `i + d/2`) to adjacent pairs.
    PairQueryRows,
    /// Rows of each key head go from halves to adjacent pairs.
    PairKeyRows,
    /// Rows and columns change places (GPT-2's Conv1D).
    Transpose,
    /// A constant is added (Gemma's `1 + weight`).
    Add(f32),
    /// Not in the checkpoint: rotary frequency factors of Llama 3, if config.json asks for them.
    Llama3RopeFactors,
}

/// Whether a model can be without a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It cannot.
    Required,
    /// It can.
    Optional,
    /// It can where the output matrix is tied to the token embedding.
    UnlessTied,
}

impl Architecture {
    /// The table with that GGUF name.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`], which lists the known ones.
    pub fn by_name(name: &str) -> Result<&'static Self, ModelError> {
        ARCHITECTURES.iter().copied().find(|a| a.name == name).ok_or_else(|| {
            ModelError::UnknownArchitecture {
                found: name.to_owned(),
                known: ARCHITECTURES.iter().map(|a| a.name.to_owned()).collect(),
            }
        })
    }

    /// The table that covers a class of Hugging Face transformers.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`], which lists the known classes.
    pub fn by_class(class: &str) -> Result<&'static Self, ModelError> {
        ARCHITECTURES.iter().copied().find(|a| a.classes.contains(&class)).ok_or_else(|| {
            ModelError::UnknownArchitecture {
                found: class.to_owned(),
                known: ARCHITECTURES.iter().flat_map(|a| a.classes).map(|&c| c.to_owned()).collect(),
            }
        })
    }
}

impl Dim {
    /// Its length in a model.
    #[must_use]
    pub fn of(self, model: &Description) -> usize {
        match self {
            Self::Vocab => model.vocab,
            Self::Hidden => model.hidden,
            Self::FeedForward => model.feed_forward,
            Self::Queries => model.query_width(),
            Self::Keys => model.key_width(),
            Self::Values => model.value_width(),
            Self::Attention => model.attention_width(),
            Self::RopePairs => match &model.position {
                Position::Rope(rope) => rope.dims / 2,
            },
        }
    }
}

impl TensorRule {
    /// Shape in a model, row-major.
    #[must_use]
    pub fn shape_in(&self, model: &Description) -> Vec<u64> {
        self.shape.iter().map(|dim| dim.of(model) as u64).collect()
    }

    /// True for a tensor that every block has.
    #[must_use]
    pub fn is_per_layer(&self) -> bool {
        self.name.contains("{layer}")
    }
}

/// A tensor that a model has or may have, by GGUF name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedTensor {
    /// GGUF name.
    pub name: String,
    /// Shape, row-major: `[rows, cols]` or `[length]`.
    pub shape: Vec<u64>,
    /// What it is.
    pub role: Role,
    /// False where the model may be without it.
    pub required: bool,
}

impl Description {
    /// Every tensor that a GGUF of this model has or may have.
    ///
    /// # Errors
    /// [`ModelError::UnknownArchitecture`] where the description was not made by [`describe`](crate::describe).
    pub fn tensors(&self) -> Result<Vec<ExpectedTensor>, ModelError> {
        let mut expected = Vec::new();
        for rule in Architecture::by_name(&self.architecture)?.tensors {
            let required = match rule.presence {
                Presence::Required => true,
                Presence::Optional => false,
                Presence::UnlessTied => !self.tied_output,
            };
            let shape = rule.shape_in(self);
            let layers = if rule.is_per_layer() { 0..self.layers } else { 0..1 };
            expected.extend(layers.map(|layer| ExpectedTensor {
                name: in_layer(rule.name, layer),
                shape: shape.clone(),
                role: rule.role,
                required,
            }));
        }
        Ok(expected)
    }
}

/// The name of a pattern in one layer.
pub(crate) fn in_layer(pattern: &str, layer: usize) -> String {
    pattern.replace("{layer}", &layer.to_string())
}
