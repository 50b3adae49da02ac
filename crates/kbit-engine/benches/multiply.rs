//! Matrix multiply and matrix-vector multiply, beside the highest rate of multiply-adds of one core in the same run.
//!
//! `cargo bench -p kbit-engine` prints for each shape the share of that peak.
#![expect(clippy::print_stdout, reason = "a bench, whose ratios are its result")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use kbit_engine::{InstructionSet, Kernels, Rows, RowsMut};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// (tokens, rows, columns): the layers of SmolLM2-135M, of the embedded family, and of a large model.
const SHAPES: [(usize, usize, usize); 6] =
    [(512, 1536, 576), (512, 576, 1536), (512, 768, 256), (256, 192, 64), (120, 1024, 4096), (1, 1536, 576)];

/// Best of several tries of `work`, in seconds.
fn best(mut work: impl FnMut()) -> f64 {
    (0..30)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .min()
        .unwrap_or(Duration::MAX)
        .as_secs_f64()
}

fn multiply(c: &mut Criterion) {
    for set in InstructionSet::ALL {
        let Some(kernels) = Kernels::of(set) else { continue };
        let peak = {
            let seconds = best(|| {
                black_box(kernels.busy(100_000, black_box(0.5)));
            });
            kernels.busy(100_000, 0.5).0 as f64 / seconds
        };
        println!("{set}: peak {:.1} GFLOPS", peak * 2e-9);
        let mut group = c.benchmark_group(set.to_string());
        for (n, rows, cols) in SHAPES {
            let stride = if cols.is_multiple_of(512) { cols + 16 } else { cols };
            let x = vec![0.25; n * stride];
            let w = vec![0.5; rows * stride];
            let mut out = vec![0.0; n * rows];
            let operations = (n * rows * cols) as u64;
            let mut run = || {
                kernels.dots(
                    Rows::new(&x, n, cols, stride),
                    Rows::new(&w, rows, cols, stride),
                    RowsMut::new(&mut out, n, rows, rows),
                );
            };
            let rate = operations as f64 / best(&mut run);
            println!(
                "{set}: [{n}, {cols}] x [{rows}, {cols}]: {:.1} GFLOPS, {:.0} % of peak",
                rate * 2e-9,
                100.0 * rate / peak
            );
            group.throughput(Throughput::Elements(operations));
            group.bench_function(BenchmarkId::from_parameter(format!("{n}x{rows}x{cols}")), |b| {
                b.iter(&mut run)
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_millis(500)).warm_up_time(Duration::from_millis(100));
    targets = multiply
}
criterion_main!(benches);
