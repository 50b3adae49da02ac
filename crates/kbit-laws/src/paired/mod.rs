//! Is one better than the other, or can that not be told? Paired comparisons of models and schemes, item by item.
//!
//! Two schemes measured on the same windows or documents share what is hard in each of them, so the difference item by item is
//! known far better than either figure. [`Sample`] holds such differences; [`compare`] finds them in the records of runs.

mod compare;
mod sample;

pub use compare::{
    CompareError, CompareOptions, Compared, Comparisons, Side, Source, Text, Verdict, compare,
    lower_is_better,
};
pub use sample::{Interval, Paired, Sample, Tested, holm};
