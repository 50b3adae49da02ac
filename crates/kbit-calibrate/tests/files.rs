//! One test a rejection, and what is made of good files.

use kbit_calibrate::{
    Coverage, EmptyExperts, FileKind, Gathered, Importance, ImportanceMatrix, Policy, write,
};
use proptest::prelude::*;
use std::path::PathBuf;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn entries() -> Vec<Gathered> {
    vec![
        Gathered { name: "b.weight".into(), sums: vec![2.0, 6.0, 0.0, 3.0], counts: vec![2, 0] },
        Gathered { name: "a.weight".into(), sums: vec![1.0, 4.0, 9.0], counts: vec![3] },
    ]
}

fn gguf(folder: &Folder, entries: &[Gathered]) -> PathBuf {
    let path = folder.0.path().join("x.imatrix.gguf");
    write(&path, entries, &["one.txt".into(), "two.txt".into()], 7, 512, true).unwrap();
    path
}

/// A legacy file: entries of name, calls and values, then what follows.
fn dat(entries: &[(&str, i32, &[f32])], tail: &[u8]) -> Vec<u8> {
    let mut bytes = i32::try_from(entries.len()).unwrap().to_le_bytes().to_vec();
    for (name, calls, values) in entries {
        bytes.extend(i32::try_from(name.len()).unwrap().to_le_bytes());
        bytes.extend(name.as_bytes());
        bytes.extend(calls.to_le_bytes());
        bytes.extend(i32::try_from(values.len()).unwrap().to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }
    bytes.extend(tail);
    bytes
}

fn good_dat() -> Vec<u8> {
    let mut tail = 9i32.to_le_bytes().to_vec();
    tail.extend(4i32.to_le_bytes());
    tail.extend(b"text");
    dat(&[("a.weight", 4, &[2.0, 6.0]), ("b.weight", 0, &[0.5, 0.25, 1.0])], &tail)
}

fn refused(bytes: &[u8], words: &str) {
    let folder = Folder::new();
    let path = folder.file("x.dat", bytes);
    let message = ImportanceMatrix::open(&path).expect_err("it was accepted").to_string();
    assert!(message.contains(words) && message.contains("x.dat"), "{message}");
}

fn refused_entry(entry: Gathered, words: &str) {
    let folder = Folder::new();
    let message = ImportanceMatrix::open(&gguf(&folder, &[entry])).expect_err("it was accepted").to_string();
    assert!(message.contains(words) && message.contains("x.imatrix.gguf"), "{message}");
}

#[test]
fn gguf_sums_are_divided_by_the_count_of_their_expert() {
    let folder = Folder::new();
    let matrix = ImportanceMatrix::open(&gguf(&folder, &entries())).unwrap();
    assert_eq!((matrix.kind(), matrix.chunk_count(), matrix.chunk_size()), (FileKind::Gguf, 7, Some(512)));
    assert_eq!(matrix.datasets(), ["one.txt", "two.txt"]);
    assert_eq!(matrix.names().into_iter().collect::<Vec<_>>(), ["a.weight", "b.weight"]);
    let mut three = [0.0; 3];
    matrix.read("a.weight", 0, &mut three).unwrap();
    assert_eq!(three, [1.0 / 3.0, 4.0 / 3.0, 3.0]);
    let mut two = [0.0; 2];
    matrix.read("b.weight", 0, &mut two).unwrap();
    assert_eq!(two, [1.0, 3.0]);
    matrix.read("b.weight", 1, &mut two).unwrap();
    assert_eq!(two, [1.0, 1.0], "an expert without tokens counts as 1");
    assert!(matrix.read("b.weight", 2, &mut two).is_err());
    assert!(matrix.read("c.weight", 0, &mut two).is_err());
}

#[test]
fn one_count_for_a_stack_holds_for_all_its_slices() {
    let folder = Folder::new();
    let entry = Gathered { name: "s.weight".into(), sums: vec![2.0, 4.0, 6.0, 8.0], counts: vec![2] };
    let matrix = ImportanceMatrix::open(&gguf(&folder, &[entry])).unwrap();
    let mut two = [0.0; 2];
    matrix.read("s.weight", 1, &mut two).unwrap();
    assert_eq!(two, [3.0, 4.0]);
}

#[test]
fn legacy_values_are_divided_by_the_calls_unless_there_were_none() {
    let folder = Folder::new();
    let matrix = ImportanceMatrix::open(&folder.file("x.dat", &good_dat())).unwrap();
    assert_eq!((matrix.kind(), matrix.chunk_count(), matrix.chunk_size()), (FileKind::Legacy, 9, None));
    assert_eq!(matrix.datasets(), ["text"]);
    let mut two = [0.0; 2];
    matrix.read("a.weight", 0, &mut two).unwrap();
    assert_eq!(two, [0.5, 1.5]);
    let mut three = [0.0; 3];
    matrix.read("b.weight", 0, &mut three).unwrap();
    assert_eq!(three, [0.5, 0.25, 1.0]);
}

#[test]
fn legacy_files_without_chunks_or_text_are_read() {
    let folder = Folder::new();
    let entries: &[(&str, i32, &[f32])] = &[("a", 1, &[1.0])];
    for tail in [&[][..], &3i32.to_le_bytes(), &[3, 0, 0, 0, 0, 0, 0, 0]] {
        let matrix = ImportanceMatrix::open(&folder.file("x.dat", &dat(entries, tail))).unwrap();
        assert_eq!(matrix.chunk_count(), if tail.is_empty() { 0 } else { 3 });
        assert!(matrix.datasets().is_empty());
    }
}

#[test]
fn coverage_names_the_experts_without_data() {
    let folder = Folder::new();
    let matrix = ImportanceMatrix::open(&gguf(&folder, &entries())).unwrap();
    let importance = Importance { matrix, policy: Policy::default(), named: "x".into() };
    assert_eq!(importance.coverage("a.weight", 1, 3), Coverage::Full);
    assert_eq!(importance.coverage("b.weight", 2, 2), Coverage::Partial(vec![1]));
    assert_eq!(importance.coverage("b.weight", 1, 3), Coverage::OtherSize { found: 4 });
    assert_eq!(importance.coverage("c.weight", 1, 3), Coverage::Absent);
}

#[test]
fn an_expert_without_data_can_have_the_mean_of_the_others() {
    let folder = Folder::new();
    let entry = Gathered {
        name: "b.weight".into(),
        sums: vec![2.0, 6.0, 0.0, 0.0, 10.0, 2.0],
        counts: vec![2, 0, 6],
    };
    let matrix = ImportanceMatrix::open(&gguf(&folder, &[entry])).unwrap();
    let policy = Policy { empty_experts: EmptyExperts::Mean, ..Policy::default() };
    let importance = Importance { matrix, policy, named: "x".into() };
    let mut two = [0.0; 2];
    assert_eq!(importance.read("b.weight", 1, &mut two).unwrap(), 8);
    assert_eq!(two, [1.5, 1.0]);
    assert_eq!(importance.read("b.weight", 0, &mut two).unwrap(), 2);
    assert_eq!(two, [1.0, 3.0]);
}

#[test]
fn rejects_every_truncation_but_those_at_an_optional_field() {
    let bytes = good_dat();
    let optional = [bytes.len() - 12, bytes.len() - 8];
    for length in (0..bytes.len()).filter(|length| !optional.contains(length)) {
        let folder = Folder::new();
        assert!(
            ImportanceMatrix::open(&folder.file("x.dat", &bytes[..length])).is_err(),
            "accepted {length}"
        );
    }
}

#[test]
fn rejects_counts_and_lengths_that_the_file_cannot_hold() {
    for (at, words) in [(0, "entries cannot stand"), (4, "cannot have"), (20, "bytes of values")] {
        let mut bytes = good_dat();
        bytes[at..at + 4].copy_from_slice(&i32::MAX.to_le_bytes());
        refused(&bytes, words);
        bytes[at..at + 4].copy_from_slice(&(-1i32).to_le_bytes());
        refused(&bytes, "-1 cannot be");
    }
    refused(&dat(&[], &[]), "0 entries");
    refused(&dat(&[("a", 1, &[])], &[0; 16]), "no values");
    refused(&dat(&[("", 1, &[1.0])], &[0; 16]), "empty");
    let mut bytes = good_dat();
    bytes.push(0);
    refused(&bytes, "follow the last field");
}

#[test]
fn rejects_an_entry_that_stands_twice() {
    refused(&dat(&[("a", 1, &[1.0]), ("a", 1, &[1.0])], &[]), "stands twice");
}

#[test]
fn rejects_values_that_no_sum_of_squares_can_be() {
    for (value, words) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (-1.0, "-1")] {
        refused(&dat(&[("a", 1, &[1.0, value])], &[]), words);
        refused_entry(Gathered { name: "a".into(), sums: vec![1.0, value.into()], counts: vec![1] }, words);
    }
}

#[test]
fn rejects_counts_that_are_no_counts() {
    let folder = Folder::new();
    let path = gguf(&folder, &entries());
    let bytes = std::fs::read(&path).unwrap();
    // Counts of `a.weight` stand behind its sums.
    let sums: Vec<u8> = [1.0f32, 4.0, 9.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let at = bytes.windows(12).position(|window| window == sums).unwrap() + 32;
    assert_eq!(bytes[at..at + 4], 3f32.to_le_bytes());
    for (count, words) in [(f32::NAN, "NaN"), (-2.0, "-2"), (1e30, "expert 0"), (f32::INFINITY, "inf")] {
        let mut bytes = bytes.clone();
        bytes[at..at + 4].copy_from_slice(&f32::to_le_bytes(count));
        std::fs::write(&path, &bytes).unwrap();
        let message = ImportanceMatrix::open(&path).expect_err("it was accepted").to_string();
        assert!(message.contains("a.weight") && message.contains(words), "{message}");
    }
}

#[test]
fn rejects_half_an_entry_and_another_kind_of_gguf() {
    let folder = Folder::new();
    let path = gguf(&folder, &entries());
    let bytes = std::fs::read(&path).unwrap();
    for (from, to, words) in [
        ("a.weight.counts", "a.weight.countz", "a.weight.counts is missing"),
        ("imatrix.datasets", "imatrix.datasetz", "imatrix.datasets is missing"),
        ("imatrix.chunk_size", "imatrix.chunk_sizz", "imatrix.chunk_size is missing"),
    ] {
        let mut bytes = bytes.clone();
        let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let message = ImportanceMatrix::open(&path).expect_err("it was accepted").to_string();
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn refuses_to_write_sums_that_do_not_fit_their_counts() {
    let folder = Folder::new();
    let entry = Gathered { name: "a".into(), sums: vec![1.0; 3], counts: vec![1, 1] };
    assert!(write(&folder.0.path().join("x.gguf"), &[entry], &[], 1, 1, false).is_err());
    assert_eq!(std::fs::read_dir(folder.0.path()).unwrap().count(), 0);
}

proptest! {
    #[test]
    fn damage_never_makes_a_reader_panic(at in 0usize..400, byte: u8, legacy: bool, cut in 0usize..400) {
        let folder = Folder::new();
        let mut bytes = if legacy { good_dat() } else { std::fs::read(gguf(&folder, &entries())).unwrap() };
        let at = at % bytes.len();
        bytes[at] = byte;
        bytes.truncate(bytes.len().max(cut + 1) - cut);
        if let Ok(matrix) = ImportanceMatrix::open(&folder.file("damaged", &bytes)) {
            let names: Vec<(String, u64)> =
                matrix.entries().map(|(name, entry)| (name.to_owned(), entry.values())).collect();
            for (name, values) in names {
                let mut out = vec![0.0; usize::try_from(values).unwrap()];
                prop_assert!(matrix.read(&name, 0, &mut out).is_ok());
                prop_assert!(out.iter().all(|value| value.is_finite() && *value >= 0.0));
            }
        }
    }
}
