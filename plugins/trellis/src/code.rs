//! The code: which value a window of a row's bits stands for.

use kbit_plugin::Error;

/// Weights of a unit, which takes whole bytes at every rate.
pub(crate) const UNIT: usize = 32;
/// Bits of the longest window.
pub(crate) const LONGEST: u32 = 16;
/// The shortest window.
pub(crate) const SHORTEST: u32 = 8;
/// A value in units of the stored scale is a whole number over this.
pub(crate) const DENOMINATOR: f32 = 8192.0;

/// Multipliers, from 4 bits for two weights on, and for each rate from windows of 8 bits on: of some hundreds, those with which
/// Gaussian rows lost the least.
const MULTIPLIERS: [[u16; 9]; 5] = [
    [0x0045, 0x007d, 0x0109, 0x021d, 0x03d9, 0x07af, 0x10d5, 0x1e9b, 0x41c7],
    [0x003b, 0x008b, 0x00f9, 0x0233, 0x03a9, 0x07cb, 0x0ec3, 0x1ef5, 0x3939],
    [0x0061, 0x003d, 0x007b, 0x00f9, 0x05f9, 0x03d9, 0x17c5, 0x2f47, 0x1e91],
    [0x0061, 0x003b, 0x0079, 0x010b, 0x01dd, 0x03d9, 0x086b, 0x10fd, 0x203d],
    [0x0051, 0x0061, 0x012d, 0x0181, 0x00f7, 0x01fb, 0x0c11, 0x37e3, 0x5007],
];
/// Factors of the first, fifth and 33rd power, in 8192ths, from 4 bits for two weights on: near those that fit the quantile function
/// of a normal distribution of the variance 1 - 4^-R, and then moved to where Gaussian rows lost the least.
const FACTORS: [[i16; 3]; 5] = [
    [11040, 5900, 7500],
    [11300, 5900, 7300],
    [11350, 5900, 8550],
    [11500, 6400, 9900],
    [11650, 6350, 11650],
];

/// `x * y / 2^15`, rounded to nearest, ties upwards; the product of the two lowest numbers wraps around. (`PMULHRSW`.)
const fn multiply(x: i16, y: i16) -> i16 {
    ((((x as i32 * y as i32) >> 14) + 1) >> 1) as i16
}

/// About the quantile function of the normal distribution, from `t / 2^15` in -1..1, an odd polynomial.
const fn warp(t: i16, [first, fifth, last]: [i16; 3]) -> i16 {
    let square = multiply(t, t);
    let fourth = multiply(square, square);
    let eighth = multiply(fourth, fourth);
    let sixteenth = multiply(eighth, eighth);
    let power = multiply(sixteenth, sixteenth);
    multiply(first.wrapping_add(multiply(fifth, fourth)).wrapping_add(multiply(last, power)), t)
}

/// A code of some rate, with windows of some length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    /// Bits of two weights: 4 to 8.
    pair: u32,
    /// Bits of a window: 8 to 16.
    window: u32,
}

impl Code {
    /// The code of `bits` bits a weight (2 to 4, in halves) with windows of `window` bits (8 to 16).
    ///
    /// # Errors
    /// Another rate.
    pub(crate) fn new(bits: f64, window: u32) -> Result<Self, Error> {
        let pair = [4u32, 5, 6, 7, 8].into_iter().find(|pair| f64::from(*pair) == 2.0 * bits);
        let pair = pair.ok_or_else(|| {
            Error::param(format!("bits={bits}: trellis has rates of 2, 2.5, 3, 3.5 and 4 bits"))
        })?;
        Ok(Self { pair, window })
    }

    /// Bits of two weights.
    pub(crate) const fn pair(self) -> u32 {
        self.pair
    }

    /// Bits of a window.
    pub(crate) const fn window(self) -> u32 {
        self.window
    }

    /// The bits of a window, as a mask.
    #[cfg(test)]
    pub(crate) const fn mask(self) -> u32 {
        (1 << self.window) - 1
    }

    /// The bit of a row that the window of weight `t` starts at.
    pub(crate) const fn start(self, t: usize) -> usize {
        t * self.pair as usize / 2
    }

    /// How far the window moves from weight `t` to the next: half of the pair, the second time rounded up.
    pub(crate) const fn bits(self, t: usize) -> u32 {
        (self.pair + (t as u32 & 1)) / 2
    }

    /// The fewest bits that a window moves.
    pub(crate) const fn least_bits(self) -> u32 {
        self.pair / 2
    }

    /// Bytes of a unit of 32 weights.
    pub(crate) const fn unit_bytes(self) -> usize {
        2 * self.pair as usize
    }

    /// Bytes of a row of `cols` weights, a multiple of 32.
    pub(crate) const fn row_bytes(self, cols: usize) -> usize {
        cols / UNIT * self.unit_bytes()
    }

    /// The number that a window is multiplied with, mod 2^16: its bits come to the upper end of 16.
    pub(crate) const fn multiplier(self) -> u16 {
        MULTIPLIERS[self.pair as usize - 4][(self.window - SHORTEST) as usize] << (LONGEST - self.window)
    }

    /// The factors of the first, fifth and 33rd power.
    pub(crate) const fn factors(self) -> [i16; 3] {
        FACTORS[self.pair as usize - 4]
    }

    /// The value of a window, in 8192ths. Bits above those of a window make no difference.
    pub(crate) const fn value(self, window: u16) -> i16 {
        warp(window.wrapping_mul(self.multiplier()).cast_signed(), self.factors())
    }

    /// Writes a row: the low bits of each window, one after another.
    ///
    /// `windows` are those of a closed path: each is the one before, moved on by its bits, and so is the first after the last.
    pub(crate) fn pack(self, windows: &[u32], out: &mut [u8]) {
        let mut out = out.iter_mut();
        let (mut word, mut held) = (0u32, 0);
        for (t, window) in windows.iter().enumerate() {
            let bits = self.bits(t);
            word |= (window & ((1 << bits) - 1)) << held;
            held += bits;
            while held >= 8 {
                if let Some(byte) = out.next() {
                    *byte = (word & 0xff) as u8;
                }
                word >>= 8;
                held -= 8;
            }
        }
    }

    /// The window of weight `t` of a row: the naive way, for tests.
    #[cfg(test)]
    pub(crate) fn read(self, row: &[u8], t: usize) -> u32 {
        let start = self.start(t);
        let byte = |index: usize| u32::from(row[if index < row.len() { index } else { index - row.len() }]);
        let first = start / 8;
        let three = byte(first) | byte(first + 1) << 8 | byte(first + 2) << 16;
        three >> (start % 8) & self.mask()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: [f64; 5] = [2.0, 2.5, 3.0, 3.5, 4.0];

    #[test]
    fn windows_move_by_the_rate_on_average_and_units_end_with_a_byte() {
        for rate in RATES {
            let code = Code::new(rate, 16).unwrap();
            assert_eq!(code.start(UNIT), code.unit_bytes() * 8, "{rate}");
            for t in 0..100 {
                assert_eq!(code.start(t + 1) - code.start(t), code.bits(t) as usize, "{rate}");
            }
        }
        for rate in [1.0, 2.25, 4.5, f64::NAN] {
            assert!(Code::new(rate, 16).unwrap_err().message.contains("2, 2.5, 3, 3.5 and 4"));
        }
    }

    #[test]
    fn products_are_rounded_to_nearest() {
        for (x, y) in
            [(1i16, 1i16), (16384, 1), (-16384, 1), (-16384, 3), (32767, 32767), (-32768, 32767), (181, -181)]
        {
            let exact = f64::from(x) * f64::from(y) / 32768.0;
            assert_eq!(f64::from(multiply(x, y)), (exact + 0.5).floor(), "{x} * {y}");
        }
        assert_eq!(multiply(i16::MIN, i16::MIN), i16::MIN);
    }

    #[test]
    fn what_can_follow_and_what_can_come_before_is_spread_evenly() {
        for rate in RATES {
            for window in SHORTEST..=LONGEST {
                let code = Code::new(rate, window).unwrap();
                for bits in [code.bits(0), code.bits(1)] {
                    // Windows that differ in their newest bits, and those that differ in their oldest.
                    for step in [1 << (window - bits), 1] {
                        let phase = |choice: u16| (choice * step).wrapping_mul(code.multiplier());
                        let mut phases: Vec<u16> = (0..1 << bits).map(phase).collect();
                        phases.sort_unstable();
                        phases.push(phases[0]);
                        let widest =
                            phases.windows(2).map(|pair| pair[1].wrapping_sub(pair[0])).max().unwrap();
                        // Evenly, the gaps are 2^16 over their number.
                        let times = f64::from(widest) * f64::from(1 << bits) / 65536.0;
                        assert!(
                            times < 2.0,
                            "{rate}, {window}, step {step}: a gap of {times} times the mean"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn values_stay_what_they_are() {
        // The first, the second, the third, the 101st, the middle and the last window of some codes; files depend on them.
        for (rate, window, wanted) in [
            (2.0, 12, [0, 5462, 17561, 1057, 2360, -5462]),
            (2.5, 8, [0, 5331, 14844, 1059, 1900, -5331]),
            (3.0, 12, [0, 9843, -5950, 8199, 3100, -9843]),
            (3.5, 16, [0, 2903, 6000, -11656, 4800, -2903]),
            (4.0, 12, [0, 1405, 2815, 705, 6350, -1405]),
        ] {
            let code = Code::new(rate, window).unwrap();
            let windows = [0, 1, 2, 100, 1 << (window - 1), code.mask()];
            assert_eq!(windows.map(|window| code.value(window as u16)), wanted, "{rate}, {window}");
        }
    }

    #[test]
    fn values_are_nearly_normal() {
        for rate in RATES {
            for window in [8, 12, 16] {
                let code = Code::new(rate, window).unwrap();
                let mut values: Vec<f64> = (0..=code.mask())
                    .map(|window| f64::from(code.value(window as u16)) / f64::from(DENOMINATOR))
                    .collect();
                values.sort_by(f64::total_cmp);
                let at = |share: f64| values[(share * values.len() as f64) as usize];
                // The quantiles of the normal distribution; a polynomial of three terms is off by up to a sixth of them.
                for (share, quantile) in [(0.75, 0.6745), (0.9, 1.2816), (0.98, 2.0537)] {
                    let (upper, lower) = (at(share), at(1.0 - share));
                    assert!((upper / quantile - 1.0).abs() < 0.17, "{rate}, {window}: {share} at {upper}");
                    assert!((upper + lower).abs() < 0.1, "{rate}, {window}: {lower} and {upper}");
                }
            }
        }
    }

    #[test]
    fn what_is_packed_is_read_back_around_the_end() {
        for rate in RATES {
            for window in [8, 13, 16] {
                let code = Code::new(rate, window).unwrap();
                for cols in [32, 64, 160] {
                    let row: Vec<u8> = (0..code.row_bytes(cols)).map(|i| (i * 89 + 41) as u8).collect();
                    let bit = |at: usize| u32::from(row[at / 8 % row.len()] >> (at % 8) & 1);
                    let windows: Vec<u32> = (0..cols).map(|t| code.read(&row, t)).collect();
                    for (t, found) in windows.iter().enumerate() {
                        let wanted = (0..window).map(|i| bit(code.start(t) + i as usize) << i).sum::<u32>();
                        assert_eq!(*found, wanted, "{rate}, {window}, weight {t}");
                    }
                    let mut back = vec![0xa5; row.len()];
                    code.pack(&windows, &mut back);
                    assert_eq!(back, row, "{rate}, {window}");
                }
            }
        }
    }
}
