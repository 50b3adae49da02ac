//! `isolation: process`: a plugin in a process of its own.
//!
//! A worker is the same program, started with a hidden subcommand. Its standard input is a socket: the control
//! connection, over which it gets the plugin's bytes (a sealed memory file, so what was hashed is what runs) and further
//! sockets, the channels. One channel serves one calling thread at a time: a request, a reply. Weights and bytes lie in
//! memory that both processes map; a message holds offsets. An output buffer in that memory is followed by a canary, so
//! a plugin that writes past its part is caught here too.
//!
//! One worker encodes one matrix at a time, so a crash or a hang costs one tensor; all tensors opened for reading
//! share another worker, and are opened anew in the next one if that dies.

mod client;
mod frame;
mod serve;

pub(crate) use client::{RemoteJob, RemoteScheme, RemoteTensor, Trouble, describe, for_check};
pub use serve::{worker_main, worker_main_with};

use crate::call::{CallFailure, Matrix};
use crate::callbacks::Isa;
use crate::check::{CaseOutcome, CaseTask};
use crate::load::PluginText;
use crate::plan::TensorPlan;
use crate::spec::ParamValues;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Version of these messages: host and worker are the same program, so anything else is a mistake.
const PROTOCOL: u32 = 1;
/// Parts of a message in shared memory start at multiples of this, and outputs are followed by as many canary bytes.
const ALIGNMENT: usize = 64;
/// What canaries are made of.
const CANARY: u8 = 0xa5;

/// A piece of shared memory.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Span {
    offset: usize,
    len: usize,
}

/// A matrix without values, as it travels.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Shape {
    tensor: String,
    rows: u64,
    cols: u64,
    slice: u64,
    slices: u64,
}

impl Shape {
    fn of(matrix: &Matrix<'_>) -> Self {
        Self {
            tensor: matrix.tensor.to_owned(),
            rows: matrix.rows,
            cols: matrix.cols,
            slice: matrix.slice,
            slices: matrix.slices,
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        Matrix {
            tensor: &self.tensor,
            rows: self.rows,
            cols: self.cols,
            slice: self.slice,
            slices: self.slices,
        }
    }
}

/// A plugin to load. A descriptor with its bytes comes along, unless it is part of the program.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Load {
    protocol: u32,
    path: PathBuf,
    sha256: String,
    static_name: Option<String>,
    isa: Isa,
}

/// Over the control connection, to the worker.
#[derive(Serialize, Deserialize)]
enum Control {
    /// Answered by [`ControlReply`].
    Load(Load),
    /// A descriptor comes along: a channel.
    Channel,
    /// What `kbit_host.cancelled` says from now on.
    Cancelled(bool),
    /// Runs one case of the conformance kit; answered by [`ControlReply`]. A descriptor with the plugin comes along.
    Check(Box<CaseTask>),
}

/// Over the control connection, from the worker.
#[derive(Serialize, Deserialize)]
enum ControlReply {
    Loaded(PluginText),
    NotLoaded(String),
    Checked(Box<CaseOutcome>),
}

/// Auxiliary data: spans of shared memory.
#[derive(Serialize, Deserialize)]
struct AuxSpans {
    diag: Option<Span>,
    hessian: Option<Span>,
    hessian_stride: u64,
    producer_std: Option<Span>,
    n_samples: u64,
    seed: u64,
}

/// Over a channel, to the worker. Spans of one request rise in the order of the fields and do not overlap.
#[derive(Serialize, Deserialize)]
enum Request {
    /// A descriptor comes along: the channel's shared memory from now on. Not answered.
    Memory,
    /// Opens the scheme; a worker has one.
    Open {
        scheme: usize,
        params: ParamValues,
    },
    Plan {
        shape: Shape,
    },
    Begin {
        shape: Shape,
        plan: TensorPlan,
        whole: Option<Span>,
        aux: AuxSpans,
    },
    Observe {
        job: u64,
        first: u64,
        count: u64,
        slab: Span,
        stats: Span,
    },
    Prepare {
        job: u64,
        stats: Span,
        heads: Vec<Span>,
    },
    Encode {
        job: u64,
        first: u64,
        count: u64,
        slab: Span,
        parts: Vec<Span>,
    },
    End {
        job: u64,
    },
    /// A descriptor comes along: the tensor's bytes.
    OpenTensor {
        shape: Shape,
        plan: TensorPlan,
        heads: Vec<Span>,
        parts: Vec<Span>,
    },
    Decode {
        tensor: u64,
        first: u64,
        count: u64,
        out: Span,
    },
    CloseTensor {
        tensor: u64,
    },
}

/// What a request gave.
#[derive(Serialize, Deserialize)]
enum Answer {
    Done,
    Plan(TensorPlan),
    /// Number of a job or tensor.
    Made(u64),
}

/// Over a channel, from the worker.
#[derive(Serialize, Deserialize)]
struct Reply {
    result: Result<Answer, CallFailure>,
    /// What the plugin logged meanwhile: level and text.
    log: Vec<(u32, String)>,
}

/// Lays out pieces of shared memory one after the other.
#[derive(Default)]
struct Layout {
    end: usize,
}

impl Layout {
    /// A piece of `len` bytes and its canary; `None` where no memory is that large.
    fn add(&mut self, len: usize) -> Option<Span> {
        let offset = self.end;
        let end = offset.checked_add(len)?.checked_next_multiple_of(ALIGNMENT)?.checked_add(ALIGNMENT)?;
        isize::try_from(end).ok()?;
        self.end = end;
        Some(Span { offset, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_aligned_and_leave_room_for_canaries() {
        let mut layout = Layout::default();
        let spans =
            [layout.add(1).unwrap(), layout.add(64).unwrap(), layout.add(0).unwrap(), layout.add(5).unwrap()];
        for pair in spans.windows(2) {
            assert!(pair[1].offset >= pair[0].offset + pair[0].len + ALIGNMENT);
            assert_eq!(pair[1].offset % ALIGNMENT, 0);
        }
        assert!(layout.end >= spans[3].offset + 5 + ALIGNMENT);
        assert!(layout.add(usize::MAX - 10).is_none());
    }
}
