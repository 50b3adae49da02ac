//! Asks a model the questions of a task.

use super::definition::TaskKind;
use super::encode::{Request, Unscorable, encode_pair};
use super::figures::{LabelFigure, Parts};
use super::likelihood::{Likelihood, likelihoods, told};
use super::prompts::{Asked, Question, Questions};
use super::write::{Written, write};
use super::{Answer, Figure, Task, TaskError};
use crate::Progress;
use crate::scores::{Bleu, Chrf, Confusion, ExactMatch, Rouge, ScoreError};
use kbit_engine::Model;
use kbit_tokenizers::Tokenizer;

/// What a model's answers amount to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Figures, in the order of the task's metrics.
    pub figures: Vec<Figure>,
    /// Answers, one a document.
    pub answers: Vec<Answer>,
    /// True and predicted labels, of classifications.
    pub confusion: Option<Confusion>,
    /// Seed of the sampling, of generated texts.
    pub seed: Option<u64>,
    /// Tokens that were scored, or written.
    pub tokens: u64,
}

/// Asks `model`, whose tokenizer is `tokenizer`, the `questions` of `task`.
///
/// # Errors
/// When a question cannot be asked of this model, the model cannot be run, or its logits are not finite.
pub fn evaluate(
    task: &Task,
    questions: &Questions,
    model: &Model,
    tokenizer: &Tokenizer,
    progress: &Progress<'_>,
) -> Result<Outcome, TaskError> {
    let answers = if task.kind == TaskKind::Generation {
        written(questions, write(task, model, tokenizer, &questions.asked, progress)?)
    } else {
        scored(task, questions, model, tokenizer, progress)?
    };
    let figures = figures(task, questions, &answers)?;
    let confusion = match task.kind {
        TaskKind::Classification => {
            let (labels, pairs) = labels(questions, &answers);
            let (truth, predicted): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            Some(Confusion::new(labels, &truth, &predicted)?)
        }
        _ => None,
    };
    let seed = (task.kind == TaskKind::Generation).then_some(task.generation.seed);
    let tokens = answers.iter().flat_map(|answer| &answer.tokens).map(|&tokens| tokens as u64).sum();
    Ok(Outcome { figures, answers, confusion, seed, tokens })
}

fn written(questions: &Questions, written: Vec<Written>) -> Vec<Answer> {
    let answer = |(asked, written): (&Asked, Written)| {
        let (prompt, targets) = match &asked.question {
            Question::Generation { prompt, targets } => (Some(prompt.clone()), targets.clone()),
            Question::Choice { .. } | Question::Cloze { .. } => (None, Vec::new()),
        };
        Answer {
            line: asked.line,
            tokens: vec![written.tokens],
            prompt,
            targets,
            unfiltered: (written.raw != written.text).then_some(written.raw),
            text: Some(written.text),
            ..Answer::default()
        }
    };
    questions.asked.iter().zip(written).map(answer).collect()
}

/// Contexts and continuations that a question has scored, in order: the choices, then the choices alone where `alone`.
fn pairs(question: &Question, alone: bool) -> Vec<(&str, String)> {
    match question {
        Question::Choice { contexts, continuations, choices, delimiter, .. } => {
            let of = |texts: &'_ [String], place: usize| {
                texts.get(place).or_else(|| texts.first()).cloned().unwrap_or_default()
            };
            let context =
                |place: usize| contexts.get(place).or_else(|| contexts.first()).map_or("", String::as_str);
            let mut pairs: Vec<_> =
                (0..choices.len()).map(|place| (context(place), of(continuations, place))).collect();
            if alone {
                pairs.extend(choices.iter().map(|choice| ("", format!("{delimiter}{choice}"))));
            }
            pairs
        }
        Question::Cloze { context, continuation } => vec![(context, continuation.clone())],
        Question::Generation { .. } => Vec::new(),
    }
}

fn scored(
    task: &Task,
    questions: &Questions,
    model: &Model,
    tokenizer: &Tokenizer,
    progress: &Progress<'_>,
) -> Result<Vec<Answer>, TaskError> {
    let context = model.description().context_length;
    let alone = task.metrics.iter().any(|metric| metric == "acc_mutual_info");
    let (path, mut documents) = (&questions.path, Vec::with_capacity(questions.asked.len()));
    for asked in &questions.asked {
        let request = |(context_text, text): (&str, String)| {
            encode_pair(tokenizer, context_text, &text, context).map_err(|problem| match problem {
                Unscorable::NoPrefix => TaskError::NoPrefix,
                Unscorable::NoTokens => TaskError::NoTokens { path: path.clone(), line: asked.line, text },
                Unscorable::TooLong { tokens } => {
                    TaskError::TooLong { path: path.clone(), line: asked.line, tokens, context }
                }
            })
        };
        let requests = pairs(&asked.question, alone).into_iter().map(request);
        documents.push(requests.collect::<Result<Vec<Request>, TaskError>>()?);
    }
    let longest = documents.iter().flatten().map(|request| request.input.len()).max().unwrap_or(1);
    let found = likelihoods(model, &documents, longest, progress).map_err(|failure| {
        let lines: Vec<usize> = questions.asked.iter().map(|asked| asked.line).collect();
        told(failure, path, &lines)
    })?;
    Ok(questions.asked.iter().zip(found).map(|(asked, found)| answer(asked, &found)).collect())
}

fn answer(asked: &Asked, found: &[Likelihood]) -> Answer {
    let (gold, own) = match &asked.question {
        Question::Choice { gold, choices, .. } => (gold.clone(), choices.len()),
        Question::Cloze { .. } | Question::Generation { .. } => (Vec::new(), found.len()),
    };
    let (own, alone) = found.split_at(own.min(found.len()));
    let log_likelihoods: Vec<f64> = own.iter().map(|found| found.log_likelihood).collect();
    Answer {
        line: asked.line,
        predicted: (!gold.is_empty()).then(|| largest(log_likelihoods.iter().copied())),
        gold,
        unconditional: alone.iter().map(|found| found.log_likelihood).collect(),
        greedy: own.iter().map(|found| found.greedy).collect(),
        tokens: own.iter().map(|found| found.tokens).collect(),
        log_likelihoods,
        ..Answer::default()
    }
}

/// Place of the largest value, the first of equals.
fn largest(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (place, value) in values.enumerate() {
        if value > best.1 {
            best = (place, value);
        }
    }
    best.0
}

/// Number of labels, and of each document the right and the predicted one.
fn labels(questions: &Questions, answers: &[Answer]) -> (usize, Vec<(usize, usize)>) {
    let count = |asked: &Asked| match &asked.question {
        Question::Choice { choices, .. } => choices.len(),
        Question::Cloze { .. } | Question::Generation { .. } => 0,
    };
    let pair = |answer: &Answer| Some((*answer.gold.first()?, answer.predicted?));
    (questions.asked.iter().map(count).max().unwrap_or(0), answers.iter().filter_map(pair).collect())
}

/// What a document of choices counts for in a metric.
#[expect(clippy::cast_precision_loss, reason = "lengths of texts")]
fn choice_value(metric: &str, choices: &[String], answer: &Answer) -> f64 {
    let own = &answer.log_likelihoods;
    let over = |lengths: Vec<f64>| {
        largest(own.iter().zip(lengths).map(|(log_likelihood, length)| log_likelihood / length))
    };
    let right = |place: usize| f64::from(answer.gold.contains(&place));
    match metric {
        "acc_norm" => right(over(choices.iter().map(|choice| choice.chars().count() as f64).collect())),
        "acc_bytes" => right(over(choices.iter().map(|choice| choice.len() as f64).collect())),
        "acc_tokens" => right(over(answer.tokens.iter().map(|&tokens| tokens as f64).collect())),
        "acc_mutual_info" => {
            right(largest(own.iter().zip(&answer.unconditional).map(|(own, alone)| own - alone)))
        }
        "exact_match" => f64::from(answer.gold.iter().any(|&place| answer.greedy.get(place) == Some(&true))),
        "probability_mass" => {
            let most = own.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let shares: Vec<f64> = own.iter().map(|log_likelihood| (log_likelihood - most).exp()).collect();
            let of_gold: f64 = shares
                .iter()
                .enumerate()
                .filter(|(place, _)| answer.gold.contains(place))
                .map(|(_, share)| share)
                .sum();
            of_gold / shares.iter().sum::<f64>()
        }
        _ => answer.predicted.map_or(0.0, right),
    }
}

fn figures(task: &Task, questions: &Questions, answers: &[Answer]) -> Result<Vec<Figure>, TaskError> {
    let mut figures = Vec::new();
    for metric in &task.metrics {
        let mut signature = None;
        let parts = match task.kind {
            TaskKind::Generation => generation_parts(metric, answers, &mut signature)?,
            TaskKind::Cloze => {
                let own = answers.iter().flat_map(|answer| &answer.log_likelihoods);
                let greedy = answers.iter().flat_map(|answer| &answer.greedy);
                if metric == "perplexity" {
                    Parts::Perplexity(own.map(|log_likelihood| -log_likelihood).collect())
                } else {
                    Parts::Mean(greedy.map(|&greedy| f64::from(greedy)).collect())
                }
            }
            TaskKind::MultipleChoice | TaskKind::MinimalPair | TaskKind::Classification => {
                match LabelFigure::of(metric) {
                    Some(figure) => {
                        let (labels, pairs) = labels(questions, answers);
                        Parts::Labels(figure, labels, pairs)
                    }
                    None => {
                        let value = |(asked, answer): (&Asked, &Answer)| match &asked.question {
                            Question::Choice { choices, .. } => choice_value(metric, choices, answer),
                            Question::Cloze { .. } | Question::Generation { .. } => 0.0,
                        };
                        Parts::Mean(questions.asked.iter().zip(answers).map(value).collect())
                    }
                }
            }
        };
        figures.push(Figure::new(metric, parts, signature)?);
    }
    Ok(figures)
}

fn generation_parts(
    metric: &str,
    answers: &[Answer],
    signature: &mut Option<String>,
) -> Result<Parts, ScoreError> {
    let texts: Vec<&str> = answers.iter().map(|answer| answer.text.as_deref().unwrap_or_default()).collect();
    let targets: Vec<Vec<&str>> =
        answers.iter().map(|answer| answer.targets.iter().map(String::as_str).collect()).collect();
    Ok(match metric {
        "bleu" => {
            let bleu = Bleu::default();
            *signature = Some(bleu.signature(&targets));
            let parts = bleu.documents(&texts, &targets)?;
            Parts::Bleu(bleu, parts)
        }
        "chrf" | "chrf++" => {
            let chrf = if metric == "chrf" { Chrf::default() } else { Chrf::plus_plus() };
            *signature = Some(chrf.signature(&targets));
            let parts = chrf.documents(&texts, &targets)?;
            Parts::Chrf(chrf, parts)
        }
        "exact_match" => Parts::Mean(ExactMatch::default().documents(&texts, &targets)?),
        _ => {
            let rouge = Rouge { stemming: true };
            let mut values = Vec::with_capacity(texts.len());
            for (text, targets) in texts.iter().zip(&targets) {
                let named = rouge.score(text, targets)?.named();
                values
                    .extend(named.iter().filter(|(name, _)| *name == metric).map(|(_, overlap)| overlap.f1));
            }
            Parts::Mean(values)
        }
    })
}
