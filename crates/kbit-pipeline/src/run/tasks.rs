//! Measures the files of a model on tasks.

use super::{Execution, ModelPlan, Ready};
use crate::cache::key_of;
use crate::error::PipelineError;
use crate::measure::Subject;
use crate::open::OpenModel;
use crate::task::TaskEvaluation;
use kbit_engine::{CacheTypes, Mode};
use kbit_eval::tasks::{Outcome, evaluate};
use kbit_host::Isolation;
use kbit_results::{Cost, DataInfo, Difference, Items, Measurement, Sample};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What one model answered, remembered.
#[derive(Clone, Serialize, Deserialize)]
struct TaskRecord {
    measurements: Vec<Measurement>,
    items: Vec<Items>,
    samples: Vec<Sample>,
    costs: Vec<Cost>,
}

/// A model that is asked, in one arithmetic.
struct Asked<'s> {
    subject: Subject,
    path: &'s Path,
    isolation: Isolation,
    mode: Mode,
    cache: CacheTypes,
}

impl<'a> Execution<'a> {
    /// Asks the unquantized model and all files the questions of one task, in each of its modes and with each of its cache types.
    pub(super) fn ask(
        &mut self,
        model: &'a ModelPlan<'a>,
        task: &TaskEvaluation,
        source: &str,
        base: &Subject,
        subjects: &[Subject],
        ready: &[Ready<'a>],
    ) -> Result<(), PipelineError> {
        // The unquantized model's answers in f32, once they are needed.
        let mut reference = None;
        for &mode in &task.modes {
            for &cache in &task.caches {
                let own = std::iter::once((None, base));
                let files = ready.iter().zip(subjects).map(|(ready, subject)| (Some(ready), subject));
                for (file, subject) in own.chain(files) {
                    let key = key_of(&serde_json::json!({
                        "source": source,
                        "file": file.map(|file| &file.key),
                        "task": [&task.name, &task.questions.sha256],
                        "mode": mode.to_string(),
                        "cache_type": cache.to_string(),
                        "subject": base.model,
                        "kbit": env!("CARGO_PKG_VERSION"),
                    }));
                    let record = match self.cache.get::<TaskRecord>("task", &key) {
                        Some(record) => {
                            self.reused += 1;
                            record
                        }
                        None => {
                            let first = file.map(|file| file.file.first());
                            let asked = Asked {
                                subject: subject.computed(mode, cache),
                                path: first.as_deref().unwrap_or(&model.entry.path),
                                isolation: file
                                    .map_or(Isolation::InProcess, |file| file.file.recipe.main.isolation()),
                                mode,
                                cache,
                            };
                            match self.answer(model, task, &asked, base, &mut reference) {
                                Ok(record) => {
                                    self.cache.put("task", &key, &record)?;
                                    record
                                }
                                // An unquantized model that cannot be asked fails for every file: it ends the run.
                                Err(error) if file.is_none() || reference.is_none() => return Err(error),
                                Err(PipelineError::Cancelled) => return Err(PipelineError::Cancelled),
                                Err(error) => {
                                    let label = format!("{} {}", asked.subject.scheme.label, task.name);
                                    self.fail(model, &label, &error);
                                    continue;
                                }
                            }
                        }
                    };
                    self.measurements.extend(record.measurements);
                    self.items.extend(record.items);
                    self.samples.extend(record.samples);
                    self.costs.extend(record.costs);
                }
            }
        }
        Ok(())
    }

    fn answer(
        &self,
        model: &ModelPlan<'_>,
        task: &TaskEvaluation,
        asked: &Asked<'_>,
        base: &Subject,
        reference: &mut Option<Outcome>,
    ) -> Result<TaskRecord, PipelineError> {
        let plain = (Mode::F32, CacheTypes::default());
        let unquantized = asked.subject.scheme.family == "none";
        if reference.is_none() && !(unquantized && (asked.mode, asked.cache) == plain) {
            let own = Asked {
                subject: base.computed(plain.0, plain.1),
                path: &model.entry.path,
                isolation: Isolation::InProcess,
                mode: plain.0,
                cache: plain.1,
            };
            *reference = Some(self.outcome(model, task, &own)?);
        }
        let started = Instant::now();
        let outcome = self.outcome(model, task, asked)?;
        let seconds = started.elapsed().as_secs_f64();
        let record = record(task, &asked.subject, &outcome, reference.as_ref(), seconds);
        if reference.is_none() {
            *reference = Some(outcome);
        }
        Ok(record)
    }

    fn outcome(
        &self,
        model: &ModelPlan<'_>,
        task: &TaskEvaluation,
        asked: &Asked<'_>,
    ) -> Result<Outcome, PipelineError> {
        if self.cancel.load(Ordering::Relaxed) {
            return Err(PipelineError::Cancelled);
        }
        let opened = OpenModel::open(asked.path, self.plan.registry, asked.isolation, &model.entry.options)?;
        let opened = opened.with_mode(asked.mode).with_cache(asked.cache);
        let what = format!("{} {}, {}", model.entry.name, asked.subject.scheme.label, task.name);
        let bar = self.progress.items(&what, task.questions.len() as u64);
        let tick = |done: usize, _total: usize| {
            bar.set(done as u64);
        };
        Ok(evaluate(&task.task, &task.questions, &opened.model, opened.tokenizer()?, &tick)?)
    }
}

/// Figures with what stands behind them; those of a quantized model with their difference from the unquantized one's in f32.
fn record(
    task: &TaskEvaluation,
    subject: &Subject,
    outcome: &Outcome,
    reference: Option<&Outcome>,
    seconds: f64,
) -> TaskRecord {
    let data = DataInfo {
        name: task.name.clone(),
        sha256: task.questions.sha256.clone(),
        context: None,
        stride: None,
        chunks: None,
    };
    let (mode, cache_type) = subject.arithmetic();
    let difference = |metric: &str| {
        let reference = reference.filter(|_| subject.scheme.family != "none")?;
        let own = outcome.figures.iter().find(|figure| figure.metric == metric)?;
        let other = reference.figures.iter().find(|figure| figure.metric == metric)?;
        own.difference(other).map(|(value, stderr)| Difference { value, stderr })
    };
    let measurements = outcome.figures.iter().map(|figure| Measurement {
        difference: difference(&figure.metric),
        seed: outcome.seed,
        data: Some(data.clone()),
        ..subject.record(&figure.metric, figure.value, figure.stderr, figure.count)
    });
    let items = outcome.figures.iter().filter_map(|figure| {
        Some(Items {
            schema: kbit_results::SCHEMA,
            model: subject.model.id.clone(),
            scheme: subject.scheme.label.clone(),
            metric: figure.metric.clone(),
            mode: mode.clone(),
            cache_type: cache_type.clone(),
            data: data.clone(),
            values: figure.values()?.to_vec(),
            weights: None,
        })
    });
    let samples = outcome.answers.iter().filter_map(|answer| {
        Some(Sample {
            schema: kbit_results::SCHEMA,
            model: subject.model.id.clone(),
            scheme: subject.scheme.label.clone(),
            mode: mode.clone(),
            cache_type: cache_type.clone(),
            name: format!("{}, line {}", task.name, answer.line),
            prompt: answer.prompt.clone()?,
            text: answer.text.clone()?,
            target: answer.targets.first().cloned(),
            seed: outcome.seed?,
        })
    });
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = outcome.tokens as f64 / seconds.max(1e-9);
    TaskRecord {
        measurements: measurements.collect(),
        items: items.collect(),
        samples: samples.collect(),
        costs: vec![subject.cost("task", seconds, Some(rate), kbit_formats::peak_rss_bytes())],
    }
}
