//! A model: its description, and its tensors, checked against it.

use crate::cache::{Heads, slopes};
use crate::error::Shape;
use crate::observe::MatrixName;
use crate::rope::RopeTensors;
use crate::weight::Weight;
use crate::{CacheTypes, EngineError, Kernels, Mode, Session};
use kbit_models::ExpectedTensor;
use kbit_models::Role;
use kbit_models::description::{
    Block, Description, Gate, HeadNorm, Latent, NormKind, NormOver, Position, Residual, Rope, RopeScaling,
};
use kbit_types::{Codec, CodecError};
use std::collections::HashMap;
use std::sync::Arc;

/// A model that can be run. Sharing it among threads costs nothing; each conversation is a [`Session`].
#[derive(Debug)]
pub struct Model {
    description: Description,
    kernels: Kernels,
    mode: Mode,
    cache: CacheTypes,
    pub(crate) embedding: Weight,
    /// From the width of the embedding to that of the stream, where they differ.
    pub(crate) embedding_projection: Option<Linear>,
    pub(crate) embedding_norm: Option<Norm>,
    /// A learned vector for each position.
    pub(crate) positions: Option<Weight>,
    layers: Layers,
    pub(crate) output_norm: Option<Norm>,
    /// From the width of the stream to that of the embedding, where they differ.
    pub(crate) output_projection: Option<Linear>,
    pub(crate) output: Linear,
    /// The kinds of rotary positions; a layer names one of them.
    pub(crate) ropes: Vec<RopeTensors>,
    slopes: Option<Vec<f32>>,
    weights: u64,
}

/// Gives the tensor of a GGUF name, or `None` where there is none of that name. A tensor is one codec a slice: one for a
/// matrix or vector, as many as the first axis is long for a stack of matrices.
pub type Tensors<'a> = dyn FnMut(&str) -> Result<Option<Vec<Arc<dyn Codec>>>, CodecError> + 'a;

/// As [`Tensors`], for tensors that are asked for again and again, from any thread.
pub type TensorSource = dyn Fn(&str) -> Result<Option<Vec<Arc<dyn Codec>>>, CodecError> + Send + Sync;

/// The blocks of a model.
enum Layers {
    /// All of them, as long as the model lives.
    Held(Vec<Layer>),
    /// One at a time, while it is used.
    Streamed {
        source: Arc<TensorSource>,
        /// Of each block: index into [`Model::ropes`].
        ropes: Vec<Option<usize>>,
    },
}

impl std::fmt::Debug for Layers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Held(layers) => f.debug_list().entries(layers).finish(),
            Self::Streamed { ropes, .. } => write!(f, "{} streamed blocks", ropes.len()),
        }
    }
}

/// A block of a model, held by it or loaded for this use.
pub(crate) enum LayerRef<'m> {
    Held(&'m Layer),
    Loaded(Box<Layer>),
}

impl std::ops::Deref for LayerRef<'_> {
    type Target = Layer;

    fn deref(&self) -> &Layer {
        match self {
            Self::Held(layer) => layer,
            Self::Loaded(layer) => layer,
        }
    }
}

/// One transformer block.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) before_attention: Option<Norm>,
    pub(crate) after_attention: Option<Norm>,
    /// `None` also where the sub-layer reads what attention reads.
    pub(crate) before_feed_forward: Option<Norm>,
    pub(crate) after_feed_forward: Option<Norm>,
    pub(crate) projection: Projection,
    pub(crate) query_norm: Option<HeadsNorm>,
    pub(crate) key_norm: Option<HeadsNorm>,
    /// Index into [`Model::ropes`].
    pub(crate) rope: Option<usize>,
    pub(crate) sinks: Option<Vec<f32>>,
    pub(crate) attention_output: Linear,
    pub(crate) feed_forward: FeedForward,
}

/// Where queries, keys and values come from.
#[derive(Debug)]
pub(crate) enum Projection {
    /// A matrix each.
    Separate { query: Linear, key: Linear, value: Linear },
    /// One matrix: all queries, all keys, all values.
    Fused(Linear),
    /// A latent vector.
    Latent(Box<LatentProjection>),
}

/// See [`Latent`].
#[derive(Debug)]
pub(crate) struct LatentProjection {
    pub(crate) shape: Latent,
    /// Queries, from the stream or from the narrower vector.
    pub(crate) query: Linear,
    /// The way to that vector.
    pub(crate) query_rank: Option<(Linear, Norm)>,
    /// The latent vector, and the part of the key that turns.
    pub(crate) key_value: Linear,
    pub(crate) key_value_norm: Norm,
    pub(crate) heads: LatentHeads,
}

/// How heads use the latent vector.
#[derive(Debug)]
pub(crate) enum LatentHeads {
    /// Queries go into its space, and what attention gives leads out of it: a matrix each for each head.
    Absorbed { into: Vec<Weight>, out_of: Vec<Weight> },
    /// Keys and values are made of it.
    Plain(Linear),
}

/// A feed-forward network.
#[derive(Debug)]
pub(crate) enum FeedForward {
    Dense(Box<Mlp>),
    Experts(Box<ExpertLayer>),
}

/// `down(act(gate(x)) * up(x))`, or `down(act(up(x)))`.
#[derive(Debug)]
pub(crate) struct Mlp {
    /// Only in gated networks, and not where `up` holds both.
    pub(crate) gate: Option<Linear>,
    pub(crate) up: Linear,
    pub(crate) down: Linear,
}

/// Experts of one block.
#[derive(Debug)]
pub(crate) struct ExpertLayer {
    pub(crate) router: Linear,
    /// Added to the scores for the choice alone.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) experts: Vec<Mlp>,
    pub(crate) shared: Option<Mlp>,
    /// Of the shared expert.
    pub(crate) shared_gate: Option<Linear>,
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
        normalise(kernels, self.kind, self.epsilon, x, &self.weight, out);
        if let Some(bias) = &self.bias {
            add(bias, out);
        }
    }
}

/// A normalisation of queries or keys.
#[derive(Debug)]
pub(crate) struct HeadsNorm {
    kind: NormKind,
    epsilon: f32,
    /// What is normalised at a time.
    width: usize,
    /// `[width]` for all, or for each.
    weights: Vec<f32>,
}

impl HeadsNorm {
    /// `out = norm(x)`, both `[heads * head_dim]`.
    pub(crate) fn apply(&self, kernels: Kernels, x: &[f32], out: &mut [f32]) {
        let weights = self.weights.chunks_exact(self.width).cycle();
        let heads = x.chunks_exact(self.width).zip(out.chunks_exact_mut(self.width));
        for ((x, out), weights) in heads.zip(weights) {
            normalise(kernels, self.kind, self.epsilon, x, weights, out);
        }
    }
}

fn normalise(kernels: Kernels, kind: NormKind, epsilon: f32, x: &[f32], weight: &[f32], out: &mut [f32]) {
    match kind {
        NormKind::Rms => kernels.rms_norm(x, weight, epsilon, out),
        NormKind::Layer => kernels.layer_norm(x, weight, epsilon, out),
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
    /// factors) are decoded now. `tensors` answers `None` for a tensor that is not there.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape than the description says or cannot be decoded, or when a vector
    /// has elements that are not finite.
    pub fn new(description: Description, tensors: &mut Tensors<'_>) -> Result<Self, EngineError> {
        Self::load(description, tensors, None)
    }

    /// As [`Model::new`], but the tensors of a block are asked for whenever the block is used, and let go after that: a model larger than
    /// memory runs, at the speed of its source. [`Session::hidden_states`] then takes all of its texts through a block before it goes on to
    /// the next one. A tensor that is missing or wrong is found when its block is used.
    ///
    /// # Errors
    /// As [`Model::new`], of the tensors outside of blocks.
    pub fn streamed(description: Description, source: Arc<TensorSource>) -> Result<Self, EngineError> {
        Self::load(description, &mut |name| source(name), Some(&source))
    }

    /// With `streamed`, tensors of blocks are left for later.
    fn load(
        description: Description,
        tensors: &mut Tensors<'_>,
        streamed: Option<&Arc<TensorSource>>,
    ) -> Result<Self, EngineError> {
        let mut loader = Loader { description: &description, found: HashMap::new(), weights: 0 };
        for expected in description.tensors()? {
            if streamed.is_some() && expected.name.starts_with("blk.") {
                loader.weights = loader.weights.saturating_add(expected.shape.iter().product());
            } else {
                loader.ask(&expected, tensors)?;
            }
        }
        let d = &description;
        let width = d.embedding.width;
        let embedding = loader.weight("token_embd.weight", d.vocab, width)?;
        let output = Linear {
            weight: if d.tied_output {
                embedding.clone()
            } else {
                loader.weight("output.weight", d.vocab, width)?
            },
            bias: loader.opt_vector("output.bias", d.vocab)?,
        };
        let (embedding_projection, output_projection) = if width == d.hidden {
            (None, None)
        } else {
            (
                Some(loader.linear("token_embd_proj", d.hidden, width)?),
                Some(loader.linear("output_proj", width, d.hidden)?),
            )
        };
        let mut kinds: Vec<&Rope> = Vec::new();
        let mut rope_of = Vec::with_capacity(d.layers);
        for block in &d.blocks {
            rope_of.push(match &block.position {
                Position::Rope(rope) => {
                    let known = kinds.iter().position(|kind| *kind == rope);
                    Some(known.unwrap_or_else(|| {
                        kinds.push(rope);
                        kinds.len() - 1
                    }))
                }
                Position::None | Position::Alibi { .. } => None,
            });
        }
        let layers = match streamed {
            Some(source) => Layers::Streamed { source: Arc::clone(source), ropes: rope_of },
            None => {
                let blocks = d.blocks.iter().zip(rope_of).enumerate();
                let layers = blocks.map(|(layer, (block, rope))| loader.layer(layer, block, rope));
                Layers::Held(layers.collect::<Result<_, _>>()?)
            }
        };
        let ropes = kinds.into_iter().map(|rope| loader.rope(rope)).collect::<Result<Vec<_>, _>>()?;
        let max_bias = d.blocks.iter().find_map(|block| match block.position {
            Position::Alibi { max_bias } => Some(max_bias),
            _ => None,
        });
        Ok(Self {
            kernels: Kernels::best(),
            mode: Mode::F32,
            cache: CacheTypes::default(),
            embedding,
            embedding_projection,
            embedding_norm: d.embedding.norm.then(|| loader.norm("token_embd_norm", d.hidden)).transpose()?,
            positions: if d.embedding.learned_positions {
                Some(loader.weight("position_embd.weight", d.context_length, d.hidden)?)
            } else {
                None
            },
            layers,
            output_norm: d.output_norm.then(|| loader.norm("output_norm", d.hidden)).transpose()?,
            output_projection,
            output,
            ropes,
            slopes: max_bias.map(|max_bias| slopes(d.heads, max_bias)),
            weights: loader.weights,
            description,
        })
    }

    /// True where blocks are loaded whenever they are used.
    #[must_use]
    pub fn is_streamed(&self) -> bool {
        matches!(self.layers, Layers::Streamed { .. })
    }

    /// One block.
    pub(crate) fn layer(&self, index: usize) -> Result<LayerRef<'_>, EngineError> {
        let (source, ropes) = match &self.layers {
            Layers::Held(layers) => return Ok(LayerRef::Held(&layers[index])),
            Layers::Streamed { source, ropes } => (source, ropes),
        };
        let description = &self.description;
        let mut loader = Loader { description, found: HashMap::new(), weights: 0 };
        let own = format!("blk.{index}.");
        for expected in description.tensors()?.iter().filter(|expected| expected.name.starts_with(&own)) {
            loader.ask(expected, &mut |name| source(name))?;
        }
        Ok(LayerRef::Loaded(Box::new(loader.layer(index, &description.blocks[index], ropes[index])?)))
    }

    /// Attention of one block.
    pub(crate) fn heads<'l>(&'l self, index: usize, layer: &'l Layer) -> Heads<'l> {
        let d = &self.description;
        let block = &d.blocks[index];
        Heads {
            heads: d.heads,
            kv_heads: d.kv_heads,
            head_dim: d.head_dim,
            value_dim: d.value_dim,
            scale: d.attention.scale,
            cap: d.attention.cap,
            window: block.window,
            slopes: self.slopes.as_deref().filter(|_| matches!(block.position, Position::Alibi { .. })),
            sinks: layer.sinks.as_deref(),
            cache: self.cache,
            weights_of: None,
        }
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

    /// The same model, whose sessions keep keys and values in other types than [`CacheType::F32`](crate::CacheType::F32).
    #[must_use]
    pub fn with_cache(self, cache: CacheTypes) -> Self {
        Self { cache, ..self }
    }

    /// How its sessions keep keys and values.
    #[must_use]
    pub fn cache(&self) -> CacheTypes {
        self.cache
    }

    /// Bytes that the keys and values of one token take in a session, in all blocks.
    #[must_use]
    pub fn cache_bytes_per_token(&self) -> usize {
        let d = &self.description;
        d.layers * d.kv_heads * (self.cache.keys.bytes(d.head_dim) + self.cache.values.bytes(d.value_dim))
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

    /// A new, empty session for up to `capacity` tokens. Memory is taken as it fills. Where rotary positions are scaled for
    /// contexts longer than the original one (`LongRoPE`, dynamic scaling), `capacity` says whether this is one.
    #[must_use]
    pub fn session(&self, capacity: usize) -> Session<'_> {
        Session::new(self, capacity)
    }
}

/// Tensors on their way into a model.
struct Loader<'d> {
    description: &'d Description,
    found: HashMap<String, Vec<Arc<dyn Codec>>>,
    weights: u64,
}

fn matrix_name(tensor: &str, slice: usize, slices: usize) -> MatrixName {
    MatrixName { tensor: tensor.to_owned(), slice, slices }
}

impl Loader<'_> {
    fn missing(&self, tensor: &str, wanted: Vec<u64>) -> EngineError {
        EngineError::MissingTensor {
            tensor: tensor.to_owned(),
            wanted: Shape(wanted),
            architecture: self.description.architecture.clone(),
        }
    }

    /// Asks for a tensor, checks its shape and keeps it.
    fn ask(&mut self, expected: &ExpectedTensor, tensors: &mut Tensors<'_>) -> Result<(), EngineError> {
        match tensors(&expected.name)? {
            Some(codecs) => self.accept(expected, codecs),
            None if expected.required => Err(self.missing(&expected.name, expected.shape.clone())),
            None => Ok(()),
        }
    }

    /// Checks the shape of a tensor and keeps it.
    fn accept(&mut self, expected: &ExpectedTensor, codecs: Vec<Arc<dyn Codec>>) -> Result<(), EngineError> {
        let shapes: Vec<_> = codecs.iter().map(|codec| codec.shape()).collect();
        let first =
            shapes.first().copied().unwrap_or(kbit_types::MatrixShape { rows: 0, cols: 0, slices: 0 });
        let found = match (expected.role, codecs.len(), first.rows) {
            (Role::Vector, 1, 1) => vec![first.cols],
            (_, 1, _) => vec![first.rows, first.cols],
            (_, slices, _) => vec![slices as u64, first.rows, first.cols],
        };
        if !expected.fits(&found) || shapes.iter().any(|shape| *shape != first || shape.slices != 1) {
            return Err(EngineError::TensorShape {
                tensor: expected.name.clone(),
                found: Shape(found),
                wanted: Shape(expected.shape.clone()),
            });
        }
        for shape in shapes {
            self.weights = self.weights.saturating_add(shape.elements().unwrap_or(u64::MAX));
        }
        self.found.insert(expected.name.clone(), codecs);
        Ok(())
    }

    fn weight(&self, tensor: &str, rows: usize, cols: usize) -> Result<Weight, EngineError> {
        match self.found.get(tensor).map(Vec::as_slice) {
            Some([codec]) => Weight::new(matrix_name(tensor, 0, 1), Arc::clone(codec), rows, cols),
            _ => Err(self.missing(tensor, vec![rows as u64, cols as u64])),
        }
    }

    /// The matrices of a stack.
    fn stack(
        &self,
        tensor: &str,
        slices: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<Weight>, EngineError> {
        match self.found.get(tensor).filter(|codecs| codecs.len() == slices) {
            Some(codecs) => {
                let weight = |(slice, codec): (usize, &Arc<dyn Codec>)| {
                    Weight::new(matrix_name(tensor, slice, slices), Arc::clone(codec), rows, cols)
                };
                codecs.iter().enumerate().map(weight).collect()
            }
            None => Err(self.missing(tensor, vec![slices as u64, rows as u64, cols as u64])),
        }
    }

    fn vector(&self, tensor: &str, len: usize) -> Result<Vec<f32>, EngineError> {
        match self.opt_vector(tensor, len)? {
            Some(vector) => Ok(vector),
            None => Err(self.missing(tensor, vec![len as u64])),
        }
    }

    /// All values of a vector, or of a small matrix, row by row.
    fn opt_vector(&self, tensor: &str, len: usize) -> Result<Option<Vec<f32>>, EngineError> {
        let Some([codec]) = self.found.get(tensor).map(Vec::as_slice) else { return Ok(None) };
        let found = codec.shape();
        if found.elements() != Some(len as u64) {
            return Err(EngineError::TensorShape {
                tensor: tensor.to_owned(),
                found: Shape(vec![found.rows, found.cols]),
                wanted: Shape(vec![len as u64]),
            });
        }
        let mut vector = vec![0.0; len];
        let cols = usize::try_from(found.cols).unwrap_or(len);
        codec.decode(0..found.rows, &mut vector, cols)?;
        match vector.iter().position(|value| !value.is_finite()) {
            Some(index) => {
                Err(EngineError::NotFinite { tensor: tensor.to_owned(), index, value: vector[index] })
            }
            None => Ok(Some(vector)),
        }
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm, EngineError> {
        let norm = self.description.norm;
        Ok(Norm {
            kind: norm.kind,
            epsilon: norm.epsilon,
            weight: if norm.weights {
                self.vector(&format!("{name}.weight"), width)?
            } else {
                vec![1.0; width]
            },
            bias: self.opt_vector(&format!("{name}.bias"), width)?,
        })
    }

    fn heads_norm(&self, norm: HeadNorm, name: &str, heads: usize) -> Result<HeadsNorm, EngineError> {
        let d = self.description;
        let (width, len) = match norm.over {
            NormOver::Head => (d.head_dim, d.head_dim),
            NormOver::EachHead => (d.head_dim, heads * d.head_dim),
            NormOver::AllHeads => (heads * d.head_dim, heads * d.head_dim),
        };
        let weights = self.vector(&format!("{name}.weight"), len)?;
        Ok(HeadsNorm { kind: norm.kind, epsilon: d.norm.epsilon, width, weights })
    }

    fn linear(&self, name: &str, rows: usize, cols: usize) -> Result<Linear, EngineError> {
        Ok(Linear {
            weight: self.weight(&format!("{name}.weight"), rows, cols)?,
            bias: self.opt_vector(&format!("{name}.bias"), rows)?,
        })
    }

    /// A matrix for each expert.
    fn linears(
        &self,
        name: &str,
        count: usize,
        rows: usize,
        cols: usize,
    ) -> Result<Vec<Linear>, EngineError> {
        let weights = self.stack(&format!("{name}.weight"), count, rows, cols)?;
        let all = count.saturating_mul(rows);
        let biases = self.opt_vector(&format!("{name}.bias"), all)?;
        let bias = |expert: usize| biases.as_ref().map(|all| all[expert * rows..][..rows].to_vec());
        Ok(weights.into_iter().enumerate().map(|(i, weight)| Linear { weight, bias: bias(i) }).collect())
    }

    fn rope(&self, rope: &Rope) -> Result<RopeTensors, EngineError> {
        let vector = |name: &String| self.vector(name, rope.dims / 2);
        Ok(RopeTensors {
            rope: rope.clone(),
            factors: rope.factors.as_ref().map(vector).transpose()?,
            long_factors: match &rope.scaling {
                RopeScaling::LongRope { long_factors, .. } => Some(vector(long_factors)?),
                _ => None,
            },
        })
    }

    fn layer(&self, layer: usize, block: &Block, rope: Option<usize>) -> Result<Layer, EngineError> {
        let d = self.description;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let norm = |part: Option<&str>| part.map(|part| self.norm(&name(part), d.hidden)).transpose();
        let norms = d.norms;
        let shared = d.residual == Residual::Parallel && norms.before_feed_forward == norms.before_attention;
        let head_norm = |part: &str, heads: usize| {
            d.attention.head_norm.map(|norm| self.heads_norm(norm, &name(part), heads)).transpose()
        };
        let attention_width = match d.attention.latent {
            Some(latent) => d.heads * latent.value,
            None => d.attention_width(),
        };
        Ok(Layer {
            before_attention: norm(norms.before_attention)?,
            after_attention: norm(norms.after_attention)?,
            before_feed_forward: if shared { None } else { norm(norms.before_feed_forward)? },
            after_feed_forward: norm(norms.after_feed_forward)?,
            projection: self.projection(layer)?,
            query_norm: head_norm("attn_q_norm", d.heads)?,
            key_norm: head_norm("attn_k_norm", d.kv_heads)?,
            rope,
            sinks: if d.attention.sinks {
                Some(self.vector(&name("attn_sinks.weight"), d.heads)?)
            } else {
                None
            },
            attention_output: self.linear(&name("attn_output"), d.hidden, attention_width)?,
            feed_forward: if block.experts {
                FeedForward::Experts(Box::new(self.experts(layer)?))
            } else {
                FeedForward::Dense(Box::new(self.mlp(&name(""), "", d.feed_forward)?))
            },
        })
    }

    fn projection(&self, layer: usize) -> Result<Projection, EngineError> {
        let d = self.description;
        let linear = |part: &str, rows, cols| self.linear(&format!("blk.{layer}.{part}"), rows, cols);
        if let Some(latent) = d.attention.latent {
            return Ok(Projection::Latent(Box::new(self.latent(layer, latent)?)));
        }
        let widths = [d.query_width(), d.key_width(), d.value_width()];
        if d.attention.fused {
            return Ok(Projection::Fused(linear("attn_qkv", widths.iter().sum(), d.hidden)?));
        }
        Ok(Projection::Separate {
            query: linear("attn_q", widths[0], d.hidden)?,
            key: linear("attn_k", widths[1], d.hidden)?,
            value: linear("attn_v", widths[2], d.hidden)?,
        })
    }

    fn latent(&self, layer: usize, shape: Latent) -> Result<LatentProjection, EngineError> {
        let d = self.description;
        let Latent { rank, nope, rope, value, .. } = shape;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let queries = d.heads * (nope + rope);
        let (query, query_rank) = match shape.query_rank {
            None => (self.linear(&name("attn_q"), queries, d.hidden)?, None),
            Some(width) => {
                let narrow = self.linear(&name("attn_q_a"), width, d.hidden)?;
                let norm = self.norm(&name("attn_q_a_norm"), width)?;
                (self.linear(&name("attn_q_b"), queries, width)?, Some((narrow, norm)))
            }
        };
        Ok(LatentProjection {
            shape,
            query,
            query_rank,
            key_value: self.linear(&name("attn_kv_a_mqa"), rank + rope, d.hidden)?,
            key_value_norm: self.norm(&name("attn_kv_a_norm"), rank)?,
            heads: if shape.absorbed {
                LatentHeads::Absorbed {
                    into: self.stack(&name("attn_k_b.weight"), d.heads, rank, nope)?,
                    out_of: self.stack(&name("attn_v_b.weight"), d.heads, value, rank)?,
                }
            } else {
                LatentHeads::Plain(self.linear(&name("attn_kv_b"), d.heads * (nope + value), rank)?)
            },
        })
    }

    /// A feed-forward network: `ffn_gate`, `ffn_up`, `ffn_down`, with `ending`.
    fn mlp(&self, block: &str, ending: &str, width: usize) -> Result<Mlp, EngineError> {
        let d = self.description;
        let linear = |part: &str, rows, cols| self.linear(&format!("{block}{part}{ending}"), rows, cols);
        Ok(Mlp {
            gate: if d.gate == Gate::Separate { Some(linear("ffn_gate", width, d.hidden)?) } else { None },
            up: linear("ffn_up", if d.gate == Gate::Fused { 2 * width } else { width }, d.hidden)?,
            down: linear("ffn_down", d.hidden, width)?,
        })
    }

    fn experts(&self, layer: usize) -> Result<ExpertLayer, EngineError> {
        let d = self.description;
        let name = |part: &str| format!("blk.{layer}.{part}");
        let router = name("ffn_gate_inp");
        let Some(experts) = d.experts else { return Err(self.missing(&router, Vec::new())) };
        let linears = |part: &str, rows, cols| self.linears(&name(part), experts.count, rows, cols);
        let downs = linears("ffn_down_exps", d.hidden, experts.width)?;
        let matrices: Vec<(Option<Linear>, Linear)> = if experts.fused {
            let both = linears("ffn_gate_up_exps", 2 * experts.width, d.hidden)?;
            both.into_iter().map(|both| (None, both)).collect()
        } else {
            let gates = linears("ffn_gate_exps", experts.width, d.hidden)?;
            let ups = linears("ffn_up_exps", experts.width, d.hidden)?;
            gates.into_iter().map(Some).zip(ups).collect()
        };
        let all = matrices.into_iter().zip(downs);
        let shared = experts.shared;
        Ok(ExpertLayer {
            router: self.linear(&router, experts.count, d.hidden)?,
            bias: self.opt_vector(&name("exp_probs_b.bias"), experts.count)?,
            experts: all.map(|((gate, up), down)| Mlp { gate, up, down }).collect(),
            shared: shared.map(|shared| self.mlp(&name(""), "_shexp", shared.width)).transpose()?,
            shared_gate: if shared.is_some_and(|shared| shared.gated) {
                Some(self.linear(&name("ffn_gate_inp_shexp"), 1, d.hidden)?)
            } else {
                None
            },
        })
    }
}
