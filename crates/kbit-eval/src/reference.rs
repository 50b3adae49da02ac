//! The model that others are compared with, kept in a compact form between passes.

use crate::run::group;
use crate::{EvalError, Windows};
use kbit_engine::{Kernels, Model};
use std::ops::Range;
use std::sync::OnceLock;

/// A model on a text, to compare others with.
///
/// llama.cpp keeps the reference's logits in a file: a 16-bit number for every token of the vocabulary at every place. Here the
/// hidden states before the output matrix are kept, in memory and as they are: a vocabulary's width smaller by the ratio of
/// vocabulary to hidden size (85 for a model of 576 channels and 49,152 tokens), and exact. A later pass multiplies them by
/// the output matrix again; the layers run once. Windows beyond [`Reference::KEPT_BYTES`] run anew in each pass.
pub struct Reference<'m> {
    pub(crate) model: &'m Model,
    pub(crate) tokens: &'m [u32],
    pub(crate) windows: Windows,
    /// Windows of a group.
    group: usize,
    /// One entry a group of windows that is kept.
    kept: Vec<OnceLock<Seen>>,
}

/// What is kept of a group of windows.
pub(crate) struct Seen {
    /// Final hidden states of the scored places.
    pub(crate) states: Vec<f32>,
    /// Scored tokens.
    pub(crate) tokens: Vec<Base>,
}

/// What is kept of a token.
#[derive(Clone, Copy)]
pub(crate) struct Base {
    /// Logarithm of the sum of all exponentiated logits.
    pub(crate) lse: f64,
    /// The likeliest token; `None` where logits are not numbers.
    pub(crate) top: Option<usize>,
    pub(crate) nll: f64,
    /// The likeliest token is the one that follows.
    pub(crate) right: bool,
}

impl Base {
    pub(crate) fn new(kernels: Kernels, logits: &[f32], target: usize) -> Self {
        let (lse, top) = kernels.log_sum_exp_and_argmax(logits);
        Self { lse, top, nll: lse - f64::from(logits[target]), right: top == Some(target) }
    }
}

impl<'m> Reference<'m> {
    /// Hidden states are kept up to this size.
    pub const KEPT_BYTES: usize = 1 << 29;

    /// `model` on the windows of a text. `tokens` are those of the whole text, with the tokenizer's beginning-of-text token where
    /// it adds one. Nothing runs yet.
    ///
    /// # Errors
    /// When the text is shorter than a window.
    pub fn new(model: &'m Model, tokens: &'m [u32], windows: &Windows) -> Result<Self, EvalError> {
        Self::keeping(model, tokens, windows, Self::KEPT_BYTES)
    }

    /// As [`Reference::new`], with hidden states kept up to `bytes`; the figures are the same.
    ///
    /// # Errors
    /// As [`Reference::new`].
    pub fn keeping(
        model: &'m Model,
        tokens: &'m [u32],
        windows: &Windows,
        bytes: usize,
    ) -> Result<Self, EvalError> {
        let group = group(model, windows);
        let groups = windows.count(tokens.len())?.div_ceil(group);
        let size = group * windows.scored() * model.description().hidden * size_of::<f32>();
        let kept = (0..groups.min(bytes / size.max(1))).map(|_| OnceLock::new()).collect();
        Ok(Self { model, tokens, windows: *windows, group, kept })
    }

    /// What was kept of a group of windows.
    pub(crate) fn seen(&self, windows: &Range<usize>) -> Option<&Seen> {
        self.place(windows)?.get()
    }

    /// Keeps what was seen of a group of windows, where there is room.
    pub(crate) fn keep(&self, windows: &Range<usize>, seen: Seen) {
        if let Some(place) = self.place(windows) {
            // Two passes at a time see the same: whichever came first is kept.
            place.get_or_init(|| seen);
        }
    }

    fn place(&self, windows: &Range<usize>) -> Option<&OnceLock<Seen>> {
        // Other groups, of a candidate that is streamed where the reference is not, are not kept.
        let is_own = windows.len() <= self.group && windows.start.is_multiple_of(self.group);
        self.kept.get(windows.start / self.group).filter(|_| is_own)
    }
}
