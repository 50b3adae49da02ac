//! A model: its description, and its tensors, checked against it.

use crate::error::Shape;
use crate::rope::Rotation;
use crate::weight::Weight;
use crate::{EngineError, Kernels, Mode, Session};
use kbit_models::Role;
use kbit_models::description::{Description, NormKind, Position};
use kbit_types::{Codec, CodecError};
use std::collections::HashMap;
use std::sync::Arc;

/// A model that can be run. Sharing it among threads costs nothing; each conversation is a [`Session`].
#[derive(Debug)]
pub struct Model {
    description: Description,
    kernels: Kernels,
    mode: Mode,
    pub(crate) embedding: Weight,
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Norm,
    pub(crate) output: Weight,
    pub(crate) rotation: Rotation,
    weights: u64,
}

/// Gives the tensor of a GGUF name, or `None` where there is none of that name.
pub type Tensors<'a> = dyn FnMut(&str) -> Result<Option<Arc<dyn Codec>>, CodecError> + 'a;

/// One transformer block.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attention_norm: Norm,
    pub(crate) query: Linear,
    pub(crate) key: Linear,
    pub(crate) value: Linear,
    pub(crate) attention_output: Linear,
    pub(crate) feed_forward_norm: Norm,
    /// Only in gated feed-forward networks.
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// A matrix and what is added to its product.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    pub(crate) bias: Option<Vec<f32>>,
}

/// A normalisation.
#[derive(Debug)]
pub(crate) struct Norm {
    kind: NormKind,
    epsilon: f32,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Norm {
    /// `out = norm(x)`, all of one length.
    pub(crate) fn apply(&self, kernels: Kernels, x: &[f32], out: &mut [f32]) {
        match self.kind {
            NormKind::Rms => kernels.rms_norm(x, &self.weight, self.epsilon, out),
            NormKind::Layer => kernels.layer_norm(x, &self.weight, self.epsilon, out),
        }
        if let Some(bias) = &self.bias {
            add(bias, out);
        }
    }
}

/// `out[i] += x[i]`.
pub(crate) fn add(x: &[f32], out: &mut [f32]) {
    for (out, x) in out.iter_mut().zip(x) {
        *out += x;
    }
}

impl Model {
    /// Loads a model: asks `tensors` for each tensor of the architecture by its GGUF name and checks its shape.
    ///
    /// Matrices stay behind their codecs and are decoded when they are used. Vectors (norms, biases, frequency
    /// factors) are codecs of one row and are decoded now. `tensors` answers `None` for a tensor that is not there.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape than the description says or cannot be decoded, or when a vector
    /// has elements that are not finite.
    pub fn new(description: Description, tensors: &mut Tensors<'_>) -> Result<Self, EngineError> {
        let mut loader = Loader { description: &description, found: HashMap::new(), weights: 0 };
        for expected in description.tensors()? {
            match tensors(&expected.name)? {
                Some(codec) => loader.accept(&expected.name, &expected.shape, expected.role, codec)?,
                None if expected.required => return Err(loader.missing(&expected.name, expected.shape)),
                None => {}
            }
        }
        let d = &description;
        let embedding = loader.weight("token_embd.weight", d.vocab, d.hidden)?;
        let output = if d.tied_output {
            embedding.clone()
        } else {
            loader.weight("output.weight", d.vocab, d.hidden)?
        };
        let output_norm = loader.norm("output_norm")?;
        let Position::Rope(rope) = &d.position;
        let factors = match &rope.factors {
            Some(name) => Some(loader.vector(name, rope.dims / 2)?),
            None => None,
        };
        let rotation = Rotation::new(rope, factors.as_deref());
        let layers = (0..d.layers)
            .map(|layer| {
                let linear =
                    |name: &str, rows, cols| loader.linear(&format!("blk.{layer}.{name}"), rows, cols);
                Ok(Layer {
                    attention_norm: loader.norm(&format!("blk.{layer}.attn_norm"))?,
                    query: linear("attn_q", d.query_width(), d.hidden)?,
                    key: linear("attn_k", d.key_width(), d.hidden)?,
                    value: linear("attn_v", d.value_width(), d.hidden)?,
                    attention_output: linear("attn_output", d.hidden, d.attention_width())?,
                    feed_forward_norm: loader.norm(&format!("blk.{layer}.ffn_norm"))?,
                    gate: if d.gated { Some(linear("ffn_gate", d.feed_forward, d.hidden)?) } else { None },
                    up: linear("ffn_up", d.feed_forward, d.hidden)?,
                    down: linear("ffn_down", d.hidden, d.feed_forward)?,
                })
            })
            .collect::<Result<Vec<_>, EngineError>>()?;
        let weights = loader.weights;
        Ok(Self {
            kernels: Kernels::best(),
            mode: Mode::F32,
            embedding,
            layers,
            output_norm,
            output,
            rotation,
            weights,
            description,
        })
    }

    /// The same model with other kernels than the fastest.
    #[must_use]
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// The kernels that it computes with.
    #[must_use]
    pub fn kernels(&self) -> Kernels {
        self.kernels
    }

    /// The same model with another arithmetic than [`Mode::F32`].
    #[must_use]
    pub fn with_mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// The arithmetic of its forward pass.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// What kind of model it is.
    #[must_use]
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Number of weights in all tensors.
    #[must_use]
    pub fn weights(&self) -> u64 {
        self.weights
    }

    /// A new, empty session for up to `capacity` tokens. Memory is taken as it fills.
    #[must_use]
    pub fn session(&self, capacity: usize) -> Session<'_> {
        Session::new(self, capacity)
    }
}

/// Tensors on their way into a model.
struct Loader<'d> {
    description: &'d Description,
    found: HashMap<String, Arc<dyn Codec>>,
    weights: u64,
}

impl Loader<'_> {
    fn missing(&self, tensor: &str, wanted: Vec<u64>) -> EngineError {
        EngineError::MissingTensor {
            tensor: tensor.to_owned(),
            wanted: Shape(wanted),
            architecture: self.description.architecture.clone(),
        }
    }

    /// Checks the shape of a tensor and keeps it.
    fn accept(
        &mut self,
        tensor: &str,
        wanted: &[u64],
        role: Role,
        codec: Arc<dyn Codec>,
    ) -> Result<(), EngineError> {
        let shape = codec.shape();
        let found = match (role, shape.slices, shape.rows) {
            (Role::Vector, 1, 1) => vec![shape.cols],
            (_, 1, _) => vec![shape.rows, shape.cols],
            _ => vec![shape.slices, shape.rows, shape.cols],
        };
        if found != wanted {
            return Err(EngineError::TensorShape {
                tensor: tensor.to_owned(),
                found: Shape(found),
                wanted: Shape(wanted.to_vec()),
            });
        }
        self.weights = self.weights.saturating_add(shape.elements().unwrap_or(u64::MAX));
        self.found.insert(tensor.to_owned(), codec);
        Ok(())
    }

    fn weight(&self, tensor: &str, rows: usize, cols: usize) -> Result<Weight, EngineError> {
        match self.found.get(tensor) {
            Some(codec) => Weight::new(tensor, Arc::clone(codec), rows, cols),
            None => Err(self.missing(tensor, vec![rows as u64, cols as u64])),
        }
    }

    fn vector(&self, tensor: &str, len: usize) -> Result<Vec<f32>, EngineError> {
        match self.opt_vector(tensor, len)? {
            Some(vector) => Ok(vector),
            None => Err(self.missing(tensor, vec![len as u64])),
        }
    }

    fn opt_vector(&self, tensor: &str, len: usize) -> Result<Option<Vec<f32>>, EngineError> {
        let Some(codec) = self.found.get(tensor) else { return Ok(None) };
        let found = codec.shape();
        if (found.rows, found.cols, found.slices) != (1, len as u64, 1) {
            return Err(EngineError::TensorShape {
                tensor: tensor.to_owned(),
                found: Shape(vec![found.rows, found.cols]),
                wanted: Shape(vec![len as u64]),
            });
        }
        let mut vector = vec![0.0; len];
        codec.decode(0..1, &mut vector, len)?;
        match vector.iter().position(|value| !value.is_finite()) {
            Some(index) => {
                Err(EngineError::NotFinite { tensor: tensor.to_owned(), index, value: vector[index] })
            }
            None => Ok(Some(vector)),
        }
    }

    fn norm(&self, name: &str) -> Result<Norm, EngineError> {
        let d = self.description;
        Ok(Norm {
            kind: d.norm.kind,
            epsilon: d.norm.epsilon,
            weight: self.vector(&format!("{name}.weight"), d.hidden)?,
            bias: self.opt_vector(&format!("{name}.bias"), d.hidden)?,
        })
    }

    fn linear(&self, name: &str, rows: usize, cols: usize) -> Result<Linear, EngineError> {
        Ok(Linear {
            weight: self.weight(&format!("{name}.weight"), rows, cols)?,
            bias: self.opt_vector(&format!("{name}.bias"), rows)?,
        })
    }
}
