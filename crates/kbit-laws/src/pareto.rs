//! What no other beats in two quantities, both the smaller the better.

/// Keeps the items that no other beats in both `first` and `second`, by `first`.
pub(crate) fn keep_undominated<T>(items: &mut Vec<T>, first: impl Fn(&T) -> f64, second: impl Fn(&T) -> f64) {
    items.sort_by(|a, b| first(a).total_cmp(&first(b)).then(second(a).total_cmp(&second(b))));
    let mut best = f64::INFINITY;
    items.retain(|item| {
        let better = second(item) < best;
        best = best.min(second(item));
        better
    });
}
