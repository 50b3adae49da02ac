//! White space as Python has it, and counting of sequences.

use std::collections::HashMap;
use std::hash::Hash;

/// True of what Python's `str.split` splits at: Unicode's white space and the four ASCII separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// The words of `text`, as Python's `text.split()`.
pub(super) fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(is_space).filter(|word| !word.is_empty())
}

/// How often each run of `n` items stands in `items`.
pub(super) fn counts<T: Eq + Hash>(items: &[T], n: usize) -> HashMap<&[T], u64> {
    let mut counts = HashMap::with_capacity(items.len());
    if n > 0 {
        for run in items.windows(n) {
            *counts.entry(run).or_insert(0) += 1;
        }
    }
    counts
}

/// How many runs of `n` items stand in `length` items.
pub(super) fn runs(length: usize, n: usize) -> u64 {
    (length + 1).saturating_sub(n) as u64
}

/// How many runs both have, each as often as the one that has it less often.
pub(super) fn matches<T: Eq + Hash>(left: &HashMap<&[T], u64>, right: &HashMap<&[T], u64>) -> u64 {
    left.iter().filter_map(|(run, &count)| right.get(run).map(|&other| count.min(other))).sum()
}

/// A count as a number to compute with.
#[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
pub(super) const fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_as_python_splits() {
        let found: Vec<&str> = words(" a\u{a0}b\u{1c}c\u{3000}\u{85}d\u{200b}e\t\n").collect();
        assert_eq!(found, ["a", "b", "c", "d\u{200b}e"]);
    }

    #[test]
    fn runs_are_counted_with_their_repetitions() {
        let items = ["a", "b", "a", "b"];
        let pairs = counts(&items, 2);
        assert_eq!((pairs[&["a", "b"][..]], pairs[&["b", "a"][..]]), (2, 1));
        assert_eq!((runs(4, 2), runs(1, 2), runs(0, 1)), (3, 0, 0));
        assert_eq!(matches(&pairs, &counts(&["a", "b", "c"], 2)), 1);
        assert!(counts(&items, 0).is_empty());
    }
}
