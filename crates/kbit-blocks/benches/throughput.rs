//! Throughput of encoding and decoding, counted in the bytes of f32 weights, and of products with activations, counted in the
//! bytes of the blocks; one thread, beside a plain memory copy.
//!
//! `cargo bench -p kbit-blocks` runs all; a filter takes some: `-- decode/Q4_0`, `-- dot/Q4_K`, `-- /portable`. A table of all
//! types, against the copy, ends every run that is not a test; `-- table` prints nothing else, `-- table dot Q4_K Q6_K` that part
//! of it.
#![expect(clippy::print_stdout, reason = "the table is the benchmark's output")]

use criterion::{BenchmarkId, Criterion, Throughput};
use kbit_blocks::{InstructionSet, Kernels, activation_type, can_encode, needs_importance, uses_importance};
use kbit_types::GgmlType;
use std::hint::black_box;
use std::time::Instant;

/// 32 MiB of floats: past the second-level cache, as rows of a checkpoint come.
const WEIGHTS: usize = 8 << 20;
const COLS: usize = 4096;
/// Bytes of blocks for products: past the last-level cache, as the weights of a model come for every token.
const STREAM: usize = 64 << 20;
/// Encoding with importance searches; it gets fewer rows.
const WEIGHTED: usize = 64 * COLS;

/// Numbers like a normal distribution: sums of four uniform ones.
fn weights() -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..WEIGHTS).map(|_| 0.02 * (uniform() + uniform() + uniform() + uniform())).collect()
}

fn kernels() -> Vec<Kernels> {
    let all = [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512];
    all.into_iter()
        .map(|set| (set, Kernels::up_to(set)))
        .filter(|(set, kernels)| kernels.instruction_set() == *set)
        .map(|(_, kernels)| kernels)
        .collect()
}

fn types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.iter().copied().filter(|ty| kbit_blocks::can_decode(*ty))
}

fn bytes_for(ty: GgmlType, weights: usize) -> Vec<u8> {
    vec![
        0x11;
        ty.bytes_for(weights as u64).and_then(|bytes| usize::try_from(bytes).ok()).expect("whole blocks")
    ]
}

/// Rows of blocks, an activation for them, and room for the products.
struct Product {
    ty: GgmlType,
    weights: Vec<u8>,
    activation: Vec<u8>,
    out: Vec<f32>,
}

impl Product {
    fn new(ty: GgmlType, x: &[f32]) -> Option<Self> {
        let activation_type = activation_type(ty)?;
        let mut activation = bytes_for(activation_type, COLS);
        Kernels::best()
            .encode_activations(activation_type, &x[..COLS], COLS, &mut activation)
            .expect("finite");
        let row_bytes = bytes_for(ty, COLS).len();
        let rows = STREAM / row_bytes;
        Some(Self { ty, weights: vec![0x11; rows * row_bytes], activation, out: vec![0.0; rows] })
    }

    fn run(&mut self, kernels: Kernels) {
        let rows = self.out.len();
        kernels
            .dot_rows(self.ty, black_box(&self.weights), &self.activation, COLS, &mut self.out, rows)
            .expect("sizes that fit");
    }
}

fn name(kernels: Kernels) -> String {
    format!("{:?}", kernels.instruction_set()).to_lowercase()
}

fn measure(c: &mut Criterion, x: &[f32], importance: &[f32]) {
    let mut floats = vec![0f32; WEIGHTS];
    let mut group = c.benchmark_group("copy");
    group.throughput(Throughput::Bytes(4 * WEIGHTS as u64));
    group.bench_function("f32", |b| b.iter(|| floats.copy_from_slice(black_box(x))));
    group.finish();
    for ty in types() {
        let mut bytes = bytes_for(ty, WEIGHTS);
        if can_encode(ty) && !needs_importance(ty) {
            let mut group = c.benchmark_group(format!("encode/{ty}"));
            group.throughput(Throughput::Bytes(4 * WEIGHTS as u64));
            for kernels in kernels() {
                group.bench_function(BenchmarkId::from_parameter(name(kernels)), |b| {
                    b.iter(|| kernels.encode_row_range(ty, black_box(x), COLS, None, &mut bytes));
                });
            }
            group.finish();
        }
        if uses_importance(ty) {
            let mut bytes = bytes_for(ty, WEIGHTED);
            let mut group = c.benchmark_group(format!("encode_weighted/{ty}"));
            group.throughput(Throughput::Bytes(4 * WEIGHTED as u64));
            for kernels in kernels() {
                group.bench_function(BenchmarkId::from_parameter(name(kernels)), |b| {
                    let x = &x[..WEIGHTED];
                    b.iter(|| kernels.encode_row_range(ty, black_box(x), COLS, Some(importance), &mut bytes));
                });
            }
            group.finish();
        }
        let mut group = c.benchmark_group(format!("decode/{ty}"));
        group.throughput(Throughput::Bytes(4 * WEIGHTS as u64));
        for kernels in kernels() {
            group.bench_function(BenchmarkId::from_parameter(name(kernels)), |b| {
                b.iter(|| kernels.decode(ty, black_box(&bytes), &mut floats));
            });
        }
        group.finish();
        if let Some(mut product) = Product::new(ty, x) {
            let mut group = c.benchmark_group(format!("dot/{ty}"));
            group.throughput(Throughput::Bytes(product.weights.len() as u64));
            for kernels in kernels() {
                group.bench_function(BenchmarkId::from_parameter(name(kernels)), |b| {
                    b.iter(|| product.run(kernels));
                });
            }
            group.finish();
        }
    }
}

/// GB a second, the best of seven.
fn rate(bytes: usize, mut run: impl FnMut()) -> f64 {
    let best = (0..7).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    });
    bytes as f64 / best.fold(f64::INFINITY, f64::min) / 1e9
}

/// Columns of the table.
const COLUMNS: [&str; 4] = ["encode", "importance", "decode", "dot"];

/// The table, of the columns and types that are named in `wanted`; of all where none is.
fn table(x: &[f32], importance: &[f32], wanted: &[String]) {
    let (columns, names): (Vec<_>, Vec<_>) = wanted.iter().partition(|word| COLUMNS.contains(&word.as_str()));
    let shows = |column: &str| columns.is_empty() || columns.iter().any(|word| *word == column);
    let mut floats = vec![0f32; WEIGHTS];
    let copy = rate(4 * WEIGHTS, || floats.copy_from_slice(black_box(x)));
    for kernels in kernels() {
        println!(
            "\n{} kernels; GB a second (of a memory copy's {copy:.1}): f32 weights, and blocks of products",
            name(kernels)
        );
        let [encode, weighted, decode, dot] = COLUMNS;
        println!("{:<7} {encode:>14} {weighted:>14} {decode:>14} {dot:>14}", "type");
        for ty in types().filter(|ty| names.is_empty() || names.iter().any(|name| *name == ty.name())) {
            let mut bytes = bytes_for(ty, WEIGHTS);
            let encode = (shows(encode) && can_encode(ty) && !needs_importance(ty)).then(|| {
                rate(4 * WEIGHTS, || drop(kernels.encode_row_range(ty, black_box(x), COLS, None, &mut bytes)))
            });
            let decode = shows(decode)
                .then(|| rate(4 * WEIGHTS, || drop(kernels.decode(ty, black_box(&bytes), &mut floats))));
            let mut bytes = bytes_for(ty, WEIGHTED);
            let weighted = (shows(weighted) && uses_importance(ty)).then(|| {
                let x = &x[..WEIGHTED];
                rate(4 * WEIGHTED, || {
                    drop(kernels.encode_row_range(ty, black_box(x), COLS, Some(importance), &mut bytes))
                })
            });
            let product = if shows(dot) { Product::new(ty, x) } else { None };
            let dot = product.map(|mut product| rate(product.weights.len(), || product.run(kernels)));
            let [encode, weighted, decode, dot] = [encode, weighted, decode, dot].map(|rate| {
                rate.map_or("-".to_owned(), |rate| format!("{rate:.2} ({:.0}%)", 100.0 * rate / copy))
            });
            println!("{:<7} {encode:>14} {weighted:>14} {decode:>14} {dot:>14}", ty.name());
        }
    }
}

fn main() {
    let x = weights();
    let importance: Vec<f32> = x[..COLS].iter().map(|x| x * x + 1e-6).collect();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    // `-- table` skips the rest.
    let wanted = arguments.iter().position(|argument| argument == "table").map(|at| &arguments[at + 1..]);
    if wanted.is_none() {
        let mut criterion = Criterion::default().sample_size(10).configure_from_args();
        measure(&mut criterion, &x, &importance);
        criterion.final_summary();
    }
    if !arguments.iter().any(|argument| argument == "--test") {
        table(&x, &importance, wanted.unwrap_or_default());
    }
}
