//! Codebooks: sorted values, and the nearest of them.

/// Buckets of the table that starts the search.
const BUCKETS: usize = 1024;

/// Sorted distinct values in [-1, 1]; the code of a value is its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Codebook {
    values: Vec<f32>,
    /// `middles[i]` lies between values `i` and `i + 1`; what is not above it belongs to `i`.
    middles: Vec<f32>,
    /// For each bucket of [-1, 1], the code of its lower end.
    start: Vec<u8>,
}

impl Codebook {
    /// A codebook of `values` (at most 256, finite), sorted here; equal ones count once.
    #[must_use]
    pub fn new(mut values: Vec<f32>) -> Self {
        values.sort_by(f32::total_cmp);
        // -0 and 0 are one value.
        values.iter_mut().for_each(|value| *value += 0.0);
        values.dedup();
        values.truncate(256);
        let middles: Vec<f32> = values.windows(2).map(|pair| pair[0] + (pair[1] - pair[0]) / 2.0).collect();
        let start = (0..BUCKETS)
            .map(|bucket| {
                let low = bucket as f32 / (BUCKETS as f32 / 2.0) - 1.0;
                u8::try_from(middles.iter().take_while(|middle| **middle < low).count()).unwrap_or(u8::MAX)
            })
            .collect();
        Self { values, middles, start }
    }

    /// The values, ascending.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// Largest magnitude.
    #[must_use]
    pub fn largest(&self) -> f32 {
        self.values.iter().fold(0.0, |largest, value| value.abs().max(largest))
    }

    /// Code of the value nearest to `x`; of two equally near, the lower.
    #[must_use]
    pub fn nearest(&self, x: f32) -> u8 {
        // Values below -1 start at the first bucket, those above 1 at the last.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the table")]
        let bucket = (((x + 1.0) * (BUCKETS as f32 / 2.0)).clamp(0.0, (BUCKETS - 1) as f32)) as usize;
        let mut code = usize::from(self.start[bucket]);
        // The bucket of x may start a rounding error above x.
        while code > 0 && x <= self.middles[code - 1] {
            code -= 1;
        }
        while code < self.middles.len() && x > self.middles[code] {
            code += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 256 values")]
        {
            code as u8
        }
    }

    /// The value of `code`; codes past the last have its value.
    #[must_use]
    pub fn value(&self, code: u8) -> f32 {
        self.values.get(usize::from(code)).or(self.values.last()).copied().unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_nearest_value_is_found(mut values in prop::collection::vec(-1f32..=1.0, 1..40), x in -1.5f32..1.5) {
            values.push(1.0);
            let book = Codebook::new(values);
            let found = (book.value(book.nearest(x)) - x).abs();
            let best = book.values().iter().map(|value| (value - x).abs()).fold(f32::INFINITY, f32::min);
            // A middle is rounded to single precision.
            prop_assert!(found <= best + 1e-7);
        }
    }

    #[test]
    fn every_value_has_its_own_code() {
        let book = Codebook::new(vec![0.0, -1.0, -0.0, 0.25, 1.0]);
        assert_eq!(book.values(), [-1.0, 0.0, 0.25, 1.0]);
        for (code, value) in (0u8..).zip(book.values().to_vec()) {
            assert_eq!(book.nearest(value), code);
        }
    }
}
