//! SentencePiece's BPE (Kudo and Richardson 2018), as Llama uses it: tokens have scores instead of a list of merges.
//!
//! Text is taken character by character, spaces as `▁`. Neighbours that together are a token are merged, the highest score
//! first and the leftmost of equals first. A character that is no token is spelled in byte tokens `<0x00>` to `<0xFF>`.

use crate::vocabulary::Vocabulary;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// What SentencePiece writes for a space.
pub(crate) const SPACE: &str = "\u{2581}";

/// A SentencePiece BPE tokenizer.
#[derive(Debug)]
pub(crate) struct Spm {
    tokens: HashMap<Box<str>, u32>,
    scores: Vec<f32>,
    bytes: [Option<u32>; 256],
    /// For bytes that have no token.
    unknown: Option<u32>,
}

#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    /// 0 once it was merged into its left neighbour.
    len: usize,
    before: usize,
    after: usize,
}

/// No neighbour.
const NONE: usize = usize::MAX;

struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Candidate {}

impl Spm {
    pub(crate) fn new(vocabulary: &Vocabulary, unknown: Option<u32>) -> Self {
        let tokens: HashMap<Box<str>, u32> =
            (0u32..).zip(vocabulary.tokens()).map(|(id, token)| (token.text.as_str().into(), id)).collect();
        // Zero of either sign sorts alike.
        let scores = vocabulary.tokens().map(|token| token.score + 0.0).collect();
        let mut bytes = [None; 256];
        for (byte, token) in (0u8..=255).zip(&mut bytes) {
            let plain = char::from(byte).to_string();
            let plain = byte.is_ascii().then(|| tokens.get(plain.as_str())).flatten();
            *token = tokens.get(format!("<0x{byte:02X}>").as_str()).or(plain).copied();
        }
        Self { tokens, scores, bytes, unknown }
    }

    /// Appends the tokens of `text`, in which spaces are `▁` already and no special token stands.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(index, (start, c))| Symbol {
                start,
                len: c.len_utf8(),
                before: index.wrapping_sub(1),
                after: index + 1,
            })
            .collect();
        let Some(last) = symbols.last_mut() else { return };
        last.after = NONE;
        let mut queue = BinaryHeap::new();
        let add = |queue: &mut BinaryHeap<_>, symbols: &[Symbol], left: usize, right: usize| {
            let start = symbols[left].start;
            let len = symbols[left].len + symbols[right].len;
            if let Some(&token) = self.tokens.get(&text[start..start + len]) {
                queue.push(Candidate { score: self.scores[token as usize], left, right, len });
            }
        };
        for right in 1..symbols.len() {
            add(&mut queue, &symbols, right - 1, right);
        }
        while let Some(Candidate { left, right, len, .. }) = queue.pop() {
            let (Symbol { len: l, .. }, Symbol { len: r, after, .. }) = (symbols[left], symbols[right]);
            if l == 0 || r == 0 || l + r != len {
                continue;
            }
            symbols[left].len = len;
            symbols[left].after = after;
            symbols[right].len = 0;
            if after != NONE {
                symbols[after].before = left;
                add(&mut queue, &symbols, left, after);
            }
            let before = symbols[left].before;
            if before != NONE {
                add(&mut queue, &symbols, before, left);
            }
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let piece = &text[symbol.start..symbol.start + symbol.len];
            match self.tokens.get(piece) {
                Some(&token) => out.push(token),
                None => out.extend(piece.bytes().filter_map(|b| self.bytes[usize::from(b)].or(self.unknown))),
            }
        }
    }
}
