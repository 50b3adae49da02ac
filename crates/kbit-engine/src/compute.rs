//! How work is shared out, and the scratch memory of those who do it.

use crate::buffer::Aligned;
use crate::{EngineError, Kernels};
use std::sync::{Mutex, PoisonError};

/// Who works on a forward pass, and with what. Results do not depend on it.
#[derive(Debug)]
pub(crate) struct Compute {
    pub(crate) kernels: Kernels,
    /// True to share the work among the threads of rayon's current pool.
    pub(crate) parallel: bool,
    scratch: ScratchPool,
}

impl Compute {
    pub(crate) fn new(kernels: Kernels, parallel: bool) -> Self {
        Self { kernels, parallel, scratch: ScratchPool::default() }
    }

    /// Threads that share the work.
    pub(crate) fn threads(&self) -> usize {
        if self.parallel { rayon::current_num_threads() } else { 1 }
    }

    /// Runs `work` with at least `len` floats of unspecified contents.
    pub(crate) fn with_scratch<T>(
        &self,
        len: usize,
        work: impl FnOnce(&mut [f32]) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let mut buffer = self.scratch.take();
        buffer.reserve(len)?;
        let result = work(&mut buffer.as_mut_slice()[..len]);
        self.scratch.put(buffer);
        result
    }
}

/// Buffers that wait for the next user, so that no kernel call has to ask the system for pages.
#[derive(Debug, Default)]
struct ScratchPool(Mutex<Vec<Aligned>>);

impl ScratchPool {
    fn take(&self) -> Aligned {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn put(&self, buffer: Aligned) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }
}
