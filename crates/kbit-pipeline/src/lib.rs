//! One YAML file to a plan, a run and a report: grids, cache, resume, progress, provenance.
//!
//! `config` reads what was written, `recipe` matches it with the loaded schemes, `plan` decides every byte of every
//! file, `convert` writes one file, `measure` takes figures, `calibrate` gathers importance matrices, `run` does it all and remembers what was done, and `report`
//! tells it.
#![forbid(unsafe_code)]

pub mod cache;
pub mod calibrate;
pub mod config;
pub mod convert;
pub mod edit;
mod error;
pub mod export;
pub mod importance;
mod journal;
pub mod measure;
pub mod mix;
pub mod open;
pub mod plan;
pub mod planner;
pub mod progress;
pub mod recipe;
pub mod report;
pub mod run;
pub mod schema;
pub mod sensitivity;
mod slice;
pub mod statistics;
pub mod task;
pub mod trial;

pub use error::PipelineError;
