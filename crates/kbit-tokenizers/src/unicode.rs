//! Categories of characters, and what a character is without accents and without case.
//!
//! llama.cpp carries tables of Unicode 15.1. Characters that later versions added have no category there, so they have none
//! here, and token ids are the same whatever version the crates below are at.

use regex_syntax::hir::{Class, HirKind};
use unicode_normalization::char::decompose_canonical;

/// The characters of Unicode 15.1, as regular expressions write them.
const KNOWN: &str = r"\p{age=15.1}";

/// A pattern in which categories have the characters of Unicode 15.1 alone.
pub(crate) fn with_known_characters(pattern: &str) -> String {
    ["L", "M", "N", "P", "S"].iter().fold(pattern.to_owned(), |pattern, category| {
        let category = format!(r"\p{{{category}}}");
        pattern.replace(&category, &format!("[{category}&&{KNOWN}]"))
    })
}

/// Sets of characters by Unicode's general categories.
#[derive(Debug)]
pub(crate) struct Categories {
    controls: Set,
    marks: Set,
    punctuation: Set,
    symbols: Set,
    known: Set,
}

/// Ranges of characters, both ends included, in order.
#[derive(Debug)]
struct Set(Vec<(char, char)>);

impl Set {
    /// The characters of a class as regular expressions write it; none where that is no class.
    fn new(class: &str) -> Self {
        let parsed =
            regex_syntax::parse(&format!("[{class}&&{KNOWN}]")).map(regex_syntax::hir::Hir::into_kind);
        match parsed {
            Ok(HirKind::Class(Class::Unicode(class))) => {
                Self(class.iter().map(|range| (range.start(), range.end())).collect())
            }
            _ => Self(Vec::new()),
        }
    }

    fn contains(&self, character: char) -> bool {
        let after = self.0.partition_point(|&(start, _)| start <= character);
        after.checked_sub(1).is_some_and(|at| character <= self.0[at].1)
    }
}

impl Categories {
    pub(crate) fn new() -> Self {
        Self {
            controls: Set::new(r"[\p{Cc}\p{Cf}\p{Co}]"),
            marks: Set::new(r"\p{M}"),
            punctuation: Set::new(r"\p{P}"),
            symbols: Set::new(r"\p{S}"),
            known: Set::new(r"\p{Any}"),
        }
    }

    /// Control and format characters, and those for private use.
    pub(crate) fn is_control(&self, character: char) -> bool {
        self.controls.contains(character)
    }

    pub(crate) fn is_mark(&self, character: char) -> bool {
        self.marks.contains(character)
    }

    pub(crate) fn is_punctuation(&self, character: char) -> bool {
        self.punctuation.contains(character)
    }

    pub(crate) fn is_symbol(&self, character: char) -> bool {
        self.symbols.contains(character)
    }

    /// The first character of the canonical decomposition: a letter without its accents.
    pub(crate) fn first_of_decomposition(&self, character: char) -> char {
        let mut first = None;
        if self.known.contains(character) {
            decompose_canonical(character, |part| {
                first.get_or_insert(part);
            });
        }
        first.unwrap_or(character)
    }

    /// Unicode's simple lower case: one character for one.
    pub(crate) fn simple_lowercase(&self, character: char) -> char {
        // The only character whose full lower case has more than one begins with its simple one.
        let lower = character.to_lowercase().next().filter(|_| self.known.contains(character));
        lower.unwrap_or(character)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_categories() {
        let categories = Categories::new();
        for (character, found) in [
            ('\u{200d}', categories.is_control('\u{200d}')),
            ('\u{301}', categories.is_mark('\u{301}')),
            ('!', categories.is_punctuation('!')),
            ('。', categories.is_punctuation('。')),
            ('$', categories.is_symbol('$')),
        ] {
            assert!(found, "{character:?}");
        }
        assert!(!categories.is_punctuation('$') && !categories.is_symbol('a') && !categories.is_control('a'));
    }

    #[test]
    fn takes_accents_and_case_away() {
        let categories = Categories::new();
        let first = |character| categories.first_of_decomposition(character);
        let lower = |character| categories.simple_lowercase(character);
        assert_eq!(['é', 'Ñ', 'ệ', 'a', '각'].map(first), ['e', 'N', 'e', 'a', 'ᄀ']);
        assert_eq!(['A', 'É', 'İ', 'ß'].map(lower), ['a', 'é', 'i', 'ß']);
    }

    #[test]
    fn characters_newer_than_unicode_15_1_have_no_category() {
        let categories = Categories::new();
        assert!(!categories.is_mark('\u{897}') && !categories.is_symbol('\u{2427}'));
        assert_eq!(categories.simple_lowercase('\u{1c89}'), '\u{1c89}');
        let letters = regex::Regex::new(&with_known_characters(r"[^\p{L}]")).unwrap();
        assert!(letters.is_match("\u{1c89}") && !letters.is_match("\u{1c88}"));
    }
}
