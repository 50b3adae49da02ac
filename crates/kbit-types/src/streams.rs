/// How many bytes behind what is read of each of several [`streams`] memory is asked for. Further ahead, what has come is driven out
/// of the nearest cache again.
pub const STREAM_AHEAD: usize = 512;

/// Groups of `side_by_side` rows, or of all if there are fewer, for products with one activation: each group's first row, and how many
/// rows lie from one of its rows to the next.
///
/// The groups one after another read memory as that many streams, each in its order: a CPU fetches more of several streams ahead than
/// of one. Rows lie an odd number apart, lest all streams fall on the same lines of a cache where the bytes of a row are a high power
/// of two. What is left are groups of neighbours; the last one is that of the last rows, of which some may have been in others.
///
/// ```
/// use kbit_types::streams;
/// assert!(streams(12, 4).eq([(0, 3), (1, 3), (2, 3)])); // Rows 0, 3, 6, 9, and so on.
/// assert!(streams(18, 4).eq([(0, 3), (1, 3), (2, 3), (12, 1), (14, 1)]));
/// assert!(streams(3, 4).eq([(0, 1)]));
/// ```
pub fn streams(rows: usize, side_by_side: usize) -> impl Iterator<Item = (usize, usize)> {
    let side_by_side = side_by_side.min(rows).max(1);
    let apart = (rows / side_by_side).saturating_sub(1) | usize::from(rows > 0);
    let rest = (apart * side_by_side..rows).step_by(side_by_side);
    (0..apart)
        .map(move |first| (first, apart))
        .chain(rest.map(move |first| (first.min(rows - side_by_side), 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_in_a_group() {
        for rows in 0..70 {
            for side_by_side in [1, 2, 4, 16] {
                let mut seen = vec![0; rows];
                for (first, apart) in streams(rows, side_by_side) {
                    (0..side_by_side.min(rows)).for_each(|row| seen[first + row * apart] += 1);
                }
                assert!(
                    seen.iter().all(|times| (1..=2).contains(times)),
                    "{rows} rows by {side_by_side}: {seen:?}"
                );
            }
        }
    }
}
