//! A whole run: plan every file, write what is missing, measure what was not measured, fit, report.

mod tasks;
mod texts;

use crate::cache::{Cache, ContentHashes, Stamp, key_of};
use crate::config::{Config, ModelEntry, RuleEntry, TargetEntry};
use crate::convert::{self, RunOptions};
use crate::error::PipelineError;
use crate::importance::ImportanceUse;
use crate::measure::Subject;
use crate::plan::{Fallback, FilePlan, PlanOptions, SplitBy};
use crate::planner::{self, PlanFile, PlannedMeasurement, PlannedText};
use crate::progress::Progress;
use crate::recipe::{Recipe, recipes};
use crate::report::write_report;
use crate::statistics::TensorError;
use kbit_calibrate::{Importance, ImportanceMatrix};
use kbit_formats::{Checkpoint, atomic};
use kbit_host::Registry;
use kbit_laws::additive::Expected;
use kbit_models::{Conversion, TrainingInfo};
use kbit_results::{Cost, Items, Measurement, Sample};
use kbit_yaml::Mistake;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Everything that a run will do.
pub struct RunPlan<'a> {
    config: &'a Config,
    registry: &'a Registry,
    /// Output folder.
    pub out: PathBuf,
    /// One entry a model.
    pub models: Vec<ModelPlan<'a>>,
    /// What was planned, by [`RunPlan::plan_targets`].
    planned: Vec<PlannedTarget>,
    /// Targets that could not be.
    failures: Vec<Failure>,
}

/// A target that was planned.
#[derive(Clone, Debug, Serialize)]
struct PlannedTarget {
    model: String,
    scheme: String,
    target: String,
    made_of: String,
    bytes: u64,
    bits_per_weight: f64,
    kl_divergence: Expected,
    measured: Option<PlannedMeasurement>,
    text: PlannedText,
}

/// A file that is yet to be planned.
#[derive(Clone, Debug, Serialize)]
pub struct TargetLine {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// What it is to reach.
    pub target: String,
    /// Text to calibrate on.
    pub text: PathBuf,
}

/// What a run does with one model.
pub struct ModelPlan<'a> {
    /// The configuration's entry.
    pub entry: &'a ModelEntry,
    /// The source.
    pub checkpoint: Checkpoint,
    /// What each output tensor is made of.
    pub conversion: Conversion,
    /// One entry an output file.
    pub files: Vec<PlannedFile>,
    /// How they are planned.
    options: PlanOptions,
}

/// One output file.
pub struct PlannedFile {
    /// How it is made.
    pub recipe: Recipe,
    /// What it will hold.
    pub plan: FilePlan,
    /// Where it goes; its shards beside it.
    pub path: PathBuf,
}

impl ModelPlan<'_> {
    /// Plans a file by what it is to reach, and writes the plan beside what was measured for it.
    fn planned(
        &self,
        request: &planner::Request,
        label: &str,
        registry: &Registry,
        path: PathBuf,
        progress: &Progress,
        cancel: &Arc<AtomicBool>,
    ) -> Result<(PlannedFile, PlanFile), PipelineError> {
        let planned = planner::plan(request, registry, progress, cancel)?;
        for note in &planned.notes {
            progress.line(&format!("{} {label}: {note}", self.entry.name));
        }
        let name = format!("{}-{}.yaml", file_name(&self.entry.name), file_name(label));
        atomic::write_atomically(&request.work.join(name), planned.plan.to_yaml().as_bytes())?;
        let (mut recipe, _) = planned.plan.recipe(registry, &self.conversion)?;
        label.clone_into(&mut recipe.label);
        let plan = FilePlan::new(&self.checkpoint, &self.conversion, &recipe, registry, &self.options)?;
        Ok((PlannedFile { recipe, plan, path }, planned.plan))
    }
}

impl PlannedFile {
    /// The file, or all its shards.
    fn paths(&self) -> Vec<PathBuf> {
        self.plan.layout.paths(&self.path)
    }

    /// The file by which it is opened.
    fn first(&self) -> PathBuf {
        self.paths().into_iter().next().unwrap_or_else(|| self.path.clone())
    }
}

/// A line of the plan of a run.
#[derive(Debug, Serialize)]
pub struct FileLine {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Stored bits a weight, all tensors.
    pub bits_per_weight: f64,
    /// Stored bits a weight without embedding and output.
    pub decoder_bits_per_weight: f64,
    /// Tensors stored otherwise than asked.
    pub fallbacks: Vec<Fallback>,
    /// Why the file cannot be written, where it cannot.
    pub obstacle: Option<String>,
    /// What it costs that tensors are quantized anew, where some are.
    pub requantized: Option<String>,
    /// What is made of the importance matrix, where there is one.
    pub importance: Option<ImportanceUse>,
    /// Where it goes.
    pub path: PathBuf,
}

/// A step that failed while others went on.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Model.
    pub model: String,
    /// Scheme label.
    pub scheme: String,
    /// Why.
    pub message: String,
}

/// What a run gave.
#[derive(Debug, Serialize)]
pub struct RunSummary {
    /// Output folder.
    pub out: PathBuf,
    /// Files of the report.
    pub report: Vec<PathBuf>,
    /// Files written in this run.
    pub files_written: usize,
    /// Files and measurements taken over from earlier runs.
    pub reused: usize,
    /// Lines of `results.jsonl`.
    pub measurements: usize,
    /// What failed.
    pub failures: Vec<Failure>,
    /// Seconds of this run.
    pub seconds: f64,
    /// Peak resident memory (VmHWM), in bytes.
    pub peak_rss_bytes: Option<u64>,
}

/// A written file, remembered.
#[derive(Clone, Serialize, Deserialize)]
struct FileRecord {
    path: PathBuf,
    /// Of the file, or of each shard.
    stamps: Vec<Stamp>,
    sha256: String,
    errors: Vec<(String, TensorError)>,
    seconds: f64,
    peak_rss_bytes: Option<u64>,
}

impl<'a> RunPlan<'a> {
    /// Plans the run of `config`. Reads headers only.
    ///
    /// # Errors
    /// Every mistake that can be known before a tensor is read.
    pub fn new(
        config: &'a Config,
        registry: &'a Registry,
        out: Option<&Path>,
    ) -> Result<Self, PipelineError> {
        let out = match (out, &config.output) {
            (Some(out), _) => out.to_owned(),
            (None, Some(out)) => out.clone(),
            (None, None) => Path::new("kbit-runs").join(&config.name),
        };
        let recipes = recipes(config, registry)?;
        let mut models = Vec::new();
        for entry in &config.models {
            let checkpoint = Checkpoint::open(&entry.path)?;
            let mut conversion = kbit_models::convert(&checkpoint, &entry.options)?;
            entry.edits.prune(&mut conversion)?;
            let split = match config.split_size {
                Some(bytes) => Some(SplitBy::Bytes(bytes)),
                None if config.keep_split => SplitBy::keep(&checkpoint, &mut conversion)?,
                None => None,
            };
            let measured = !(config.evaluations.is_empty() && config.tasks.is_empty());
            if measured && conversion.metadata.get("tokenizer.ggml.model").is_none() {
                return Err(PipelineError::NoTokenizer { path: entry.path.clone() });
            }
            let importance = match &entry.importance {
                None => None,
                Some(found) => Some(Arc::new(Importance {
                    matrix: ImportanceMatrix::open(&found.path)?,
                    policy: found.policy,
                    named: found.named.clone(),
                })),
            };
            let options = PlanOptions {
                fallback_is_error: config.fallback_is_error,
                provenance: config.provenance,
                allow_requantize: config.allow_requantize,
                edits: entry.edits.clone(),
                importance,
                split,
            };
            let mut files = Vec::new();
            for recipe in &recipes {
                let plan = FilePlan::new(&checkpoint, &conversion, recipe, registry, &options)?;
                let path =
                    out.join("files").join(&entry.name).join(format!("{}.gguf", file_name(&recipe.label)));
                files.push(PlannedFile { recipe: recipe.clone(), plan, path });
            }
            models.push(ModelPlan { entry, checkpoint, conversion, files, options });
        }
        for target in &config.targets {
            if recipes.iter().any(|recipe| recipe.label == target.label) {
                let message = format!("a scheme and a plan are named `{}`", target.label);
                let mistake = Mistake::new(target.place, message, "give the plan another `label:`");
                return Err(config.error(vec![mistake]).into());
            }
            if config.split_size.is_some() || config.keep_split {
                let message = "a target plans one file, and outputs are to be split";
                let mistake = Mistake::new(target.place, message, "leave `split_size` and `keep_split` out");
                return Err(config.error(vec![mistake]).into());
            }
        }
        Ok(Self { config, registry, out, models, planned: Vec::new(), failures: Vec::new() })
    }

    /// The files that [`RunPlan::plan_targets`] plans.
    #[must_use]
    pub fn targets(&self) -> Vec<TargetLine> {
        let line = |model: &ModelPlan<'_>, target: &TargetEntry| TargetLine {
            model: model.entry.name.clone(),
            scheme: target.label.clone(),
            target: target.target.to_string(),
            text: target.text.clone(),
        };
        let targets = &self.config.targets;
        self.models.iter().flat_map(|model| targets.iter().map(move |target| line(model, target))).collect()
    }

    /// Plans the files that are given by what they are to reach, and adds them to the run. What is measured for it is kept in the
    /// output folder; a target that cannot be reached is a failure of the run, and the others go on.
    ///
    /// # Errors
    /// When it was cancelled, or another process plans in the same folder.
    pub fn plan_targets(
        &mut self,
        progress: &Progress,
        cancel: &Arc<AtomicBool>,
    ) -> Result<(), PipelineError> {
        (self.planned, self.failures) = (Vec::new(), Vec::new());
        for model in &mut self.models {
            for target in &self.config.targets {
                let rules = target.rules.as_ref().unwrap_or(&self.config.rules);
                let rule = |rule: &RuleEntry| {
                    let scheme = rule.scheme.as_ref().map_or("f32", |scheme| scheme.text.as_str());
                    (rule.pattern.clone(), scheme.to_owned())
                };
                let request = planner::Request {
                    model: model.entry.path.clone(),
                    options: model.entry.options.clone(),
                    edits: model.entry.edits.clone(),
                    target: target.target,
                    schemes: target.among.clone(),
                    rules: rules.iter().map(rule).collect(),
                    agree: target.agree,
                    importance: model.options.importance.clone(),
                    text: target.text.clone(),
                    context: target.context,
                    chunks: target.chunks,
                    verify: target.verify,
                    provenance: self.config.provenance,
                    allow_requantize: self.config.allow_requantize,
                    work: self.out.join("plans"),
                };
                let path = self
                    .out
                    .join("files")
                    .join(&model.entry.name)
                    .join(format!("{}.gguf", file_name(&target.label)));
                match model.planned(&request, &target.label, self.registry, path, progress, cancel) {
                    Ok((file, plan)) => {
                        model.files.push(file);
                        self.planned.push(PlannedTarget {
                            model: model.entry.name.clone(),
                            scheme: target.label.clone(),
                            target: plan.target,
                            made_of: plan.made_of,
                            bytes: plan.bytes,
                            bits_per_weight: plan.bits_per_weight,
                            kl_divergence: plan.kl_divergence,
                            measured: plan.measured,
                            text: plan.text,
                        });
                    }
                    Err(error @ (PipelineError::Cancelled | PipelineError::Busy { .. })) => {
                        return Err(error);
                    }
                    Err(error) => {
                        let failure = Failure {
                            model: model.entry.name.clone(),
                            scheme: target.label.clone(),
                            message: error.to_string(),
                        };
                        progress.line(&format!(
                            "failed: {} {}: {}",
                            failure.model, failure.scheme, failure.message
                        ));
                        self.failures.push(failure);
                    }
                }
            }
        }
        Ok(())
    }

    /// One line an output file.
    #[must_use]
    pub fn lines(&self) -> Vec<FileLine> {
        let line = |model: &ModelPlan<'_>, file: &PlannedFile| {
            let (all, decoder) = file.plan.bits_per_weight(&model.conversion);
            FileLine {
                model: model.entry.name.clone(),
                scheme: file.recipe.label.clone(),
                bytes: file.plan.layout.file_bytes(),
                bits_per_weight: all,
                decoder_bits_per_weight: decoder,
                fallbacks: file.plan.fallbacks().cloned().collect(),
                obstacle: file.plan.check().err().map(|error| error.to_string()),
                requantized: file.plan.requantize_warning(),
                importance: file.plan.importance_use.clone(),
                path: file.first(),
            }
        };
        self.models.iter().flat_map(|model| model.files.iter().map(move |file| line(model, file))).collect()
    }

    /// Bytes that the outputs take.
    #[must_use]
    pub fn output_bytes(&self) -> u64 {
        self.models.iter().flat_map(|model| &model.files).map(|file| file.plan.layout.file_bytes()).sum()
    }

    /// Bytes of memory for slabs that writing takes at most, beside the program itself.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.models
            .iter()
            .flat_map(|model| &model.files)
            .map(|file| file.plan.memory_bytes())
            .max()
            .unwrap_or(0)
    }

    /// Refuses a plan that can be shown but not carried out.
    ///
    /// # Errors
    /// As [`FilePlan::check`], of the first file.
    pub fn check(&self) -> Result<(), PipelineError> {
        self.models.iter().flat_map(|model| &model.files).try_for_each(|file| file.plan.check())
    }

    /// Runs the plan; a second time, only what is missing.
    ///
    /// # Errors
    /// What stops the whole run. A file that fails is a [`Failure`] in the summary, and the others go on.
    pub fn run(&self, progress: &Progress, cancel: &Arc<AtomicBool>) -> Result<RunSummary, PipelineError> {
        let started = Instant::now();
        self.check()?;
        std::fs::create_dir_all(&self.out)
            .map_err(PipelineError::io(&self.out, "making the output folder"))?;
        let _lock = lock(&self.out)?;
        remove_abandoned(&self.out)?;
        let cache = Cache::open(&self.out.join("cache"))?;
        let mut execution = Execution {
            plan: self,
            hashes: ContentHashes::new(&cache),
            cache: &cache,
            progress,
            cancel,
            failures: self.failures.clone(),
            measurements: Vec::new(),
            items: Vec::new(),
            samples: Vec::new(),
            costs: Vec::new(),
            files_written: 0,
            reused: 0,
        };
        execution.check_disk()?;
        for model in &self.models {
            execution.model(model)?;
        }
        let report = execution.report()?;
        Ok(RunSummary {
            out: self.out.clone(),
            report,
            files_written: execution.files_written,
            reused: execution.reused,
            measurements: execution.measurements.len(),
            failures: execution.failures,
            seconds: started.elapsed().as_secs_f64(),
            peak_rss_bytes: kbit_formats::peak_rss_bytes(),
        })
    }
}

/// A label as a file name: everything but letters, digits, `.`, `-`, `_`, `=` and `,` becomes `-`.
pub(crate) fn file_name(label: &str) -> String {
    label
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '=' | ',') { c } else { '-' })
        .collect()
}

/// Keeps a second run out of the folder for as long as the file is open.
pub(crate) fn lock(out: &Path) -> Result<File, PipelineError> {
    let path = out.join(".lock");
    let file = File::create(&path).map_err(PipelineError::io(&path, "making the lock file"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(PipelineError::Busy { path }),
        Err(std::fs::TryLockError::Error(error)) => Err(PipelineError::io(&path, "locking")(error)),
    }
}

/// Removes what killed runs left: in the run's folder, and below those of its folders that nothing but runs writes to.
fn remove_abandoned(out: &Path) -> Result<(), PipelineError> {
    atomic::remove_abandoned(out, false)?;
    for own in ["cache", "files", "plans", "report"].map(|name| out.join(name)) {
        if own.is_dir() {
            atomic::remove_abandoned(&own, true)?;
        }
    }
    Ok(())
}

struct Execution<'a> {
    plan: &'a RunPlan<'a>,
    cache: &'a Cache,
    hashes: ContentHashes<'a>,
    progress: &'a Progress,
    cancel: &'a Arc<AtomicBool>,
    failures: Vec<Failure>,
    measurements: Vec<Measurement>,
    items: Vec<Items>,
    samples: Vec<Sample>,
    costs: Vec<Cost>,
    files_written: usize,
    reused: usize,
}

/// A file that stands, with the key of what it was made of.
struct Ready<'a> {
    file: &'a PlannedFile,
    key: String,
    record: FileRecord,
}

impl<'a> Execution<'a> {
    fn check_disk(&self) -> Result<(), PipelineError> {
        let free = kbit_formats::disk_free(&self.plan.out)?;
        let files = self.plan.models.iter().flat_map(|model| &model.files);
        let missing = files.filter(|file| !file.first().exists());
        let needed = missing.map(|file| file.plan.layout.file_bytes()).sum();
        if needed > free {
            return Err(PipelineError::DiskFull { path: self.plan.out.clone(), needed, free });
        }
        Ok(())
    }

    fn fail(&mut self, model: &ModelPlan<'_>, scheme: &str, error: &PipelineError) {
        let failure = Failure {
            model: model.entry.name.clone(),
            scheme: scheme.to_owned(),
            message: error.to_string(),
        };
        self.progress.line(&format!("failed: {} {}: {}", failure.model, failure.scheme, failure.message));
        self.failures.push(failure);
    }

    fn model(&mut self, model: &'a ModelPlan<'a>) -> Result<(), PipelineError> {
        let source = self.hashes.model(&model.entry.path)?;
        let mut ready = Vec::new();
        for file in &model.files {
            match self.file(model, file, &source) {
                Ok(done) => ready.push(done),
                Err(PipelineError::Cancelled) => return Err(PipelineError::Cancelled),
                Err(error) => self.fail(model, &file.recipe.label, &error),
            }
        }
        self.evaluate(model, &source, &ready)
    }

    /// Writes `file`, or takes it over where it stands already.
    fn file(
        &mut self,
        model: &ModelPlan<'_>,
        file: &'a PlannedFile,
        source: &str,
    ) -> Result<Ready<'a>, PipelineError> {
        let config = self.plan.config;
        let key = key_of(&serde_json::json!({
            "source": source,
            "plan": file.plan.fingerprint(),
            "statistics": config.error_statistics,
            "kbit": env!("CARGO_PKG_VERSION"),
        }));
        if let Some(record) = self.cache.get::<FileRecord>("file", &key)
            && self.still_stands(file, &key, &record)?
        {
            self.reused += 1;
            return Ok(Ready { file, key, record });
        }
        if let Some(folder) = file.path.parent() {
            std::fs::create_dir_all(folder).map_err(PipelineError::io(folder, "making the folder"))?;
        }
        let started = Instant::now();
        let what = format!("{} {}", model.entry.name, file.recipe.label);
        let bar = self.progress.bytes(&what, file.plan.weights().saturating_mul(4));
        let options = RunOptions {
            overwrite: true,
            error_statistics: config.error_statistics,
            cancel: Arc::clone(self.cancel),
        };
        let written = convert::write_file(
            &model.checkpoint,
            &model.conversion,
            &file.plan,
            &file.path,
            &options,
            &bar,
        )?;
        let record = FileRecord {
            path: relative(&file.first(), &self.plan.out),
            stamps: stamps(&written.paths)?,
            sha256: content_hash(&written.paths)?,
            errors: written.errors,
            seconds: started.elapsed().as_secs_f64(),
            peak_rss_bytes: kbit_formats::peak_rss_bytes(),
        };
        self.cache.put("file", &key, &record)?;
        self.files_written += 1;
        Ok(Ready { file, key, record })
    }

    /// True where the recorded file has its recorded content: by its stamp, else by its hash.
    fn still_stands(
        &self,
        file: &PlannedFile,
        key: &str,
        record: &FileRecord,
    ) -> Result<bool, PipelineError> {
        let paths = file.paths();
        if !paths.iter().all(|path| path.exists()) || record.path != relative(&file.first(), &self.plan.out) {
            return Ok(false);
        }
        let stamps = stamps(&paths)?;
        if stamps == record.stamps {
            return Ok(true);
        }
        let same = content_hash(&paths)? == record.sha256;
        if same {
            self.cache.put("file", key, &FileRecord { stamps, ..record.clone() })?;
        }
        Ok(same)
    }

    fn evaluate(
        &mut self,
        model: &'a ModelPlan<'a>,
        source: &str,
        ready: &[Ready<'a>],
    ) -> Result<(), PipelineError> {
        let training = model
            .checkpoint
            .folder()
            .and_then(|folder| TrainingInfo::read(folder).transpose())
            .transpose()?;
        let base =
            Subject::unquantized(&model.entry.name, &model.conversion, &model.checkpoint, training.as_ref());
        let subjects: Vec<Subject> = ready
            .iter()
            .map(|ready| {
                base.quantized(&ready.file.recipe, &ready.file.plan, &model.conversion, &ready.record.sha256)
            })
            .collect();
        for (subject, ready) in subjects.iter().zip(ready) {
            self.measurements.extend(subject.tensor_errors(&ready.record.errors));
            self.costs.push(subject.cost("convert", ready.record.seconds, None, ready.record.peak_rss_bytes));
        }
        for evaluation in &self.plan.config.evaluations {
            self.evaluate_on(model, evaluation, source, &base, &subjects, ready)?;
        }
        for task in &self.plan.config.tasks {
            self.ask(model, task, source, &base, &subjects, ready)?;
        }
        Ok(())
    }

    fn report(&mut self) -> Result<Vec<PathBuf>, PipelineError> {
        let out = &self.plan.out;
        kbit_results::write(&out.join("results.jsonl"), &self.measurements)?;
        kbit_results::write(&out.join("items.jsonl"), &self.items)?;
        kbit_results::write(&out.join("samples.jsonl"), &self.samples)?;
        kbit_results::write(&out.join("costs.jsonl"), &self.costs)?;
        let provenance = serde_json::json!({
            "name": self.plan.config.name,
            "kbit": env!("CARGO_PKG_VERSION"),
            "configuration": self.plan.config.text,
            "bootstrap": self.plan.config.bootstrap,
            "seed": self.plan.config.seed,
            "plugins": self.plugins(),
            "plans": self.plan.planned,
            "failures": self.failures,
        });
        atomic::write_atomically(&out.join("provenance.json"), &pretty(&provenance))?;
        write_report(std::slice::from_ref(out), out, &self.plan.config.formats)
    }

    fn plugins(&self) -> Vec<serde_json::Value> {
        let mut plugins: Vec<_> = self
            .plan
            .models
            .iter()
            .flat_map(|model| &model.files)
            .flat_map(|file| &file.plan.schemes)
            .map(|used| used.chosen.scheme.plugin())
            .map(|plugin| (plugin.id().to_owned(), plugin.version().to_owned(), plugin.sha256().to_owned()))
            .collect();
        plugins.sort();
        plugins.dedup();
        plugins
            .into_iter()
            .map(
                |(id, version, sha256)| serde_json::json!({ "id": id, "version": version, "sha256": sha256 }),
            )
            .collect()
    }
}

fn stamps(paths: &[PathBuf]) -> Result<Vec<Stamp>, PipelineError> {
    paths.iter().map(|path| Stamp::of(path)).collect()
}

/// SHA-256 of a file; of the hashes of its shards, where it has some.
fn content_hash(paths: &[PathBuf]) -> Result<String, PipelineError> {
    let hashes: Vec<String> =
        paths.iter().map(|path| kbit_formats::hash::file_hex(path)).collect::<Result<_, _>>()?;
    Ok(match hashes.as_slice() {
        [only] => only.clone(),
        _ => key_of(&serde_json::json!(hashes)),
    })
}

fn relative(path: &Path, out: &Path) -> PathBuf {
    path.strip_prefix(out).unwrap_or(path).to_owned()
}

fn pretty(value: &serde_json::Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
