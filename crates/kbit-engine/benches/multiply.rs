//! Matrix multiplication in every mode, beside the highest rate of multiply-adds of the same threads in the same run.
//!
//! `cargo bench -p kbit-engine` prints for each shape the rate and the share of that peak. Arguments are words that the lines must
//! have, as `bf16 1024`; `--threads N` sets the number of threads, of which there is one else.
#![expect(clippy::print_stdout, reason = "a bench, whose ratios are its result")]

use kbit_blocks::BlockCodec;
use kbit_engine::{InstructionSet, Kernels, Mode, Multiplier, Rows, RowsMut};
use kbit_types::{Codec, GgmlType};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// (tokens, rows, columns): a cube, the layers of SmolLM2-135M, of the embedded family, and of a large model.
const SHAPES: [(usize, usize, usize); 7] = [
    (1024, 1024, 1024),
    (512, 1536, 576),
    (512, 576, 1536),
    (512, 768, 256),
    (120, 1024, 4096),
    (1, 1536, 576),
    (1, 8192, 2048),
];

/// What weights are stored as, and what they are multiplied in.
const KINDS: [(GgmlType, Mode); 17] = [
    (GgmlType::F32, Mode::F32),
    (GgmlType::Q4_K, Mode::F32),
    (GgmlType::BF16, Mode::Bf16),
    (GgmlType::F16, Mode::Bf16),
    (GgmlType::Q8_0, Mode::Int8),
    (GgmlType::Q4_0, Mode::Int8),
    (GgmlType::Q4_K, Mode::Int8),
    (GgmlType::Q6_K, Mode::Int8),
    (GgmlType::IQ4_XS, Mode::Int8),
    (GgmlType::Q2_K, Mode::Int8),
    (GgmlType::Q3_K, Mode::Int8),
    (GgmlType::Q5_K, Mode::Int8),
    (GgmlType::Q4_1, Mode::Int8),
    (GgmlType::Q5_0, Mode::Int8),
    (GgmlType::Q5_1, Mode::Int8),
    (GgmlType::IQ4_NL, Mode::Int8),
    (GgmlType::MXFP4, Mode::Int8),
];

/// Best of several tries of `work`, in seconds.
fn best(mut work: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut tries = 0;
    while tries < 5 || (tries < 200 && start.elapsed() < Duration::from_millis(300)) {
        let start = Instant::now();
        work();
        best = best.min(start.elapsed());
        tries += 1;
    }
    best.as_secs_f64()
}

/// Multiply-adds a second of one thread.
fn peak(busy: impl Fn(u64, f32) -> (u64, f32)) -> f64 {
    const ROUNDS: u64 = 100_000;
    let (count, _) = busy(ROUNDS, 0.5);
    count as f64
        / best(|| {
            black_box(busy(ROUNDS, black_box(0.5)));
        })
}

fn main() {
    let mut words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let threads = words.iter().position(|word| word == "--threads").and_then(|at| {
        words.remove(at);
        (at < words.len()).then(|| words.remove(at).parse().ok()).flatten()
    });
    let threads = threads.unwrap_or(1);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of threads");
    for set in InstructionSet::ALL.into_iter().rev() {
        let Some(kernels) = Kernels::of(set) else { continue };
        let peaks = [
            peak(|rounds, factor| kernels.busy(rounds, factor)),
            peak(|rounds, factor| kernels.busy_bf16(rounds, factor)),
            peak(|rounds, factor| kernels.busy_int8(rounds, factor)),
        ];
        println!("{set}: peaks of a thread {:.1?} GFLOPS", peaks.map(|peak| peak * 2e-9));
        for (ty, mode) in KINDS {
            for (n, rows, cols) in SHAPES {
                let name = format!("{set} {ty} {mode} [{n}, {cols}] x [{rows}, {cols}]");
                if !words.iter().all(|word| name.contains(word.as_str())) {
                    continue;
                }
                let values =
                    |len: usize| (0..len).map(|i| (i * 7919 % 1009) as f32 * 0.001 - 0.5).collect::<Vec<_>>();
                let x = values(n * cols);
                let mut bytes = vec![0; ty.bytes_for((rows * cols) as u64).expect("whole blocks") as usize];
                if kbit_blocks::encode_row_range(ty, &values(rows * cols), cols, None, &mut bytes).is_err() {
                    continue;
                }
                let size = bytes.len();
                let codec = BlockCodec::new("w", ty, rows as u64, cols as u64, bytes).expect("a matrix");
                let codec: Arc<dyn Codec> = Arc::new(codec);
                let weight = Multiplier::new(codec, (rows, cols), mode, kernels).expect("a matrix");
                let mut out = vec![0.0; n * rows];
                let seconds = pool.install(|| {
                    best(|| {
                        let (x, out) = (Rows::new(&x, n, cols, cols), RowsMut::new(&mut out, n, rows, rows));
                        weight.multiply(x, out).expect("a product");
                    })
                });
                let rate = (n * rows * cols) as f64 / seconds;
                let peak = threads as f64
                    * match mode {
                        Mode::Bf16 => peaks[1],
                        Mode::Int8 => peaks[2],
                        _ => peaks[0],
                    };
                println!(
                    "{name}: {:.1} GFLOPS, {:.0} % of the peak, {:.1} GB/s",
                    rate * 2e-9,
                    100.0 * rate / peak,
                    size as f64 / seconds * 1e-9
                );
            }
        }
    }
}
