//! `kbit tokenize`.

use crate::cli::Tokenize;
use crate::failure::{DONE, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use kbit_formats::Checkpoint;
use kbit_models::ConvertOptions;
use kbit_pipeline::PipelineError;
use kbit_tokenizers::Tokenizer;
use std::io::Read;

/// Prints the tokens of a text.
pub fn tokenize(session: &Session, arguments: &Tokenize) -> Result<u8, Failure> {
    let checkpoint = Checkpoint::open(&arguments.model)?;
    let conversion = kbit_models::convert(&checkpoint, &ConvertOptions::default())?;
    if conversion.metadata.get("tokenizer.ggml.model").is_none() {
        return Err(PipelineError::NoTokenizer { path: arguments.model.clone() }.into());
    }
    let tokenizer = Tokenizer::from_metadata(&conversion.metadata)?;
    let text = match &arguments.text {
        Some(path) => kbit_pipeline::measure::read_text(path)?,
        None => {
            let mut text = String::new();
            std::io::stdin().lock().read_to_string(&mut text)?;
            text
        }
    };
    let ids = tokenizer.encode(&text, !arguments.no_special, arguments.parse_special);
    if session.global.json {
        let texts: Vec<String> = ids.iter().map(|id| tokenizer.decode(&[*id])).collect();
        output::json(&serde_json::json!({ "tokens": ids, "texts": texts }))?;
    } else {
        let mut table = Table::new(&[">token", "text"]);
        for id in &ids {
            table.row(vec![id.to_string(), format!("{:?}", tokenizer.decode(&[*id]))]);
        }
        output::text(&table.render())?;
    }
    Ok(DONE)
}
