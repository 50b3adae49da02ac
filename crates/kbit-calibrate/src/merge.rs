//! Several files of one model as one.

use crate::{CalibrateError, Entry, Gathered, ImportanceMatrix, Moments, SharedInput};
use std::collections::BTreeMap;

/// The sums of several files, which were gathered on the same model.
///
/// # Errors
/// When a file does not tell how many tokens it saw, cannot be read, or has an entry of another size than the others.
pub fn merge(files: &[ImportanceMatrix]) -> Result<Vec<Gathered>, CalibrateError> {
    let mut all: BTreeMap<String, Gathered> = BTreeMap::new();
    for file in files {
        for (name, entry) in file.entries() {
            let wrong = |reason: String| CalibrateError::Unmergeable {
                path: file.path().to_owned(),
                entry: name.to_owned(),
                reason,
            };
            let counts = counts(file, name)?;
            let mut sums = vec![0.0; usize::try_from(entry.values()).unwrap_or(usize::MAX)];
            file.sums(name, 0, &mut sums)?;
            let sums: Vec<f64> = sums.into_iter().map(f64::from).collect();
            let Some(known) = all.get_mut(name) else {
                let (name, counts) = (name.to_owned(), counts.to_vec());
                all.insert(name.clone(), Gathered { name, sums, counts });
                continue;
            };
            if (known.sums.len(), known.counts.len()) != (sums.len(), counts.len()) {
                return Err(wrong(format!(
                    "has {} sums and {} counts, in another file {} and {}",
                    sums.len(),
                    counts.len(),
                    known.sums.len(),
                    known.counts.len()
                )));
            }
            known.sums.iter_mut().zip(sums).for_each(|(sum, more)| *sum += more);
            known.counts.iter_mut().zip(counts).for_each(|(count, more)| *count += more);
        }
    }
    Ok(all.into_values().collect())
}

/// The inputs that all of the files have second moments of; none where a file has none at all.
///
/// # Errors
/// When files have second moments of other inputs than the first.
pub fn common_inputs(files: &[ImportanceMatrix]) -> Result<&[SharedInput], CalibrateError> {
    let [first, others @ ..] = files else { return Ok(&[]) };
    let inputs = first.moment_inputs();
    if files.iter().any(|file| file.moment_inputs().is_empty()) {
        return Ok(&[]);
    }
    for file in others {
        let odd = file.moment_inputs().iter().find(|input| !inputs.contains(input));
        let odd = odd.or_else(|| inputs.iter().find(|input| !file.moment_inputs().contains(input)));
        if let Some(input) = odd {
            return Err(CalibrateError::Unmergeable {
                path: file.path().to_owned(),
                entry: input.tensors.join(", "),
                reason: format!(
                    "(second moments of {} x {} columns) is not alike in {}",
                    input.slices,
                    input.cols,
                    first.path().display()
                ),
            });
        }
    }
    Ok(inputs)
}

/// Merges the second moments of `inputs`, which [`common_inputs`] has found: means over all tokens, each file counting by its own. `done`
/// gets those of each slice.
///
/// # Errors
/// When a file cannot be read or does not tell how many tokens it saw, or `done` fails.
pub fn merge_moments(
    files: &[ImportanceMatrix],
    inputs: &[SharedInput],
    mut done: impl FnMut(Moments<'_>) -> Result<(), CalibrateError>,
) -> Result<(), CalibrateError> {
    for (index, input) in inputs.iter().enumerate() {
        let tensor = &input.tensors[0];
        for slice in 0..input.slices {
            let count = |file| {
                // Heads share one count; experts have one each.
                let counts = counts(file, tensor)?;
                Ok(counts.get(slice).or(counts.first()).copied().unwrap_or(0))
            };
            let counts: Vec<u64> = files.iter().map(count).collect::<Result<_, CalibrateError>>()?;
            let all: u64 = counts.iter().sum();
            let mut means = vec![0f64; input.triangle()];
            for (file, count) in files.iter().zip(counts).filter(|(_, count)| *count > 0) {
                #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
                let share = count as f64 / all as f64;
                let mut rest = means.iter_mut();
                file.moment_rows(tensor, slice as u64, |_, row| {
                    // The row first: what it leaves of the others is not taken from them.
                    for (more, mean) in row.iter().zip(rest.by_ref()) {
                        *mean += share * f64::from(*more);
                    }
                })?;
            }
            #[expect(clippy::cast_possible_truncation, reason = "means in single precision")]
            let means: Vec<f32> = means.into_iter().map(|mean| mean as f32).collect();
            done(Moments { input: index, slice, means: &means })?;
        }
    }
    Ok(())
}

/// Tokens that the matrices of a tensor saw.
fn counts<'f>(file: &'f ImportanceMatrix, tensor: &str) -> Result<&'f [u64], CalibrateError> {
    file.entry(tensor).and_then(Entry::counts).ok_or_else(|| CalibrateError::Unmergeable {
        path: file.path().to_owned(),
        entry: tensor.to_owned(),
        reason: "says nothing of the tokens that it saw".to_owned(),
    })
}
