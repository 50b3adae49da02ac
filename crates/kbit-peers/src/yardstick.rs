//! What the machine can do at most: the rates beside which kbit's are put.

use crate::bench::median;
use crate::{Result, in_context};
use std::env;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// [`memory_copy_rate`], in a process of its own: its buffers must not count among this one's memory.
pub fn memory_copy(threads: u32) -> Result<f64> {
    let own = env::current_exe().map_err(in_context("this program"))?;
    let found = Command::new(&own)
        .args(["memory-copy", &threads.to_string()])
        .output()
        .map_err(in_context(own.display()))?;
    let text = String::from_utf8_lossy(&found.stdout);
    text.trim().parse().map_err(in_context(format_args!("memory-copy says {text:?}")))
}

/// Bytes a second that `threads` copy together, each its own 256 MiB, beyond any cache: the median of seven passes.
pub fn memory_copy_rate(threads: usize) -> f64 {
    const BYTES: usize = 256 << 20;
    let mut buffers: Vec<_> = (0..threads).map(|_| (vec![1u8; BYTES], vec![2u8; BYTES])).collect();
    let passes = (0..7).map(|_| {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in &mut buffers {
                scope.spawn(|| to.copy_from_slice(std::hint::black_box(from)));
            }
        });
        let seconds = begin.elapsed().as_secs_f64();
        std::hint::black_box(&mut buffers);
        (threads * BYTES) as f64 / seconds
    });
    median(passes.collect())
}

/// Bytes of `input` a second at which `threads` read it into buffers that stay in their caches and write as many bytes as `written`
/// to the new file `output`, with nothing computed: what the same system calls cost a program that has no work of its own.
/// `output` is removed.
///
/// # Errors
/// When a file cannot be read or written.
pub fn file_copy_rate(input: &Path, output: &Path, written: u64, threads: usize) -> Result<f64> {
    /// As large as the pieces of kbit's conversion.
    const PIECE: u64 = 256 << 10;
    let from = File::open(input).map_err(in_context(input.display()))?;
    let bytes = from.metadata().map_err(in_context(input.display()))?.len();
    let pieces = bytes.div_ceil(PIECE).max(1);
    let begin = Instant::now();
    let to = File::create(output).map_err(in_context(output.display()))?;
    to.set_len(written).map_err(in_context(output.display()))?;
    let next = AtomicU64::new(0);
    let work = || -> std::io::Result<()> {
        let mut buffer = vec![0; PIECE as usize];
        loop {
            let piece = next.fetch_add(1, Ordering::Relaxed);
            if piece >= pieces {
                return Ok(());
            }
            let length = PIECE.min(bytes - piece * PIECE) as usize;
            from.read_exact_at(&mut buffer[..length], piece * PIECE)?;
            let [start, end] =
                [piece, piece + 1].map(|piece| (written as u128 * piece as u128 / pieces as u128) as u64);
            let mut offset = start;
            while offset < end {
                let count = (end - offset).min(PIECE) as usize;
                to.write_all_at(&buffer[..count], offset)?;
                offset += count as u64;
            }
        }
    };
    let result = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        handles
            .into_iter()
            .try_for_each(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let seconds = begin.elapsed().as_secs_f64();
    fs::remove_file(output).map_err(in_context(output.display()))?;
    result.map_err(in_context(format_args!("{} to {}", input.display(), output.display())))?;
    Ok(bytes as f64 / seconds)
}

#[cfg(test)]
mod tests {
    use super::{file_copy_rate, memory_copy_rate};

    #[test]
    fn memory_is_copied_at_some_rate() {
        assert!(memory_copy_rate(1) > 1e6);
    }

    #[test]
    fn a_file_is_copied_at_some_rate_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (input, output) = (folder.path().join("in"), folder.path().join("out"));
        std::fs::write(&input, vec![7; 600_000]).unwrap();
        assert!(file_copy_rate(&input, &output, 700_001, 2).unwrap() > 1.0);
        assert!(!output.exists());
        assert!(file_copy_rate(&folder.path().join("none"), &output, 1, 1).is_err());
    }
}
