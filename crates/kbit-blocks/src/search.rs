//! Searches for the scale (and minimum) of least weighted squared error, in the order of operations of ggml's
//! `make_qx_quants` and `make_qkx3_quants`, on which the bytes depend.

/// Blocks whose largest magnitude is below this are stored as zeros.
const NEGLIGIBLE: f32 = 1e-15;

/// ggml's `nearest_int`: rounds to nearest even by adding 1.5 * 2^23.
fn nearest(x: f32) -> i32 {
    let bits = (x + 12_582_912.0).to_bits().cast_signed();
    (bits & 0x007f_ffff) - 0x0040_0000
}

fn code(x: i32) -> u8 {
    x.to_le_bytes()[0]
}

/// Symmetric levels -`half` to `half`-1, stored from 0 up. The scale; codes in `codes`.
pub fn fit_scale(half: i32, x: &[f32], weights: &[f32], codes: &mut [u8]) -> f32 {
    let (mut largest, mut extreme) = (0f32, 0f32);
    for x in x {
        if x.abs() > largest {
            (largest, extreme) = (x.abs(), *x);
        }
    }
    if largest < NEGLIGIBLE {
        codes.fill(0);
        return 0.0;
    }
    let levels = half as f32;
    let level = |inverse: f32, x: f32| nearest(inverse * x).min(half - 1).max(-half);
    let sums = |inverse: f32| {
        let (mut xl, mut ll) = (0f32, 0f32);
        for (x, w) in x.iter().zip(weights) {
            let l = level(inverse, *x) as f32;
            xl += w * x * l;
            ll += w * l * l;
        }
        (xl, ll)
    };
    let assign = |inverse: f32, codes: &mut [u8]| {
        for (x, out) in x.iter().zip(codes) {
            *out = code(half + level(inverse, *x));
        }
    };
    let inverse = -levels / extreme;
    assign(inverse, codes);
    let (xl, ll) = sums(inverse);
    let mut scale = if ll == 0.0 { 0.0 } else { xl / ll };
    let mut best = scale * xl;
    for step in (-9..=9).filter(|step| *step != 0) {
        let inverse = -(levels + 0.1 * step as f32) / extreme;
        let (xl, ll) = sums(inverse);
        if ll > 0.0 && xl * xl > best * ll {
            assign(inverse, codes);
            scale = xl / ll;
            best = scale * xl;
        }
    }
    scale
}

/// Levels 0 to `most` from a minimum that is not above zero. The scale, and the minimum with its sign changed; codes in
/// `codes`.
pub fn fit_scale_and_minimum(most: i32, x: &[f32], weights: &[f32], codes: &mut [u8]) -> (f32, f32) {
    const FIRST: f32 = -0.9;
    const STEP: f32 = 0.05;
    const STEPS: u8 = 36;
    let (mut min, mut max) = (x[0], x[0]);
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (x, w) in x.iter().zip(weights).skip(1) {
        min = if *x < min { *x } else { min };
        max = if *x > max { *x } else { max };
        sum_w += w;
        sum_x += w * x;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let levels = most as f32;
    let level = |inverse: f32, min: f32, x: f32| nearest(inverse * (x - min)).min(most).max(0);
    let mut inverse = levels / (max - min);
    let mut scale = 1.0 / inverse;
    let mut best = 0f32;
    for ((x, w), out) in x.iter().zip(weights).zip(codes.iter_mut()) {
        let l = level(inverse, min, *x);
        *out = code(l);
        let difference = scale * l as f32 + min - x;
        best += w * (difference * difference);
    }
    let mut trial = vec![0i32; x.len()];
    for step in 0..=STEPS {
        // A better minimum found before moves the levels of the steps that follow.
        inverse = (FIRST + STEP * f32::from(step) + levels) / (max - min);
        let (mut sum_l, mut sum_ll, mut sum_xl) = (0f32, 0f32, 0f32);
        for ((x, w), out) in x.iter().zip(weights).zip(trial.iter_mut()) {
            *out = level(inverse, min, *x);
            let l = *out as f32;
            sum_l += w * l;
            sum_ll += w * l * l;
            sum_xl += w * l * x;
        }
        let determinant = sum_w * sum_ll - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_ll;
            }
            let mut error = 0f32;
            for ((x, w), l) in x.iter().zip(weights).zip(&trial) {
                let difference = this_scale * *l as f32 + this_min - x;
                error += w * (difference * difference);
            }
            if error < best {
                for (out, l) in codes.iter_mut().zip(&trial) {
                    *out = code(*l);
                }
                (best, scale, min) = (error, this_scale, this_min);
            }
        }
    }
    (scale, -min)
}
