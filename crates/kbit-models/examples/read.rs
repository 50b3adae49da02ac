//! Says what a checkpoint becomes, reads it all by slabs of rows, and says how fast that was.
//!
//! `cargo run --release --example read -- CHECKPOINT [list]`; with `list`, tensors and metadata go to stdout.
#![expect(clippy::print_stderr, clippy::print_stdout, reason = "this is what the example is for")]

use kbit_formats::{Checkpoint, peak_rss_bytes};
use kbit_models::{ConvertOptions, convert};
use std::error::Error;
use std::time::Instant;

/// Floats of a slab.
const SLAB: u64 = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, rest @ ..] = arguments.as_slice() else { return Err("give a checkpoint".into()) };
    let checkpoint = Checkpoint::open(path.as_ref())?;
    let options = ConvertOptions { without_tokenizer: true, ..ConvertOptions::default() };
    let conversion = convert(&checkpoint, &options)?;
    eprintln!("{:#?}", conversion.description);
    if !rest.is_empty() {
        for (key, value) in conversion.metadata.iter() {
            println!("{key} = {:.100}", value.to_json().to_string());
        }
        for tensor in &conversion.tensors {
            println!("{} {:?} {:?} from {:?}", tensor.name, tensor.shape, tensor.role, tensor.expr.sources());
        }
    }
    let begin = Instant::now();
    let (mut values, mut sum) = (0u64, 0f64);
    let mut slab = Vec::new();
    for tensor in &conversion.tensors {
        let shape = tensor.expr.shape();
        let most = (SLAB / shape.cols.max(1)).max(1);
        for slice in 0..shape.slices {
            let mut first = 0;
            while first < shape.rows {
                let last = shape.rows.min(first + most);
                slab.resize(usize::try_from((last - first) * shape.cols)?, 0.0);
                tensor.expr.read_rows(&checkpoint, slice, first..last, &mut slab)?;
                values += slab.len() as u64;
                sum += f64::from(slab.first().copied().unwrap_or(0.0));
                first = last;
            }
        }
    }
    let seconds = begin.elapsed().as_secs_f64();
    eprintln!(
        "{values} weights in {seconds:.2} s: {:.0} MB/s of f32; peak memory {:.0} MB; check {sum:.6}",
        values as f64 * 4.0 / 1e6 / seconds,
        peak_rss_bytes().unwrap_or(0) as f64 / 1e6,
    );
    Ok(())
}
