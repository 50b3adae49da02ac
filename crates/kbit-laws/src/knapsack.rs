//! The multiple-choice knapsack: of each group one item, so that the costs of all are least within a budget of bytes, or the bytes
//! least within a limit of costs.
//!
//! Solved exactly (Kellerer, Pferschy and Pisinger, "Knapsack Problems", 2004, chapter 11). Lagrange's relaxation, whose multiplier
//! is found by bisection, gives a bound that no choice beats, and a first choice. Against it every item has a penalty: what the
//! total is at least above the bound if that item is taken. Items whose penalty alone makes them worse than the first choice are
//! dropped. What is left is searched group by group, keeping of all partial choices those that no other beats in both bytes and costs;
//! partial choices whose penalties together are too large go too. Sizes of tensors repeat from layer to layer, so that many partial choices
//! have equal bytes, of which one stays.
//!
//! Where more than [`MOST_STATES`] partial choices would be kept, those with the least penalties stay; [`Packing::exact`] is false
//! then, and [`Packing::bound`] still is what no choice beats.
//!
//! ```
//! use kbit_laws::knapsack::{Item, least_cost};
//!
//! let layer = [Item { bytes: 4, cost: 3.0 }, Item { bytes: 8, cost: 0.5 }];
//! let packing = least_cost(&[layer.to_vec(), layer.to_vec()], 13)?;
//! assert_eq!((packing.bytes, packing.cost), (12, 3.5));
//! # Ok::<(), kbit_laws::knapsack::Impossible>(())
//! ```

use crate::pareto::keep_undominated;

/// Partial choices that are kept in memory at most, of 32 bytes each.
pub const MOST_STATES: usize = 1 << 22;

/// Relative error of sums of some thousand numbers, with room: nothing is dropped that is worse by less.
const ROUNDING: f64 = 1e-12;

/// One way to store a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Item {
    /// Its bytes.
    pub bytes: u64,
    /// What it costs; finite.
    pub cost: f64,
}

/// A choice of one item a group.
#[derive(Clone, Debug, PartialEq)]
pub struct Packing {
    /// Index of the item, for each group.
    pub chosen: Vec<usize>,
    /// Bytes of all.
    pub bytes: u64,
    /// Costs of all.
    pub cost: f64,
    /// No choice has less of what was minimised.
    pub bound: f64,
    /// Whether none has less than this one.
    pub exact: bool,
}

/// Why there is no choice.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Impossible {
    /// A group has nothing to choose from.
    #[error("group {group} has no items; give it one")]
    Empty {
        /// Its index.
        group: usize,
    },
    /// A cost is no number.
    #[error("an item of group {group} costs {cost}; costs must be finite")]
    NotFinite {
        /// Index of the group.
        group: usize,
        /// The cost.
        cost: f64,
    },
    /// Even the least of every group is too much.
    #[error("the least of every group comes to {least}, and {limit} is the limit; raise it")]
    Limit {
        /// The sum of the least.
        least: f64,
        /// The limit.
        limit: f64,
    },
}

/// The choice with the least costs whose bytes are at most `budget`; bytes of all groups together stay below 2^53.
///
/// # Errors
/// A group without items, costs that are not finite, or a budget that nothing fits.
pub fn least_cost(groups: &[Vec<Item>], budget: u64) -> Result<Packing, Impossible> {
    pack(
        groups,
        |item| Point { weight: float(item.bytes), value: item.cost },
        float(budget),
        0.0,
        MOST_STATES,
    )
}

/// The choice with the fewest bytes whose costs are at most `most`; bytes of all groups together stay below 2^53.
///
/// # Errors
/// A group without items, costs that are not finite, or a limit that nothing keeps to.
pub fn least_bytes(groups: &[Vec<Item>], most: f64) -> Result<Packing, Impossible> {
    let items = || groups.iter().flatten().map(|item| item.bytes);
    // Totals differ by multiples of what all differences of bytes within a group are multiples of.
    let grain = groups.iter().fold(0, |grain, group| {
        let first = group.first().map_or(0, |item| item.bytes);
        group.iter().fold(grain, |grain, item| gcd(grain, item.bytes.abs_diff(first)))
    });
    let grain = if items().next().is_some() { float(grain.max(1)) } else { 1.0 };
    pack(groups, |item| Point { weight: item.cost, value: float(item.bytes) }, most, grain, MOST_STATES)
}

#[expect(clippy::cast_precision_loss, reason = "bytes stay below 2^53")]
const fn float(bytes: u64) -> f64 {
    bytes as f64
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// An item as the search sees it: `value` is made least, `weight` is limited.
#[derive(Clone, Copy, Debug)]
struct Point {
    weight: f64,
    value: f64,
}

/// An item that is left of a group.
#[derive(Clone, Copy, Debug)]
struct Left {
    index: usize,
    point: Point,
    /// What the total is at least above the bound if it is taken.
    penalty: f64,
}

/// A partial choice.
#[derive(Clone, Copy, Debug)]
struct State {
    weight: f64,
    value: f64,
    penalty: f64,
    /// The partial choice that it goes on from.
    parent: u32,
    /// The item of the group, by its place among those left.
    item: u32,
}

fn pack(
    groups: &[Vec<Item>],
    point: impl Fn(&Item) -> Point,
    limit: f64,
    grain: f64,
    most_states: usize,
) -> Result<Packing, Impossible> {
    for (group, items) in groups.iter().enumerate() {
        if items.is_empty() {
            return Err(Impossible::Empty { group });
        }
        if let Some(item) = items.iter().find(|item| !item.cost.is_finite()) {
            return Err(Impossible::NotFinite { group, cost: item.cost });
        }
    }
    let fronts: Vec<Vec<Left>> = groups.iter().map(|items| front(items, &point)).collect();
    let least: f64 = fronts.iter().map(|front| front[0].point.weight).sum();
    let limit_with_rounding = limit + ROUNDING * limit.abs().max(least.abs());
    if limit.is_nan() || least > limit_with_rounding {
        return Err(Impossible::Limit { least, limit });
    }
    let search = Search { fronts, limit: limit_with_rounding, grain, most_states };
    let found = search.run();
    let (mut bytes, mut cost) = (0, 0.0);
    for (items, &index) in groups.iter().zip(&found.chosen) {
        bytes += items[index].bytes;
        cost += items[index].cost;
    }
    Ok(Packing { chosen: found.chosen, bytes, cost, bound: found.bound, exact: found.exact })
}

/// The items that no other beats in both weight and value, by weight.
fn front(items: &[Item], point: impl Fn(&Item) -> Point) -> Vec<Left> {
    let mut all: Vec<Left> = items
        .iter()
        .enumerate()
        .map(|(index, item)| Left { index, point: point(item), penalty: 0.0 })
        .collect();
    all.sort_by(|a, b| {
        a.point.weight.total_cmp(&b.point.weight).then(a.point.value.total_cmp(&b.point.value))
    });
    let mut best = f64::INFINITY;
    all.retain(|left| {
        let better = left.point.value < best;
        best = best.min(left.point.value);
        better
    });
    all
}

struct Search {
    fronts: Vec<Vec<Left>>,
    limit: f64,
    grain: f64,
    most_states: usize,
}

struct Found {
    chosen: Vec<usize>,
    bound: f64,
    exact: bool,
}

impl Search {
    fn run(self) -> Found {
        let richest: Vec<usize> = self.fronts.iter().map(|front| front.len() - 1).collect();
        if self.weight(&richest) <= self.limit {
            return Found { bound: self.value(&richest), chosen: self.indices(&richest), exact: true };
        }
        let multiplier = self.multiplier();
        let mut first = self.relaxed(multiplier);
        self.fill(&mut first);
        let best = self.value(&first);
        let bases: Vec<f64> = self
            .fronts
            .iter()
            .map(|front| front.iter().map(|left| at(left.point, multiplier)).fold(f64::INFINITY, f64::min))
            .collect();
        let bound = (bases.iter().sum::<f64>() - multiplier * self.limit).min(best);
        // What penalties must stay below to beat the first choice.
        let gap = best - bound - self.grain + ROUNDING * best.abs().max(multiplier * self.limit.abs());
        if gap <= 0.0 {
            return Found { chosen: self.indices(&first), bound: best, exact: true };
        }
        let left: Vec<Vec<Left>> = self
            .fronts
            .iter()
            .zip(&bases)
            .map(|(front, base)| {
                let penalised =
                    front.iter().map(|left| Left { penalty: at(left.point, multiplier) - base, ..*left });
                penalised.filter(|left| left.penalty <= gap).collect()
            })
            .collect();
        self.search(&left, &first, best, bound, gap, multiplier)
    }

    fn weight(&self, places: &[usize]) -> f64 {
        self.fronts.iter().zip(places).map(|(front, &place)| front[place].point.weight).sum()
    }

    fn value(&self, places: &[usize]) -> f64 {
        self.fronts.iter().zip(places).map(|(front, &place)| front[place].point.value).sum()
    }

    fn indices(&self, places: &[usize]) -> Vec<usize> {
        self.fronts.iter().zip(places).map(|(front, &place)| front[place].index).collect()
    }

    /// Of each group the item with the least `value + multiplier * weight`, the lighter of equals.
    fn relaxed(&self, multiplier: f64) -> Vec<usize> {
        let least = |front: &Vec<Left>| {
            let mut best = 0;
            for place in 1..front.len() {
                if at(front[place].point, multiplier) < at(front[best].point, multiplier) {
                    best = place;
                }
            }
            best
        };
        self.fronts.iter().map(least).collect()
    }

    /// The least multiplier whose relaxed choice keeps to the limit, about.
    fn multiplier(&self) -> f64 {
        let slopes = self.fronts.iter().flat_map(|front| {
            front.windows(2).map(|pair| {
                (pair[0].point.value - pair[1].point.value) / (pair[1].point.weight - pair[0].point.weight)
            })
        });
        // Twice the steepest: there the lightest of every group is chosen, whatever is rounded.
        let mut fits = slopes.fold(0.0, f64::max) * 2.0;
        let mut fails = 0.0;
        for _ in 0..200 {
            let middle = fails + (fits - fails) / 2.0;
            if middle <= fails || middle >= fits {
                break;
            }
            if self.weight(&self.relaxed(middle)) <= self.limit {
                fits = middle;
            } else {
                fails = middle;
            }
        }
        fits
    }

    /// Improves a choice by what fits into the room that it leaves, the most gained for the weight first.
    fn fill(&self, places: &mut [usize]) {
        let mut room = self.limit - self.weight(places);
        loop {
            let mut best: Option<(f64, usize, usize)> = None;
            for (group, front) in self.fronts.iter().enumerate() {
                let now = front[places[group]].point;
                for (place, left) in front.iter().enumerate().skip(places[group] + 1) {
                    let more = left.point.weight - now.weight;
                    if more > room {
                        break;
                    }
                    let gain = (now.value - left.point.value) / more;
                    if best.is_none_or(|(most, ..)| gain > most) {
                        best = Some((gain, group, place));
                    }
                }
            }
            let Some((_, group, place)) = best else { return };
            let front = &self.fronts[group];
            room -= front[place].point.weight - front[places[group]].point.weight;
            places[group] = place;
        }
    }

    /// Searches what is left for something better than the first choice.
    fn search(
        &self,
        left: &[Vec<Left>],
        first: &[usize],
        best: f64,
        bound: f64,
        gap: f64,
        multiplier: f64,
    ) -> Found {
        let keep_first = |bound: f64, exact: bool| Found { chosen: self.indices(first), bound, exact };
        if left.iter().any(Vec::is_empty) {
            return keep_first(best, true);
        }
        // Groups with one item left decide nothing; of the others, those with few come first.
        let mut order: Vec<usize> = (0..left.len()).collect();
        order.sort_by_key(|&group| left[group].len());
        let ends = |end: fn(&[Left]) -> f64| {
            let mut sums = vec![0.0; order.len() + 1];
            for (place, &group) in order.iter().enumerate().rev() {
                sums[place] = sums[place + 1] + end(&left[group]);
            }
            sums
        };
        let lightest = ends(|items| items.iter().map(|left| left.point.weight).fold(f64::INFINITY, f64::min));
        let heaviest = ends(|items| items.iter().map(|left| left.point.weight).fold(0.0, f64::max));
        // Room that is left empty costs its weight times the multiplier.
        let least_weight =
            if multiplier > 0.0 { self.limit - gap / multiplier - self.limit.abs() * ROUNDING } else { 0.0 };
        let mut layers: Vec<Vec<State>> =
            vec![vec![State { weight: 0.0, value: 0.0, penalty: 0.0, parent: 0, item: 0 }]];
        let mut kept = 1;
        let mut dropped = f64::INFINITY;
        for (place, &group) in order.iter().enumerate() {
            let states = &layers[place];
            let mut next = Vec::with_capacity(states.len() * left[group].len());
            for (parent, state) in states.iter().enumerate() {
                for (item, taken) in left[group].iter().enumerate() {
                    let penalty = state.penalty + taken.penalty;
                    let weight = state.weight + taken.point.weight;
                    let reachable = weight + lightest[place + 1] <= self.limit
                        && weight + heaviest[place + 1] >= least_weight;
                    if penalty <= gap && reachable {
                        next.push(State {
                            weight,
                            value: state.value + taken.point.value,
                            penalty,
                            parent: number(parent),
                            item: number(item),
                        });
                    }
                }
            }
            prune(&mut next);
            let room = self.most_states.saturating_sub(kept) / (order.len() - place);
            if next.len() > room.max(1) {
                next.sort_by(|a, b| a.penalty.total_cmp(&b.penalty));
                dropped = dropped.min(next[room.max(1)].penalty);
                next.truncate(room.max(1));
                next.sort_by(|a, b| a.weight.total_cmp(&b.weight));
            }
            kept += next.len();
            if next.is_empty() {
                break;
            }
            layers.push(next);
        }
        let exact = dropped.is_infinite();
        let floor = (bound + dropped).min(best);
        if layers.len() <= order.len() {
            return keep_first(floor, exact);
        }
        let last = &layers[order.len()];
        let winner = (0..last.len()).min_by(|&a, &b| last[a].value.total_cmp(&last[b].value));
        let Some(mut state) = winner.filter(|&state| last[state].value < best) else {
            return keep_first(floor, exact);
        };
        let value = last[state].value;
        let mut chosen = vec![0; left.len()];
        for (place, &group) in order.iter().enumerate().rev() {
            let State { parent, item, .. } = layers[place + 1][state];
            chosen[group] = left[group][item as usize].index;
            state = parent as usize;
        }
        Found { chosen, bound: floor.min(value), exact }
    }
}

/// What an item comes to when weight has a price.
fn at(point: Point, multiplier: f64) -> f64 {
    point.value + multiplier * point.weight
}

/// States are fewer than 2^32.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

/// Keeps the states that no other beats in both weight and value, by weight.
fn prune(states: &mut Vec<State>) {
    keep_undominated(states, |state| state.weight, |state| state.value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every choice, as bytes and costs.
    fn all(groups: &[Vec<Item>]) -> Vec<(u64, f64)> {
        groups.iter().fold(vec![(0, 0.0)], |sums, group| {
            let with = |(bytes, cost): (u64, f64)| {
                group.iter().map(move |item| (bytes + item.bytes, cost + item.cost))
            };
            sums.into_iter().flat_map(with).collect()
        })
    }

    fn items() -> impl Strategy<Value = Vec<Vec<Item>>> {
        let item = (0u64..40, 0u32..1000)
            .prop_map(|(bytes, cost)| Item { bytes: bytes * 32, cost: f64::from(cost) / 64.0 });
        prop::collection::vec(prop::collection::vec(item, 1..6), 1..6)
    }

    proptest! {
        #[test]
        fn the_least_cost_is_that_of_trying_all(groups in items(), budget in 0u64..5000) {
            let wanted = all(&groups).into_iter().filter(|(bytes, _)| *bytes <= budget)
                .map(|(_, cost)| cost).fold(f64::INFINITY, f64::min);
            match least_cost(&groups, budget) {
                Err(Impossible::Limit { .. }) => prop_assert!(wanted.is_infinite()),
                Err(other) => prop_assert!(false, "{other}"),
                Ok(found) => {
                    prop_assert!(found.exact && found.bytes <= budget);
                    // Costs are multiples of 1/64, so that sums are exact.
                    prop_assert_eq!(found.cost, wanted);
                    prop_assert!(found.bound <= found.cost);
                }
            }
        }

        #[test]
        fn the_fewest_bytes_are_those_of_trying_all(groups in items(), most in 0u32..5000) {
            let most = f64::from(most) / 64.0;
            let wanted = all(&groups).into_iter().filter(|(_, cost)| *cost <= most).map(|(bytes, _)| bytes).min();
            match least_bytes(&groups, most) {
                Err(Impossible::Limit { .. }) => prop_assert_eq!(wanted, None),
                Err(other) => prop_assert!(false, "{other}"),
                Ok(found) => {
                    prop_assert!(found.exact && found.cost <= most);
                    prop_assert_eq!(Some(found.bytes), wanted);
                }
            }
        }

        #[test]
        fn with_little_memory_the_bound_still_holds(groups in items(), budget in 0u64..5000, states in 1usize..20) {
            let point = |item: &Item| Point { weight: float(item.bytes), value: item.cost };
            if let Ok(found) = pack(&groups, point, float(budget), 0.0, states) {
                let wanted = least_cost(&groups, budget).unwrap().cost;
                prop_assert!(found.bytes <= budget && found.cost >= wanted && found.bound <= wanted + 1e-9);
                prop_assert!(!found.exact || found.cost == wanted);
            }
        }
    }

    /// Layers of a model: kinds of tensors with equal sizes and costs that differ by layer.
    fn model(layers: u64) -> Vec<Vec<Item>> {
        let bits = [
            (84, 0.07),
            (110, 0.013),
            (136, 0.011),
            (144, 0.0031),
            (176, 0.0009),
            (210, 0.0003),
            (272, 1e-5),
        ];
        let group = |layer: u64, kind: u64| {
            let item = |&(bytes, cost): &(u64, f64)| Item {
                bytes: bytes * 4096 * (1 + kind % 3),
                cost: cost * (1.0 + ((layer * 7 + kind * 13) % 17) as f64),
            };
            bits.iter().map(item).collect()
        };
        (0..layers).flat_map(|layer| (0..7).map(move |kind| group(layer, kind))).collect()
    }

    #[test]
    fn a_model_of_eighty_layers_is_solved_exactly() {
        let groups = model(80);
        let (mut least, mut most) = (0, 0);
        for group in &groups {
            least += group[0].bytes;
            most += group[6].bytes;
        }
        let mut last = f64::INFINITY;
        for step in 1..8 {
            let budget = least + (most - least) / 8 * step;
            let found = least_cost(&groups, budget).unwrap();
            assert!(found.exact && found.bytes <= budget && found.cost < last, "{step}");
            // The converse: what costs as little needs as many bytes.
            let back = least_bytes(&groups, found.cost).unwrap();
            assert!(back.exact && back.bytes <= found.bytes && back.cost <= found.cost * (1.0 + 1e-9));
            last = found.cost;
        }
    }

    #[test]
    fn what_cannot_be_is_told() {
        let item = Item { bytes: 10, cost: 1.0 };
        assert_eq!(least_cost(&[vec![]], 1), Err(Impossible::Empty { group: 0 }));
        assert_eq!(least_cost(&[vec![item]], 9), Err(Impossible::Limit { least: 10.0, limit: 9.0 }));
        assert_eq!(least_bytes(&[vec![item]], 0.5), Err(Impossible::Limit { least: 1.0, limit: 0.5 }));
        let nan = Item { cost: f64::NAN, ..item };
        assert!(matches!(least_cost(&[vec![nan]], 10), Err(Impossible::NotFinite { group: 0, .. })));
        assert_eq!(least_cost(&[], 0).unwrap().bytes, 0);
    }
}
