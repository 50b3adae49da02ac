//! Ranges of numbers and of layers in rules.

use std::str::FromStr;

/// `8`, `4..`, `..4`, `4..8`: the end is not included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NumberRange {
    from: u64,
    before: Option<u64>,
}

impl NumberRange {
    pub(crate) const FORM: &'static str = "a number, or a range such as 4.. or 2..8";

    pub(crate) fn contains(self, value: u64) -> bool {
        value >= self.from && self.before.is_none_or(|end| value < end)
    }
}

impl FromStr for NumberRange {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| ());
        let Some((from, before)) = text.split_once("..") else {
            let value = number(text)?;
            return Ok(Self { from: value, before: Some(value.checked_add(1).ok_or(())?) });
        };
        let from = if from.trim().is_empty() { 0 } else { number(from)? };
        let before = if before.trim().is_empty() { None } else { Some(number(before)?) };
        Ok(Self { from, before })
    }
}

/// Some of `n` layers: `..1/8` (the first eighth), `7/8..`, `..4`, `1/8+2.. step 3`. A fraction is of `n`, rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerRange {
    from: Bound,
    before: Option<Bound>,
    step: u64,
}

impl LayerRange {
    pub(crate) const FORM: &'static str = "a range of layers such as ..1/8, 7/8.., ..4 or 1/8+2.. step 3";

    /// Whether it holds layer `index` of `layers`.
    pub(crate) fn contains(self, index: u64, layers: u64) -> bool {
        let from = self.from.of(layers);
        index >= from
            && self.before.is_none_or(|end| index < end.of(layers))
            && (index - from).is_multiple_of(self.step)
    }
}

impl FromStr for LayerRange {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (range, step) = match text.split_once(" step ") {
            Some((range, step)) => (range, step.trim().parse().ok().filter(|step| *step > 0).ok_or(())?),
            None => (text, 1),
        };
        let Some((from, before)) = range.split_once("..") else {
            let at: u64 = range.trim().parse().map_err(|_| ())?;
            let bound = |plus| Bound { numerator: 0, denominator: 1, plus };
            return Ok(Self { from: bound(at), before: Some(bound(at.checked_add(1).ok_or(())?)), step });
        };
        let from = if from.trim().is_empty() { "0" } else { from };
        let before = if before.trim().is_empty() { None } else { Some(before.parse()?) };
        Ok(Self { from: from.parse()?, before, step })
    }
}

/// `numerator / denominator` of all layers, rounded down, and `plus` more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    numerator: u64,
    denominator: u64,
    plus: u64,
}

impl Bound {
    fn of(self, layers: u64) -> u64 {
        (self.numerator.saturating_mul(layers) / self.denominator).saturating_add(self.plus)
    }
}

impl FromStr for Bound {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| text.trim().parse::<u64>().map_err(|_| ());
        let (fraction, plus) = match text.split_once('+') {
            Some((fraction, plus)) => (fraction, number(plus)?),
            None => (text, 0),
        };
        match fraction.split_once('/') {
            Some((numerator, denominator)) => {
                let denominator = Some(number(denominator)?).filter(|value| *value > 0).ok_or(())?;
                Ok(Self { numerator: number(numerator)?, denominator, plus })
            }
            None => Ok(Self {
                numerator: 0,
                denominator: 1,
                plus: number(fraction)?.checked_add(plus).ok_or(())?,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_numbers_leave_out_their_end() {
        for (text, inside, outside) in
            [("8", 8, 9), ("4..", 4, 3), ("..4", 3, 4), ("2..8", 7, 8), (" 1 .. 2 ", 1, 2)]
        {
            let range: NumberRange = text.parse().unwrap();
            assert!(range.contains(inside) && !range.contains(outside), "{text}");
        }
        for text in ["", "x", "1..x", "-1", "1...2"] {
            assert!(text.parse::<NumberRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn fractions_of_layers_round_down() {
        let range: LayerRange = "1/8..7/8".parse().unwrap();
        let held: Vec<u64> = (0..20).filter(|layer| range.contains(*layer, 20)).collect();
        assert_eq!(held, (2..17).collect::<Vec<_>>());
    }

    #[test]
    fn every_third_layer_counts_from_its_beginning() {
        let range: LayerRange = "1/8+2.. step 3".parse().unwrap();
        assert_eq!((0..16).filter(|layer| range.contains(*layer, 16)).collect::<Vec<_>>(), [4, 7, 10, 13]);
    }

    #[test]
    fn refuses_ranges_that_mean_nothing() {
        for text in ["", "a..", "1/0..", "..1/8 step 0", "..1/8 step", "1/8+..", "1//8.."] {
            assert!(text.parse::<LayerRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_layer_is_a_range() {
        let range: LayerRange = "3".parse().unwrap();
        assert!(range.contains(3, 8) && !range.contains(2, 8) && !range.contains(4, 8));
    }
}
