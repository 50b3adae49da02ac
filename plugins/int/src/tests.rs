use kbit_plugin::convert::{f16_to_f32, f32_to_f16};
use kbit_scheme_kit::levels::Int;
use kbit_scheme_kit::{BlockScheme, testing};
use proptest::prelude::*;

type Scheme = BlockScheme<Int>;

#[test]
fn keeps_the_rules_of_the_abi() {
    for settings in [
        "bits=2",
        "bits=3,block=16",
        "bits=4,symmetric=false",
        "bits=5,granularity=flat,block=96",
        "bits=6,granularity=row",
        "bits=7,granularity=tensor",
        "bits=8,scale=f32,levels=narrow",
        "bits=4,scale_bits=8,scale_block=32",
        "bits=3,symmetric=false,scale_bits=6,scale_block=16",
        "bits=4,scale_search=mse",
        "bits=4,levels=textbook,scale=bf16",
        "bits=4,center=true",
        "bits=3,center=true,granularity=row,scale_search=mse",
    ] {
        testing::keeps_the_rules::<Scheme>(settings);
    }
}

/// Q_q = clamp(round(Q/S))*S with S = max|Q| / 2^(k-1), in double precision, S rounded to single as it is stored.
#[test]
fn the_textbook_setting_is_the_textbook_formula() {
    for bits in 2..=8 {
        let values = testing::gaussian(640);
        let decoded = testing::round_trip::<Scheme>(
            &format!("bits={bits},levels=textbook,scale=f32,block=64"),
            10,
            64,
            &values,
        );
        let half = f64::from(1u32 << (bits - 1));
        for (block, decoded) in values.chunks(64).zip(decoded.chunks(64)) {
            let largest = block.iter().map(|w| f64::from(w.abs())).fold(0.0, f64::max);
            let scale = (largest / half) as f32;
            for (w, v) in block.iter().zip(decoded) {
                let level = (w / scale).round_ties_even().clamp(-half as f32, half as f32 - 1.0);
                assert_eq!(*v, level * scale, "{bits} bits");
            }
        }
    }
}

#[test]
fn sizes_are_exactly_k_bits_and_the_scales() {
    for bits in 2..=8 {
        let bytes = testing::bytes::<Scheme>(&format!("bits={bits},block=64"), 16, 512);
        assert_eq!(bytes, 16 * (512 * bits / 8 + 512 / 64 * 2));
    }
    let doubled = testing::bytes::<Scheme>("bits=4,block=64,scale_bits=8,scale_block=256", 64, 256);
    assert_eq!(doubled, 64 * 128 + 256 + 4);
}

#[test]
fn more_bits_and_a_search_lose_less() {
    let values = testing::gaussian(64 * 256);
    let mse = |settings: &str| {
        testing::relative_mse(&values, &testing::round_trip::<Scheme>(settings, 256, 64, &values))
    };
    let mut before = f64::INFINITY;
    for bits in 2..=8 {
        let error = mse(&format!("bits={bits}"));
        assert!(error < before / 2.0, "{bits} bits: {error}");
        before = error;
        assert!(mse(&format!("bits={bits},scale_search=mse")) <= error);
    }
    // Uniform rounding of a Gaussian at 4 bits in blocks of 64 loses about 1 % of the energy.
    assert!((0.006..0.012).contains(&mse("bits=4")), "{}", mse("bits=4"));
}

proptest! {
    #[test]
    fn the_error_is_within_half_a_step(values in prop::collection::vec(-100f32..100.0, 64), bits in 2u32..=8) {
        let decoded = testing::round_trip::<Scheme>(&format!("bits={bits},levels=narrow,block=64"), 1, 64, &values);
        let largest = values.iter().fold(0f32, |a, b| a.max(b.abs()));
        let scale = f16_to_f32(f32_to_f16(largest / ((1 << (bits - 1)) - 1) as f32));
        for (w, v) in values.iter().zip(&decoded) {
            // Half a step, and what rounding the scale to half precision cuts off at the end of the range.
            prop_assert!((w - v).abs() <= scale * 0.5 + largest * 0.001, "{} {}", w, v);
        }
    }

    #[test]
    fn encoding_what_was_decoded_changes_nothing(values in prop::collection::vec(-4f32..4.0, 128)) {
        let once = testing::round_trip::<Scheme>("bits=4,scale=f32", 2, 64, &values);
        let twice = testing::round_trip::<Scheme>("bits=4,scale=f32", 2, 64, &once);
        prop_assert_eq!(once, twice);
    }
}
