//! Tasks: questions made of documents, asked of a model, scored as lm-evaluation-harness scores them.
//!
//! A [`Task`] is a YAML file with templates; its [`Data`] are JSONL. Both make [`Questions`], which any model can be asked:
//! [`evaluate`] gives an [`Outcome`] with figures, and what stands behind each of them document by document.

mod data;
mod definition;
mod encode;
mod error;
mod evaluate;
mod figures;
mod likelihood;
mod prompts;
mod random;
mod schema;
mod template;
mod write;

pub use data::Data;
pub use definition::{Task, TaskKind};
pub use error::TaskError;
pub use evaluate::{Outcome, evaluate};
pub use figures::{Answer, Figure};
pub use prompts::Questions;
pub use schema::{json_schema, reference};
