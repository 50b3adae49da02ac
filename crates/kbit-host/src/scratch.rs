//! Scratch memory for plugins: 64-byte aligned, uninitialised, one buffer a thread, reused from call to call.

use std::cell::RefCell;
use std::mem::MaybeUninit;

/// Alignment that the ABI promises.
pub(crate) const ALIGNMENT: usize = 64;
/// Buffers up to this size stay with their thread between calls.
const KEPT_BYTES: usize = 256 << 20;

thread_local! {
    /// Free buffers. More than one only after nested use, as by `parallel_for` inside a body.
    static FREE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Scratch of so many bytes could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoMemory(pub(crate) u64);

/// Runs `use_it` with scratch of exactly `bytes` bytes.
pub(crate) fn with<R>(bytes: u64, use_it: impl FnOnce(&mut [MaybeUninit<u8>]) -> R) -> Result<R, NoMemory> {
    let no_memory = NoMemory(bytes);
    let len = usize::try_from(bytes).map_err(|_| no_memory)?;
    let room = len.checked_add(ALIGNMENT - 1).ok_or(no_memory)?;
    let mut buffer = FREE.with_borrow_mut(Vec::pop).unwrap_or_default();
    buffer.try_reserve_exact(room).map_err(|_| no_memory)?;
    let spare = buffer.spare_capacity_mut();
    let start = spare.as_ptr().addr().wrapping_neg() % ALIGNMENT;
    let result = use_it(&mut spare[start..start + len]);
    if buffer.capacity() <= KEPT_BYTES {
        FREE.with_borrow_mut(|free| free.push(buffer));
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_aligned_and_exact_also_when_nested() {
        for bytes in [0u64, 1, 63, 64, 65, 100_000] {
            with(bytes, |outer| {
                assert_eq!(outer.len() as u64, bytes);
                assert_eq!(outer.as_ptr().addr() % ALIGNMENT, 0);
                let outer_range = outer.as_ptr_range();
                with(bytes, |inner| {
                    assert_eq!(inner.as_ptr().addr() % ALIGNMENT, 0);
                    assert!(bytes == 0 || !outer_range.contains(&inner.as_ptr()));
                })
                .unwrap();
            })
            .unwrap();
        }
    }

    #[test]
    fn refuses_what_no_machine_has() {
        assert_eq!(with(u64::MAX, |_| ()), Err(NoMemory(u64::MAX)));
        assert_eq!(with(1 << 62, |_| ()), Err(NoMemory(1 << 62)));
    }
}
