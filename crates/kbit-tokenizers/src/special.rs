//! Finding special tokens in text before anything else is done to it.

use crate::vocabulary::{TokenKind, Vocabulary};
use std::borrow::Cow;
use std::collections::HashMap;

/// A stretch of text, or a token that was found in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// The special tokens of a vocabulary.
#[derive(Debug)]
pub(crate) struct Specials {
    /// Longest first, then by id.
    tokens: Vec<Special>,
    /// Indices into `tokens` by their first two bytes (the second 0 for texts of one byte).
    by_prefix: HashMap<[u8; 2], Vec<usize>>,
    /// First bytes that any of them has.
    first_bytes: [bool; 256],
}

#[derive(Debug)]
struct Special {
    id: u32,
    text: String,
    /// Found only where special tokens are asked for.
    on_request: bool,
    strips: Strips,
}

/// White space that belongs to a special token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Strips {
    None,
    /// What stands before it.
    Left,
    /// What stands after it.
    Right,
}

/// Keeps the special tokens in some texts from being found: the first character of each occurrence gives way to a character
/// that stands in none of the texts (one of Unicode's noncharacters), until it is restored.
#[derive(Debug)]
pub(crate) struct Guard {
    unused: Vec<char>,
    /// Characters and what stands for them.
    pairs: Vec<(char, char)>,
}

impl Guard {
    /// A guard that uses none of the characters of `texts`.
    pub(crate) fn for_texts<'t>(texts: impl Iterator<Item = &'t str>) -> Self {
        let mut unused: Vec<char> = ('\u{fdd0}'..='\u{fdef}').collect();
        for c in texts.flat_map(str::chars) {
            unused.retain(|candidate| *candidate != c);
        }
        Self { unused, pairs: Vec::new() }
    }

    /// `text` in which no control token is found; `None` where characters run out.
    pub(crate) fn protect(&mut self, specials: &Specials, text: &str) -> Option<String> {
        let mut out = String::with_capacity(text.len());
        for (at, c) in text.char_indices() {
            if !specials.begins_with_control(&text.as_bytes()[at..]) {
                out.push(c);
            } else if let Some((_, stand_in)) = self.pairs.iter().find(|(from, _)| *from == c) {
                out.push(*stand_in);
            } else {
                let stand_in = self.unused.pop()?;
                self.pairs.push((c, stand_in));
                out.push(stand_in);
            }
        }
        Some(out)
    }

    /// Undoes [`Guard::protect`].
    pub(crate) fn restore<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let original =
            |c: char| self.pairs.iter().find(|(_, stand_in)| *stand_in == c).map(|(from, _)| *from);
        if text.chars().all(|c| original(c).is_none()) {
            return Cow::Borrowed(text);
        }
        Cow::Owned(text.chars().map(|c| original(c).unwrap_or(c)).collect())
    }
}

/// White space as C's `isspace` has it.
const SPACES: [char; 6] = [' ', '\t', '\n', '\r', '\x0b', '\x0c'];

impl Specials {
    /// `strips` says of a token's text which white space belongs to it.
    pub(crate) fn new(vocabulary: &Vocabulary, strips: impl Fn(&str) -> Strips) -> Self {
        let mut tokens: Vec<Special> = (0u32..)
            .zip(vocabulary.tokens())
            .filter(|(_, token)| {
                matches!(token.kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
            })
            .map(|(id, token)| Special {
                id,
                text: token.text.clone(),
                on_request: token.kind != TokenKind::UserDefined,
                strips: strips(&token.text),
            })
            .collect();
        tokens.sort_by_key(|special| std::cmp::Reverse(special.text.len()));
        let mut by_prefix: HashMap<[u8; 2], Vec<usize>> = HashMap::new();
        let mut first_bytes = [false; 256];
        for (index, special) in tokens.iter().enumerate() {
            let bytes = special.text.as_bytes();
            let Some(&first) = bytes.first() else { continue };
            first_bytes[usize::from(first)] = true;
            by_prefix.entry([first, bytes.get(1).copied().unwrap_or(0)]).or_default().push(index);
        }
        Self { tokens, by_prefix, first_bytes }
    }

    /// Cuts `text` at its special tokens: all occurrences of the longest first, then of the next in what is left.
    /// Control and unknown tokens are found only where `parse_special` asks for them.
    pub(crate) fn partition<'t>(&self, text: &'t str, parse_special: bool) -> Vec<Fragment<'t>> {
        let mut fragments = vec![Fragment::Text(text)];
        for index in self.occurring(text, parse_special) {
            let special = &self.tokens[index];
            let mut finer = Vec::with_capacity(fragments.len() + 2);
            for fragment in fragments {
                match fragment {
                    Fragment::Token(_) => finer.push(fragment),
                    Fragment::Text(text) => special.cut(text, &mut finer),
                }
            }
            fragments = finer;
        }
        fragments
    }

    /// True where `rest` begins with a token that is found on request only.
    fn begins_with_control(&self, rest: &[u8]) -> bool {
        rest.first().is_some_and(|first| self.first_bytes[usize::from(*first)])
            && self.candidates(rest).any(|index| {
                let special = &self.tokens[index];
                special.on_request && rest.starts_with(special.text.as_bytes())
            })
    }

    /// Indices of the tokens whose first two bytes `rest` begins with.
    fn candidates(&self, rest: &[u8]) -> impl Iterator<Item = usize> {
        let first = rest.first().copied().unwrap_or(0);
        let prefixes = [[first, rest.get(1).copied().unwrap_or(0)], [first, 0]];
        prefixes.into_iter().filter_map(|prefix| self.by_prefix.get(&prefix)).flatten().copied()
    }

    /// Indices of the tokens that occur in `text`, in order.
    fn occurring(&self, text: &str, parse_special: bool) -> Vec<usize> {
        let bytes = text.as_bytes();
        let mut found = vec![false; self.tokens.len()];
        let mut any = false;
        for (at, &byte) in bytes.iter().enumerate() {
            if !self.first_bytes[usize::from(byte)] {
                continue;
            }
            let rest = &bytes[at..];
            for index in self.candidates(rest) {
                let special = &self.tokens[index];
                if !found[index]
                    && (parse_special || !special.on_request)
                    && rest.starts_with(special.text.as_bytes())
                {
                    found[index] = true;
                    any = true;
                }
            }
        }
        if !any {
            return Vec::new();
        }
        found.iter().enumerate().filter_map(|(index, &found)| found.then_some(index)).collect()
    }
}

impl Special {
    fn cut<'t>(&self, text: &'t str, out: &mut Vec<Fragment<'t>>) {
        let mut rest = text;
        while let Some(at) = rest.find(&self.text) {
            let mut before = &rest[..at];
            if self.strips == Strips::Left {
                before = before.trim_end_matches(SPACES);
            }
            if !before.is_empty() {
                out.push(Fragment::Text(before));
            }
            out.push(Fragment::Token(self.id));
            rest = &rest[at + self.text.len()..];
            if self.strips == Strips::Right {
                rest = rest.trim_start_matches(SPACES);
            }
        }
        if !rest.is_empty() {
            out.push(Fragment::Text(rest));
        }
    }
}
