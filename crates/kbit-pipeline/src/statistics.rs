//! How far written weights are from their source: relative mean squared error, largest error, cosine.

use serde::{Deserialize, Serialize};

/// Sums over weights; merged in a fixed order so that figures do not depend on the thread count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSums {
    count: u64,
    source: f64,
    written: f64,
    product: f64,
    error: f64,
    largest: f32,
}

/// Error of one written tensor against its source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorError {
    /// `sum((w' - w)^2) / sum(w^2)`; 0 where the tensor is all zeros and was kept so.
    pub relative_mse: f64,
    /// Largest `|w' - w|`.
    pub max_error: f64,
    /// Cosine of the angle between source and written weights; 1 where both are zero.
    pub cosine: f64,
    /// Weights compared.
    pub count: u64,
}

/// Lanes of the sums: a fixed order of additions that the compiler can vectorise.
const LANES: usize = 8;

impl ErrorSums {
    /// The sums over `source` and `written`, of equal length. Every instruction set gives the same figures.
    #[must_use]
    pub fn of(source: &[f32], written: &[f32]) -> Self {
        pulp::Arch::new().dispatch(|| Self::of_lanes(source, written))
    }

    /// [`ErrorSums::of`], compiled for each instruction set.
    #[inline(always)]
    fn of_lanes(source: &[f32], written: &[f32]) -> Self {
        let mut sums = [[0f64; LANES]; 4];
        let mut largest = [0f32; LANES];
        let mut add = |lane: usize, w: f32, v: f32| {
            let (w64, v64) = (f64::from(w), f64::from(v));
            let difference = v64 - w64;
            sums[0][lane] += w64 * w64;
            sums[1][lane] += v64 * v64;
            sums[2][lane] += w64 * v64;
            sums[3][lane] += difference * difference;
            largest[lane] = largest[lane].max((v - w).abs());
        };
        let (source_lanes, source_rest) = source.as_chunks::<LANES>();
        let (written_lanes, written_rest) = written.as_chunks::<LANES>();
        for (w, v) in source_lanes.iter().zip(written_lanes) {
            for lane in 0..LANES {
                add(lane, w[lane], v[lane]);
            }
        }
        for (w, v) in source_rest.iter().zip(written_rest) {
            add(0, *w, *v);
        }
        let [source_sum, written_sum, product, error] = sums.map(|lanes| lanes.iter().sum());
        Self {
            count: source.len() as u64,
            source: source_sum,
            written: written_sum,
            product,
            error,
            largest: largest.iter().copied().fold(0.0, f32::max),
        }
    }

    /// Adds the sums of further weights.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.source += other.source;
        self.written += other.written;
        self.product += other.product;
        self.error += other.error;
        self.largest = self.largest.max(other.largest);
    }

    /// The figures.
    #[must_use]
    pub fn finish(&self) -> TensorError {
        let norms = (self.source * self.written).sqrt();
        TensorError {
            relative_mse: if self.error == 0.0 { 0.0 } else { self.error / self.source },
            max_error: f64::from(self.largest),
            cosine: if norms > 0.0 {
                (self.product / norms).min(1.0)
            } else {
                f64::from(u8::from(self.error == 0.0))
            },
            count: self.count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_weights_have_no_error() {
        let weights: Vec<f32> = (0..100u8).map(|i| f32::from(i).sin()).collect();
        let error = ErrorSums::of(&weights, &weights).finish();
        assert_eq!((error.relative_mse, error.max_error, error.count), (0.0, 0.0, 100));
        assert!((error.cosine - 1.0).abs() < 1e-12);
    }

    #[test]
    fn known_figures() {
        let mut sums = ErrorSums::of(&[3.0, 4.0], &[3.0, 3.0]);
        sums.merge(&ErrorSums::of(&[0.0], &[2.0]));
        let error = sums.finish();
        assert!((error.relative_mse - 5.0 / 25.0).abs() < 1e-12);
        assert!((error.max_error - 2.0).abs() < 1e-12);
        assert!((error.cosine - 21.0 / (25f64 * 22.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn zeros_kept_as_zeros_are_exact() {
        let error = ErrorSums::of(&[0.0; 4], &[0.0; 4]).finish();
        assert_eq!((error.relative_mse, error.cosine), (0.0, 1.0));
    }
}
