//! `kbit calibrate`.

use crate::cli::Calibrate;
use crate::failure::{DONE, Failure};
use crate::output;
use crate::session::Session;
use kbit_calibrate::Starved;
use kbit_pipeline::calibrate::{Gathering, GatheringSummary, gather, merge};

/// Experts that are named in a line, at most.
const NAMED: usize = 12;

/// Gathers an importance matrix, or merges several.
pub fn calibrate(session: &Session, arguments: &Calibrate) -> Result<u8, Failure> {
    let summary = match &arguments.model {
        None => merge(&arguments.merge, &arguments.out, arguments.overwrite)?,
        Some(path) => {
            let registry = session.registry(&[], None)?;
            let model = super::open_model_as(path, &registry, arguments.computing, arguments.stream)?;
            let gathering = Gathering {
                texts: arguments.text.clone(),
                context: usize::try_from(arguments.context).map_err(Failure::usage)?,
                chunks: arguments.chunks.and_then(|chunks| usize::try_from(chunks).ok()),
                output: arguments.output_matrix,
                second_moments: arguments.second_moments,
                out: arguments.out.clone(),
                overwrite: arguments.overwrite,
            };
            gather(&model, &gathering, &session.progress())?
        }
    };
    if session.global.json {
        output::json(&output::with_peak_memory(&summary)?)?;
    } else {
        output::text(&words(&summary))?;
    }
    Ok(DONE)
}

fn words(summary: &GatheringSummary) -> String {
    let moments = match summary.moments {
        0 => String::new(),
        tensors => format!(", second moments for {tensors}"),
    };
    let mut text = format!(
        "{}: {} tensors{moments}, {} windows of {} tokens\n",
        summary.path.display(),
        summary.tensors,
        summary.windows,
        summary.context
    );
    for path in &summary.without_moments {
        text += &format!("{} has no second moments: those of the others were left out\n", path.display());
    }
    if let Some(moved) = &summary.moved {
        text += &format!(
            "in the second half of the windows means moved by {:.2} % (median over tensors), by {:.2} % in {}\n",
            moved.median * 100.0,
            moved.most * 100.0,
            moved.tensor
        );
    }
    for Starved { tensor, unseen, rare } in &summary.starved {
        for (experts, what) in [(unseen, "saw no token"), (rare, "saw less than a tenth of the mean")] {
            if !experts.is_empty() {
                text += &format!("{tensor}: {} experts {what}: {}\n", experts.len(), named(experts));
            }
        }
    }
    if !summary.starved.is_empty() {
        text += "more text, or text of other kinds, reaches more experts\n";
    }
    if let Some(rate) = summary.tokens_per_second {
        let resumed = match summary.resumed {
            0 => String::new(),
            windows => format!(", {windows} windows from before"),
        };
        text +=
            &format!("{:.2} s, {rate:.0} tokens/s, {}{resumed}\n", summary.seconds, output::peak_memory());
    }
    text
}

fn named(experts: &[usize]) -> String {
    let mut words: Vec<String> = experts.iter().take(NAMED).map(usize::to_string).collect();
    if experts.len() > NAMED {
        words.push("...".to_owned());
    }
    words.join(", ")
}
