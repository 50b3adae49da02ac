//! `kbit convert`.

use crate::cli::{Convert, EmptyExpertsArg, IsolationArg, OnFallback, OnMissingImportance};
use crate::failure::{DONE, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_calibrate::{EmptyExperts, Importance, ImportanceMatrix, OnMissing, Policy};
use kbit_formats::Checkpoint;
use kbit_host::Isolation;
use kbit_models::{Conversion, ConvertOptions};
use kbit_pipeline::cache::model_hash;
use kbit_pipeline::convert::{RunOptions, Written, write_file};
use kbit_pipeline::edit::Edits;
use kbit_pipeline::importance::ImportanceUse;
use kbit_pipeline::mix::MixOptions;
use kbit_pipeline::plan::{Fallback, FilePlan, PlanOptions, SplitBy};
use kbit_pipeline::planner::PlanFile;
use kbit_pipeline::recipe::Recipe;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Quantizes one model into one file, or prints the plan.
pub fn convert(session: &Session, arguments: &Convert) -> Result<u8, Failure> {
    let registry = session.registry(&[], None)?;
    let isolation = match arguments.isolation {
        IsolationArg::None => Isolation::InProcess,
        IsolationArg::Process => Isolation::Process,
    };
    let planned = match &arguments.plan {
        Some(path) => Some(PlanFile::read(path).map_err(Failure::usage)?),
        None => None,
    };
    // A scheme or a mix is refused before the model is opened.
    let written = match &arguments.scheme {
        Some(scheme) => {
            let mix = MixOptions {
                pure: arguments.pure,
                leave_output: arguments.leave_output,
                output_type: arguments.output_type,
                embedding_type: arguments.embedding_type,
            };
            Some(Recipe::from_arguments(&registry, scheme, &arguments.map, &mix, isolation)?)
        }
        None => None,
    };
    let checkpoint = Checkpoint::open(&arguments.source)?;
    let options = ConvertOptions {
        pass_through_other_modalities: arguments.pass_through,
        without_tokenizer: arguments.without_tokenizer,
        pre_tokenizer: arguments.pre_tokenizer.clone(),
        architecture: arguments.architecture.clone(),
        name: None,
    };
    let mut conversion = kbit_models::convert(&checkpoint, &options)?;
    let edits =
        Edits { metadata: arguments.set_metadata.clone(), prune_layers: arguments.prune_layers.clone() };
    edits.prune(&mut conversion)?;
    let split = match arguments.split_size {
        Some(bytes) => Some(SplitBy::Bytes(bytes)),
        None if arguments.keep_split => SplitBy::keep(&checkpoint, &mut conversion)?,
        None => None,
    };
    let importance = importance(arguments)?;
    let recipe = match (written, &planned) {
        (Some(recipe), _) => recipe,
        (None, Some(planned)) => {
            let content = model_hash(&arguments.source, |file| Ok(kbit_formats::hash::file_hex(file)?))?;
            planned.check_inputs(&content, importance.as_deref())?;
            let (recipe, warnings) = planned.recipe(&registry, &conversion)?;
            warnings.iter().for_each(|warning| output::note(&format!("warning: {warning}")));
            recipe
        }
        (None, None) => return Err(Failure::usage("give --scheme S or --plan FILE")),
    };
    let plan_options = PlanOptions {
        fallback_is_error: arguments.on_fallback == OnFallback::Error,
        provenance: !arguments.no_provenance && planned.as_ref().is_none_or(|planned| planned.provenance),
        allow_requantize: arguments.allow_requantize,
        edits,
        importance,
        split,
    };
    let plan = FilePlan::new(&checkpoint, &conversion, &recipe, &registry, &plan_options)?;
    if let Some(planned) = &planned {
        tell_other_size(arguments, planned, &plan);
    }
    if arguments.dry_run {
        print_plan(session, &conversion, &plan, &arguments.out)?;
        return Ok(DONE);
    }
    plan.check()?;
    for fallback in Fallback::lines(plan.fallbacks()) {
        output::note(&format!("warning: {fallback}"));
    }
    if let Some(warning) = plan.requantize_warning() {
        output::note(&format!("warning: {warning}"));
    }
    for note in plan.importance_use.iter().flat_map(ImportanceUse::notes) {
        output::note(&note);
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

/// Says where the file has another size than was planned, which no option explains.
fn tell_other_size(arguments: &Convert, planned: &PlanFile, plan: &FilePlan) {
    let explained = !arguments.set_metadata.is_empty()
        || plan.layout.file_count() > 1
        || (arguments.no_provenance && planned.provenance);
    let bytes = plan.layout.file_bytes();
    if bytes != planned.bytes && !explained {
        output::note(&format!(
            "warning: the file has {bytes} bytes, and {} were planned: another version of kbit or of a plugin, or other options of reading the model",
            planned.bytes
        ));
    }
}

/// The importance matrix of `--imatrix`, with what holds where it has no data.
fn importance(arguments: &Convert) -> Result<Option<Arc<Importance>>, Failure> {
    let Some(path) = &arguments.imatrix else { return Ok(None) };
    let matrix = ImportanceMatrix::open(path)?;
    let policy = Policy {
        on_missing: match arguments.on_missing_importance {
            OnMissingImportance::Warn => OnMissing::Warn,
            OnMissingImportance::Error => OnMissing::Error,
        },
        empty_experts: match arguments.empty_experts {
            EmptyExpertsArg::Ones => EmptyExperts::Ones,
            EmptyExpertsArg::Mean => EmptyExperts::Mean,
        },
    };
    Ok(Some(Arc::new(Importance { matrix, policy, named: path.to_string_lossy().into_owned() })))
}

fn print_plan(
    session: &Session,
    conversion: &Conversion,
    plan: &FilePlan,
    out: &Path,
) -> Result<(), Failure> {
    let paths = plan.layout.paths(out);
    let lines = plan.lines(conversion);
    let (all, decoder) = plan.bits_per_weight(conversion);
    let fallbacks: Vec<_> = plan.fallbacks().collect();
    if session.global.json {
        return Ok(output::json(&serde_json::json!({
            "tensors": lines,
            "fallbacks": fallbacks,
            "obstacle": plan.check().err().map(|error| error.to_string()),
            "requantized": plan.requantize_warning(),
            "paths": paths,
            "file_bytes": plan.layout.file_bytes(),
            "bits_per_weight": all,
            "decoder_bits_per_weight": decoder,
            "memory_bytes": plan.memory_bytes(),
            "importance": plan.importance_use,
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
    for fallback in Fallback::lines(fallbacks.into_iter()) {
        text.push_str(&format!("fallback: {fallback}\n"));
    }
    if let Some(warning) = plan.requantize_warning() {
        text.push_str(&format!("warning: {warning}\n"));
    }
    if let Err(obstacle) = plan.check() {
        text.push_str(&format!("cannot be written: {obstacle}\n"));
    }
    for note in plan.importance_use.iter().flat_map(ImportanceUse::notes) {
        text.push_str(&format!("{note}\n"));
    }
    if paths.len() > 1 {
        for (path, (tensors, bytes)) in paths.iter().zip(plan.layout.shards()) {
            text.push_str(&format!("{}: {tensors} tensors, {}\n", path.display(), output::bytes(bytes)));
        }
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
            "path": written.paths.first(),
            "paths": written.paths,
            "bytes": written.bytes,
            "bits_per_weight": all,
            "decoder_bits_per_weight": decoder,
            "resumed_tensors": written.resumed,
            "fallbacks": plan.fallbacks().collect::<Vec<_>>(),
            "importance": plan.importance_use,
            "errors": errors,
            "seconds": seconds,
            "peak_rss_bytes": kbit_formats::peak_rss_bytes(),
        }))?);
    }
    let rate = output::bytes((plan.weights() as f64 * 4.0 / seconds.max(1e-9)) as u64);
    let more = match written.paths.len() {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    let mut text = format!(
        "{}{more}: {}, {all:.3} bits a weight ({decoder:.3} without embedding and output)\n",
        written.paths.first().map_or_else(String::new, |path| path.display().to_string()),
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
