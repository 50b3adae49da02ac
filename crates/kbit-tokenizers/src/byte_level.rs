//! GPT-2's alphabet: every byte has a printable character, so that tokens of a byte-level BPE are text.
//!
//! Printable Latin-1 bytes stand for themselves; the other 68, in order, are U+0100 and up (space is `Ġ`).
//! Source: `bytes_to_unicode` of OpenAI's GPT-2 `encoder.py`.

/// The character of each byte.
const CHARACTERS: [char; 256] = {
    let mut table = ['\0'; 256];
    let mut byte = 0u8;
    let mut next = 0x100u32;
    loop {
        table[byte as usize] = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => byte as char,
            _ => match char::from_u32(next) {
                Some(character) => {
                    next += 1;
                    character
                }
                None => '\0',
            },
        };
        if byte == 255 {
            break;
        }
        byte += 1;
    }
    table
};

/// The byte of each character below U+0144; 256 where there is none.
const BYTES: [u16; 0x144] = {
    let mut table = [256u16; 0x144];
    let mut byte = 0;
    while byte < 256 {
        table[CHARACTERS[byte] as usize] = byte as u16;
        byte += 1;
    }
    table
};

/// The bytes that a token's text stands for, or `None` where a character is not of the alphabet.
pub(crate) fn to_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| BYTES.get(c as usize).and_then(|&byte| u8::try_from(byte).ok())).collect()
}

/// The text of bytes in the alphabet.
pub(crate) fn to_text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| CHARACTERS[usize::from(byte)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        let text = to_text(&all);
        assert_eq!(text.chars().count(), 256);
        assert_eq!(to_bytes(&text), Some(all));
    }

    #[test]
    fn has_the_characters_of_gpt_2() {
        assert_eq!(to_text(b" \n\0\x7f\xadA"), "ĠĊĀġŃA");
    }

    #[test]
    fn a_character_outside_the_alphabet_is_none() {
        assert_eq!(to_bytes("a b"), None);
        assert_eq!(to_bytes("\u{2581}"), None);
    }
}
