//! `kbit plan`.

use crate::cli::Plan;
use crate::failure::{DONE, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_calibrate::{Importance, ImportanceMatrix, Policy};
use kbit_formats::FormatError;
use kbit_models::ConvertOptions;
use kbit_pipeline::edit::Edits;
use kbit_pipeline::planner::{self, CandidateLine, PlannedMeasurement, Request};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Mixes that are listed, at most.
const MIXES_SHOWN: usize = 4;

/// Plans a file, and writes the plan where that is asked for.
pub fn plan(session: &Session, arguments: &Plan) -> Result<u8, Failure> {
    if let Some(out) = arguments.out.as_ref().filter(|out| out.exists() && !arguments.overwrite) {
        return Err(FormatError::Exists { path: out.clone() }.into());
    }
    let registry = session.registry(&[], None)?;
    let request = Request {
        model: arguments.model.clone(),
        options: ConvertOptions {
            pre_tokenizer: arguments.pre_tokenizer.clone(),
            architecture: arguments.architecture.clone(),
            ..ConvertOptions::default()
        },
        edits: Edits::default(),
        target: arguments.target,
        schemes: words(&arguments.schemes),
        rules: arguments.map.clone(),
        agree: arguments.agree,
        importance: arguments.imatrix.as_deref().map(importance).transpose()?,
        text: arguments.text.clone(),
        context: arguments.context.and_then(|context| usize::try_from(context).ok()),
        chunks: arguments.chunks.and_then(|chunks| usize::try_from(chunks).ok()),
        verify: !arguments.no_verify,
        provenance: !arguments.no_provenance,
        allow_requantize: arguments.allow_requantize,
        work: arguments.work.clone(),
    };
    let planned = planner::plan(&request, &registry, &session.progress(), &Arc::new(AtomicBool::new(false)))?;
    if let Some(out) = &arguments.out {
        kbit_formats::atomic::write_atomically(out, planned.plan.to_yaml().as_bytes())?;
    }
    if session.global.json {
        output::json(&output::with_peak_memory(&planned)?)?;
    } else {
        output::text(&told(&planned, arguments))?;
    }
    for note in &planned.notes {
        output::note(note);
    }
    Ok(DONE)
}

/// Schemes with commas between them; parameters of a scheme have commas between them too.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    for piece in text.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
        match words.last_mut() {
            Some(last) if piece.contains('=') && !piece.contains(':') => {
                last.push(',');
                last.push_str(piece);
            }
            _ => words.push(piece.to_owned()),
        }
    }
    words
}

fn importance(path: &Path) -> Result<Arc<Importance>, Failure> {
    let matrix = ImportanceMatrix::open(path)?;
    let named = path.to_string_lossy().into_owned();
    Ok(Arc::new(Importance { matrix, policy: Policy::default(), named }))
}

fn told(planned: &planner::Planned, arguments: &Plan) -> String {
    let mut text = String::new();
    if arguments.tensors {
        let mut table =
            Table::new(&["matrix", "scheme", ">bpw", ">squared error", ">sensitivity", ">divergence"]);
        for unit in &planned.units {
            table.row(vec![
                unit.name.clone(),
                unit.scheme.clone(),
                format!("{:.3}", unit.bits_per_weight),
                format!("{:.3e}", unit.error),
                format!("{:.3e}", unit.sensitivity),
                format!("{:.3e}", unit.divergence),
            ]);
        }
        text += &table.render();
        text.push('\n');
    }
    let mut table = Table::new(&["candidate", ">size", ">bpw", ">expected KLD", "interval", ">measured KLD"]);
    for CandidateLine { name, bytes, bits_per_weight, expected, measured } in
        planned.candidates.iter().take(MIXES_SHOWN + 1)
    {
        table.row(vec![
            name.clone(),
            bytes.to_string(),
            format!("{bits_per_weight:.4}"),
            format!("{:.3e}", expected.value),
            format!("{:.2e} to {:.2e}", expected.low, expected.high),
            measured.map_or_else(String::new, |PlannedMeasurement { kl_divergence, stderr }| {
                format!("{kl_divergence:.3e} +- {stderr:.1e}")
            }),
        ]);
    }
    text += &table.render();
    let plan = &planned.plan;
    text += &format!(
        "{}: {} in {}, {:.4} bits a weight; a divergence of {:.3e} nats is expected, {:.2e} to {:.2e}\n",
        plan.target,
        plan.made_of,
        output::bytes(plan.bytes),
        plan.bits_per_weight,
        plan.kl_divergence.value,
        plan.kl_divergence.low,
        plan.kl_divergence.high
    );
    if let Some(out) = &arguments.out {
        text += &format!("{}: write the file by `kbit convert --plan`\n", out.display());
    }
    text += &format!(
        "{} measurements, {} taken over, {:.1} s, {}\n",
        planned.measured,
        planned.reused,
        planned.seconds,
        output::peak_memory()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn parameters_stay_with_their_scheme() {
        assert_eq!(words("ggml"), ["ggml"]);
        assert_eq!(words("q4_k, int:bits=4,block=64,q8_0"), ["q4_k", "int:bits=4,block=64", "q8_0"]);
        assert_eq!(words("int:bits=4,float:bits=5"), ["int:bits=4", "float:bits=5"]);
    }
}
