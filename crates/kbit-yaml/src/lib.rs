//! YAML that people write by hand: a tree whose every key knows its place, keys declared once, and mistakes told with file, line,
//! column, the offending key and the nearest valid one.
//!
//! Configurations and mixes are read through this room; what their keys mean is the business of the rooms that declare them.
//!
//! ```
//! use kbit_yaml::{Kind, Node, Object, check, required};
//!
//! static FRUIT: Object = Object { name: "fruit", doc: "A fruit.", keys: &[required("colour", Kind::Text, "Its colour.")] };
//! let mut mistakes = Vec::new();
//! check(&Node::parse("color: red\n").unwrap(), &FRUIT, &mut mistakes);
//! assert!(mistakes[0].help.starts_with("did you mean `colour`?"));
//! ```
#![forbid(unsafe_code)]

mod declare;
mod mistake;
mod tree;

pub use declare::{Key, Kind, Object, check, json_schema, optional, reference_tables, required};
pub use mistake::{DocumentError, Mistake, nearest, read_text, suggestion};
pub use tree::{MapKey, Node, Place, Tree};
