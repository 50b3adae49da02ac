//! Constants of synthetic data come back, published figures give the published slopes, and what cannot be known is refused.

mod common;

use common::{Noise, figure};
use kbit_laws::{At, Fit, FitOptions, Fits, LAWS, Law, PredictError, fit_all, pareto};
use kbit_results::Measurement;

fn fit<'a>(fits: &'a Fits, law: &str, family: &str) -> &'a Fit {
    fits.fits
        .iter()
        .find(|fit| fit.law == law && fit.family == family)
        .unwrap_or_else(|| panic!("no {law} of {family}: {:?}", fits.refusals))
}

/// The constant, after a check that its interval holds `truth`.
fn constant(fit: &Fit, name: &str, truth: f64) -> f64 {
    let found = fit.estimates.iter().find(|estimate| estimate.name == name);
    let found = found.unwrap_or_else(|| panic!("no {name} in {:?}", fit.estimates));
    let (low, high) = (found.low.expect("an interval"), found.high.expect("an interval"));
    assert!(low <= truth && truth <= high, "{name}: {truth} is not in {low} to {high}");
    found.value
}

#[test]
fn an_exponential_law_is_recovered_and_preferred() {
    let mut noise = Noise(1);
    let mut data = Vec::new();
    for (params, a) in [(1_000_000, 20.0), (4_000_000, 8.0)] {
        for bits in [2.25, 3.25, 4.25, 5.25, 6.25, 8.25f64] {
            let kld = a * (-1.35 * bits).exp() * (0.05 * noise.next()).exp();
            data.push(figure(params, "int", bits, "kl_divergence", kld));
        }
    }
    let fits = fit_all(&data, &FitOptions::default());
    let law = fit(&fits, "exponential", "int");
    // Twelve points with 5 % noise over six bits: a slope is known to about 0.05 / (2 sqrt(12)) = 0.7 %.
    assert!((constant(law, "b", 1.35) - 1.35).abs() < 0.03);
    assert!((constant(law, "a[m1000000]", 20.0) / 20.0 - 1.0).abs() < 0.15);
    assert!(law.r_squared > 0.99 && law.points.len() == 12);
    let comparison = fits.comparisons.iter().find(|c| c.family == "int").expect("a comparison");
    assert_eq!((comparison.better.as_str(), comparison.worse.as_str()), ("exponential", "power"));
    assert!(comparison.aic_difference > 10.0, "{comparison:?}");
}

#[test]
fn a_power_law_is_recovered_and_preferred() {
    let mut noise = Noise(2);
    let data: Vec<Measurement> = [2.5, 3.0, 3.5, 4.5, 5.5, 6.5, 8.5f64]
        .iter()
        .map(|bits| {
            let kld = 500.0 * bits.powf(-6.0) * (0.05 * noise.next()).exp();
            figure(1000, "mix", *bits, "kl_divergence", kld)
        })
        .collect();
    let fits = fit_all(&data, &FitOptions::default());
    assert!((constant(fit(&fits, "power", "mix"), "b", 6.0) - 6.0).abs() < 0.3);
    assert_eq!(fits.comparisons[0].better, "power");
}

#[test]
fn llama_cpps_published_table_has_its_published_slope() {
    // ../shared/laws.md: Llama-3-8B, k-quants without importance.
    let table =
        [(6.56, 0.005_452), (5.70, 0.010_762), (4.89, 0.031_273), (4.00, 0.101_913), (3.16, 0.445_132)];
    let data: Vec<Measurement> =
        table.iter().map(|(bits, kld)| figure(8000, "k", *bits, "kl_divergence", *kld)).collect();
    let fits = fit_all(&data, &FitOptions::default());
    let law = fit(&fits, "power", "k");
    // The table's authors' fit over all k-quants: b = 6.0, R² = .995; five of them lie within a few hundredths.
    let b = law.estimates[0].value;
    assert!((5.8..6.4).contains(&b), "b = {b}");
    assert!(law.r_squared > 0.99, "{}", law.r_squared);
}

#[test]
fn a_base_curve_and_its_offsets_are_recovered() {
    let mut noise = Noise(3);
    let sizes = [1u64 << 20, 1 << 21, 1 << 22, 1 << 23];
    // Linear in log2 of total bits, so that knots cannot matter; 4 bits are better than 16 at equal size.
    let curve = |total: f64, bits: f64| {
        8.0 - 0.2 * total.log2()
            + if bits < 4.0 {
                0.3
            } else if bits < 8.0 {
                -0.25
            } else {
                0.0
            }
    };
    let mut data = Vec::new();
    for params in sizes {
        for (family, bits) in [("int", 3.0), ("int", 4.0), ("none", 16.0)] {
            let nll = curve(params as f64 * bits, bits) + 0.005 * noise.next();
            data.push(figure(params, family, bits, "nll", nll));
        }
    }
    let fits = fit_all(&data, &FitOptions::default());
    let law = fit(&fits, "base-curve", "int");
    assert!((constant(law, "offset[3 bits]", 0.3) - 0.3).abs() < 0.03);
    assert!((constant(law, "offset[4 bits]", -0.25) + 0.25).abs() < 0.03);
    assert!(law.leave_one_out.expect("an error") < 0.05, "{:?}", law.leave_one_out);
}

#[test]
fn compute_that_follows_from_size_and_data_is_left_out_with_a_reason() {
    let data: Vec<Measurement> = (0..6)
        .map(|i| {
            let params = 1_000_000u64 << i;
            // Tokens are 20 N and C = 6 N D in `figure`, so that N alone is left.
            figure(params, "none", 16.0, "nll", 30.0 * (params as f64).powf(-0.15))
        })
        .collect();
    let fits = fit_all(&data, &FitOptions::default());
    let reasons: Vec<&str> = fits.refusals.iter().map(|refusal| refusal.reason.as_str()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("C says nothing new")), "{reasons:?}");
}

#[test]
fn fewer_points_than_constants_are_refused() {
    let data: Vec<Measurement> =
        [3.0, 4.0].iter().map(|bits| figure(1000, "int", *bits, "kl_divergence", 1.0 / bits)).collect();
    let fits = fit_all(&data, &FitOptions::default());
    assert!(fits.fits.is_empty());
    let refusal = fits.refusals.iter().find(|refusal| refusal.law == "exponential").expect("a refusal");
    assert!(refusal.reason.contains("2 points cannot determine 2 constants"), "{}", refusal.reason);
}

#[test]
fn points_of_one_width_are_refused() {
    let data: Vec<Measurement> =
        (0..5).map(|i| figure(1000, "int", 4.0, "kl_divergence", 0.1 + f64::from(i) * 0.01)).collect();
    let mut data = data;
    for (i, point) in data.iter_mut().enumerate() {
        point.scheme.label = format!("int:{i}");
    }
    let fits = fit_all(&data, &FitOptions::default());
    assert!(fits.fits.is_empty());
    assert!(fits.refusals.iter().any(|refusal| refusal.reason.contains("nearly the same bits")));
}

#[test]
fn points_at_the_noise_floor_are_left_out() {
    let mut data: Vec<Measurement> = [3.0, 4.0, 5.0, 6.0f64]
        .iter()
        .map(|bits| figure(1000, "int", *bits, "kl_divergence", (-bits).exp()))
        .collect();
    data.push(figure(1000, "int", 12.0, "kl_divergence", 1e-6));
    let mut floor = figure(1000, "ggml", 32.0, "kl_divergence", 1e-6);
    floor.scheme.id = "org.kbit.ggml.f32/1".into();
    data.push(floor);
    let fits = fit_all(&data, &FitOptions::default());
    assert_eq!(fits.noise_floor, Some(1e-6));
    let law = fit(&fits, "exponential", "int");
    assert_eq!(law.points.len(), 4);
    assert!((law.estimates[0].value - 1.0).abs() < 1e-9, "{:?}", law.estimates);
    assert_eq!(law.range, (3.0, 6.0));
}

#[test]
fn fits_repeat_for_one_seed() {
    let data: Vec<Measurement> = [3.0, 4.0, 5.0, 6.0f64]
        .iter()
        .map(|bits| figure(1000, "int", *bits, "kl_divergence", (-bits).exp() * (1.0 + 0.01 * bits.sin())))
        .collect();
    let text = |seed| {
        let options = FitOptions { seed, ..FitOptions::default() };
        serde_json::to_string(&fit_all(&data, &options)).expect("JSON")
    };
    assert_eq!(text(7), text(7));
    assert_ne!(text(7), text(8), "intervals come from resampling");
}

#[test]
fn the_front_holds_what_nothing_beats() {
    let data = [
        figure(100, "int", 4.0, "nll", 3.0),
        figure(100, "int", 8.0, "nll", 2.5),
        figure(200, "int", 2.0, "nll", 3.5),
        figure(200, "int", 8.0, "nll", 2.6),
    ];
    let front: Vec<(f64, f64)> = pareto(&data).iter().map(|point| (point.total_bits, point.nll)).collect();
    assert_eq!(front, [(400.0, 3.0), (800.0, 2.5)]);
}

/// Losses of twelve models after Hoffmann et al., each with its own N and D.
fn scaling_data() -> Vec<Measurement> {
    let mut data = Vec::new();
    for params in [1_000_000u64, 10_000_000, 100_000_000, 1_000_000_000] {
        for (index, tokens) in [100_000_000u64, 10_000_000_000, 1_000_000_000_000].into_iter().enumerate() {
            let loss = 1.69 + 406.4 * (params as f64).powf(-0.34) + 410.7 * (tokens as f64).powf(-0.28);
            let mut point = figure(params, "none", 16.0, "nll", loss);
            point.model.id = format!("m{params}-{index}");
            point.model.tokens = Some(tokens);
            point.model.flops = None;
            data.push(point);
        }
    }
    data
}

#[test]
fn predictions_keep_to_the_range_of_the_data() {
    let fits = fit_all(&scaling_data(), &FitOptions { bootstrap: 50, ..FitOptions::default() });
    let law = fit(&fits, "chinchilla", "none");
    let at = |params: f64, tokens: Option<f64>| At { params: Some(params), tokens, ..At::default() };
    let (params, tokens) = (3e7, 1e11);
    let truth = 1.69 + 406.4 * f64::powf(params, -0.34) + 410.7 * f64::powf(tokens, -0.28);
    let inside = law.predict(&at(params, Some(tokens))).expect("within the range");
    assert!((inside.value / truth - 1.0).abs() < 1e-4, "{inside:?} where the truth is {truth}");
    assert!(inside.low <= Some(inside.value) && Some(inside.value) <= inside.high, "{inside:?}");
    let beyond = law.predict(&at(1e10, Some(tokens))).expect_err("ten times the largest model");
    assert!(matches!(beyond, PredictError::Beyond { quantity: "N", high, .. } if high == 1e9), "{beyond}");
    assert!(beyond.to_string().contains("measure there"), "{beyond}");
    let missing = law.predict(&at(params, None)).expect_err("no D");
    assert!(missing.to_string().contains("training tokens"), "{missing}");
}

#[test]
fn forms_are_compared_on_the_same_points() {
    let fits = fit_all(&scaling_data(), &FitOptions { bootstrap: 0, ..FitOptions::default() });
    let comparison = fits.comparisons.iter().find(|c| c.worse == "plain-power").expect("a comparison");
    assert_eq!((comparison.better.as_str(), comparison.points), ("chinchilla", 12));
    let (better, worse) = comparison.leave_one_out.expect("errors");
    assert!(better < worse && comparison.aic_difference > 10.0, "{comparison:?}");
}

#[test]
fn models_of_one_amount_of_data_have_no_term_of_it() {
    let data: Vec<Measurement> = [1u64, 3, 10, 30, 100, 300]
        .iter()
        .map(|millions| {
            let params = millions * 1_000_000;
            let mut point = figure(params, "none", 16.0, "nll", 2.0 + 300.0 * (params as f64).powf(-0.35));
            point.model.tokens = Some(300_000_000_000);
            point
        })
        .collect();
    let fits = fit_all(&data, &FitOptions { bootstrap: 0, ..FitOptions::default() });
    let law = fit(&fits, "chinchilla", "none");
    let names: Vec<&str> = law.estimates.iter().map(|estimate| estimate.name.as_str()).collect();
    assert_eq!(names, ["E", "A", "alpha"]);
    assert!((law.estimates[0].value - 2.0).abs() < 0.01, "{:?}", law.estimates);
    assert!(law.notes.iter().any(|note| note.contains("D is one amount")), "{:?}", law.notes);
}

#[test]
fn tensors_share_constants_where_schemes_are_few() {
    // Three schemes that move both tensors alike: only a constant for both of them together is determined.
    let mut data = Vec::new();
    for bits in [3, 4, 5] {
        let errors = [("blk.0.attn_q.weight", 1.0), ("blk.1.attn_q.weight", 1.1)];
        let scale = 4f64.powi(-bits);
        let point = figure(1000, "int", f64::from(bits), "kl_divergence", 0.001 + 2.1 * scale);
        for (tensor, share) in errors {
            let mut of_tensor = point.clone();
            of_tensor.metric = "tensor_relative_mse".into();
            of_tensor.tensor = Some(tensor.into());
            of_tensor.value = share * scale;
            data.push(of_tensor);
        }
        data.push(point);
    }
    let fits = fit_all(&data, &FitOptions { bootstrap: 0, ..FitOptions::default() });
    let law = fit(&fits, "linearity", "all of m1000");
    assert_eq!(law.notes, ["one constant a role of tensors"]);
    let role = law.estimates.iter().find(|estimate| estimate.name == "alpha[attn_q]").expect("the role");
    assert!((role.value - 1.0).abs() < 1e-6, "{:?}", law.estimates);
    let few = fit_all(&data[..3], &FitOptions::default());
    let refusal = few.refusals.iter().find(|refusal| refusal.law == "linearity").expect("a refusal");
    assert!(refusal.reason.contains("1 schemes of m1000 cannot determine"), "{}", refusal.reason);
}

#[test]
fn every_law_declares_its_constants_needs_and_source_once() {
    assert_eq!(Law::named("exponential").and_then(|law| law.published("b")), Some(1.35));
    for law in LAWS {
        assert!(!law.constants.is_empty() && !law.needs.is_empty() && !law.source.is_empty(), "{}", law.name);
        assert_eq!(LAWS.iter().filter(|other| other.name == law.name).count(), 1, "{}", law.name);
    }
}

/// Losses of four sizes under one scheme whose true bits differ a little by model, and of the unquantized models.
fn one_width() -> Vec<Measurement> {
    let mut noise = Noise(5);
    let mut data = Vec::new();
    for (params, bits) in [(1u64 << 20, 4.54), (1 << 22, 4.53), (1 << 24, 4.51), (1 << 26, 4.505f64)] {
        let base = 2.0 + 30.0 * (params as f64).powf(-0.2);
        data.push(figure(params, "none", 16.0, "nll", base));
        let added = 5.0 * (params as f64).powf(-0.2) * (0.05 * noise.next()).exp();
        data.push(figure(params, "int", bits, "nll", base + added));
    }
    // Tokens follow N in `figure`.
    data.iter_mut().for_each(|one| one.model.tokens = None);
    data
}

#[test]
fn an_exponent_of_bits_takes_several_bit_widths() {
    let refused = |data: &[Measurement], law: &str| {
        let options = FitOptions { laws: vec![law.to_owned()], ..FitOptions::default() };
        let fits = fit_all(data, &options);
        assert!(fits.fits.is_empty(), "{:?}", fits.fits[0].estimates);
        fits.refusals.iter().map(|refusal| refusal.reason.clone()).collect::<Vec<_>>().join("\n")
    };
    let mut data = one_width();
    let reason = refused(&data, "ouyang");
    assert!(
        reason.contains("one bit width") && reason.contains("gamma") && reason.contains("infinite"),
        "{reason}"
    );
    // With another width of each the law is fitted.
    for one in data.clone() {
        if one.scheme.family == "int" {
            let mut more = figure(one.model.params, "int", one.bpw.file - 1.0, "nll", one.value + 0.3);
            more.model.tokens = None;
            data.push(more);
        }
    }
    let options = FitOptions { laws: vec!["ouyang".to_owned()], ..FitOptions::default() };
    let fits = fit_all(&data, &options);
    let gamma = fit(&fits, "ouyang", "int").estimate("gamma").expect("gamma");
    assert!(gamma.low.is_some_and(f64::is_finite) && gamma.high.is_some_and(f64::is_finite), "{gamma:?}");
}

#[test]
fn no_fit_reports_a_number_that_is_none() {
    for data in [one_width(), one_width().into_iter().take(4).collect(), one_width().split_off(3)] {
        for fit in fit_all(&data, &FitOptions::default()).fits {
            for estimate in &fit.estimates {
                let ends = [Some(estimate.value), estimate.low, estimate.high];
                assert!(ends.into_iter().flatten().all(f64::is_finite), "{} {estimate:?}", fit.law);
            }
        }
    }
}
