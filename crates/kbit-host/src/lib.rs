//! Finds, pins, inspects, loads and calls quantizer plugins.
//!
//! A plugin is a shared library with the C interface of `kbit_plugin.h`. This crate loads it in this order: explicit
//! path or trusted folder, read the bytes once, SHA-256 against the lock, inspect without running anything, load those
//! very bytes, check every descriptor, self-test, never unload. Calls are checked: buffers against the plan, the
//! floating-point environment around every call, statuses turned into errors that name plugin, scheme and tensor.
//!
//! ```no_run
//! use kbit_host::{AuxData, HostOptions, Isolation, MatrixInfo, Registry, SchemeSpec};
//! use kbit_types::MatrixShape;
//!
//! let registry = Registry::load(&HostOptions::default())?;
//! let spec: SchemeSpec = "int:bits=4,block=64".parse()?;
//! let scheme = registry.scheme(&spec.name)?;
//! let open = scheme.open(&scheme.resolve(&spec.params)?, Isolation::InProcess)?;
//! let weights = vec![0.5f32; 128 * 256];
//! let matrix = MatrixInfo { tensor: "blk.0.ffn_up.weight".into(), shape: MatrixShape::dense(128, 256), slice: 0 };
//! let encoded = open.encode_matrix(&matrix, &weights, &AuxData::default())?;
//! # Ok::<(), kbit_host::HostError>(())
//! ```
//!
//! # Modules with `unsafe`
//! `load` (dynamic linking, C descriptors), `call` (C function tables), `callbacks` (what plugins call), `memfd` (maps),
//! `fpenv` (control registers), and the raw buffers of `check`. Each opens with its invariants.

mod call;
mod callbacks;
pub mod check;
mod error;
mod fpenv;
pub mod inspect;
mod load;
pub mod lock;
mod memfd;
mod plan;
mod registry;
pub mod scaffold;
mod scheme;
mod scratch;
mod spec;
mod worker;

pub use call::AuxData;
pub use callbacks::Isa;
pub use error::{Death, HostError, Place, signal_name};
pub use load::StaticPlugin;
pub use plan::{MAX_PARTS, PartPlan, PartType, TensorPlan};
pub use registry::{HostOptions, Plugin, Registry, Scheme};
pub use scheme::{Bytes, Encoded, Isolation, Job, MatrixInfo, OpenScheme, PluginCodec, TensorBytes};
pub use spec::{ParamInfo, ParamKind, ParamValue, ParamValues, SchemeSpec};
pub use worker::{worker_main, worker_main_with};

/// Name of the binary's hidden subcommand that calls [`worker_main`].
pub const WORKER_COMMAND: &str = "plugin-worker";
