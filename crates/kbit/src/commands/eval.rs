//! `kbit eval`.

use crate::cli::{Eval, MetricArg};
use crate::failure::{DONE, Failure};
use crate::output;
use crate::session::Session;
use kbit_eval::Perplexity;
use kbit_host::Isolation;
use kbit_models::ConvertOptions;
use kbit_pipeline::measure::DataSet;
use kbit_pipeline::open::OpenModel;
use std::time::Instant;

/// Measures a model on a text.
pub fn eval(session: &Session, arguments: &Eval) -> Result<u8, Failure> {
    let registry = session.registry(&[], None)?;
    let model = super::open_model(&arguments.model, &registry, arguments.computing)?;
    let context = usize::try_from(arguments.context).map_err(Failure::usage)?;
    let chunks = arguments.chunks.and_then(|chunks| usize::try_from(chunks).ok());
    let data = DataSet::tokenize(&arguments.text, model.tokenizer()?, context, chunks)?;
    let windows = data.tokens.len() / context;
    let bar =
        session.progress().items("windows", chunks.map_or(windows, |chunks| chunks.min(windows)) as u64);
    let tick = |done: usize, _total: usize| {
        bar.set(done as u64);
    };
    let started = Instant::now();
    let (mut document, text) = match (arguments.metric, &arguments.reference) {
        (MetricArg::Perplexity, _) => {
            let found = kbit_eval::perplexity(&model.model, &data.tokens, &data.windows, &tick)?;
            perplexity(&found)
        }
        (MetricArg::Kl, None) => return Err(Failure::usage("the metric kl needs --reference BASE")),
        (MetricArg::Kl, Some(reference)) => {
            let reference =
                OpenModel::open(reference, &registry, Isolation::InProcess, &ConvertOptions::default())?;
            let found = kbit_eval::kl_divergence(
                &reference.model,
                &[&model.model],
                &data.tokens,
                &data.windows,
                &tick,
            )?;
            let Some(found) = found.first() else { return Err(Failure::failed("nothing was measured")) };
            let document = serde_json::json!({
                "metric": "kl",
                "value": found.mean_kld,
                "stderr": found.stderr,
                "nll": found.perplexity.nll,
                "median": found.median,
                "p99": found.p99,
                "max": found.max,
                "same_top": found.same_top,
                "same_top_stderr": found.same_top_stderr,
                "ln_ppl_ratio": found.ln_ppl_ratio,
                "perplexity": found.perplexity.value,
                "tokens": found.tokens,
                "chunks": found.chunks,
            });
            let text = format!(
                "mean KL divergence {:.6} +- {:.6} nats (median {:.6}, 99 % {:.6}, largest {:.4})\n\
                 same likeliest token {:.2} +- {:.2} %\nperplexity {:.4}, ln(ratio) {:.6}\n",
                found.mean_kld,
                found.stderr,
                found.median,
                found.p99,
                found.max,
                found.same_top * 100.0,
                found.same_top_stderr * 100.0,
                found.perplexity.value,
                found.ln_ppl_ratio
            );
            (document, text)
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

fn perplexity(found: &Perplexity) -> (serde_json::Value, String) {
    let document = serde_json::json!({
        "metric": "perplexity",
        "value": found.value,
        "stderr": found.stderr,
        "nll": found.nll,
        "tokens": found.tokens,
        "chunks": found.chunks,
        "per_chunk": found.per_chunk,
    });
    let text =
        format!("perplexity {:.4} +- {:.4} ({:.5} nats a token)\n", found.value, found.stderr, found.nll);
    (document, text)
}
