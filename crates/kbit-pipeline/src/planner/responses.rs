//! What each scheme does to each unit, and what that costs: errors of weights, and divergences of the model with one unit quantized.

use super::Work;
use super::space::{Space, Unit};
use crate::error::PipelineError;
use crate::open::Codecs;
use crate::trial::{self, Source, SquaredError};
use kbit_engine::Model;
use kbit_laws::additive::Response;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

/// Candidates that share one pass of the unquantized model.
const CANDIDATES_A_PASS: usize = 4;
/// Bits a weight near which units are quantized to see what it costs: where errors are large enough to be seen above what single
/// precision brings, and near those that plans choose between.
const PROBE_BITS: [f64; 2] = [3.5, 4.75];
/// The second probe of a unit has less than this share of the first one's error, else it tells nothing new.
const PROBE_SHARE: f64 = 0.7;

/// What one unit, quantized alone, measured.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Probed {
    kld: f64,
    stderr: f64,
    tokens: u64,
}

/// What schemes do to units, and what that costs.
pub(super) struct Sensitivities {
    /// By column, then by tensor of the model; 0 where a tensor cannot have the column.
    errors: Vec<Vec<SquaredError>>,
    /// Of each unit.
    pub(super) responses: Vec<Response>,
    /// What a reader should know.
    pub(super) notes: Vec<String>,
}

impl Sensitivities {
    /// Computes the errors and measures the responses, or takes over what was measured before.
    pub(super) fn measure(work: &mut Work<'_>) -> Result<Self, PipelineError> {
        let errors = errors(work)?;
        let mut found = Self { errors, responses: Vec::new(), notes: Vec::new() };
        found.respond(work)?;
        Ok(found)
    }

    /// Relative squared error of the unit `unit` in `column`.
    pub(super) fn error(&self, space: &Space<'_>, unit: usize, column: usize) -> f64 {
        let mut sums = SquaredError::default();
        for &tensor in &space.units[unit].tensors {
            sums.merge(&self.errors[column][tensor]);
        }
        sums.relative()
    }

    /// Divergence of the model with this unit alone quantized so.
    pub(super) fn cost(&self, space: &Space<'_>, unit: usize, column: usize) -> f64 {
        self.responses[unit].at(self.error(space, unit, column))
    }

    /// Sum of what all units cost.
    pub(super) fn sum(&self, space: &Space<'_>, columns: &[usize]) -> f64 {
        columns.iter().enumerate().map(|(unit, &column)| self.cost(space, unit, column)).sum()
    }

    fn respond(&mut self, work: &mut Work<'_>) -> Result<(), PipelineError> {
        let space = work.space;
        let mut points: Vec<Vec<(f64, f64)>> = vec![Vec::new(); space.units.len()];
        let mut pending: Vec<(usize, usize, String)> = Vec::new();
        let mut idle: Vec<usize> = Vec::new();
        for (index, unit) in space.units.iter().enumerate() {
            if !unit.tensors.iter().any(|&tensor| work.base.uses(space.name(tensor))) {
                idle.push(index);
                continue;
            }
            for column in self.probes(space, index) {
                let key = key(work, unit, column);
                match work.cache.get::<Probed>("plan-part", &key) {
                    Some(known) => {
                        work.reused += 1;
                        points[index].push((self.error(space, index, column), known.kld));
                    }
                    None => pending.push((index, column, key)),
                }
            }
        }
        for ((unit, column, _), found) in pending.iter().zip(measure(work, &pending)?) {
            points[*unit].push((self.error(space, *unit, *column), found.kld));
        }
        self.responses = points.iter().map(|points| Response::new(points)).collect();
        self.stand_in(space, &idle);
        Ok(())
    }

    /// Gives units that the engine does not compute with the mean response of all others: nothing is known of them.
    fn stand_in(&mut self, space: &Space<'_>, idle: &[usize]) {
        let Some(first) = idle.first() else { return };
        let slopes: Vec<f64> =
            self.responses.iter().map(Response::slope).filter(|slope| *slope > 0.0).map(f64::ln).collect();
        #[expect(clippy::cast_precision_loss, reason = "a number of tensors")]
        let mean = (slopes.iter().sum::<f64>() / slopes.len().max(1) as f64).exp();
        for &unit in idle {
            self.responses[unit] = Response::new(&[(1.0, mean)]);
        }
        self.notes.push(format!(
            "{} matrices have no part in predicting the next token (first: {}): they are taken to be as sensitive as others are on average",
            idle.len(),
            space.units[*first].name
        ));
    }

    /// The columns with which a unit is quantized to see what it costs.
    fn probes(&self, space: &Space<'_>, index: usize) -> Vec<usize> {
        let unit = &space.units[index];
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let bits = |column: usize| {
            space.unit_bytes(unit, column, false) as f64 * 8.0 / space.unit_weights(unit).max(1) as f64
        };
        let error = |column: usize| self.error(space, index, column);
        let nearest = |wanted: f64, most: f64| {
            let able =
                unit.columns.iter().copied().filter(|&column| error(column) > 0.0 && error(column) < most);
            able.min_by(|&a, &b| {
                let distance = |column: usize| (bits(column) - wanted).abs();
                distance(a).total_cmp(&distance(b)).then(error(b).total_cmp(&error(a)))
            })
        };
        let Some(first) = nearest(PROBE_BITS[0], f64::INFINITY) else { return Vec::new() };
        let second = nearest(PROBE_BITS[1], error(first) * PROBE_SHARE);
        std::iter::once(first).chain(second).collect()
    }
}

/// The key of a unit's measurement in a column.
fn key(work: &Work<'_>, unit: &Unit, column: usize) -> String {
    let names: Vec<&str> = unit.tensors.iter().map(|&tensor| work.space.name(tensor)).collect();
    work.key(&serde_json::json!({
        "tensors": names,
        "scheme": work.space.columns[column].chosen.fingerprint(),
        "data": work.data.key(),
    }))
}

fn source<'a>(work: &Work<'a>) -> Source<'a> {
    Source { checkpoint: work.space.checkpoint, conversion: work.space.conversion, cancel: work.cancel }
}

/// What each column does to each tensor that can have it.
fn errors(work: &Work<'_>) -> Result<Vec<Vec<SquaredError>>, PipelineError> {
    let space = work.space;
    let mut all = Vec::with_capacity(space.columns.len());
    for (index, column) in space.columns.iter().enumerate() {
        let units = space.units.iter().filter(|unit| unit.columns.contains(&index));
        let tensors: Vec<usize> = units.flat_map(|unit| unit.tensors.iter().copied()).collect();
        let key = work.key(&serde_json::json!({ "output_errors": column.chosen.fingerprint() }));
        let mut known: BTreeMap<String, SquaredError> =
            work.cache.get("plan-errors", &key).unwrap_or_default();
        let missing: Vec<usize> =
            tensors.iter().copied().filter(|&tensor| !known.contains_key(space.name(tensor))).collect();
        if !missing.is_empty() {
            let weights = |tensor: usize| column.plan.tensors[tensor].shape.elements().unwrap_or(0);
            let total: u64 = missing.iter().map(|&tensor| weights(tensor).saturating_mul(4)).sum();
            let bar = work.progress.bytes(&format!("error of {}", column.text), total);
            for tensor in missing {
                let trial = trial::encode(source(work), &column.plan, tensor)?;
                let error = trial.map_or_else(SquaredError::default, |trial| trial.error);
                known.insert(space.name(tensor).to_owned(), error);
                bar.advance(weights(tensor).saturating_mul(4));
            }
            work.cache.put("plan-errors", &key, &known)?;
        }
        let mut errors = vec![SquaredError::default(); space.conversion.tensors.len()];
        for tensor in tensors {
            errors[tensor] = known.get(space.name(tensor)).copied().unwrap_or_default();
        }
        all.push(errors);
    }
    Ok(all)
}

/// Measures units in columns, and remembers each.
fn measure(work: &mut Work<'_>, pending: &[(usize, usize, String)]) -> Result<Vec<Probed>, PipelineError> {
    let windows = work.windows();
    let passes = pending.len().div_ceil(CANDIDATES_A_PASS);
    if pending.is_empty() {
        return Ok(Vec::new());
    }
    let bar = work.progress.items("sensitivity", (passes * windows) as u64);
    let started = Instant::now();
    let mut all = Vec::with_capacity(pending.len());
    for (pass, batch) in pending.chunks(CANDIDATES_A_PASS).enumerate() {
        let models = batch
            .iter()
            .map(|(unit, column, _)| quantized(work, &work.space.units[*unit], *column))
            .collect::<Result<Vec<Model>, PipelineError>>()?;
        let models: Vec<&Model> = models.iter().collect();
        let tick = |done: usize, _total: usize| bar.set((pass * windows + done) as u64);
        let found = kbit_eval::kl_divergence(work.reference, &models, &tick)?;
        for ((.., key), found) in batch.iter().zip(&found) {
            let record = Probed { kld: found.mean_kld, stderr: found.stderr, tokens: found.tokens };
            work.cache.put("plan-part", key, &record)?;
            all.push(record);
        }
        if pass == 0 && passes > 1 {
            #[expect(clippy::cast_precision_loss, reason = "an estimate for people")]
            let left = started.elapsed().as_secs_f64() * (passes - 1) as f64;
            work.progress.line(&format!(
                "sensitivity: {} measurements of one part each on {windows} windows of {} tokens, about {left:.0} s more",
                pending.len(),
                work.data.windows.context
            ));
        }
    }
    work.measured += all.len();
    Ok(all)
}

/// The unquantized model with one unit as `column` stores it.
fn quantized(work: &Work<'_>, unit: &Unit, column: usize) -> Result<Model, PipelineError> {
    let mut codecs: HashMap<String, Codecs> = HashMap::new();
    for &tensor in &unit.tensors {
        if let Some(trial) = trial::encode(source(work), &work.space.columns[column].plan, tensor)? {
            codecs.insert(work.space.name(tensor).to_owned(), trial.codecs);
        }
    }
    work.base.with_codecs(&codecs)
}
