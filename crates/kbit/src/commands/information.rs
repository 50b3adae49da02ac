//! `kbit eval --metric information`.

use crate::cli::Eval;
use crate::failure::Failure;
use kbit_engine::Sampling;
use kbit_eval::scores::Distinct;
use kbit_eval::{Baseline, Baselines, EvalError, Information, Progress};
use kbit_pipeline::measure::DataSet;
use kbit_pipeline::open::OpenModel;
use serde_json::{Value, json};
use std::path::Path;

/// What the model knows of the text, and with `--generate` of what it writes in its place: a document, and words for people.
pub fn measure(
    arguments: &Eval,
    model: &OpenModel,
    data: &DataSet,
    progress: &Progress<'_>,
) -> Result<(Value, String), Failure> {
    let Some(path) = &arguments.baseline_text else {
        return Err(Failure::usage("the metric information needs --baseline-text F"));
    };
    let baselines = baselines(path, model, data)?;
    let measure = |tokens: &[u32], per_token: f64| {
        kbit_eval::information(&model.model, tokens, &data.windows, &baselines, per_token, progress)
    };
    let found = measure(&data.tokens, data.bytes_per_token())?;
    let diversity = kbit_eval::diversity(&data.tokens, &data.windows)?;
    let mut document = json!({ "metric": "information", "value": found.bigram.reduction });
    let mut text = words(&found, &diversity);
    if let Some(fields) = document.as_object_mut() {
        fields.extend(figures(&found, &diversity)?);
        // The error of `value`, as of every metric; that of `bits_per_token` under a name of its own.
        fields.insert("stderr".into(), found.bigram.stderr.into());
        fields.insert("bits_per_token_stderr".into(), found.stderr.into());
        fields.insert("nll".into(), (found.bits_per_token * std::f64::consts::LN_2).into());
    }
    if arguments.generate {
        let sampling = Sampling {
            temperature: arguments.temperature,
            top_k: usize::try_from(arguments.top_k).map_err(Failure::usage)?,
            top_p: arguments.top_p,
            min_p: 0.0,
            seed: arguments.seed,
            ..Sampling::greedy()
        };
        let tokens = kbit_eval::continued(&model.model, &data.tokens, &data.windows, &sampling, progress)
            .map_err(wrong_sampling)?;
        let bytes = data.windows.scored_bytes(model.tokenizer()?, &tokens)?;
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let written = measure(&tokens, bytes.max(1) as f64 / found.tokens.max(1) as f64)?;
        let diversity = kbit_eval::diversity(&tokens, &data.windows)?;
        let mut fields = figures(&written, &diversity)?;
        for (name, value) in [
            ("seed", json!(sampling.seed)),
            ("temperature", json!(sampling.temperature)),
            ("top_k", json!(sampling.top_k)),
            ("top_p", json!(sampling.top_p)),
        ] {
            fields.insert(name.to_owned(), value);
        }
        if let Some(document) = document.as_object_mut() {
            document.insert("generated".into(), Value::Object(fields));
        }
        text += &format!(
            "written by the model itself (temperature {}, top-k {}, top-p {}, seed {}):\n{}",
            sampling.temperature,
            sampling.top_k,
            sampling.top_p,
            sampling.seed,
            words(&written, &diversity)
        );
    }
    Ok((document, text))
}

/// Sampling that the engine refuses is wrong usage; the rest failed.
fn wrong_sampling(error: EvalError) -> Failure {
    match error {
        EvalError::Engine(engine) => engine.into(),
        other => other.into(),
    }
}

/// Counts of the baseline text, which must not be the measured one.
fn baselines(path: &Path, model: &OpenModel, data: &DataSet) -> Result<Baselines, Failure> {
    let vocabulary = model.model.description().vocab;
    let (found, sha256) = kbit_pipeline::measure::baselines(path, model.tokenizer()?, vocabulary)?;
    if sha256 == data.sha256 {
        return Err(Failure::usage(format!(
            "--baseline-text {} is the measured text itself, of which counts know too much: give another one of its kind",
            path.display()
        )));
    }
    Ok(found)
}

fn figures(found: &Information, diversity: &[Distinct]) -> Result<serde_json::Map<String, Value>, Failure> {
    let mut fields = match serde_json::to_value(found)? {
        Value::Object(fields) => fields,
        other => return Err(Failure::failed(format!("figures are no object: {other}"))),
    };
    fields.insert("distinct".into(), serde_json::to_value(diversity)?);
    Ok(fields)
}

fn words(found: &Information, diversity: &[Distinct]) -> String {
    let error = |error: Option<f64>| error.map_or_else(String::new, |error| format!(" +- {error:.4}"));
    let mut text = format!(
        "{:.4}{} bits a token, {:.4} bits a byte\n",
        found.bits_per_token,
        error(found.stderr),
        found.bits_per_byte
    );
    let baselines: [(&str, Baseline); 3] =
        [("uniform", found.uniform), ("unigram", found.unigram), ("bigram", found.bigram)];
    for (name, baseline) in baselines {
        text += &format!(
            "{name}: {:.4} bits a token; the model takes away {:.4}{} ({:.1} %), {:.4}{} bits a byte\n",
            baseline.bits_per_token,
            baseline.reduction,
            error(baseline.stderr),
            baseline.share * 100.0,
            baseline.reduction_per_byte,
            error(baseline.reduction_per_byte_stderr),
        );
    }
    let shares: Vec<String> =
        diversity.iter().map(|found| format!("distinct-{} {:.4}", found.n, found.value)).collect();
    text + &shares.join(", ") + " of the tokens scored\n"
}
