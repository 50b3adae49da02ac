//! What rules can ask of a model and of a tensor.

use kbit_formats::gguf::{Array, Metadata, Value};

/// What a tensor does, by its GGUF name alone, so that models which kbit cannot run are quantized all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The output matrix, or a token embedding where the model has no output matrix of its own.
    Output,
    /// The token embedding, of all layers or of each, where there is an output matrix too.
    Embedding,
    /// Queries.
    AttnQ,
    /// Keys.
    AttnK,
    /// Values.
    AttnV,
    /// Queries, keys and values in one.
    AttnQkv,
    /// Keys and values from a latent vector.
    AttnKvB,
    /// Output of attention.
    AttnOutput,
    /// Up projection, also of experts.
    FfnUp,
    /// Gate, also of experts.
    FfnGate,
    /// Down projection, also of experts.
    FfnDown,
    /// Anything else.
    Other,
}

impl Role {
    /// The words of the rule language, and what they cover.
    pub(crate) const WORDS: &'static [(&'static str, &'static [Self])] = &[
        ("output", &[Self::Output]),
        ("embedding", &[Self::Embedding]),
        ("attn_q", &[Self::AttnQ]),
        ("attn_k", &[Self::AttnK]),
        ("attn_v", &[Self::AttnV]),
        ("attn_qkv", &[Self::AttnQkv]),
        ("attn_kv_b", &[Self::AttnKvB]),
        ("values", &[Self::AttnV, Self::AttnQkv, Self::AttnKvB]),
        ("attn_output", &[Self::AttnOutput]),
        ("ffn_up", &[Self::FfnUp]),
        ("ffn_gate", &[Self::FfnGate]),
        ("ffn_down", &[Self::FfnDown]),
        ("other", &[Self::Other]),
    ];

    /// The role of the tensor `name`. `tied` says that the model has no output matrix of its own.
    #[must_use]
    pub fn of(name: &str, tied: bool) -> Self {
        const PARTS: &[(&str, Role)] = &[
            ("attn_qkv.weight", Role::AttnQkv),
            ("attn_kv_b.weight", Role::AttnKvB),
            ("attn_v.weight", Role::AttnV),
            ("attn_k.weight", Role::AttnK),
            ("attn_q.weight", Role::AttnQ),
            ("attn_output.weight", Role::AttnOutput),
            ("ffn_up", Role::FfnUp),
            ("ffn_gate", Role::FfnGate),
            ("ffn_down", Role::FfnDown),
        ];
        if name == OUTPUT {
            return Self::Output;
        }
        if EMBEDDINGS.contains(&name) {
            return if tied { Self::Output } else { Self::Embedding };
        }
        PARTS.iter().find(|(part, _)| name.contains(part)).map_or(Self::Other, |(_, role)| *role)
    }

    /// Values of attention are counted together, whatever they are fused with.
    pub(crate) const fn counted_as(self) -> Self {
        match self {
            Self::AttnQkv | Self::AttnKvB => Self::AttnV,
            other => other,
        }
    }

    /// There is one in every layer, as llama-quantize has it.
    pub(crate) const fn is_feed_forward(self) -> bool {
        matches!(self, Self::FfnUp | Self::FfnGate | Self::FfnDown)
    }
}

pub(crate) const OUTPUT: &str = "output.weight";
pub(crate) const EMBEDDINGS: [&str; 2] = ["token_embd.weight", "per_layer_token_embd.weight"];

/// True for the output matrix and the token embeddings, which do without importance in every file type.
pub(crate) fn is_model_wide_table(name: &str) -> bool {
    name == OUTPUT || EMBEDDINGS.contains(&name)
}

/// The number of a tensor's block, if its name has one.
pub(crate) fn block(name: &str) -> Option<u64> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// What rules can ask of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelFacts {
    /// GGUF's name of the architecture.
    pub architecture: String,
    /// Blocks, those for predicting further tokens included.
    pub layers: u64,
    /// Experts; 0 in a dense model.
    pub experts: u64,
    /// Query heads that share one head of keys and values in the first block, rounded down; 0 without attention.
    pub grouped_heads: u64,
    /// Whether llama.cpp calls it a model of 70 B: its attention shares values so widely that more bits cost little.
    pub is_70b: bool,
}

impl ModelFacts {
    /// The facts that GGUF metadata states; what it does not state counts as 0.
    #[must_use]
    pub fn from_metadata(metadata: &Metadata) -> Self {
        let architecture = match metadata.get("general.architecture") {
            Some(Value::String(name)) => name.clone(),
            _ => String::new(),
        };
        let number = |key: &str| first_number(metadata.get(&format!("{architecture}.{key}")));
        let blocks = number("block_count").unwrap_or(0);
        let heads = number("attention.head_count").unwrap_or(0);
        let key_value_heads = number("attention.head_count_kv").unwrap_or(heads);
        let experts = number("expert_count").unwrap_or(0);
        let main_layers = blocks.saturating_sub(number("nextn_predict_layers").unwrap_or(0));
        let layers = match architecture.as_str() {
            // Its blocks run several times, and llama.cpp counts each run.
            "nanbeige" => match number("num_loops").unwrap_or(1) {
                0 | 1 => blocks,
                loops => main_layers.saturating_mul(loops),
            },
            // One more for the router.
            "graniteswitch" => main_layers + 1,
            _ => blocks,
        };
        let is_70b = match architecture.as_str() {
            "llama" | "llama-embed" => main_layers == 80 && experts != 8 && heads != key_value_heads,
            "qwen2" | "deci" | "olmo" => main_layers == 80,
            "jais2" => main_layers == 68,
            _ => false,
        };
        let grouped_heads = heads.checked_div(key_value_heads).unwrap_or(0);
        Self { architecture, layers, experts, grouped_heads, is_70b }
    }
}

/// A whole number, or the first of a list of them (one a block).
fn first_number(value: Option<&Value>) -> Option<u64> {
    let number = match value? {
        Value::Array(Array::U32(items)) => i128::from(*items.first()?),
        Value::Array(Array::I32(items)) => i128::from(*items.first()?),
        other => other.as_integer()?,
    };
    u64::try_from(number).ok()
}

/// What rules can ask of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct TensorFacts<'a> {
    /// GGUF name.
    pub name: &'a str,
    /// Shape, row-major: the last axis is that of the rows' weights.
    pub shape: &'a [u64],
}

impl TensorFacts<'_> {
    /// Axes as ggml counts them: outer ones of length 1 do not count.
    pub(crate) fn axes(&self) -> usize {
        self.shape.iter().skip_while(|length| **length == 1).count().max(1)
    }

    /// Weights in a row.
    pub(crate) fn columns(&self) -> u64 {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Length of the axis `index` from the inside.
    pub(crate) fn axis(&self, index: usize) -> u64 {
        self.shape.iter().rev().nth(index).copied().unwrap_or(1)
    }
}
