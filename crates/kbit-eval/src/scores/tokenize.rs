//! How BLEU cuts a text into words: sacreBLEU's tokenizations.
//!
//! `13a` is that of NIST's `mteval-v13a.pl`, which WMT uses; `intl` that of `mteval-v14.pl --international-tokenization`.

use super::ScoreError;
use super::text::{is_space, words};
use regex::Regex;
use std::str::FromStr;
use std::sync::LazyLock;

/// How BLEU cuts a text into words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BleuTokenizer {
    /// `13a`: at ASCII punctuation, with full stops and commas inside numbers kept.
    #[default]
    V13a,
    /// `intl`: at all of Unicode's punctuation and symbols, with punctuation between digits kept.
    International,
    /// `char`: each character by itself.
    Characters,
    /// `none`: at white space only.
    None,
}

impl BleuTokenizer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::V13a, Self::International, Self::Characters, Self::None];

    /// Its name in signatures.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V13a => "13a",
            Self::International => "intl",
            Self::Characters => "char",
            Self::None => "none",
        }
    }

    /// The words of `text`.
    #[must_use]
    pub fn tokenize(self, text: &str) -> Vec<String> {
        match self {
            Self::V13a => words(&v13a(text)).map(str::to_owned).collect(),
            Self::International => words(&international(text)).map(str::to_owned).collect(),
            Self::Characters => text.chars().filter(|&c| !is_space(c)).map(String::from).collect(),
            Self::None => words(text).map(str::to_owned).collect(),
        }
    }
}

impl FromStr for BleuTokenizer {
    type Err = ScoreError;

    fn from_str(name: &str) -> Result<Self, ScoreError> {
        Self::ALL.into_iter().find(|tokenizer| tokenizer.name() == name).ok_or_else(|| ScoreError::Unknown {
            what: "BLEU tokenization",
            name: name.to_owned(),
            known: "13a, intl, char, none",
        })
    }
}

/// Where two neighbours are `first` and `second`, writes them as `join` does; pairs do not overlap, as those of a regular
/// expression of two characters.
fn pairs(
    text: &str,
    first: impl Fn(char) -> bool,
    second: impl Fn(char) -> bool,
    join: impl Fn(&mut String, char, char),
) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    let mut characters = text.chars().peekable();
    while let Some(a) = characters.next() {
        match characters.peek() {
            Some(&b) if first(a) && second(b) => {
                join(&mut out, a, b);
                characters.next();
            }
            _ => out.push(a),
        }
    }
    out
}

/// `a b `.
fn space_around_second(out: &mut String, a: char, b: char) {
    out.extend([a, ' ', b, ' ']);
}

/// ` a b`.
fn space_around_first(out: &mut String, a: char, b: char) {
    out.extend([' ', a, ' ', b]);
}

fn v13a(text: &str) -> String {
    let mut text = text.replace("<skipped>", "").replace("-\n", "").replace('\n', " ");
    if text.contains('&') {
        for (name, character) in [("&quot;", "\""), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")] {
            text = text.replace(name, character);
        }
    }
    // Brackets, symbols and marks; not the apostrophe, comma, hyphen and full stop.
    let apart = |c: char| matches!(c, '{'..='~' | '['..='`' | ' '..='&' | '('..='+' | ':'..='@' | '/');
    let mut spaced = String::with_capacity(text.len() * 2);
    for c in std::iter::once(' ').chain(text.chars()).chain(std::iter::once(' ')) {
        if apart(c) {
            spaced.extend([' ', c, ' ']);
        } else {
            spaced.push(c);
        }
    }
    let digit = |c: char| c.is_ascii_digit();
    let point = |c: char| matches!(c, '.' | ',');
    let spaced = pairs(&spaced, |c| !digit(c), point, space_around_second);
    let spaced = pairs(&spaced, point, |c| !digit(c), space_around_first);
    pairs(&spaced, digit, |c| c == '-', space_around_second)
}

/// The three steps of `mteval-v14.pl`, each a pattern and what it becomes.
static INTERNATIONAL: LazyLock<[(Regex, &'static str); 3]> = LazyLock::new(|| {
    let step = |pattern: &str, spaced| (Regex::new(pattern).expect("a regular expression"), spaced);
    [step(r"(\P{N})(\p{P})", "$1 $2 "), step(r"(\p{P})(\P{N})", " $1 $2"), step(r"(\p{S})", " $1 ")]
});

fn international(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, spaced) in &*INTERNATIONAL {
        text = pattern.replace_all(&text, *spaced).into_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for tokenizer in BleuTokenizer::ALL {
            assert_eq!(tokenizer.name().parse(), Ok(tokenizer));
        }
        let message = BleuTokenizer::from_str("13b").unwrap_err().to_string();
        assert_eq!(message, "there is no BLEU tokenization `13b`: use one of 13a, intl, char, none");
    }

    #[test]
    fn punctuation_between_digits_is_kept_by_intl() {
        // A mark before a number is cut off only where something is before it: so is it in mteval-v14.pl.
        assert_eq!(BleuTokenizer::International.tokenize("«1.5€»"), ["«1.5", "€", "»"]);
    }

    #[test]
    fn numbers_keep_their_points_and_ranges_are_cut() {
        let found = BleuTokenizer::V13a.tokenize("It cost 1,234.50, in 1990-1995 (e.g. \"so\").");
        assert_eq!(
            found,
            [
                "It", "cost", "1,234.50", ",", "in", "1990", "-", "1995", "(", "e", ".", "g", ".", "\"",
                "so", "\"", ")", "."
            ]
        );
    }
}
