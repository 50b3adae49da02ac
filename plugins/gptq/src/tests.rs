use super::*;
use kbit_plugin::convert::{f16_to_f32, f32_to_f16};
use kbit_scheme_kit::testing::{self as kit, cost, moments, round_trip_with};

/// `count` Gaussian numbers of unit variance, from a seed.
fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    kit::gaussian_from(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, count)
}

fn aux(h: &[f32], cols: usize) -> Aux<'_> {
    Aux { hessian: Some((h, cols as u64)), ..Aux::default() }
}

/// Symmetric positive definite matrices, in double precision.
struct Dense {
    n: usize,
    x: Vec<f64>,
}

impl Dense {
    /// By Gauss and Jordan; no pivots are needed.
    fn inverse(&self) -> Self {
        let n = self.n;
        let mut left = self.x.clone();
        let mut right: Vec<f64> = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
        for pivot in 0..n {
            let by = left[pivot * n + pivot];
            for k in 0..n {
                left[pivot * n + k] /= by;
                right[pivot * n + k] /= by;
            }
            for row in (0..n).filter(|row| *row != pivot) {
                let by = left[row * n + pivot];
                for k in 0..n {
                    left[row * n + k] -= by * left[pivot * n + k];
                    right[row * n + k] -= by * right[pivot * n + k];
                }
            }
        }
        Self { n, x: right }
    }

    /// The upper triangle `U` with `U^T U` = this matrix.
    fn upper_cholesky(&self) -> Self {
        let n = self.n;
        let mut u = vec![0.0; n * n];
        for i in 0..n {
            for j in i..n {
                let sum: f64 = (0..i).map(|k| u[k * n + i] * u[k * n + j]).sum();
                u[i * n + j] = if i == j {
                    (self.x[i * n + i] - sum).sqrt()
                } else {
                    (self.x[i * n + j] - sum) / u[i * n + i]
                };
            }
        }
        Self { n, x: u }
    }
}

/// The procedure of the paper, in double precision: the inverse of the damped moments, its Cholesky factor, and column by column the
/// error divided by the diagonal and taken from all columns to the right. Scales follow the range of the corrected block and are half
/// precision.
fn reference(
    weights: &[f32],
    cols: usize,
    h: &[f32],
    damping: f64,
    bits: u32,
    block: usize,
    symmetric: bool,
) -> Vec<f32> {
    let mean = (0..cols).map(|i| f64::from(h[i * cols + i])).sum::<f64>() / cols as f64;
    let mut x: Vec<f64> = h.iter().map(|x| f64::from(*x)).collect();
    (0..cols).for_each(|i| x[i * cols + i] += damping * mean);
    let u = Dense { n: cols, x }.inverse().upper_cholesky();
    let half = |x: f64| f64::from(f16_to_f32(f32_to_f16(x as f32)));
    let mut out = Vec::new();
    for row in weights.chunks(cols) {
        let mut w: Vec<f64> = row.iter().map(|w| f64::from(*w)).collect();
        let (mut step, mut least) = (0.0, 0.0);
        for i in 0..cols {
            if i % block == 0 {
                let own = &w[i..(i + block).min(cols)];
                let min = own.iter().copied().fold(f64::INFINITY, f64::min);
                let max = own.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let levels = f64::from(1u32 << bits);
                (step, least) = if symmetric {
                    let step = half(-(if -min >= max { min } else { max }) / (levels / 2.0));
                    (step, -step * levels / 2.0)
                } else {
                    (half((max - min) / (levels - 1.0)), half(min))
                };
            }
            let most = f64::from((1u32 << bits) - 1);
            let q = ((w[i] - least) / step).clamp(0.0, most).round_ties_even() * step + least;
            let error = (w[i] - q) / u.x[i * cols + i];
            for (w, factor) in w[i..].iter_mut().zip(&u.x[i * cols + i..]) {
                *w -= error * factor;
            }
            out.push(q as f32);
        }
    }
    out
}

#[test]
fn equals_the_procedure_of_the_paper_in_double_precision() {
    let (rows, cols) = (16, 192);
    let h = moments(cols, 2 * cols, 3);
    let weights = gaussian(rows * cols, 4);
    for (bits, block, symmetric, damping) in [
        (4, 32, true, 0.01),
        (3, 64, false, 0.01),
        (2, 16, false, 0.1),
        (4, 4096, true, 0.01),
        (8, 128, true, 0.001),
    ] {
        let expected = reference(&weights, cols, &h, damping, bits, block, symmetric);
        let settings =
            format!("bits={bits},block={block},symmetric={symmetric},damping={damping},scale_search=range");
        let found = round_trip_with::<Gptq>(&settings, rows, cols, &weights, &aux(&h, cols)).unwrap();
        // A weight within rounding of the middle between two levels may fall to either side; so few do that none is here.
        for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let (row, column) = (index / cols, index % cols);
            assert!(
                (found - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                "{settings}: row {row}, column {column}: {found}, reference {expected}"
            );
        }
    }
}

#[test]
fn costs_less_than_rounding_at_every_width() {
    let (rows, cols) = (32, 256);
    let h = moments(cols, 2 * cols, 5);
    let weights = gaussian(rows * cols, 6);
    for bits in [2, 3, 4, 6, 8] {
        for symmetric in [true, false] {
            let layout = format!("bits={bits},block=32,symmetric={symmetric}");
            let rounded = kit::round_trip::<BlockScheme<Int>>(&layout, rows, cols, &weights);
            let rounded = cost(&h, cols, &weights, &rounded);
            for order in ["false", "true"] {
                let settings = format!("{layout},act_order={order},scale_search=range");
                let found = round_trip_with::<Gptq>(&settings, rows, cols, &weights, &aux(&h, cols)).unwrap();
                let found = cost(&h, cols, &weights, &found);
                // Neighbours resemble each other by half: a quarter of the cost goes even at two bits, whose levels clip.
                assert!(found < 0.75 * rounded, "{settings}: {found}, rounded {rounded}");
            }
        }
    }
}

#[test]
fn ggml_blocks_cost_less_than_those_of_the_encoder() {
    fn check<T: BlockType>() {
        let (rows, cols) = (8, 512);
        let h = moments(cols, 2 * cols, 7);
        let weights = gaussian(rows * cols, 8);
        let importance: Vec<f32> = (0..cols).map(|i| h[i * cols + i]).collect();
        let mut bytes = vec![0; rows * T::TYPE.bytes_for(cols as u64).unwrap() as usize];
        kbit_blocks::encode_row_range(T::TYPE, &weights, cols, Some(&importance), &mut bytes).unwrap();
        let mut rounded = vec![0.0; rows * cols];
        kbit_blocks::decode(T::TYPE, &bytes, &mut rounded).unwrap();
        let rounded = cost(&h, cols, &weights, &rounded);
        for settings in ["", "act_order=true"] {
            let found = round_trip_with::<Blocks<T>>(settings, rows, cols, &weights, &aux(&h, cols)).unwrap();
            let found = cost(&h, cols, &weights, &found);
            assert!(found < 0.8 * rounded, "{} {settings}: {found}, rounded {rounded}", T::TYPE);
        }
    }
    check::<Q8_0>();
    check::<Q4_0>();
    check::<Q4_1>();
    check::<Q5_0>();
    check::<Q5_1>();
    check::<Q2K>();
    check::<Q3K>();
    check::<Q4K>();
    check::<Q5K>();
    check::<Q6K>();
}

#[test]
fn without_moments_of_different_columns_it_rounds() {
    let (rows, cols) = (9, 100);
    let weights = gaussian(rows * cols, 9);
    let diagonal: Vec<f32> =
        (0..cols * cols).map(|i| if i / cols == i % cols { 1.0 + (i % 7) as f32 } else { 0.0 }).collect();
    for h in [vec![0.0; cols * cols], diagonal] {
        for layout in ["bits=3,block=32", "bits=4,block=64,symmetric=false,scale=f32"] {
            let settings = format!("{layout},scale_search=range");
            let found = round_trip_with::<Gptq>(&settings, rows, cols, &weights, &aux(&h, cols)).unwrap();
            assert_eq!(found, kit::round_trip::<BlockScheme<Int>>(layout, rows, cols, &weights), "{layout}");
        }
    }
}

#[test]
fn moments_that_are_missing_or_damaged_are_told_with_the_cure() {
    let weights = gaussian(64, 1);
    let run = |aux: &Aux<'_>| round_trip_with::<Gptq>("", 2, 32, &weights, aux).unwrap_err();
    let error = run(&Aux::default());
    assert_eq!(error.status, Error::missing("").status);
    assert!(error.message.contains("kbit calibrate --second-moments"), "{error}");
    let mut h = moments(32, 64, 2);
    h[5 * 32 + 5] = f32::NAN;
    let error = run(&aux(&h, 32));
    assert!(error.message.contains("column 5") && error.message.contains("anew"), "{error}");
    h[5 * 32 + 5] = -1000.0;
    let error = run(&aux(&h, 32));
    assert!(error.message.contains("raise `damping`"), "{error}");
}

#[test]
fn a_rank_that_is_missing_and_inputs_that_are_none_give_a_result() {
    let (rows, cols) = (4, 64);
    let weights = gaussian(rows * cols, 11);
    // Fewer inputs than columns, and a column without input.
    let mut h = moments(cols, 10, 12);
    for i in 0..cols {
        h[3 * cols + i] = 0.0;
        h[i * cols + 3] = 0.0;
    }
    // Without damping, later columns make good more than their clipped levels can.
    for (settings, share) in [
        ("bits=3,block=16", 0.5),
        ("bits=3,block=16,damping=0", 1.0),
        ("bits=3,block=16,act_order=true", 0.5),
        ("bits=3,block=16,act_order=true,damping=0", f64::INFINITY),
    ] {
        let found = round_trip_with::<Gptq>(settings, rows, cols, &weights, &aux(&h, cols)).unwrap();
        assert!(found.iter().all(|x| x.is_finite()), "{settings}");
        let rounded = kit::round_trip::<BlockScheme<Int>>("bits=3,block=16", rows, cols, &weights);
        assert!(cost(&h, cols, &weights, &found) < share * cost(&h, cols, &weights, &rounded), "{settings}");
    }
}

#[test]
fn keeps_the_rules_of_the_abi() {
    for settings in [
        "",
        "bits=2,block=16,symmetric=false",
        "bits=8,scale=bf16,act_order=true",
        "bits=3,block=4096,scale=f32,damping=1",
    ] {
        kit::keeps_the_rules::<Gptq>(settings);
    }
}
