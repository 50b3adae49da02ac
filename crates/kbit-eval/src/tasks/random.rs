//! Python's random numbers, as far as few-shot examples are drawn with them.
//!
//! `random.Random(seed)` is the Mersenne Twister MT19937 (Matsumoto and Nishimura 1998), seeded by `init_by_array` with the seed's
//! 32-bit digits; `sample` is CPython's `Lib/random.py`. lm-evaluation-harness draws with them, so examples are the same only
//! if the numbers are.

const STATE: usize = 624;
const SHIFT: usize = 397;

/// `random.Random`.
#[derive(Clone, Debug)]
pub(crate) struct PythonRandom {
    state: [u32; STATE],
    next: usize,
}

impl PythonRandom {
    /// `random.Random(seed)`.
    pub(crate) fn new(seed: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "its lower and its upper half")]
        let digits = [seed as u32, (seed >> 32) as u32];
        let key = if digits[1] == 0 { &digits[..1] } else { &digits[..] };
        let mut state = [0; STATE];
        state[0] = 19_650_218u32;
        for (index, number) in (1..STATE).zip(1u32..) {
            let before: u32 = state[index - 1];
            state[index] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(number);
        }
        let mut i = 1;
        let mix = |state: &[u32; STATE], i: usize, factor: u32| {
            let before = state[i - 1];
            state[i] ^ (before ^ (before >> 30)).wrapping_mul(factor)
        };
        let step = |state: &mut [u32; STATE], i: &mut usize| {
            *i += 1;
            if *i == STATE {
                state[0] = state[STATE - 1];
                *i = 1;
            }
        };
        for round in 0..STATE.max(key.len()) {
            let (place, digit) = (round % key.len(), key[round % key.len()]);
            #[expect(clippy::cast_possible_truncation, reason = "0 or 1")]
            let place = place as u32;
            state[i] = mix(&state, i, 1_664_525).wrapping_add(digit).wrapping_add(place);
            step(&mut state, &mut i);
        }
        for _ in 1..STATE {
            #[expect(clippy::cast_possible_truncation, reason = "below 624")]
            let place = i as u32;
            state[i] = mix(&state, i, 1_566_083_941).wrapping_sub(place);
            step(&mut state, &mut i);
        }
        state[0] = 0x8000_0000;
        Self { state, next: STATE }
    }

    /// The next 32 bits.
    fn bits(&mut self) -> u32 {
        if self.next == STATE {
            for i in 0..STATE {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + SHIFT) % STATE] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `randrange(n)`, for `n` from 1 to `2^32 - 1`.
    fn below(&mut self, n: u32) -> u32 {
        let shift = n.leading_zeros();
        loop {
            let drawn = self.bits() >> shift;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// The places that `sample(population, count)` draws of a population of `len`; `None` where it has not so many.
    pub(crate) fn sample(&mut self, len: usize, count: usize) -> Option<Vec<usize>> {
        if count > len || u32::try_from(len).is_err() {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "checked above")]
        let mut draw = |n: usize| self.below(n as u32) as usize;
        let mut set = 21;
        if count > 5 {
            let mut power = 1;
            while power < count * 3 {
                power *= 4;
            }
            set += power;
        }
        let mut drawn = Vec::with_capacity(count);
        if len <= set {
            let mut pool: Vec<usize> = (0..len).collect();
            for index in 0..count {
                let place = draw(len - index);
                drawn.push(pool[place]);
                pool[place] = pool[len - index - 1];
            }
        } else {
            while drawn.len() < count {
                let place = draw(len);
                if !drawn.contains(&place) {
                    drawn.push(place);
                }
            }
        }
        Some(drawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `random.Random(seed).getrandbits(32)`, four times, by CPython.
    #[test]
    fn numbers_are_pythons() {
        for (seed, wanted) in GETRANDBITS {
            let mut random = PythonRandom::new(*seed);
            assert_eq!([(); 4].map(|()| random.bits()), *wanted, "seed {seed}");
        }
    }

    /// `random.Random(seed).sample(range(len), count)`, drawn twice in a row, by CPython.
    #[test]
    fn samples_are_pythons() {
        for (seed, len, first, second) in SAMPLES {
            let mut random = PythonRandom::new(*seed);
            assert_eq!(random.sample(*len, first.len()).unwrap(), *first, "seed {seed} of {len}");
            assert_eq!(random.sample(*len, second.len()).unwrap(), *second, "seed {seed} of {len}, again");
        }
        assert_eq!(PythonRandom::new(1).sample(3, 4), None);
    }

    const GETRANDBITS: &[(u64, [u32; 4])] = &[
        (0, [3626764237, 1654615998, 3255389356, 3823568514]),
        (1, [577090037, 2444712010, 3639700191, 3445702192]),
        (1234, [4150886329, 3342196574, 1892932127, 501869158]),
        (1099511627781, [2166296868, 2220160828, 1153647273, 2850991874]),
    ];

    const SAMPLES: &[(u64, usize, &[usize], &[usize])] = &[
        (1234, 5, &[3, 0, 4], &[0, 4, 2]),
        (1234, 22, &[14, 3, 0, 2], &[18, 1, 21, 2]),
        (1234, 100, &[99, 56, 14, 0, 11, 74], &[4, 85, 88, 10, 12, 98]),
        (7, 1000, &[331, 970, 154, 404, 666], &[49, 74, 840, 548, 96]),
        (0, 30, &[27, 12, 24, 13, 1, 8, 16, 15], &[12, 25, 26, 9, 15, 11, 18, 6]),
        (3, 90, &[30, 75, 69, 16, 47, 77, 60, 80, 74, 8], &[77, 1, 60, 33, 70, 29, 24, 69, 50, 81]),
    ];
}
