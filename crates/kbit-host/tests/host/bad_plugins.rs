//! Deliberately bad plugins: each gets its clear message, and every case of the conformance kit has one that fails it.

use crate::scaffold::check_options;
use crate::{compile_c, folder, matrix, open, trusting, weights};
use kbit_host::check::{CheckOptions, Outcome, cases, check};
use kbit_host::{AuxData, HostError, HostOptions, Isolation, Registry, lock};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The test scheme with one fault; see `faulty.c`.
fn faulty(fault: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/faulty.c");
    let own = folder().join(format!("fault-{fault}"));
    compile_c(&source, &own, "faulty", &[&format!("-DFAULT=\"{fault}\"")])
}

#[test]
fn without_a_fault_every_case_passes_and_none_is_skipped() {
    let report = check(&faulty(""), &check_options()).unwrap();
    let told: Vec<_> = report.cases.iter().filter(|case| case.outcome != Outcome::Pass).collect();
    assert!(told.is_empty(), "{told:#?}");
    assert_eq!(report.cases.len(), cases().len() + 2);
}

/// Fault, the case that must see it, and words of its message.
const FAULTS: &[(&str, &str, &str)] = &[
    ("refuses-minimum", "parameters", "without a message"),
    ("none-fit", "parameters", "takes none of the shapes"),
    ("bounds", "parameter-bounds", "SIGABRT"),
    ("plan-varies", "plan", "a second plan() differs"),
    ("plan-panics", "plan", "panicked: too many columns"),
    ("part-type", "plan", "element type 9"),
    ("no-prepare", "plan", "no prepare()"),
    ("past-part", "plan-bytes", "wrote past its buffer (part codes"),
    ("before-part", "plan-bytes", "wrote before its buffer (part codes"),
    ("past-scratch", "plan-bytes", "scratch of encode(): 1 bytes too far"),
    ("past-stats", "plan-bytes", "statistics of observe()"),
    ("past-head", "plan-bytes", "head of part codes"),
    ("unwritten", "plan-bytes", "not all planned bytes are written"),
    ("counts", "repeat", "a second job gives other bytes"),
    ("states", "repeat", "a second state gives other bytes"),
    ("split", "split-invariance", "bytes depend on the row split"),
    ("threads", "thread-invariance", "bytes depend on threads"),
    ("dirty", "dirty-scratch", "bytes depend on what scratch memory held before"),
    ("decode-dirty", "dirty-scratch", "decoded weights depend on what scratch"),
    ("decode-count", "decode-split", "decoded rows depend on ranges"),
    ("stride", "decode-split", "decode"),
    ("between", "decode-split", "writes between rows"),
    ("past-rows", "decode-split", "rows of decode()"),
    ("offset", "zeros", "a zero decodes to 0.5"),
    ("offset", "constants", "0.02 everywhere decodes to"),
    ("nan", "nan", "SIGABRT"),
    ("infinite", "infinities", "the plugin hangs"),
    ("subnormal", "subnormals", "a weight decodes to"),
    ("outlier", "outlier", "a weight decodes to"),
    ("short", "short-group", "bytes past the last row"),
    ("one-row", "one-row", "one row is too few"),
    ("negated", "round-trip", "rounding at half the bits"),
    ("dot-wrong", "dot", "dot() gives"),
    ("dot-count", "dot", "dot() depends on n_act"),
    ("past-act", "dot", "packed activation"),
    ("i8-wrong", "decode-i8", "and decode() gives"),
    ("rounding", "float-environment", "rounding nearest -> toward zero"),
    ("decode-rounding", "float-environment", "rounding nearest -> up"),
    #[cfg(target_arch = "x86_64")]
    ("flush", "float-environment", "flush-to-zero on, denormals-are-zero on"),
    ("silent", "error-texts", "comes without words"),
    ("long-text", "error-texts", "error buffer of 8 bytes"),
    ("extreme-panic", "panics", "panicked: index out of bounds"),
    ("old-plan", "older-host", "past the `size`"),
    ("old-extension", "older-host", "SIGABRT"),
    ("new-aux", "newer-host", "what a strange host"),
    ("old-values", "newer-host", "SIGABRT"),
    ("cancel", "cancellation", "somebody cancelled"),
    ("cancel-bytes", "cancellation", "other bytes and no error"),
    ("damage", "damaged-bytes", "SIGABRT"),
    ("isa", "instruction-sets", "outputs under Portable and"),
];

#[test]
fn every_case_of_the_kit_is_failed_by_some_plugin() {
    for (name, _) in cases() {
        assert!(FAULTS.iter().any(|(_, case, _)| *case == name), "no plugin fails the case {name}");
    }
    for (fault, case, words) in FAULTS {
        let timeout = Duration::from_secs(if *fault == "infinite" { 3 } else { 60 });
        let options = CheckOptions { case: Some((*case).to_owned()), timeout, ..check_options() };
        let report = check(&faulty(fault), &options).unwrap();
        let found = report
            .cases
            .iter()
            .find(|found| found.name == *case)
            .unwrap_or_else(|| panic!("{fault}: {report:#?}"));
        assert!(found.outcome == Outcome::Fail && found.message.contains(words), "{fault}: {found:#?}");
        assert!(!report.passed());
    }
}

/// Fault of a descriptor, and words of its message.
const DESCRIPTORS: &[(&str, &str)] = &[
    ("plugin-size", "plugin: its size is 8 bytes"),
    ("newer", "it needs ABI 1.7, and this kbit has ABI 1.0; update kbit"),
    ("plugin-id", "is not a reverse domain"),
    ("no-version", "its version is missing"),
    ("null-text", "its vendor is a NULL pointer with a length"),
    ("not-utf8", "its vendor is not UTF-8"),
    ("control", "its vendor has control characters"),
    ("no-schemes", "it has no scheme"),
    ("null-schemes", "the list of schemes is NULL"),
    ("null-scheme", "scheme 1: a NULL pointer"),
    ("twice", "two schemes have this id"),
    ("scheme-id", "not of the form org.example.name/1"),
    ("no-decode", "scheme org.example.faulty/1: its function decode is NULL"),
    ("ggml-type", "ggml_type 5"),
    ("no-title", "its title is missing"),
    ("param-twice", "parameter levels: two parameters have this key"),
    ("param-key", "not of the form [a-z]"),
    ("param-doc", "its doc is missing"),
    ("param-type", "its type 99"),
    ("param-range", "its range 200..=127 is empty"),
    ("param-fraction", "whole limits"),
    ("param-default", "its default 300 is not 3..=127"),
    ("param-default-type", "its default"),
    ("param-neither", "neither required nor has a default"),
    ("param-both", "required and has a default"),
    ("choice-empty", "a choice without choices"),
    ("self-test", "self-test failed: two and two is five"),
    ("self-test-rounding", "rounding nearest -> down"),
    ("entry-rounding", "rounding nearest -> down"),
    ("refuses", "refuses to load: not on a Tuesday"),
    ("refuses-silently", "it does not say why"),
];

#[test]
fn every_descriptor_fault_has_its_message() {
    for (fault, words) in DESCRIPTORS {
        let file = faulty(fault);
        // In this process, as a plugin of a trusted folder; and in a worker, as one that is to be added.
        let registry = Registry::load(&trusting(file.parent().unwrap())).unwrap();
        let here: Vec<String> = registry.failures().iter().map(ToString::to_string).collect();
        assert!(
            here.len() == 1 && here[0].contains(words) && here[0].contains("libkbit_scheme_faulty.so"),
            "{fault}: {here:?}"
        );
        let there = lock::describe(&file, &trusting(folder())).unwrap_err();
        assert_eq!(here[0], there.to_string(), "{fault}");
    }
}

#[test]
fn a_plugin_that_crashes_or_hangs_at_load_does_not_take_the_host_along() {
    for (fault, words) in [("entry-crash", "SIGSEGV"), ("entry-hang", "no answer within")] {
        let file = faulty(fault);
        let own = file.parent().unwrap();
        let options = HostOptions {
            trusted: Vec::new(),
            lock: Some(own.join("plugins.lock")),
            timeout: Duration::from_secs(2),
            ..trusting(own)
        };
        let error = lock::add(&file, &options).unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("libkbit_scheme_faulty.so"), "{error}");
        assert!(!own.join("plugins.lock").exists());
        let report =
            check(&file, &CheckOptions { timeout: Duration::from_secs(2), ..check_options() }).unwrap();
        assert!(
            report.cases.last().is_some_and(|case| case.name == "load" && case.outcome == Outcome::Fail),
            "{report:#?}"
        );
    }
}

#[test]
fn the_wrong_architecture_is_told_without_running_anything() {
    let file = faulty("");
    let mut bytes = std::fs::read(&file).unwrap();
    let other: u16 = if cfg!(target_arch = "x86_64") { 183 } else { 62 };
    bytes[18..20].copy_from_slice(&other.to_le_bytes());
    let own = folder().join("architecture");
    std::fs::create_dir_all(&own).unwrap();
    let file = own.join("libkbit_scheme_faulty.so");
    std::fs::write(&file, bytes).unwrap();
    let registry = Registry::load(&trusting(&own)).unwrap();
    let message = registry.failures()[0].to_string();
    assert!(message.contains("built for") && message.contains("build it for this machine"), "{message}");
    let report = check(&file, &check_options()).unwrap();
    assert!(report.cases.len() == 1 && report.cases[0].name == "file" && !report.passed());
}

/// Auxiliary data of 64 columns, as the test scheme wants it.
const CALIBRATION: AuxData<'static> = AuxData {
    diag: Some(&[2.0; 64]),
    hessian: Some((&[2.0; 64 * 64], 64)),
    producer_std: Some(&[1.0; 64]),
    n_samples: 10,
    seed: 1,
};

#[test]
fn calibration_data_crosses_over_and_missing_one_is_told() {
    let file = faulty("");
    let info = matrix("blk.2.w", 4, 64);
    let encoded = [Isolation::InProcess, Isolation::Process].map(|isolation| {
        let open = open(file.parent().unwrap(), "faulty", isolation).unwrap();
        let missing = open.encode_matrix(&info, &weights(256), &AuxData::default()).unwrap_err();
        assert!(matches!(missing, HostError::Missing { .. }), "{missing}");
        assert!(missing.to_string().contains("an importance matrix"), "{missing}");
        let narrow = AuxData { diag: Some(&[1.0; 63]), ..CALIBRATION };
        assert!(matches!(open.encode_matrix(&info, &weights(256), &narrow), Err(HostError::Misuse { .. })));
        open.encode_matrix(&info, &weights(256), &CALIBRATION).unwrap()
    });
    assert_eq!(encoded[0], encoded[1]);
}

#[test]
fn changed_rounding_is_an_error_here_and_the_callers_mode_is_back() {
    for isolation in [Isolation::InProcess, Isolation::Process] {
        let file = faulty("rounding");
        let open = open(file.parent().unwrap(), "faulty", isolation).unwrap();
        let error = open.encode_matrix(&matrix("blk.1.w", 4, 64), &weights(256), &CALIBRATION).unwrap_err();
        assert!(matches!(error, HostError::FloatEnvironment { .. }), "{error}");
        for part in
            ["blk.1.w", "org.example.faulty/1", "libkbit_scheme_faulty.so", "rounding nearest -> toward zero"]
        {
            assert!(error.to_string().contains(part), "{error}");
        }
        // A tie: to nearest even it goes up, toward zero it would not.
        let sum = std::hint::black_box(1.0f32 + f32::EPSILON) + std::hint::black_box(f32::EPSILON / 2.0);
        assert_eq!(sum, 1.0 + 2.0 * f32::EPSILON);
    }
}

#[test]
fn fused_kernels_come_through_the_codec() {
    use kbit_host::{Bytes, TensorBytes};
    use kbit_types::{ActivationKind, Codec};
    let file = faulty("");
    let open = open(file.parent().unwrap(), "faulty", Isolation::InProcess).unwrap();
    let info = matrix("w", 5, 64);
    let encoded = open.encode_matrix(&info, &weights(320), &CALIBRATION).unwrap();
    let bytes = TensorBytes {
        heads: encoded.heads.into_iter().map(Bytes::from).collect(),
        parts: encoded.parts.into_iter().map(Bytes::from).collect(),
    };
    let codec = open.open_tensor(&info, bytes).unwrap();
    let fused = codec.fused().unwrap();
    assert_eq!(
        (fused.activation(), fused.activation_key(), fused.activation_bytes()),
        (ActivationKind::F32, 64, 256)
    );
    let x = weights(64);
    let mut packed = vec![0; 256];
    fused.pack(&x, &mut packed).unwrap();
    let (mut rows, mut y) = (vec![0.0; 320], vec![0.0; 3]);
    codec.decode(0..5, &mut rows, 64).unwrap();
    fused.dot(2..5, &packed, 1, &mut y, 3).unwrap();
    // Groups have two rows; the plugin never sees half a group.
    let (mut part, mut one) = (vec![7.0; 2 * 70 + 64], vec![7.0; 2]);
    codec.decode(0..3, &mut part, 70).unwrap();
    for r in 0..3 {
        assert_eq!(part[r * 70..r * 70 + 64], rows[r * 64..(r + 1) * 64]);
    }
    assert_eq!(part[134..140], [7.0; 6]);
    fused.dot(2..3, &packed, 1, &mut one, 2).unwrap();
    assert_eq!(one, [y[0], 7.0]);
    for r in 0..3 {
        let exact: f64 = (0..64).map(|c| f64::from(rows[(r + 2) * 64 + c]) * f64::from(x[c])).sum();
        assert!((f64::from(y[r]) - exact).abs() < 1e-5);
    }
    let (mut q, mut scale, mut min) = (vec![0i8; 320], vec![0.0; 10], vec![0.0; 10]);
    assert!(codec.decode_i8(0..5, &mut q, &mut scale, &mut min, 32).unwrap());
    assert!((f32::from(q[70]) * scale[2] - rows[70]).abs() < 1e-6);
}
