//! `WordPiece` (Schuster and Nakajima 2012), as BERT uses it.
//!
//! Text loses its accents and its upper case where the model wants it so, and is cut at white space, around punctuation and
//! around Chinese characters. A word is taken with `▁` before it, piece by piece, each the longest token that fits; a word
//! that does not work out is the unknown token. In the vocabulary of GGUF files, tokens that begin a word have that `▁`,
//! and those within words have no `##`. Source: BERT's `BasicTokenizer` and `WordpieceTokenizer`.

use crate::spm::SPACE;
use crate::trie::Trie;
use crate::unicode::Categories;
use crate::vocabulary::Vocabulary;

/// A `WordPiece` tokenizer.
#[derive(Debug)]
pub(crate) struct WordPiece {
    tokens: Trie,
    unknown: u32,
    lowercase: bool,
    strip_accents: bool,
    categories: Categories,
}

impl WordPiece {
    pub(crate) fn new(vocabulary: &Vocabulary, unknown: u32, lowercase: bool, strip_accents: bool) -> Self {
        let tokens =
            Trie::new((0u32..).zip(vocabulary.tokens()).map(|(id, token)| (token.text.as_str(), id)));
        Self { tokens, unknown, lowercase, strip_accents, categories: Categories::new() }
    }

    /// Appends the tokens of `text`, which holds no special tokens.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        let mut word = SPACE.to_owned();
        for character in text.chars() {
            let character = if self.strip_accents {
                self.categories.first_of_decomposition(character)
            } else {
                character
            };
            if character.is_whitespace() {
                self.finish(&mut word, out);
                continue;
            }
            if matches!(character, '\0' | '\u{fffd}')
                || self.categories.is_control(character)
                || self.strip_accents && self.categories.is_mark(character)
            {
                continue;
            }
            let shown = if self.lowercase { self.categories.simple_lowercase(character) } else { character };
            let stands_alone = self.categories.is_punctuation(character)
                || character < '\x7f' && self.categories.is_symbol(character)
                || is_chinese(character);
            if stands_alone {
                self.finish(&mut word, out);
            }
            word.push(shown);
            if stands_alone {
                self.finish(&mut word, out);
            }
        }
        self.finish(&mut word, out);
    }

    /// Appends the tokens of a word, if it is one, and begins the next.
    fn finish(&self, word: &mut String, out: &mut Vec<u32>) {
        if word.len() == SPACE.len() {
            return;
        }
        let from = out.len();
        let mut rest = word.as_bytes();
        while !rest.is_empty() {
            let Some((length, token)) = self.tokens.prefixes(rest).last() else {
                out.truncate(from);
                out.push(self.unknown);
                break;
            };
            out.push(token);
            rest = &rest[length..];
        }
        word.truncate(SPACE.len());
    }
}

/// Ideographs as BERT has them. The gap before U+2B920 is Hugging Face's, which models were trained with.
const fn is_chinese(character: char) -> bool {
    matches!(
        character,
        '\u{4e00}'..='\u{9fff}'
            | '\u{3400}'..='\u{4dbf}'
            | '\u{20000}'..='\u{2a6df}'
            | '\u{2a700}'..='\u{2b73f}'
            | '\u{2b740}'..='\u{2b81f}'
            | '\u{2b920}'..='\u{2ceaf}'
            | '\u{f900}'..='\u{faff}'
            | '\u{2f800}'..='\u{2fa1f}'
    )
}
