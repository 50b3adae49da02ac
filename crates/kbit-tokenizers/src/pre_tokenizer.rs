//! Pre-tokenizers: how a byte-level BPE cuts text into words before it merges.
//!
//! A pre-tokenizer is a list of patterns, applied one after the other, each to the pieces that the one before it left:
//! what a pattern matches becomes a piece, and so does what lies between matches. One table names them all as GGUF files
//! do (`tokenizer.ggml.pre`), with the patterns that `tokenizer.json` uses for them; loading reads it by name, conversion
//! by structure. Source: llama.cpp's `llm_tokenizer_bpe` and the models' own tokenizer.json.
//!
//! The `regex` crate has no look-ahead. The one that pre-tokenizers need is `\s+(?!\S)`: white space, but for its last
//! character where a word follows. So a pattern is written without it and marked; the matcher takes white space whole and
//! then gives the last character back.

use crate::TokenizerError;
use regex::Regex;
use std::ops::Range;

/// One entry of the table.
#[derive(Debug)]
pub(crate) struct PreTokenizer {
    /// Names in GGUF files; conversion writes the first.
    pub(crate) names: &'static [&'static str],
    /// Patterns, in order of application.
    pub(crate) patterns: &'static [Pattern],
    /// True where a word that is a token is not cut and merged again.
    pub(crate) ignore_merges: bool,
    /// True where a BOS token is put before text unless the metadata says otherwise.
    pub(crate) add_bos: bool,
    /// The stages of tokenizer.json that mean this one; empty where several are alike or none is known.
    pub(crate) stages: &'static [&'static [&'static str]],
}

/// A pattern of a pre-tokenizer.
#[derive(Debug)]
pub(crate) struct Pattern {
    /// Alternatives, without look-ahead.
    regex: &'static str,
    /// True where the alternatives end in `\s+(?!\S)` and maybe `\s+`.
    white_space: bool,
}

const fn plain(regex: &'static str) -> Pattern {
    Pattern { regex, white_space: false }
}

const fn with_white_space(regex: &'static str) -> Pattern {
    Pattern { regex, white_space: true }
}

const GPT_2: Pattern = with_white_space(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
const LLAMA_3: Pattern = with_white_space(
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const QWEN_2: Pattern = with_white_space(
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const QWEN_35: Pattern = with_white_space(
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const TEKKEN: Pattern = with_white_space(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);
const GPT_4O: Pattern = with_white_space(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);
const DEEPSEEK_3: Pattern = with_white_space(
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+",
);
const NUMBER: Pattern = plain(r"\p{N}");
const CHINESE: Pattern = plain(r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+");
const ASIAN: Pattern = plain(r"[\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]+");
const BLOOM: Pattern = plain(r" ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{0964}\x{06d4}\x{060c})]+");

/// GPT-2's pattern as tokenizer.json has it; `ByteLevel` with `use_regex` means this one.
pub(crate) const GPT_2_STAGE: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// `Digits` with `individual_digits`.
pub(crate) const DIGIT_STAGE: &str = r"\p{N}";

const fn entry(names: &'static [&'static str], patterns: &'static [Pattern]) -> PreTokenizer {
    PreTokenizer { names, patterns, ignore_merges: false, add_bos: false, stages: &[] }
}

const fn whole_words(names: &'static [&'static str], patterns: &'static [Pattern]) -> PreTokenizer {
    PreTokenizer { ignore_merges: true, ..entry(names, patterns) }
}

/// All pre-tokenizers.
pub(crate) const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        stages: &[&[GPT_2_STAGE]],
        ..entry(
            &[
                "gpt-2",
                "phi-2",
                "mpt",
                "olmo",
                "jais",
                "trillion",
                "granite-docling",
                "jina-es",
                "jina-de",
                "jina-v1-en",
                "jina-v2-es",
                "jina-v2-de",
                "jina-v2-code",
                "roberta-bpe",
                "gigachat",
                "a.x-4.0",
                "mellum",
                "modern-bert",
                "exaone4",
            ],
            &[GPT_2],
        )
    },
    PreTokenizer {
        stages: &[&[DIGIT_STAGE, GPT_2_STAGE]],
        ..entry(
            &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
            &[NUMBER, GPT_2],
        )
    },
    PreTokenizer {
        ignore_merges: true,
        add_bos: true,
        stages: &[&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]],
        ..entry(
            &[
                "llama-bpe",
                "llama3",
                "llama-v3",
                "falcon3",
                "falcon-h1",
                "pixtral",
                "midm-2.0",
                "lfm2",
                "jina-v5-nano",
            ],
            &[LLAMA_3],
        )
    },
    PreTokenizer {
        stages: &[&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]],
        ..entry(&["smaug-bpe", "dbrx", "chatglm-bpe"], &[LLAMA_3])
    },
    whole_words(&["glm4", "glm5"], &[LLAMA_3]),
    PreTokenizer {
        stages: &[&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]],
        ..entry(
            &[
                "qwen2",
                "deepseek-r1-qwen",
                "kormo",
                "f2llmv2",
                "megrez",
                "stablelm2",
                "hunyuan",
                "solar-open",
                "grok-2",
            ],
            &[QWEN_2],
        )
    },
    PreTokenizer {
        stages: &[&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]],
        ..entry(&["qwen35"], &[QWEN_35])
    },
    PreTokenizer {
        add_bos: true,
        ignore_merges: true,
        stages: &[&[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]],
        ..entry(&["tekken"], &[TEKKEN])
    },
    PreTokenizer {
        stages: &[&[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]],
        ..entry(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT_4O])
    },
    PreTokenizer {
        stages: &[&[
            r"\p{N}{1,3}",
            "[一-龥\u{3040}-ゟ゠-ヿ]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
        ]],
        ..entry(
            &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
            &[plain(r"\p{N}{1,3}"), CHINESE, DEEPSEEK_3],
        )
    },
    PreTokenizer {
        stages: &[&[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT_STAGE]],
        ..entry(
            &["deepseek-coder"],
            &[plain(r"[\r\n]"), plain(r"\s?\p{L}+"), plain(r"\s?\p{P}+"), ASIAN, NUMBER],
        )
    },
    PreTokenizer {
        stages: &[&["Punctuation Contiguous", GPT_2_STAGE, r"\p{N}+", "[0-9][0-9][0-9]"]],
        ..entry(&["falcon"], &[plain(r"[\p{P}$+<=>^~|`]+"), GPT_2, plain("[0-9][0-9][0-9]")])
    },
    entry(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]),
    entry(&["viking"], &[BLOOM, NUMBER]),
    entry(
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        &[with_white_space(
            r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]",
        )],
    ),
    entry(
        &["seed-coder"],
        &[with_white_space(
            r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+",
        )],
    ),
    entry(&["default"], &[plain(r"[\p{P}$+<=>^~|]+"), GPT_2, plain(r"\p{N}+"), plain("[0-9][0-9][0-9]")]),
];

impl PreTokenizer {
    /// The entry of a name in a GGUF file.
    pub(crate) fn by_name(name: &str) -> Result<&'static Self, TokenizerError> {
        PRE_TOKENIZERS
            .iter()
            .find(|entry| entry.names.contains(&name))
            .ok_or_else(|| TokenizerError::UnknownPreTokenizer { found: format!("{name:?}"), known: known() })
    }

    /// Its stages as tokenizer.json writes them: those that are recognised, else made from the patterns.
    pub(crate) fn written_stages(&self) -> Vec<String> {
        if let Some(stages) = self.stages.first() {
            return stages.iter().map(|stage| (*stage).to_owned()).collect();
        }
        let written = |pattern: &Pattern| match pattern.white_space {
            true => format!(r"{}|\s+(?!\S)|\s+", pattern.regex),
            false => pattern.regex.to_owned(),
        };
        self.patterns.iter().map(written).collect()
    }
}

/// All names.
pub(crate) fn known() -> Vec<&'static str> {
    PRE_TOKENIZERS.iter().flat_map(|entry| entry.names).copied().collect()
}

/// A pre-tokenizer, ready to use.
#[derive(Debug)]
pub(crate) struct Splitter {
    patterns: Vec<Compiled>,
}

#[derive(Debug)]
struct Compiled {
    regex: Regex,
    white_space: bool,
}

impl Splitter {
    /// Compiles the patterns.
    pub(crate) fn new(entry: &PreTokenizer) -> Result<Self, TokenizerError> {
        let compile = |pattern: &Pattern| {
            let ending = if pattern.white_space { r"|\s+" } else { "" };
            let regex = Regex::new(&format!("{}{ending}", pattern.regex)).map_err(|error| {
                let found = format!("{:?} ({error})", entry.names.first().unwrap_or(&""));
                TokenizerError::UnknownPreTokenizer { found, known: known() }
            })?;
            Ok(Compiled { regex, white_space: pattern.white_space })
        };
        Ok(Self { patterns: entry.patterns.iter().map(compile).collect::<Result<_, TokenizerError>>()? })
    }

    /// Calls `each` with every piece of `text`, in order; the pieces make up the text.
    pub(crate) fn split<'t>(&self, text: &'t str, mut each: impl FnMut(&'t str)) {
        let Some((last, first)) = self.patterns.split_last() else { return each(text) };
        let mut pieces = vec![text];
        for pattern in first {
            let mut finer = Vec::with_capacity(pieces.len());
            for piece in pieces {
                pattern.split(piece, |part| finer.push(part));
            }
            pieces = finer;
        }
        for piece in pieces {
            last.split(piece, &mut each);
        }
    }
}

impl Compiled {
    fn split<'t>(&self, text: &'t str, mut each: impl FnMut(&'t str)) {
        let mut start = 0;
        let mut from = 0;
        while let Some(found) = self.regex.find_at(text, from) {
            let found = self.give_back(text, found.range());
            if found.is_empty() {
                break;
            }
            if start < found.start {
                each(&text[start..found.start]);
            }
            each(&text[found.clone()]);
            start = found.end;
            from = found.end;
        }
        if start < text.len() {
            each(&text[start..]);
        }
    }

    /// What `\s+(?!\S)` leaves of a run of white space: all but its last character where a word follows.
    fn give_back(&self, text: &str, found: Range<usize>) -> Range<usize> {
        if !self.white_space || found.end == text.len() {
            return found;
        }
        let matched = &text[found.clone()];
        let Some(last) = matched.chars().next_back().filter(|last| last.is_whitespace()) else {
            return found;
        };
        // A run that ends in a line break was matched by an alternative for line breaks, where there is one, and
        // GPT-2's pattern has none: there the run is followed by a word like any other.
        let took_line_breaks = matches!(last, '\r' | '\n') && self.regex.as_str().contains(r"\s*[\r\n]");
        if took_line_breaks || !matched.chars().all(char::is_whitespace) {
            return found;
        }
        match found.end - last.len_utf8() {
            end if end > found.start => found.start..end,
            _ => found,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        Splitter::new(PreTokenizer::by_name(name).unwrap()).unwrap().split(text, |piece| pieces.push(piece));
        pieces
    }

    #[test]
    fn every_entry_compiles_and_no_name_stands_twice() {
        for entry in PRE_TOKENIZERS {
            Splitter::new(entry).unwrap();
        }
        let mut names = known();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn gpt_2_keeps_one_space_for_the_next_word() {
        assert_eq!(pieces("gpt-2", "a   b'll  "), ["a", "  ", " b", "'ll", "  "]);
        assert_eq!(pieces("gpt-2", "a\n\nb\nc"), ["a", "\n", "\n", "b", "\n", "c"]);
    }

    #[test]
    fn llama_3_takes_numbers_by_three_and_line_breaks_whole() {
        assert_eq!(pieces("llama-bpe", "x12345 \n\n  y!"), ["x", "123", "45", " \n\n", " ", " y", "!"]);
    }

    #[test]
    fn smollm_takes_digits_one_by_one() {
        assert_eq!(pieces("smollm", "in 1990"), ["in", " ", "1", "9", "9", "0"]);
    }

    #[test]
    fn rejects_a_name_that_is_not_known() {
        let error = PreTokenizer::by_name("nobody").unwrap_err().to_string();
        assert!(error.contains("nobody") && error.contains("llama-bpe"), "{error}");
    }

    proptest::proptest! {
        #[test]
        fn pieces_make_up_the_text(text in r"[\s\w'.,!\u{4e00}-\u{4e10}0-9éĠ]{0,60}") {
            static SPLITTERS: std::sync::LazyLock<Vec<Splitter>> = std::sync::LazyLock::new(|| {
                PRE_TOKENIZERS.iter().map(|entry| Splitter::new(entry).unwrap()).collect()
            });
            for splitter in SPLITTERS.iter() {
                let mut joined = String::new();
                splitter.split(&text, |piece| {
                    assert!(!piece.is_empty());
                    joined.push_str(piece);
                });
                assert_eq!(joined, text);
            }
        }
    }
}
