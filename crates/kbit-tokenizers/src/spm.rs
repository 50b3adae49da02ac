//! SentencePiece's BPE (Kudo and Richardson 2018), as Llama uses it: tokens have scores instead of a list of merges.
//!
//! Text is taken character by character, spaces as `▁`. Neighbours that together are a token are merged, the highest score
//! first and the leftmost of equals first. A character that is no token is spelled in byte tokens `<0x00>` to `<0xFF>`.
//!
//! No merge reaches across two characters that never follow each other within a token, such as the end of a word and the
//! `▁` of the next. So text is cut there, and each piece is merged by itself, or remembered from before.

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
    joints: Joints,
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

/// Working memory, kept from piece to piece.
#[derive(Default)]
struct Work {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

/// Which characters follow each other within tokens. Several pairs share a bit, so it may say yes to one that does not.
#[derive(Debug)]
struct Joints {
    bits: Vec<u64>,
}

impl Joints {
    /// Bits of the table.
    const COUNT: usize = 1 << 20;

    fn bit(left: char, right: char) -> (usize, u64) {
        let mixed = u32::from(left).wrapping_mul(0x9e37_79b1) ^ u32::from(right).wrapping_mul(0x85eb_ca6b);
        let bit = (mixed >> 12) as usize % Self::COUNT;
        (bit / 64, 1 << (bit % 64))
    }

    fn add(&mut self, left: char, right: char) {
        let (word, bit) = Self::bit(left, right);
        self.bits[word] |= bit;
    }

    fn may_join(&self, left: char, right: char) -> bool {
        let (word, bit) = Self::bit(left, right);
        self.bits[word] & bit != 0
    }

    /// Cuts `text` where no token reaches across.
    fn pieces<'t>(&self, text: &'t str) -> impl Iterator<Item = &'t str> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let mut characters = rest.char_indices();
            let (_, mut left) = characters.next()?;
            let mut end = rest.len();
            for (at, right) in characters {
                if !self.may_join(left, right) {
                    end = at;
                    break;
                }
                left = right;
            }
            let (piece, after) = rest.split_at(end);
            rest = after;
            Some(piece)
        })
    }
}

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
        let mut joints = Joints { bits: vec![0; Joints::COUNT / 64] };
        for token in vocabulary.tokens() {
            let mut characters = token.text.chars();
            let mut left = characters.next();
            for right in characters {
                left.replace(right).into_iter().for_each(|left| joints.add(left, right));
            }
        }
        Self { tokens, scores, bytes, joints, unknown }
    }

    /// Appends the tokens of `text`, in which spaces are `▁` already and no special token stands.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        /// Pieces longer than this, in bytes, are not worth remembering.
        const CACHED_BYTES: usize = 32;
        /// Pieces that are remembered within one call.
        const CACHED_PIECES: usize = 1 << 16;
        // Where in `out` a piece was encoded before.
        let mut cache: HashMap<&str, (usize, usize)> = HashMap::new();
        let mut work = Work::default();
        for piece in self.joints.pieces(text) {
            let from = out.len();
            if let Some(&(start, end)) = cache.get(piece) {
                out.extend_from_within(start..end);
                continue;
            }
            self.encode_piece(piece, &mut work, out);
            if piece.len() <= CACHED_BYTES && cache.len() < CACHED_PIECES {
                cache.insert(piece, (from, out.len()));
            }
        }
    }

    fn encode_piece(&self, text: &str, work: &mut Work, out: &mut Vec<u32>) {
        let Work { symbols, queue } = work;
        symbols.clear();
        symbols.extend(text.char_indices().enumerate().map(|(index, (start, c))| Symbol {
            start,
            len: c.len_utf8(),
            before: index.wrapping_sub(1),
            after: index + 1,
        }));
        let Some(last) = symbols.last_mut() else { return };
        last.after = NONE;
        let add = |queue: &mut BinaryHeap<_>, symbols: &[Symbol], left: usize, right: usize| {
            let start = symbols[left].start;
            let len = symbols[left].len + symbols[right].len;
            if let Some(&token) = self.tokens.get(&text[start..start + len]) {
                queue.push(Candidate { score: self.scores[token as usize], left, right, len });
            }
        };
        for right in 1..symbols.len() {
            add(queue, symbols, right - 1, right);
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
                add(queue, symbols, left, after);
            }
            let before = symbols[left].before;
            if before != NONE {
                add(queue, symbols, before, left);
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
