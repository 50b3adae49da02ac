use super::*;
use kbit_scheme_kit::levels::{Int, Quantile};
use kbit_scheme_kit::{BlockScheme, testing};

fn mse(settings: &str, rows: usize, cols: usize, values: &[f32]) -> f64 {
    let decoded = testing::round_trip_with::<Vq>(settings, rows, cols, values, &Aux::default()).unwrap();
    testing::relative_mse(values, &decoded)
}

#[test]
fn keeps_the_rules_of_the_abi() {
    for settings in [
        "bits=4,iterations=4",
        "dim=2,bits=6,norm=absmax,block=16,iterations=3",
        "dim=8,bits=5,stages=2,iterations=3,scale=f32",
        "dim=2,bits=4,stages=4,block=128,refits=0,iterations=2,scale=bf16",
        "dim=4,bits=10,iterations=1,refits=3,block=32",
    ] {
        testing::keeps_the_rules::<Vq>(settings);
    }
}

#[test]
fn damaged_bytes_do_no_harm() {
    for settings in ["bits=4", "dim=2,bits=9,stages=2,iterations=1,norm=absmax", "dim=8,bits=4,stages=4"] {
        testing::survives_damage::<Vq>(settings);
    }
}

#[test]
fn a_codebook_that_is_not_finite_is_refused_by_place() {
    let scheme = Vq::open(&Host::none(), &Params::parse(PARAMS, "bits=4,stages=2").unwrap()).unwrap();
    let shape = Shape { tensor: "t", rows: 1, cols: 100, slice: 0, n_slices: 1 };
    let mut head = vec![0u8; 2 * 16 * 4 * 2];
    // Infinity in the second codebook, entry 3, dimension 1.
    head[((16 + 3) * 4 + 1) * 2 + 1] = 0x7c;
    let error = scheme.open_tensor(&shape, &[&head, &[]]).err().unwrap();
    assert!(error.message.contains("entry 3 of codebook 1 has the value inf"), "{error}");
    let error = scheme.open_tensor(&shape, &[&head[2..], &[]]).err().unwrap();
    assert!(error.message.contains("127 values for 128"), "{error}");
}

#[test]
fn sizes_are_codes_scales_and_codebooks() {
    // 100 columns: 25 vectors of 4, 2 blocks of 64; codes of 2 stages of 5 bits in whole bytes.
    let bytes = testing::bytes::<Vq>("bits=5,stages=2,block=64", 10, 100);
    assert_eq!(bytes, 2 * 32 * 4 * 2 + 10 * (25usize * 10).div_ceil(8) + 10 * 2 * 2);
    // 101 columns: the last vector has one weight.
    let bytes = testing::bytes::<Vq>("dim=8,bits=12,block=16,scale=f32", 3, 101);
    assert_eq!(bytes, 4096 * 8 * 2 + 3 * (13usize * 12).div_ceil(8) + 3 * 7 * 4);
}

#[test]
fn refuses_blocks_that_are_not_whole_vectors() {
    for (settings, words) in [("dim=4,block=18", "multiple of 4"), ("dim=3", "2, 4 or 8")] {
        let params = Params::parse(PARAMS, settings).unwrap();
        let error = Vq::open(&Host::none(), &params).err().unwrap();
        assert!(error.message.contains(words), "{error}");
    }
}

#[test]
fn loses_less_than_rounding_and_quantiles_at_no_more_bits() {
    let (rows, cols) = (256, 2048);
    let values = testing::gaussian(rows * cols);
    // About 2 bits, and with residual codebooks about 3.
    for (own, bits) in [("bits=8,block=256,iterations=8", 2), ("bits=6,stages=2,block=256,iterations=8", 3)] {
        let other = format!("bits={bits},block=64");
        let bytes = testing::bytes::<Vq>(own, rows, cols);
        assert!(bytes <= testing::bytes::<BlockScheme<Int>>(&other, rows, cols), "{own}");
        assert!(bytes <= testing::bytes::<BlockScheme<Quantile>>(&other, rows, cols), "{own}");
        let found = mse(own, rows, cols, &values);
        let int = testing::relative_mse(
            &values,
            &testing::round_trip::<BlockScheme<Int>>(&other, rows, cols, &values),
        );
        let quantile = testing::relative_mse(
            &values,
            &testing::round_trip::<BlockScheme<Quantile>>(&other, rows, cols, &values),
        );
        assert!(found < int && found < quantile, "{own}: {found}, int {int}, quantile {quantile}");
    }
}

#[test]
fn importance_makes_the_weighted_error_smaller() {
    let (rows, cols) = (64, 256);
    let values = testing::gaussian(rows * cols);
    let importance: Vec<f32> = (0..cols).map(|column| if column % 16 == 3 { 100.0 } else { 1.0 }).collect();
    let aux = Aux { diag: Some(&importance), ..Aux::default() };
    for settings in ["bits=8,iterations=6", "dim=2,bits=4,stages=2,norm=absmax,iterations=6"] {
        let of = |aux: &Aux<'_>| {
            let decoded = testing::round_trip_with::<Vq>(settings, rows, cols, &values, aux).unwrap();
            testing::weighted_mse(&values, &decoded, &importance)
        };
        let (own, plain) = (of(&aux), of(&Aux::default()));
        assert!(own < plain * 0.8, "{settings}: {own}, without {plain}");
    }
}

#[test]
fn refits_lose_less() {
    let values = testing::gaussian(128 * 256);
    let of = |refits: u32| mse(&format!("bits=8,iterations=6,refits={refits}"), 128, 256, &values);
    assert!(of(1) < of(0), "{} {}", of(1), of(0));
}

#[test]
fn few_distinct_vectors_come_back() {
    // Zeros in every other block, and 3 distinct vectors in the rest: exact but for the scale's half precision.
    let (rows, cols) = (8, 128);
    let values: Vec<f32> = (0..rows * cols)
        .map(|index| if index / 64 % 2 == 0 { 0.0 } else { [0.5, -0.25, 0.125][index / 4 % 3] })
        .collect();
    for norm in ["absmax", "rms"] {
        let decoded = testing::round_trip::<Vq>(&format!("bits=8,norm={norm}"), rows, cols, &values);
        for (value, decoded) in values.iter().zip(&decoded) {
            // Scale and entries are each rounded to 11 bits.
            assert!((value - decoded).abs() <= value.abs() * 1e-3, "{norm}: {value} {decoded}");
        }
    }
}

#[test]
fn importance_that_no_mean_square_can_be_is_refused() {
    let importance = [1.0, f32::NAN, 1.0, 1.0];
    let aux = Aux { diag: Some(&importance), ..Aux::default() };
    let error = testing::round_trip_with::<Vq>("", 1, 4, &[1.0; 4], &aux).unwrap_err();
    assert!(error.message.contains("column 1") && error.message.contains("kbit calibrate"), "{error}");
}

#[test]
fn the_seed_chooses_the_sample_and_the_codebooks() {
    let values = testing::gaussian(32 * 64);
    let of = |seed: u64| {
        let aux = Aux { seed, ..Aux::default() };
        testing::round_trip_with::<Vq>("bits=4,iterations=2", 32, 64, &values, &aux).unwrap()
    };
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
}
