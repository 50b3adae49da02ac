//! What the tests of block-wise schemes share: the rules that every scheme keeps, driven through the safe trait.

use kbit_plugin::abi::AUX_HESSIAN;
use kbit_plugin::{Aux, Error, Host, Params, Plan, Scheme, Shape, Slab, SlabMut};

/// An encoded matrix: the bytes of each part's head and body.
struct Encoded {
    plan: Plan,
    heads: Vec<Vec<u8>>,
    parts: Vec<Vec<u8>>,
}

/// Gaussian values with unit variance, from a fixed seed: sums of twelve uniform numbers.
#[must_use]
pub fn gaussian(count: usize) -> Vec<f32> {
    gaussian_from(0x9e37_79b9_7f4a_7c15, count)
}

/// As [`gaussian`], from this state of the generator.
#[must_use]
pub fn gaussian_from(mut state: u64, count: usize) -> Vec<f32> {
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

/// Second moments `[cols][cols]` of `samples` inputs of which neighbours resemble each other, and some are larger than others.
#[must_use]
pub fn moments(cols: usize, samples: usize, seed: u64) -> Vec<f32> {
    let noise = gaussian_from(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1, samples * (cols + 1));
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

/// What errors cost on inputs of these second moments: the sum over rows of `e H e^T`.
#[must_use]
pub fn cost(moments: &[f32], cols: usize, weights: &[f32], decoded: &[f32]) -> f64 {
    let rows = weights.chunks(cols).zip(decoded.chunks(cols));
    rows.map(|(w, v)| {
        let e: Vec<f64> = w.iter().zip(v).map(|(w, v)| f64::from(w - v)).collect();
        let of_row = |(a, row): (usize, &[f32])| {
            e[a] * row.iter().zip(&e).map(|(h, e)| f64::from(*h) * e).sum::<f64>()
        };
        moments.chunks(cols).enumerate().map(of_row).sum::<f64>()
    })
    .sum()
}

/// `sum((v - w)^2) / sum(w^2)`.
#[must_use]
pub fn relative_mse(source: &[f32], decoded: &[f32]) -> f64 {
    let error: f64 = source.iter().zip(decoded).map(|(w, v)| f64::from(w - v).powi(2)).sum();
    error / source.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>()
}

fn open<S: Scheme>(settings: &str) -> Result<S, Error> {
    S::open(&Host::none(), &Params::parse(S::INFO.params, settings)?)
}

const fn shape(rows: usize, cols: usize) -> Shape<'static> {
    Shape { tensor: "blk.0.test.weight", rows: rows as u64, cols: cols as u64, slice: 0, n_slices: 1 }
}

/// `sum(h (v - w)^2) / sum(h w^2)` where column `i` has the weight `h = weights[i]`.
#[must_use]
pub fn weighted_mse(source: &[f32], decoded: &[f32], weights: &[f32]) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for ((w, v), h) in source.iter().zip(decoded).zip(weights.iter().cycle()) {
        error += f64::from(*h) * f64::from(w - v).powi(2);
        size += f64::from(*h) * f64::from(*w).powi(2);
    }
    error / size
}

/// Encodes in ranges of `step` groups, into buffers that hold rubbish before, with made-up data about the inputs.
fn encode<S: Scheme>(
    scheme: &S,
    rows: usize,
    cols: usize,
    values: &[f32],
    step: usize,
) -> Result<Encoded, Error> {
    let calibration: Vec<f32> = (0..cols).map(|column| ((column * 37) % 101) as f32 + 1.0).collect();
    let moments = if needs_moments(scheme, cols) { moments_of(&calibration) } else { Vec::new() };
    let aux = Aux {
        diag: Some(&calibration),
        hessian: (!moments.is_empty()).then_some((moments.as_slice(), cols as u64)),
        producer_std: Some(&calibration),
        ..Aux::default()
    };
    encode_with(scheme, rows, cols, values, step, &aux)
}

fn needs_moments<S: Scheme>(scheme: &S, cols: usize) -> bool {
    scheme.plan(&shape(1, cols)).is_ok_and(|plan| plan.aux_required & AUX_HESSIAN != 0)
}

/// Second moments of inputs that resemble their neighbours, with this diagonal.
fn moments_of(diagonal: &[f32]) -> Vec<f32> {
    let moment = |a: usize, b: usize| match a.abs_diff(b) {
        0 => diagonal[a],
        1 => 0.4 * diagonal[a].min(diagonal[b]),
        _ => 0.0,
    };
    (0..diagonal.len()).flat_map(|a| (0..diagonal.len()).map(move |b| moment(a, b))).collect()
}

/// As [`encode`], with these data about the inputs.
fn encode_with<S: Scheme>(
    scheme: &S,
    rows: usize,
    cols: usize,
    values: &[f32],
    step: usize,
    aux: &Aux<'_>,
) -> Result<Encoded, Error> {
    let shape = shape(rows, cols);
    let plan = scheme.plan(&shape)?;
    let group = plan.row_group as usize;
    let groups = rows.div_ceil(group);
    let whole = plan.whole_matrix.then(|| Slab::new(values, 0, rows, cols, cols));
    let mut job = scheme.begin(&shape, whole, aux)?;
    let mut heads: Vec<Vec<u8>> = plan.parts.iter().map(|part| vec![0; part.head_bytes as usize]).collect();
    let mut parts: Vec<Vec<u8>> =
        plan.parts.iter().map(|part| vec![0xa5; part.group_bytes as usize * groups]).collect();
    let ranges: Vec<(usize, usize)> =
        (0..groups).step_by(step).map(|first| (first * group, ((first + step) * group).min(rows))).collect();
    let slab = |first: usize, end: usize| {
        Slab::new(&values[first * cols..end * cols], first as u64, end - first, cols, cols)
    };
    if plan.stat_bytes > 0 || plan.parts.iter().any(|part| part.head_bytes > 0) {
        let stat = plan.stat_bytes as usize;
        let mut stats = vec![0xa5; stat * groups];
        for (first, end) in ranges.iter().filter(|_| stat > 0) {
            let out = &mut stats[first / group * stat..end.div_ceil(group) * stat];
            scheme.observe(&job, *first as u64..*end as u64, &slab(*first, *end), out, &mut [])?;
        }
        let mut heads: Vec<&mut [u8]> = heads.iter_mut().map(Vec::as_mut_slice).collect();
        scheme.prepare(&mut job, &stats, &mut heads)?;
    }
    for (first, end) in ranges {
        let mut own: Vec<&mut [u8]> = parts
            .iter_mut()
            .zip(&plan.parts)
            .map(|(bytes, part)| {
                let size = part.group_bytes as usize;
                &mut bytes[first / group * size..end.div_ceil(group) * size]
            })
            .collect();
        scheme.encode(&job, first as u64..end as u64, &slab(first, end), &mut own, &mut [])?;
    }
    Ok(Encoded { plan, heads, parts })
}

/// Decodes in ranges of `step` groups, into rows with a gap between them.
fn decode<S: Scheme>(
    scheme: &S,
    rows: usize,
    cols: usize,
    encoded: &Encoded,
    step: usize,
) -> Result<Vec<f32>, Error> {
    let shape = shape(rows, cols);
    let heads: Vec<&[u8]> = encoded.heads.iter().map(Vec::as_slice).collect();
    let parts: Vec<&[u8]> = encoded.parts.iter().map(Vec::as_slice).collect();
    let tensor = scheme.open_tensor(&shape, &heads)?;
    let group = encoded.plan.row_group as usize;
    let mut all = Vec::new();
    for first in (0..rows).step_by(step * group) {
        let end = (first + step * group).min(rows);
        let stride = cols + 3;
        let mut out = vec![f32::NAN; (end - first) * stride];
        let mut slab = SlabMut::new(&mut out, end - first, cols, stride);
        scheme.decode(&tensor, &shape, &parts, first as u64..end as u64, &mut slab, &mut [])?;
        all.extend(out.chunks(stride).flat_map(|row| &row[..cols]).copied());
    }
    Ok(all)
}

/// What `values` become under `settings`.
///
/// # Panics
/// When the scheme refuses.
#[must_use]
pub fn round_trip<S: Scheme>(settings: &str, rows: usize, cols: usize, values: &[f32]) -> Vec<f32> {
    let scheme: S = open(settings).expect("the settings are valid");
    let encoded = encode(&scheme, rows, cols, values, usize::MAX >> 32).expect("it encodes");
    decode(&scheme, rows, cols, &encoded, usize::MAX >> 32).expect("it decodes")
}

/// As [`round_trip`], with this auxiliary data in place of made-up importance.
///
/// # Errors
/// Those of the scheme.
pub fn round_trip_with<S: Scheme>(
    settings: &str,
    rows: usize,
    cols: usize,
    values: &[f32],
    aux: &Aux<'_>,
) -> Result<Vec<f32>, Error> {
    let scheme: S = open(settings)?;
    let encoded = encode_with(&scheme, rows, cols, values, usize::MAX >> 32, aux)?;
    decode(&scheme, rows, cols, &encoded, usize::MAX >> 32)
}

/// Damaged bytes are refused with words, or decode to any weights: heads and parts of one bits, of zeros and of noise.
///
/// # Panics
/// When the scheme panics, or refuses without words.
pub fn survives_damage<S: Scheme>(settings: &str) {
    let scheme: S = open(settings).expect("the settings are valid");
    let (rows, cols) = (9, 100);
    let good = encode(&scheme, rows, cols, &gaussian(rows * cols), 1 << 20).expect("it encodes");
    let noise: Vec<u8> = gaussian(256).iter().map(|value| (value * 1e3) as i32 as u8).collect();
    for damage in [&[0xff][..], &[0], &noise] {
        for (heads, parts) in [(true, true), (true, false), (false, true)] {
            let replaced = |bytes: &[Vec<u8>], replace: bool| -> Vec<Vec<u8>> {
                if !replace {
                    return bytes.to_vec();
                }
                bytes.iter().map(|bytes| damage.iter().cycle().copied().take(bytes.len()).collect()).collect()
            };
            let damaged = Encoded {
                plan: good.plan.clone(),
                heads: replaced(&good.heads, heads),
                parts: replaced(&good.parts, parts),
            };
            match decode(&scheme, rows, cols, &damaged, 1 << 20) {
                Ok(values) => assert_eq!(values.len(), rows * cols),
                Err(error) => assert!(!error.message.is_empty(), "{settings}: refused without words"),
            }
        }
    }
}

/// Stored bytes of a matrix under `settings`.
///
/// # Panics
/// When the scheme refuses.
#[must_use]
pub fn bytes<S: Scheme>(settings: &str, rows: usize, cols: usize) -> usize {
    let plan = open::<S>(settings).and_then(|scheme| scheme.plan(&shape(rows, cols))).expect("it plans");
    let groups = rows.div_ceil(plan.row_group as usize) as u64;
    plan.parts.iter().map(|part| (part.head_bytes + groups * part.group_bytes) as usize).sum()
}

/// The rules that hold for every scheme under `settings`: bytes and values do not depend on how rows are split, zeros stay
/// zeros, constants and outliers survive, short blocks work, NaN and infinity are refused by place.
///
/// # Panics
/// When a rule is broken.
pub fn keeps_the_rules<S: Scheme>(settings: &str) {
    let shapes = [(1, 1), (1, 64), (3, 100), (37, 64), (50, 96), (130, 33), (5, 4097)];
    keeps_the_rules_for::<S>(settings, &shapes);
}

/// As [`keeps_the_rules`], of a scheme that does not take matrices of all shapes: with `shapes`, rows and columns, in the place of others.
///
/// # Panics
/// When a rule is broken.
pub fn keeps_the_rules_for<S: Scheme>(settings: &str, shapes: &[(usize, usize)]) {
    let scheme: S = open(settings).expect("the settings are valid");
    for &(rows, cols) in shapes {
        if cols > 1000 && needs_moments(&scheme, cols) {
            continue;
        }
        let mut values = gaussian(rows * cols);
        values[0] = 30.0;
        let whole = encode(&scheme, rows, cols, &values, 1 << 20).expect("it encodes");
        let split = encode(&scheme, rows, cols, &values, 1).expect("it encodes");
        assert!(
            whole.parts == split.parts && whole.heads == split.heads,
            "{settings}: {rows} x {cols} depends on the split"
        );
        let decoded = decode(&scheme, rows, cols, &whole, 1 << 20).expect("it decodes");
        let pieces = decode(&scheme, rows, cols, &whole, 1).expect("it decodes");
        assert_eq!(decoded, pieces, "{settings}: {rows} x {cols}");
        assert!(decoded.iter().all(|value| value.is_finite()));
        assert!(relative_mse(&values, &decoded) < 1.0, "{settings}: {rows} x {cols}: worse than zeros");

        let zeros = encode(&scheme, rows, cols, &vec![0.0; rows * cols], 1 << 20).expect("zeros encode");
        let decoded = decode(&scheme, rows, cols, &zeros, 1 << 20).expect("zeros decode");
        assert!(decoded.iter().all(|value| *value == 0.0), "{settings}: zeros");

        let tiny = vec![f32::from_bits(1); rows * cols];
        let encoded = encode(&scheme, rows, cols, &tiny, 1 << 20).expect("subnormals encode");
        let decoded = decode(&scheme, rows, cols, &encoded, 1 << 20).expect("subnormals decode");
        assert!(decoded.iter().all(|value| value.abs() < 1e-37), "{settings}: subnormals");

        for (bad, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "infinity"), (f32::NEG_INFINITY, "infinity")] {
            let (row, column) = (rows / 2, cols / 2);
            let mut values = gaussian(rows * cols);
            values[row * cols + column] = bad;
            let error = encode(&scheme, rows, cols, &values, 1 << 20).err().expect("it was accepted");
            let place = format!("{word} at row {row}, column {column}");
            assert!(error.message.contains(&place), "{settings}: {rows} x {cols}: {error}");
        }
    }
}
