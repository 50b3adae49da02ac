//! `kbit tokenize`.

use crate::cli::Tokenize;
use crate::failure::{DONE, Failure};
use crate::output::{self, Table};
use crate::session::Session;
use std::io::Read;

/// Prints the tokens of a text.
pub fn tokenize(session: &Session, arguments: &Tokenize) -> Result<u8, Failure> {
    let tokenizer = kbit_pipeline::open::open_tokenizer(&arguments.model)?;
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
