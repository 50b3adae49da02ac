//! Pre-tokenizers: how a BPE cuts text into words before it merges.
//!
//! A pre-tokenizer is a list of stages, applied one after the other, each to the pieces that the one before it left. Most
//! are patterns: what a pattern matches becomes a piece, and so does what lies between matches. One table names them all as
//! GGUF files do (`tokenizer.ggml.pre`), with the patterns that `tokenizer.json` uses for them; loading reads it by name,
//! conversion by structure. Source: llama.cpp's `llm_tokenizer_bpe` and the models' own tokenizer.json.
//!
//! Where llama.cpp cuts otherwise than the models' own tokenizers, the table follows llama.cpp, whose names these are: it
//! takes letters without case (beyond ASCII) for both cases (`gpt-4o`, `tekken`), and leaves combining marks out of words.
//!
//! The `regex` crate has no look-ahead. The one that pre-tokenizers need is `\s+(?!\S)`: white space, but for its last
//! character where a word follows. So a pattern is written without it and marked; the matcher takes white space whole and
//! then gives back what the look-ahead would have left.

use crate::TokenizerError;
use crate::unicode::with_known_characters;
use regex::Regex;
use std::ops::Range;

/// One entry of the table.
#[derive(Debug)]
pub(crate) struct PreTokenizer {
    /// Names in GGUF files; conversion writes the first.
    pub(crate) names: &'static [&'static str],
    /// What is done to text, in order.
    pub(crate) stages: &'static [Stage<'static>],
    /// Which words are taken whole where they are tokens, without merging.
    pub(crate) whole_words: WholeWords,
    /// What the texts of tokens are written in.
    pub(crate) alphabet: Alphabet,
    /// True where a BOS token is put before text unless the metadata says otherwise.
    pub(crate) add_bos: bool,
    /// False where BOS has no default id.
    pub(crate) has_bos: bool,
    /// The stages of tokenizer.json that mean this one; empty where another entry has them or none are known.
    pub(crate) json: &'static [&'static [&'static str]],
}

/// Which words are not cut and merged again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WholeWords {
    /// None.
    No,
    /// All that are tokens.
    All,
    /// Runs of line breaks that are tokens.
    LineBreaks,
}

/// What the texts of tokens are written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alphabet {
    /// Bytes, in GPT-2's characters for them.
    Bytes,
    /// Characters; bytes without one are `<0x00>` to `<0xFF>`.
    Characters,
    /// As `Characters`, with `▁` for spaces.
    CharactersWithSpaceMark,
}

/// A step of a pre-tokenizer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stage<'p> {
    /// Cuts at the matches of a pattern.
    Pattern(Pattern<'p>),
    /// Cuts numbers into threes from their right end; what stands before a number stays with its first digits.
    ThreesFromRight,
    /// Cuts runs of ASCII digits into threes from their right end, and from what stands before them where they are a
    /// multiple of three.
    DigitThreesFromRight,
}

/// A pattern of a pre-tokenizer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern<'p> {
    /// Alternatives, without look-ahead.
    regex: &'p str,
    white_space: WhiteSpace,
}

/// What follows the alternatives of a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WhiteSpace {
    /// Nothing.
    AsMatched,
    /// `\s+(?!\S)` and maybe `\s+`.
    AllButLast,
    /// `\s{512}(?!\S)`, 256 and so on down to 4, `\s{1,2}(?!\S)` and `\s{1}`.
    Powers,
}

const fn plain(regex: &'static str) -> Stage<'static> {
    Stage::Pattern(Pattern { regex, white_space: WhiteSpace::AsMatched })
}

const fn with_white_space(regex: &'static str) -> Stage<'static> {
    Stage::Pattern(Pattern { regex, white_space: WhiteSpace::AllButLast })
}

const fn with_powers_of_white_space(regex: &'static str) -> Stage<'static> {
    Stage::Pattern(Pattern { regex, white_space: WhiteSpace::Powers })
}

const GPT_2: Stage<'static> =
    with_white_space(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
const LLAMA_3: Stage<'static> = with_white_space(
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const JAIS_2: Stage<'static> = with_powers_of_white_space(
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const QWEN_2: Stage<'static> = with_white_space(
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const QWEN_35: Stage<'static> = with_white_space(
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const MINICPM_5: Stage<'static> = with_white_space(
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const UFAKZEKA: Stage<'static> =
    with_white_space(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+");
const SEED_CODER: Stage<'static> = with_white_space(
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+",
);
const BAILING: Stage<'static> = with_white_space(
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]",
);
const EXAONE_MOE: Stage<'static> = with_white_space(
    r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]",
);
const TEKKEN: Stage<'static> = with_white_space(
    r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);
const GPT_4O: Stage<'static> = with_white_space(
    r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);
const GRANITE_EMBEDDING: Stage<'static> = with_white_space(
    r"[^\r\n\p{L}\p{N}]?[[\p{L}\p{M}]--[a-z]]*[[\p{L}\p{M}]--[A-Z]]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|[^\r\n\p{L}\p{N}]?[[\p{L}\p{M}]--[a-z]]+[[\p{L}\p{M}]--[A-Z]]*(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);
const TINY_AYA: Stage<'static> = with_white_space(
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);
const YOUTU: Stage<'static> = with_white_space(
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+",
);
const KIMI_K2: Stage<'static> = with_white_space(
    r"[\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{20000}-\x{2a6df}\x{2a700}-\x{2b73f}\x{2b740}-\x{2b81f}\x{2b820}-\x{2ceaf}\x{2ceb0}-\x{2ebef}\x{f900}-\x{faff}\x{2f800}-\x{2fa1f}]+|[^\r\n\p{L}\p{N}]?[\p{L}--[\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{20000}-\x{2a6df}\x{2a700}-\x{2b73f}\x{2b740}-\x{2b81f}\x{2b820}-\x{2ceaf}\x{2ceb0}-\x{2ebef}\x{f900}-\x{faff}\x{2f800}-\x{2fa1f}]]+(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+",
);
const DEEPSEEK_3: Stage<'static> = with_white_space(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"##,
);
const SPARK: Stage<'static> = with_white_space(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]"##,
);
const NUMBER: Stage<'static> = plain(r"\p{N}");
const UP_TO_3_NUMBERS: Stage<'static> = plain(r"\p{N}{1,3}");
const CHINESE: Stage<'static> = plain(r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+");
const ASIAN: Stage<'static> = plain(r"[[\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]--\s]+");
const AFMOE_SCRIPTS: Stage<'static> = plain(
    r"[\x{4e00}-\x{9fff}\x{3400}-\x{4dbf}\x{8c48}-\x{faff}\x{3040}-\x{309f}\x{30a0}-\x{30ff}\x{ff65}-\x{ff9f}\x{2f00}-\x{2fdf}\x{0e40}-\x{0e7f}\x{0e80}-\x{0eff}\x{1780}-\x{17ff}\x{1000}-\x{109f}\x{aa60}-\x{aa7f}\x{a9e0}-\x{a9ff}\x{ac00}-\x{d7af}\x{1100}-\x{11ff}]+",
);
const YOUTU_SCRIPTS: Stage<'static> = plain(
    r"[\x{ac00}-\x{d7a3}\x{3131}-\x{318e}]+|[\x{ff01}\x{2026}\x{201c}\x{201d}\x{2018}\x{2019}\x{2014}\x{ff1a}\x{ff1b}\x{ff0c}\x{3001}-\x{303f}\x{fe30}-\x{fe4f}]+|[\x{3105}-\x{312f}]+|[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+",
);
const DEEPSEEK_LETTERS: Stage<'static> = plain(DEEPSEEK_LETTERS_STAGE);
const DEEPSEEK_MARKS: Stage<'static> =
    plain(r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3001}-\x{3002}]+");
const BLOOM: Stage<'static> =
    plain(r" ?[^(\s|.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{0964}\x{06d4}\x{060c})]+");
const LINES: Stage<'static> = plain(r"[^\n]+|\n+");

/// GPT-2's pattern as tokenizer.json has it; `ByteLevel` with `use_regex` means this one.
pub(crate) const GPT_2_STAGE: &str =
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// `Digits` with `individual_digits`.
pub(crate) const DIGIT_STAGE: &str = r"\p{N}";
/// `Punctuation` with each mark by itself.
pub(crate) const PUNCTUATION_STAGE: &str = r"[\p{P}!-/:-@\[-`{-~]";
const LLAMA_3_STAGE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen 2's pattern as tokenizer.json has it.
pub(crate) const QWEN_2_STAGE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O_STAGE: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_3_STAGE: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const DEEPSEEK_LETTERS_STAGE: &str = r"\s?[A-Za-z\x{00b5}\x{00c0}-\x{00d6}\x{00d8}-\x{00f6}\x{00f8}-\x{01ba}\x{01bc}-\x{01bf}\x{01c4}-\x{0293}\x{0295}-\x{02af}\x{0370}-\x{0373}\x{0376}\x{0377}\x{037b}-\x{037d}\x{037f}\x{0386}\x{0388}-\x{038a}\x{038c}\x{038e}-\x{03a1}\x{03a3}-\x{03f5}\x{03f7}-\x{0481}\x{048a}-\x{052f}\x{0531}-\x{0556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}]+";
const BLOOM_STAGE: &str = r" ?[^(\s|[.,!?\x{2026}\x{3002}\x{ff0c}\x{3001}\x{0964}\x{06d4}\x{060c}])]+";
const CHINESE_STAGE: &str = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+";

const fn entry(names: &'static [&'static str], stages: &'static [Stage<'static>]) -> PreTokenizer {
    PreTokenizer {
        names,
        stages,
        whole_words: WholeWords::No,
        alphabet: Alphabet::Bytes,
        add_bos: false,
        has_bos: true,
        json: &[],
    }
}

/// All pre-tokenizers. Of entries with the same stages in tokenizer.json, the first is found by them.
pub(crate) const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        json: &[&[GPT_2_STAGE]],
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
        json: &[&[DIGIT_STAGE, GPT_2_STAGE]],
        ..entry(
            &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
            &[NUMBER, GPT_2],
        )
    },
    PreTokenizer {
        whole_words: WholeWords::All,
        add_bos: true,
        json: &[&[LLAMA_3_STAGE]],
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
        whole_words: WholeWords::All,
        has_bos: false,
        json: &[&[LLAMA_3_STAGE]],
        ..entry(&["glm4", "glm5"], &[LLAMA_3])
    },
    PreTokenizer { json: &[&[LLAMA_3_STAGE]], ..entry(&["smaug-bpe", "dbrx"], &[LLAMA_3]) },
    PreTokenizer { has_bos: false, ..entry(&["chatglm-bpe"], &[LLAMA_3]) },
    PreTokenizer {
        json: &[&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        ]],
        ..entry(&["jais-2"], &[JAIS_2])
    },
    PreTokenizer {
        json: &[&[QWEN_2_STAGE]],
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
        json: &[&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]],
        ..entry(&["qwen35"], &[QWEN_35])
    },
    PreTokenizer { json: &[&[r"[^\n]+|[\n]+", QWEN_2_STAGE]], ..entry(&["laguna"], &[LINES, QWEN_2]) },
    PreTokenizer {
        whole_words: WholeWords::All,
        json: &[&[
            r"\p{N}{1,3}",
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]],
        ..entry(&["minicpm5"], &[UP_TO_3_NUMBERS, MINICPM_5])
    },
    PreTokenizer {
        json: &[&[r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"]],
        ..entry(&["ufakzeka"], &[UFAKZEKA])
    },
    PreTokenizer {
        json: &[&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]],
        ..entry(&["seed-coder"], &[SEED_CODER])
    },
    PreTokenizer {
        json: &[&[
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        ]],
        ..entry(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILING])
    },
    PreTokenizer {
        json: &[&[
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        ]],
        ..entry(&["exaone-moe"], &[EXAONE_MOE])
    },
    PreTokenizer {
        add_bos: true,
        whole_words: WholeWords::All,
        json: &[&[
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ]],
        ..entry(&["tekken"], &[TEKKEN])
    },
    PreTokenizer {
        json: &[&[GPT_4O_STAGE]],
        ..entry(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT_4O])
    },
    PreTokenizer {
        whole_words: WholeWords::All,
        json: &[&[GPT_4O_STAGE]],
        ..entry(&["granite-embed-multi-97m"], &[GRANITE_EMBEDDING])
    },
    PreTokenizer {
        json: &[&[r"\d{1,3}(?=(?:\d{3})*\b)", GPT_4O_STAGE]],
        ..entry(&["tiny_aya", "cohere2moe"], &[Stage::ThreesFromRight, TINY_AYA])
    },
    PreTokenizer { whole_words: WholeWords::All, ..entry(&["youtu"], &[YOUTU_SCRIPTS, YOUTU]) },
    entry(&["kimi-k2"], &[KIMI_K2]),
    PreTokenizer {
        json: &[&[r"\p{N}{1,3}", CHINESE_STAGE, DEEPSEEK_3_STAGE]],
        ..entry(
            &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
            &[UP_TO_3_NUMBERS, CHINESE, DEEPSEEK_3],
        )
    },
    PreTokenizer {
        json: &[&[
            r"\p{N}{1,3}",
            CHINESE_STAGE,
            r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+|[\r\n]|\s+(?!\S)|\s+"##,
            r"\p{N}",
        ]],
        ..entry(&["spark2_5"], &[UP_TO_3_NUMBERS, CHINESE, SPARK, NUMBER])
    },
    entry(&["afmoe"], &[Stage::ThreesFromRight, AFMOE_SCRIPTS, DEEPSEEK_3]),
    PreTokenizer {
        json: &[&[
            r"[\r\n]",
            DEEPSEEK_LETTERS_STAGE,
            r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}\x{3000}-\x{3002}]+",
            r"\s+$",
            r"[\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]+",
            r"\p{N}+",
        ]],
        ..entry(
            &["deepseek-llm"],
            &[plain(r"[\r\n]"), DEEPSEEK_LETTERS, DEEPSEEK_MARKS, plain(r"\s+$"), ASIAN, plain(r"\p{N}+")],
        )
    },
    PreTokenizer {
        json: &[&[
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            r"[\x{4e00}-\x{9fa5}\x{0800}-\x{4e00}\x{ac00}-\x{d7ff}]+",
            DIGIT_STAGE,
        ]],
        ..entry(
            &["deepseek-coder"],
            &[plain(r"[\r\n]"), plain(r"\s?\p{L}+"), plain(r"\s?\p{P}+"), ASIAN, NUMBER],
        )
    },
    PreTokenizer {
        json: &[&[r"[\p{P}!-/:-@\[-`{-~]+", GPT_2_STAGE, r"\p{N}+", "[0-9][0-9][0-9]"]],
        ..entry(&["falcon"], &[plain(r"[\p{P}$+<=>^~|`]+"), GPT_2, plain("[0-9][0-9][0-9]")])
    },
    PreTokenizer { json: &[&[BLOOM_STAGE]], ..entry(&["bloom", "poro-chat", "gpt3-finnish"], &[BLOOM]) },
    PreTokenizer { json: &[&[BLOOM_STAGE, DIGIT_STAGE]], ..entry(&["viking"], &[BLOOM, NUMBER]) },
    PreTokenizer {
        json: &[&[r"\p{N}+", r"(?=(\d{3})+(?!\d))"]],
        ..entry(&["superbpe"], &[plain(r"\p{N}+"), Stage::DigitThreesFromRight])
    },
    PreTokenizer {
        add_bos: true,
        json: &[&[
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            DIGIT_STAGE,
            PUNCTUATION_STAGE,
            GPT_2_STAGE,
        ]],
        ..entry(
            &["chameleon"],
            &[
                plain("<sentinel:[0-9]+>"),
                plain("IMGIMG[A-I]{1,4}Z"),
                plain(r"[\t\n]|    |  "),
                NUMBER,
                plain(r"[\p{P}!-/:-@\[-`{-~]"),
                GPT_2,
            ],
        )
    },
    PreTokenizer {
        add_bos: true,
        whole_words: WholeWords::LineBreaks,
        alphabet: Alphabet::CharactersWithSpaceMark,
        ..entry(&["gemma4", "granite-embed-multi-311m"], &[LINES])
    },
    PreTokenizer { alphabet: Alphabet::CharactersWithSpaceMark, ..entry(&["sarvam-moe"], &[LINES]) },
    PreTokenizer { alphabet: Alphabet::Characters, ..entry(&["whitespace"], &[plain(r"\S+")]) },
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

    /// Its stages as tokenizer.json writes them: those that are recognised, else made from the patterns. `None` where no
    /// pattern of Hugging Face's says the same: cuts from the right, runs of white space by powers, and differences of
    /// classes, which its regular expressions write otherwise.
    pub(crate) fn written_stages(&self) -> Option<Vec<String>> {
        if let Some(stages) = self.json.first() {
            return Some(stages.iter().map(|stage| (*stage).to_owned()).collect());
        }
        let written = |stage: &Stage<'_>| match stage {
            Stage::Pattern(pattern) if !pattern.regex.contains("--[") => match pattern.white_space {
                WhiteSpace::AsMatched => Some(pattern.regex.to_owned()),
                WhiteSpace::AllButLast => Some(format!(r"{}|\s+(?!\S)|\s+", pattern.regex)),
                WhiteSpace::Powers => None,
            },
            Stage::Pattern(_) | Stage::ThreesFromRight | Stage::DigitThreesFromRight => None,
        };
        self.stages.iter().map(written).collect()
    }
}

/// All names.
pub(crate) fn known() -> Vec<&'static str> {
    PRE_TOKENIZERS.iter().flat_map(|entry| entry.names).copied().collect()
}

/// A pre-tokenizer, ready to use.
#[derive(Debug)]
pub(crate) struct Splitter {
    stages: Vec<Compiled>,
}

#[derive(Debug)]
enum Compiled {
    Pattern(CompiledPattern),
    ThreesFromRight(Regex),
    DigitThreesFromRight(Regex),
}

#[derive(Debug)]
struct CompiledPattern {
    regex: Regex,
    white_space: WhiteSpace,
    /// True where an alternative takes the line breaks that end white space.
    takes_line_breaks: bool,
}

impl Splitter {
    /// Compiles the stages of an entry.
    pub(crate) fn new(entry: &PreTokenizer) -> Result<Self, TokenizerError> {
        let stages: Result<_, regex::Error> = entry.stages.iter().map(Compiled::new).collect();
        Ok(Self {
            stages: stages.map_err(|error| {
                let found = format!("{:?} ({error})", entry.names.first().unwrap_or(&""));
                TokenizerError::UnknownPreTokenizer { found, known: known() }
            })?,
        })
    }

    /// The stages of a tokenizer.json as they stand there, or `None` where one has a look-ahead that kbit does not have.
    pub(crate) fn from_patterns<'p>(patterns: impl Iterator<Item = &'p str>) -> Option<Self> {
        const ENDINGS: [&str; 2] = [r"|\s+(?!\S)|\s+", r"|\s+(?!\S)"];
        let stages = patterns.map(|pattern| {
            let ending = ENDINGS.iter().find(|ending| pattern.ends_with(**ending));
            let white_space = ending.map_or(WhiteSpace::AsMatched, |_| WhiteSpace::AllButLast);
            let regex = ending.map_or(pattern, |ending| &pattern[..pattern.len() - ending.len()]);
            Compiled::new(&Stage::Pattern(Pattern { regex, white_space })).ok()
        });
        Some(Self { stages: stages.collect::<Option<_>>()? })
    }

    /// Calls `each` with every piece of `text`, in order; the pieces make up the text.
    pub(crate) fn split<'t>(&self, text: &'t str, mut each: impl FnMut(&'t str)) {
        let Some((last, first)) = self.stages.split_last() else { return each(text) };
        let mut pieces = vec![text];
        for stage in first {
            let mut finer = Vec::with_capacity(pieces.len());
            for piece in pieces {
                stage.split(piece, &mut |part| finer.push(part));
            }
            pieces = finer;
        }
        for piece in pieces {
            last.split(piece, &mut each);
        }
    }
}

impl Compiled {
    fn new(stage: &Stage<'_>) -> Result<Self, regex::Error> {
        Ok(match stage {
            Stage::Pattern(pattern) => {
                let ending = if pattern.white_space == WhiteSpace::AsMatched { "" } else { r"|\s+" };
                Self::Pattern(CompiledPattern {
                    regex: Regex::new(&with_known_characters(&format!("{}{ending}", pattern.regex)))?,
                    white_space: pattern.white_space,
                    takes_line_breaks: pattern.regex.contains(r"\s*[\r\n]"),
                })
            }
            Stage::ThreesFromRight => Self::ThreesFromRight(Regex::new(&with_known_characters(r"\p{N}+"))?),
            Stage::DigitThreesFromRight => Self::DigitThreesFromRight(Regex::new("[0-9]+")?),
        })
    }

    fn split<'t>(&self, text: &'t str, each: &mut impl FnMut(&'t str)) {
        match self {
            Self::Pattern(pattern) => pattern.split(text, each),
            Self::ThreesFromRight(number) => {
                let mut start = 0;
                for found in number.find_iter(text) {
                    let count = found.as_str().chars().count();
                    for (index, (at, _)) in found.as_str().char_indices().enumerate().skip(1) {
                        if (count - index) % 3 == 0 {
                            each(&text[start..found.start() + at]);
                            start = found.start() + at;
                        }
                    }
                    each(&text[start..found.end()]);
                    start = found.end();
                }
                if start < text.len() {
                    each(&text[start..]);
                }
            }
            Self::DigitThreesFromRight(digits) => {
                let mut start = 0;
                for found in digits.find_iter(text) {
                    for at in found.range().filter(|at| (found.end() - at) % 3 == 0) {
                        if start < at {
                            each(&text[start..at]);
                            start = at;
                        }
                    }
                }
                if start < text.len() {
                    each(&text[start..]);
                }
            }
        }
    }
}

impl CompiledPattern {
    fn split<'t>(&self, text: &'t str, each: &mut impl FnMut(&'t str)) {
        let mut start = 0;
        while let Some(found) = self.regex.find_at(text, start) {
            let found = self.give_back(text, found.range());
            if found.is_empty() {
                break;
            }
            if start < found.start {
                each(&text[start..found.start]);
            }
            each(&text[found.clone()]);
            start = found.end;
        }
        if start < text.len() {
            each(&text[start..]);
        }
    }

    /// What the look-ahead of the pattern leaves of a run of white space.
    fn give_back(&self, text: &str, found: Range<usize>) -> Range<usize> {
        if self.white_space == WhiteSpace::AsMatched {
            return found;
        }
        let matched = &text[found.clone()];
        let Some(last) = matched.chars().next_back().filter(|last| last.is_whitespace()) else {
            return found;
        };
        // A run that ends in a line break was matched by an alternative for line breaks, where there is one, and
        // GPT-2's pattern has none: there the run is followed by a word like any other.
        let took_line_breaks = self.takes_line_breaks && matches!(last, '\r' | '\n');
        if took_line_breaks || !matched.chars().all(char::is_whitespace) {
            return found;
        }
        let at_end = found.end == text.len();
        if self.white_space == WhiteSpace::Powers {
            let left = matched.chars().count() - usize::from(!at_end);
            let taken = match left {
                0 => 1,
                1..4 => left.min(2),
                _ => 1 << left.ilog2().min(9),
            };
            let end = matched.char_indices().nth(taken).map_or(found.end, |(at, _)| found.start + at);
            return found.start..end;
        }
        match found.end - last.len_utf8() {
            end if end > found.start && !at_end => found.start..end,
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
    fn the_documentation_has_a_row_for_every_entry() {
        let page = include_str!("../../../docs/tokenizers.md");
        for entry in PRE_TOKENIZERS {
            let names: Vec<String> = entry.names.iter().map(|name| format!("`{name}`")).collect();
            let row = format!("| {} |", names.join(", "));
            assert!(page.contains(&row), "docs/tokenizers.md has no row that begins with {row}");
        }
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
