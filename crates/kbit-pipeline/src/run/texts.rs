//! Measures the files of a model on texts, against the unquantized model.

use super::{Execution, ModelPlan, Ready};
use crate::cache::key_of;
use crate::config::Evaluation;
use crate::error::PipelineError;
use crate::measure::{Candidate, DataSet, Measured, Subject, measure, measure_parts};
use crate::open::OpenModel;
use crate::plan::Store;
use crate::sensitivity::{self, By, Part};
use kbit_engine::{CacheTypes, Mode};
use kbit_eval::Reference;
use kbit_host::Isolation;
use kbit_results::{Cost, Items, Measurement};
use serde::{Deserialize, Serialize};
use std::cell::OnceCell;
use std::path::Path;

/// Candidates that share one pass of the unquantized model.
const CANDIDATES_A_PASS: usize = 4;

/// Measurements of one subject on one text, remembered.
#[derive(Clone, Serialize, Deserialize)]
struct MeasureRecord {
    measurements: Vec<Measurement>,
    /// Older records have none.
    #[serde(default)]
    items: Vec<Items>,
    costs: Vec<Cost>,
}

/// Measuring the files of one model on one text, in one arithmetic.
struct Step<'s, 'a> {
    model: &'a ModelPlan<'a>,
    data: &'s DataSet,
    /// Hash of the source.
    source: &'s str,
    mode: Mode,
    cache: CacheTypes,
    ready: &'s [Ready<'a>],
}

impl Step<'_, '_> {
    /// For the progress bar: what is not the usual.
    fn arithmetic(&self) -> String {
        let mode = if self.mode == Mode::F32 { String::new() } else { format!(", {}", self.mode) };
        if self.cache == CacheTypes::default() { mode } else { format!("{mode}, {} cache", self.cache) }
    }
}

/// The unquantized model in f32 on one text, opened where something is to be measured.
struct Unquantized<'m> {
    opened: &'m OnceCell<OpenModel>,
    data: &'m DataSet,
    reference: OnceCell<Reference<'m>>,
}

impl<'m> Unquantized<'m> {
    /// The model, and what others are compared with; `open` is called once.
    fn get(
        &self,
        open: impl FnOnce() -> Result<OpenModel, PipelineError>,
    ) -> Result<(&'m OpenModel, &Reference<'m>), PipelineError> {
        let opened = match self.opened.get() {
            Some(opened) => opened,
            None => {
                let opened = open()?;
                self.opened.get_or_init(|| opened)
            }
        };
        let reference = match self.reference.get() {
            Some(reference) => reference,
            None => {
                let reference = Reference::new(&opened.model, &self.data.tokens, &self.data.windows)?;
                self.reference.get_or_init(|| reference)
            }
        };
        Ok((opened, reference))
    }
}

impl<'a> Execution<'a> {
    /// Measures on one text, in each of its modes and with each of its cache types.
    pub(super) fn evaluate_on(
        &mut self,
        model: &'a ModelPlan<'a>,
        evaluation: &Evaluation,
        source: &str,
        base: &Subject,
        subjects: &[Subject],
        ready: &[Ready<'a>],
    ) -> Result<(), PipelineError> {
        let data = DataSet::read(evaluation, &model.conversion)?;
        let opened = OnceCell::new();
        let unquantized = Unquantized { opened: &opened, data: &data, reference: OnceCell::new() };
        for &mode in &evaluation.modes {
            for &cache in &evaluation.caches {
                let step = Step { model, data: &data, source, mode, cache, ready };
                let subjects: Vec<Subject> =
                    subjects.iter().map(|subject| subject.computed(mode, cache)).collect();
                self.evaluate_in(&step, &base.computed(mode, cache), &subjects, &unquantized)?;
                for &by in &evaluation.sensitivity {
                    for (subject, ready) in subjects.iter().zip(ready) {
                        self.parts(&step, by, subject, ready, &unquantized)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn evaluate_in(
        &mut self,
        step: &Step<'_, 'a>,
        base: &Subject,
        subjects: &[Subject],
        unquantized: &Unquantized<'_>,
    ) -> Result<(), PipelineError> {
        let key = |file: Option<&str>| {
            key_of(&serde_json::json!({
                "source": step.source,
                "file": file,
                "data": step.data.key(),
                "metrics": step.data.metrics,
                "mode": step.mode.to_string(),
                "cache_type": step.cache.to_string(),
                "subject": base.model,
                "kbit": env!("CARGO_PKG_VERSION"),
            }))
        };
        // Index 0 is the unquantized model itself.
        let keys: Vec<String> =
            std::iter::once(key(None)).chain(step.ready.iter().map(|ready| key(Some(&ready.key)))).collect();
        let mut records: Vec<Option<MeasureRecord>> =
            keys.iter().map(|key| self.cache.get::<MeasureRecord>("measure", key)).collect();
        self.reused += records.iter().flatten().count();
        let pending: Vec<usize> = (0..records.len()).filter(|index| records[*index].is_none()).collect();
        if !pending.is_empty() {
            let entry = step.model.entry;
            let (_, reference) = unquantized.get(|| {
                OpenModel::open(&entry.path, self.plan.registry, Isolation::InProcess, &entry.options)
            })?;
            for batch in pending.chunks(CANDIDATES_A_PASS) {
                for (index, measured) in self.measure_batch(step, reference, base, subjects, batch)? {
                    records[index] = Some(self.remember(&keys[index], measured)?);
                }
            }
        }
        for record in records.into_iter().flatten() {
            self.measurements.extend(record.measurements);
            self.items.extend(record.items);
            self.costs.extend(record.costs);
        }
        Ok(())
    }

    /// Measures what the file does to the unquantized model part by part.
    fn parts(
        &mut self,
        step: &Step<'_, 'a>,
        by: By,
        subject: &Subject,
        ready: &Ready<'a>,
        unquantized: &Unquantized<'_>,
    ) -> Result<(), PipelineError> {
        let model = step.model;
        let quantized =
            ready.file.plan.tensors.iter().filter(|tensor| matches!(tensor.store, Store::Scheme { .. }));
        let names = quantized.map(|tensor| model.conversion.tensors[tensor.source].name.as_str());
        let parts: Vec<(Part, String)> = sensitivity::parts(by, names)
            .into_iter()
            .map(|part| {
                let key = key_of(&serde_json::json!({
                    "source": step.source,
                    "file": &ready.key,
                    // A tensor outside of blocks is a part of its own by all names, and measured once.
                    "part": &part.name,
                    "data": step.data.key(),
                    "mode": step.mode.to_string(),
                    "cache_type": step.cache.to_string(),
                    "subject": subject.model,
                    "kbit": env!("CARGO_PKG_VERSION"),
                }));
                (part, key)
            })
            .collect();
        let mut records: Vec<Option<Measurement>> =
            parts.iter().map(|(_, key)| self.cache.get::<Measurement>("sensitivity", key)).collect();
        self.reused += records.iter().flatten().count();
        let pending: Vec<usize> = (0..records.len()).filter(|index| records[*index].is_none()).collect();
        if !pending.is_empty() {
            let what = format!("{}, {} one by one", subject.scheme.label, by.word());
            let measured = self.pending_parts(step, subject, ready, unquantized, &what, &parts, &pending);
            match measured {
                Ok(found) => {
                    for (index, record) in found {
                        records[index] = Some(record);
                    }
                }
                Err(PipelineError::Cancelled) => return Err(PipelineError::Cancelled),
                Err(error) => self.fail(model, &what, &error),
            }
        }
        self.measurements.extend(records.into_iter().flatten());
        Ok(())
    }

    /// Measures those of `parts` whose numbers are `pending`, and remembers each.
    #[expect(clippy::too_many_arguments, reason = "one call, which has them all at hand")]
    fn pending_parts(
        &self,
        step: &Step<'_, 'a>,
        subject: &Subject,
        ready: &Ready<'a>,
        unquantized: &Unquantized<'_>,
        what: &str,
        parts: &[(Part, String)],
        pending: &[usize],
    ) -> Result<Vec<(usize, Measurement)>, PipelineError> {
        let entry = step.model.entry;
        let open =
            |path: &Path, isolation| OpenModel::open(path, self.plan.registry, isolation, &entry.options);
        let (base, reference) = unquantized.get(|| open(&entry.path, Isolation::InProcess))?;
        let file = open(&ready.file.first(), ready.file.recipe.main.isolation())?;
        let mut records = Vec::new();
        for batch in pending.chunks(CANDIDATES_A_PASS) {
            let candidate = |index: &usize| {
                let part = &parts[*index].0;
                let model = base.with_tensors_of(&file, &part.tensors)?;
                Ok((part, model.with_mode(step.mode).with_cache(step.cache)))
            };
            let candidates = batch.iter().map(candidate).collect::<Result<Vec<_>, PipelineError>>()?;
            let names: Vec<&str> = candidates.iter().map(|(part, _)| part.name.as_str()).collect();
            let what = format!("{} {what}: {}", entry.name, names.join(" "));
            let found = measure_parts(reference, &candidates, subject, step.data, self.progress, &what)?;
            for (&index, record) in batch.iter().zip(found) {
                self.cache.put("sensitivity", &parts[index].1, &record)?;
                records.push((index, record));
            }
        }
        Ok(records)
    }

    fn remember(&self, key: &str, found: Measured) -> Result<MeasureRecord, PipelineError> {
        let Measured { measurements, items, costs } = found;
        let record = MeasureRecord { measurements, items, costs };
        self.cache.put("measure", key, &record)?;
        Ok(record)
    }

    /// Measures a batch against the unquantized model in f32: 0 is the unquantized model itself in the step's arithmetic, indices
    /// from 1 are the files. Those that fail are left out.
    fn measure_batch(
        &mut self,
        step: &Step<'_, 'a>,
        reference: &Reference<'_>,
        base: &Subject,
        subjects: &[Subject],
        batch: &[usize],
    ) -> Result<Vec<(usize, Measured)>, PipelineError> {
        let model = step.model;
        let subject = |index: usize| index.checked_sub(1).map_or(base, |file| &subjects[file]);
        let mut opened = Vec::new();
        for &index in batch {
            let (path, isolation) = match index.checked_sub(1).map(|file| step.ready[file].file) {
                None => (model.entry.path.clone(), Isolation::InProcess),
                Some(file) => (file.first(), file.recipe.main.isolation()),
            };
            match OpenModel::open(&path, self.plan.registry, isolation, &model.entry.options) {
                Ok(candidate) => {
                    opened.push((index, candidate.with_mode(step.mode).with_cache(step.cache)));
                }
                Err(error) => {
                    let label = &subject(index).scheme.label;
                    self.fail(model, &format!("{label}{}", step.arithmetic()), &error);
                }
            }
        }
        let candidates: Vec<Candidate<'_>> =
            opened.iter().map(|(index, model)| Candidate { model, subject: subject(*index) }).collect();
        let labels: Vec<&str> =
            candidates.iter().map(|candidate| candidate.subject.scheme.label.as_str()).collect();
        let what =
            format!("{} {}, {}{}", model.entry.name, labels.join(" "), step.data.name, step.arithmetic());
        match measure(reference, &candidates, step.data, self.progress, &what) {
            Ok(found) => Ok(opened.iter().map(|(index, _)| *index).zip(found).collect()),
            Err(PipelineError::Cancelled) => Err(PipelineError::Cancelled),
            // A text or an unquantized model that cannot be measured fails for every file: it ends the run.
            Err(error) if batch == [0] => Err(error),
            Err(error) if batch.len() == 1 => {
                let label = labels.first().copied().unwrap_or_default();
                self.fail(model, &format!("{label}{}", step.arithmetic()), &error);
                Ok(Vec::new())
            }
            // One bad file must not take its neighbours along: measure each by itself.
            Err(_) => {
                let mut all = Vec::new();
                for index in batch {
                    all.extend(self.measure_batch(step, reference, base, subjects, &[*index])?);
                }
                Ok(all)
            }
        }
    }
}
