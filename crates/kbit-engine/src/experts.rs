//! Which experts a token goes through, and with what weights.
//!
//! Shazeer et al. 2017; groups and the bias for the choice are DeepSeek-V2's and V3's (2024); one expert after the other is
//! `SparseMixer-v2`'s rule (Liu et al. 2024) where nothing is sampled.

use crate::Kernels;
use kbit_models::description::{Experts, Gating};

/// A token's way through one expert.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Route {
    pub(crate) expert: usize,
    /// Row of the token in the batch.
    pub(crate) row: usize,
    /// Factor on the expert's result.
    pub(crate) weight: f32,
}

/// Adds the routes of the token in `row`, whose router logits `[count]` are `scores`, which are overwritten.
///
/// Of equal scores the first expert is chosen. `bias` is added to the scores for the choice alone.
pub(crate) fn route(
    kernels: Kernels,
    experts: &Experts,
    bias: Option<&[f32]>,
    row: usize,
    scores: &mut [f32],
    routes: &mut Vec<Route>,
) {
    match experts.gating {
        Gating::Softmax => softmax(kernels, scores),
        Gating::Sigmoid => {
            let negated: &mut [f32] = scores;
            negated.iter_mut().for_each(|x| *x = -*x);
            let _ = kernels.exp_below(negated, 0.0);
            negated.iter_mut().for_each(|e| *e = 1.0 / (1.0 + *e));
        }
        Gating::SoftmaxOfChosen | Gating::SparseMixer { .. } => {}
    }
    let mut choice = scores.to_vec();
    if let Some(bias) = bias {
        choice.iter_mut().zip(bias).for_each(|(score, bias)| *score += bias);
    }
    if let Some(groups) = experts.groups {
        let size = experts.count / groups.count;
        let group_scores: Vec<f32> = choice
            .chunks_exact(size)
            .map(|group| best(group, groups.best.min(size)).iter().map(|&index| group[index]).sum())
            .collect();
        let kept = best(&group_scores, groups.used);
        for (index, group) in choice.chunks_exact_mut(size).enumerate() {
            if !kept.contains(&index) {
                group.fill(f32::NEG_INFINITY);
            }
        }
    }
    let chosen = best(&choice, experts.used);
    let mut weights: Vec<f32> = chosen.iter().map(|&expert| scores[expert]).collect();
    match experts.gating {
        Gating::Softmax | Gating::Sigmoid => {}
        Gating::SoftmaxOfChosen => softmax(kernels, &mut weights),
        Gating::SparseMixer { tolerance } => {
            for (place, weight) in weights.iter_mut().enumerate() {
                *weight = share_among_close(kernels, scores, &chosen[..place], *weight, tolerance);
            }
        }
    }
    if experts.normalised {
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
    }
    routes.extend(chosen.into_iter().zip(weights).map(|(expert, weight)| Route {
        expert,
        row,
        weight: weight * experts.scale,
    }));
}

/// Indices of the `count` largest scores, largest first; of equals the first, and NaN before all numbers.
fn best(scores: &[f32], count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| {
        let by_number = scores[b].partial_cmp(&scores[a]);
        by_number.unwrap_or_else(|| scores[b].is_nan().cmp(&scores[a].is_nan()))
    });
    order.truncate(count);
    order
}

/// The softmax of `best`, the largest of `scores` but those `taken`, among those that are within `tolerance` of it.
fn share_among_close(kernels: Kernels, scores: &[f32], taken: &[usize], best: f32, tolerance: f32) -> f32 {
    let is_far = |score: f32| (best - score) / score.abs().max(best) > tolerance;
    let left = scores.iter().enumerate().filter(|(expert, _)| !taken.contains(expert));
    let mut close: Vec<f32> = left.map(|(_, score)| *score).filter(|score| !is_far(*score)).collect();
    1.0 / kernels.exp_and_sum(&mut close)
}

fn softmax(kernels: Kernels, x: &mut [f32]) {
    let sum = kernels.exp_and_sum(x);
    x.iter_mut().for_each(|x| *x /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbit_models::description::ExpertGroups;

    const PLAIN: Experts = Experts {
        count: 4,
        used: 2,
        width: 1,
        gating: Gating::Softmax,
        fused: false,
        normalised: false,
        scale: 1.0,
        groups: None,
        shared: None,
    };

    fn routes(experts: &Experts, bias: Option<&[f32]>, logits: &[f32]) -> Vec<(usize, f32)> {
        let (mut scores, mut routes) = (logits.to_vec(), Vec::new());
        route(Kernels::best(), experts, bias, 7, &mut scores, &mut routes);
        assert!(routes.iter().all(|route| route.row == 7));
        routes.iter().map(|route| (route.expert, (route.weight * 1e4).round() / 1e4)).collect()
    }

    /// Logits whose softmax is 0.1, 0.2, 0.3, 0.4.
    fn logits() -> Vec<f32> {
        [0.1f32, 0.2, 0.3, 0.4].map(f32::ln).to_vec()
    }

    #[test]
    fn the_best_experts_are_chosen_with_their_probabilities() {
        assert_eq!(routes(&PLAIN, None, &logits()), [(3, 0.4), (2, 0.3)]);
        let scaled = Experts { normalised: true, scale: 2.0, ..PLAIN };
        assert_eq!(routes(&scaled, None, &logits()), [(3, 1.1429), (2, 0.8571)]);
    }

    #[test]
    fn a_softmax_of_the_chosen_is_a_normalised_softmax_of_all() {
        let chosen = Experts { gating: Gating::SoftmaxOfChosen, ..PLAIN };
        assert_eq!(routes(&chosen, None, &logits()), [(3, 0.5714), (2, 0.4286)]);
    }

    #[test]
    fn of_experts_chosen_one_by_one_each_shares_with_those_close_to_it() {
        let mixed = |tolerance, logits: &[f32]| {
            routes(&Experts { gating: Gating::SparseMixer { tolerance }, ..PLAIN }, None, logits)
        };
        // Within a twentieth of 2 there is nobody, within a half the 1; left of that the 1 is alone.
        assert_eq!(mixed(0.05, &[2.0, 1.0, -3.0, -4.0]), [(0, 1.0), (1, 1.0)]);
        assert_eq!(mixed(0.5, &[2.0, 1.0, -3.0, -4.0]), [(0, 0.7311), (1, 1.0)]);
        // Of negative logits the magnitude of the lower one counts: 1 / 2 and 2 / 3 of it, then 1 / 3.
        assert_eq!(mixed(0.5, &[-3.0, -1.0, -2.0, -9.0]), [(1, 0.7311), (2, 0.7311)]);
    }

    #[test]
    fn a_bias_changes_the_choice_and_not_the_weight() {
        let sigmoid = Experts { gating: Gating::Sigmoid, ..PLAIN };
        let found = routes(&sigmoid, Some(&[9.0, 0.0, 0.0, 0.0]), &[0.0, 1.0, -1.0, 2.0]);
        assert_eq!(found, [(0, 0.5), (3, 0.8808)]);
    }

    #[test]
    fn experts_come_from_the_best_groups() {
        let grouped = |best| Experts { groups: Some(ExpertGroups { count: 2, used: 1, best }), ..PLAIN };
        // By their best expert the second group leads, by the sum of two the first does.
        let logits = [0.3f32, 0.29, 0.01, 0.4].map(f32::ln);
        assert_eq!(routes(&grouped(1), None, &logits), [(3, 0.4), (2, 0.01)]);
        assert_eq!(routes(&grouped(2), None, &logits), [(0, 0.3), (1, 0.29)]);
    }

    #[test]
    fn of_equal_scores_the_first_is_chosen_and_nan_is_not_hidden() {
        assert_eq!(routes(&PLAIN, None, &[1.0; 4]), [(0, 0.25), (1, 0.25)]);
        let (mut scores, mut found) = (vec![0.0, f32::NAN, 1.0, 2.0], Vec::new());
        route(Kernels::best(), &PLAIN, None, 0, &mut scores, &mut found);
        assert!(found.iter().any(|route| route.weight.is_nan()));
    }
}
