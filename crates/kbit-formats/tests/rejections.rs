//! One test a rejection, and property tests: no damage to a valid file makes a reader panic or allocate without bound.

use kbit_formats::gguf::{Array, Gguf, GgufLayout, GgufWriter, Metadata, NewTensor, Value, WriteOptions};
use kbit_formats::hash::{Checksum, Sha256};
use kbit_formats::{Checkpoint, FormatError};
use kbit_types::GgmlType;
use proptest::prelude::*;
use std::path::{Path, PathBuf};

fn metadata() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", Value::String("llama".into()));
    metadata.insert("a.u8", Value::U8(200));
    metadata.insert("a.i64", Value::I64(-5));
    metadata.insert("a.f32", Value::F32(1e-5));
    metadata.insert("a.bool", Value::Bool(true));
    metadata
        .insert("a.strings", Value::Array(Array::String(vec!["x".into(), "größer".into(), String::new()])));
    metadata.insert("a.floats", Value::Array(Array::F64(vec![1.5, -2.0])));
    metadata.insert(
        "a.nested",
        Value::Array(Array::Nested(vec![Array::U16(vec![1, 2]), Array::Bool(vec![false])])),
    );
    metadata
}

fn tensors() -> Vec<NewTensor> {
    vec![
        NewTensor { name: "one".into(), dims: vec![3, 2], ty: GgmlType::F32 },
        NewTensor { name: "two".into(), dims: vec![64], ty: GgmlType::Q4_0 },
    ]
}

fn write(folder: &Path) -> PathBuf {
    let path = folder.join("x.gguf");
    let layout = GgufLayout::new(&metadata(), &tensors(), 32).unwrap();
    let writer = GgufWriter::create(&layout, &path, &WriteOptions::default()).unwrap();
    writer.write_at(0, 4, &[1; 20]).unwrap();
    writer.write_at(1, 0, &[2; 36]).unwrap();
    writer.finish().unwrap();
    path
}

fn valid() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::read(write(folder.path())).unwrap()
}

fn open_bytes(bytes: &[u8]) -> Result<Gguf, FormatError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

fn refused(bytes: &[u8], words: &str) {
    let message = open_bytes(bytes).expect_err("it was accepted").to_string();
    assert!(message.contains(words) && message.contains("x.gguf"), "{message}");
}

#[test]
fn what_is_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let gguf = Gguf::open(&write(folder.path())).unwrap();
    assert_eq!(gguf.metadata(), &metadata());
    assert_eq!(gguf.version(), 3);
    let names: Vec<_> = gguf.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.bytes)).collect();
    assert_eq!(names, [("one", 24), ("two", 36)]);
    let mut bytes = [9; 24];
    gguf.read_at(&gguf.tensors()[0], 0, &mut bytes).unwrap();
    assert_eq!(bytes[..5], [0, 0, 0, 0, 1]);
    assert!(gguf.read_at(&gguf.tensors()[0], 1, &mut bytes).is_err());
    assert_eq!(gguf.file_bytes() % 32, 0);
}

#[test]
fn rejects_every_truncation_of_the_header() {
    let bytes = valid();
    for length in 0..bytes.len() - 64 {
        assert!(open_bytes(&bytes[..length]).is_err(), "accepted {length} of {} bytes", bytes.len());
    }
}

#[test]
fn rejects_counts_that_the_file_cannot_hold() {
    for at in [8, 16] {
        let mut bytes = valid();
        bytes[at..at + 8].copy_from_slice(&(u64::MAX / 3).to_le_bytes());
        refused(&bytes, "cannot fit");
    }
}

#[test]
fn rejects_another_magic_version_or_byte_order() {
    let mut bytes = valid();
    bytes[4] = 9;
    refused(&bytes, "version 9");
    bytes[4] = 1;
    refused(&bytes, "version 1");
    bytes[4..8].copy_from_slice(&3u32.to_be_bytes());
    refused(&bytes, "big-endian");
    bytes[0] = b'X';
    refused(&bytes, "not a GGUF file");
}

fn position(bytes: &[u8], needle: &[u8]) -> usize {
    bytes.windows(needle.len()).position(|window| window == needle).unwrap()
}

#[test]
fn rejects_a_key_or_tensor_that_stands_twice() {
    let mut bytes = valid();
    let at = position(&bytes, b"a.u8");
    bytes[at..at + 4].copy_from_slice(b"a.u9");
    let other = position(&bytes, b"a.i64");
    assert!(open_bytes(&bytes).is_ok());
    bytes[other..other + 5].copy_from_slice(b"a.f32");
    refused(&bytes, "stands twice");
    let mut bytes = valid();
    let at = position(&bytes, b"two");
    bytes[at..at + 3].copy_from_slice(b"one");
    refused(&bytes, "stands twice");
}

#[test]
fn rejects_a_text_that_is_not_utf8() {
    let mut bytes = valid();
    let at = position(&bytes, b"llama");
    bytes[at] = 0xff;
    refused(&bytes, "UTF-8");
}

#[test]
fn rejects_tensor_past_end_of_file_misaligned_or_overlapping() {
    let bytes = valid();
    let entry = position(&bytes, b"two") + 3;
    // Axes (4), one axis (8), type (4), offset (8).
    let offset = entry + 16;
    for (value, words) in [
        (1u64 << 40, "past the end"),
        (33, "multiple of the alignment"),
        (0, "overlaps"),
        (u64::MAX - 31, "past the end"),
    ] {
        let mut bytes = bytes.clone();
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        refused(&bytes, words);
    }
    let mut apart = bytes.clone();
    apart[offset..offset + 8].copy_from_slice(&64u64.to_le_bytes());
    apart.extend([0; 32]);
    refused(&apart, "tensor one: it has 24 bytes, and 40 more stand before the next tensor, two");
    for (axis, words) in [(33u64, "blocks of 32"), (u64::MAX, "does not fit"), (1 << 60, "past the end")] {
        let mut bytes = bytes.clone();
        bytes[entry + 4..entry + 12].copy_from_slice(&axis.to_le_bytes());
        refused(&bytes, words);
    }
    let mut bytes = bytes.clone();
    bytes[entry + 12..entry + 16].copy_from_slice(&36u32.to_le_bytes());
    refused(&bytes, "unknown ggml type 36");
}

#[test]
fn rejects_arrays_nested_without_end() {
    let mut metadata = Metadata::new();
    let mut array = Array::U8(vec![1]);
    for _ in 0..6 {
        array = Array::Nested(vec![array]);
    }
    metadata.insert("deep", Value::Array(array));
    let layout = GgufLayout::new(&metadata, &[], 32).unwrap();
    refused(layout.header(), "deep");
}

#[test]
fn the_layout_refuses_names_that_ggml_cannot_read() {
    for (name, words) in [("n".repeat(64), "63 bytes"), (String::new(), "63 bytes")] {
        let tensor = NewTensor { name, dims: vec![1], ty: GgmlType::F32 };
        let error = GgufLayout::new(&Metadata::new(), &[tensor], 32).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn an_unfinished_writer_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let layout = GgufLayout::new(&metadata(), &tensors(), 32).unwrap();
    drop(GgufWriter::create(&layout, &path, &WriteOptions::default()).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_writer_never_replaces_a_file_unasked() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path());
    let layout = GgufLayout::new(&metadata(), &tensors(), 32).unwrap();
    let error = GgufWriter::create(&layout, &path, &WriteOptions::default()).unwrap_err();
    assert!(matches!(error, FormatError::Exists { .. }), "{error}");
    let overwrite = WriteOptions { overwrite: true, keep_partial: false };
    GgufWriter::create(&layout, &path, &overwrite).unwrap().finish().unwrap();
}

fn sha256() -> Checksum {
    Checksum::Sha256(Sha256::new())
}

#[test]
fn a_writer_resumes_only_its_own_layout() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let options = WriteOptions { overwrite: false, keep_partial: true };
    let layout = GgufLayout::new(&metadata(), &tensors(), 32).unwrap();
    let writer = GgufWriter::create(&layout, &path, &options).unwrap();
    writer.write_at(1, 0, &[7; 36]).unwrap();
    let hash = writer.tensor_checksum(1, sha256()).unwrap();
    drop(writer);
    let other = GgufLayout::new(&Metadata::new(), &tensors(), 32).unwrap();
    assert!(GgufWriter::resume(&other, &path, &options).is_err());
    let writer = GgufWriter::resume(&layout, &path, &options).unwrap();
    assert_eq!(writer.tensor_checksum(1, sha256()).unwrap(), hash);
    writer.finish().unwrap();
}

#[test]
fn patches_only_texts_of_the_same_length() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.gguf");
    let layout = GgufLayout::new(&metadata(), &tensors(), 32).unwrap();
    let writer = GgufWriter::create(&layout, &path, &WriteOptions::default()).unwrap();
    writer.patch_metadata_string("general.architecture", None, "gemma").unwrap();
    writer.patch_metadata_string("a.strings", Some(0), "y").unwrap();
    assert!(writer.patch_metadata_string("a.strings", Some(0), "yy").is_err());
    assert!(writer.patch_metadata_string("a.strings", Some(3), "").is_err());
    writer.finish().unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!(gguf.metadata().str("general.architecture").unwrap(), "gemma");
    assert_eq!(gguf.metadata().strings("a.strings").unwrap()[0], "y");
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn open_safetensors(bytes: &[u8]) -> Result<Checkpoint, FormatError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    std::fs::write(&path, bytes).unwrap();
    Checkpoint::open(&path)
}

const GOOD: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]}}"#;

#[test]
fn safetensors_lists_its_tensors() {
    let checkpoint = open_safetensors(&safetensors(GOOD, 12)).unwrap();
    assert_eq!(checkpoint.tensors().len(), 2);
    assert_eq!(checkpoint.tensor("b").unwrap().shape, [1, 2]);
}

#[test]
fn safetensors_rejections() {
    let cases: &[(&str, usize, &str)] = &[
        (GOOD, 11, "past the"),
        (GOOD, 13, "belong to no tensor"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4, "do not hold shape"),
        (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "do not hold shape"),
        (
            r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}"#,
            0,
            "do not hold shape",
        ),
        (r#"{"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}}"#, 4, "unknown"),
        (r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#, 8, "gap"),
        (
            r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            8,
            "twice",
        ),
        (
            r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#,
            8,
            "overlaps",
        ),
        (r#"{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#, 4, "not its JSON"),
        ("[1, 2", 0, "not its JSON"),
    ];
    for (header, data, words) in cases {
        let message = open_safetensors(&safetensors(header, *data)).expect_err(header).to_string();
        assert!(message.contains(words) && message.contains("m.safetensors"), "{header}: {message}");
    }
    let mut long = safetensors(GOOD, 12);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(open_safetensors(&long).unwrap_err().to_string().contains("cannot stand"));
    assert!(open_safetensors(&[1, 2, 3]).is_err());
}

#[test]
fn shards_must_agree_with_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    let index = |text: &str| write("model.safetensors.index.json", text.as_bytes());
    write("one.safetensors", &safetensors(GOOD, 12));
    index(r#"{"weight_map":{"a":"one.safetensors","b":"one.safetensors"}}"#);
    assert_eq!(Checkpoint::open(folder.path()).unwrap().tensors().len(), 2);
    for (text, words) in [
        (r#"{"weight_map":{"a":"one.safetensors"}}"#, "does not name"),
        (
            r#"{"weight_map":{"a":"one.safetensors","b":"one.safetensors","c":"one.safetensors"}}"#,
            "no shard holds",
        ),
        (r#"{"weight_map":{"a":"../one.safetensors"}}"#, "outside the folder"),
        (r#"{"weight_map":{"a":"/one.safetensors"}}"#, "outside the folder"),
        (r#"{"weight_map":{"a":"two.safetensors"}}"#, "two.safetensors"),
        (r#"{"weights":1}"#, "not an index"),
    ] {
        index(text);
        let message = Checkpoint::open(folder.path()).expect_err(text).to_string();
        assert!(message.contains(words), "{text}: {message}");
    }
}

#[test]
fn a_file_that_is_truncated_while_it_is_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.safetensors");
    std::fs::write(&path, safetensors(GOOD, 12)).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(20).unwrap();
    let error = checkpoint.read_at(&checkpoint.tensors()[0], 0, &mut [0; 8]).unwrap_err().to_string();
    assert!(error.contains("truncated"), "{error}");
}

proptest! {
    #[test]
    fn no_change_of_a_gguf_file_makes_the_reader_panic(changes in prop::collection::vec((0usize..700, any::<u8>()), 1..6)) {
        let mut bytes = valid();
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        if let Ok(gguf) = open_bytes(&bytes) {
            for tensor in gguf.tensors() {
                prop_assert!(tensor.offset + tensor.bytes <= gguf.file_bytes());
            }
        }
    }

    #[test]
    fn no_change_of_a_safetensors_file_makes_the_reader_panic(changes in prop::collection::vec((0usize..200, any::<u8>()), 1..6)) {
        let mut bytes = safetensors(GOOD, 12);
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
        }
        let _ = open_safetensors(&bytes);
    }
}
