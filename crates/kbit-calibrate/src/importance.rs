//! An importance matrix with what holds where it has no data.

use crate::{CalibrateError, ImportanceMatrix};
use serde::Serialize;

/// What to do about tensors without an entry and experts without tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMissing {
    /// Go on and say so, as llama-quantize does.
    #[default]
    Warn,
    /// Stop before work starts.
    Error,
}

/// The importance of an expert that saw no token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum EmptyExperts {
    /// 1 for every column, as llama-quantize has it.
    #[default]
    Ones,
    /// The mean over all tokens that the other experts of the tensor saw.
    Mean,
}

/// Choices for what is missing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// Whether missing data stop the work.
    pub on_missing: OnMissing,
    /// The importance of experts without data.
    pub empty_experts: EmptyExperts,
}

/// How much is known about one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// The file has no entry.
    Absent,
    /// The entry belongs to a tensor of another size.
    OtherSize {
        /// Values in the file.
        found: u64,
    },
    /// There are data for every slice.
    Full,
    /// There are none for these slices.
    Partial(Vec<u64>),
}

/// An importance matrix with its policy.
#[derive(Debug)]
pub struct Importance {
    /// The data.
    pub matrix: ImportanceMatrix,
    /// What holds where there are none.
    pub policy: Policy,
    /// The file as it was named, which goes into the output's metadata.
    pub named: String,
}

impl Importance {
    /// How much is known about the tensor `name` of `slices` matrices of `cols` columns.
    #[must_use]
    pub fn coverage(&self, name: &str, slices: u64, cols: u64) -> Coverage {
        let Some(entry) = self.matrix.entry(name) else { return Coverage::Absent };
        if slices.checked_mul(cols) != Some(entry.values()) {
            return Coverage::OtherSize { found: entry.values() };
        }
        let empty: Vec<u64> = (0..slices).filter(|slice| entry.count_of(slice * cols) == Some(0)).collect();
        if empty.is_empty() { Coverage::Full } else { Coverage::Partial(empty) }
    }

    /// Mean squared inputs of slice `slice` of the tensor `name`, and how many tokens they were taken over (0 where the file
    /// does not tell). `out`: `[cols]`.
    ///
    /// # Errors
    /// When there is no such entry, the slice lies past its end, or the file cannot be read.
    pub fn read(&self, name: &str, slice: u64, out: &mut [f32]) -> Result<u64, CalibrateError> {
        let count = self.matrix.entry(name).and_then(|entry| entry.count_of(slice * out.len() as u64));
        if count == Some(0) && self.policy.empty_experts == EmptyExperts::Mean {
            return self.mean(name, out);
        }
        self.matrix.read(name, slice, out)?;
        Ok(count.unwrap_or(0))
    }

    /// The mean over all tokens of all slices; ones where there are none at all.
    #[expect(clippy::cast_possible_truncation, reason = "importance is single precision")]
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    fn mean(&self, name: &str, out: &mut [f32]) -> Result<u64, CalibrateError> {
        let slices = self.matrix.entry(name).map_or(0, |entry| entry.values() / (out.len() as u64).max(1));
        let mut sums = vec![0f64; out.len()];
        let mut total = 0;
        for slice in 0..slices {
            let count = self.matrix.entry(name).and_then(|entry| entry.count_of(slice * out.len() as u64));
            let Some(count) = count.filter(|count| *count > 0) else { continue };
            self.matrix.sums(name, slice, out)?;
            sums.iter_mut().zip(&*out).for_each(|(sum, value)| *sum += f64::from(*value));
            total += count;
        }
        for (out, sum) in out.iter_mut().zip(&sums) {
            *out = if total == 0 { 1.0 } else { (sum / total as f64) as f32 };
        }
        Ok(total)
    }
}
