//! Merging neighbours in the order of their ranks, for words of any length.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Words up to this many symbols are searched afresh for each merge, which is faster than a heap.
const SHORT: usize = 48;
/// No neighbour.
const NONE: usize = usize::MAX;

/// Working memory for merging, kept from word to word.
#[derive(Default)]
pub(crate) struct Merger {
    symbols: Vec<u32>,
    pairs: Vec<Option<(u32, u32)>>,
}

impl Merger {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Merges neighbours while `rank(left, right)` gives a rank and a result; the lowest rank first, the leftmost of
    /// equals first. Calls `each` with what is left, in order.
    pub(crate) fn merge(
        &mut self,
        symbols: impl Iterator<Item = u32>,
        rank: impl Fn(u32, u32) -> Option<(u32, u32)>,
        each: impl FnMut(u32),
    ) {
        self.symbols.clear();
        self.symbols.extend(symbols);
        if self.symbols.len() <= SHORT {
            self.merge_short(rank);
        } else {
            self.merge_long(rank);
        }
        self.symbols.iter().copied().for_each(each);
    }

    fn merge_short(&mut self, rank: impl Fn(u32, u32) -> Option<(u32, u32)>) {
        let Self { symbols, pairs } = self;
        pairs.clear();
        pairs.extend(symbols.windows(2).map(|pair| rank(pair[0], pair[1])));
        loop {
            let best = pairs.iter().enumerate().filter_map(|(at, pair)| Some((pair.as_ref()?.0, at))).min();
            let Some((_, at)) = best else { return };
            let Some((_, result)) = pairs[at] else { return };
            symbols[at] = result;
            symbols.remove(at + 1);
            pairs.remove(at);
            if at > 0 {
                pairs[at - 1] = rank(symbols[at - 1], result);
            }
            if at < pairs.len() {
                pairs[at] = rank(result, symbols[at + 1]);
            }
        }
    }

    fn merge_long(&mut self, rank: impl Fn(u32, u32) -> Option<(u32, u32)>) {
        let symbols = &mut self.symbols;
        let count = symbols.len();
        let mut before: Vec<usize> = (0..count).map(|at| at.wrapping_sub(1)).collect();
        let mut after: Vec<usize> = (1..=count).map(|at| if at == count { NONE } else { at }).collect();
        let mut gone = vec![false; count];
        let mut queue = BinaryHeap::new();
        let add = |queue: &mut BinaryHeap<_>, symbols: &[u32], left: usize, right: usize| {
            if let Some((rank, result)) = rank(symbols[left], symbols[right]) {
                queue.push(Reverse((rank, left, right, symbols[left], symbols[right], result)));
            }
        };
        for left in 1..count {
            add(&mut queue, symbols, left - 1, left);
        }
        while let Some(Reverse((_, left, right, was_left, was_right, result))) = queue.pop() {
            let current =
                !gone[left] && !gone[right] && symbols[left] == was_left && symbols[right] == was_right;
            if !current || after[left] != right {
                continue;
            }
            symbols[left] = result;
            gone[right] = true;
            after[left] = after[right];
            if after[right] != NONE {
                before[after[right]] = left;
                add(&mut queue, symbols, left, after[left]);
            }
            if before[left] != NONE {
                add(&mut queue, symbols, before[left], left);
            }
        }
        let mut at = 0;
        symbols.retain(|_| {
            at += 1;
            !gone[at - 1]
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(symbols: &[u32], long: bool) -> Vec<u32> {
        // Two equal symbols below 6 make the next one; a pair (1, 2) makes 7 with the best rank.
        let rank = |left: u32, right: u32| match (left, right) {
            (1, 2) => Some((0, 7)),
            (l, r) if l == r && l < 6 => Some((l + 1, l + 1)),
            _ => None,
        };
        let mut merger = Merger { symbols: symbols.to_vec(), ..Merger::default() };
        if long {
            merger.merge_long(rank)
        } else {
            merger.merge_short(rank)
        }
        merger.symbols
    }

    #[test]
    fn the_leftmost_of_equals_goes_first() {
        for long in [false, true] {
            assert_eq!(merged(&[3, 3, 3], long), [4, 3]);
            assert_eq!(merged(&[1, 1, 2], long), [1, 7]);
        }
    }

    proptest::proptest! {
        #[test]
        fn both_ways_agree(symbols in proptest::collection::vec(0u32..4, 1..200)) {
            assert_eq!(merged(&symbols, false), merged(&symbols, true));
        }
    }
}
