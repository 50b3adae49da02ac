//! Gathering with the engine, on small models of random weights.
#![expect(clippy::print_stdout, reason = "what the tests share says what it skipped")]

#[path = "../../kbit-engine/tests/common/mod.rs"]
mod common;

use common::{Plain, model, random_tensors, small, tokens, with_threads};
use kbit_calibrate::{
    GatherOptions, Gathered, Gatherer, ImportanceMatrix, MomentGatherer, Moments, MomentsFile, Saved,
    common_inputs, merge, merge_moments, write,
};
use kbit_engine::{Description, Model};
use kbit_types::Codec;
use std::sync::Arc;

const OPTIONS: GatherOptions = GatherOptions { context: 24, bos: None, output: false };

/// A matrix of so many rows.
fn plain(rows: usize, data: Vec<f32>) -> Vec<Arc<dyn Codec>> {
    vec![Arc::new(Plain::new(rows, data.len() / rows, data))]
}

fn gather(model: &Model, options: GatherOptions, windows: &[&[u32]]) -> Vec<Gathered> {
    let mut gatherer = Gatherer::new(model, options);
    for windows in windows.chunks(gatherer.together()) {
        gatherer.add(windows).unwrap();
    }
    gatherer.gathered()
}

fn of<'g>(gathered: &'g [Gathered], name: &str) -> &'g Gathered {
    gathered.iter().find(|entry| entry.name == name).unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn the_first_inputs_are_normalised_embeddings() {
    let description = small();
    let mut tensors = random_tensors(&description, 1, true);
    let hidden = description.hidden;
    let table = common::noise(description.vocab * hidden, 3);
    tensors.insert("token_embd.weight".to_owned(), plain(description.vocab, table.clone()));
    let norm: Vec<f32> = (0..hidden).map(|column| 0.5 + column as f32 / 64.0).collect();
    tensors.insert("blk.0.attn_norm.weight".to_owned(), plain(1, norm.clone()));
    let model = model(&description, &tensors);
    let text = tokens(&description, 48, 5);
    let windows: Vec<&[u32]> = text.chunks(24).collect();
    let options = GatherOptions { bos: Some(1), ..OPTIONS };
    let found = gather(&model, options, &windows);

    let mut expected = vec![0.0; hidden];
    for window in &windows {
        for (place, token) in window.iter().enumerate() {
            let token = if place == 0 { 1 } else { *token as usize };
            let row = &table[token * hidden..][..hidden];
            let mean: f64 = row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / hidden as f64;
            let scale = 1.0 / (mean + f64::from(description.norm.epsilon)).sqrt();
            for ((sum, x), weight) in expected.iter_mut().zip(row).zip(&norm) {
                *sum += (f64::from(*x) * scale * f64::from(*weight)).powi(2);
            }
        }
    }
    for part in ["attn_q", "attn_k", "attn_v"] {
        let entry = of(&found, &format!("blk.0.{part}.weight"));
        assert_eq!(entry.counts, [48]);
        for (column, (sum, expected)) in entry.sums.iter().zip(&expected).enumerate() {
            // The engine normalises in single precision.
            assert!((sum / expected - 1.0).abs() < 1e-5, "{part}, column {column}: {sum}, not {expected}");
        }
    }
    assert!(found.iter().all(|entry| entry.name.starts_with("blk.")));
}

#[test]
fn what_was_saved_goes_on_with_the_same_figures_on_any_number_of_threads() {
    let description = small();
    let model = model(&description, &random_tensors(&description, 1, true));
    let text = tokens(&description, 24 * 50, 7);
    let windows: Vec<&[u32]> = text.chunks(24).collect();
    let whole = gather(&model, OPTIONS, &windows);
    assert_eq!(whole, with_threads(3, || gather(&model, OPTIONS, &windows)));

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.partial");
    let mut first = Gatherer::new(&model, OPTIONS);
    let together = first.together();
    first.add(&windows[..together]).unwrap();
    let saved =
        Saved { key: String::new(), windows: together as u64, gathered: first.gathered(), half: None };
    saved.write(&path).unwrap();
    let mut second = Gatherer::new(&model, OPTIONS);
    second.resume(Saved::read(&path).unwrap().gathered);
    for windows in windows[together..].chunks(together) {
        second.add(windows).unwrap();
    }
    assert_eq!(second.gathered(), whole);
}

#[test]
fn the_output_matrix_is_gathered_on_request() {
    let description = Description { tied_output: false, ..small() };
    let model = model(&description, &random_tensors(&description, 1, true));
    let text = tokens(&description, 240, 7);
    let windows: Vec<&[u32]> = text.chunks(24).collect();
    let found = gather(&model, GatherOptions { output: true, ..OPTIONS }, &windows);
    assert_eq!(of(&found, "output.weight").counts, [240]);
    let without: Vec<Gathered> = found.into_iter().filter(|entry| entry.name != "output.weight").collect();
    assert_eq!(without, gather(&model, OPTIONS, &windows));
}

#[test]
fn activations_that_are_not_finite_are_refused_by_name() {
    let description = small();
    let mut tensors = random_tensors(&description, 1, true);
    let hidden = description.hidden;
    let mut table = common::noise(description.vocab * hidden, 3);
    table[5 * hidden + 2] = f32::NAN;
    tensors.insert("token_embd.weight".to_owned(), plain(description.vocab, table));
    let model = model(&description, &tensors);
    let mut gatherer = Gatherer::new(&model, OPTIONS);
    gatherer.add(&[&[1; 24]]).unwrap();
    let before = gatherer.gathered();
    let message = gatherer.add(&[&[5; 24]]).unwrap_err().to_string();
    assert!(message.contains("blk.0.attn_q.weight") && message.contains("not finite"), "{message}");
    assert_eq!(gatherer.gathered(), before);
}

#[test]
fn files_of_other_sizes_cannot_be_merged() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, sums: &[f64], counts: &[u64]| {
        let path = folder.path().join(name);
        let entry = Gathered { name: "blk.0.a.weight".into(), sums: sums.to_vec(), counts: counts.to_vec() };
        write(&path, &[entry], &["t".into()], 1, 24, true).unwrap();
        ImportanceMatrix::open(&path).unwrap()
    };
    let (a, b) = (file("a.gguf", &[1.0, 2.0], &[3]), file("b.gguf", &[0.5, 4.0], &[1]));
    let sum = merge(&[a, b]).unwrap();
    assert_eq!((sum[0].sums.as_slice(), sum[0].counts.as_slice()), (&[1.5, 6.0][..], &[4][..]));
    let (a, c) = (file("a.gguf", &[1.0, 2.0], &[3]), file("c.gguf", &[1.0, 2.0, 3.0], &[3]));
    let message = merge(&[a, c]).unwrap_err().to_string();
    assert!(message.contains("c.gguf") && message.contains("same model"), "{message}");
}

#[test]
fn merged_second_moments_are_those_of_all_windows() {
    let description = small();
    let model = model(&description, &random_tensors(&description, 1, true));
    let text = tokens(&description, 24 * 30, 5);
    let windows: Vec<&[u32]> = text.chunks(24).collect();
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, windows: &[&[u32]]| {
        let path = folder.path().join(name);
        let gatherer = MomentGatherer::new(&model, OPTIONS).unwrap();
        let inputs = gatherer.inputs().to_vec();
        let file = MomentsFile::create(&path, &inputs, &["t".into()], 1, 24, false).unwrap();
        let gathered = gatherer.gather(windows, |_| (), |moments| file.write(&moments)).unwrap();
        file.finish(&gathered).unwrap();
        ImportanceMatrix::open(&path).unwrap()
    };
    let all = file("all.gguf", &windows);
    let parts = [file("a.gguf", &windows[..7]), file("b.gguf", &windows[7..])];
    let inputs = common_inputs(&parts).unwrap().to_vec();
    assert_eq!(inputs, all.moment_inputs());
    let mut found = 0;
    let merged = |moments: Moments<'_>| {
        let input = &inputs[moments.input];
        let whole = all.read_moments(&input.tensors[0], moments.slice as u64).unwrap();
        let largest = whole.iter().fold(0f32, |largest, mean| largest.max(mean.abs()));
        let rows = (0..input.cols).flat_map(|row| whole[row * input.cols..][..=row].iter());
        for (mean, expected) in moments.means.iter().zip(rows) {
            // Three roundings to single precision.
            assert!((mean - expected).abs() < 1e-6 * largest, "{:?}: {mean}, {expected}", input.tensors);
        }
        found += 1;
        Ok(())
    };
    merge_moments(&parts, &inputs, merged).unwrap();
    assert_eq!(found, inputs.iter().map(|input| input.slices).sum::<usize>());

    // A file without second moments, and one with those of other inputs.
    let plain = folder.path().join("plain.gguf");
    write(&plain, &gather(&model, OPTIONS, &windows), &["t".into()], 1, 24, false).unwrap();
    let [a, b] = parts;
    assert!(common_inputs(&[a, ImportanceMatrix::open(&plain).unwrap()]).unwrap().is_empty());
    let some = folder.path().join("some.gguf");
    let file = MomentsFile::create(&some, &inputs[1..], &["t".into()], 1, 24, false).unwrap();
    let kept = |entry: &Gathered| inputs[1..].iter().any(|input| input.tensors.contains(&entry.name));
    let gathered: Vec<Gathered> = gather(&model, OPTIONS, &windows);
    let fewer: Vec<Gathered> = gathered.iter().filter(|entry| kept(entry)).cloned().collect();
    file.finish(&fewer).unwrap();
    let message = common_inputs(&[b, ImportanceMatrix::open(&some).unwrap()]).unwrap_err().to_string();
    assert!(message.contains("some.gguf") && message.contains(&inputs[0].tensors[0]), "{message}");
    let file = MomentsFile::create(&some, &inputs[1..], &["t".into()], 1, 24, true).unwrap();
    let message = file.finish(&gathered).unwrap_err().to_string();
    assert!(message.contains("no second moments"), "{message}");
}

#[test]
fn second_moments_come_back_from_their_file_as_whole_matrices() {
    let description = small();
    let model = model(&description, &random_tensors(&description, 1, true));
    let text = tokens(&description, 24 * 30, 5);
    let windows: Vec<&[u32]> = text.chunks(24).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("moments.gguf");
    let gatherer = MomentGatherer::new(&model, OPTIONS).unwrap();
    let inputs = gatherer.inputs().to_vec();
    let file = MomentsFile::create(&path, &inputs, &["t.txt".to_owned()], 30, 24, false).unwrap();
    let gathered = gatherer.gather(&windows, |_| (), |moments| file.write(&moments)).unwrap();
    assert!(!path.exists());
    file.finish(&gathered).unwrap();
    assert_eq!(gathered, gather(&model, OPTIONS, &windows));

    let matrix = ImportanceMatrix::open(&path).unwrap();
    assert_eq!(matrix.moments_count(), gathered.len());
    for input in &inputs {
        let cols = input.cols;
        for tensor in &input.tensors {
            assert!(matrix.has_moments(tensor, 1, cols as u64));
            assert!(!matrix.has_moments(tensor, 1, cols as u64 + 1));
            let moments = matrix.read_moments(tensor, 0).unwrap();
            let entry = of(&gathered, tensor);
            // Of keys and values, tokens count as far as they are attended to.
            let all_alike = !tensor.ends_with("attn_k.weight") && !tensor.ends_with("attn_v.weight");
            for a in 0..cols {
                let mean = entry.sums[a] / entry.counts[0] as f64;
                let ratio = f64::from(moments[a * cols + a]) / mean;
                assert!(!all_alike || (ratio - 1.0).abs() < 1e-5, "{tensor}, column {a}: {ratio}");
                for b in 0..cols {
                    assert_eq!(moments[a * cols + b].to_bits(), moments[b * cols + a].to_bits());
                    let bound = (moments[a * cols + a] * moments[b * cols + b]).sqrt();
                    assert!(moments[a * cols + b].abs() <= bound * 1.000_1, "{tensor}: {a}, {b}");
                }
            }
            let message = matrix.read_moments(tensor, 1).unwrap_err().to_string();
            assert!(message.contains(tensor) && message.contains("slice 1"), "{message}");
        }
    }
    let message = matrix.read_moments("output.weight", 0).unwrap_err().to_string();
    assert!(message.contains("output.weight"), "{message}");
}

#[test]
fn moments_of_values_are_those_of_what_heads_gather() {
    let description = Description { kv_heads: 1, ..small() };
    let mut tensors = random_tensors(&description, 1, true);
    // What a bias adds is felt by all alike, and no product.
    for layer in 0..2 {
        let _ = tensors.remove(&format!("blk.{layer}.attn_v.bias"));
    }
    let model = model(&description, &tensors);
    let text = tokens(&description, 1400, 5);
    let folder = tempfile::tempdir().unwrap();
    // Windows that go through the model together, and such as are longer than a batch.
    for context in [24, 700] {
        let options = GatherOptions { context, ..OPTIONS };
        let windows: Vec<&[u32]> = text.chunks_exact(context).collect();
        let path = folder.path().join(format!("{context}.gguf"));
        let gatherer = MomentGatherer::new(&model, options).unwrap();
        let inputs = gatherer.inputs().to_vec();
        let alone = |name: &str| inputs.iter().any(|input| input.tensors == [name]);
        assert!(["q", "k", "v"].iter().all(|kind| alone(&format!("blk.1.attn_{kind}.weight"))), "{inputs:?}");
        let file = MomentsFile::create(&path, &inputs, &["t.txt".to_owned()], 1, 24, false).unwrap();
        let gathered = gatherer.gather(&windows, |_| (), |moments| file.write(&moments)).unwrap();
        file.finish(&gathered).unwrap();
        let matrix = ImportanceMatrix::open(&path).unwrap();
        for layer in 0..2 {
            // What the output matrix is multiplied with is the values matrix times what heads gathered.
            let name = format!("blk.{layer}.attn_v.weight");
            let (hidden, width) = (description.hidden, description.value_width());
            let mut values = vec![0.0; width * hidden];
            tensors[&name][0].decode(0..width as u64, &mut values, hidden).unwrap();
            let moments = matrix.read_moments(&name, 0).unwrap();
            let sum: f64 = values
                .chunks(hidden)
                .map(|row| {
                    let at = |a: usize, b: usize| {
                        f64::from(row[a]) * f64::from(moments[a * hidden + b]) * f64::from(row[b])
                    };
                    (0..hidden)
                        .flat_map(|a| (0..hidden).map(move |b| (a, b)))
                        .map(|(a, b)| at(a, b))
                        .sum::<f64>()
                })
                .sum();
            let output = of(&gathered, &format!("blk.{layer}.attn_output.weight"));
            let expected: f64 = output.sums.iter().map(|sum| sum / output.counts[0] as f64).sum();
            let found = description.heads as f64 * sum;
            // Products in single precision, of 40 columns and up to 700 positions.
            assert!(
                (found / expected - 1.0).abs() < 1e-4,
                "layer {layer}, windows of {context}: {found}, {expected}"
            );
        }
    }
}
