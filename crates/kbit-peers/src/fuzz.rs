//! kbit's block encoders and decoders against ggml's, on generated blocks: every byte and every bit of every float.

use crate::generate::{self, ImportanceKind, Rows};
use crate::ggml::{Aborted, Ggml};
use crate::peers::Peers;
use crate::random::Random;
use crate::table::Table;
use crate::{Result, in_context, say};
use kbit_blocks::{BlockError, InstructionSet, Kernels};
use kbit_types::GgmlType;
use std::fmt::{self, Write as _};
use std::io::IsTerminal as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Blocks a type, and of types whose reference searches a grid for seconds a megabyte.
const BLOCKS: u64 = 1_000_000;
const BLOCKS_OF_GRIDS: u64 = 100_000;
/// Weights that count as a block of a type without blocks (f32, f16, bf16).
const PLAIN_BLOCK: usize = 32;

/// `fuzz-peers`: encoders and decoders against ggml's.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Blocks a type [default: 1000000; 100000 for IQ1, IQ2 and IQ3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    blocks: Option<u64>,
    /// Types, as q4_0,q6_k [default: all that kbit can encode or decode]
    #[arg(long, value_name = "TYPES", value_delimiter = ',', value_parser = parse_type)]
    types: Vec<GgmlType>,
    /// Seed of the blocks
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Only this batch, as a message names it
    #[arg(long, value_name = "B")]
    batch: Option<u64>,
    /// Threads [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    threads: Option<u32>,
}

fn parse_type(name: &str) -> Result<GgmlType> {
    GgmlType::from_name(name).ok_or_else(|| {
        let known: Vec<_> = GgmlType::ALL.iter().map(|ty| ty.name()).collect();
        format!("no ggml type has this name; they are {}", known.join(", "))
    })
}

/// What was compared of a type.
struct Found {
    blocks: u64,
    refused: u64,
    aborted: u64,
    difference: Option<Difference>,
}

/// Where kbit and ggml differ.
struct Difference {
    batch: u64,
    what: String,
    detail: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}", self.what, self.detail)
    }
}

/// Compares all types, prints a table, and fails where one differs.
///
/// # Errors
/// A difference, or a library that cannot be loaded.
pub fn fuzz(peers: &Peers, args: &Args) -> Result<()> {
    let ggml = Ggml::open(&peers.library())?;
    let folder = peers.folder().join("fuzz");
    let known = |ty: &GgmlType| kbit_blocks::can_encode(*ty) || kbit_blocks::can_decode(*ty);
    let types: Vec<GgmlType> = if args.types.is_empty() {
        GgmlType::ALL.iter().copied().filter(known).collect()
    } else {
        args.types.clone()
    };
    if let Some(unknown) = types.iter().find(|ty| !known(ty)) {
        return Err(format!("kbit neither encodes nor decodes {unknown}; leave it out of --types"));
    }
    let mut table = Table::new(&[
        "type",
        "blocks",
        "encoded",
        "with importance",
        "decoded",
        "refused by both",
        "ggml aborts",
        "result",
    ]);
    let mut differing = Vec::new();
    for ty in types {
        let grid = ["IQ1", "IQ2", "IQ3"].iter().any(|prefix| ty.name().starts_with(prefix));
        let blocks = args.blocks.unwrap_or(if grid { BLOCKS_OF_GRIDS } else { BLOCKS });
        let begin = Instant::now();
        let found = fuzz_type(&ggml, ty, blocks, args, &folder);
        let yes = |yes: bool| if yes { "yes" } else { "-" }.to_owned();
        let encodes = kbit_blocks::can_encode(ty);
        table.row(vec![
            ty.name().to_owned(),
            found.blocks.to_string(),
            yes(encodes && !ggml.requires_importance(ty)),
            yes(encodes && kbit_blocks::uses_importance(ty)),
            yes(kbit_blocks::can_decode(ty)),
            found.refused.to_string(),
            found.aborted.to_string(),
            if found.difference.is_some() { "DIFFERENT" } else { "equal" }.to_owned(),
        ]);
        say(&format!(
            "{:<8} {:>8} blocks in {:.1} s",
            ty.name(),
            found.blocks,
            begin.elapsed().as_secs_f64()
        ));
        if let Some(difference) = found.difference {
            say(&format!(
                "{ty}: {difference}\n  repeat: cargo xtask fuzz-peers --types {} --seed {} --batch {}",
                ty.name().to_lowercase(),
                args.seed,
                difference.batch
            ));
            differing.push(ty.name());
        }
    }
    say(&format!("\n{}", table.text()));
    if differing.is_empty() { Ok(()) } else { Err(format!("different from ggml: {}", differing.join(", "))) }
}

fn fuzz_type(ggml: &Ggml, ty: GgmlType, wanted: u64, args: &Args, folder: &Path) -> Found {
    let threads = args.threads.map_or_else(
        || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        |threads| threads as usize,
    );
    let next = AtomicU64::new(args.batch.unwrap_or(0));
    let (blocks, refused, aborted) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let first: Mutex<Option<Difference>> = Mutex::new(None);
    let work = || {
        while !stop.load(Ordering::Relaxed) {
            let batch = next.fetch_add(1, Ordering::Relaxed);
            if args.batch.is_some_and(|only| only != batch) || blocks.load(Ordering::Relaxed) >= wanted {
                return;
            }
            let outcome = Batch::generate(ty, args.seed, batch).compare(ggml, folder);
            match outcome {
                Ok(compared) => {
                    blocks.fetch_add(compared.blocks, Ordering::Relaxed);
                    refused.fetch_add(compared.refused, Ordering::Relaxed);
                    aborted.fetch_add(compared.aborted, Ordering::Relaxed);
                }
                Err(difference) => {
                    stop.store(true, Ordering::Relaxed);
                    let mut first = first.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    if first.as_ref().is_none_or(|first| first.batch > difference.batch) {
                        *first = Some(difference);
                    }
                }
            }
        }
    };
    let finished = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        scope.spawn(|| progress(ty, wanted, &blocks, &finished));
        for worker in workers {
            // Panics of kbit were caught and are differences; this is one of the comparison itself.
            if let Err(panic) = worker.join() {
                finished.store(true, Ordering::Relaxed);
                std::panic::resume_unwind(panic);
            }
        }
        finished.store(true, Ordering::Relaxed);
    });
    let difference = first.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Found {
        blocks: blocks.into_inner(),
        refused: refused.into_inner(),
        aborted: aborted.into_inner(),
        difference,
    }
}

/// Says how far a type is, in one line that is overwritten, on a terminal only.
fn progress(ty: GgmlType, wanted: u64, blocks: &AtomicU64, finished: &AtomicBool) {
    if !std::io::stderr().is_terminal() {
        return;
    }
    let mut last = Instant::now();
    while !finished.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(50));
        if last.elapsed() > Duration::from_secs(1) {
            crate::say_over(&format!("{ty}: {} of {wanted} blocks", blocks.load(Ordering::Relaxed)));
            last = Instant::now();
        }
    }
}

/// Rows of one type, and what weighs their columns.
struct Batch {
    ty: GgmlType,
    seed: u64,
    number: u64,
    rows: Rows,
    importance: Vec<f32>,
    importance_kind: ImportanceKind,
    /// Whole blocks of random bytes, to decode.
    noise: Vec<u8>,
}

/// What a batch without a difference held.
struct Compared {
    blocks: u64,
    refused: u64,
    aborted: u64,
}

impl Batch {
    fn generate(ty: GgmlType, seed: u64, number: u64) -> Self {
        let mut random = Random::new(&[seed, ty.id().into(), number]);
        let block = block_elements(ty);
        let (rows, blocks) = (1 + random.below(20), 1 + random.below(12));
        let rows = generate::rows(&mut random, rows, blocks, block);
        let importance_kind = ImportanceKind::ALL[random.below(ImportanceKind::ALL.len())];
        let importance = importance_kind.columns(&mut random, rows.cols);
        let noise = random_blocks(&mut random, ty);
        Self { ty, seed, number, rows, importance, importance_kind, noise }
    }

    /// Encodes and decodes with both on every instruction set.
    fn compare(&self, ggml: &Ggml, folder: &Path) -> std::result::Result<Compared, Difference> {
        let mut compared = Compared { blocks: self.rows.distributions.len() as u64, refused: 0, aborted: 0 };
        let ty = self.ty;
        if kbit_blocks::can_decode(ty) {
            self.compare_decoded(ggml, &self.noise, "random bytes")?;
        }
        if !kbit_blocks::can_encode(ty) {
            return Ok(compared);
        }
        let weighted = kbit_blocks::uses_importance(ty).then_some(&self.importance[..]);
        let plain = (!ggml.requires_importance(ty)).then_some(None);
        for importance in plain.into_iter().chain(weighted.map(Some)) {
            let bytes = match ggml.encode(ty, &self.rows.weights, self.rows.cols, importance) {
                Ok(bytes) => bytes,
                Err(Aborted(message)) => {
                    self.compare_sets(importance, &message, folder)?;
                    compared.aborted += 1;
                    continue;
                }
            };
            let accepted = ggml.accepts(ty, &bytes);
            for kernels in kernels() {
                match self.encoded(kernels, importance, bytes.len()) {
                    Ok(own) if own != bytes => {
                        return Err(self.bytes_differ(kernels, importance, &bytes, &own, folder));
                    }
                    Ok(_) if accepted => {}
                    Ok(_) => {
                        let what = "kbit writes what llama.cpp refuses to load (a scale that is not finite)";
                        return Err(self.difference(kernels, importance, what.to_owned(), folder));
                    }
                    Err(Failure::Refused(error, _)) if !accepted && concerns_weights(&error) => {
                        compared.refused += 1;
                    }
                    Err(failure) => {
                        let what = self.refusal(&failure, &bytes);
                        return Err(self.difference(kernels, importance, what, folder));
                    }
                }
            }
            if accepted && kbit_blocks::can_decode(ty) {
                self.compare_decoded(ggml, &bytes, "encoded blocks")?;
            }
        }
        Ok(compared)
    }

    /// Where ggml gives up (with the message `aborted`), kbit may refuse or encode, but as one on all instruction sets.
    fn compare_sets(
        &self,
        importance: Option<&[f32]>,
        aborted: &str,
        folder: &Path,
    ) -> std::result::Result<(), Difference> {
        let row_bytes = self.ty.bytes_for(self.rows.cols as u64).map_or(0, |bytes| bytes as usize);
        let length = row_bytes * (self.rows.weights.len() / self.rows.cols);
        let mut first: Option<Option<Vec<u8>>> = None;
        for kernels in kernels() {
            let own = match self.encoded(kernels, importance, length) {
                Err(Failure::Panicked) => {
                    let what = format!("kbit panics, and ggml aborts: {aborted}");
                    return Err(self.difference(kernels, importance, what, folder));
                }
                encoded => encoded.ok(),
            };
            match &first {
                Some(first) if *first != own => {
                    let what = format!("instruction sets of kbit differ where ggml aborts: {aborted}");
                    return Err(self.difference(kernels, importance, what, folder));
                }
                Some(_) => {}
                None => first = Some(own),
            }
        }
        Ok(())
    }

    fn encoded(
        &self,
        kernels: Kernels,
        importance: Option<&[f32]>,
        length: usize,
    ) -> std::result::Result<Vec<u8>, Failure> {
        // What stands in the buffer must not matter.
        let mut own = vec![0xA5; length];
        let rows = &self.rows;
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            kernels.encode_row_range(self.ty, &rows.weights, rows.cols, importance, &mut own)
        }));
        match outcome {
            Ok(Ok(())) => Ok(own),
            Ok(Err(error)) => Err(Failure::Refused(error, own)),
            Err(_) => Err(Failure::Panicked),
        }
    }

    /// Describes why kbit gave no bytes for what ggml encodes as `theirs`: with the first block that differs in what kbit had
    /// written when it stopped.
    fn refusal(&self, failure: &Failure, theirs: &[u8]) -> String {
        let mut what = failure.to_string();
        if let Failure::Refused(error, ours) = failure
            && concerns_weights(error)
        {
            let size = self.unit_bytes();
            let pairs = theirs.chunks(size).zip(ours.chunks(size));
            if let Some((block, (theirs, ours))) =
                pairs.enumerate().find(|(_, (theirs, ours))| theirs != ours)
            {
                let distribution = self.rows.distributions[block].name();
                let (theirs, ours) = (hex(theirs), hex(ours));
                let _ = write!(what, "\n  block {block} ({distribution}):\n  ggml {theirs}\n  kbit {ours}");
            }
        }
        what
    }

    fn compare_decoded(
        &self,
        ggml: &Ggml,
        bytes: &[u8],
        source: &str,
    ) -> std::result::Result<(), Difference> {
        let ty = self.ty;
        let Some(expected) = ggml.decode(ty, bytes) else { return Ok(()) };
        for kernels in kernels() {
            let mut own = vec![f32::from_bits(0xA5A5_A5A5); expected.len()];
            let outcome = catch_unwind(AssertUnwindSafe(|| kernels.decode(ty, bytes, &mut own)));
            let set = set_name(kernels);
            let refused = match outcome {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Failure::Refused(error, Vec::new())),
                Err(_) => Some(Failure::Panicked),
            };
            if let Some(failure) = refused {
                let what = format!(
                    "decode of {source}, {set}: seed {}, batch {}: {failure}",
                    self.seed, self.number
                );
                return Err(Difference { batch: self.number, what, detail: String::new() });
            }
            let Some(index) =
                expected.iter().zip(&own).position(|(theirs, ours)| !same_float(*theirs, *ours))
            else {
                continue;
            };
            let block = index / ty.block_elements() as usize;
            let size = ty.block_bytes() as usize;
            return Err(Difference {
                batch: self.number,
                what: format!(
                    "decode of {source}, {set}: seed {}, batch {}, block {block}",
                    self.seed, self.number
                ),
                detail: format!(
                    "  weight {} of the block: ggml {:?} ({:08x}), kbit {:?} ({:08x})\n  bytes {}",
                    index % ty.block_elements() as usize,
                    expected[index],
                    expected[index].to_bits(),
                    own[index],
                    own[index].to_bits(),
                    hex(&bytes[block * size..][..size])
                ),
            });
        }
        Ok(())
    }

    fn bytes_differ(
        &self,
        kernels: Kernels,
        importance: Option<&[f32]>,
        theirs: &[u8],
        ours: &[u8],
        folder: &Path,
    ) -> Difference {
        let size = self.unit_bytes();
        let byte = theirs.iter().zip(ours).position(|(a, b)| a != b).unwrap_or(0);
        let block = byte / size;
        let differing = theirs.chunks(size).zip(ours.chunks(size)).filter(|(a, b)| a != b).count();
        let a_row = self.rows.cols / block_elements(self.ty);
        let mut what = format!(
            "bytes differ in {differing} of {} blocks, first in block {} of row {} ({}), at its byte {}",
            self.rows.distributions.len(),
            block % a_row,
            block / a_row,
            self.rows.distributions[block].name(),
            byte % size
        );
        let _ = write!(
            what,
            "\n  ggml {}\n  kbit {}",
            hex(&theirs[block * size..][..size]),
            hex(&ours[block * size..][..size])
        );
        self.difference(kernels, importance, what, folder)
    }

    /// Bytes of what counts as a block.
    fn unit_bytes(&self) -> usize {
        self.ty.block_bytes() as usize * (block_elements(self.ty) / self.ty.block_elements() as usize)
    }

    /// Describes the batch and keeps it as a file.
    fn difference(
        &self,
        kernels: Kernels,
        importance: Option<&[f32]>,
        what: String,
        folder: &Path,
    ) -> Difference {
        let importance_name = match importance {
            Some(_) => format!("importance {}", self.importance_kind.name()),
            None => "no importance".to_owned(),
        };
        let (cols, rows) = (self.rows.cols, self.rows.weights.len() / self.rows.cols);
        let kept = match self.keep(folder) {
            Ok(path) => format!("  weights and importance: {path}"),
            Err(error) => format!("  the weights could not be kept: {error}"),
        };
        Difference {
            batch: self.number,
            what: format!(
                "encode, {}, {importance_name}: seed {}, batch {} ({rows} rows of {cols})",
                set_name(kernels),
                self.seed,
                self.number
            ),
            detail: format!("  {what}\n{kept}"),
        }
    }

    fn keep(&self, folder: &Path) -> Result<String> {
        std::fs::create_dir_all(folder).map_err(in_context(folder.display()))?;
        let write = |part: &str, shape: &[u64], values: &[f32]| {
            let name = format!("{}-{}-{}-{part}.safetensors", self.ty.name(), self.seed, self.number);
            let path = folder.join(name);
            kbit_formats::write_safetensors_f32(&path, part, shape, values)
                .map_err(|error| error.to_string())?;
            Ok::<_, String>(path.display().to_string())
        };
        let (weights, cols) = (&self.rows.weights, self.rows.cols);
        let written = write("weights", &[(weights.len() / cols) as u64, cols as u64], weights)?;
        Ok(format!("{written}, {}", write("importance", &[cols as u64], &self.importance)?))
    }
}

/// Why kbit gave no bytes.
enum Failure {
    /// With what it had written until then.
    Refused(BlockError, Vec<u8>),
    Panicked,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error, _) => write!(f, "kbit refuses what ggml takes: {error}"),
            Self::Panicked => f.write_str("kbit panics"),
        }
    }
}

/// True where the weights are refused, and not the call.
fn concerns_weights(error: &BlockError) -> bool {
    !matches!(
        error,
        BlockError::Type { .. }
            | BlockError::Columns { .. }
            | BlockError::Size { .. }
            | BlockError::Importance { .. }
    )
}

/// The kernels of this CPU, each instruction set once.
fn kernels() -> Vec<Kernels> {
    let sets = [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512];
    let mut kernels: Vec<_> = sets.into_iter().map(Kernels::up_to).collect();
    kernels.dedup_by_key(|kernels| kernels.instruction_set());
    kernels
}

fn set_name(kernels: Kernels) -> String {
    format!("{:?}", kernels.instruction_set()).to_lowercase()
}

fn block_elements(ty: GgmlType) -> usize {
    match ty.block_elements() as usize {
        1 => PLAIN_BLOCK,
        elements => elements,
    }
}

/// Blocks of random bytes. A third are wholly random: most bit patterns of a half-precision scale, infinities and NaN too.
/// The others have plausible scales, that is, few large exponents.
fn random_blocks(random: &mut Random, ty: GgmlType) -> Vec<u8> {
    let units = (block_elements(ty) as u64 / ty.block_elements()) as usize;
    let mut bytes = vec![0u8; ty.block_bytes() as usize * units * 8];
    let mask = [0xFF, 0x3F, 0xBF][random.below(3)];
    for byte in &mut bytes {
        *byte = random.bits() as u8 & if random.chance(0.3) { mask } else { 0xFF };
    }
    bytes
}

/// Equal bits; any NaN equals any other, whose payload depends on the instruction.
fn same_float(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::{Batch, block_elements, hex, kernels, same_float};
    use kbit_types::GgmlType;

    #[test]
    fn a_batch_repeats_from_its_number() {
        for ty in [GgmlType::Q4_0, GgmlType::BF16, GgmlType::Q6_K] {
            let (a, b) = (Batch::generate(ty, 9, 4), Batch::generate(ty, 9, 4));
            let bits =
                |batch: &Batch| batch.rows.weights.iter().map(|weight| weight.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&a), bits(&b));
            assert_eq!((&a.importance, &a.noise), (&b.importance, &b.noise));
            assert!(a.rows.cols.is_multiple_of(block_elements(ty)));
            assert_ne!(bits(&b), bits(&Batch::generate(ty, 9, 5)));
        }
    }

    #[test]
    fn random_blocks_are_whole() {
        for ty in GgmlType::ALL {
            assert!(Batch::generate(*ty, 1, 0).noise.len().is_multiple_of(ty.block_bytes() as usize), "{ty}");
        }
    }

    #[test]
    fn every_instruction_set_stands_once() {
        let sets: Vec<_> = kernels().iter().map(|kernels| kernels.instruction_set()).collect();
        assert!(sets.is_sorted() && sets.windows(2).all(|pair| pair[0] != pair[1]), "{sets:?}");
    }

    #[test]
    fn floats_are_equal_by_bits_and_nan_by_kind() {
        assert!(same_float(f32::NAN, -f32::NAN) && same_float(1.0, 1.0));
        assert!(!same_float(0.0, -0.0));
        assert_eq!(hex(&[0, 0xAB]), "00ab");
    }
}
