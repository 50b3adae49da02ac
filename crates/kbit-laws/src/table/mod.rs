//! Observations from a table of one's own: a YAML file says which columns of a CSV file are N, D, bits and the loss.
//!
//! The figures of other laboratories come as tables in as many forms as there are laboratories. A [`Table`] is a description of one:
//! which lines count, where each quantity stands, how it is written. The data stay where they are.
//!
//! ```
//! use kbit_laws::{At, Table};
//!
//! let yaml = "table:\n  file: runs.csv\n  model: name\n  params: { column: size, times: 1e6 }\n  loss: { column: ppl, as: log }\n";
//! let table = Table::parse(yaml, std::path::Path::new("mine.yaml")).unwrap();
//! let read = table.observations("name,size,ppl\na,70,20.1\nb,160,15.3\n").unwrap();
//! assert_eq!(read.observations[1].at.params, Some(160e6));
//! assert!((read.observations[0].loss.unwrap() - 20.1f64.ln()).abs() < 1e-12);
//! ```

mod csv;
mod declare;
mod read;

pub use declare::{Table, is_table};
pub use read::{Read, TableError};
