//! Loss over log2 of the total bits, with straight lines between model sizes.

use super::tested::Tested;

/// A model on a curve.
#[derive(Clone, Copy, Debug)]
struct Knot<'a> {
    model: &'a str,
    x: f64,
    loss: f64,
}

/// Models of one family of models under one scheme and bit width, by size.
#[derive(Clone, Debug, Default)]
pub struct Curve<'a> {
    knots: Vec<Knot<'a>>,
}

/// Two curves at the total bits of a model on one of them.
#[derive(Clone, Copy, Debug)]
pub struct Gap<'a> {
    pub model: &'a str,
    /// log2 of the total bits.
    pub x: f64,
    /// Loss of the first curve less that of the second.
    pub difference: f64,
}

impl<'a> Curve<'a> {
    pub fn of(tested: &[&Tested<'a>]) -> Self {
        let knots = tested.iter().map(|one| Knot { model: one.model, x: one.size, loss: one.loss });
        let mut knots: Vec<Knot<'a>> = knots.collect();
        knots.sort_by(|a, b| a.x.total_cmp(&b.x));
        Self { knots }
    }

    /// The loss at `x`, where the curve has models on both sides of it.
    fn at(&self, x: f64) -> Option<f64> {
        let after = self.knots.partition_point(|knot| knot.x < x);
        let right = self.knots.get(after)?;
        if right.x <= x {
            return Some(right.loss);
        }
        let left = &self.knots[after.checked_sub(1)?];
        Some(left.loss + (right.loss - left.loss) * (x - left.x) / (right.x - left.x))
    }

    /// This curve less `other` at the sizes of both. Straight lines lie above a curve that bends as losses do: at the sizes of one
    /// curve that is in the other's favour, at the other's sizes in this one's, so that it cancels.
    pub fn gaps(&self, other: &Self) -> Vec<Gap<'a>> {
        let own = self.knots.iter().filter_map(|knot| {
            Some(Gap { model: knot.model, x: knot.x, difference: knot.loss - other.at(knot.x)? })
        });
        let others = other.knots.iter().filter_map(|knot| {
            Some(Gap { model: knot.model, x: knot.x, difference: self.at(knot.x)? - knot.loss })
        });
        own.chain(others).collect()
    }

    /// Least-squares slope, in nats a doubling of the total bits; `None` of fewer than two sizes.
    #[expect(clippy::cast_precision_loss, reason = "a count of models")]
    pub fn slope(&self) -> Option<f64> {
        let n = self.knots.len() as f64;
        let mean = |of: fn(&Knot<'_>) -> f64| self.knots.iter().map(of).sum::<f64>() / n;
        let (x, y) = (mean(|knot| knot.x), mean(|knot| knot.loss));
        let squares: f64 = self.knots.iter().map(|knot| (knot.x - x).powi(2)).sum();
        let products: f64 = self.knots.iter().map(|knot| (knot.x - x) * (knot.loss - y)).sum();
        (squares > 0.0).then(|| products / squares)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(points: &[(&'static str, f64, f64)]) -> Curve<'static> {
        Curve { knots: points.iter().map(|(model, x, loss)| Knot { model, x: *x, loss: *loss }).collect() }
    }

    #[test]
    fn curves_are_compared_where_they_overlap_and_not_beyond() {
        let low = curve(&[("a", 10.0, 5.0), ("b", 12.0, 4.0), ("c", 14.0, 3.5)]);
        let high = curve(&[("a", 11.0, 5.0), ("b", 13.0, 4.25), ("c", 15.0, 4.0)]);
        let gaps: Vec<_> = high.gaps(&low).iter().map(|gap| (gap.model, gap.x, gap.difference)).collect();
        assert_eq!(gaps, [("a", 11.0, 0.5), ("b", 13.0, 0.5), ("b", 12.0, 0.625), ("c", 14.0, 0.625)]);
        assert_eq!(low.at(9.9), None);
        assert_eq!(low.at(14.0), Some(3.5));
        assert_eq!(low.at(14.1), None);
    }

    #[test]
    fn equal_bent_curves_have_no_gap_on_average() {
        let bent = |x: f64| 3.0 + 20.0 * (-0.4 * x).exp();
        let at = |shift: f64| {
            let knots = ["a", "b", "c", "d", "e"].iter().zip(0i32..);
            Curve {
                knots: knots
                    .map(|(model, i)| {
                        let x = f64::from(2 * i) + shift;
                        Knot { model, x, loss: bent(x) }
                    })
                    .collect(),
            }
        };
        let gaps = at(0.5).gaps(&at(0.0));
        let one_way: f64 = gaps[..4].iter().map(|gap| gap.difference).sum::<f64>() / 4.0;
        let both: f64 = gaps.iter().map(|gap| gap.difference).sum::<f64>() / gaps.len() as f64;
        assert!(both.abs() < one_way.abs() / 3.0, "{both} {one_way}");
    }
}
