//! The search for the best path through the trellis (Viterbi 1967).
//!
//! A state is a window with its bits in reverse order, so that the newest bit is the lowest and a step is a shift to the left. States
//! that differ in nothing but their oldest bits have the same successors: a group. So a step needs one minimum for each group, over
//! as many states as it drops bits, and a survivor is one number for each group: the bits that were dropped.

use crate::arch::{Kernels, LANES, Step};
use crate::code::{Code, DENOMINATOR};

/// Weights of a search, at most, whose path is kept.
const BLOCK: usize = 768;
/// Weights that a search looks ahead of the block, and that lie on each side of the end of a row when its first state is chosen.
/// Survivors have a common past after a few lengths of a window: 64 weights are eight of those at 2 bits.
const AHEAD: usize = 64;
/// Cost of what cannot be: far more than any path's, and finite.
const FAR: f32 = 1e30;

/// What all rows of a matrix share: the values of states, in the order that the search reads them in.
#[derive(Debug)]
pub(crate) struct Trellis {
    code: Code,
    /// Values for even and for odd weights, where their steps differ. For 16 groups after 16 groups: for each choice of the dropped
    /// bits, the values of the 16 states.
    tables: Vec<Vec<f32>>,
}

impl Trellis {
    pub(crate) fn new(code: Code) -> Self {
        Self::with_values(code, |window| f32::from(code.value(window as u16)) / DENOMINATOR)
    }

    /// Bytes of the tables.
    pub(crate) const fn bytes(code: Code) -> u64 {
        (4 * (1 + (code.pair() & 1) as u64)) << code.window()
    }

    fn with_values(code: Code, value: impl Fn(u32) -> f32) -> Self {
        let table = |bits: u32| -> Vec<f32> {
            let groups = 1u32 << (code.window() - bits);
            let states = (0..groups).step_by(LANES).flat_map(|first| {
                (0..1 << bits).flat_map(move |dropped| {
                    (0..LANES as u32).map(move |lane| dropped * groups + first + lane)
                })
            });
            states.map(|state| value(reverse(code, state))).collect()
        };
        let mut tables = vec![table(code.bits(0))];
        if code.bits(1) != code.bits(0) {
            tables.push(table(code.bits(1)));
        }
        Self { code, tables }
    }

    fn table(&self, t: usize) -> &[f32] {
        &self.tables[t % self.tables.len()]
    }

    /// The value of a state at weight `t`.
    fn value(&self, t: usize, state: u32) -> f32 {
        let bits = self.code.bits(t);
        let (group, dropped) = split(self.code, bits, state);
        self.table(t)[((group / LANES) << bits) * LANES + dropped as usize * LANES + group % LANES]
    }
}

/// The window of a state, or the state of a window.
const fn reverse(code: Code, state: u32) -> u32 {
    state.reverse_bits() >> (32 - code.window())
}

/// The group of a state, and the `bits` bits that a step from it drops.
const fn split(code: Code, bits: u32, state: u32) -> (usize, u32) {
    let kept = code.window() - bits;
    ((state & ((1 << kept) - 1)) as usize, state >> kept)
}

/// A search, with the memory that it needs, for row after row.
pub(crate) struct Search<'a> {
    trellis: &'a Trellis,
    kernels: Kernels,
    /// Least cost of each group before and after a step, and padding for whole vectors.
    from: Vec<f32>,
    to: Vec<f32>,
    /// Which bits the best way to each group dropped; a row of the array for each weight.
    dropped: Vec<u8>,
    path: Vec<u32>,
    seam: Vec<f32>,
}

impl<'a> Search<'a> {
    /// Bytes that a search takes, about: a byte for each group and weight of the longest stretch.
    pub(crate) const fn bytes(code: Code) -> u64 {
        ((BLOCK + AHEAD) as u64) << (code.window() - code.least_bits())
    }

    pub(crate) fn new(trellis: &'a Trellis, kernels: Kernels) -> Self {
        let costs = vec![0.0; (1 << (trellis.code.window() - trellis.code.least_bits())) + LANES];
        Self {
            trellis,
            kernels,
            from: costs.clone(),
            to: costs,
            dropped: Vec::new(),
            path: Vec::new(),
            seam: Vec::new(),
        }
    }

    /// The windows of the path whose values come nearest to `x`, in the order of the weights. The path is closed: the last window is
    /// followed by the first. As in QTIP (section 3.2), the state at the end is chosen first, by a search around it, and the path of
    /// the row is then the best from there to there. `x`: a multiple of 32 numbers, of unit variance.
    pub(crate) fn closed(&mut self, x: &[f32], windows: &mut [u32]) {
        let end = self.seam(x);
        let (mut first, mut start) = (0, end);
        while first < x.len() {
            let kept = if first + BLOCK + AHEAD < x.len() { BLOCK } else { x.len() - first };
            let ahead = (kept + AHEAD).min(x.len() - first);
            start = self.stretch(&x[first..], ahead, first, start, end, &mut windows[first..first + kept]);
            first += kept;
        }
    }

    /// The state at the end of the row `x`, which is that at its beginning: the best of a search around there.
    pub(crate) fn seam(&mut self, x: &[f32]) -> u32 {
        let around = AHEAD.min(x.len() / 2);
        let mut seam = std::mem::take(&mut self.seam);
        seam.clear();
        seam.extend_from_slice(&x[x.len() - around..]);
        seam.extend_from_slice(&x[..around]);
        self.run(&seam, x.len() - around, None, None);
        self.seam = seam;
        self.path[around]
    }

    /// The windows of the best path for the weights from the `first`th on, whose values `x` are up to the end of the row, beginning with
    /// the state `start` and looking `ahead` weights far. A path that sees the end of the row ends there with the state `end`. Returns the
    /// state behind the windows.
    pub(crate) fn stretch(
        &mut self,
        x: &[f32],
        ahead: usize,
        first: usize,
        start: u32,
        end: u32,
        windows: &mut [u32],
    ) -> u32 {
        let ahead = ahead.clamp(windows.len(), x.len());
        self.run(&x[..ahead], first, Some(start), (ahead == x.len()).then_some(end));
        let code = self.trellis.code;
        for (window, state) in windows.iter_mut().zip(&self.path) {
            *window = reverse(code, *state);
        }
        self.path[windows.len()]
    }

    /// Makes `path` the best states for weights `first..` with values `x`, and the state after them: from `start` and to `end`, where
    /// they are given.
    fn run(&mut self, x: &[f32], first: usize, start: Option<u32>, end: Option<u32>) {
        let code = self.trellis.code;
        let groups = |bits: u32| 1usize << (code.window() - bits);
        let stride = groups(code.least_bits());
        if self.dropped.len() < x.len() * stride {
            self.dropped.resize(x.len() * stride, 0);
        }
        // Steps before an even weight are those before any other even weight.
        let before = |t: usize| code.bits(first + t + 1);
        let mut done = 0;
        if let Some(state) = start {
            let bits = code.bits(first);
            let (group, dropped) = split(code, bits, state);
            let away = x[0] - self.trellis.value(first, state);
            self.from.fill(FAR);
            self.from[group] = away * away;
            self.dropped[..stride].fill(0);
            self.dropped[group] = dropped as u8;
            done = 1;
        } else {
            self.from.fill(0.0);
        }
        for (t, &x) in x.iter().enumerate().skip(done) {
            let bits = code.bits(first + t);
            self.kernels.step(Step {
                table: self.trellis.table(first + t),
                bits,
                from: &self.from,
                from_bits: before(t),
                x,
                to: &mut self.to[..groups(bits)],
                dropped: &mut self.dropped[t * stride..][..groups(bits)],
            });
            std::mem::swap(&mut self.from, &mut self.to);
        }
        let bits = before(x.len());
        let mut group = match end {
            Some(state) => (state >> bits) as usize,
            None => least(&self.from[..groups(bits)]),
        };
        self.path.resize(x.len() + 1, 0);
        self.path[x.len()] = end.unwrap_or((group as u32) << bits);
        for t in (0..x.len()).rev() {
            let kept = code.window() - code.bits(first + t);
            let state = u32::from(self.dropped[t * stride + group]) << kept | group as u32;
            self.path[t] = state;
            group = (state >> before(t)) as usize;
        }
    }
}

/// The place of the least number; of equal ones, the first.
fn least(costs: &[f32]) -> usize {
    let mut best = 0;
    for (group, cost) in costs.iter().enumerate() {
        if *cost < costs[best] {
            best = group;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbit_scheme_kit::testing::gaussian;

    fn codes() -> impl Iterator<Item = Code> {
        [2.0, 2.5, 3.0, 3.5, 4.0]
            .into_iter()
            .flat_map(|rate| [8, 11].map(|window| Code::new(rate, window).unwrap()))
    }

    #[test]
    fn the_path_is_closed_and_every_window_is_the_one_before_moved_on() {
        for code in codes() {
            let trellis = Trellis::new(code);
            let mut search = Search::new(&trellis, Kernels::best());
            for n in [32, 96, 576, 1696] {
                let mut windows = vec![0; n];
                search.closed(&gaussian(n), &mut windows);
                for t in 0..n {
                    let (now, next) = (windows[t], windows[(t + 1) % n]);
                    let kept = code.window() - code.bits(t);
                    assert_eq!(
                        now >> code.bits(t),
                        next & ((1 << kept) - 1),
                        "{code:?}, {n} weights, weight {t}"
                    );
                }
                let mut row = vec![0; code.row_bytes(n)];
                code.pack(&windows, &mut row);
                assert!(
                    windows.iter().enumerate().all(|(t, window)| code.read(&row, t) == *window),
                    "{code:?}"
                );
            }
        }
    }

    /// What values lose of Gaussian rows, over the least that any could at the rate.
    fn lost(code: Code, value: impl Fn(u32) -> f32) -> f64 {
        let trellis = Trellis::with_values(code, &value);
        let x = gaussian(4 * 1024);
        let mut lost = 0.0;
        for x in x.chunks(1024) {
            let mut windows = vec![0; x.len()];
            Search::new(&trellis, Kernels::best()).closed(x, &mut windows);
            lost += x.iter().zip(&windows).map(|(x, w)| f64::from(x - value(*w)).powi(2)).sum::<f64>();
        }
        lost / x.len() as f64 * 2f64.powi(code.pair() as i32)
    }

    #[test]
    fn a_hash_with_four_times_the_states_loses_more() {
        // QTIP's 1MAD: the bytes of a product, summed up.
        let hash = |window: u32| {
            let hash = window.wrapping_mul(34_038_481).wrapping_add(76_625_530);
            let sum: u32 = hash.to_le_bytes().iter().map(|byte| u32::from(*byte)).sum();
            (sum as f32 - 510.0) / 147.8
        };
        for rate in [2.0, 3.0, 4.0] {
            let own = Code::new(rate, 10).unwrap();
            let own = lost(own, |window| f32::from(own.value(window as u16)) / DENOMINATOR);
            let hashed = lost(Code::new(rate, 12).unwrap(), hash);
            assert!(own < hashed, "{rate} bits: {own}, with the hash {hashed}");
        }
    }

    #[test]
    fn every_instruction_set_finds_the_same_path() {
        for code in codes() {
            let trellis = Trellis::new(code);
            for n in [64, 1056] {
                let x = gaussian(n);
                let found = Kernels::all().map(|kernels| {
                    let mut windows = vec![0; n];
                    Search::new(&trellis, kernels).closed(&x, &mut windows);
                    windows
                });
                let found: Vec<_> = found.collect();
                assert!(found.windows(2).all(|pair| pair[0] == pair[1]), "{code:?}, {n} weights");
            }
        }
    }

    #[test]
    fn no_path_between_two_states_is_better_than_the_one_found() {
        for (rate, n) in [(2.0, 7), (2.5, 6), (3.0, 5), (3.5, 4), (4.0, 4)] {
            let code = Code::new(rate, 8).unwrap();
            let trellis = Trellis::new(code);
            let x = gaussian(n);
            let mut search = Search::new(&trellis, Kernels::best());
            for start in [0u32, 77, 255] {
                search.run(&x, 0, Some(start), None);
                let cost = |path: &[u32]| -> f64 {
                    path.iter().enumerate().map(|(t, s)| f64::from(x[t] - trellis.value(t, *s)).powi(2)).sum()
                };
                // All paths, the new bits of each step as digits of a number.
                let all: u32 = (0..n - 1).map(|t| code.bits(t)).sum();
                let best = (0..1u32 << all).map(|mut digits| {
                    let mut path = vec![start];
                    for t in 0..n - 1 {
                        let bits = code.bits(t);
                        let new = digits & ((1 << bits) - 1);
                        digits >>= bits;
                        path.push((path[t] << bits | new) & code.mask());
                    }
                    cost(&path)
                });
                let best = best.fold(f64::INFINITY, f64::min);
                let found = cost(&search.path[..n]);
                // The lowest four bits of a cost hold the choice: up to 2^-20 of it for each step.
                assert!(
                    found <= best * (1.0 + 1e-5),
                    "rate {rate} from {start}: {found}, and {best} is there"
                );
            }
        }
    }
}
