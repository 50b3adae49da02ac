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
fn quantile(p: f64) -> f64 {
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

/// The levels of NF-k: 2^(k-1) above zero, zero, and 2^(k-1)-1 below, at equally spaced probabilities from the outermost to
/// one half; divided by the greatest. The outermost probability is the mean of 1 - 1/(2n) and 1 - 1/(2(n-1)) for n = 2^k,
/// which is 0.9677083 for k = 4 (QLoRA, arXiv 2305.14314, appendix E).
pub fn normal_float(bits: u32) -> Vec<f32> {
    let n = f64::from(1u32 << bits);
    let outermost = 1.0 - 0.5 * (1.0 / (2.0 * n) + 1.0 / (2.0 * (n - 1.0)));
    let side = |count: u32| {
        (0..count).map(move |i| quantile(outermost + (0.5 - outermost) * f64::from(i) / f64::from(count)))
    };
    let greatest = quantile(outermost);
    let half = 1u32 << (bits - 1);
    let above = side(half);
    let below = side(half - 1).map(|level| -level);
    #[expect(clippy::cast_possible_truncation, reason = "levels in single precision")]
    above.chain(below).chain([0.0]).map(|level| (level / greatest) as f32).collect()
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
