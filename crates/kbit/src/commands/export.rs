//! `kbit export`.

use crate::cli::{DtypeArg, Export};
use crate::failure::{DONE, Failure};
use crate::output;
use crate::session::Session;
use kbit_pipeline::export::{ExportDtype, ExportPlan};
use kbit_types::Dtype;
use std::time::Instant;

/// Writes a GGUF file as a Hugging Face folder.
pub fn export(session: &Session, arguments: &Export) -> Result<u8, Failure> {
    let dtype = match arguments.dtype {
        DtypeArg::Keep => ExportDtype::Keep,
        DtypeArg::F32 => ExportDtype::To(Dtype::F32),
        DtypeArg::F16 => ExportDtype::To(Dtype::F16),
        DtypeArg::Bf16 => ExportDtype::To(Dtype::Bf16),
    };
    let plan = ExportPlan::new(&arguments.source, dtype, !arguments.without_tokenizer)?;
    let started = Instant::now();
    let bar = session.progress().bytes("exporting", plan.weights().saturating_mul(4));
    let exported = plan.write(&arguments.out, &bar)?;
    drop(bar);
    if session.global.json {
        output::json(&output::with_peak_memory(&exported)?)?;
        return Ok(DONE);
    }
    let mut text = format!(
        "{}: {} tensors in {}, {}\n",
        exported.path.display(),
        exported.tensors,
        exported.dtype,
        output::bytes(exported.bytes)
    );
    if !exported.wider.is_empty() {
        text.push_str(&format!(
            "{} vectors stay F32, since {} does not hold their values\n",
            exported.wider.len(),
            exported.dtype
        ));
    }
    text.push_str(&format!("{:.2} s, {}\n", started.elapsed().as_secs_f64(), output::peak_memory()));
    output::text(&text)?;
    Ok(DONE)
}
