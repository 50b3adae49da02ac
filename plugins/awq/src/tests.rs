use super::*;
use kbit_scheme_kit::levels::Int;
use kbit_scheme_kit::testing;

const ROWS: usize = 64;
const COLS: usize = 256;

/// Some columns have inputs ten times as large as the others.
fn importance() -> Vec<f32> {
    (0..COLS).map(|column| if column % 37 == 5 { 100.0 } else { 1.0 + (column % 3) as f32 }).collect()
}

fn decoded(settings: &str, values: &[f32], aux: &Aux<'_>) -> Vec<f32> {
    testing::round_trip_with::<Awq>(settings, ROWS, COLS, values, aux).unwrap()
}

fn int(settings: &str, values: &[f32]) -> Vec<f32> {
    testing::round_trip::<BlockScheme<Int>>(settings, ROWS, COLS, values)
}

#[test]
fn keeps_the_rules_of_the_abi() {
    for settings in [
        "",
        "bits=2,block=16,clip=false",
        "bits=3,symmetric=false,grid=4",
        "bits=8,scale=f32,grid=1,symmetric=false,clip=false",
        "bits=5,scale=bf16,grid=2,block=4096",
    ] {
        testing::keeps_the_rules::<Awq>(settings);
    }
}

#[test]
fn damaged_bytes_do_no_harm() {
    for settings in ["grid=1", "bits=3,symmetric=false,grid=1"] {
        testing::survives_damage::<Awq>(settings);
    }
}

#[test]
fn a_damaged_scale_of_a_column_is_refused_by_place() {
    let params = Params::parse(Awq::INFO.params, "").unwrap();
    let scheme = Awq::open(&Host::none(), &params).unwrap();
    let shape = Shape { tensor: "t", rows: 1, cols: 4, slice: 0, n_slices: 1 };
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let head: Vec<u8> =
            [1.0, 1.0, bad, 1.0].iter().flat_map(|scale| f32_to_f16(*scale).to_le_bytes()).collect();
        let error = scheme.open_tensor(&shape, &[&head, &[]]).err().unwrap();
        assert!(error.message.contains("scale of column 2"), "{error}");
    }
    assert!(scheme.open_tensor(&shape, &[&[0; 6], &[]]).is_err());
}

#[test]
fn a_column_costs_16_bits_more_than_int() {
    for settings in ["bits=3", "bits=4,symmetric=false,block=32"] {
        let own = testing::bytes::<Awq>(settings, 100, 300);
        assert_eq!(own, testing::bytes::<BlockScheme<Int>>(settings, 100, 300) + 300 * 2);
    }
}

#[test]
fn columns_of_equal_importance_are_rounded_as_int_rounds_them() {
    let values = testing::gaussian(ROWS * COLS);
    let aux = Aux { diag: Some(&[0.25; COLS]), ..Aux::default() };
    for settings in ["bits=3", "bits=4,symmetric=false"] {
        assert_eq!(decoded(&format!("{settings},clip=false"), &values, &aux), int(settings, &values));
    }
}

#[test]
fn the_weighted_error_is_smaller_than_ints() {
    let (values, importance) = (testing::gaussian(ROWS * COLS), importance());
    let aux = Aux { diag: Some(&importance), ..Aux::default() };
    for settings in ["bits=3", "bits=4", "bits=3,symmetric=false", "bits=4,symmetric=false"] {
        let plain = testing::weighted_mse(&values, &int(settings, &values), &importance);
        let scaled = decoded(&format!("{settings},clip=false"), &values, &aux);
        let scaled = testing::weighted_mse(&values, &scaled, &importance);
        let clipped = testing::weighted_mse(&values, &decoded(settings, &values, &aux), &importance);
        assert!(scaled < plain * 0.9, "{settings}: {scaled}, int {plain}");
        assert!(clipped < scaled, "{settings}: {clipped}, without clipping {scaled}");
    }
}

#[test]
fn second_moments_without_correlation_choose_what_importance_chooses() {
    let (values, importance) = (testing::gaussian(ROWS * COLS), importance());
    let aux = Aux { diag: Some(&importance), ..Aux::default() };
    let mut moments = vec![0f32; COLS * COLS];
    importance.iter().enumerate().for_each(|(column, value)| moments[column * COLS + column] = *value);
    let with_moments = Aux { hessian: Some((&moments, COLS as u64)), ..aux };
    assert_eq!(decoded("bits=3", &values, &with_moments), decoded("bits=3", &values, &aux));
}

#[test]
fn second_moments_choose_what_makes_the_error_of_outputs_least() {
    // Inputs that all go together but in their sizes: the sum of a row's errors counts.
    let (values, importance) = (testing::gaussian(ROWS * COLS), importance());
    let moments: Vec<f32> =
        importance.iter().flat_map(|a| importance.iter().map(move |b| (a * b).sqrt())).collect();
    let aux = Aux { diag: Some(&importance), ..Aux::default() };
    let with_moments = Aux { hessian: Some((&moments, COLS as u64)), ..aux };
    let error = |decoded: &[f32]| -> f64 {
        let rows = values.chunks(COLS).zip(decoded.chunks(COLS));
        rows.map(|(row, decoded)| {
            let lost = row.iter().zip(decoded).zip(&importance);
            lost.map(|((w, v), x)| f64::from(w - v) * f64::from(*x).sqrt()).sum::<f64>().powi(2)
        })
        .sum()
    };
    let (mut by_moments, mut by_importance) = (0.0, 0.0);
    for settings in ["bits=2", "bits=3", "bits=4"] {
        let of = |aux: &Aux<'_>| error(&decoded(&format!("{settings},clip=false"), &values, aux));
        let (own, plain) = (of(&with_moments), error(&int(settings, &values)));
        // Plain rounding is among the candidates; the search adds in single precision.
        assert!(own <= plain * 1.001, "{settings}: {own}, int {plain}");
        by_moments += own / plain;
        by_importance += of(&aux) / plain;
    }
    assert!(by_moments < by_importance, "{by_moments}, by importance alone {by_importance}");
}

#[test]
fn refuses_what_it_cannot_use() {
    let values = testing::gaussian(ROWS * COLS);
    let refused = |settings: &str, values: &[f32], aux: &Aux<'_>| {
        testing::round_trip_with::<Awq>(settings, ROWS, COLS, values, aux).unwrap_err()
    };
    let error = refused("", &values, &Aux::default());
    assert!(error.message.contains("kbit calibrate") && error.message.contains("--imatrix"), "{error}");
    let ones = [1.0; COLS];
    let aux = Aux { diag: Some(&ones), ..Aux::default() };
    assert!(refused("grid=12", &values, &aux).message.contains("1, 2, 4, 8, 16 or 32"));
    let mut moments = vec![1.0; COLS * COLS];
    moments[3 * COLS + 7] = f32::NAN;
    let error = refused("", &values, &Aux { hessian: Some((&moments, COLS as u64)), ..aux });
    assert!(error.message.contains("columns 3 and 7"), "{error}");
    // Times the scale of an important column, the weight is past the largest float.
    let importance = importance();
    let mut large = vec![1.0; ROWS * COLS];
    large[2 * COLS + 5] = 3e38;
    let aux = Aux { diag: Some(&importance), ..Aux::default() };
    let error = refused("scale=f32", &large, &aux);
    assert!(error.message.contains("row 2, column 5"), "{error}");
}
