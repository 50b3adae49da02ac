//! The `abi::Host` that plugins see: log, cancelled, parallel_for, extension.
//!
//! Invariants:
//! - A [`HostTable`] is leaked: plugins may keep its address until the process ends (rule R2).
//! - No callback unwinds into the plugin.
//! - `parallel_for` returns only when no thread runs its body any more and none will start to, so the plugin's `user`
//!   pointer is used during the call alone. The waiting thread runs bodies of this call only: it never steals other
//!   work of the pool, which could re-enter the plugin on the same stack.
#![expect(unsafe_code, reason = "the C side of the callbacks")]

use crate::{fpenv, scratch};
use kbit_abi as abi;
use kbit_abi::{ABI_MINOR, ECANCELLED, EINTERNAL, EPANIC, OK};
use std::cell::RefCell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Upper limit for the instruction sets that plugins use. Results do not depend on it (rule R6); tests check that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isa {
    /// No limit.
    #[default]
    Best,
    /// What every CPU of the architecture has.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512.
    Avx512,
}

impl Isa {
    fn code(self) -> u32 {
        match self {
            Self::Best => abi::ISA_BEST,
            Self::Portable => abi::ISA_PORTABLE,
            Self::Avx2 => abi::ISA_AVX2,
            Self::Avx512 => abi::ISA_AVX512,
        }
    }
}

/// Where a plugin's messages go.
pub(crate) enum LogSink {
    /// To `tracing`, with the plugin's file name.
    Tracing {
        /// File name.
        plugin: String,
    },
    /// Kept, for a worker to send along with its next reply.
    Collect(Mutex<Vec<(u32, String)>>),
}

/// Messages beyond this number between two replies of a worker are dropped.
const MAX_COLLECTED: usize = 256;

/// What the callbacks need.
pub(crate) struct HostContext {
    pub(crate) cancelled: Arc<AtomicBool>,
    pub(crate) log: LogSink,
    /// Threads of `parallel_for`; `None` for those of the current pool.
    pub(crate) threads: Option<usize>,
}

/// A `abi::Host` and what stands behind it.
pub(crate) struct HostTable {
    pub(crate) context: &'static HostContext,
    pub(crate) raw: abi::Host,
}

// SAFETY: the pointers in `raw` lead to leaked, immutable memory and to functions; the context is Sync.
unsafe impl Send for HostTable {}
// SAFETY: as above.
unsafe impl Sync for HostTable {}

const NAME: &str = "kbit";
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `text` for the other side of the ABI, which borrows it.
pub(crate) fn abi_str(text: &str) -> abi::Str {
    abi::Str { ptr: text.as_ptr().cast(), len: text.len() }
}

impl HostTable {
    /// A table that lives until the process ends.
    pub(crate) fn leak(context: HostContext, isa: Isa) -> &'static Self {
        let context: &'static HostContext = Box::leak(Box::new(context));
        let raw = abi::Host {
            size: size_of::<abi::Host>(),
            abi_minor: ABI_MINOR,
            isa_limit: isa.code(),
            name: abi_str(NAME),
            version: abi_str(VERSION),
            ctx: std::ptr::from_ref(context).cast_mut().cast(),
            log: Some(log),
            cancelled: Some(cancelled),
            parallel_for: Some(parallel_for),
            extension: Some(extension),
        };
        Box::leak(Box::new(Self { context, raw }))
    }
}

/// # Safety
/// `ctx` is the `ctx` of a [`HostTable`].
unsafe fn context<'a>(ctx: *mut c_void) -> &'a HostContext {
    // SAFETY: by the caller's promise it is the address of a leaked HostContext.
    unsafe { &*ctx.cast::<HostContext>() }
}

/// The text of a string from the other side, without control characters.
///
/// # Safety
/// `text` is NULL with any length, or `len` readable bytes.
pub(crate) unsafe fn text_of(text: abi::Str) -> String {
    if text.ptr.is_null() || text.len == 0 {
        return String::new();
    }
    // SAFETY: by the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(text.ptr.cast::<u8>(), text.len.min(1 << 16)) };
    printable(bytes)
}

/// Bytes as text that is safe to print on a terminal.
pub(crate) fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Writes `text` into a plugin's error buffer, cut off at a character's end.
///
/// # Safety
/// `err` is NULL or points to a `abi::Err` whose buffer has `cap` writable bytes.
unsafe fn write_error(err: *mut abi::Err, text: &str) {
    // SAFETY: by the caller's promise.
    let Some(err) = (unsafe { err.as_mut() }) else { return };
    if err.text.is_null() {
        return;
    }
    let mut len = text.len().min(err.cap);
    while !text.is_char_boundary(len) {
        len -= 1;
    }
    // SAFETY: `len <= cap` bytes are writable; `text` has at least as many.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), err.text.cast::<u8>(), len) };
    err.len = len;
}

unsafe extern "C" fn log(ctx: *mut c_void, level: u32, text: abi::Str) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: plugins pass the table's own ctx and a borrowed string.
        let (context, text) = unsafe { (context(ctx), text_of(text)) };
        match &context.log {
            LogSink::Tracing { plugin } => emit(plugin, level, &text),
            LogSink::Collect(lines) => {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() < MAX_COLLECTED {
                    lines.push((level, text));
                }
            }
        }
    }));
}

/// Hands a plugin's message to `tracing`. Levels: 0 error, 1 warning, 2 information, 3 debug, above: trace.
pub(crate) fn emit(plugin: &str, level: u32, text: &str) {
    match level {
        0 => tracing::error!(plugin, "{text}"),
        1 => tracing::warn!(plugin, "{text}"),
        2 => tracing::info!(plugin, "{text}"),
        3 => tracing::debug!(plugin, "{text}"),
        _ => tracing::trace!(plugin, "{text}"),
    }
}

unsafe extern "C" fn cancelled(ctx: *mut c_void) -> u32 {
    // SAFETY: plugins pass the table's own ctx.
    u32::from(unsafe { context(ctx) }.cancelled.load(Ordering::Relaxed))
}

unsafe extern "C" fn extension(_: *mut c_void, _: abi::Str) -> *const c_void {
    std::ptr::null()
}

type Body = abi::ParallelBody;

/// One run of `parallel_for`, shared by its threads.
struct Run {
    count: u64,
    scratch_bytes: u64,
    user: *mut c_void,
    body: Body,
    cancelled: Arc<AtomicBool>,
    next: AtomicU64,
    stop: AtomicBool,
    /// Index, status and text of the failure with the lowest index.
    failure: Mutex<Option<(u64, abi::Status, String)>>,
    float_change: Mutex<Option<String>>,
    threads: Mutex<Threads>,
    idle: Condvar,
}

#[derive(Default)]
struct Threads {
    /// No thread may start any more.
    closed: bool,
    /// Threads other than the waiting one that are at work.
    active: usize,
}

// SAFETY: `user` is used through `body` alone, which the ABI lets any thread call during the run; a thread starts only
// while the run is not closed, and the run's owner waits for all that started.
unsafe impl Send for Run {}
// SAFETY: as above; everything else in it is Sync.
unsafe impl Sync for Run {}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Run {
    /// Runs bodies until none is left. Indices are handed out in rising order and each one handed out is run, so the
    /// failure with the lowest index is the same for any number of threads.
    fn work(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let index = self.next.fetch_add(1, Ordering::AcqRel);
            if index >= self.count {
                break;
            }
            let outcome = if self.cancelled.load(Ordering::Relaxed) {
                Err((ECANCELLED, "cancelled".to_owned()))
            } else {
                self.one(index)
            };
            if let Err((status, text)) = outcome {
                self.stop.store(true, Ordering::Release);
                let mut failure = locked(&self.failure);
                if failure.as_ref().is_none_or(|(lowest, ..)| index < *lowest) {
                    *failure = Some((index, status, text));
                }
            }
        }
    }

    fn one(&self, index: u64) -> Result<(), (abi::Status, String)> {
        let result = scratch::with(self.scratch_bytes, |scratch| {
            let scratch = abi::Buf { ptr: scratch.as_mut_ptr().cast(), bytes: self.scratch_bytes };
            let mut text = [0u8; 512];
            let mut err = abi::Err { text: text.as_mut_ptr().cast(), cap: text.len(), len: 0 };
            // SAFETY: the plugin gave `body` and `user` for this call, which has not returned; `err` and `scratch` are
            // this thread's own.
            let (status, change) =
                fpenv::guarded(|| unsafe { (self.body)(self.user, index, scratch, &raw mut err) });
            if let Some(change) = change {
                locked(&self.float_change).get_or_insert(change);
            }
            (status, printable(&text[..err.len.min(text.len())]))
        });
        match result {
            Ok((OK, _)) => Ok(()),
            Ok(failure) => Err(failure),
            Err(none) => Err((EINTERNAL, format!("{} bytes of scratch memory cannot be had", none.0))),
        }
    }

    /// Work of another thread, if the run still takes any.
    fn help(&self) {
        {
            let mut threads = locked(&self.threads);
            if threads.closed {
                return;
            }
            threads.active += 1;
        }
        self.work();
        locked(&self.threads).active -= 1;
        self.idle.notify_all();
    }

    /// Keeps other threads from starting and waits for those that did.
    fn close(&self) {
        let mut threads = locked(&self.threads);
        threads.closed = true;
        while threads.active > 0 {
            threads = self.idle.wait(threads).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

thread_local! {
    /// What a body of a `parallel_for` called by this thread changed; see [`take_float_change`].
    static FLOAT_CHANGE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// What bodies of `parallel_for` changed in the floating-point environment since the last call, on behalf of the
/// plugin's function that this thread ran.
pub(crate) fn take_float_change() -> Option<String> {
    FLOAT_CHANGE.take()
}

unsafe extern "C" fn parallel_for(
    ctx: *mut c_void,
    count: u64,
    scratch_bytes: u64,
    user: *mut c_void,
    body: Body,
    err: *mut abi::Err,
) -> abi::Status {
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: plugins pass the table's own ctx.
        let context = unsafe { context(ctx) };
        let run = Arc::new(Run {
            count,
            scratch_bytes,
            user,
            body,
            cancelled: Arc::clone(&context.cancelled),
            next: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            failure: Mutex::new(None),
            float_change: Mutex::new(None),
            threads: Mutex::new(Threads::default()),
            idle: Condvar::new(),
        });
        let threads = context.threads.unwrap_or_else(rayon::current_num_threads);
        let helpers = u64::try_from(threads).unwrap_or(1).min(count).saturating_sub(1);
        for _ in 0..helpers {
            let run = Arc::clone(&run);
            rayon::spawn(move || run.help());
        }
        run.work();
        run.close();
        if let Some(change) = locked(&run.float_change).take() {
            FLOAT_CHANGE.set(Some(change));
        }
        match locked(&run.failure).take() {
            None => (OK, String::new()),
            Some((_, status, text)) => (status, text),
        }
    }));
    let (status, text) = result.unwrap_or_else(|_| (EPANIC, "parallel_for of the host panicked".to_owned()));
    if status != OK {
        // SAFETY: the plugin passes its error buffer or NULL.
        unsafe { write_error(err, &text) };
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(threads: usize) -> &'static HostTable {
        let context = HostContext {
            cancelled: Arc::default(),
            log: LogSink::Collect(Mutex::default()),
            threads: Some(threads),
        };
        HostTable::leak(context, Isa::Best)
    }

    /// Calls `body` for 0..count through the table; the status and the error text.
    fn run(table: &HostTable, count: u64, body: Body, user: *mut c_void) -> (abi::Status, String) {
        let mut text = [0u8; 64];
        let mut err = abi::Err { text: text.as_mut_ptr().cast(), cap: text.len(), len: 0 };
        let parallel_for = table.raw.parallel_for.unwrap();
        // SAFETY: the table's own ctx, a live error buffer, and a body that fits `user`.
        let status = unsafe { parallel_for(table.raw.ctx, count, 256, user, body, &raw mut err) };
        (status, printable(&text[..err.len]))
    }

    unsafe extern "C" fn count_up(
        user: *mut c_void,
        index: u64,
        scratch: abi::Buf,
        _: *mut abi::Err,
    ) -> abi::Status {
        assert_eq!((scratch.bytes, scratch.ptr.addr() % 64), (256, 0));
        // SAFETY: the tests pass an array of counters.
        let counters = unsafe { &*user.cast::<[AtomicU64; 1000]>() };
        counters[usize::try_from(index).unwrap()].fetch_add(1, Ordering::Relaxed);
        OK
    }

    #[test]
    fn every_body_runs_once_for_any_number_of_threads() {
        for threads in [1, 2, 7] {
            let counters = [const { AtomicU64::new(0) }; 1000];
            let user = std::ptr::from_ref(&counters).cast_mut().cast();
            assert_eq!(run(table(threads), 1000, count_up, user).0, OK);
            assert!(counters.iter().all(|counter| counter.load(Ordering::Relaxed) == 1));
        }
    }

    unsafe extern "C" fn fail_from_7(
        _: *mut c_void,
        index: u64,
        _: abi::Buf,
        err: *mut abi::Err,
    ) -> abi::Status {
        if index < 7 {
            return OK;
        }
        // SAFETY: the host's own error buffer.
        unsafe { write_error(err, &format!("body {index}")) };
        EINTERNAL
    }

    #[test]
    fn the_failure_with_the_lowest_index_is_told() {
        for threads in [1, 2, 8] {
            for _ in 0..50 {
                let failure = run(table(threads), 100, fail_from_7, std::ptr::null_mut());
                assert_eq!(failure, (EINTERNAL, "body 7".to_owned()));
            }
        }
    }

    #[test]
    fn cancelling_stops_the_run() {
        let table = table(2);
        table.context.cancelled.store(true, Ordering::Relaxed);
        assert_eq!(run(table, 10, fail_from_7, std::ptr::null_mut()).0, ECANCELLED);
        assert_eq!(run(table, 0, fail_from_7, std::ptr::null_mut()).0, OK);
    }

    #[test]
    fn works_from_inside_the_pool_without_deadlock() {
        use rayon::prelude::*;
        (0..64u64).into_par_iter().for_each(|_| {
            let counters = [const { AtomicU64::new(0) }; 1000];
            let user = std::ptr::from_ref(&counters).cast_mut().cast();
            assert_eq!(run(table(4), 1000, count_up, user).0, OK);
            assert!(counters.iter().all(|counter| counter.load(Ordering::Relaxed) == 1));
        });
    }
}
