//! Sets of GGUF shards: what is written is read back, and one test a rejection.

use kbit_formats::gguf::shards::{parse_split_size, shard_path, shard_prefix};
use kbit_formats::gguf::{Gguf, GgufLayout, GgufWriter, Metadata, NewTensor, Split, Value, WriteOptions};
use kbit_formats::{Checkpoint, FormatError};
use kbit_types::GgmlType;
use std::path::{Path, PathBuf};

fn metadata() -> Metadata {
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", Value::String("llama".into()));
    metadata.insert("a.hash", Value::String("0000".into()));
    metadata
}

/// Tensors of 128, 64, 96, 32 bytes with padding.
fn tensors() -> Vec<NewTensor> {
    let tensor = |name: &str, dims: Vec<u64>| NewTensor { name: name.into(), dims, ty: GgmlType::F32 };
    vec![tensor("a", vec![8, 4]), tensor("b", vec![9]), tensor("c", vec![3, 7]), tensor("d", vec![1])]
}

fn layout(split: &Split) -> GgufLayout {
    GgufLayout::split(&metadata(), &tensors(), 32, split, false).unwrap()
}

fn write_set(folder: &Path, split: &Split) -> Vec<PathBuf> {
    let layout = layout(split);
    let writer = GgufWriter::create(&layout, &folder.join("x.gguf"), &WriteOptions::default()).unwrap();
    for index in 0..layout.tensor_count() {
        let bytes = usize::try_from(layout.tensor(index).unwrap().2).unwrap();
        writer.write_at(index, 0, &vec![u8::try_from(index).unwrap() + 1; bytes]).unwrap();
    }
    writer.patch_metadata_string("a.hash", None, "abcd").unwrap();
    writer.finish().unwrap()
}

fn counts(split: &Split) -> Vec<usize> {
    layout(split).shards().map(|(tensors, _)| tensors).collect()
}

#[test]
fn tensors_are_shared_out_by_padded_bytes_or_by_number() {
    assert_eq!(counts(&Split::Bytes(192)), [2, 2]);
    assert_eq!(counts(&Split::Bytes(191)), [1, 2, 1]);
    assert_eq!(counts(&Split::Bytes(1)), [1, 1, 1, 1]);
    assert_eq!(counts(&Split::Bytes(u64::MAX)), [4]);
    assert_eq!(counts(&Split::Tensors(3)), [3, 1]);
    assert_eq!(counts(&Split::Files(vec![0, 0, 2, 2])), [2, 0, 2]);
    let bare = GgufLayout::split(&metadata(), &tensors(), 32, &Split::Bytes(160), true).unwrap();
    assert_eq!(bare.shards().map(|(tensors, _)| tensors).collect::<Vec<_>>(), [0, 1, 2, 1]);
    assert!(GgufLayout::split(&metadata(), &tensors(), 32, &Split::Files(vec![1, 0, 1, 1]), false).is_err());
    assert!(GgufLayout::split(&metadata(), &tensors(), 32, &Split::Files(vec![0]), false).is_err());
}

#[test]
fn a_set_is_read_as_one_model() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write_set(folder.path(), &Split::Tensors(1));
    assert_eq!(paths.len(), 4);
    assert_eq!(paths[3], folder.path().join("x-00004-of-00004.gguf"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 4);
    let gguf = Gguf::open(&paths[0]).unwrap();
    let mut expected = metadata();
    expected.insert("a.hash", Value::String("abcd".into()));
    assert_eq!(gguf.metadata(), &expected);
    let names: Vec<_> = gguf.tensors().iter().map(|tensor| (tensor.name.as_str(), tensor.shard)).collect();
    assert_eq!(names, [("a", 0), ("b", 1), ("c", 2), ("d", 3)]);
    let maps = gguf.map().unwrap();
    let checkpoint = Checkpoint::open(&paths[0]).unwrap();
    for (index, tensor) in gguf.tensors().iter().enumerate() {
        let expected = vec![u8::try_from(index).unwrap() + 1; usize::try_from(tensor.bytes).unwrap()];
        let mut read = vec![0; expected.len()];
        gguf.read_at(tensor, 0, &mut read).unwrap();
        assert_eq!(read, expected);
        assert_eq!(maps.of(tensor).tensor(tensor), expected);
        checkpoint.read_at(checkpoint.tensor(&tensor.name).unwrap(), 0, &mut read).unwrap();
        assert_eq!(read, expected);
    }
    let metadata_of = |path: &Path| Gguf::open_file(path).unwrap().metadata().clone();
    let second = metadata_of(&paths[1]);
    let entries: Vec<_> = second.iter().map(|(key, value)| (key, value.clone())).collect();
    assert_eq!(
        entries,
        [("split.no", Value::U16(1)), ("split.tensors.count", Value::I32(4)), ("split.count", Value::U16(4))]
    );
    assert_eq!(metadata_of(&paths[0]).len(), 5);
}

fn refused(damage: impl FnOnce(&Path, &[PathBuf]), words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let paths = write_set(folder.path(), &Split::Tensors(2));
    damage(folder.path(), &paths);
    let error: FormatError = Gguf::open(&paths[0]).expect_err("it was accepted");
    let message = error.to_string();
    assert!(words.iter().all(|word| message.contains(word)), "{message}");
}

/// Writes another set beside the first and gives its paths.
fn other_set(folder: &Path, split: &Split, tensors: &[NewTensor]) -> Vec<PathBuf> {
    let other = folder.join("other");
    std::fs::create_dir(&other).unwrap();
    let layout = GgufLayout::split(&metadata(), tensors, 32, split, false).unwrap();
    let writer = GgufWriter::create(&layout, &other.join("x.gguf"), &WriteOptions::default()).unwrap();
    writer.finish().unwrap()
}

#[test]
fn names_a_missing_shard() {
    refused(
        |_, paths| std::fs::remove_file(&paths[1]).unwrap(),
        &["x-00001-of-00002", "x-00002-of-00002.gguf", "missing"],
    );
}

#[test]
fn names_a_shard_in_anothers_place() {
    refused(
        |_, paths| {
            std::fs::copy(&paths[0], &paths[1]).unwrap();
        },
        &["x-00002-of-00002", "is shard 1 of 2"],
    );
    refused(
        |folder, paths| {
            let other = other_set(folder, &Split::Tensors(1), &tensors());
            std::fs::copy(&other[1], &paths[1]).unwrap();
        },
        &["x-00002-of-00002", "is shard 2 of 4"],
    );
}

#[test]
fn names_a_shard_of_another_model() {
    refused(
        |folder, paths| {
            let other = other_set(folder, &Split::Tensors(2), &tensors()[..3]);
            std::fs::copy(&other[1], &paths[1]).unwrap();
        },
        &["x-00002-of-00002", "3 tensors", "4"],
    );
}

#[test]
fn names_a_whole_model_in_the_place_of_a_shard() {
    refused(
        |folder, paths| {
            let layout = GgufLayout::new(&metadata(), &tensors(), 32).unwrap();
            let whole = folder.join("whole.gguf");
            GgufWriter::create(&layout, &whole, &WriteOptions::default()).unwrap().finish().unwrap();
            std::fs::rename(whole, &paths[1]).unwrap();
        },
        &["x-00002-of-00002", "a model by itself"],
    );
}

fn patch(path: &Path, key: &str, type_id: u32, value: &[u8]) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap() + key.len();
    assert_eq!(bytes[at..at + 4], type_id.to_le_bytes());
    bytes[at + 4..at + 4 + value.len()].copy_from_slice(value);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn refuses_hostile_numbers() {
    refused(
        |_, paths| patch(&paths[0], "split.count", 2, &u16::MAX.to_le_bytes()),
        &["shard 1 of 65535", "rename"],
    );
    refused(
        |_, paths| patch(&paths[0], "split.tensors.count", 5, &(-1i32).to_le_bytes()),
        &["split.tensors.count"],
    );
    refused(
        |_, paths| {
            for path in paths {
                patch(path, "split.tensors.count", 5, &9i32.to_le_bytes());
            }
        },
        &["hold 4 tensors", "say 9"],
    );
}

#[test]
fn a_shard_that_is_not_the_first_names_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write_set(folder.path(), &Split::Tensors(2));
    let message = Gguf::open(&paths[1]).unwrap_err().to_string();
    assert!(message.contains("give the first") && message.contains("x-00001-of-00002.gguf"), "{message}");
    let renamed = folder.path().join("renamed.gguf");
    std::fs::rename(&paths[0], &renamed).unwrap();
    let message = Gguf::open(&renamed).unwrap_err().to_string();
    assert!(message.contains("renamed.gguf") && message.contains("NAME-00001-of-00002.gguf"), "{message}");
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let paths = write_set(folder.path(), &Split::Tensors(2));
    let mut bytes = std::fs::read(&paths[1]).unwrap();
    let entry = [&1u64.to_le_bytes()[..], b"c"].concat();
    let at = bytes.windows(entry.len()).position(|window| window == entry).unwrap();
    bytes[at + 8] = b'a';
    std::fs::write(&paths[1], bytes).unwrap();
    let message = Gguf::open(&paths[0]).unwrap_err().to_string();
    assert!(message.contains("tensor a") && message.contains("two shards"), "{message}");
}

#[test]
fn an_unfinished_set_leaves_nothing_and_an_existing_shard_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let layout = layout(&Split::Tensors(2));
    let path = folder.path().join("x.gguf");
    drop(GgufWriter::create(&layout, &path, &WriteOptions::default()).unwrap());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    let second = folder.path().join("x-00002-of-00002.gguf");
    std::fs::write(&second, "precious").unwrap();
    let message = GgufWriter::create(&layout, &path, &WriteOptions::default()).unwrap_err().to_string();
    assert!(message.contains("x-00002-of-00002.gguf") && message.contains("exists"), "{message}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    assert_eq!(std::fs::read(second).unwrap(), b"precious");
}

#[test]
fn resuming_takes_back_shards_that_were_renamed_already() {
    let folder = tempfile::tempdir().unwrap();
    let split = Split::Tensors(1);
    let expected: Vec<_> =
        write_set(folder.path(), &split).iter().map(|path| std::fs::read(path).unwrap()).collect();
    let paths = layout(&split).paths(&folder.path().join("x.gguf"));
    // As if the writer had been stopped after it renamed the last two.
    for path in &paths[..2] {
        std::fs::rename(path, format!("{}.kbit-partial", path.display())).unwrap();
    }
    let options = WriteOptions { overwrite: false, keep_partial: true };
    let layout = layout(&split);
    let writer = GgufWriter::resume(&layout, &folder.path().join("x.gguf"), &options).unwrap();
    assert!(!paths[3].exists());
    writer.patch_metadata_string("a.hash", None, "abcd").unwrap();
    let finished = writer.finish().unwrap();
    assert_eq!(finished.iter().map(|path| std::fs::read(path).unwrap()).collect::<Vec<_>>(), expected);
    assert!(GgufWriter::resume(&layout, &folder.path().join("x.gguf"), &options).is_err());
}

#[test]
fn sizes_are_decimal_as_llama_gguf_split_has_them() {
    for (text, bytes) in [
        ("4G", 4_000_000_000),
        ("500M", 500_000_000),
        ("2GiB", 2 << 30),
        ("3 MB", 3_000_000),
        ("64KiB", 1 << 16),
    ] {
        assert_eq!(parse_split_size(text), Ok(bytes));
    }
    for text in ["4", "0G", "-1G", "G", "", "99999999999999G", "1.5G"] {
        assert!(parse_split_size(text).is_err(), "{text}");
    }
}

#[test]
fn names_lead_to_their_prefix_and_back() {
    let path = shard_path(Path::new("dir/model"), 1, 12);
    assert_eq!(path, Path::new("dir/model-00002-of-00012.gguf"));
    assert_eq!(shard_prefix(&path, 1, 12), Some("dir/model".into()));
    assert_eq!(shard_prefix(&path, 0, 12), None);
    assert_eq!(shard_prefix(Path::new("dir/-00002-of-00012.gguf"), 1, 12), None);
}
