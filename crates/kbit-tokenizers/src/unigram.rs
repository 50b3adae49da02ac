//! Unigram (Kudo 2018), as T5 uses it.
//!
//! Text is normalized by the model's own table of replacements, spaces become `▁`, and of all ways to cut it into tokens the
//! one with the greatest sum of scores (logarithms of probabilities) is taken. A character without a token is the unknown
//! token, at a price; several in a row are one.
//!
//! The table is `SentencePiece`'s `precompiled_charsmap`: the length in bytes of a double-array trie (Kanda et al. 2017;
//! Darts-clone's layout), the trie in 32-bit units, then the replacements, each ending in a zero byte.

use crate::TokenizerError;
use crate::spm::SPACE;
use crate::trie::Trie;
use crate::vocabulary::{Token, TokenKind, Vocabulary, bad};

/// How much worse than the worst token an unknown character is.
const PENALTY: f32 = 10.0;

/// A Unigram tokenizer.
#[derive(Debug)]
pub(crate) struct Unigram {
    tokens: Trie,
    /// Scores of tokens; those that users defined have 0, the best there is.
    scores: Vec<f64>,
    user_defined: Trie,
    charsmap: Charsmap,
    unknown: u32,
    unknown_score: f64,
    adds_space: bool,
    merges_spaces: bool,
}

/// The best way to cut the text up to some byte.
#[derive(Clone, Copy)]
struct Best {
    token: u32,
    from: usize,
    score: f64,
}

impl Unigram {
    /// `adds_space` puts `▁` before text; `merges_spaces` makes one of several spaces and takes away those at the ends.
    pub(crate) fn new(
        vocabulary: &Vocabulary,
        unknown: u32,
        charsmap: &[u8],
        adds_space: bool,
        merges_spaces: bool,
    ) -> Result<Self, TokenizerError> {
        let of_kinds = |kinds: &'static [TokenKind]| {
            Trie::new(
                (0u32..)
                    .zip(vocabulary.tokens())
                    .filter(|(_, token)| kinds.contains(&token.declared))
                    .map(|(id, token)| (token.text.as_str(), id)),
            )
        };
        let normal = vocabulary.tokens().filter(|token| token.declared == TokenKind::Normal);
        let worst = normal.map(|token| token.score).fold(f32::MAX, f32::min);
        let score = |token: &Token| match (token.declared, token.kind) {
            (TokenKind::UserDefined, _) | (_, TokenKind::UserDefined) => 0.0,
            _ => f64::from(token.score),
        };
        Ok(Self {
            tokens: of_kinds(&[TokenKind::Normal, TokenKind::UserDefined, TokenKind::Unused]),
            scores: vocabulary.tokens().map(score).collect(),
            user_defined: of_kinds(&[TokenKind::UserDefined]),
            charsmap: Charsmap::new(charsmap)?,
            unknown,
            unknown_score: f64::from(worst - PENALTY),
            adds_space,
            merges_spaces,
        })
    }

    /// Appends the tokens of `text`, which holds no special tokens.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let text = self.normalized(text.as_bytes());
        if text.is_empty() {
            return;
        }
        let mut best = vec![Best { token: self.unknown, from: 0, score: f64::MIN }; text.len() + 1];
        best[0].score = 0.0;
        let mut at = 0;
        while at < text.len() {
            let length = character_length(text[at]).min(text.len() - at);
            let score = best[at].score;
            let mut improve = |end: usize, token: u32, score: f64| {
                if score > best[end].score {
                    best[end] = Best { token, from: at, score };
                }
            };
            let mut has_token = false;
            for (bytes, token) in self.tokens.prefixes(&text[at..]) {
                has_token |= bytes == length;
                improve(at + bytes, token, score + self.scores[token as usize]);
            }
            if !has_token {
                improve(at + length, self.unknown, score + self.unknown_score);
            }
            at += length;
        }
        let start = out.len();
        let mut at = text.len();
        let mut after_unknown = false;
        while at > 0 {
            let Best { token, from, .. } = best[at];
            let is_unknown = token == self.unknown;
            if !(after_unknown && is_unknown) {
                out.push(token);
            }
            after_unknown = is_unknown;
            at = from;
        }
        out[start..].reverse();
    }

    /// The bytes that tokens are found in.
    fn normalized(&self, text: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(text.len() + text.len() / 2);
        let mut has_space_before = false;
        let mut in_word = false;
        let mut rest = text;
        while !rest.is_empty() {
            let (bytes, taken) = self.next(rest);
            for &byte in bytes {
                if byte != b' ' {
                    if !in_word {
                        in_word = true;
                        if self.adds_space && !has_space_before || self.merges_spaces {
                            out.extend_from_slice(SPACE.as_bytes());
                            has_space_before = true;
                        }
                    }
                    out.push(byte);
                } else {
                    in_word = false;
                    if !self.merges_spaces {
                        out.extend_from_slice(SPACE.as_bytes());
                    }
                }
            }
            rest = &rest[taken..];
        }
        out
    }

    /// What the begin of `rest`, which is not empty, becomes; and how many bytes that begin has.
    fn next<'t>(&'t self, rest: &'t [u8]) -> (&'t [u8], usize) {
        // What begins like a token that users defined stays as it is, as in llama.cpp.
        let kept = self.user_defined.shared(rest);
        if kept > 0 {
            return (&rest[..kept], kept);
        }
        if let Some(replaced) = self.charsmap.longest(rest) {
            return replaced;
        }
        let length = character_length(rest[0]);
        match rest.get(..length).filter(|bytes| std::str::from_utf8(bytes).is_ok()) {
            Some(character) => (character, length),
            None => ("\u{fffd}".as_bytes(), 1),
        }
    }
}

/// The length of a character by its first byte of UTF-8.
const fn character_length(first: u8) -> usize {
    match first {
        0xf0.. => 4,
        0xe0.. => 3,
        0xc0.. => 2,
        _ => 1,
    }
}

/// Replacements of the begins of a text.
#[derive(Debug)]
struct Charsmap {
    units: Vec<u32>,
    replacements: Vec<u8>,
}

impl Charsmap {
    fn new(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let wrong = |reason: String| Err(bad("precompiled_charsmap", reason));
        if bytes.is_empty() {
            return Ok(Self { units: Vec::new(), replacements: Vec::new() });
        }
        let Some((size, rest)) = bytes.split_first_chunk() else {
            return wrong(format!("{} bytes, too few for a length", bytes.len()));
        };
        let size = u32::from_le_bytes(*size) as usize;
        if size >= rest.len() || !size.is_multiple_of(4) {
            return wrong(format!(
                "{size} bytes of units are announced, where a multiple of 4 below {} makes sense",
                rest.len()
            ));
        }
        let (units, replacements) = rest.split_at(size);
        if replacements.last() != Some(&0) {
            return wrong("the last replacement does not end".to_owned());
        }
        let (units, _) = units.as_chunks();
        let units = units.iter().map(|unit| u32::from_le_bytes(*unit)).collect();
        Ok(Self { units, replacements: replacements.to_vec() })
    }

    /// The replacement of the longest begin of `text` that has one, and that begin's length. A unit that points out of the
    /// table ends the search.
    fn longest(&self, text: &[u8]) -> Option<(&[u8], usize)> {
        let base = |unit: u32| (unit >> 10) << ((unit & (1 << 9)) >> 6);
        let mut at = base(*self.units.first()?);
        let mut found = None;
        for (index, &byte) in text.iter().enumerate().take_while(|&(_, &byte)| byte != 0) {
            at ^= u32::from(byte);
            let Some(&unit) = self.units.get(at as usize) else { break };
            if unit & (1 << 31 | 0xff) != u32::from(byte) {
                break;
            }
            at ^= base(unit);
            if unit & (1 << 8) != 0 {
                let Some(&value) = self.units.get(at as usize) else { break };
                found = Some((value & !(1 << 31), index + 1));
            }
        }
        let (value, length) = found?;
        let text = self.replacements.get(value as usize..)?;
        let end = text.iter().position(|&byte| byte == 0)?;
        Some((&text[..end], length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a` becomes `xy`: a root, the node of `a`, and its value.
    fn charsmap() -> Vec<u8> {
        let mut units = vec![0u32; 4];
        units[0] = 1 << 10;
        let node = 1 ^ usize::from(b'a');
        units.resize(node + 4, 0);
        // A leaf; its base leads to the unit beside it.
        units[node] = u32::from(b'a') | 1 << 8 | 1 << 10;
        units[node ^ 1] = 1 << 31;
        let mut bytes = u32::try_from(units.len() * 4).unwrap().to_le_bytes().to_vec();
        bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
        bytes.extend(b"xy\0");
        bytes
    }

    #[test]
    fn replaces_the_longest_begin() {
        let map = Charsmap::new(&charsmap()).unwrap();
        assert_eq!(map.longest(b"ab"), Some((b"xy".as_slice(), 1)));
        assert_eq!(map.longest(b"ba"), None);
        assert_eq!(map.longest(b""), None);
    }

    #[test]
    fn rejects_a_table_that_does_not_hold_its_units() {
        for bytes in [b"\x01".as_slice(), b"\xff\xff\xff\xff\0", b"\x04\0\0\0\0\0\0\0", b"\x03\0\0\0abc\0"] {
            let error = Charsmap::new(bytes).unwrap_err().to_string();
            assert!(error.contains("precompiled_charsmap"), "{error}");
        }
        let mut open = charsmap();
        open.pop();
        assert!(Charsmap::new(&open).unwrap_err().to_string().contains("does not end"));
    }

    proptest::proptest! {
        #[test]
        fn units_that_point_anywhere_are_survived(
            units in proptest::collection::vec(proptest::num::u32::ANY, 1..64),
            text in proptest::collection::vec(proptest::num::u8::ANY, 0..16),
        ) {
            let mut bytes = u32::try_from(units.len() * 4).unwrap().to_le_bytes().to_vec();
            bytes.extend(units.iter().flat_map(|unit| unit.to_le_bytes()));
            bytes.extend(b"ab\0c\0");
            let _ = Charsmap::new(&bytes).unwrap().longest(&text);
        }
    }
}
