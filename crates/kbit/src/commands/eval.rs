//! `kbit eval`.

use crate::cli::{Eval, MetricArg};
use crate::failure::{DONE, Failure};
use crate::output;
use crate::session::Session;
use kbit_eval::{Divergence, Perplexity};
use kbit_host::Isolation;
use kbit_models::ConvertOptions;
use kbit_pipeline::measure::DataSet;
use kbit_pipeline::open::OpenModel;
use std::time::Instant;

/// Measures a model on a text or a task.
pub fn eval(session: &Session, arguments: &Eval) -> Result<u8, Failure> {
    if arguments.stream && !matches!(arguments.metric, MetricArg::Perplexity | MetricArg::Kl) {
        return Err(Failure::usage(
            "--stream goes with the metrics perplexity and kl: others go through the model text by text",
        ));
    }
    if let (MetricArg::Task, Some(task)) = (arguments.metric, &arguments.task) {
        return super::task::eval(session, arguments, task);
    }
    let text = arguments.text.as_ref().ok_or_else(|| Failure::usage("this metric needs --text F"))?;
    let registry = session.registry(&[], None)?;
    let model = super::open_model_as(&arguments.model, &registry, arguments.computing, arguments.stream)?;
    let context = usize::try_from(arguments.context).map_err(Failure::usage)?;
    let chunks = arguments.chunks.and_then(|chunks| usize::try_from(chunks).ok());
    let mut data = DataSet::tokenize(text, model.tokenizer()?, context, chunks)?;
    data.windows.stride = arguments.stride.and_then(|stride| usize::try_from(stride).ok());
    let bar = session.progress().items("windows", data.windows.count(data.tokens.len())? as u64);
    let tick = |done: usize, _total: usize| {
        bar.set(done as u64);
    };
    let started = Instant::now();
    let (mut document, text) = match (arguments.metric, &arguments.reference) {
        (MetricArg::Perplexity, _) => {
            let found = kbit_eval::perplexity(&model.model, &data.tokens, &data.windows, &tick)?;
            perplexity(&found, data.bytes_per_token())
        }
        (MetricArg::Task, _) => return Err(Failure::usage("the metric task needs --task FILE.yaml")),
        (MetricArg::Information, _) => super::information::measure(arguments, &model, &data, &tick)?,
        (MetricArg::Kl, None) => return Err(Failure::usage("the metric kl needs --reference BASE")),
        (MetricArg::Kl, Some(path)) => {
            let open = if arguments.stream { OpenModel::stream } else { OpenModel::open };
            let reference = open(path, &registry, Isolation::InProcess, &ConvertOptions::default())?;
            let others = DataSet::tokenize(text, reference.tokenizer()?, context, chunks)?;
            if let Some(place) = first_difference(&data, &others) {
                return Err(Failure::failed(format!(
                    "{} splits the text into other tokens than {}, from token {place} on: the reference must be a model with the \
                     same tokenizer, usually the one that the file was made from",
                    path.display(),
                    arguments.model.display()
                )));
            }
            let reference = kbit_eval::Reference::new(&reference.model, &data.tokens, &data.windows)?;
            let found = kbit_eval::kl_divergence(&reference, &[&model.model], &tick)?;
            let Some(found) = found.first() else { return Err(Failure::failed("nothing was measured")) };
            divergence(found, data.bytes_per_token())
        }
    };
    drop(bar);
    let seconds = started.elapsed().as_secs_f64();
    let chunks = document.get("chunks").and_then(serde_json::Value::as_u64).unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = (chunks * u64::from(arguments.context)) as f64 / seconds.max(1e-9);
    if session.global.json {
        if let Some(fields) = document.as_object_mut() {
            fields.insert("context".into(), arguments.context.into());
            fields.insert("stride".into(), arguments.stride.into());
            fields.insert("mode".into(), arguments.computing.mode.to_string().into());
            fields.insert("cache_type".into(), arguments.computing.cache_type.to_string().into());
            fields.insert("seconds".into(), seconds.into());
            fields.insert("tokens_per_second".into(), rate.into());
            fields.insert("peak_rss_bytes".into(), kbit_formats::peak_rss_bytes().into());
        }
        output::json(&document)?;
    } else {
        output::text(&format!(
            "{text}{chunks} windows of {} tokens, {seconds:.2} s, {rate:.0} tokens/s, {}\n",
            arguments.context,
            output::peak_memory()
        ))?;
    }
    Ok(DONE)
}

/// The first token that differs between two readings of a text.
fn first_difference(one: &DataSet, other: &DataSet) -> Option<usize> {
    let pairs = one.tokens.iter().zip(&other.tokens);
    let shorter = one.tokens.len().min(other.tokens.len());
    let at_end = (one.tokens.len() != other.tokens.len()).then_some(shorter);
    pairs.into_iter().position(|(one, other)| one != other).or(at_end)
}

fn perplexity(found: &Perplexity, bytes_per_token: f64) -> (serde_json::Value, String) {
    let bits = found.bits_per_token();
    let document = serde_json::json!({
        "metric": "perplexity",
        "value": found.value,
        "stderr": found.stderr,
        "nll": found.nll,
        "nll_stderr": found.nll_stderr(),
        "bits_per_token": bits,
        "bits_per_byte": bits / bytes_per_token,
        "tokens": found.tokens,
        "chunks": found.chunks,
        "per_chunk": found.per_chunk,
        "window_nll": found.window_nlls,
        "window_tokens": found.window_tokens,
    });
    let text = format!(
        "perplexity {:.4} +- {:.4} ({:.5} nats, {bits:.5} bits a token, {:.5} bits a byte)\n",
        found.value,
        found.stderr,
        found.nll,
        bits / bytes_per_token
    );
    (document, text)
}

fn divergence(found: &Divergence, bytes_per_token: f64) -> (serde_json::Value, String) {
    let (spread, change, flips) = (&found.spread, &found.true_token, &found.flips);
    let bits = found.perplexity.bits_per_token();
    let document = serde_json::json!({
        "metric": "kl",
        "value": found.mean_kld,
        "stderr": found.stderr,
        "nll": found.perplexity.nll,
        "median": spread.median,
        "p99": spread.p99,
        "max": spread.max,
        "percentiles": spread,
        "same_top": found.same_top,
        "same_top_stderr": found.same_top_stderr,
        "true_token": change,
        "flips": flips,
        "ln_ppl_ratio": found.ln_ppl_ratio,
        "ln_ppl_ratio_stderr": found.ln_ppl_ratio_stderr,
        "perplexity": found.perplexity.value,
        "perplexity_stderr": found.perplexity.stderr,
        "perplexity_difference": found.ppl_difference,
        "perplexity_difference_stderr": found.ppl_difference_stderr,
        "reference_perplexity": found.reference.value,
        "bits_per_token": bits,
        "bits_per_byte": bits / bytes_per_token,
        "tokens": found.tokens,
        "chunks": found.chunks,
        "window_kld": found.window_klds,
        "window_nll": found.perplexity.window_nlls,
        "window_tokens": found.perplexity.window_tokens,
    });
    let text = format!(
        "mean KL divergence {:.6} +- {:.6} nats (median {:.6}, 90 % {:.6}, 95 % {:.6}, 99 % {:.6}, 99.9 % {:.6}, largest {:.4})\n\
         same likeliest token {:.2} +- {:.2} %; of the true token, {:.2} % turned wrong and {:.2} % right\n\
         probability of the true token {:+.3} +- {:.3} %, root mean square {:.3} +- {:.3} %\n\
         perplexity {:.4}, {:+.4} +- {:.4} from the reference, ln(ratio) {:.6} +- {:.6}\n",
        found.mean_kld,
        found.stderr,
        spread.median,
        spread.p90,
        spread.p95,
        spread.p99,
        spread.p99_9,
        spread.max,
        found.same_top * 100.0,
        found.same_top_stderr * 100.0,
        flips.to_wrong * 100.0,
        flips.to_right * 100.0,
        change.mean * 100.0,
        change.mean_stderr * 100.0,
        change.rms * 100.0,
        change.rms_stderr * 100.0,
        found.perplexity.value,
        found.ppl_difference,
        found.ppl_difference_stderr,
        found.ln_ppl_ratio,
        found.ln_ppl_ratio_stderr
    );
    (document, text)
}
