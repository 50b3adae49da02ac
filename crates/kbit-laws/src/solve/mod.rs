//! Solvers: linear least squares by QR, non-negative least squares, and Levenberg-Marquardt for Huber's loss; what a fit tells
//! beside its constants (bootstrap, errors of points left out, criteria) is the same for all of them.
//!
//! Everything runs in one thread in one order, so that a fit repeats to the last bit.

mod dense;
mod huber;
mod linear;
mod nonnegative;
mod random;
mod sample;

pub use dense::{condition, leverages};
pub use huber::{Curve, Huber};
pub use linear::{Linear, MAX_CONDITION};
pub use nonnegative::{NonNegative, nonnegative};
pub use random::Random;
pub use sample::{NORMAL, central, student, student_factor};

/// What a solver found.
#[derive(Clone, Debug)]
pub struct Solution {
    /// One number a constant, in the space of the solver.
    pub constants: Vec<f64>,
    /// Bootstrap: constants of every resample.
    pub draws: Vec<Vec<f64>>,
    /// Value of each point predicted without it; `None` where a point is needed for a constant.
    pub left_out: Option<Vec<f64>>,
    /// Value of each point predicted without its group; `None` where a group is needed for a constant.
    pub group_left_out: Option<Vec<f64>>,
    /// Condition number of the (linearised) features, scaled to unit length.
    pub condition: f64,
}

/// Resampling of a fit.
#[derive(Clone, Debug)]
pub struct Resampling<'a> {
    /// Resamples.
    pub draws: usize,
    /// Seed.
    pub seed: u64,
    /// Group of each point, for errors of groups left out: models.
    pub groups: &'a [usize],
}

impl Resampling<'_> {
    /// The points of every group but `group`.
    fn without(&self, group: usize) -> Vec<usize> {
        (0..self.groups.len()).filter(|point| self.groups[*point] != group).collect()
    }

    /// Number of groups.
    fn count(&self) -> usize {
        self.groups.iter().max().map_or(0, |last| last + 1)
    }
}
