//! `tokenizer.model`: SentencePiece's protobuf, as far as a vocabulary needs it.
//!
//! Source: `sentencepiece_model.proto`. Field 1 of the model is a piece (1 text, 2 score, 3 kind); field 2 the trainer's
//! settings, of which 3 is the kind of model; field 3 the normalizer's (2 its table of replacements, 3 whether text begins
//! with a space, 4 whether runs of spaces are one). All else is passed over. Every length is checked against what is left.

/// A piece of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    /// SentencePiece's number of its kind, which GGUF shares.
    pub kind: u64,
}

/// What kbit takes from the file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Model {
    pub pieces: Vec<Piece>,
    /// 1 unigram, 2 BPE, 3 words, 4 characters.
    pub kind: u64,
    /// `precompiled_charsmap`; empty where text stays as it is.
    pub charsmap: Vec<u8>,
    pub adds_space: bool,
    pub merges_spaces: bool,
}

/// Reads the file's bytes; the error says at which byte and what.
pub(super) fn parse(bytes: &[u8]) -> Result<Model, String> {
    let mut model =
        Model { pieces: Vec::new(), kind: 1, charsmap: Vec::new(), adds_space: true, merges_spaces: true };
    let mut reader = Reader { bytes, at: 0 };
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (1, Value::Bytes(piece, at)) => model.pieces.push(parse_piece(piece, at)?),
            (2, Value::Bytes(trainer, at)) => {
                let mut reader = Reader { bytes: trainer, at: 0 };
                while let Some((field, value)) = reader.field().map_err(|error| within(at, &error))? {
                    if let (3, Value::Number(kind)) = (field, value) {
                        model.kind = kind;
                    }
                }
            }
            (3, Value::Bytes(normalizer, at)) => {
                let mut reader = Reader { bytes: normalizer, at: 0 };
                while let Some((field, value)) = reader.field().map_err(|error| within(at, &error))? {
                    match (field, value) {
                        (2, Value::Bytes(charsmap, _)) => charsmap.clone_into(&mut model.charsmap),
                        (3, Value::Number(flag)) => model.adds_space = flag != 0,
                        (4, Value::Number(flag)) => model.merges_spaces = flag != 0,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(model)
}

fn parse_piece(bytes: &[u8], at: usize) -> Result<Piece, String> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: 1 };
    let mut reader = Reader { bytes, at: 0 };
    while let Some((field, value)) = reader.field().map_err(|error| within(at, &error))? {
        match (field, value) {
            (1, Value::Bytes(text, _)) => {
                let text =
                    std::str::from_utf8(text).map_err(|_| format!("at byte {at}: a piece is not UTF-8"))?;
                text.clone_into(&mut piece.text);
            }
            (2, Value::Fixed32(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Number(kind)) => piece.kind = kind,
            _ => {}
        }
    }
    if piece.score.is_nan() {
        return Err(format!("at byte {at}: the score of {:?} is not a number", piece.text));
    }
    Ok(piece)
}

fn within(at: usize, error: &str) -> String {
    format!("in the part from byte {at}: {error}")
}

enum Value<'b> {
    Number(u64),
    Fixed32(u32),
    /// The bytes, and where they begin.
    Bytes(&'b [u8], usize),
    Other,
}

struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Reader<'b> {
    /// The next field's number and value; `None` at the end.
    fn field(&mut self) -> Result<Option<(u64, Value<'b>)>, String> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let tag = self.number()?;
        let value = match tag & 7 {
            0 => Value::Number(self.number()?),
            1 => {
                self.take(8)?;
                Value::Other
            }
            2 => {
                let length = self.number()?;
                let length = usize::try_from(length).unwrap_or(usize::MAX);
                let bytes = self.take(length)?;
                Value::Bytes(bytes, self.at - bytes.len())
            }
            5 => {
                let bytes = self.take(4)?;
                Value::Fixed32(bytes.first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes)))
            }
            kind => return Err(format!("at byte {}: no field is of kind {kind}", self.at)),
        };
        Ok(Some((tag >> 3, value)))
    }

    fn number(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(format!("at byte {}: a number of more than 64 bits", self.at))
    }

    fn take(&mut self, length: usize) -> Result<&'b [u8], String> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..length) else {
            return Err(format!(
                "at byte {}: {length} bytes are announced and {} are left",
                self.at,
                rest.len()
            ));
        };
        self.at += length;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_pieces_and_the_kind_of_model() {
        let bytes = b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02\x0a\x03\x0a\x01a\x12\x02\x18\x02";
        let model = parse(bytes).unwrap();
        let unknown = Piece { text: "<unk>".to_owned(), score: 0.0, kind: 2 };
        assert_eq!(model.pieces, [unknown, Piece { text: "a".to_owned(), score: 0.0, kind: 1 }]);
        assert_eq!(model.kind, 2);
        assert!(model.adds_space && model.merges_spaces && model.charsmap.is_empty());
    }

    #[test]
    fn reads_the_normalizer() {
        let model = parse(b"\x1a\x07\x12\x01x\x18\x00\x20\x00").unwrap();
        assert_eq!(
            (model.charsmap.as_slice(), model.adds_space, model.merges_spaces),
            (b"x".as_slice(), false, false)
        );
    }

    #[test]
    fn rejects_a_length_past_the_end() {
        assert!(parse(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f").unwrap_err().contains("are left"));
        assert!(parse(b"\x0a\x05\x0a\x7fa").is_err());
    }

    #[test]
    fn rejects_a_number_of_more_than_64_bits() {
        assert!(parse(b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01").unwrap_err().contains("64 bits"));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
