//! Every law, declared once: name, formula, constants with their published values, the data that it needs, the space it is fitted
//! in. Fitting, `kbit fit --law`, the guide's table and the tests read this list.

/// A quantity that a law depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quantity {
    /// N.
    Params,
    /// D.
    Tokens,
    /// C.
    Flops,
    /// P.
    Bits,
    /// k.
    NominalBits,
    /// log2 of N times P.
    TotalBits,
    /// Of activations.
    ActivationBits,
    /// Of the KV cache.
    CacheBits,
    /// Relative squared error of each tensor.
    TensorErrors,
}

impl Quantity {
    /// Symbol in formulas, and key in JSON.
    #[must_use]
    pub const fn symbol(self) -> &'static str {
        match self {
            Self::Params => "N",
            Self::Tokens => "D",
            Self::Flops => "C",
            Self::Bits => "P",
            Self::NominalBits => "k",
            Self::TotalBits => "log2 total bits",
            Self::ActivationBits => "P_a",
            Self::CacheBits => "P_kv",
            Self::TensorErrors => "t²",
        }
    }

    /// In words, with its unit.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Params => "parameters",
            Self::Tokens => "training tokens",
            Self::Flops => "training FLOPs",
            Self::Bits => "true bits a weight, scales included",
            Self::NominalBits => "nominal bits a weight",
            Self::TotalBits => "log2 of the bits of all tensors",
            Self::ActivationBits => "bits an activation, from the mode `act:K`",
            Self::CacheBits => "bits a cached key or value",
            Self::TensorErrors => "relative squared error of each tensor",
        }
    }
}

/// Where residuals are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// ln KLD.
    LogDivergence,
    /// ln nll.
    LogLoss,
    /// ln of the loss that quantization adds.
    LogDifference,
    /// nll itself.
    Loss,
    /// KLD over the measured KLD.
    RelativeDivergence,
}

impl Space {
    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::LogDivergence => "ln KLD",
            Self::LogLoss => "ln nll",
            Self::LogDifference => "ln of the added nll",
            Self::Loss => "nll",
            Self::RelativeDivergence => "share of KLD",
        }
    }
}

/// A constant of a law.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Constant {
    /// Name; `[...]` stands for one a model, scheme, bit width, knot or tensor.
    pub name: &'static str,
    /// Unit; empty for a pure number.
    pub unit: &'static str,
    /// Published value, for the setup of its source.
    pub published: Option<f64>,
}

const fn constant(name: &'static str, unit: &'static str) -> Constant {
    Constant { name, unit, published: None }
}

const fn published(name: &'static str, unit: &'static str, value: f64) -> Constant {
    Constant { name, unit, published: Some(value) }
}

/// A law.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Law {
    /// Name on the command line and in JSON.
    pub name: &'static str,
    /// Formula.
    pub formula: &'static str,
    /// What it says.
    pub about: &'static str,
    /// Paper or table.
    pub source: &'static str,
    /// Constants.
    pub constants: &'static [Constant],
    /// What each point must have.
    pub needs: &'static [Quantity],
    /// Where it is fitted.
    pub space: Space,
    /// How it is fitted.
    pub method: &'static str,
}

impl Law {
    /// The law of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        LAWS.iter().find(|law| law.name == name)
    }

    /// The published value of the constant `name`.
    #[must_use]
    pub fn published(&self, name: &str) -> Option<f64> {
        self.constants.iter().find(|constant| constant.name == name).and_then(|constant| constant.published)
    }
}

const LEAST_SQUARES: &str = "least squares";
const HUBER: &str =
    "Huber's loss of log residuals (delta 1e-3, or 1.345 times the noise where that is more), many starts";

/// All laws.
pub const LAWS: &[Law] = &[
    Law {
        name: "exponential",
        formula: "KLD = a exp(-b P)",
        about: "for each scheme family; a for each model",
        source: "rate-distortion theory: b = 2 ln 2 = 1.386; llama.cpp's i-quants of Llama-3-8B from 2.5 bits: 1.35",
        constants: &[published("b", "1/bit", 1.35), constant("a[...]", "nats")],
        needs: &[Quantity::Bits],
        space: Space::LogDivergence,
        method: LEAST_SQUARES,
    },
    Law {
        name: "power",
        formula: "KLD = a P^-b",
        about: "for each scheme family; a for each model",
        source: "llama.cpp's table of Llama-3-8B: k-quants without importance 6.0, i-quants 4.85",
        constants: &[published("b", "", 6.0), constant("a[...]", "nats")],
        needs: &[Quantity::Bits],
        space: Space::LogDivergence,
        method: LEAST_SQUARES,
    },
    Law {
        name: "base-curve",
        formula: "nll = base(log2 total bits) + offset(k)",
        about: "one piecewise-linear curve and an offset a bit width, for each scheme family",
        source: "Dettmers and Zettlemoyer, arXiv 2212.09720",
        constants: &[constant("base[...]", "nats"), constant("offset[...]", "nats")],
        needs: &[Quantity::TotalBits, Quantity::NominalBits],
        space: Space::Loss,
        method: LEAST_SQUARES,
    },
    Law {
        name: "plain-power",
        formula: "nll = a N^b D^d C^c",
        about: "unquantized models; C = 6 N D is left out where it says nothing new",
        source: "the field guides; no published constants",
        constants: &[
            constant("exponent of N", ""),
            constant("exponent of D", ""),
            constant("exponent of C", ""),
            constant("a", "nats"),
        ],
        needs: &[Quantity::Params],
        space: Space::LogLoss,
        method: LEAST_SQUARES,
    },
    Law {
        name: "chinchilla",
        formula: "L = E + A N^-α + B D^-β",
        about: "unquantized models",
        source: "Hoffmann et al., arXiv 2203.15556; constants are of a family",
        constants: &[
            constant("E", "nats"),
            constant("A", ""),
            constant("alpha", ""),
            constant("B", ""),
            constant("beta", ""),
        ],
        needs: &[Quantity::Params],
        space: Space::LogLoss,
        method: HUBER,
    },
    Law {
        name: "kumar-post-training",
        formula: "L = E + A N^-α + B D^-β + C_T D^γD N^-γN exp(-P/γ)",
        about: "for each scheme family: quantizing hurts more the longer a model was trained",
        source: "Kumar et al., arXiv 2411.04330; its authors: the constants are not for other setups",
        constants: &[
            published("E", "nats", 2.7648),
            published("A", "", 4299.0),
            published("alpha", "", 0.4965),
            published("B", "", 18060.0),
            published("beta", "", 0.4965),
            published("C_T", "", 0.0598),
            published("gamma_D", "", 0.5068),
            published("gamma_N", "", 0.3439),
            published("gamma", "bits", 0.5907),
        ],
        needs: &[Quantity::Params, Quantity::Bits],
        space: Space::LogLoss,
        method: HUBER,
    },
    Law {
        name: "kumar-effective",
        formula: "L = E + A N_eff^-α + B D^-β, N_eff = N Π (1 - exp(-P_i/γ_i)) over weights, activations, KV cache",
        about: "for each scheme family: fewer bits are fewer parameters",
        source: "Kumar et al., arXiv 2411.04330",
        constants: &[
            constant("E", "nats"),
            constant("A", ""),
            constant("alpha", ""),
            constant("B", ""),
            constant("beta", ""),
            published("gamma_w", "bits", 2.6745),
            published("gamma_a", "bits", 2.2102),
            published("gamma_kv", "bits", 0.9578),
        ],
        needs: &[Quantity::Params, Quantity::Bits, Quantity::ActivationBits, Quantity::CacheBits],
        space: Space::LogLoss,
        method: HUBER,
    },
    Law {
        name: "ouyang",
        formula: "ΔL = k D^β N^-α P^-γ",
        about: "for each scheme family: the loss that quantization adds",
        source: "Ouyang et al., arXiv 2411.17691",
        constants: &[
            published("beta", "", 0.5251),
            published("alpha", "", 0.2261),
            published("gamma", "", 5.4967),
            published("k", "", 0.017),
        ],
        needs: &[Quantity::Params, Quantity::Bits],
        space: Space::LogDifference,
        method: LEAST_SQUARES,
    },
    Law {
        name: "frantar",
        formula: "L = E + A (N eff)^-α + B D^-β, eff of each scheme and arithmetic, 1 unquantized",
        about: "for each scheme family: the parameters that a quantized model is worth",
        source: "Frantar et al., arXiv 2502.16440: eff 0.923 for 4-bit weights, 0.747 for 4-bit weights and activations",
        constants: &[
            constant("E", "nats"),
            constant("A", ""),
            constant("alpha", ""),
            constant("B", ""),
            constant("beta", ""),
            constant("eff[...]", ""),
        ],
        needs: &[Quantity::Params],
        space: Space::LogLoss,
        method: HUBER,
    },
    Law {
        name: "linearity",
        formula: "KLD = L0 + Σ α_l t_l², t_l² = |W_l' - W_l|²/|W_l|²",
        about: "for each model, over all schemes: what the error of each tensor costs; by layer or by role where schemes are few",
        source: "HIGGS, arXiv 2411.17525",
        constants: &[constant("L0", "nats"), constant("alpha[...]", "nats")],
        needs: &[Quantity::TensorErrors],
        space: Space::RelativeDivergence,
        method: "least squares of relative residuals, no constant negative",
    },
];
