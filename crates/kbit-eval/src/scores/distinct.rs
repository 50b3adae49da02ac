//! How varied texts are: distinct-n (Li et al., 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models").

use super::text::float;
use std::collections::HashSet;
use std::hash::Hash;

/// Different n-grams among all n-grams of some texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Distinct {
    /// Length of the n-grams.
    pub n: usize,
    /// Different n-grams.
    pub distinct: u64,
    /// All n-grams.
    pub total: u64,
    /// `distinct / total`; 0 without n-grams.
    pub value: f64,
}

/// distinct-n of texts that are given as tokens or words: n-grams do not reach from one text into the next.
///
/// ```
/// use kbit_eval::scores::distinct_n;
/// let found = distinct_n(&[vec!["a", "b", "a", "b"], vec!["a", "b"]], 2);
/// assert_eq!((found.distinct, found.total, found.value), (2, 4, 0.5));
/// ```
#[must_use]
pub fn distinct_n<T: Eq + Hash>(texts: &[Vec<T>], n: usize) -> Distinct {
    let mut seen: HashSet<&[T]> = HashSet::new();
    let mut total = 0;
    if n > 0 {
        for run in texts.iter().flat_map(|text| text.windows(n)) {
            seen.insert(run);
            total += 1;
        }
    }
    let distinct = seen.len() as u64;
    Distinct { n, distinct, total, value: if total > 0 { float(distinct) / float(total) } else { 0.0 } }
}
