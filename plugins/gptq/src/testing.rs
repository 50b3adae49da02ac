//! What the tests of this plugin share.

/// `count` Gaussian numbers of unit variance, from a seed.
pub fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    kbit_scheme_kit::testing::gaussian_from(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, count)
}

/// The mean of `x x^T` over `samples` inputs of which neighbours resemble each other, and some are larger than others.
pub fn moments(cols: usize, samples: usize, seed: u64) -> Vec<f32> {
    let noise = gaussian(samples * (cols + 1), seed);
    let mut sums = vec![0f64; cols * cols];
    for noise in noise.chunks(cols + 1) {
        let x: Vec<f64> = (0..cols)
            .map(|j| {
                let size = if j % 11 == 5 { 6.0 } else { 1.0 };
                size * (f64::from(noise[j]) + 0.7 * f64::from(noise[j + 1]))
            })
            .collect();
        for (a, sums) in x.iter().zip(sums.chunks_mut(cols)) {
            for (b, sum) in x.iter().zip(sums) {
                *sum += a * b / samples as f64;
            }
        }
    }
    sums.into_iter().map(|sum| sum as f32).collect()
}
