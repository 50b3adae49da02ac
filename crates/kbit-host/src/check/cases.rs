//! The cases of the conformance kit, and the child's entry.
//!
//! Invariant of the raw structures below: a structure that is given longer or shorter than this host's lies in memory of
//! at least its `size`, and lives until the calls that borrow it have returned.
#![expect(unsafe_code, reason = "structures of other sizes than this host's")]

use super::harness::{
    Checked, Guarded, Noise, PLAIN, Scheme, Split, Stored, Subject, Verdict, Way, fail, failure_text, matrix,
    settings, test_host,
};
use super::{CaseOutcome, CaseTask, DIGEST, LOAD, Outcome};
use crate::call::{CallFailure, RawTensor, Runtime, State, Values, buffer, empty_plan, with_error_capacity};
use crate::callbacks::{HostTable, Isa};
use crate::load::{load_bytes, sha256};
use crate::plan::TensorPlan;
use crate::spec::{ParamKind, ParamValue, ParamValues};
use kbit_abi as abi;
use std::mem::offset_of;
use std::sync::Arc;

/// One case.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) about: &'static str,
    run: fn(&Scheme, &mut CaseOutcome) -> Checked<String>,
    host: fn(Isa) -> &'static HostTable,
}

fn usual(isa: Isa) -> &'static HostTable {
    test_host(isa, 2, false)
}

macro_rules! cases {
    ($($name:literal, $about:literal, $run:path $(, $host:path)?;)*) => {
        /// All cases that one child runs.
        pub(super) const CASES: &[Case] = &[$(Case {
            name: $name,
            about: $about,
            run: $run,
            host: cases!(@host $($host)?),
        },)*];
    };
    (@host) => { usual };
    (@host $host:path) => { $host };
}

cases! {
    "parameters", "every value that the scheme declares opens, or is refused with words", parameters;
    "parameter-bounds", "values outside the declared ones do no harm", parameter_bounds;
    "plan", "plans keep the rules, also for odd and huge shapes, and repeat", plan;
    "plan-bytes", "encode writes exactly the planned bytes, all of them", plan_bytes;
    "repeat", "a second state gives the same bytes", repeat;
    "split-invariance", "bytes do not depend on how rows are split into calls", split_invariance;
    "thread-invariance", "bytes do not depend on threads", thread_invariance;
    "dirty-scratch", "results do not depend on what scratch memory holds", dirty_scratch;
    "decode-split", "decoded rows do not depend on ranges and strides", decode_split;
    "zeros", "a matrix of zeros decodes to zeros", zeros;
    "constants", "a matrix of one value decodes to about it", constants;
    "nan", "NaN is refused with words, or does no harm", nan;
    "infinities", "infinities are refused with words, or do no harm", infinities;
    "subnormals", "subnormal weights decode to finite, small values", subnormals;
    "outlier", "one huge value leaves everything finite", outlier;
    "short-group", "a last group with fewer rows is encoded and decoded", short_group;
    "one-row", "a matrix of one row is encoded and decoded", one_row;
    "round-trip", "the error is no worse than rounding at half the bits; below 3 bits, than zeros", round_trip;
    "dot", "the fused product agrees with decode and splits freely", dot;
    "decode-i8", "8-bit weights agree with decode", decode_i8;
    "float-environment", "no call changes the rounding mode or the like", float_environment;
    "error-texts", "errors have words, within the buffer", error_texts;
    "panics", "no call panics on legal input", panics;
    "older-host", "a host with shorter structures is served or refused, and nothing past `size` is touched", older_host, shorter_host;
    "newer-host", "a host with longer structures gets the same bytes", newer_host, longer_host;
    "cancellation", "a cancelled host gets KBIT_ECANCELLED or the same bytes", cancellation;
    "damaged-bytes", "damaged stored bytes are refused or decode to something", damaged_bytes;
}

/// Runs one case in this process.
pub(crate) fn run_case(task: &CaseTask, bytes: &[u8]) -> CaseOutcome {
    if sha256(bytes) != task.sha256 {
        return CaseOutcome::new(Outcome::Fail, "the plugin's bytes do not have their hash");
    }
    let case = CASES.iter().find(|case| case.name == task.case);
    let host = case.map_or_else(|| usual(task.isa), |case| (case.host)(task.isa));
    let loaded = match load_bytes(&task.path, bytes, &task.sha256, host) {
        Ok(loaded) => loaded,
        // With an unusual host a refusal with words is allowed.
        Err(crate::HostError::Refused { message, .. }) if task.case == "older-host" => {
            return CaseOutcome::new(Outcome::Pass, format!("refuses such a host: {message}"));
        }
        Err(error) => return CaseOutcome::new(Outcome::Fail, error.to_string()),
    };
    if task.case == LOAD {
        let mut outcome = CaseOutcome::new(
            Outcome::Pass,
            format!("{} {} with {} schemes", loaded.text.id, loaded.text.version, loaded.text.schemes.len()),
        );
        outcome.text = Some(loaded.text.clone());
        return outcome;
    }
    let Some(text) = loaded.text.schemes.get(task.scheme) else {
        return CaseOutcome::new(Outcome::Fail, "the plugin lost a scheme between two processes");
    };
    let scheme = Scheme {
        text: text.clone(),
        functions: loaded.functions[task.scheme],
        host,
        settings: settings(&text.params, &task.params),
    };
    let mut outcome = CaseOutcome::new(Outcome::Pass, "");
    let verdict = match (case, task.case.as_str()) {
        (Some(case), _) => (case.run)(&scheme, &mut outcome),
        (None, DIGEST) => digest(&scheme, &mut outcome),
        (None, other) => fail(format!("no case is called {other}")),
    };
    match verdict {
        Ok(message) => outcome.message = message,
        Err(Verdict::Fail(message)) => {
            outcome.outcome = Outcome::Fail;
            outcome.message = message;
        }
        Err(Verdict::Skip(message)) => {
            outcome.outcome = Outcome::Skip;
            outcome.message = message;
        }
    }
    outcome
}

fn skip<T>(message: &str) -> Checked<T> {
    Err(Verdict::Skip(message.to_owned()))
}

/// Fails unless `one` and `two` are equal.
fn same(one: &Stored, two: &Stored, subject: &Subject, what: &str) -> Checked<()> {
    match one.difference(two, &subject.plan) {
        None => Ok(()),
        Some(difference) => fail(format!("{what}: {difference} ({})", subject.label)),
    }
}

/// Fails unless the floats have the same bits.
fn same_floats(one: &[f32], two: &[f32], subject: &Subject, what: &str) -> Checked<()> {
    match one.iter().zip(two).position(|(a, b)| a.to_bits() != b.to_bits()) {
        None => Ok(()),
        Some(at) => {
            let cols = usize::try_from(subject.matrix.cols).unwrap_or(1);
            fail(format!(
                "{what}: row {}, column {} is {} once and {} once ({})",
                at / cols,
                at % cols,
                one[at],
                two[at],
                subject.label
            ))
        }
    }
}

fn parameters(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let opened = scheme.opened()?;
    let total = scheme.settings.len();
    if opened.is_empty() {
        return fail("no setting opens");
    }
    let taken = scheme.subjects(false)?.len();
    Ok(format!("{} of {total} settings open, {taken} take a shape of the kit", opened.len()))
}

fn parameter_bounds(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let Some((_, base)) = scheme.settings.first() else { return skip("no settings") };
    if base.is_empty() {
        return skip("the scheme has no parameters");
    }
    let mut wrong: Vec<(String, ParamValues)> = Vec::new();
    let mut with = |label: String, change: &dyn Fn(&mut ParamValues)| {
        let mut values = base.clone();
        change(&mut values);
        wrong.push((label, values));
    };
    for param in &scheme.text.params {
        let key = &param.key;
        let mut set = |value: ParamValue| {
            with(format!("{key}={value}"), &|values| drop(values.insert(key.clone(), value.clone())));
        };
        match &param.kind {
            ParamKind::Int { min, max } => {
                set(ParamValue::Int(min.saturating_sub(1)));
                set(ParamValue::Int(max.saturating_add(1)));
                set(ParamValue::Int(i64::MIN));
                set(ParamValue::Int(i64::MAX));
            }
            ParamKind::Float { min, max } => {
                set(ParamValue::Float(min - 1.0));
                set(ParamValue::Float(max + 1.0));
                set(ParamValue::Float(f64::NAN));
            }
            ParamKind::Choice { .. } => set(ParamValue::Str("no such choice".to_owned())),
            ParamKind::Numbers => set(ParamValue::Numbers(vec![f64::NAN; 3])),
            ParamKind::Bool | ParamKind::Str => {}
        }
        with(format!("without {key}"), &|values| drop(values.remove(key)));
        let other = if matches!(param.kind, ParamKind::Int { .. }) {
            ParamValue::Str("word".to_owned())
        } else {
            ParamValue::Int(1)
        };
        with(format!("{key} of another type"), &|values| drop(values.insert(key.clone(), other.clone())));
    }
    with("an unknown key".to_owned(), &|values| {
        drop(values.insert("no_such_key".to_owned(), ParamValue::Int(1)))
    });
    let (mut refused, total) = (0, wrong.len());
    for (label, values) in wrong {
        match scheme.open(&values) {
            // The host checks values before it opens a scheme, so a plugin may trust them; it must only do no harm.
            Ok(state) => drop(scheme.plan(&state, &matrix(16, 64))?),
            Err(CallFailure::Status { status, .. }) if status != abi::EPANIC => refused += 1,
            Err(failure) => return fail(format!("open() with {label}: {}", failure_text(&failure))),
        }
    }
    Ok(format!("{refused} of {total} wrong settings refused, none did harm"))
}

fn plan(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let huge = [
        (1, 1 << 40),
        (1 << 40, 1),
        (1 << 31, 1 << 31),
        (u64::MAX, 1),
        (1, u64::MAX),
        (u64::MAX, u64::MAX),
        (1 << 32, 4096),
        (4096, 4096),
        (128_256, 4096),
        (3, 5),
        (17, 31),
    ];
    let (mut taken, mut refused) = (0, 0);
    for (label, _, state) in scheme.opened()? {
        for (rows, cols) in super::harness::SHAPES.into_iter().chain(huge) {
            let matrix = matrix(rows, cols);
            let said = |failure: &CallFailure| format!("{label}, {rows} x {cols}: {}", failure_text(failure));
            let too_large =
                rows.checked_mul(cols).and_then(|n| n.checked_mul(4)).is_none_or(|n| n > i64::MAX as u64);
            let ask = || {
                crate::scheme::local_plan(&state, &matrix, scheme.ggml_type(), scheme.functions.optional())
            };
            match ask() {
                Ok(plan) => {
                    if ask().ok().as_ref() != Some(&plan) {
                        return fail(format!(
                            "{label}, {rows} x {cols}: a second plan() differs from the first"
                        ));
                    }
                    taken += 1;
                }
                Err(failure @ CallFailure::Status { status: abi::EPANIC, .. }) => {
                    return fail(said(&failure));
                }
                Err(CallFailure::Status { text, .. }) if text.ends_with("without a message") => {
                    return fail(format!("{label}, {rows} x {cols}: refused without words"));
                }
                Err(CallFailure::Status { .. }) => refused += 1,
                // No file holds such a matrix, so its plan may be wrong.
                Err(CallFailure::Plan(_)) if too_large => refused += 1,
                Err(failure) => return fail(said(&failure)),
            }
        }
    }
    Ok(format!("{taken} plans keep the rules, {refused} shapes refused with words"))
}

fn plan_bytes(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let subjects = scheme.subjects(true)?;
    for subject in &subjects {
        let values = subject.weights(1);
        let one = subject.encode(&values, Way { fill: 0xaa, ..PLAIN })?;
        let two = subject.encode(&values, Way { fill: 0x55, ..PLAIN })?;
        same(&one, &two, subject, "not all planned bytes are written (or they vary)")?;
    }
    Ok(format!("{} settings and shapes", subjects.len()))
}

fn repeat(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let subjects = scheme.subjects(false)?;
    for subject in &subjects {
        let values = subject.weights(2);
        let one = subject.encode(&values, PLAIN)?;
        let again = subject.encode(&values, PLAIN)?;
        same(&one, &again, subject, "a second job gives other bytes")?;
        let state = scheme.open(&subject.params)?;
        let other = subject.with_state(state);
        same(&one, &other.encode(&values, PLAIN)?, subject, "a second state gives other bytes")?;
    }
    Ok(format!("{} settings", subjects.len()))
}

fn split_invariance(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let subjects = scheme.subjects(false)?;
    for subject in &subjects {
        let values = subject.weights(3);
        let whole = subject.encode(&values, PLAIN)?;
        for split in [Split::Groups, Split::Uneven, Split::Backwards] {
            let other = subject.encode(&values, Way { split, ..PLAIN })?;
            same(
                &whole,
                &other,
                subject,
                &format!("bytes depend on the row split ({split:?} against one call)"),
            )?;
        }
    }
    Ok(format!("{} settings, 4 splits", subjects.len()))
}

fn thread_invariance(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let subjects = scheme.subjects(false)?;
    for subject in &subjects {
        let values = subject.weights(4);
        let one = subject.encode(&values, PLAIN)?;
        let decoded = subject.decode(&one)?;
        for threads in [1, 4] {
            let state = scheme.open_with(&subject.params, test_host(Isa::Best, threads, false))?;
            let other = subject.with_state(state);
            let stored = other.encode(&values, Way { split: Split::Threads, ..PLAIN })?;
            same(
                &one,
                &stored,
                subject,
                &format!("bytes depend on threads ({threads} in parallel_for, 4 in encode)"),
            )?;
        }
        let rows: Vec<Checked<Vec<f32>>> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| subject.decode(&one))).collect();
            workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
        });
        for other in rows {
            same_floats(&decoded, &other?, subject, "decoded weights depend on threads")?;
        }
    }
    Ok(format!("{} settings", subjects.len()))
}

fn dirty_scratch(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let subjects = scheme.subjects(false)?;
    let scratch = subjects.iter().any(|s| s.plan.scratch_bytes > 0 || s.plan.decode_scratch_bytes > 0);
    if !scratch {
        return skip("the scheme uses no scratch memory");
    }
    for subject in &subjects {
        let values = subject.weights(5);
        let clean = subject.encode(&values, PLAIN)?;
        let decoded = subject.decode(&clean)?;
        for scratch_fill in [0xff, 0x7f] {
            let dirty = subject.encode(&values, Way { scratch_fill, ..PLAIN })?;
            same(&clean, &dirty, subject, "bytes depend on what scratch memory held before")?;
            let rows = subject.decode_as(&clean, Split::Whole, 0, scratch_fill)?;
            same_floats(
                &decoded,
                &rows,
                subject,
                "decoded weights depend on what scratch memory held before",
            )?;
        }
    }
    Ok(format!("{} settings", subjects.len()))
}

fn decode_split(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let subjects = scheme.subjects(false)?;
    for subject in &subjects {
        let stored = subject.encode(&subject.weights(6), PLAIN)?;
        let whole = subject.decode(&stored)?;
        for (split, gap) in
            [(Split::Groups, 0), (Split::Uneven, 3), (Split::Backwards, 64), (Split::Whole, 1)]
        {
            let rows = subject.decode_as(&stored, split, gap, 0)?;
            same_floats(
                &whole,
                &rows,
                subject,
                &format!("decoded rows depend on ranges ({split:?}, {gap} floats apart)"),
            )?;
        }
    }
    Ok(format!("{} settings, 5 ways", subjects.len()))
}

/// Encodes and decodes `values` of every setting; `judge` looks at the decoded weights. A refusal with words is allowed
/// where `may_refuse`.
fn values_case(
    scheme: &Scheme,
    may_refuse: bool,
    make: impl Fn(&mut Vec<f32>),
    judge: impl Fn(&[f32], &[f32]) -> Result<(), String>,
) -> Checked<String> {
    let subjects = scheme.subjects(false)?;
    let mut refused = 0;
    for subject in &subjects {
        let mut values = subject.weights(8);
        make(&mut values);
        match subject.try_encode(&values, PLAIN)? {
            Ok(stored) => {
                let again =
                    subject.encode(&values, Way { split: Split::Uneven, fill: 0xff, scratch_fill: 0xff })?;
                same(&stored, &again, subject, "bytes depend on the row split")?;
                let decoded = subject.decode(&stored)?;
                judge(&values, &decoded).or_else(|reason| fail(format!("{reason} ({})", subject.label)))?;
            }
            Err(CallFailure::Status { text, .. }) if may_refuse && !text.ends_with("without a message") => {
                refused += 1
            }
            Err(failure) => return fail(format!("{} ({})", failure_text(&failure), subject.label)),
        }
    }
    Ok(match refused {
        0 => format!("{} settings", subjects.len()),
        _ => format!("{} settings, {refused} refuse with words", subjects.len()),
    })
}

fn all_finite(decoded: &[f32]) -> Result<(), String> {
    match decoded.iter().find(|value| !value.is_finite()) {
        Some(value) => Err(format!("a weight decodes to {value}")),
        None => Ok(()),
    }
}

fn zeros(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    values_case(
        scheme,
        false,
        |values| values.fill(0.0),
        |_, decoded| match decoded.iter().find(|value| value.is_nan() || value.abs() > 1e-6) {
            Some(value) => Err(format!("a zero decodes to {value}")),
            None => Ok(()),
        },
    )
}

fn constants(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    for constant in [0.37f32, -0.02] {
        values_case(
            scheme,
            false,
            |values| values.fill(constant),
            |_, decoded| {
                all_finite(decoded)?;
                let far = |value: &&f32| value.abs() > 4.0 * constant.abs() + 1e-6;
                match decoded.iter().find(far) {
                    Some(value) => Err(format!("{constant} everywhere decodes to {value}")),
                    None => Ok(()),
                }
            },
        )?;
    }
    Ok("0.37 and -0.02".to_owned())
}

fn nan(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let make = |values: &mut Vec<f32>| {
        let middle = values.len() / 2;
        values[middle] = f32::NAN;
        values[0] = f32::from_bits(0xff80_0001);
    };
    values_case(scheme, true, make, |_, _| Ok(()))
}

fn infinities(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let make = |values: &mut Vec<f32>| {
        let middle = values.len() / 2;
        values[0] = f32::INFINITY;
        values[middle] = f32::NEG_INFINITY;
    };
    values_case(scheme, true, make, |_, _| Ok(()))
}

fn subnormals(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let make = |values: &mut Vec<f32>| {
        for (index, value) in values.iter_mut().enumerate() {
            let bits = u32::try_from(index % 1000).unwrap_or(0) + 1;
            *value = f32::from_bits(if index % 2 == 0 { bits } else { bits | 1 << 31 });
        }
    };
    values_case(scheme, false, make, |_, decoded| {
        all_finite(decoded)?;
        match decoded.iter().find(|value| value.abs() > 1e-3) {
            Some(value) => Err(format!("a subnormal weight decodes to {value}")),
            None => Ok(()),
        }
    })
}

fn outlier(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    // Within the range of f16, in which many schemes store scales.
    let within = |values: &mut Vec<f32>| {
        let middle = values.len() / 2;
        values[middle] = 30_000.0;
    };
    let message = values_case(scheme, false, within, |_, decoded| all_finite(decoded))?;
    let beyond = |values: &mut Vec<f32>| {
        let middle = values.len() / 2;
        values[middle] = -1e30;
    };
    values_case(scheme, true, beyond, |_, _| Ok(()))?;
    Ok(message)
}

/// Encodes and decodes with every setting of which `wanted` gives a number of rows.
fn rows_case(scheme: &Scheme, wanted: impl Fn(&TensorPlan) -> Option<u64>) -> Checked<String> {
    let mut done = 0;
    for subject in scheme.subjects(false)? {
        let Some(rows) = wanted(&subject.plan) else { continue };
        let matrix = matrix(rows, subject.matrix.cols);
        let Some(plan) = scheme.plan(&subject.state, &matrix)? else { continue };
        let label = format!("{}, as {rows} rows", subject.label);
        let subject = Subject { matrix, plan, label, ..subject };
        let values = subject.weights(9);
        let one = subject.encode(&values, Way { fill: 0xaa, scratch_fill: 0xaa, ..PLAIN })?;
        let two = subject.encode(&values, Way { fill: 0x55, scratch_fill: 0x55, split: Split::Groups })?;
        same(&one, &two, &subject, "bytes past the last row are not a function of the matrix")?;
        let decoded = subject.decode(&one)?;
        all_finite(&decoded).or_else(|reason| fail(format!("{reason} ({})", subject.label)))?;
        done += 1;
    }
    if done == 0 {
        return skip("no setting of the scheme takes such a matrix");
    }
    Ok(format!("{done} settings"))
}

fn short_group(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    rows_case(scheme, |plan| {
        (1 < plan.row_group && plan.row_group <= 4096).then(|| plan.row_group + plan.row_group / 2)
    })
}

fn one_row(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    rows_case(scheme, |_| Some(1))
}

/// Sum of squared errors over the sum of squares.
fn relative_mse(values: &[f32], decoded: &[f32]) -> f64 {
    let square = |value: f64| value * value;
    let error: f64 = values.iter().zip(decoded).map(|(a, b)| square(f64::from(*a) - f64::from(*b))).sum();
    error / values.iter().map(|value| square(f64::from(*value))).sum::<f64>()
}

/// Rounding to `bits` bits by the largest magnitude of 64 weights; at 1 bit, sign times mean magnitude.
fn plain_rounding(values: &[f32], bits: u32) -> Vec<f32> {
    let mut rounded = values.to_vec();
    for block in rounded.chunks_mut(64) {
        #[expect(clippy::cast_precision_loss, reason = "64 and 2^15 fit f32")]
        if bits < 2 {
            let mean = block.iter().map(|value| value.abs()).sum::<f32>() / block.len() as f32;
            block.iter_mut().for_each(|value| *value = mean.copysign(*value));
        } else {
            let top = ((1u32 << (bits.min(16) - 1)) - 1) as f32;
            let scale = block.iter().fold(0.0f32, |max, value| max.max(value.abs())) / top;
            if scale > 0.0 {
                block.iter_mut().for_each(|value| *value = (*value / scale).round_ties_even() * scale);
            }
        }
    }
    rounded
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures"
)]
fn round_trip(scheme: &Scheme, outcome: &mut CaseOutcome) -> Checked<String> {
    let mut message = String::new();
    for (index, subject) in scheme.subjects(false)?.iter().enumerate() {
        let values = subject.weights(10);
        let decoded = subject.decode(&subject.encode(&values, PLAIN)?)?;
        let error = relative_mse(&values, &decoded);
        if index > 0 {
            // Extreme settings may lose nearly everything, but must not make it worse than dropping the matrix.
            if error.is_nan() || error > 1.5 {
                return fail(format!(
                    "relative mean squared error {error:.3}: worse than zeros ({})",
                    subject.label
                ));
            }
            continue;
        }
        let bytes = subject.plan.total_bytes(subject.matrix.rows).unwrap_or(u64::MAX);
        let bits = bytes as f64 * 8.0 / values.len() as f64;
        let equal = (bits.floor() as u32).clamp(1, 16);
        let plain = relative_mse(&values, &plain_rounding(&values, equal));
        // Half of less than three bits is no rounding to compare with, and layouts of that size (ternary weights, signs) are
        // made for models trained to have such weights: on Gaussian ones they need only beat dropping the matrix.
        let (bound, yardstick) = if equal < 3 {
            (1.0, "zeros")
        } else {
            (relative_mse(&values, &plain_rounding(&values, equal / 2)), "rounding at half the bits")
        };
        outcome.figures.extend([
            ("bits_per_weight".to_owned(), bits),
            ("relative_mse".to_owned(), error),
            ("plain_relative_mse".to_owned(), plain),
        ]);
        message = format!(
            "{bits:.3} bits a weight, relative error {error:.2e}; plain rounding at {equal} bits {plain:.2e}"
        );
        if error.is_nan() || error > bound {
            return fail(format!("{message}; the bound is {bound:.2e}, {yardstick}"));
        }
    }
    Ok(message)
}

/// Runs `test` with a tensor, its decoded rows and the runtime of every setting that has one.
fn runtime_case(
    scheme: &Scheme,
    test: impl Fn(&Subject, &RawTensor, &Runtime, &[f32]) -> Checked<bool>,
) -> Checked<String> {
    let mut done = 0;
    for subject in scheme.subjects(false)? {
        let Some(runtime) = subject.state.runtime()? else { continue };
        let stored = subject.encode(&subject.weights(11), PLAIN)?;
        let decoded = subject.decode(&stored)?;
        let mut verdict = Ok(false);
        subject.with_tensor(&stored, |tensor| {
            verdict = test(&subject, tensor, &runtime, &decoded);
            Ok(())
        })?;
        done += usize::from(verdict?);
    }
    if done == 0 {
        return skip("the scheme has no such kernel");
    }
    Ok(format!("{done} settings"))
}

fn dot(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    const COUNT: usize = 3;
    runtime_case(scheme, |subject, tensor, runtime, decoded| {
        let tolerance = match runtime.act_kind {
            abi::ACT_F32 => 1e-4,
            abi::ACT_BF16 => 1e-2,
            abi::ACT_INT8 => 3e-2,
            other => return fail(format!("act_kind {other} is not one of ABI 1")),
        };
        let cols = decoded.len() / usize::try_from(subject.matrix.rows).unwrap_or(1);
        let rows = decoded.len() / cols;
        let x: Vec<f32> = Noise::weights(12, cols * COUNT).iter().map(|value| value * 50.0).collect();
        let bytes = runtime.act_bytes(tensor);
        if bytes != runtime.act_bytes(tensor) || runtime.act_key(tensor) != runtime.act_key(tensor) {
            return fail("act_bytes() or act_key() vary from call to call");
        }
        let stride = usize::try_from(bytes).unwrap_or(usize::MAX);
        let mut packed = Vec::new();
        for activation in x.chunks(cols) {
            let mut once: Option<Vec<u8>> = None;
            for fill in [0xaa, 0x55] {
                let mut buffer_of = Guarded::new(bytes, fill)?;
                let mut scratch = Guarded::new(subject.plan.decode_scratch_bytes, fill)?;
                let raw = buffer(scratch.bytes_mut());
                runtime.act_pack(tensor, activation, buffer_of.bytes_mut(), raw)?;
                buffer_of.check("packed activation")?;
                scratch.check("scratch of act_pack()")?;
                once.get_or_insert_with(|| buffer_of.bytes().to_vec());
            }
            packed.extend(once.unwrap_or_default());
        }
        let multiply = |first: u64, last: u64, count: usize, from: usize| -> Checked<Vec<f32>> {
            let wide = usize::try_from(last - first).unwrap_or(0);
            let mut y = Guarded::new((count * wide * 4) as u64, 0xff)?;
            let mut scratch = Guarded::new(subject.plan.decode_scratch_bytes, 0x7f)?;
            let raw = buffer(scratch.bytes_mut());
            let packed = &packed[from * stride..];
            runtime.dot(tensor, &(first..last), packed, count, stride, y.floats_mut(), wide, raw)?;
            y.check("results of dot()")?;
            scratch.check("scratch of dot()")?;
            Ok(y.floats_mut().to_vec())
        };
        let all = multiply(0, subject.matrix.rows, COUNT, 0)?;
        for (a, x) in x.chunks(cols).enumerate() {
            for (r, row) in decoded.chunks(cols).enumerate() {
                let products = || row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (exact, size): (f64, f64) = (products().sum(), products().map(f64::abs).sum());
                let got = f64::from(all[a * rows + r]);
                if (got - exact).abs() > tolerance * size + 1e-12 || got.is_nan() {
                    return fail(format!(
                        "row {r}, activation {a}: dot() gives {got}, decode() {exact} ({})",
                        subject.label
                    ));
                }
            }
        }
        for a in 0..COUNT {
            let mut one = Vec::new();
            let mut first = 0;
            while first < subject.matrix.rows {
                let last = subject.matrix.rows.min(first + subject.plan.row_group);
                one.extend(multiply(first, last, 1, a)?);
                first = last;
            }
            same_floats(
                &all[a * rows..(a + 1) * rows],
                &one,
                subject,
                "dot() depends on n_act or on the row split",
            )?;
        }
        Ok(true)
    })
}

fn decode_i8(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    const BLOCK: u32 = 32;
    runtime_case(scheme, |subject, tensor, runtime, decoded| {
        let cols = decoded.len() / usize::try_from(subject.matrix.rows).unwrap_or(1);
        let rows = decoded.len() / cols;
        let blocks = cols.div_ceil(32);
        let mut q = Guarded::new(decoded.len() as u64, 0x55)?;
        let mut scale = Guarded::new((rows * blocks * 4) as u64, 0xff)?;
        let mut min = Guarded::new((rows * blocks * 4) as u64, 0xff)?;
        let mut scratch = Guarded::new(subject.plan.decode_scratch_bytes, 0x7f)?;
        let raw = buffer(scratch.bytes_mut());
        let done = runtime.decode_i8(
            tensor,
            &(0..subject.matrix.rows),
            subject.matrix.cols,
            bytemuck::cast_slice_mut(q.bytes_mut()),
            scale.floats_mut(),
            min.floats_mut(),
            BLOCK,
            raw,
        );
        match done {
            None | Some(Err(CallFailure::Status { status: abi::EUNSUPPORTED, .. })) => return Ok(false),
            Some(result) => result?,
        }
        for (what, guarded) in [("q", &q), ("scale", &scale), ("min", &min), ("scratch", &scratch)] {
            guarded.check(&format!("{what} of decode_i8()"))?;
        }
        let q: &[i8] = bytemuck::cast_slice(q.bytes());
        for (index, weight) in decoded.iter().enumerate() {
            let block = index / cols * blocks + index % cols / 32;
            let (scale, min) = (scale.floats_mut()[block], min.floats_mut()[block]);
            let got = f32::from(q[index]) * scale + min;
            if got.is_nan() || (got - weight).abs() > 0.51 * scale.abs() + 1e-5 * weight.abs() {
                return fail(format!(
                    "weight {index} is {got}, and decode() gives {weight} ({})",
                    subject.label
                ));
            }
        }
        Ok(true)
    })
}

fn float_environment(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    // The host compares the environment around every call; this case makes all of them.
    let subjects = scheme.subjects(true)?;
    for subject in &subjects {
        let stored = subject.encode(&subject.weights(13), Way { split: Split::Groups, ..PLAIN })?;
        subject.decode_as(&stored, Split::Groups, 0, 0)?;
    }
    runtime_case(scheme, |subject, tensor, runtime, decoded| {
        let cols = decoded.len() / usize::try_from(subject.matrix.rows).unwrap_or(1);
        let mut packed = Guarded::new(runtime.act_bytes(tensor), 0)?;
        let mut scratch = Guarded::new(subject.plan.decode_scratch_bytes, 0)?;
        let raw = buffer(scratch.bytes_mut());
        runtime.act_pack(tensor, &decoded[..cols], packed.bytes_mut(), raw)?;
        Ok(true)
    })
    .or_else(|verdict| match verdict {
        Verdict::Skip(_) => Ok(String::new()),
        other => Err(other),
    })?;
    Ok(format!("{} settings and shapes", subjects.len()))
}

fn error_texts(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let subject = scheme.subject()?;
    let mut values = subject.weights(14);
    values[0] = f32::NAN;
    let mut provoked = 0;
    // All the ways in which schemes usually refuse; with large, small and no room for the text.
    for capacity in [1024, 8, 1, 0] {
        let mut judge = |failure: Option<CallFailure>| match failure {
            None => Ok(()),
            Some(CallFailure::Status { status, text }) => {
                provoked += 1;
                if status == abi::EPANIC {
                    return fail(format!("the plugin panicked: {text}"));
                }
                if !(abi::EPARAM..=abi::EPANIC).contains(&status) {
                    return fail(format!("status {status} is not one of ABI 1"));
                }
                if capacity >= 8 && text.ends_with("without a message") {
                    return fail(format!("status {status} comes without words"));
                }
                if capacity >= 8 && text.contains(char::REPLACEMENT_CHARACTER) && capacity > 8 {
                    return fail(format!("the text is not UTF-8: {text}"));
                }
                Ok(())
            }
            Some(other) => Err(other.into()),
        };
        let failures = with_error_capacity(capacity, || {
            let mut failures = Vec::new();
            for (rows, cols) in [(1, 1), (3, 7), (2, 33), (u64::MAX, u64::MAX)] {
                failures.push(subject.state.plan(&matrix(rows, cols)).err());
            }
            let mut unknown = subject.params.clone();
            unknown.insert("no_such_key".to_owned(), ParamValue::Int(1));
            failures.push(scheme.open(&unknown).err());
            failures.push(subject.try_encode(&values, PLAIN).ok().and_then(Result::err));
            failures
        });
        for failure in failures {
            judge(failure)?;
        }
    }
    if provoked == 0 {
        return skip("nothing that the kit tries makes the scheme refuse");
    }
    Ok(format!("{provoked} errors with words, within their buffers"))
}

fn panics(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let mut calls = 0;
    for subject in &scheme.subjects(true)? {
        let count = subject.weights(0).len();
        let mut noise = Noise::new(15);
        // Any bit pattern is a float: NaN with payloads, infinities, subnormals, the largest and smallest.
        #[expect(clippy::cast_possible_truncation, reason = "the low half is as random as the high one")]
        let any: Vec<f32> = (0..count).map(|_| f32::from_bits(noise.bits() as u32)).collect();
        let extreme: Vec<f32> =
            (0..count).map(|index| [f32::MAX, f32::MIN, f32::MIN_POSITIVE, -0.0][index % 4]).collect();
        for values in [any, extreme] {
            if let Ok(stored) = subject.try_encode(&values, PLAIN)? {
                drop(subject.try_decode(&stored, Split::Whole, 0, 0)?);
            }
            calls += 1;
        }
    }
    Ok(format!("{calls} matrices of extreme values"))
}

/// A host whose structure ends before its last field.
fn shorter_host(isa: Isa) -> &'static HostTable {
    unsafe extern "C" fn past_the_end(_: *mut std::ffi::c_void, _: abi::Str) -> *const std::ffi::c_void {
        // The field is not there; a plugin that calls it would call through garbage with a real older host.
        std::process::abort()
    }
    let usual = usual(isa);
    let raw =
        abi::Host { size: offset_of!(abi::Host, extension), extension: Some(past_the_end), ..usual.raw };
    Box::leak(Box::new(HostTable { context: usual.context, raw }))
}

/// A host whose structure goes on after its last field.
fn longer_host(isa: Isa) -> &'static HostTable {
    let usual = usual(isa);
    let longer: &'static Longer<HostTable> = Box::leak(Box::new(Longer {
        known: HostTable {
            context: usual.context,
            raw: abi::Host {
                size: size_of::<abi::Host>() + EXTRA,
                abi_minor: abi::ABI_MINOR + 7,
                ..usual.raw
            },
        },
        more: [0xee; EXTRA],
    }));
    &longer.known
}

const EXTRA: usize = 64;

/// A structure with fields that this host does not know.
#[repr(C)]
struct Longer<T> {
    known: T,
    more: [u8; EXTRA],
}

fn older_host(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let Some((_, params)) = scheme.settings.first() else { return skip("no settings") };
    let state = match scheme.open(params) {
        Ok(state) => state,
        Err(CallFailure::Status { status, text }) if status != abi::EPANIC => {
            return Ok(format!("refuses such a host: {text}"));
        }
        Err(failure) => return Err(failure.into()),
    };
    let subject = scheme.subject()?;
    // A plan without its last field: what lies behind must stay as it is.
    let mut plan = Longer { known: empty_plan(), more: [0xee; EXTRA] };
    plan.known.size = offset_of!(abi::Plan, job_bytes_hint);
    plan.known.job_bytes_hint = 0xeeee_eeee_eeee_eeee;
    let shape = subject.matrix.raw(subject.matrix.rows, None);
    match state.plan_into(&raw const shape, &raw mut plan.known) {
        Ok(()) | Err(CallFailure::Status { status: abi::EPARAM..=abi::EINTERNAL, .. }) => {}
        Err(failure) => return Err(failure.into()),
    }
    if plan.known.job_bytes_hint != 0xeeee_eeee_eeee_eeee || plan.more != [0xee; EXTRA] {
        return fail(
            "plan() writes past the `size` that the host gave; ask KBIT_HAS before writing the last fields",
        );
    }
    // Encoding with the shorter host works as with the usual one.
    let values = subject.weights(16);
    let usual = scheme.open_with(params, usual(Isa::Best))?;
    let with = |state| subject.with_state(state);
    let expected = with(usual).encode(&values, PLAIN)?;
    same(&expected, &with(state).encode(&values, PLAIN)?, &subject, "an older host gets other bytes")?;
    Ok("served, and nothing past `size` touched".to_owned())
}

fn newer_host(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let subject = scheme.subject()?;
    let values = subject.weights(17);
    let expected = {
        let state = scheme.open_with(&subject.params, usual(Isa::Best))?;
        subject.with_state(state).encode(&values, PLAIN)?
    };
    // Longer values, then longer matrix, aux and plan.
    let plain = Values::new(&subject.params, &scheme.text.params);
    let longer: Vec<Longer<abi::Value>> = plain
        .pointers()
        .iter()
        .map(|value| {
            // SAFETY: `plain` is alive and holds these structures.
            let mut known = unsafe { **value };
            known.size += EXTRA;
            Longer { known, more: [0xee; EXTRA] }
        })
        .collect();
    let pointers: Vec<*const abi::Value> =
        longer.iter().map(|value| std::ptr::from_ref(value).cast()).collect();
    let state: Arc<State> = State::with_host(scheme.functions, scheme.host, &pointers)?;
    let mut plan = Longer { known: empty_plan(), more: [0xee; EXTRA] };
    plan.known.size += EXTRA;
    let lengthen = |mut known: abi::Matrix| {
        known.size += EXTRA;
        Longer { known, more: [0xee; EXTRA] }
    };
    let shape = lengthen(subject.matrix.raw(subject.matrix.rows, None));
    state.plan_into((&raw const shape).cast(), (&raw mut plan).cast())?;
    if plan.more != [0xee; EXTRA] {
        return fail("plan() writes fields that it cannot know");
    }
    // SAFETY: the plugin's strings live until the process ends.
    let checked = unsafe {
        TensorPlan::checked(&plan.known, &subject.matrix, scheme.ggml_type(), scheme.functions.optional())
    };
    if checked.as_ref() != Ok(&subject.plan) {
        return fail("a newer host gets another plan");
    }
    let mut aux = subject.aux().raw();
    aux.size += EXTRA;
    let aux = Longer { known: aux, more: [0xee; EXTRA] };
    let whole = lengthen(
        subject
            .matrix
            .raw(subject.matrix.rows, Some(&values).filter(|_| subject.plan.whole_matrix).map(|v| &**v)),
    );
    let mut job = state.begin_raw((&raw const whole).cast(), (&raw const aux).cast())?;
    let mut stored = Stored { heads: Vec::new(), parts: Vec::new() };
    for (index, part) in subject.plan.parts.iter().enumerate() {
        stored.heads.push(crate::scheme::zeroed(Some(part.head_bytes)).unwrap_or_default());
        stored.parts.push(
            crate::scheme::zeroed(subject.plan.part_bytes(index, subject.matrix.rows)).unwrap_or_default(),
        );
    }
    let rows = 0..subject.matrix.rows;
    let mut scratch = Guarded::new(subject.plan.scratch_bytes, 0)?;
    if subject.plan.needs_prepare() {
        let mut stats = Guarded::new(subject.plan.groups(rows.end) * subject.plan.stat_bytes, 0)?;
        if subject.plan.stat_bytes > 0 {
            let raw = buffer(scratch.bytes_mut());
            job.observe(&subject.matrix, &rows, &values, stats.bytes_mut(), raw)?;
        }
        let mut heads: Vec<&mut [u8]> = stored.heads.iter_mut().map(Vec::as_mut_slice).collect();
        job.prepare(stats.bytes(), &mut heads)?;
    }
    let slab = lengthen(subject.matrix.raw(subject.matrix.rows, Some(&values)));
    let mut parts: Vec<&mut [u8]> = stored.parts.iter_mut().map(Vec::as_mut_slice).collect();
    job.encode_raw(&rows, (&raw const slab).cast(), &mut parts, buffer(scratch.bytes_mut()))?;
    same(&expected, &stored, &subject, "a newer host gets other bytes")?;
    Ok("equal plan and bytes".to_owned())
}

fn cancellation(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let subject = scheme.subject()?;
    let values = subject.weights(18);
    let expected = subject.encode(&values, PLAIN)?;
    let state = match scheme.open_with(&subject.params, test_host(Isa::Best, 2, true)) {
        Ok(state) => state,
        Err(CallFailure::Status { status: abi::ECANCELLED, .. }) => return Ok("open() stops".to_owned()),
        Err(failure) => return Err(failure.into()),
    };
    let cancelled = subject.with_state(state);
    match cancelled.try_encode(&values, PLAIN)? {
        Ok(stored) => {
            same(&expected, &stored, &subject, "a cancelled host gets other bytes and no error")?;
            Ok("goes on to the end, with the same bytes".to_owned())
        }
        Err(CallFailure::Status { status: abi::ECANCELLED, .. }) => {
            Ok("stops with KBIT_ECANCELLED".to_owned())
        }
        Err(failure) => fail(format!("a cancelled host gets {}", failure_text(&failure))),
    }
}

fn damaged_bytes(scheme: &Scheme, _: &mut CaseOutcome) -> Checked<String> {
    let (mut decoded, mut refused) = (0, 0);
    for subject in &scheme.subjects(false)? {
        let good = subject.encode(&subject.weights(19), PLAIN)?;
        let mut noise = Noise::new(20);
        #[expect(clippy::cast_possible_truncation, reason = "a random byte")]
        let makers: [&mut dyn FnMut() -> u8; 3] = [&mut || 0xff, &mut || 0, &mut || noise.bits() as u8];
        for make in makers {
            let mut damaged = good.clone();
            damaged.heads.iter_mut().chain(&mut damaged.parts).flatten().for_each(|byte| *byte = make());
            match subject.try_decode(&damaged, Split::Whole, 0, 0)? {
                Ok(_) => decoded += 1,
                Err(CallFailure::Status { text, .. }) if !text.ends_with("without a message") => refused += 1,
                Err(failure) => return Err(failure.into()),
            }
        }
    }
    Ok(format!("{decoded} decode to something, {refused} refused with words"))
}

/// A hash of everything that encoding and decoding give.
fn digest(scheme: &Scheme, outcome: &mut CaseOutcome) -> Checked<String> {
    let mut all = Vec::new();
    for subject in &scheme.subjects(false)? {
        let stored = subject.encode(&subject.weights(21), Way { split: Split::Uneven, ..PLAIN })?;
        let decoded = subject.decode(&stored)?;
        stored.heads.iter().chain(&stored.parts).for_each(|bytes| all.extend_from_slice(bytes));
        decoded.iter().for_each(|value| all.extend_from_slice(&value.to_bits().to_le_bytes()));
    }
    outcome.digest = Some(sha256(&all));
    Ok(format!("{} bytes of outputs", all.len()))
}
