//! Tokens to text as they come.

use crate::Tokenizer;

/// Turns tokens into text one by one, and finds stop strings.
///
/// What it gives out, joined, is the text of all tokens up to a stop string. A character whose bytes are spread over tokens comes
/// when it is whole; bytes that are no UTF-8 become U+FFFD as in [`Tokenizer::decode`]. What may be the beginning of a stop
/// string is held back until it is clear that it is not.
///
/// ```no_run
/// # let tokenizer: kbit_tokenizers::Tokenizer = unimplemented!();
/// # let tokens: Vec<u32> = Vec::new();
/// let mut stream = tokenizer.stream(vec!["\nUser:".to_owned()]);
/// for token in tokens {
///     print!("{}", stream.push(token));
///     if stream.stopped().is_some() {
///         break;
///     }
/// }
/// println!("{}", stream.finish());
/// ```
#[derive(Debug)]
pub struct TextStream<'t> {
    tokenizer: &'t Tokenizer,
    stops: Vec<String>,
    /// The first bytes of a character.
    bytes: Vec<u8>,
    /// Text that may be the beginning of a stop string.
    held: String,
    /// True until the space that encoding puts before text has come, or other text.
    drops_space: bool,
    stopped: Option<usize>,
}

impl Tokenizer {
    /// A stream that ends at the first of `stops`; empty ones are ignored. Its text continues other text: a space that it
    /// begins with is kept.
    #[must_use]
    pub fn stream(&self, stops: Vec<String>) -> TextStream<'_> {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        TextStream {
            tokenizer: self,
            stops,
            bytes: Vec::new(),
            held: String::new(),
            drops_space: false,
            stopped: None,
        }
    }
}

impl TextStream<'_> {
    /// The same stream for text that stands by itself: without the space that encoding puts before text.
    #[must_use]
    pub fn at_the_beginning(mut self) -> Self {
        self.drops_space = self.tokenizer.adds_space();
        self
    }

    /// Takes a token; gives the text that can be shown now. Nothing after a stop string.
    #[must_use]
    pub fn push(&mut self, token: u32) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.tokenizer.push_bytes(token, &mut self.bytes);
        if self.drops_space && !self.bytes.is_empty() {
            self.drops_space = false;
            if self.bytes[0] == b' ' {
                self.bytes.remove(0);
            }
        }
        self.take_characters();
        self.release()
    }

    /// The rest of the text, when no more tokens come.
    #[must_use]
    pub fn finish(mut self) -> String {
        if self.stopped.is_some() {
            return String::new();
        }
        self.held.push_str(&String::from_utf8_lossy(&std::mem::take(&mut self.bytes)));
        let mut text = self.release();
        if self.stopped.is_none() {
            text.push_str(&self.held);
        }
        text
    }

    /// The stop string that was found.
    #[must_use]
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.map(|index| self.stops[index].as_str())
    }

    /// Moves whole characters from `bytes` to `held`.
    fn take_characters(&mut self) {
        let mut rest = self.bytes.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    self.held.push_str(text);
                    rest = &[];
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    self.held.push_str(&String::from_utf8_lossy(good));
                    rest = bad;
                    if let Some(len) = error.error_len() {
                        self.held.push(char::REPLACEMENT_CHARACTER);
                        rest = &rest[len..];
                        continue;
                    }
                }
            }
            break;
        }
        self.bytes = rest.to_vec();
    }

    /// What of `held` can be shown.
    fn release(&mut self) -> String {
        let found =
            self.stops.iter().enumerate().filter_map(|(index, stop)| Some((self.held.find(stop)?, index)));
        if let Some((at, index)) = found.min() {
            self.stopped = Some(index);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let may_begin = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest);
        let from = (first..self.held.len()).filter(|at| self.held.is_char_boundary(*at)).find(may_begin);
        let rest = self.held.split_off(from.unwrap_or(self.held.len()));
        std::mem::replace(&mut self.held, rest)
    }
}

#[cfg(test)]
impl Tokenizer {
    /// A tokenizer whose tokens are the 256 bytes, and these control tokens; the first of them is BOS.
    pub(crate) fn of_bytes(control: &[&str]) -> Self {
        use crate::{TokenKind, byte_level};
        use kbit_formats::gguf::{Array, Metadata, Value};
        let mut metadata = Metadata::new();
        let bytes = (0..=255u8).map(|byte| byte_level::to_text(&[byte]));
        let texts: Vec<String> = bytes.chain(control.iter().map(|text| (*text).to_owned())).collect();
        let kinds =
            (0..texts.len()).map(|id| if id < 256 { TokenKind::Normal } else { TokenKind::Control } as i32);
        metadata.insert("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds.collect())));
        metadata.insert("tokenizer.ggml.model", Value::String("gpt2".to_owned()));
        metadata.insert("tokenizer.ggml.pre", Value::String("gpt-2".to_owned()));
        metadata.insert("tokenizer.ggml.tokens", Value::Array(Array::String(texts)));
        metadata.insert("tokenizer.ggml.merges", Value::Array(Array::String(Vec::new())));
        metadata.insert("tokenizer.ggml.bos_token_id", Value::U32(256));
        metadata.insert("tokenizer.ggml.add_bos_token", Value::Bool(!control.is_empty()));
        Self::from_metadata(&metadata).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes() -> Tokenizer {
        Tokenizer::of_bytes(&[])
    }

    /// What a stream shows after each byte, and at the end.
    fn shown(text: &[u8], stops: &[&str]) -> (Vec<String>, Option<String>) {
        let tokenizer = bytes();
        let mut stream = tokenizer.stream(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut shown: Vec<String> = text.iter().map(|&byte| stream.push(u32::from(byte))).collect();
        let stopped = stream.stopped().map(str::to_owned);
        shown.push(stream.finish());
        (shown, stopped)
    }

    fn texts(text: &str, stops: &[&str]) -> Vec<String> {
        shown(text.as_bytes(), stops).0
    }

    #[test]
    fn a_character_comes_when_it_is_whole() {
        assert_eq!(texts("aé€", &[]), ["a", "", "é", "", "", "€", ""]);
    }

    #[test]
    fn bytes_that_are_no_character_do_not_hold_up_what_follows() {
        let (found, _) = shown(b"a\xffb\xe2\x82c\xf0\x9f", &[]);
        assert_eq!(found, ["a", "\u{fffd}", "b", "", "", "\u{fffd}c", "", "", "\u{fffd}"]);
    }

    #[test]
    fn a_stop_string_is_never_shown_in_part() {
        let (found, stopped) = shown(b"so END of", &["END"]);
        assert_eq!(found, ["s", "o", " ", "", "", "", "", "", "", ""]);
        assert_eq!(stopped.as_deref(), Some("END"));
    }

    #[test]
    fn what_only_begins_like_a_stop_string_is_shown_later() {
        assert_eq!(texts("EENx", &["END"]), ["", "E", "", "ENx", ""]);
        assert_eq!(texts("EN", &["END"]), ["", "", "EN"]);
        assert_eq!(texts("abab", &["abac", "b!"]), ["", "", "", "ab", "ab"]);
    }

    #[test]
    fn the_stop_string_that_is_whole_first_counts() {
        let (found, stopped) = shown(b"xabc", &["abc", "b", ""]);
        assert_eq!((found.concat(), stopped.as_deref()), ("xa".to_owned(), Some("b")));
    }

    #[test]
    fn a_stop_string_may_be_of_many_bytes() {
        let (found, stopped) = shown("né…".as_bytes(), &["é…"]);
        assert_eq!((found.concat(), stopped.as_deref()), ("n".to_owned(), Some("é…")));
    }

    proptest! {
        #[test]
        fn a_stream_gives_what_decoding_all_at_once_gives(text: Vec<u8>) {
            let (found, _) = shown(&text, &[]);
            prop_assert_eq!(found.concat(), String::from_utf8_lossy(&text));
            let tokens: Vec<u32> = text.iter().map(|&byte| u32::from(byte)).collect();
            prop_assert_eq!(bytes().decode_bytes(&tokens), text);
        }

        #[test]
        fn a_stream_ends_where_the_first_stop_string_begins(
            text in "[ab€]{0,20}", stops in prop::collection::vec("[ab€]{1,4}", 0..4),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let (found, stopped) = shown(text.as_bytes(), &stops);
            // The stop whose end comes first, of those the one that begins first.
            let ends = stops.iter().filter_map(|stop| text.find(stop).map(|at| (at + stop.len(), at)));
            match ends.min() {
                Some((_, at)) => prop_assert_eq!((found.concat(), stopped.is_some()), (text[..at].to_owned(), true)),
                None => prop_assert_eq!((found.concat(), stopped), (text, None)),
            }
        }
    }
}
