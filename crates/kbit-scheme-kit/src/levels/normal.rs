//! Normal-float levels, by additions, multiplications and divisions alone: no maths library, so that every machine has the
//! same levels.

/// `1 / sqrt(2 pi)`.
const DENSITY_AT_ZERO: f64 = 0.398_942_280_401_432_7;

/// The normal distribution function, for magnitudes below 4: the power series of the integral of the density.
fn distribution(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..120u32 {
        term *= -x * x / (2.0 * f64::from(n));
        sum += term / f64::from(2 * n + 1);
    }
    0.5 + DENSITY_AT_ZERO * sum
}

/// The inverse of [`distribution`], by bisection to the last bit.
pub fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-4f64, 4f64);
    for _ in 0..80 {
        let middle = (low + high) / 2.0;
        if distribution(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    (low + high) / 2.0
}

/// Probabilities of the levels of NF-k on one side of zero, from the outermost inwards: `count` equally spaced ones down to one
/// half. The outermost is the mean of 1 - 1/(2n) and 1 - 1/(2(n-1)) for n = 2^k, which is 0.9677083 for k = 4 (QLoRA, arXiv
/// 2305.14314, appendix E).
fn side(bits: u32, count: u32) -> impl Iterator<Item = f64> {
    let n = f64::from(1u32 << bits);
    let outermost = 1.0 - 0.5 * (1.0 / (2.0 * n) + 1.0 / (2.0 * (n - 1.0)));
    (0..count).map(move |i| outermost + (0.5 - outermost) * f64::from(i) / f64::from(count))
}

/// Levels as NF-k has them, of a distribution with these quantiles: 2^(k-1) above zero, zero, and 2^(k-1)-1 below. `above(p)` is the
/// quantile at probability `p` in (0.5, 1), `below(p)` the magnitude of that at `1 - p`; each side is divided by its outermost, which
/// must not be zero.
pub fn quantile_levels(bits: u32, above: impl Fn(f64) -> f64, below: impl Fn(f64) -> f64) -> Vec<f32> {
    let half = 1u32 << (bits - 1);
    let levels = |count: u32, quantile: &dyn Fn(f64) -> f64| {
        let levels: Vec<f64> = side(bits, count).map(quantile).collect();
        let greatest = levels.first().copied().unwrap_or(1.0);
        levels.into_iter().map(move |level| level / greatest)
    };
    let all = levels(half, &above).chain(levels(half - 1, &below).map(|level| -level)).chain([0.0]);
    #[expect(clippy::cast_possible_truncation, reason = "levels in single precision")]
    all.map(|level| level as f32).collect()
}

/// The levels of NF-k.
pub fn normal_float(bits: u32) -> Vec<f32> {
    quantile_levels(bits, quantile, quantile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_published_tables() {
        for (p, x) in [
            (0.975, 1.959_963_984_540_054),
            (0.5, 0.0),
            (0.841_344_746_068_543, 1.0),
            (0.001, -3.090_232_306_167_813),
        ] {
            assert!((quantile(p) - x).abs() < 1e-12, "{p}: {}", quantile(p));
        }
    }
}
