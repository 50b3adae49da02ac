//! `isolation: process`: the same bytes as in this process; crashes, hangs and kills are one failed call.

use crate::{compile_c, folder, good_plugin, matrix, open, open_with, trusting, weights};
use kbit_host::{AuxData, Bytes, Death, HostError, HostOptions, Isolation, OpenScheme, TensorBytes};
use kbit_types::Codec;
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A plugin that does what the tensor's name says; see the file.
fn moody() -> &'static Path {
    static LIBRARY: OnceLock<std::path::PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/host/moody.c");
        compile_c(&source, &folder().join("moody"), "moody", &[])
    })
}

fn moody_with(timeout: Duration) -> OpenScheme {
    let options = HostOptions { timeout, ..trusting(moody().parent().unwrap()) };
    open_with(&options, "moody", Isolation::Process).unwrap()
}

fn encode(open: &OpenScheme, tensor: &str) -> Result<kbit_host::Encoded, HostError> {
    open.encode_matrix(&matrix(tensor, 8, 16), &weights(128), &AuxData::default())
}

#[test]
fn a_worker_gives_the_same_bytes_and_weights() {
    let folder = good_plugin().parent().unwrap();
    let here = open(folder, "good:block=16", Isolation::InProcess).unwrap();
    let there = open(folder, "good:block=16", Isolation::Process).unwrap();
    let info = matrix("w", 300, 1000);
    let values = weights(300_000);
    assert_eq!(here.plan(&info).unwrap(), there.plan(&info).unwrap());
    let one = here.encode_matrix(&info, &values, &AuxData::default()).unwrap();
    let two = there.encode_matrix(&info, &values, &AuxData::default()).unwrap();
    assert_eq!(one, two);
    let bytes = TensorBytes {
        heads: one.heads.into_iter().map(Bytes::from).collect(),
        parts: one.parts.into_iter().map(Bytes::from).collect(),
    };
    let (here, there) =
        (here.open_tensor(&info, bytes.clone()).unwrap(), there.open_tensor(&info, bytes).unwrap());
    let (mut a, mut b) = (vec![0.0; 40 * 1003], vec![0.0; 40 * 1003]);
    here.decode(7..47, &mut a, 1003).unwrap();
    there.decode(7..47, &mut b, 1003).unwrap();
    assert_eq!(a, b);
}

#[test]
fn slabs_larger_than_what_a_channel_keeps_go_through() {
    let folder = good_plugin().parent().unwrap();
    let info = matrix("w", 4200, 4096);
    let values = weights(4200 * 4096);
    let results = [Isolation::InProcess, Isolation::Process].map(|isolation| {
        let job = open(folder, "good", isolation).unwrap().begin(&info, None, &AuxData::default()).unwrap();
        let (mut codes, mut scales) = (vec![0u8; 4200 * 2048], vec![0u8; 4200 * 512]);
        // Twice: the second call finds the channel of the first one gone.
        for _ in 0..2 {
            codes.fill(0);
            job.encode(0..4200, &values, &mut [&mut codes, &mut scales]).unwrap();
        }
        vec![codes, scales]
    });
    assert!(results[0].iter().flatten().any(|byte| *byte != 0));
    assert!(results[0] == results[1]);
}

#[test]
fn many_threads_share_one_job() {
    use rayon::prelude::*;
    let open = open(good_plugin().parent().unwrap(), "good", Isolation::Process).unwrap();
    let info = matrix("w", 256, 64);
    let values = weights(256 * 64);
    let whole = open.encode_matrix(&info, &values, &AuxData::default()).unwrap();
    let job = open.begin(&info, None, &AuxData::default()).unwrap();
    let (mut codes, mut scales) = (vec![0u8; 256 * 32], vec![0u8; 256 * 8]);
    codes.par_chunks_mut(32 * 8).zip(scales.par_chunks_mut(8 * 8)).enumerate().for_each(
        |(i, (codes, scales))| {
            let first = i as u64 * 8;
            job.encode(first..first + 8, &values[i * 512..(i + 1) * 512], &mut [codes, scales]).unwrap();
        },
    );
    assert_eq!(vec![codes, scales], whole.parts);
}

#[test]
fn statistics_heads_and_whole_matrices_cross_over() {
    let here = open(moody().parent().unwrap(), "moody", Isolation::InProcess).unwrap();
    let there = moody_with(Duration::from_secs(20));
    let one = encode(&here, "calm").unwrap();
    assert_eq!(one, encode(&there, "calm").unwrap());
    // The head holds the largest weight of the statistics, and the first weight of the whole matrix.
    let head: &[u8] = &one.heads[0];
    let largest = weights(128).iter().fold(0f32, |max, w| max.max(w.abs()));
    assert_eq!(head, [largest.to_le_bytes(), weights(128)[0].to_le_bytes()].concat());
}

#[test]
fn a_crash_is_one_failed_tensor_with_its_signal() {
    let open = moody_with(Duration::from_secs(20));
    for (tensor, death, words) in [
        ("crash", Death::Signal(libc::SIGSEGV), "SIGSEGV"),
        ("abort", Death::Signal(libc::SIGABRT), "I give up"),
        ("divide", Death::Signal(libc::SIGFPE), "SIGFPE"),
        ("exit", Death::Exit(7), "status 7"),
        ("killed", Death::Killed, "killed from outside"),
    ] {
        let error = encode(&open, tensor).unwrap_err();
        let text = error.to_string();
        assert!(matches!(&error, HostError::WorkerDied { death: found, .. } if *found == death), "{text}");
        for part in [tensor, words, "libkbit_scheme_moody.so", "encode()"] {
            assert!(text.contains(part), "{text}");
        }
        // The next tensor gets another worker.
        encode(&open, "calm").unwrap();
    }
}

#[test]
fn a_hang_ends_at_the_time_out() {
    let open = moody_with(Duration::from_millis(400));
    let started = Instant::now();
    let error = encode(&open, "hang").unwrap_err();
    assert!(matches!(error, HostError::WorkerHung { .. }), "{error}");
    assert!(error.to_string().contains("no answer within 0.4 s"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
    encode(&open, "calm").unwrap();
}

#[test]
fn writing_past_a_part_is_seen() {
    let open = moody_with(Duration::from_secs(20));
    let error = encode(&open, "overrun").unwrap_err();
    assert!(matches!(error, HostError::Overrun { .. }), "{error}");
    assert!(error.to_string().contains("part codes"), "{error}");
}

#[test]
fn errors_of_the_plugin_come_across() {
    let open = moody_with(Duration::from_secs(20));
    for (tensor, expected) in [("unsupported", "not supported"), ("rounding", "rounding nearest -> up")] {
        let there = encode(&open, tensor).unwrap_err().to_string();
        let here = crate::open(moody().parent().unwrap(), "moody", Isolation::InProcess).unwrap();
        assert_eq!(there, encode(&here, tensor).unwrap_err().to_string());
        assert!(there.contains(expected), "{there}");
    }
}

#[test]
fn a_reading_worker_that_died_is_replaced() {
    let open = moody_with(Duration::from_secs(20));
    let info = matrix("calm", 8, 16);
    let encoded = encode(&open, "calm").unwrap();
    let bytes = TensorBytes {
        heads: encoded.heads.into_iter().map(Bytes::from).collect(),
        parts: encoded.parts.into_iter().map(Bytes::from).collect(),
    };
    let good = open.open_tensor(&info, bytes.clone()).unwrap();
    let bad = open.open_tensor(&matrix("crash", 8, 16), bytes).unwrap();
    let mut rows = vec![0.0; 128];
    good.decode(0..8, &mut rows, 16).unwrap();
    let error = bad.decode(0..8, &mut vec![0.0; 128], 16).unwrap_err().to_string();
    assert!(error.contains("SIGSEGV"), "{error}");
    let mut again = vec![0.0; 128];
    good.decode(0..8, &mut again, 16).unwrap();
    assert_eq!(rows, again);
}

#[test]
fn cancelling_reaches_the_worker() {
    use std::sync::atomic::Ordering;
    let options = trusting(moody().parent().unwrap());
    let open = open_with(&options, "moody", Isolation::Process).unwrap();
    let started = Instant::now();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(150));
            options.cancelled.store(true, Ordering::Relaxed);
        });
        encode(&open, "patient").unwrap_err()
    });
    assert!(matches!(error, HostError::Cancelled { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
    options.cancelled.store(false, Ordering::Relaxed);
    encode(&open, "calm").unwrap();
}

#[test]
fn a_worker_command_that_is_none_is_told() {
    let folder = good_plugin().parent().unwrap();
    for (command, expected) in [
        (vec!["/no/such/program".into()], "/no/such/program"),
        (vec!["/bin/true".into()], "status 0"),
        (vec!["/bin/sh".into(), "-c".into(), "echo cannot do that >&2; exit 3".into()], "cannot do that"),
    ] {
        let options = HostOptions { worker: Some(command), ..trusting(folder) };
        let error = open_with(&options, "good", Isolation::Process).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let options = HostOptions { worker: None, ..trusting(folder) };
    assert!(matches!(open_with(&options, "good", Isolation::Process), Err(HostError::NoWorker { .. })));
}

#[test]
fn the_host_going_away_ends_the_worker() {
    // The worker's standard input is a socket; when its peer closes, the process ends, whatever the plugin does.
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    let (ours, theirs) = UnixStream::pair().unwrap();
    let command = crate::worker();
    let mut process = std::process::Command::new(&command[0])
        .args(&command[1..])
        .stdin(OwnedFd::from(theirs))
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(100));
    assert!(process.try_wait().unwrap().is_none(), "the worker waits for requests");
    drop(ours);
    let deadline = Instant::now() + Duration::from_secs(10);
    while process.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "the worker outlives its host");
        std::thread::sleep(Duration::from_millis(5));
    }
}
