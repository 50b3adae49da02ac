//! Byte-pair encoding (Sennrich et al. 2016) by a list of merges: GPT-2's variant over bytes, and that over characters.
//!
//! Text is cut into words by the pre-tokenizer; in each word the pair of neighbours whose merge stands first in the list
//! is merged, the leftmost of equals first, until no pair has a merge. Tokens are compared as bytes: texts in GPT-2's
//! alphabet are turned back when the vocabulary is loaded.

use crate::byte_level;
use crate::pre_tokenizer::{Alphabet, Splitter, WholeWords};
use crate::vocabulary::Vocabulary;
use crate::{TokenizerError, merge::Merger};
use std::collections::HashMap;

/// Words longer than this are not worth remembering.
const CACHED_BYTES: usize = 32;
/// Words that are remembered within one call.
const CACHED_WORDS: usize = 1 << 16;

/// A BPE tokenizer.
#[derive(Debug)]
pub(crate) struct Bpe {
    splitter: Splitter,
    whole_words: WholeWords,
    /// Symbol of each single byte.
    bytes: [u32; 256],
    /// Symbol of each character of an alphabet of characters; bytes stand for the others.
    characters: Option<HashMap<char, u32>>,
    /// Tokens by their bytes.
    tokens: HashMap<Box<[u8]>, u32>,
    /// Rank and result of each merge. Results at or above the vocabulary's size are not tokens.
    merges: HashMap<(u32, u32), (u32, u32)>,
    /// What to put for symbols that are no tokens, by `symbol - vocabulary size`.
    spellings: Vec<Vec<u32>>,
    vocab: u32,
}

impl Bpe {
    pub(crate) fn new(
        vocabulary: &Vocabulary,
        merges: &[String],
        splitter: Splitter,
        whole_words: WholeWords,
        alphabet: Alphabet,
    ) -> Result<Self, TokenizerError> {
        let to_bytes = |text: &str| match alphabet {
            Alphabet::Bytes => byte_level::to_bytes(text),
            Alphabet::Characters | Alphabet::CharactersWithSpaceMark => Some(text.as_bytes().to_vec()),
        };
        let mut symbols = Symbols { ids: HashMap::new(), vocab: vocabulary.len(), extra: Vec::new() };
        for (id, token) in (0u32..).zip(vocabulary.tokens()) {
            if let Some(bytes) = to_bytes(&token.text).filter(|bytes| !bytes.is_empty()) {
                symbols.ids.insert(bytes.into(), id);
            }
        }
        let tokens = symbols.ids.clone();
        let mut bytes = [0; 256];
        for (byte, symbol) in (0u8..=255).zip(&mut bytes) {
            *symbol = match alphabet {
                Alphabet::Bytes => symbols.of(vec![byte]),
                // Merges are of characters: to these symbols none applies.
                Alphabet::Characters | Alphabet::CharactersWithSpaceMark => symbols.add(vec![byte]),
            };
        }
        let mut table = HashMap::with_capacity(merges.len());
        for (rank, merge) in (0u32..).zip(merges) {
            let Some((left, right)) = parts_of_merge(merge) else {
                return Err(TokenizerError::Metadata {
                    key: "tokenizer.ggml.merges".to_owned(),
                    reason: format!("entry {rank} ({merge:?}) is not two tokens with a space between"),
                });
            };
            let (Some(left), Some(right)) = (to_bytes(left), to_bytes(right)) else { continue };
            if left.is_empty() || right.is_empty() {
                continue;
            }
            let whole = [left.as_slice(), right.as_slice()].concat();
            let pair = (symbols.of(left), symbols.of(right));
            let result = symbols.of(whole);
            table.entry(pair).or_insert((rank, result));
        }
        // A symbol that is no token is spelled byte by byte. Of GPT-2's alphabet, llama.cpp finds only the characters that
        // are one byte of UTF-8 themselves, and leaves out the others.
        let spell = |&byte: &u8| match alphabet {
            Alphabet::Bytes => tokens.get([byte].as_slice()).filter(|_| byte.is_ascii_graphic()).copied(),
            Alphabet::Characters | Alphabet::CharactersWithSpaceMark => {
                tokens.get(format!("<0x{byte:02X}>").as_bytes()).copied()
            }
        };
        let spellings = symbols.extra.iter().map(|bytes| bytes.iter().filter_map(spell).collect()).collect();
        let characters = (alphabet != Alphabet::Bytes).then(|| {
            let character = |(bytes, symbol): (&[u8], u32)| {
                let mut characters = std::str::from_utf8(bytes).ok()?.chars();
                let first = characters.next()?;
                characters.next().is_none().then_some((first, symbol))
            };
            symbols.ids.iter().map(|(bytes, &symbol)| (&**bytes, symbol)).filter_map(character).collect()
        });
        Ok(Self {
            splitter,
            whole_words,
            bytes,
            characters,
            tokens,
            merges: table,
            spellings,
            vocab: vocabulary.len(),
        })
    }

    /// Appends the tokens of `text`, which holds no special tokens.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u32>) {
        // Where in `out` a word was encoded before.
        let mut cache: HashMap<&str, (usize, usize)> = HashMap::new();
        let mut merger = Merger::new();
        self.splitter.split(text, |word| {
            let from = out.len();
            if let Some(&(start, end)) = cache.get(word) {
                out.extend_from_within(start..end);
                return;
            }
            self.encode_word(word, &mut merger, out);
            if word.len() <= CACHED_BYTES && cache.len() < CACHED_WORDS {
                cache.insert(word, (from, out.len()));
            }
        });
    }

    fn encode_word(&self, word: &str, merger: &mut Merger, out: &mut Vec<u32>) {
        let takes_whole = match self.whole_words {
            WholeWords::No => false,
            WholeWords::All => true,
            WholeWords::LineBreaks => word.bytes().all(|byte| byte == b'\n'),
        };
        if takes_whole && let Some(&token) = self.tokens.get(word.as_bytes()) {
            out.push(token);
            return;
        }
        let rank = |left, right| self.merges.get(&(left, right)).copied();
        let each = |symbol: u32| match symbol.checked_sub(self.vocab) {
            None => out.push(symbol),
            Some(extra) => out.extend(self.spellings.get(extra as usize).into_iter().flatten()),
        };
        let of_bytes =
            |bytes: &[u8]| bytes.iter().map(|&byte| self.bytes[usize::from(byte)]).collect::<Vec<_>>();
        match &self.characters {
            None => merger.merge(word.bytes().map(|byte| self.bytes[usize::from(byte)]), rank, each),
            Some(characters) => {
                let symbols = word.chars().flat_map(|character| match characters.get(&character) {
                    Some(&symbol) => vec![symbol],
                    None => of_bytes(character.encode_utf8(&mut [0; 4]).as_bytes()),
                });
                merger.merge(symbols, rank, each);
            }
        }
    }
}

/// The two tokens of a merge: what stands before and after a space. The first has at least one character, which may itself
/// be a space.
pub(crate) fn parts_of_merge(merge: &str) -> Option<(&str, &str)> {
    let first = merge.chars().next()?.len_utf8();
    let gap = merge[first..].find(' ')? + first;
    Some((&merge[..gap], &merge[gap + 1..]))
}

/// Numbers for byte strings: tokens have their ids, other parts of merges the numbers after them.
struct Symbols {
    ids: HashMap<Box<[u8]>, u32>,
    vocab: u32,
    extra: Vec<Vec<u8>>,
}

impl Symbols {
    fn of(&mut self, bytes: Vec<u8>) -> u32 {
        if let Some(&id) = self.ids.get(bytes.as_slice()) {
            return id;
        }
        let id = self.add(bytes.clone());
        self.ids.insert(bytes.into(), id);
        id
    }

    /// A new number that `bytes` do not lead to.
    fn add(&mut self, bytes: Vec<u8>) -> u32 {
        // Cannot overflow: a vocabulary and three parts a merge, both lists in memory.
        let id = self.vocab.saturating_add(u32::try_from(self.extra.len()).unwrap_or(u32::MAX));
        self.extra.push(bytes);
        id
    }
}
