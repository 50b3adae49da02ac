//! Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's variant over bytes).
//!
//! Text is cut into words by the pre-tokenizer; in each word the pair of neighbours whose merge stands first in the list
//! is merged, the leftmost of equals first, until no pair has a merge. Tokens are compared as bytes: their texts in
//! GPT-2's alphabet are turned back when the vocabulary is loaded.

use crate::byte_level;
use crate::pre_tokenizer::{PreTokenizer, Splitter};
use crate::vocabulary::Vocabulary;
use crate::{TokenizerError, merge::Merger};
use std::collections::HashMap;

/// Words longer than this are not worth remembering.
const CACHED_BYTES: usize = 32;
/// Words that are remembered within one call.
const CACHED_WORDS: usize = 1 << 16;

/// A byte-level BPE tokenizer.
#[derive(Debug)]
pub(crate) struct Bpe {
    splitter: Splitter,
    ignore_merges: bool,
    /// Symbol of each single byte.
    bytes: [u32; 256],
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
        pre_tokenizer: &PreTokenizer,
    ) -> Result<Self, TokenizerError> {
        let mut symbols = Symbols { ids: HashMap::new(), vocab: vocabulary.len(), extra: Vec::new() };
        for (id, token) in (0u32..).zip(vocabulary.tokens()) {
            if let Some(bytes) = byte_level::to_bytes(&token.text).filter(|bytes| !bytes.is_empty()) {
                symbols.ids.insert(bytes.into(), id);
            }
        }
        let tokens = symbols.ids.clone();
        let mut bytes = [0; 256];
        for (byte, symbol) in (0u8..=255).zip(&mut bytes) {
            *symbol = symbols.of(vec![byte]);
        }
        let mut table = HashMap::with_capacity(merges.len());
        for (rank, merge) in (0u32..).zip(merges) {
            // The left part has at least one character, which may itself be a space.
            let first = merge.chars().next().map_or(0, char::len_utf8);
            let Some(gap) = merge[first..].find(' ').map(|at| at + first) else {
                return Err(TokenizerError::Metadata {
                    key: "tokenizer.ggml.merges".to_owned(),
                    reason: format!("entry {rank} ({merge:?}) is not two tokens with a space between"),
                });
            };
            let parts = (byte_level::to_bytes(&merge[..gap]), byte_level::to_bytes(&merge[gap + 1..]));
            let (Some(left), Some(right)) = parts else { continue };
            if left.is_empty() || right.is_empty() {
                continue;
            }
            let whole = [left.as_slice(), right.as_slice()].concat();
            let pair = (symbols.of(left), symbols.of(right));
            let result = symbols.of(whole);
            table.entry(pair).or_insert((rank, result));
        }
        let spellings = symbols
            .extra
            .iter()
            .map(|bytes| bytes.iter().filter_map(|&byte| tokens.get([byte].as_slice()).copied()).collect())
            .collect();
        Ok(Self {
            splitter: Splitter::new(pre_tokenizer)?,
            ignore_merges: pre_tokenizer.ignore_merges,
            bytes,
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
        if self.ignore_merges
            && let Some(&token) = self.tokens.get(word.as_bytes())
        {
            out.push(token);
            return;
        }
        let symbols = word.bytes().map(|byte| self.bytes[usize::from(byte)]);
        merger.merge(
            symbols,
            |left, right| self.merges.get(&(left, right)).copied(),
            |symbol| match symbol.checked_sub(self.vocab) {
                None => out.push(symbol),
                Some(extra) => out.extend(self.spellings.get(extra as usize).into_iter().flatten()),
            },
        );
    }
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
        // Cannot overflow: a vocabulary and three parts a merge, both lists in memory.
        let id = self.vocab.saturating_add(u32::try_from(self.extra.len()).unwrap_or(u32::MAX));
        self.ids.insert(bytes.as_slice().into(), id);
        self.extra.push(bytes);
        id
    }
}
