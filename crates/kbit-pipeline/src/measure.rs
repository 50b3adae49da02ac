//! Measures models on a text and turns the figures into records.

use crate::config::Evaluation;
use crate::error::PipelineError;
use crate::open::OpenModel;
use crate::plan::FilePlan;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::sensitivity::Part;
use crate::statistics::TensorError;
use kbit_engine::{CacheTypes, Mode, Model};
use kbit_eval::{Baselines, Divergence, Reference, Unknown, Windows};
use kbit_formats::hash::Sha256;
use kbit_formats::{Checkpoint, EnergyMeter};
use kbit_models::{Conversion, Role, TrainingInfo};
use kbit_results::{Bpw, Cost, DataInfo, Difference, Items, Measurement, ModelInfo, SchemeInfo};
use kbit_tokenizers::Tokenizer;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// llama.cpp's default window.
const DEFAULT_CONTEXT: usize = 512;

/// A text, tokenized for one model.
pub struct DataSet {
    /// Name in tables.
    pub name: String,
    /// SHA-256 of the text.
    pub sha256: String,
    /// Bytes of the text.
    pub bytes: usize,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// Windows over the tokens.
    pub windows: Windows,
    /// Metrics wanted.
    pub metrics: Vec<String>,
    /// What baselines leave unknown of the text, with the SHA-256 of the text that they were counted on.
    pub baselines: Option<(Unknown, String)>,
}

impl DataSet {
    /// Reads and tokenizes the text of `evaluation` with the tokenizer of `conversion`.
    ///
    /// # Errors
    /// When the text is not UTF-8 or the model has no tokenizer.
    pub fn read(evaluation: &Evaluation, conversion: &Conversion) -> Result<Self, PipelineError> {
        let tokenizer = Tokenizer::from_metadata(&conversion.metadata)?;
        let longest = conversion.description.as_ref().map(|description| description.context_length);
        let context = evaluation
            .context
            .unwrap_or(longest.map_or(DEFAULT_CONTEXT, |longest| longest.min(DEFAULT_CONTEXT)));
        let mut data = Self::tokenize(&evaluation.text, &tokenizer, context, evaluation.chunks)?;
        data.windows.stride = evaluation.stride;
        data.name.clone_from(&evaluation.name);
        data.metrics.clone_from(&evaluation.metrics);
        if let Some(path) = evaluation.baseline.as_deref().filter(|_| data.wants("information")) {
            let vocabulary = conversion
                .description
                .as_ref()
                .map_or(tokenizer.vocab_len(), |description| description.vocab);
            let (baselines, sha256) = baselines(path, &tokenizer, vocabulary)?;
            let unknown = baselines
                .unknown(&data.tokens, &data.windows)
                .map_err(|error| PipelineError::Baseline { path: path.to_owned(), error })?;
            data.baselines = Some((unknown, sha256));
        }
        Ok(data)
    }

    /// Reads and tokenizes the file `path`; all metrics.
    ///
    /// # Errors
    /// When the file cannot be read or is not UTF-8.
    pub fn tokenize(
        path: &Path,
        tokenizer: &Tokenizer,
        context: usize,
        chunks: Option<usize>,
    ) -> Result<Self, PipelineError> {
        let text = read_text(path)?;
        let mut hash = Sha256::new();
        hash.update(text.as_bytes());
        let bos = if tokenizer.adds_bos() { tokenizer.bos() } else { None };
        Ok(Self {
            name: path.file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()),
            sha256: hash.hex(),
            bytes: text.len(),
            tokens: tokenizer.encode(&text, true, false),
            windows: Windows { context, stride: None, chunks, bos },
            metrics: crate::schema::METRICS.iter().map(|metric| (*metric).to_owned()).collect(),
            baselines: None,
        })
    }

    /// Everything of the data that figures depend on.
    #[must_use]
    pub fn key(&self) -> serde_json::Value {
        serde_json::json!([
            self.name,
            self.sha256,
            self.windows.context,
            self.windows.chunks,
            self.windows.bos,
            self.windows.stride,
            self.baselines.as_ref().map(|(_, sha256)| sha256),
        ])
    }

    /// The data of a figure over `chunks` windows.
    fn info(&self, chunks: u64) -> DataInfo {
        DataInfo {
            name: self.name.clone(),
            sha256: self.sha256.clone(),
            context: Some(self.windows.context as u64),
            stride: self.windows.stride.map(|stride| stride as u64),
            chunks: Some(chunks),
        }
    }

    /// Mean bytes of text in a token.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a ratio")]
    pub fn bytes_per_token(&self) -> f64 {
        self.bytes as f64 / self.tokens.len().max(1) as f64
    }

    fn wants(&self, metric: &str) -> bool {
        self.metrics.iter().any(|wanted| wanted == metric)
    }
}

/// Counts the tokens of the text `path`, of which there are `vocabulary`; with the text's SHA-256.
///
/// # Errors
/// When it cannot be read, is not UTF-8, or nothing can be learned from it.
pub fn baselines(
    path: &Path,
    tokenizer: &Tokenizer,
    vocabulary: usize,
) -> Result<(Baselines, String), PipelineError> {
    let text = read_text(path)?;
    let found = Baselines::count(vocabulary, &tokenizer.encode(&text, false, false))
        .map_err(|error| PipelineError::Baseline { path: path.to_owned(), error })?;
    Ok((found, kbit_formats::hash::hex(text.as_bytes())))
}

/// Reads a UTF-8 text.
///
/// # Errors
/// When it cannot be read, or the first byte that is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, PipelineError> {
    let bytes = std::fs::read(path).map_err(PipelineError::io(path, "reading the text"))?;
    String::from_utf8(bytes).map_err(|error| PipelineError::TextNotUtf8 {
        path: path.to_owned(),
        offset: error.utf8_error().valid_up_to(),
    })
}

/// What is measured: a model, as it is or quantized.
#[derive(Clone)]
pub struct Subject {
    /// The model.
    pub model: ModelInfo,
    /// The scheme; family `none` for the model as it is.
    pub scheme: SchemeInfo,
    bpw: Bpw,
    bytes: u64,
    total_bits: f64,
    file_sha256: Option<String>,
    mode: Mode,
    cache: CacheTypes,
}

impl Subject {
    /// The same, computed in `mode` with a KV cache of `cache`.
    #[must_use]
    pub fn computed(&self, mode: Mode, cache: CacheTypes) -> Self {
        Self { mode, cache, ..self.clone() }
    }

    /// The unquantized model.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "ratios and totals for people and fits")]
    pub fn unquantized(
        name: &str,
        conversion: &Conversion,
        checkpoint: &Checkpoint,
        training: Option<&TrainingInfo>,
    ) -> Self {
        let elements = |shape: &[u64]| shape.iter().product::<u64>();
        let mut params = 0;
        let mut decoder = (0u64, 0u64);
        let mut bytes = 0;
        for tensor in &conversion.tensors {
            let stored: u64 = tensor
                .expr
                .sources()
                .iter()
                .filter_map(|name| checkpoint.tensor(name))
                .map(|source| source.bytes)
                .sum();
            if stored == 0 {
                continue;
            }
            params += elements(&tensor.shape);
            bytes += stored;
            if !matches!(tensor.role, Role::TokenEmbedding | Role::Output) {
                decoder = (decoder.0 + stored, decoder.1 + elements(&tensor.shape));
            }
        }
        let ratio =
            |bytes: u64, weights: u64| if weights == 0 { 0.0 } else { bytes as f64 * 8.0 / weights as f64 };
        let bits = ratio(bytes, params);
        Self {
            model: ModelInfo {
                id: name.to_owned(),
                architecture: conversion.architecture.clone(),
                params,
                tokens: training.and_then(|training| training.tokens),
                flops: training.and_then(|training| training.flops),
            },
            scheme: SchemeInfo {
                label: "none".to_owned(),
                id: "none".to_owned(),
                family: "none".to_owned(),
                params: BTreeMap::new(),
                bits: Some(bits.round()),
            },
            bpw: Bpw { file: bits, decoder: ratio(decoder.0, decoder.1) },
            bytes,
            total_bits: bytes as f64 * 8.0,
            file_sha256: None,
            mode: Mode::F32,
            cache: CacheTypes::default(),
        }
    }

    /// The same model in a file of `plan`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "totals for fits")]
    pub fn quantized(&self, recipe: &Recipe, plan: &FilePlan, conversion: &Conversion, sha256: &str) -> Self {
        let (file, decoder) = plan.bits_per_weight(conversion);
        Self {
            model: self.model.clone(),
            scheme: SchemeInfo {
                label: recipe.label.clone(),
                id: recipe.main.id(),
                family: recipe.family.clone(),
                params: recipe.main.params().into_iter().collect(),
                bits: recipe.nominal_bits(),
            },
            bpw: Bpw { file, decoder },
            bytes: plan.layout.file_bytes(),
            total_bits: plan.tensor_bytes() as f64 * 8.0,
            file_sha256: Some(sha256.to_owned()),
            mode: self.mode,
            cache: self.cache,
        }
    }

    pub(crate) fn record(&self, metric: &str, value: f64, stderr: Option<f64>, count: u64) -> Measurement {
        Measurement {
            schema: kbit_results::SCHEMA,
            model: self.model.clone(),
            scheme: self.scheme.clone(),
            bpw: self.bpw.clone(),
            bytes: self.bytes,
            total_bits: self.total_bits,
            metric: metric.to_owned(),
            tensor: None,
            value,
            stderr,
            difference: None,
            count,
            seed: None,
            mode: self.mode.to_string(),
            cache_type: self.cache.to_string(),
            data: None,
            file_sha256: self.file_sha256.clone(),
        }
    }

    /// Names of the mode and of the types of the KV cache.
    pub(crate) fn arithmetic(&self) -> (String, String) {
        (self.mode.to_string(), self.cache.to_string())
    }

    /// One record a tensor and figure.
    #[must_use]
    pub fn tensor_errors(&self, errors: &[(String, TensorError)]) -> Vec<Measurement> {
        let records = |(name, error): &(String, TensorError)| {
            [
                ("tensor_relative_mse", error.relative_mse),
                ("tensor_max_error", error.max_error),
                ("tensor_cosine", error.cosine),
            ]
            .map(|(metric, value)| Measurement {
                tensor: Some(name.clone()),
                ..self.record(metric, value, None, error.count)
            })
        };
        errors.iter().flat_map(records).collect()
    }

    /// The cost of one stage; `tokens_per_second` where the engine was at work.
    #[must_use]
    pub fn cost(
        &self,
        stage: &str,
        seconds: f64,
        tokens_per_second: Option<f64>,
        peak_rss_bytes: Option<u64>,
    ) -> Cost {
        Cost {
            schema: kbit_results::SCHEMA,
            model: self.model.clone(),
            scheme: self.scheme.clone(),
            stage: stage.to_owned(),
            mode: tokens_per_second.map(|_| self.mode.to_string()),
            cache_type: tokens_per_second.map(|_| self.cache.to_string()),
            seconds,
            tokens_per_second,
            peak_rss_bytes,
            joules: None,
        }
    }

    /// Figures of a text; those of the quantized model with their difference from the unquantized one's.
    fn records(&self, data: &DataSet, found: &Divergence) -> Vec<Measurement> {
        let count = found.tokens;
        let perplexity = &found.perplexity;
        let mut records = Vec::new();
        let mut record = |metric: &str, value: f64, stderr: Option<f64>| {
            records.push(self.record(metric, value, stderr, count));
        };
        if data.wants("perplexity") {
            record("perplexity", perplexity.value, Some(perplexity.stderr));
            record("nll", perplexity.nll, Some(perplexity.nll_stderr()));
        }
        let per_token = 1.0 / std::f64::consts::LN_2;
        let per_byte = per_token / data.bytes_per_token();
        for (metric, scale) in [("bits_per_token", per_token), ("bits_per_byte", per_byte)] {
            if data.wants(metric) {
                record(metric, perplexity.nll * scale, Some(perplexity.nll_stderr() * scale));
            }
        }
        if data.wants("kl_divergence") {
            let spread = &found.spread;
            record("kl_divergence", found.mean_kld, Some(found.stderr));
            record("kl_divergence_median", spread.median, None);
            record("kl_divergence_p90", spread.p90, None);
            record("kl_divergence_p95", spread.p95, None);
            record("kl_divergence_p99", spread.p99, None);
            record("kl_divergence_p99_9", spread.p99_9, None);
            record("kl_divergence_max", spread.max, None);
            record("same_top", found.same_top, Some(found.same_top_stderr));
        }
        if data.wants("true_token") {
            let (change, spread) = (&found.true_token, &found.true_token.spread);
            record("true_token", change.mean, Some(change.mean_stderr));
            record("true_token_rms", change.rms, Some(change.rms_stderr));
            for (metric, value) in [
                ("true_token_min", spread.min),
                ("true_token_p0_1", spread.p0_1),
                ("true_token_p1", spread.p1),
                ("true_token_p5", spread.p5),
                ("true_token_p10", spread.p10),
                ("true_token_median", spread.median),
                ("true_token_p90", spread.p90),
                ("true_token_p95", spread.p95),
                ("true_token_p99", spread.p99),
                ("true_token_p99_9", spread.p99_9),
                ("true_token_max", spread.max),
            ] {
                record(metric, value, None);
            }
        }
        if data.wants("flips") {
            let flips = &found.flips;
            record("flips", flips.share, Some(flips.stderr));
            record("flips_to_wrong", flips.to_wrong, Some(flips.to_wrong_stderr));
            record("flips_to_right", flips.to_right, Some(flips.to_right_stderr));
        }
        let scored = data.windows.scored();
        for (metric, beyond) in information(data, found) {
            let (value, stderr) = kbit_eval::mean_over_windows(&beyond, scored);
            let per_byte = 1.0 / data.bytes_per_token();
            record(&metric, value, stderr);
            record(&format!("{metric}_per_byte"), value * per_byte, stderr.map(|stderr| stderr * per_byte));
        }
        let difference = |metric: &str| {
            let scale = match metric {
                "perplexity" => {
                    let (value, stderr) = (found.ppl_difference, Some(found.ppl_difference_stderr));
                    return Some(Difference { value, stderr });
                }
                "nll" => 1.0,
                "bits_per_token" => per_token,
                "bits_per_byte" => per_byte,
                // What the model knows less is what it leaves unknown more.
                _ if metric.starts_with("information_") && metric.ends_with("_per_byte") => -per_byte,
                _ if metric.starts_with("information_") => -per_token,
                _ => return None,
            };
            let (value, stderr) = (found.ln_ppl_ratio * scale, Some(found.ln_ppl_ratio_stderr * scale));
            Some(Difference { value, stderr })
        };
        for record in &mut records {
            record.data = Some(data.info(found.chunks));
            if self.scheme.family != "none" {
                record.difference = difference(&record.metric);
            }
        }
        records
    }

    /// The values of each window behind the figures.
    #[expect(clippy::cast_precision_loss, reason = "counts are below 2^53")]
    fn items(&self, data: &DataSet, found: &Divergence) -> Vec<Items> {
        let items = |metric: &str, values: &[f64]| Items {
            schema: kbit_results::SCHEMA,
            model: self.model.id.clone(),
            scheme: self.scheme.label.clone(),
            metric: metric.to_owned(),
            mode: self.mode.to_string(),
            cache_type: self.cache.to_string(),
            data: data.info(found.chunks),
            values: values.to_vec(),
            weights: Some(vec![found.perplexity.window_tokens as f64; values.len()]),
        };
        let mut all = Vec::new();
        if ["perplexity", "bits_per_token", "bits_per_byte"].iter().any(|metric| data.wants(metric)) {
            all.push(items("nll", &found.perplexity.window_nlls));
        }
        if data.wants("kl_divergence") {
            all.push(items("kl_divergence", &found.window_klds));
        }
        for (metric, beyond) in information(data, found) {
            all.push(items(&metric, &beyond));
        }
        all
    }
}

/// What the model knows of each window beyond each baseline, in bits, by the name of the metric.
fn information(data: &DataSet, found: &Divergence) -> Vec<(String, Vec<f64>)> {
    let Some((unknown, _)) = &data.baselines else { return Vec::new() };
    let bits: Vec<f64> =
        found.perplexity.window_nlls.iter().map(|nats| nats / std::f64::consts::LN_2).collect();
    let of = |(name, unknown)| (format!("information_{name}"), kbit_eval::beyond(unknown, &bits));
    unknown.named().into_iter().map(of).collect()
}

/// The divergence of models that are unquantized but for one part, each as a record of its part under `sensitivity_kld`; in order.
///
/// # Errors
/// As [`measure`].
pub fn measure_parts(
    reference: &Reference<'_>,
    candidates: &[(&Part, Model)],
    subject: &Subject,
    data: &DataSet,
    progress: &Progress,
    what: &str,
) -> Result<Vec<Measurement>, PipelineError> {
    let bar = progress.items(what, data.windows.count(data.tokens.len())? as u64);
    let tick = |done: usize, _total: usize| {
        bar.set(done as u64);
    };
    let models: Vec<_> = candidates.iter().map(|(_, model)| model).collect();
    let found = kbit_eval::kl_divergence(reference, &models, &tick)?;
    let records = candidates.iter().zip(&found).map(|((part, _), found)| Measurement {
        tensor: Some(part.name.clone()),
        data: Some(data.info(found.chunks)),
        ..subject.record("sensitivity_kld", found.mean_kld, Some(found.stderr), found.tokens)
    });
    Ok(records.collect())
}

/// A model to measure: quantized, or the unquantized one in another arithmetic.
pub struct Candidate<'a> {
    /// The model.
    pub model: &'a OpenModel,
    /// How it is recorded.
    pub subject: &'a Subject,
}

/// What measuring one model gives.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Figures of quality.
    pub measurements: Vec<Measurement>,
    /// The values behind them.
    pub items: Vec<Items>,
    /// What they cost.
    pub costs: Vec<Cost>,
}

/// Measures `candidates` against `reference`, which is the unquantized model on `data`; one entry each, in order. The unquantized model as
/// a candidate gives the noise floor: what its divergence is from itself in the candidates' arithmetic.
///
/// # Errors
/// When the text is too short, a codec fails, or the run was cancelled.
pub fn measure(
    reference: &Reference<'_>,
    candidates: &[Candidate<'_>],
    data: &DataSet,
    progress: &Progress,
    what: &str,
) -> Result<Vec<Measured>, PipelineError> {
    let windows = data.windows.count(data.tokens.len())?;
    let bar = progress.items(what, windows as u64);
    let energy = EnergyMeter::start();
    let tick = |done: usize, _total: usize| {
        bar.set(done as u64);
        // Read often, since its counters begin anew.
        let _ = energy.joules();
    };
    let started = Instant::now();
    let models: Vec<_> = candidates.iter().map(|candidate| &candidate.model.model).collect();
    let found = kbit_eval::kl_divergence(reference, &models, &tick)?;
    #[expect(clippy::cast_precision_loss, reason = "seconds and a rate for people")]
    let (seconds, tokens) = (
        started.elapsed().as_secs_f64() / candidates.len().max(1) as f64,
        (windows * data.windows.context) as f64,
    );
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    let joules = energy.joules().map(|joules| joules / candidates.len().max(1) as f64);
    let stage = if data.wants("kl_divergence") { "kl_divergence" } else { "perplexity" };
    let measured = candidates.iter().zip(&found).map(|(candidate, found)| {
        let rate = Some(tokens / seconds.max(1e-9));
        Measured {
            measurements: candidate.subject.records(data, found),
            items: candidate.subject.items(data, found),
            costs: vec![Cost {
                joules,
                ..candidate.subject.cost(stage, seconds, rate, kbit_formats::peak_rss_bytes())
            }],
        }
    });
    Ok(measured.collect())
}
