//! What Dettmers and Zettlemoyer found (The case for 4-bit precision, arXiv 2212.09720), asked of any results.
//!
//! Each finding becomes an effect that is positive where the claim is true: mostly a difference of losses, in nats a token, between
//! results that differ in one thing. Where the claim is about equal total bits, curves of loss over log2 of the total bits are
//! compared, with straight lines between model sizes, as the paper has them. Differences are averaged by model, and models are drawn
//! anew for the interval, since more schemes of the same models say nothing about other models. Where the results cannot tell, the
//! finding says so, with the smallest effect that they could have shown, or with what was not measured.

mod correlation;
mod curve;
mod effect;
mod paper;
mod tested;

use kbit_results::Measurement;
use serde::{Serialize, Serializer};

/// What the results say of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The interval has nothing against the claim.
    Holds,
    /// The interval has nothing for the claim.
    DoesNotHold,
    /// The interval has both.
    NotDistinguishable,
    /// Results that it takes are missing.
    NotMeasured,
}

impl Verdict {
    /// The verdict in words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::DoesNotHold => "does not hold",
            Self::NotDistinguishable => "not distinguishable",
            Self::NotMeasured => "not measured",
        }
    }
}

impl Serialize for Verdict {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.words())
    }
}

/// What somebody claimed, and whether it holds in these results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The claim, in a sentence.
    pub claim: String,
    /// Where it was made.
    pub source: String,
    /// Whether it holds here.
    pub verdict: Verdict,
    /// What was computed to tell, in words, with its unit.
    pub statistic: String,
    /// Its value.
    pub value: Option<f64>,
    /// Its 95 % interval.
    pub interval: Option<(f64, f64)>,
    /// Paired comparisons behind all parts of the claim.
    pub comparisons: usize,
    /// Models that they are of.
    pub models: usize,
    /// The smallest effect that this much data shows in four of five cases, at 5 % false alarms.
    pub smallest_effect: Option<f64>,
    /// What else to know: the parts of the claim, and what was not measured.
    pub note: String,
}

/// Whether each finding of the paper holds in `measurements`; of several texts and arithmetics, the first counts. `seed` is that of
/// the resampling. Equal inputs give equal findings.
#[must_use]
pub fn findings(measurements: &[Measurement], seed: u64) -> Vec<Finding> {
    paper::findings(measurements, seed)
}
