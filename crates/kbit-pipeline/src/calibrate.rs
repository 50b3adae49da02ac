//! Gathers an importance matrix: texts through the engine, and a file of what was gathered so far, from which an interrupted
//! gathering goes on. With second moments, texts go through the model block by block instead.

use crate::cache::{Stamp, key_of};
use crate::error::PipelineError;
use crate::measure::read_text;
use crate::open::OpenModel;
use crate::progress::Progress;
use kbit_calibrate::{
    GatherOptions, Gathered, Gatherer, ImportanceMatrix, Means, MomentGatherer, MomentsFile, Moved, Saved,
    Starved,
};
use kbit_engine::Passed;
use kbit_formats::FormatError;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time from one writing of what was gathered so far to the next.
const BETWEEN: Duration = Duration::from_secs(60);

/// What to gather.
#[derive(Clone, Debug)]
pub struct Gathering {
    /// Texts, one after the other; windows do not reach from one into the next.
    pub texts: Vec<PathBuf>,
    /// Tokens in a window.
    pub context: usize,
    /// Windows of each text; `None` for all.
    pub chunks: Option<usize>,
    /// Also for the output matrix.
    pub output: bool,
    /// Second moments besides: block by block, and without a file to go on from.
    pub second_moments: bool,
    /// File to write.
    pub out: PathBuf,
    /// True to write over a file of that name.
    pub overwrite: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct GatheringSummary {
    /// The file.
    pub path: PathBuf,
    /// Tensors with data.
    pub tensors: usize,
    /// Tensors with second moments of their inputs.
    pub moments: usize,
    /// Merged files without second moments, for which those of the others were left out.
    pub without_moments: Vec<PathBuf>,
    /// Windows in it.
    pub windows: u64,
    /// Windows that an earlier, interrupted gathering had done.
    pub resumed: u64,
    /// Tokens in a window.
    pub context: usize,
    /// How far the means of tensors moved in the second half of the windows; none of a single window.
    pub moved: Option<Moved>,
    /// Experts that saw little.
    pub starved: Vec<Starved>,
    /// Seconds of the windows that were run now.
    pub seconds: f64,
    /// Tokens a second of those; none where there was nothing left to do.
    pub tokens_per_second: Option<f64>,
}

/// Gathers the importance matrix of `model`.
///
/// # Errors
/// When a text is not UTF-8 or shorter than a window, the model cannot be run, an activation is not finite, or the file cannot be
/// written.
pub fn gather(
    model: &OpenModel,
    gathering: &Gathering,
    progress: &Progress,
) -> Result<GatheringSummary, PipelineError> {
    let out = &gathering.out;
    if out.exists() && !gathering.overwrite {
        return Err(FormatError::Exists { path: out.clone() }.into());
    }
    let tokenizer = model.tokenizer()?;
    let mut texts = Vec::with_capacity(gathering.texts.len());
    for path in &gathering.texts {
        let tokens = tokenizer.encode(&read_text(path)?, true, false);
        if tokens.len() < gathering.context {
            return Err(PipelineError::ShortText {
                path: path.clone(),
                had: tokens.len(),
                needed: gathering.context,
            });
        }
        texts.push(tokens);
    }
    let windows: Vec<&[u32]> = texts
        .iter()
        .flat_map(|tokens| {
            let all = tokens.chunks_exact(gathering.context);
            all.take(gathering.chunks.unwrap_or(usize::MAX))
        })
        .collect();
    let options = GatherOptions {
        context: gathering.context,
        bos: tokenizer.bos().filter(|_| tokenizer.adds_bos()),
        output: gathering.output,
    };
    if gathering.second_moments {
        return gather_moments(model, gathering, options, &windows, progress);
    }
    let key = key_of(&serde_json::json!({
        "model": source(&model.path)?,
        "mode": model.model.mode().to_string(),
        "cache_type": model.model.cache().to_string(),
        "context": gathering.context,
        "output": gathering.output,
        "windows": windows,
    }));
    let partial = partial_path(out);
    let mut gatherer = Gatherer::new(&model.model, options);
    let (mut done, mut half) = (0, None);
    if partial.exists() {
        let saved = Saved::read(&partial)?;
        if saved.key == key {
            done = usize::try_from(saved.windows).unwrap_or(usize::MAX).min(windows.len());
            gatherer.resume(saved.gathered);
            half = saved.half;
        } else {
            progress.line(&format!("{}: of another gathering; begun anew", partial.display()));
        }
    }
    let resumed = done;
    let bar = progress.items("windows", windows.len() as u64);
    bar.set(done as u64);
    let (started, mut written) = (Instant::now(), Instant::now());
    let middle = windows.len().div_ceil(2);
    while done < windows.len() {
        let end = if done < middle { middle } else { windows.len() };
        let count = gatherer.together().min(end - done);
        gatherer.add(&windows[done..done + count])?;
        done += count;
        bar.set(done as u64);
        if done == middle && done < windows.len() {
            half = Some(gatherer.gathered());
        }
        if written.elapsed() >= BETWEEN && done < windows.len() {
            let saved = Saved {
                key: key.clone(),
                windows: done as u64,
                gathered: gatherer.gathered(),
                half: half.clone(),
            };
            saved.write(&partial)?;
            written = Instant::now();
        }
    }
    drop(bar);
    let seconds = started.elapsed().as_secs_f64();
    let gathered = gatherer.gathered();
    let summary =
        write(out, &gathered, &gathering.datasets(), done as u64, gathering.context, gathering.overwrite)?;
    if partial.exists() {
        std::fs::remove_file(&partial).map_err(PipelineError::io(&partial, "removing"))?;
    }
    Ok(GatheringSummary {
        resumed: resumed as u64,
        moved: half.and_then(|half| Means::new(&gathered).moved(&Means::new(&half))),
        seconds,
        tokens_per_second: rate(done - resumed, gathering.context, seconds),
        ..summary
    })
}

/// Tokens a second; none where no window was run.
#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn rate(windows: usize, context: usize, seconds: f64) -> Option<f64> {
    (windows > 0).then(|| (windows * context) as f64 / seconds.max(1e-9))
}

/// Gathers second moments with the importance matrix.
fn gather_moments(
    model: &OpenModel,
    gathering: &Gathering,
    options: GatherOptions,
    windows: &[&[u32]],
    progress: &Progress,
) -> Result<GatheringSummary, PipelineError> {
    let started = Instant::now();
    let gatherer = MomentGatherer::new(&model.model, options)?;
    let file = MomentsFile::create(
        &gathering.out,
        gatherer.inputs(),
        &gathering.datasets(),
        whole(windows.len() as u64),
        whole(gathering.context as u64),
        gathering.overwrite,
    )?;
    let moments = gatherer.inputs().iter().map(|input| input.tensors.len()).sum();
    let blocks = model.model.description().layers as u64;
    let bar = progress.items("windows of a block", windows.len() as u64 * blocks);
    let mut tokens = 0;
    let gathered = gatherer.gather(
        windows,
        |passed| {
            if let Passed::Batch { tokens: more, .. } = passed {
                tokens += more;
                bar.set((tokens / gathering.context) as u64);
            }
        },
        |moments| file.write(&moments),
    )?;
    drop(bar);
    file.finish(&gathered)?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(GatheringSummary {
        moments,
        seconds,
        tokens_per_second: rate(windows.len(), gathering.context, seconds),
        ..GatheringSummary::of(&gathering.out, &gathered, windows.len() as u64, gathering.context)
    })
}

/// A number as the format has it.
fn whole(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Gathering {
    /// The texts as the file names them.
    fn datasets(&self) -> Vec<String> {
        self.texts.iter().map(|path| path.display().to_string()).collect()
    }
}

impl GatheringSummary {
    fn of(path: &Path, gathered: &[Gathered], windows: u64, context: usize) -> Self {
        Self {
            path: path.to_owned(),
            tensors: gathered.len(),
            moments: 0,
            without_moments: Vec::new(),
            windows,
            resumed: 0,
            context,
            moved: None,
            starved: kbit_calibrate::starved(gathered),
            seconds: 0.0,
            tokens_per_second: None,
        }
    }
}

/// Writes the file, and says what it holds.
fn write(
    out: &Path,
    gathered: &[Gathered],
    datasets: &[String],
    windows: u64,
    context: usize,
    overwrite: bool,
) -> Result<GatheringSummary, PipelineError> {
    kbit_calibrate::write(out, gathered, datasets, whole(windows), whole(context as u64), overwrite)?;
    Ok(GatheringSummary::of(out, gathered, windows, context))
}

/// Where what was gathered so far lies.
fn partial_path(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    out.with_file_name(name)
}

/// The files of a model with their stamps.
fn source(path: &Path) -> Result<Vec<(PathBuf, Stamp)>, PipelineError> {
    let io = |error| PipelineError::io(path, "looking at the model")(error);
    let whole = std::fs::canonicalize(path).map_err(io)?;
    if !whole.is_dir() {
        let stamp = Stamp::of(&whole)?;
        return Ok(vec![(whole, stamp)]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&whole).map_err(io)? {
        let file = entry.map_err(io)?.path();
        if file.is_file() {
            let stamp = Stamp::of(&file)?;
            files.push((file, stamp));
        }
    }
    files.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(files)
}

/// Writes what several importance matrices hold as one; second moments where all have some.
///
/// # Errors
/// When a file cannot be read, or they do not go together.
pub fn merge(files: &[PathBuf], out: &Path, overwrite: bool) -> Result<GatheringSummary, PipelineError> {
    let files = files.iter().map(|path| ImportanceMatrix::open(path)).collect::<Result<Vec<_>, _>>()?;
    let gathered = kbit_calibrate::merge(&files)?;
    let inputs = kbit_calibrate::common_inputs(&files)?;
    let mut datasets: Vec<String> = Vec::new();
    for name in files.iter().flat_map(ImportanceMatrix::datasets) {
        if !datasets.contains(name) {
            datasets.push(name.clone());
        }
    }
    let windows = files.iter().map(ImportanceMatrix::chunk_count).sum();
    let context = files.iter().find_map(ImportanceMatrix::chunk_size).unwrap_or(0);
    let context = usize::try_from(context).unwrap_or(usize::MAX);
    if inputs.is_empty() {
        let summary = write(out, &gathered, &datasets, windows, context, overwrite)?;
        let without = files.iter().filter(|file| file.moment_inputs().is_empty());
        let mut without_moments: Vec<PathBuf> = without.map(|file| file.path().to_owned()).collect();
        if without_moments.len() == files.len() {
            without_moments.clear();
        }
        return Ok(GatheringSummary { without_moments, ..summary });
    }
    let (chunk_count, chunk_size) = (whole(windows), whole(context as u64));
    let file = MomentsFile::create(out, inputs, &datasets, chunk_count, chunk_size, overwrite)?;
    kbit_calibrate::merge_moments(&files, inputs, |moments| file.write(&moments))?;
    file.finish(&gathered)?;
    let moments = inputs.iter().map(|input| input.tensors.len()).sum();
    Ok(GatheringSummary { moments, ..GatheringSummary::of(out, &gathered, windows, context) })
}
