//! `kbit convert`.

use crate::cli::{Convert, IsolationArg, OnFallback};
use crate::failure::{DONE, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_formats::Checkpoint;
use kbit_host::Isolation;
use kbit_models::{Conversion, ConvertOptions};
use kbit_pipeline::convert::{RunOptions, Written, write_file};
use kbit_pipeline::plan::{FilePlan, PlanOptions};
use kbit_pipeline::recipe::Recipe;
use std::time::Instant;

/// Quantizes one model into one file, or prints the plan.
pub fn convert(session: &Session, arguments: &Convert) -> Result<u8, Failure> {
    let registry = session.registry(&[], None)?;
    let isolation = match arguments.isolation {
        IsolationArg::None => Isolation::InProcess,
        IsolationArg::Process => Isolation::Process,
    };
    let recipe = Recipe::from_arguments(&registry, &arguments.scheme, &arguments.map, isolation)?;
    let checkpoint = Checkpoint::open(&arguments.source)?;
    let options = ConvertOptions {
        pass_through_other_modalities: arguments.pass_through,
        without_tokenizer: arguments.without_tokenizer,
        pre_tokenizer: arguments.pre_tokenizer.clone(),
        architecture: arguments.architecture.clone(),
        name: None,
    };
    let conversion = kbit_models::convert(&checkpoint, &options)?;
    let plan_options = PlanOptions {
        fallback_is_error: arguments.on_fallback == OnFallback::Error,
        provenance: !arguments.no_provenance,
    };
    let plan = FilePlan::new(&conversion, &recipe, &registry, &plan_options)?;
    if arguments.dry_run {
        print_plan(session, &conversion, &plan)?;
        return Ok(DONE);
    }
    for fallback in plan.fallbacks() {
        output::note(&format!(
            "warning: {} is stored as {} at {} bits a weight: {}",
            fallback.tensor, fallback.stored, fallback.bits, fallback.reason
        ));
    }
    let started = Instant::now();
    let options = RunOptions {
        overwrite: arguments.overwrite,
        error_statistics: !arguments.no_error_statistics,
        ..RunOptions::default()
    };
    let bar = session.progress().bytes(&recipe.label, plan.weights().saturating_mul(4));
    let written = write_file(&checkpoint, &conversion, &plan, &arguments.out, &options, &bar)?;
    drop(bar);
    print_written(session, &conversion, &plan, &written, started.elapsed().as_secs_f64())?;
    Ok(DONE)
}

fn print_plan(session: &Session, conversion: &Conversion, plan: &FilePlan) -> Result<(), Failure> {
    let lines = plan.lines(conversion);
    let (all, decoder) = plan.bits_per_weight(conversion);
    let fallbacks: Vec<_> = plan.fallbacks().collect();
    if session.global.json {
        return Ok(output::json(&serde_json::json!({
            "tensors": lines,
            "fallbacks": fallbacks,
            "file_bytes": plan.layout.file_bytes(),
            "bits_per_weight": all,
            "decoder_bits_per_weight": decoder,
            "memory_bytes": plan.memory_bytes(),
        }))?);
    }
    let mut table = Table::new(&["tensor", "shape", "stored by", ">size", ">bpw"]);
    for line in lines {
        let shape = line.shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" x ");
        table.row(vec![
            line.tensor,
            shape,
            line.scheme,
            output::bytes(line.bytes),
            format!("{:.3}", line.bits_per_weight),
        ]);
    }
    let mut text = table.render();
    for fallback in fallbacks {
        text.push_str(&format!(
            "fallback: {} as {} at {} bits a weight: {}\n",
            fallback.tensor, fallback.stored, fallback.bits, fallback.reason
        ));
    }
    text.push_str(&format!(
        "file of {}, {all:.3} bits a weight ({decoder:.3} without embedding and output), about {} of memory for slabs\n",
        output::bytes(plan.layout.file_bytes()),
        output::bytes(plan.memory_bytes())
    ));
    Ok(output::text(&text)?)
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn print_written(
    session: &Session,
    conversion: &Conversion,
    plan: &FilePlan,
    written: &Written,
    seconds: f64,
) -> Result<(), Failure> {
    let (all, decoder) = plan.bits_per_weight(conversion);
    let worst = written.errors.iter().max_by(|a, b| a.1.relative_mse.total_cmp(&b.1.relative_mse));
    if session.global.json {
        let errors: serde_json::Map<_, _> =
            written.errors.iter().map(|(name, error)| (name.clone(), serde_json::json!(error))).collect();
        return Ok(output::json(&serde_json::json!({
            "path": written.path,
            "bytes": written.bytes,
            "bits_per_weight": all,
            "decoder_bits_per_weight": decoder,
            "resumed_tensors": written.resumed,
            "fallbacks": plan.fallbacks().collect::<Vec<_>>(),
            "errors": errors,
            "seconds": seconds,
            "peak_rss_bytes": kbit_formats::peak_rss_bytes(),
        }))?);
    }
    let rate = output::bytes((plan.weights() as f64 * 4.0 / seconds.max(1e-9)) as u64);
    let mut text = format!(
        "{}: {}, {all:.3} bits a weight ({decoder:.3} without embedding and output)\n",
        written.path.display(),
        output::bytes(written.bytes)
    );
    if let Some((name, error)) = worst {
        text.push_str(&format!("largest relative squared error {:.3e} in {name}\n", error.relative_mse));
    }
    if written.resumed > 0 {
        text.push_str(&format!("{} tensors taken over from an interrupted run\n", written.resumed));
    }
    text.push_str(&format!("{seconds:.2} s, {rate}/s of f32 weights, {}\n", output::peak_memory()));
    Ok(output::text(&text)?)
}
