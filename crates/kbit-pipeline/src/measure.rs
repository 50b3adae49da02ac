//! Measures models on a text and turns the figures into records.

use crate::config::Evaluation;
use crate::error::PipelineError;
use crate::open::OpenModel;
use crate::plan::FilePlan;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::statistics::TensorError;
use kbit_engine::{CacheTypes, Mode};
use kbit_eval::{Divergence, Perplexity, Windows};
use kbit_formats::Checkpoint;
use kbit_formats::hash::Sha256;
use kbit_models::{Conversion, Role, TrainingInfo};
use kbit_results::{Bpw, Cost, DataInfo, Measurement, ModelInfo, SchemeInfo};
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
        data.name.clone_from(&evaluation.name);
        data.metrics.clone_from(&evaluation.metrics);
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
            windows: Windows { context, chunks, bos },
            metrics: crate::schema::METRICS.iter().map(|metric| (*metric).to_owned()).collect(),
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
            self.windows.bos
        ])
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

    fn record(&self, metric: &str, value: f64, stderr: Option<f64>, count: u64) -> Measurement {
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
        }
    }

    fn on(&self, data: &DataSet, mut records: Vec<Measurement>, chunks: u64) -> Vec<Measurement> {
        for record in &mut records {
            record.data = Some(DataInfo {
                name: data.name.clone(),
                sha256: data.sha256.clone(),
                context: Some(data.windows.context as u64),
                chunks: Some(chunks),
            });
        }
        records
    }

    fn perplexity_records(&self, data: &DataSet, perplexity: &Perplexity) -> Vec<Measurement> {
        let count = perplexity.tokens;
        let nll_stderr = perplexity.stderr / perplexity.value;
        let mut records = Vec::new();
        if data.wants("perplexity") {
            records.push(self.record("perplexity", perplexity.value, Some(perplexity.stderr), count));
            records.push(self.record("nll", perplexity.nll, Some(nll_stderr), count));
        }
        if data.wants("bits_per_byte") {
            let scale = 1.0 / (std::f64::consts::LN_2 * data.bytes_per_token());
            records.push(self.record(
                "bits_per_byte",
                perplexity.nll * scale,
                Some(nll_stderr * scale),
                count,
            ));
        }
        self.on(data, records, perplexity.chunks)
    }

    fn divergence_records(&self, data: &DataSet, divergence: &Divergence) -> Vec<Measurement> {
        let mut records = self.perplexity_records(data, &divergence.perplexity);
        if data.wants("kl_divergence") {
            let count = divergence.tokens;
            let figures = vec![
                self.record("kl_divergence", divergence.mean_kld, Some(divergence.stderr), count),
                self.record("kl_divergence_median", divergence.median, None, count),
                self.record("kl_divergence_p99", divergence.p99, None, count),
                self.record("kl_divergence_max", divergence.max, None, count),
                self.record("same_top", divergence.same_top, Some(divergence.same_top_stderr), count),
            ];
            records.extend(self.on(data, figures, divergence.chunks));
        }
        records
    }
}

/// A quantized model to measure.
pub struct Candidate<'a> {
    /// The model.
    pub model: &'a OpenModel,
    /// How it is recorded.
    pub subject: &'a Subject,
}

/// What measuring one model gives: figures of quality, and what they cost.
pub type Measured = (Vec<Measurement>, Vec<Cost>);

/// Measures `candidates` against `reference`, or `reference` itself where there are none; one entry each, in order.
///
/// # Errors
/// When the text is too short, a codec fails, or the run was cancelled.
pub fn measure(
    reference: &OpenModel,
    base: &Subject,
    candidates: &[Candidate<'_>],
    data: &DataSet,
    progress: &Progress,
    what: &str,
) -> Result<Vec<Measured>, PipelineError> {
    let windows = data.tokens.len() / data.windows.context.max(1);
    let bar = progress.items(what, data.windows.chunks.map_or(windows, |chunks| chunks.min(windows)) as u64);
    let tick = |done: usize, _total: usize| {
        bar.set(done as u64);
    };
    let started = Instant::now();
    let mut found = Vec::new();
    let cost = |subject: &Subject, stage: &str, chunks: u64, share: usize| {
        let seconds = started.elapsed().as_secs_f64() / share.max(1) as f64;
        let tokens = chunks * data.windows.context as u64;
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = tokens as f64 / seconds.max(1e-9);
        subject.cost(stage, seconds, Some(rate), kbit_formats::peak_rss_bytes())
    };
    if candidates.is_empty() {
        let perplexity = kbit_eval::perplexity(&reference.model, &data.tokens, &data.windows, &tick)?;
        let cost = cost(base, "perplexity", perplexity.chunks, 1);
        found.push((base.perplexity_records(data, &perplexity), vec![cost]));
    } else if data.wants("kl_divergence") {
        let models: Vec<_> = candidates.iter().map(|candidate| &candidate.model.model).collect();
        let divergences =
            kbit_eval::kl_divergence(&reference.model, &models, &data.tokens, &data.windows, &tick)?;
        for (candidate, divergence) in candidates.iter().zip(&divergences) {
            let cost = cost(candidate.subject, "kl_divergence", divergence.chunks, candidates.len());
            found.push((candidate.subject.divergence_records(data, divergence), vec![cost]));
        }
    } else {
        for candidate in candidates {
            let perplexity =
                kbit_eval::perplexity(&candidate.model.model, &data.tokens, &data.windows, &tick)?;
            let cost = cost(candidate.subject, "perplexity", perplexity.chunks, candidates.len());
            found.push((candidate.subject.perplexity_records(data, &perplexity), vec![cost]));
        }
    }
    Ok(found)
}
