//! The planner: the best file of a size, or the smallest of a quality.
//!
//! 1. What each allowed scheme does to each tensor: the relative squared error of its weights, by the importance of their columns where that
//!    is known ([`crate::trial`]).
//! 2. What that costs: each tensor is quantized alone, with one or two schemes, and the divergence of the model measured
//!    ([`kbit_laws::additive`], the linear law of HIGGS).
//! 3. A multiple-choice knapsack finds the assignment with the least sum ([`kbit_laws::knapsack`]).
//! 4. Whole files of several sizes are measured, which says how far files are from the sums of their parts, and with that what to
//!    expect of any other, with an interval.
//! 5. The assignment and the best standard mixes are measured whole, and the best of them is the plan: never worse than a mix.
//!
//! Everything that was measured is kept in a work folder, by the content of what it depends on: another target for the same model and
//! text takes it over, and an interrupted plan goes on.

mod file;
mod responses;
mod space;
mod target;

pub use file::{PlanFile, PlannedMeasurement, PlannedModel, PlannedScheme, PlannedText};
pub use space::AMONG_GGML;
pub use target::{Target, parse_size};

use crate::cache::{Cache, ContentHashes, key_of};
use crate::convert::{self, RunOptions};
use crate::edit::Edits;
use crate::error::PipelineError;
use crate::importance;
use crate::measure::DataSet;
use crate::open::OpenModel;
use crate::plan::{FilePlan, PlanOptions};
use crate::progress::Progress;
use crate::run::lock;
use kbit_calibrate::Importance;
use kbit_eval::{Divergence, EvalError, Reference};
use kbit_formats::Checkpoint;
use kbit_host::{Isolation, Registry};
use kbit_laws::additive::{Expected, Interaction, Whole};
use kbit_laws::knapsack::{Impossible, Item, Packing, least_bytes, least_cost};
use kbit_models::ConvertOptions;
use regex::Regex;
use responses::Sensitivities;
use serde::{Deserialize, Serialize};
use space::{KNAPSACK, Space, Unit, Wanted, plan_error};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// llama.cpp's default window.
const DEFAULT_CONTEXT: usize = 512;
/// Tokens that are scored for each figure, about, where the number of windows is not given.
const DEFAULT_SCORED: usize = 4096;
/// Files that are measured whole to learn how parts act on each other.
const WHOLE_FILES: u32 = 4;
/// Bits a weight between which their sizes lie, where the schemes reach so far.
const WHOLE_BITS: (f64, f64) = (3.0, 6.5);
/// Mixes that are measured beside the knapsack's choice.
const MIXES_MEASURED: usize = 3;
/// Rounds to come within a limit of quality that is measured.
const ROUNDS: usize = 8;
/// Rounds to come within a file's size, whose header depends on the choice: it lists the schemes that are used.
const HEADERS: usize = 64;

/// What to plan.
#[derive(Clone, Debug)]
pub struct Request {
    /// Folder or file.
    pub model: PathBuf,
    /// How it is read.
    pub options: ConvertOptions,
    /// What is changed about it: metadata alone.
    pub edits: Edits,
    /// What to reach.
    pub target: Target,
    /// Schemes to choose from: [`AMONG_GGML`], or as `--map` takes them.
    pub schemes: Vec<String>,
    /// Schemes of tensors whose names match, which are not chosen; the first match counts.
    pub rules: Vec<(Regex, String)>,
    /// Whether tensors of a layer that some readers fuse get one scheme: queries, keys and values; gate and up.
    pub agree: bool,
    /// Importance of the columns of the matrices.
    pub importance: Option<Arc<Importance>>,
    /// Text to measure on.
    pub text: PathBuf,
    /// Tokens of a window; `None`: 512, or what the model takes.
    pub context: Option<usize>,
    /// Number of windows; `None`: about 4096 scored tokens.
    pub chunks: Option<usize>,
    /// Whether the choice is measured beside the best mixes.
    pub verify: bool,
    /// Whether the planned file carries hashes and its plan.
    pub provenance: bool,
    /// Whether tensors that are quantized already may be quantized anew.
    pub allow_requantize: bool,
    /// Folder of what was measured.
    pub work: PathBuf,
}

/// A plan, and what it was chosen from.
#[derive(Debug, Serialize)]
pub struct Planned {
    /// The plan.
    pub plan: PlanFile,
    /// The plan's choice first, then what else keeps to the target: the knapsack's and standard mixes.
    pub candidates: Vec<CandidateLine>,
    /// What each unit got, and why.
    pub units: Vec<UnitLine>,
    /// Whether no other choice of the same size has a smaller sum.
    pub exact: bool,
    /// What a reader should know.
    pub notes: Vec<String>,
    /// Measurements made, and taken over from earlier plans.
    pub measured: usize,
    /// See `measured`.
    pub reused: usize,
    /// Seconds.
    pub seconds: f64,
}

/// A candidate.
#[derive(Clone, Debug, Serialize)]
pub struct CandidateLine {
    /// `knapsack`, or the name of a mix.
    pub name: String,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bits a weight of all tensors.
    pub bits_per_weight: f64,
    /// What is expected by the linear law.
    pub expected: Expected,
    /// What was measured on the text of the plan.
    pub measured: Option<PlannedMeasurement>,
}

/// What a unit got.
#[derive(Clone, Debug, Serialize)]
pub struct UnitLine {
    /// A tensor, or the tensors of a layer that must agree.
    pub name: String,
    /// Its scheme.
    pub scheme: String,
    /// Bits a weight.
    pub bits_per_weight: f64,
    /// Relative squared error of its weights.
    pub error: f64,
    /// Divergence for each unit of that error, nats.
    pub sensitivity: f64,
    /// What it adds to the sum, nats.
    pub divergence: f64,
}

/// What a whole file measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct WholeRecord {
    kld: f64,
    /// Standard error over windows; over tokens where there is one window.
    stderr: f64,
    ln_ppl_ratio: f64,
}

impl WholeRecord {
    #[expect(clippy::cast_precision_loss, reason = "counts are small")]
    fn new(found: &Divergence) -> Self {
        let sums = &found.window_klds;
        let windows = sums.len() as f64;
        let stderr = if sums.len() < 2 {
            found.stderr
        } else {
            let scored = found.tokens as f64 / windows;
            let squares: f64 = sums.iter().map(|sum| (sum / scored - found.mean_kld).powi(2)).sum();
            (squares / (windows - 1.0) / windows).sqrt()
        };
        Self { kld: found.mean_kld, stderr, ln_ppl_ratio: found.ln_ppl_ratio }
    }

    const fn measurement(self) -> PlannedMeasurement {
        PlannedMeasurement { kl_divergence: self.kld, stderr: self.stderr }
    }
}

/// A way to store the model.
struct Choice {
    name: String,
    /// The column of each unit.
    columns: Vec<usize>,
    plan: FilePlan,
    /// Sum over its parts.
    sum: f64,
    measured: Option<WholeRecord>,
}

/// What a target leaves for a choice.
#[derive(Clone, Copy)]
struct Room {
    /// Bytes of the target.
    all: u64,
    /// Whether those are of a file.
    padded: bool,
    /// Bytes of the header, about: it depends on the choice.
    header: u64,
    /// Bytes of tensors that are not free.
    fixed: u64,
}

/// Plans.
///
/// # Errors
/// A target that cannot be reached, with what can; a text that is not UTF-8 or shorter than a window; unknown schemes; weights that are not
/// finite; a model that the engine cannot run.
pub fn plan(
    request: &Request,
    registry: &Registry,
    progress: &Progress,
    cancel: &Arc<AtomicBool>,
) -> Result<Planned, PipelineError> {
    let started = Instant::now();
    if !request.edits.prune_layers.is_empty() {
        return Err(plan_error(
            &"a model cannot be planned for while layers are left out of it; write it without them by \
              `kbit convert --scheme copy --prune-layers`, and plan for that file",
        ));
    }
    let checkpoint = Checkpoint::open(&request.model)?;
    let conversion = kbit_models::convert(&checkpoint, &request.options)?;
    let base = OpenModel::open(&request.model, registry, Isolation::InProcess, &request.options)?;
    let data = read_text(request, &base)?;
    let options = PlanOptions {
        provenance: request.provenance,
        allow_requantize: request.allow_requantize,
        edits: request.edits.clone(),
        importance: request.importance.clone(),
        ..PlanOptions::default()
    };
    let wanted = Wanted { schemes: &request.schemes, rules: &request.rules, agree: request.agree };
    let space = Space::new(&checkpoint, &conversion, registry, options, &wanted)?;
    if space.units.is_empty() {
        return Err(plan_error(
            &"there is nothing to choose: rules pin every matrix; leave some to the planner, or use `kbit convert`",
        ));
    }
    std::fs::create_dir_all(&request.work)
        .map_err(PipelineError::io(&request.work, "making the work folder"))?;
    let _lock = lock(&request.work)?;
    let cache = Cache::open(&request.work.join("cache"))?;
    let source = ContentHashes::new(&cache).model(&request.model)?;
    let reference = Reference::new(&base.model, &data.tokens, &data.windows)?;
    let mut work = Work {
        request,
        registry,
        space: &space,
        base: &base,
        data: &data,
        reference: &reference,
        cache: &cache,
        source,
        progress,
        cancel,
        measured: 0,
        reused: 0,
    };
    let planned = work.plan()?;
    Ok(Planned {
        measured: work.measured,
        reused: work.reused,
        seconds: started.elapsed().as_secs_f64(),
        ..planned
    })
}

/// The text of the request, tokenized.
fn read_text(request: &Request, base: &OpenModel) -> Result<DataSet, PipelineError> {
    let longest = base.model.description().context_length;
    let context = request.context.unwrap_or_else(|| longest.min(DEFAULT_CONTEXT));
    let mut data = DataSet::tokenize(&request.text, base.tokenizer()?, context, request.chunks)?;
    let windows = data.windows.count(data.tokens.len()).map_err(|error| match error {
        EvalError::TooShort { had, needed } => {
            PipelineError::ShortText { path: request.text.clone(), had, needed }
        }
        other => other.into(),
    })?;
    if request.chunks.is_none() {
        data.windows.chunks = Some(windows.min(DEFAULT_SCORED.div_ceil(data.windows.scored().max(1))));
    }
    Ok(data)
}

/// Planning, with everything at hand.
struct Work<'a> {
    request: &'a Request,
    registry: &'a Registry,
    space: &'a Space<'a>,
    base: &'a OpenModel,
    data: &'a DataSet,
    reference: &'a Reference<'a>,
    cache: &'a Cache,
    /// Hash of the model.
    source: String,
    progress: &'a Progress,
    cancel: &'a Arc<AtomicBool>,
    measured: usize,
    reused: usize,
}

impl Work<'_> {
    /// Everything that figures depend on, and `more`.
    fn key(&self, more: &serde_json::Value) -> String {
        key_of(&serde_json::json!({
            "source": self.source,
            "importance": self.request.importance.as_deref().map(importance::fingerprint),
            "allow_requantize": self.request.allow_requantize,
            "kbit": env!("CARGO_PKG_VERSION"),
            "more": more,
        }))
    }

    fn plan(&mut self) -> Result<Planned, PipelineError> {
        self.check_room()?;
        let sensitivities = Sensitivities::measure(self)?;
        let mut notes = sensitivities.notes.clone();
        let (interaction, per_nat) = self.interaction(&sensitivities)?;
        let target = self.request.target;
        let limit = match target {
            Target::Divergence(nats) => Some(nats),
            Target::PerplexityIncrease(share) => Some(share.ln_1p() / per_nat),
            Target::Size(_) | Target::BitsPerWeight(_) => None,
        };
        let (mut choice, mut exact) = match limit {
            None => self.within_bytes(&sensitivities)?,
            Some(limit) => self.within_divergence(&sensitivities, &interaction, limit)?,
        };
        let mut mixes = self.mixes(&sensitivities)?;
        mixes.retain(|mix| match (target, limit) {
            (Target::Size(bytes), _) => mix.plan.layout.file_bytes() <= bytes,
            (Target::BitsPerWeight(bits), _) => self.bits(&mix.plan) <= bits,
            (_, limit) => limit.is_some_and(|limit| interaction.expect(mix.sum).value <= limit),
        });
        if target.limits_bytes() {
            mixes.sort_by(|a, b| a.sum.total_cmp(&b.sum));
        } else {
            mixes.sort_by_key(|mix| mix.plan.layout.file_bytes());
        }
        if self.request.verify {
            let record = self.whole(&choice.plan, "the choice")?;
            choice.measured = Some(record);
            if let Some(limit) = limit {
                (choice, exact) =
                    self.tightened(choice, exact, &sensitivities, &interaction, limit, &mut notes)?;
            }
            for mix in mixes.iter_mut().take(MIXES_MEASURED) {
                mix.measured = Some(self.whole(&mix.plan, &mix.name)?);
            }
        }
        if target.limits_bytes() && self.is_richest(&choice, &sensitivities) {
            notes.push(format!(
                "{target} is above what these schemes need: every tensor has the one that costs least, and the file has {} bytes",
                choice.plan.layout.file_bytes()
            ));
        }
        let mut candidates = vec![choice];
        candidates.extend(mixes);
        let best = self.best(&candidates);
        if best > 0 {
            notes.push(format!(
                "the mix {} measured better than the knapsack's choice, and is the plan",
                candidates[best].name
            ));
        }
        candidates.swap(0, best);
        let lines = candidates.iter().map(|choice| self.line(choice, &interaction)).collect();
        let Some(chosen) = candidates.into_iter().next() else {
            return Err(plan_error(&"no candidate is left; this is a defect of kbit: report it"));
        };
        Ok(Planned {
            plan: self.plan_file(&chosen, &interaction),
            candidates: lines,
            units: self.unit_lines(&chosen, &sensitivities),
            exact: exact && best == 0,
            notes,
            measured: 0,
            reused: 0,
            seconds: 0.0,
        })
    }

    /// Whether what was measured keeps to a target of quality.
    fn keeps(&self, record: WholeRecord) -> bool {
        match self.request.target {
            Target::Divergence(nats) => record.kld <= nats,
            Target::PerplexityIncrease(share) => record.ln_ppl_ratio <= share.ln_1p(),
            Target::Size(_) | Target::BitsPerWeight(_) => true,
        }
    }

    /// The place of the best candidate; the knapsack's, which comes first, where nothing was measured.
    fn best(&self, candidates: &[Choice]) -> usize {
        let limits_bytes = self.request.target.limits_bytes();
        let mut best = 0;
        for (index, candidate) in candidates.iter().enumerate().skip(1) {
            let (Some(found), Some(known)) = (candidate.measured, candidates[best].measured) else {
                continue;
            };
            let better = if limits_bytes {
                found.kld < known.kld
            } else {
                let smaller = candidate.plan.layout.file_bytes() < candidates[best].plan.layout.file_bytes();
                self.keeps(found) && (smaller || !self.keeps(known))
            };
            if better {
                best = index;
            }
        }
        best
    }

    /// Items of the knapsack: for each unit its columns, in their order.
    fn items(&self, sensitivities: &Sensitivities, padded: bool) -> Vec<Vec<Item>> {
        let units = self.space.units.iter().enumerate();
        let items = |(index, unit): (usize, &Unit)| {
            let item = |&column: &usize| Item {
                bytes: self.space.unit_bytes(unit, column, padded),
                cost: sensitivities.cost(self.space, index, column),
            };
            unit.columns.iter().map(item).collect()
        };
        units.map(items).collect()
    }

    /// The columns that a packing chose.
    fn columns(&self, packing: &Packing) -> Vec<usize> {
        self.space.units.iter().zip(&packing.chosen).map(|(unit, &item)| unit.columns[item]).collect()
    }

    fn choice(
        &self,
        name: &str,
        columns: Vec<usize>,
        sensitivities: &Sensitivities,
    ) -> Result<Choice, PipelineError> {
        let recipe = self.space.recipe(&columns, &self.request.target.label(), name)?;
        let plan = self.space.file(&recipe)?;
        let sum = sensitivities.sum(self.space, &columns);
        Ok(Choice { name: name.to_owned(), columns, plan, sum, measured: None })
    }

    /// The target's bytes, and the frame that a choice has to leave room for. A file pads its tensors, and has a header; bits a weight
    /// count neither.
    fn room(&self) -> Room {
        let (all, padded) = match self.request.target {
            Target::BitsPerWeight(bits) => (self.bytes_of(bits), false),
            Target::Size(bytes) => (bytes, true),
            Target::Divergence(_) | Target::PerplexityIncrease(_) => (u64::MAX, true),
        };
        let base = &self.space.base;
        let header =
            if padded { base.layout.file_bytes().saturating_sub(Self::padded_bytes(base)) } else { 0 };
        Room { all, padded, header, fixed: self.space.fixed_bytes(padded) }
    }

    /// Refuses a target that is too small whatever is chosen, before anything is measured.
    fn check_room(&self) -> Result<(), PipelineError> {
        let room = self.room();
        let least = self.least_bytes(room.padded);
        if room.all < room.header + room.fixed + least { Err(self.too_small(&room)) } else { Ok(()) }
    }

    /// Bytes of all units with the smallest scheme each.
    fn least_bytes(&self, padded: bool) -> u64 {
        let least = |unit: &Unit| {
            let bytes = unit.columns.iter().map(|&column| self.space.unit_bytes(unit, column, padded));
            bytes.min().unwrap_or(0)
        };
        self.space.units.iter().map(least).sum()
    }

    /// The best choice within the target's bytes, and whether it is exact.
    fn within_bytes(&self, sensitivities: &Sensitivities) -> Result<(Choice, bool), PipelineError> {
        let room = self.room();
        let items = self.items(sensitivities, room.padded);
        let mut header = room.header;
        for _ in 0..HEADERS {
            let budget = room.all.checked_sub(header + room.fixed).ok_or_else(|| self.too_small(&room))?;
            let packing = least_cost(&items, budget).map_err(|error| match error {
                Impossible::Limit { .. } => self.too_small(&room),
                other => plan_error(&other),
            })?;
            let choice = self.choice(KNAPSACK, self.columns(&packing), sensitivities)?;
            let bytes = choice.plan.layout.file_bytes();
            if !room.padded || bytes <= room.all {
                return Ok((choice, packing.exact));
            }
            // The largest header so far: what fits beside it is too much only beside a larger one.
            let found = bytes.saturating_sub(Self::padded_bytes(&choice.plan));
            header = if found > header { found } else { header + bytes - room.all };
        }
        Err(plan_error(&format!(
            "{}: the headers of files keep growing with what is chosen; this is a defect of kbit: report it, and give a target a little larger",
            self.request.target
        )))
    }

    /// Bytes of all tensors of a file as it pads them.
    fn padded_bytes(plan: &FilePlan) -> u64 {
        (0..plan.tensors.len()).map(|tensor| Space::bytes(plan, tensor, true)).sum()
    }

    /// The smallest choice of which at most `limit` is expected, and whether it is exact.
    fn within_divergence(
        &self,
        sensitivities: &Sensitivities,
        interaction: &Interaction,
        limit: f64,
    ) -> Result<(Choice, bool), PipelineError> {
        let items = self.items(sensitivities, true);
        let packing = least_bytes(&items, interaction.sum_of(limit)).map_err(|error| match error {
            Impossible::Limit { least, .. } => plan_error(&format!(
                "{}: with these schemes a divergence of {:.3e} nats is the least that can be expected, with the best of them for every \
                 tensor; raise the target to that, allow better schemes by --schemes{}",
                self.request.target,
                interaction.expect(least).value,
                self.unpin()
            )),
            other => plan_error(&other),
        })?;
        Ok((self.choice(KNAPSACK, self.columns(&packing), sensitivities)?, packing.exact))
    }

    /// A choice that was measured above the limit becomes a larger one, until it keeps to it or nothing better is left.
    fn tightened(
        &mut self,
        mut choice: Choice,
        mut exact: bool,
        sensitivities: &Sensitivities,
        interaction: &Interaction,
        limit: f64,
        notes: &mut Vec<String>,
    ) -> Result<(Choice, bool), PipelineError> {
        let mut limit = limit;
        for _ in 0..ROUNDS {
            let Some(record) = choice.measured.filter(|record| !self.keeps(*record)) else {
                return Ok((choice, exact));
            };
            let share = match self.request.target {
                Target::PerplexityIncrease(share) => share.ln_1p() / record.ln_ppl_ratio,
                Target::Divergence(nats) => nats / record.kld,
                Target::Size(_) | Target::BitsPerWeight(_) => 1.0,
            };
            // A little more than what is missing, so that few rounds are enough.
            limit *= share * 0.98;
            let Ok((smaller, is_exact)) = self.within_divergence(sensitivities, interaction, limit) else {
                break;
            };
            (choice, exact) = (smaller, is_exact);
            choice.measured = Some(self.whole(&choice.plan, "the choice")?);
        }
        if !choice.measured.is_some_and(|record| self.keeps(record)) {
            notes.push(format!(
                "{} was not reached on the text of the plan: the nearest choice is given",
                self.request.target
            ));
        }
        Ok((choice, exact))
    }

    /// The standard mixes that the space holds.
    fn mixes(&self, sensitivities: &Sensitivities) -> Result<Vec<Choice>, PipelineError> {
        let mixes = self.space.mixes().into_iter();
        mixes.map(|(name, columns)| self.choice(&name, columns, sensitivities)).collect()
    }

    /// How files are from the sums of their parts, from some that are measured whole; and the logarithm of the perplexity's growth for
    /// each nat of divergence.
    fn interaction(&mut self, sensitivities: &Sensitivities) -> Result<(Interaction, f64), PipelineError> {
        let items = self.items(sensitivities, false);
        let sum = |of: fn(&Item, &Item) -> bool| -> u64 {
            let most = |group: &Vec<Item>| {
                group
                    .iter()
                    .copied()
                    .reduce(|a, b| if of(&b, &a) { b } else { a })
                    .map_or(0, |item| item.bytes)
            };
            items.iter().map(most).sum()
        };
        let (least, most) = (sum(|a, b| a.bytes < b.bytes), sum(|a, b| a.bytes > b.bytes));
        let fixed = self.space.fixed_bytes(false);
        let of_bits = |bits: f64| self.bytes_of(bits).saturating_sub(fixed);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "sizes of files, roughly"
        )]
        let budgets: Vec<u64> = {
            let low = of_bits(WHOLE_BITS.0).max(least + least / 32).min(most);
            let high = of_bits(WHOLE_BITS.1).clamp(low, most.max(low));
            let ratio = high as f64 / low.max(1) as f64;
            let step =
                |index: u32| (low as f64 * ratio.powf(f64::from(index) / f64::from(WHOLE_FILES - 1))) as u64;
            (0..WHOLE_FILES).map(step).collect()
        };
        let mut files: Vec<(Vec<usize>, f64, WholeRecord)> = Vec::new();
        for budget in budgets {
            let packing = least_cost(&items, budget).map_err(|error| plan_error(&error))?;
            let columns = self.columns(&packing);
            if files.iter().any(|(known, ..)| *known == columns) {
                continue;
            }
            let choice = self.choice(KNAPSACK, columns, sensitivities)?;
            let record =
                self.whole(&choice.plan, &format!("a file of {:.2} bits", self.bits(&choice.plan)))?;
            files.push((choice.columns, choice.sum, record));
        }
        let whole = |(_, sum, record): &(Vec<usize>, f64, WholeRecord)| Whole {
            sum: *sum,
            measured: record.kld,
            relative_error: if record.kld > 0.0 { record.stderr / record.kld } else { 0.0 },
        };
        let wholes: Vec<Whole> = files.iter().map(whole).collect();
        // Least squares through the origin; of a text that the model itself might have written it is 1.
        let products: f64 = files.iter().map(|(.., record)| record.kld * record.ln_ppl_ratio).sum();
        let squares: f64 = files.iter().map(|(.., record)| record.kld * record.kld).sum();
        let per_nat = if squares > 0.0 && products > 0.0 { products / squares } else { 1.0 };
        Ok((Interaction::new(&wholes), per_nat))
    }

    /// Writes a file, measures it and removes it; or takes over what it measured before.
    fn whole(&mut self, plan: &FilePlan, what: &str) -> Result<WholeRecord, PipelineError> {
        let key = self.key(&serde_json::json!({ "whole": plan.fingerprint(), "data": self.data.key() }));
        if let Some(record) = self.cache.get::<WholeRecord>("plan-whole", &key) {
            self.reused += 1;
            return Ok(record);
        }
        let path = self.request.work.join("trial.gguf");
        let free = kbit_formats::disk_free(&self.request.work)?;
        let needed = plan.layout.file_bytes();
        if needed > free {
            return Err(PipelineError::DiskFull { path: self.request.work.clone(), needed, free });
        }
        let options =
            RunOptions { overwrite: true, error_statistics: false, cancel: Arc::clone(self.cancel) };
        let bar = self.progress.bytes(&format!("writing {what}"), plan.weights().saturating_mul(4));
        let (checkpoint, conversion) = (self.space.checkpoint, self.space.conversion);
        convert::write_file(checkpoint, conversion, plan, &path, &options, &bar)?;
        drop(bar);
        let record = self.measured_file(&path, what);
        std::fs::remove_file(&path).map_err(PipelineError::io(&path, "removing"))?;
        let record = record?;
        self.measured += 1;
        self.cache.put("plan-whole", &key, &record)?;
        Ok(record)
    }

    fn measured_file(&self, path: &Path, what: &str) -> Result<WholeRecord, PipelineError> {
        let file = OpenModel::open(path, self.registry, Isolation::InProcess, &self.request.options)?;
        let bar = self.progress.items(&format!("measuring {what}"), self.windows() as u64);
        let tick = |done: usize, _total: usize| bar.set(done as u64);
        let found = kbit_eval::kl_divergence(self.reference, &[&file.model], &tick)?;
        let divergence =
            found.first().ok_or_else(|| plan_error(&"nothing was measured; report this defect of kbit"))?;
        Ok(WholeRecord::new(divergence))
    }

    /// Windows of the text.
    fn windows(&self) -> usize {
        self.data.windows.count(self.data.tokens.len()).unwrap_or(0)
    }

    fn bits(&self, plan: &FilePlan) -> f64 {
        plan.bits_per_weight(self.space.conversion).0
    }

    /// Bytes of all tensors at so many bits a weight.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes are below 2^53, and the result is rounded down"
    )]
    fn bytes_of(&self, bits: f64) -> u64 {
        (bits * self.space.base.weights() as f64 / 8.0) as u64
    }

    /// True where every unit has the column that costs least.
    fn is_richest(&self, choice: &Choice, sensitivities: &Sensitivities) -> bool {
        self.space.units.iter().zip(&choice.columns).enumerate().all(|(index, (unit, &chosen))| {
            let cost = |column: usize| sensitivities.cost(self.space, index, column);
            unit.columns.iter().all(|&column| cost(column) >= cost(chosen))
        })
    }

    /// The error for a target below what is possible.
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    fn too_small(&self, room: &Room) -> PipelineError {
        let Room { padded, header, fixed, .. } = *room;
        let least = self.least_bytes(padded);
        let pinned: u64 =
            self.space.pinned.iter().map(|(tensor, _)| Space::bytes(&self.space.base, *tensor, padded)).sum();
        let weights = self.space.base.weights().max(1) as f64;
        let what = if padded {
            format!("the smallest file with these schemes has {} bytes", header + fixed + least)
        } else {
            format!(
                "the smallest file with these schemes has {:.4} bits a weight",
                (fixed + least) as f64 * 8.0 / weights
            )
        };
        let rules = match self.space.pinned.first() {
            None => String::new(),
            Some((first, _)) => format!(
                ", {pinned} bytes in {} matrices that rules pin (first: {})",
                self.space.pinned.len(),
                self.space.name(*first)
            ),
        };
        plan_error(&format!(
            "{}: {what}: {least} bytes in matrices with the smallest scheme each, {} in tensors that are never quantized{rules}; \
             raise the target to that, or allow smaller schemes by --schemes{}",
            self.request.target,
            fixed - pinned.min(fixed),
            self.unpin()
        ))
    }

    fn unpin(&self) -> &'static str {
        if self.space.pinned.is_empty() { "" } else { ", or pin fewer tensors by --map" }
    }

    fn line(&self, choice: &Choice, interaction: &Interaction) -> CandidateLine {
        CandidateLine {
            name: choice.name.clone(),
            bytes: choice.plan.layout.file_bytes(),
            bits_per_weight: self.bits(&choice.plan),
            expected: interaction.expect(choice.sum),
            measured: choice.measured.map(WholeRecord::measurement),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    fn unit_lines(&self, choice: &Choice, sensitivities: &Sensitivities) -> Vec<UnitLine> {
        let units = self.space.units.iter().zip(&choice.columns).enumerate();
        let line = |(index, (unit, &column)): (usize, (&Unit, &usize))| {
            let bytes = self.space.unit_bytes(unit, column, false) as f64;
            UnitLine {
                name: unit.name.clone(),
                scheme: self.space.columns[column].text.clone(),
                bits_per_weight: bytes * 8.0 / self.space.unit_weights(unit).max(1) as f64,
                error: sensitivities.error(self.space, index, column),
                sensitivity: sensitivities.responses[index].slope(),
                divergence: sensitivities.cost(self.space, index, column),
            }
        };
        units.map(line).collect()
    }

    fn plan_file(&self, choice: &Choice, interaction: &Interaction) -> PlanFile {
        let tensors = self.space.assignment(&choice.columns);
        let mut names: Vec<&str> = tensors.iter().map(|(_, scheme)| scheme.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let schemes = names.into_iter().filter_map(|name| {
            let plugin = self.space.chosen(name)?.scheme.plugin();
            Some(PlannedScheme {
                scheme: name.to_owned(),
                version: plugin.version().to_owned(),
                sha256: plugin.sha256().to_owned(),
            })
        });
        PlanFile {
            target: self.request.target.to_string(),
            made_of: choice.name.clone(),
            model: PlannedModel { path: self.request.model.clone(), sha256: self.source.clone() },
            text: PlannedText {
                path: self.request.text.clone(),
                sha256: self.data.sha256.clone(),
                context: self.data.windows.context as u64,
                windows: self.windows() as u64,
            },
            importance: self.request.importance.as_ref().map(|found| found.matrix.sha256().to_owned()),
            provenance: self.request.provenance,
            bytes: choice.plan.layout.file_bytes(),
            bits_per_weight: self.bits(&choice.plan),
            kl_divergence: interaction.expect(choice.sum),
            measured: choice.measured.map(WholeRecord::measurement),
            schemes: schemes.collect(),
            tensors,
        }
    }
}
