//! What commands share: the thread pool, the loaded plugins, cancellation.

use crate::cli::Global;
use crate::failure::Failure;
use kbit_host::{HostOptions, Registry};
use kbit_pipeline::progress::Progress;
use std::path::PathBuf;
use std::time::Duration;

/// Options of every command, and how they act.
pub struct Session {
    /// As given.
    pub global: Global,
}

impl Session {
    /// Sets the number of threads for everything that follows.
    pub fn start(global: Global) -> Result<Self, Failure> {
        if let Some(threads) = global.threads {
            rayon::ThreadPoolBuilder::new()
                .num_threads(usize::try_from(threads).unwrap_or(1))
                .build_global()
                .map_err(Failure::failed)?;
        }
        Ok(Self { global })
    }

    /// Loads the installed plugins, those of `--plugin`, and `more`.
    pub fn registry(&self, more: &[PathBuf], timeout: Option<Duration>) -> Result<Registry, Failure> {
        let registry = Registry::load(&self.host_options(more, timeout)?)?;
        for failure in registry.failures() {
            crate::output::note(&format!("warning: {failure}"));
        }
        Ok(registry)
    }

    /// How plugins are found and run.
    pub fn host_options(&self, more: &[PathBuf], timeout: Option<Duration>) -> Result<HostOptions, Failure> {
        let mut options = HostOptions { statics: crate::plugins::STATICS.to_vec(), ..HostOptions::default() };
        options.explicit.extend(self.global.plugins.iter().chain(more).cloned());
        if let Some(lock) = &self.global.lock {
            options.lock = Some(lock.clone());
        }
        let this = std::env::current_exe()?;
        options.worker = Some(vec![this.into(), kbit_host::WORKER_COMMAND.into()]);
        if let Some(timeout) = timeout {
            options.timeout = timeout;
        }
        Ok(options)
    }

    /// Bars on a terminal, unless `--quiet`.
    pub fn progress(&self) -> Progress {
        if self.global.quiet { Progress::hidden() } else { Progress::on_stderr() }
    }
}
