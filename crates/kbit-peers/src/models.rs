//! Synthetic models: Llamas of normal weights whose rows are whole super-blocks, as GGUF in f32 or bf16 and as a Hugging
//! Face folder in bf16, with an importance matrix. Made once; the bytes repeat.

use crate::generate::{ImportanceKind, bf16_rounded};
use crate::random::Random;
use crate::{Result, in_context, say};
use kbit_formats::gguf::{Array, GgufLayout, GgufWriter, Metadata, NewTensor, Value, WriteOptions};
use kbit_types::GgmlType;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// The shape of a Llama.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What its files are called.
    pub name: &'static str,
    pub hidden: u32,
    pub feed_forward: u32,
    pub layers: u32,
    pub heads: u32,
    pub key_value_heads: u32,
    pub vocabulary: u32,
}

/// 302 million weights. Twenty layers, so that the mixes' rules about first and last layers have something to choose.
pub const LLAMA: Shape = Shape {
    name: "llama-300m",
    hidden: 1024,
    feed_forward: 2816,
    layers: 20,
    heads: 16,
    key_value_heads: 8,
    vocabulary: 32_000,
};

/// 1.1 billion weights: the blocks of Llama 3.2 1B, and a smaller vocabulary.
pub const LLAMA_1B: Shape = Shape {
    name: "llama-1b",
    hidden: 2048,
    feed_forward: 8192,
    layers: 16,
    heads: 32,
    key_value_heads: 8,
    vocabulary: 32_000,
};

/// A tensor under both names.
struct Tensor {
    /// In GGUF.
    gguf: String,
    /// In Hugging Face's checkpoint.
    hugging_face: String,
    rows: u32,
    /// 0 for a vector.
    cols: u32,
}

impl Tensor {
    fn elements(&self) -> u64 {
        u64::from(self.rows) * u64::from(self.cols.max(1))
    }
}

impl Shape {
    fn head(&self) -> u32 {
        self.hidden / self.heads
    }

    /// All tensors, in the order of llama.cpp's converter.
    fn tensors(&self) -> Vec<Tensor> {
        let tensor = |gguf: &str, hugging_face: &str, rows: u32, cols: u32| Tensor {
            gguf: format!("{gguf}.weight"),
            hugging_face: format!("{hugging_face}.weight"),
            rows,
            cols,
        };
        let (hidden, feed_forward) = (self.hidden, self.feed_forward);
        let key_value = self.key_value_heads * self.head();
        let mut tensors = vec![
            tensor("output", "lm_head", self.vocabulary, hidden),
            tensor("token_embd", "model.embed_tokens", self.vocabulary, hidden),
        ];
        for layer in 0..self.layers {
            for (gguf, hugging_face, rows, cols) in [
                ("attn_norm", "input_layernorm", hidden, 0),
                ("ffn_down", "mlp.down_proj", hidden, feed_forward),
                ("ffn_gate", "mlp.gate_proj", feed_forward, hidden),
                ("ffn_up", "mlp.up_proj", feed_forward, hidden),
                ("ffn_norm", "post_attention_layernorm", hidden, 0),
                ("attn_k", "self_attn.k_proj", key_value, hidden),
                ("attn_output", "self_attn.o_proj", hidden, hidden),
                ("attn_q", "self_attn.q_proj", hidden, hidden),
                ("attn_v", "self_attn.v_proj", key_value, hidden),
            ] {
                let (gguf, hugging_face) =
                    (format!("blk.{layer}.{gguf}"), format!("model.layers.{layer}.{hugging_face}"));
                tensors.push(tensor(&gguf, &hugging_face, rows, cols));
            }
        }
        tensors.push(tensor("output_norm", "model.norm", hidden, 0));
        tensors
    }

    /// `file_type` is llama.cpp's number.
    fn metadata(&self, file_type: u32) -> Metadata {
        let mut metadata = Metadata::new();
        let text = |text: &str| Value::String(text.to_owned());
        for (key, value) in [
            ("general.architecture", text("llama")),
            ("general.type", text("model")),
            ("general.name", text("Synthetic Llama")),
            ("llama.block_count", Value::U32(self.layers)),
            ("llama.context_length", Value::U32(2048)),
            ("llama.embedding_length", Value::U32(self.hidden)),
            ("llama.feed_forward_length", Value::U32(self.feed_forward)),
            ("llama.attention.head_count", Value::U32(self.heads)),
            ("llama.attention.head_count_kv", Value::U32(self.key_value_heads)),
            ("llama.rope.freq_base", Value::F32(10_000.0)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.vocab_size", Value::U32(self.vocabulary)),
            ("llama.rope.dimension_count", Value::U32(self.head())),
            ("general.file_type", Value::U32(file_type)),
            ("tokenizer.ggml.model", text("llama")),
            ("tokenizer.ggml.pre", text("default")),
        ] {
            metadata.insert(key, value);
        }
        let pieces = pieces(self.vocabulary);
        let tokens = pieces.iter().map(|piece| piece.text.clone()).collect();
        metadata.insert("tokenizer.ggml.tokens", Value::Array(Array::String(tokens)));
        let scores = pieces.iter().map(|piece| piece.score).collect();
        metadata.insert("tokenizer.ggml.scores", Value::Array(Array::F32(scores)));
        let kinds = pieces.iter().map(|piece| piece.kind).collect();
        metadata.insert("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
        for (key, id) in [("bos", 1), ("eos", 2), ("unknown", 0)] {
            metadata.insert(format!("tokenizer.ggml.{key}_token_id"), Value::U32(id));
        }
        metadata
    }

    /// The f32 GGUF file in `folder`; written unless it is there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn gguf(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("{}-f32.gguf", self.name));
        self.write_gguf(&path, GgmlType::F32, 0, |weights| {
            weights.iter().flat_map(|weight| weight.to_le_bytes()).collect()
        })?;
        Ok(path)
    }

    /// The GGUF file whose matrices are bf16, in `folder`; written unless it is there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn bf16_gguf(&self, folder: &Path) -> Result<PathBuf> {
        let path = folder.join(format!("{}-bf16.gguf", self.name));
        self.write_gguf(&path, GgmlType::BF16, 32, bf16_bytes)?;
        Ok(path)
    }

    /// `encode` gives the bytes of matrices' weights; vectors are f32.
    fn write_gguf(
        &self,
        path: &Path,
        ty: GgmlType,
        file_type: u32,
        encode: impl Fn(&[f32]) -> Vec<u8>,
    ) -> Result<()> {
        if path.exists() {
            return Ok(());
        }
        say(&format!("generating {}", path.display()));
        let tensors = self.tensors();
        let new: Vec<_> = tensors
            .iter()
            .map(|tensor| {
                let (name, rows) = (tensor.gguf.clone(), u64::from(tensor.rows));
                match tensor.cols {
                    0 => NewTensor { name, dims: vec![rows], ty: GgmlType::F32 },
                    cols => NewTensor { name, dims: vec![cols.into(), rows], ty },
                }
            })
            .collect();
        let failed = |error: kbit_formats::FormatError| error.to_string();
        let layout = GgufLayout::new(&self.metadata(file_type), &new, 32).map_err(failed)?;
        let options = WriteOptions { overwrite: true, keep_partial: false };
        let writer = GgufWriter::create(&layout, path, &options).map_err(failed)?;
        for (index, tensor) in tensors.iter().enumerate() {
            let mut offset = 0;
            pieces_of(tensor, index, |weights| {
                let bytes = match tensor.cols {
                    0 => weights.iter().flat_map(|weight| weight.to_le_bytes()).collect(),
                    _ => encode(weights),
                };
                writer.write_at(index, offset, &bytes).map_err(failed)?;
                offset += bytes.len() as u64;
                Ok(())
            })?;
        }
        writer.finish().map_err(failed)?;
        Ok(())
    }

    /// An importance matrix for every matrix, in llama.cpp's GGUF format; written unless it is there. `vocabulary` adds the
    /// embedding and the output, which llama-imatrix leaves out, for block types that cannot do without.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn imatrix(&self, folder: &Path, vocabulary: bool) -> Result<PathBuf> {
        let path = folder.join(format!("{}{}.imatrix", self.name, if vocabulary { "-all" } else { "" }));
        if path.exists() {
            return Ok(path);
        }
        fs::create_dir_all(folder).map_err(in_context(folder.display()))?;
        let mut metadata = Metadata::new();
        metadata.insert("general.type", Value::String("imatrix".into()));
        let datasets = Array::String(vec!["generated".into()]);
        metadata.insert("imatrix.datasets", Value::Array(datasets));
        metadata.insert("imatrix.chunk_count", Value::U32(4));
        metadata.insert("imatrix.chunk_size", Value::U32(512));
        let (mut new, mut values) = (Vec::new(), Vec::new());
        for (index, tensor) in self.tensors().into_iter().enumerate() {
            let is_end = tensor.gguf == "output.weight" || tensor.gguf == "token_embd.weight";
            if tensor.cols == 0 || is_end && !vocabulary {
                continue;
            }
            let mut random = Random::new(&[300, index as u64, 1]);
            let count = 2048f32;
            let sums = ImportanceKind::MeanSquares.columns(&mut random, tensor.cols as usize);
            let sums: Vec<f32> = sums.iter().map(|mean| mean * count).collect();
            for (part, dims, data) in
                [("in_sum2", vec![u64::from(tensor.cols), 1], sums), ("counts", vec![1, 1], vec![count])]
            {
                new.push(NewTensor { name: format!("{}.{part}", tensor.gguf), dims, ty: GgmlType::F32 });
                values.push(data);
            }
        }
        let failed = |error: kbit_formats::FormatError| error.to_string();
        let layout = GgufLayout::new(&metadata, &new, 32).map_err(failed)?;
        let options = WriteOptions { overwrite: true, keep_partial: false };
        let writer = GgufWriter::create(&layout, &path, &options).map_err(failed)?;
        for (index, data) in values.iter().enumerate() {
            let bytes: Vec<u8> = data.iter().flat_map(|value| value.to_le_bytes()).collect();
            writer.write_at(index, 0, &bytes).map_err(failed)?;
        }
        writer.finish().map_err(failed)?;
        Ok(path)
    }

    /// The bf16 Hugging Face folder in `folder`; written unless it is there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn hugging_face(&self, folder: &Path) -> Result<PathBuf> {
        let model = folder.join(format!("{}-bf16", self.name));
        if model.exists() {
            return Ok(model);
        }
        say(&format!("generating {}", model.display()));
        let partial = folder.join(format!("{}-bf16.partial", self.name));
        if partial.exists() {
            fs::remove_dir_all(&partial).map_err(in_context(partial.display()))?;
        }
        fs::create_dir_all(&partial).map_err(in_context(partial.display()))?;
        self.write_hugging_face(&partial)?;
        fs::rename(&partial, &model).map_err(in_context(model.display()))?;
        Ok(model)
    }

    fn write_hugging_face(&self, folder: &Path) -> Result<()> {
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            fs::write(&path, bytes).map_err(in_context(path.display()))
        };
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.feed_forward,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head(),
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "tie_word_embeddings": false,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        });
        put("config.json", format!("{config:#}\n").as_bytes())?;
        let tokenizer = serde_json::json!({
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "add_bos_token": true,
        });
        put("tokenizer_config.json", format!("{tokenizer:#}\n").as_bytes())?;
        put("tokenizer.model", &sentencepiece(self.vocabulary))?;

        // safetensors: tensors by name, as Hugging Face's writer has them.
        let mut tensors: Vec<(usize, Tensor)> = self.tensors().into_iter().enumerate().collect();
        tensors.sort_by(|(_, a), (_, b)| a.hugging_face.cmp(&b.hugging_face));
        let mut header = serde_json::Map::new();
        header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
        let mut offset = 0;
        for (_, tensor) in &tensors {
            let end = offset + 2 * tensor.elements();
            let shape = if tensor.cols == 0 { vec![tensor.rows] } else { vec![tensor.rows, tensor.cols] };
            let entry = serde_json::json!({"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]});
            header.insert(tensor.hugging_face.clone(), entry);
            offset = end;
        }
        let mut header = serde_json::Value::Object(header).to_string();
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let path = folder.join("model.safetensors");
        let io = in_context(path.display());
        let mut out = BufWriter::with_capacity(1 << 20, File::create(&path).map_err(&io)?);
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(&io)?;
        out.write_all(header.as_bytes()).map_err(&io)?;
        for (index, tensor) in &tensors {
            pieces_of(tensor, *index, |weights| out.write_all(&bf16_bytes(weights)).map_err(&io))?;
        }
        out.flush().map_err(&io)
    }
}

/// Weights as bf16.
fn bf16_bytes(weights: &[f32]) -> Vec<u8> {
    weights.iter().flat_map(|weight| ((bf16_rounded(*weight).to_bits() >> 16) as u16).to_le_bytes()).collect()
}

/// Hands the weights of a tensor to `take`, in pieces: normal with deviation 0.02, and 1 for norms.
fn pieces_of(tensor: &Tensor, index: usize, mut take: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
    const PIECE: u64 = 1 << 18;
    let mut random = Random::new(&[300, index as u64]);
    let mut left = tensor.elements();
    while left > 0 {
        let count = left.min(PIECE);
        let weights: Vec<f32> = (0..count)
            .map(|_| if tensor.cols == 0 { 1.0 } else { (random.normal() * 0.02) as f32 })
            .collect();
        take(&weights)?;
        left -= count;
    }
    Ok(())
}

/// A piece of a SentencePiece vocabulary.
struct Piece {
    text: String,
    score: f32,
    /// SentencePiece's and GGUF's number: 1 normal, 2 unknown, 3 control, 6 byte.
    kind: i32,
}

/// Control tokens, all bytes, then words of four letters, which need not be reachable by merges.
fn pieces(count: u32) -> Vec<Piece> {
    let piece = |text: &str, score: f32, kind: i32| Piece { text: text.to_owned(), score, kind };
    let mut pieces = vec![piece("<unk>", 0.0, 2), piece("<s>", 0.0, 3), piece("</s>", 0.0, 3)];
    pieces.extend((0..=255).map(|byte| piece(&format!("<0x{byte:02X}>"), 0.0, 6)));
    let letters = ('a'..='z').chain(['\u{2581}']).map(|letter| letter.to_string());
    let words = (0..26u32.pow(4)).map(|word| {
        let letter = |place: u32| char::from(b'a' + (word / 26u32.pow(place) % 26) as u8);
        [3, 2, 1, 0].map(letter).iter().collect::<String>()
    });
    let normal = letters.chain(words).zip(0..).map(|(text, rank)| piece(&text, -(rank as f32), 1));
    let room = (count as usize).saturating_sub(pieces.len());
    pieces.extend(normal.take(room));
    pieces.truncate(count as usize);
    pieces
}

/// A SentencePiece model file (`sentencepiece_model.proto`): a byte-pair vocabulary with byte fallback.
fn sentencepiece(count: u32) -> Vec<u8> {
    let mut model = Vec::new();
    for piece in pieces(count) {
        let mut entry = Vec::new();
        bytes_field(&mut entry, 1, piece.text.as_bytes());
        entry.push(2 << 3 | 5);
        entry.extend(piece.score.to_le_bytes());
        number_field(&mut entry, 3, piece.kind as u64);
        bytes_field(&mut model, 1, &entry);
    }
    let mut trainer = Vec::new();
    number_field(&mut trainer, 3, 2);
    number_field(&mut trainer, 4, count.into());
    number_field(&mut trainer, 35, 1);
    bytes_field(&mut model, 2, &trainer);
    let mut normalizer = Vec::new();
    bytes_field(&mut normalizer, 1, b"identity");
    for (field, value) in [(3, 1), (4, 0), (5, 1)] {
        number_field(&mut normalizer, field, value);
    }
    bytes_field(&mut model, 3, &normalizer);
    model
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn number_field(out: &mut Vec<u8>, field: u64, value: u64) {
    varint(out, field << 3);
    varint(out, value);
}

fn bytes_field(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::{LLAMA, LLAMA_1B, Shape, pieces, sentencepiece};
    use kbit_formats::Checkpoint;
    use kbit_formats::gguf::Gguf;

    const TINY: Shape = Shape {
        name: "tiny",
        hidden: 256,
        feed_forward: 512,
        layers: 2,
        heads: 4,
        key_value_heads: 2,
        vocabulary: 300,
    };

    #[test]
    fn models_have_as_many_weights_as_their_names_say_in_rows_of_super_blocks() {
        for (shape, expected) in [(LLAMA, 295_000_000..310_000_000), (LLAMA_1B, 1_000_000_000..1_200_000_000)]
        {
            let tensors = shape.tensors();
            let weights: u64 = tensors.iter().map(super::Tensor::elements).sum();
            assert!(expected.contains(&weights), "{}: {weights}", shape.name);
            assert!(tensors.iter().all(|tensor| tensor.cols.is_multiple_of(256)));
        }
    }

    #[test]
    fn models_repeat_and_can_be_read() {
        let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
        let files = folders.each_ref().map(|folder| {
            let gguf = TINY.gguf(folder.path()).expect("a file");
            let halves = TINY.bf16_gguf(folder.path()).expect("a file");
            let imatrix = TINY.imatrix(folder.path(), false).expect("a file");
            let model = TINY.hugging_face(folder.path()).expect("a folder");
            let file = Gguf::open(&gguf).expect("GGUF");
            assert_eq!(file.tensors().len(), 2 + 9 * 2 + 1);
            // Two tensors for each of seven matrices a layer.
            assert_eq!(Gguf::open(&imatrix).expect("GGUF").tensors().len(), 2 * 7 * 2);
            let checkpoint = Checkpoint::open(&model).expect("a checkpoint");
            assert_eq!(checkpoint.tensors().len(), file.tensors().len());
            let (all, halved) = (file.tensors(), Gguf::open(&halves).expect("GGUF"));
            for (tensor, half) in all.iter().zip(halved.tensors()) {
                let expected = if tensor.dims.len() == 1 { tensor.bytes } else { tensor.bytes / 2 };
                assert_eq!((&tensor.name, expected), (&half.name, half.bytes));
            }
            [gguf, halves, imatrix, model.join("model.safetensors"), model.join("tokenizer.model")]
                .map(|path| std::fs::read(path).expect("bytes"))
        });
        assert!(files[0] == files[1]);
    }

    #[test]
    fn the_vocabulary_is_full_and_distinct() {
        let pieces = pieces(32_000);
        let mut texts: Vec<_> = pieces.iter().map(|piece| &piece.text).collect();
        texts.sort();
        texts.dedup();
        assert_eq!(texts.len(), 32_000);
        assert!(sentencepiece(300).starts_with(&[0x0A]));
    }
}
