//! How work is shared out, and the scratch memory of those who do it.
//!
//! A step of token generation is hundreds of small products. Threads that slept between them would spend more time waking than
//! computing, so [`Compute::gather`] keeps the threads of rayon's pool spinning for the length of a forward pass, and
//! [`Compute::for_each`] hands them work in well under a microsecond.
//!
//! Invariants of the `unsafe` code are those of [`Team`].
#![expect(
    unsafe_code,
    reason = "a closure of the leader's stack frame is run by the other threads of its team"
)]

use crate::buffer::Aligned;
use crate::observe::Observer;
use crate::{EngineError, Kernels, Mode};
use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Who works on a forward pass, and with what. Results do not depend on who does.
#[derive(Debug)]
pub(crate) struct Compute {
    pub(crate) kernels: Kernels,
    pub(crate) mode: Mode,
    /// True to share the work among the threads of rayon's current pool.
    pub(crate) parallel: bool,
    /// Sees what matrices are multiplied with.
    pub(crate) observer: Option<Arc<dyn Observer>>,
    scratch: ScratchPool,
    team: Arc<Team>,
}

impl Compute {
    pub(crate) fn new(kernels: Kernels, mode: Mode, parallel: bool) -> Self {
        Self {
            kernels,
            mode,
            parallel,
            observer: None,
            scratch: ScratchPool::default(),
            team: Arc::default(),
        }
    }

    /// Threads that share the work.
    pub(crate) fn threads(&self) -> usize {
        if self.parallel { rayon::current_num_threads() } else { 1 }
    }

    /// Those who share the work, to [`gather`](Team::gather) them; `None` where the caller works alone.
    pub(crate) fn team(&self) -> Option<Arc<Team>> {
        (self.threads() > 1).then(|| Arc::clone(&self.team))
    }

    /// Calls `work` with each item and its number: on all threads of the gathered team, else on this one alone. After an error
    /// no further items are begun.
    pub(crate) fn for_each<T: Send>(
        &self,
        items: impl ExactSizeIterator<Item = T> + Send,
        work: impl Fn(usize, T) -> Result<(), EngineError> + Sync,
    ) -> Result<(), EngineError> {
        let mut items = items.enumerate();
        if !self.parallel || items.len() <= 1 {
            return items.try_for_each(|(index, item)| work(index, item));
        }
        let (queue, failure) = (Mutex::new(items), Mutex::new(None));
        let next = || lock(&queue).next().filter(|_| lock(&failure).is_none());
        self.team.run(&|| {
            while let Some((index, item)) = next() {
                if let Err(error) = work(index, item) {
                    lock(&failure).get_or_insert(error);
                }
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Buffers that wait for the next user, so that no kernel call has to ask the system for pages.
#[derive(Debug, Default)]
struct ScratchPool(Mutex<Vec<Aligned>>);

impl ScratchPool {
    fn take(&self) -> Aligned {
        lock(&self.0).pop().unwrap_or_default()
    }

    fn put(&self, buffer: Aligned) {
        lock(&self.0).push(buffer);
    }
}

type Job = dyn Fn() + Sync + 'static;

/// Threads of rayon's pool that wait, spinning, for closures of their leader.
///
/// `state` holds, from the lowest bit: how many helpers are inside the job (16 bits), [`OPEN`], [`DISMISSED`], [`TAKEN`], and from
/// bit 32 on the number of the job. `job` is written only by whoever set `TAKEN`, while `OPEN` is clear; it is read only by
/// helpers that have counted themselves in while `OPEN` was set; and it outlives them, since [`Team::run`] returns only after
/// `OPEN` is cleared and the count is zero.
#[derive(Default)]
pub(crate) struct Team {
    state: AtomicU64,
    job: UnsafeCell<Option<*const Job>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is shared as the invariants of the type say, and what it points to is `Sync`.
unsafe impl Send for Team {}
// SAFETY: as above.
unsafe impl Sync for Team {}

/// Helpers inside the job.
const INSIDE: u64 = 0xffff;
/// The job may be entered.
const OPEN: u64 = 1 << 16;
/// Helpers are to leave.
const DISMISSED: u64 = 1 << 17;
/// Someone leads.
const TAKEN: u64 = 1 << 18;
/// Number of the first job.
const FIRST: u64 = 1 << 32;

/// Turns of a waiting loop before the CPU is offered to others: some tens of microseconds.
const PATIENCE: u32 = 1 << 12;

/// Waits until `done`.
fn wait(done: impl Fn() -> bool) {
    let mut turns = 0;
    while !done() {
        if turns < PATIENCE {
            turns += 1;
            std::hint::spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}

impl Team {
    /// Runs `work` on a thread of rayon's current pool, while the pool's other threads, as they become free, wait for what
    /// [`Team::run`] gives them.
    pub(crate) fn gather<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        /// Lets the helpers go, also when `work` panics.
        struct Dismiss<'t>(&'t Team);
        impl Drop for Dismiss<'_> {
            fn drop(&mut self) {
                self.0.state.fetch_or(DISMISSED, Ordering::Release);
            }
        }
        rayon::scope(|scope| {
            let leader = rayon::current_thread_index();
            self.state.fetch_and(!DISMISSED, Ordering::Release);
            scope.spawn_broadcast(move |_, context| {
                if Some(context.index()) != leader {
                    self.help();
                }
            });
            let _dismiss = Dismiss(self);
            work()
        })
    }

    /// Takes part in jobs until dismissed.
    fn help(&self) {
        let mut last = 0;
        loop {
            let new = |state: u64| state & OPEN != 0 && state / FIRST != last;
            wait(|| {
                let state = self.state.load(Ordering::Acquire);
                state & DISMISSED != 0 || new(state)
            });
            let state = self.state.load(Ordering::Acquire);
            if state & DISMISSED != 0 {
                return;
            }
            if new(state)
                && self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            {
                last = state / FIRST;
                // SAFETY: counted in while the job was open, so that it has been written and outlives this call.
                let job = unsafe { (*self.job.get()).map(|job| &*job) };
                if let Some(job) = job
                    && let Err(panic) = catch_unwind(AssertUnwindSafe(job))
                {
                    *lock(&self.panic) = Some(panic);
                }
                self.state.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// Runs `job` here and, at the same time, on every helper that comes before it returns here. Alone where someone else leads.
    fn run(&self, job: &(dyn Fn() + Sync)) {
        /// Ends the job, also when it panics.
        struct Close<'t>(&'t Team);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
                wait(|| self.0.state.load(Ordering::Acquire) & INSIDE == 0);
                self.0.state.fetch_and(!TAKEN, Ordering::Release);
            }
        }
        if self.state.fetch_or(TAKEN, Ordering::Acquire) & TAKEN != 0 {
            return job();
        }
        // SAFETY: this thread has taken the lead and the job is not open, so nobody else looks. The lifetime is not true, but
        // `Close` waits for all helpers inside before this function is left.
        unsafe {
            *self.job.get() = Some(std::mem::transmute::<*const (dyn Fn() + Sync + '_), *const Job>(job))
        };
        // One addition numbers the job and opens it: OPEN is clear.
        self.state.fetch_add(FIRST + OPEN, Ordering::Release);
        let close = Close(self);
        job();
        drop(close);
        if let Some(panic) = lock(&self.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad("Team")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn with_threads<T: Send>(threads: usize, work: impl FnOnce(&Compute) -> T + Send) -> T {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let compute = Compute::new(Kernels::best(), Mode::F32, true);
            match compute.team() {
                Some(team) => team.gather(|| work(&compute)),
                None => work(&compute),
            }
        })
    }

    #[test]
    fn every_item_is_worked_on_once() {
        for threads in [1, 2, 3, 8] {
            with_threads(threads, |compute| {
                for round in 0..300 {
                    let counts: Vec<AtomicUsize> = (0..round % 50).map(|_| AtomicUsize::new(0)).collect();
                    compute
                        .for_each(counts.iter(), |index, count| {
                            assert!(std::ptr::eq(count, &counts[index]));
                            count.fetch_add(1, Ordering::Relaxed);
                            Ok(())
                        })
                        .unwrap();
                    assert!(
                        counts.iter().all(|count| count.load(Ordering::Relaxed) == 1),
                        "{threads} threads"
                    );
                }
            });
        }
    }

    #[test]
    fn work_inside_work_is_done_alone() {
        let total = AtomicUsize::new(0);
        with_threads(3, |compute| {
            compute.for_each(0..10, |_, _| {
                compute.for_each(0..10, |_, _| {
                    total.fetch_add(1, Ordering::Relaxed);
                    Ok(())
                })
            })
        })
        .unwrap();
        assert_eq!(total.into_inner(), 100);
    }

    #[test]
    fn an_error_ends_the_work() {
        let done = AtomicUsize::new(0);
        let result = with_threads(2, |compute| {
            compute.for_each(0..1_000_000, |_, item| {
                done.fetch_add(1, Ordering::Relaxed);
                if item == 5 { Err(EngineError::Logits) } else { Ok(()) }
            })
        });
        assert!(matches!(result, Err(EngineError::Logits)));
        assert!(done.into_inner() < 1_000_000);
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        for threads in [1, 2, 3] {
            let result = catch_unwind(|| {
                with_threads(threads, |compute| {
                    compute.for_each(0..100, |_, item| {
                        assert!(item != 50, "item 50");
                        std::thread::sleep(std::time::Duration::from_micros(10));
                        Ok(())
                    })
                })
            });
            let panic = result.unwrap_err();
            let message = panic.downcast_ref::<&str>().map(ToString::to_string);
            let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
            assert!(message.is_some_and(|message| message.contains("item 50")), "{threads} threads");
        }
    }

    #[test]
    fn teams_of_one_pool_do_not_wait_for_each_other() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let total = AtomicUsize::new(0);
        pool.scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|_| {
                    let compute = Compute::new(Kernels::best(), Mode::F32, true);
                    compute.team().expect("two threads").gather(|| {
                        for _ in 0..20 {
                            compute
                                .for_each(0..10, |_, _| {
                                    total.fetch_add(1, Ordering::Relaxed);
                                    Ok(())
                                })
                                .unwrap();
                        }
                    });
                });
            }
        });
        assert_eq!(total.into_inner(), 8 * 20 * 10);
    }
}
