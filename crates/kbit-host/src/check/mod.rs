//! The conformance kit: does a plugin keep the rules of the ABI?
//!
//! Every case runs in a child process, so a crash or a hang is one failed case. [`check`] is the parent: it inspects
//! the file, has a child load it, and then hands out one case a child. Cases stand in one list (`CASES`); what each
//! looks at is its `about`, which the report repeats where a case fails.

mod cases;
mod harness;

use crate::callbacks::Isa;
use crate::error::HostError;
use crate::inspect::inspect;
use crate::load::PluginText;
use crate::memfd::sealed;
use crate::registry::{HostOptions, file_name, read_for_check};
use crate::spec::ParamValues;
use crate::worker::{Trouble, for_check};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub(crate) use cases::run_case;

/// How to check.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// Where the worker command is taken from; the rest does not matter here.
    pub host: HostOptions,
    /// Only cases whose name contains this.
    pub case: Option<String>,
    /// Only schemes whose id contains this.
    pub scheme: Option<String>,
    /// Values for parameters, in place of their defaults (needed for required ones without an obvious value).
    pub params: ParamValues,
    /// How long one case may take.
    pub timeout: Duration,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            host: HostOptions::default(),
            case: None,
            scheme: None,
            params: ParamValues::new(),
            timeout: Duration::from_secs(60),
        }
    }
}

/// How a case came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The rule is kept.
    Pass,
    /// The rule is broken.
    Fail,
    /// The rule does not apply to this scheme.
    Skip,
}

/// One case.
#[derive(Clone, Debug, Serialize)]
pub struct CaseReport {
    /// Scheme id; empty for cases about the whole plugin.
    pub scheme: String,
    /// Name of the case.
    pub name: String,
    /// How it came out.
    pub outcome: Outcome,
    /// What was found, in words.
    pub message: String,
    /// Seconds that it took.
    pub seconds: f64,
    /// Figures, as `relative_mse`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub figures: BTreeMap<String, f64>,
}

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub struct CheckReport {
    /// Version of this report's form.
    pub kbit_check: u32,
    /// Absolute path of the plugin.
    pub path: PathBuf,
    /// SHA-256 of its bytes.
    pub sha256: String,
    /// Plugin id, if it loads.
    pub id: Option<String>,
    /// Plugin version, if it loads.
    pub version: Option<String>,
    /// All cases.
    pub cases: Vec<CaseReport>,
    /// Seconds that everything took.
    pub seconds: f64,
}

impl CheckReport {
    /// Passed, failed, skipped.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |outcome| self.cases.iter().filter(|case| case.outcome == outcome).count();
        (count(Outcome::Pass), count(Outcome::Fail), count(Outcome::Skip))
    }

    /// True if no case failed.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.cases.iter().all(|case| case.outcome != Outcome::Fail)
    }

    /// The cases that failed.
    pub fn failures(&self) -> impl Iterator<Item = &CaseReport> {
        self.cases.iter().filter(|case| case.outcome == Outcome::Fail)
    }
}

/// What a child is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CaseTask {
    pub(crate) path: PathBuf,
    pub(crate) sha256: String,
    /// Which scheme of the plugin.
    pub(crate) scheme: usize,
    /// Name in `CASES`, or `load`.
    pub(crate) case: String,
    pub(crate) params: ParamValues,
    pub(crate) isa: Isa,
}

/// What a child answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct CaseOutcome {
    pub(crate) outcome: Outcome,
    pub(crate) message: String,
    pub(crate) figures: BTreeMap<String, f64>,
    /// What the plugin says about itself, for `load`.
    pub(crate) text: Option<PluginText>,
    /// Hash of all outputs, for cases that are compared between processes.
    pub(crate) digest: Option<String>,
}

impl CaseOutcome {
    pub(crate) fn new(outcome: Outcome, message: impl Into<String>) -> Self {
        Self { outcome, message: message.into(), figures: BTreeMap::new(), text: None, digest: None }
    }
}

/// Names of all cases of a scheme, and what each looks at.
#[must_use]
pub fn cases() -> Vec<(&'static str, &'static str)> {
    let listed = cases::CASES.iter().map(|case| (case.name, case.about));
    listed
        .chain([(INSTRUCTION_SETS, "encoded bytes and decoded weights are equal for every instruction set")])
        .collect()
}

/// Compared between children, so it is no case of one.
const INSTRUCTION_SETS: &str = "instruction-sets";

/// Checks the plugin `file`.
///
/// # Errors
/// A file that cannot be read, or a worker command that does not start; everything else is in the report.
pub fn check(file: &Path, options: &CheckOptions) -> Result<CheckReport, HostError> {
    let started = Instant::now();
    let (path, bytes, sha256) = read_for_check(file)?;
    let mut report = CheckReport {
        kbit_check: 1,
        path: path.clone(),
        sha256: sha256.clone(),
        id: None,
        version: None,
        cases: Vec::new(),
        seconds: 0.0,
    };
    let plain = |name: &str, outcome, message: String, seconds| CaseReport {
        scheme: String::new(),
        name: name.to_owned(),
        outcome,
        message,
        seconds,
        figures: BTreeMap::new(),
    };
    match inspect(&bytes) {
        Ok(found) => {
            let message = format!("{}, needs {}", found.architecture, found.needs.join(", "));
            report.cases.push(plain("file", Outcome::Pass, message, started.elapsed().as_secs_f64()));
        }
        Err(reason) => {
            let reason = format!("{}: {reason}", file_name(&path));
            report.cases.push(plain("file", Outcome::Fail, reason, started.elapsed().as_secs_f64()));
            report.seconds = started.elapsed().as_secs_f64();
            return Ok(report);
        }
    }
    let image = sealed("kbit-check", &bytes, false).map_err(HostError::io("copy into memory", &path))?;
    let base = CaseTask {
        path,
        sha256,
        scheme: 0,
        case: String::new(),
        params: options.params.clone(),
        isa: Isa::Best,
    };
    let run = |task: &CaseTask| -> Result<(CaseOutcome, f64), HostError> {
        let started = Instant::now();
        let outcome = for_check(&options.host, &file_name(&task.path), options.timeout)
            .and_then(|child| child.check(task, image.as_fd()));
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(Trouble::NoCommand) => return Err(HostError::NoWorker { scheme: file_name(&task.path) }),
            Err(Trouble::Start(reason)) => {
                return Err(HostError::WorkerStart { plugin: file_name(&task.path), reason });
            }
            Err(trouble) => CaseOutcome::new(Outcome::Fail, trouble_text(&trouble)),
        };
        Ok((outcome, started.elapsed().as_secs_f64()))
    };
    let (loaded, seconds) = run(&CaseTask { case: LOAD.to_owned(), ..base.clone() })?;
    report.cases.push(plain(LOAD, loaded.outcome, loaded.message, seconds));
    let Some(text) = loaded.text else {
        report.seconds = started.elapsed().as_secs_f64();
        return Ok(report);
    };
    report.id = Some(text.id.clone());
    report.version = Some(text.version.clone());
    let wanted =
        |name: &str, filter: &Option<String>| filter.as_ref().is_none_or(|part| name.contains(part.as_str()));
    let mut tasks = Vec::new();
    for (index, scheme) in text.schemes.iter().enumerate() {
        if !wanted(&scheme.id, &options.scheme) {
            continue;
        }
        for (name, _) in cases() {
            if wanted(name, &options.case) {
                tasks.push((
                    scheme.id.clone(),
                    CaseTask { scheme: index, case: name.to_owned(), ..base.clone() },
                ));
            }
        }
    }
    let cases: Vec<CaseReport> = tasks
        .into_par_iter()
        .map(|(scheme, task)| {
            let (outcome, seconds) =
                if task.case == INSTRUCTION_SETS { instruction_sets(&task, &run)? } else { run(&task)? };
            Ok(CaseReport {
                scheme,
                name: task.case,
                outcome: outcome.outcome,
                message: outcome.message,
                seconds,
                figures: outcome.figures,
            })
        })
        .collect::<Result<_, HostError>>()?;
    report.cases.extend(cases);
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// The case that loads the plugin and checks its descriptors.
pub(crate) const LOAD: &str = "load";
/// The case whose outputs are hashed.
pub(crate) const DIGEST: &str = "digest";

/// One child for each instruction set; their outputs must have one hash.
fn instruction_sets(
    task: &CaseTask,
    run: &(impl Fn(&CaseTask) -> Result<(CaseOutcome, f64), HostError> + Sync),
) -> Result<(CaseOutcome, f64), HostError> {
    let mut first: Option<(Isa, Option<String>)> = None;
    let mut total = 0.0;
    for isa in Isa::to_compare() {
        let (outcome, seconds) = run(&CaseTask { case: DIGEST.to_owned(), isa: *isa, ..task.clone() })?;
        total += seconds;
        if outcome.outcome != Outcome::Pass {
            return Ok((outcome, total));
        }
        match &first {
            None => first = Some((*isa, outcome.digest)),
            Some((other, digest)) if *digest != outcome.digest => {
                let message =
                    format!("outputs under {other:?} and {isa:?} differ; they must not depend on the CPU");
                return Ok((CaseOutcome::new(Outcome::Fail, message), total));
            }
            Some(_) => {}
        }
    }
    Ok((CaseOutcome::new(Outcome::Pass, format!("equal outputs under {:?}", Isa::to_compare())), total))
}

fn trouble_text(trouble: &Trouble) -> String {
    match trouble {
        Trouble::Died { death, stderr } if stderr.is_empty() => format!("the plugin {death}"),
        Trouble::Died { death, stderr } => format!("the plugin {death}; its last words: {stderr}"),
        Trouble::Hung(limit) => {
            format!(
                "no end after {:.0} s: the plugin hangs, or is far too slow for small matrices",
                limit.as_secs_f64()
            )
        }
        Trouble::Protocol(reason) => format!("the child process broke the protocol: {reason}"),
        Trouble::Call(failure) => harness::failure_text(failure),
        Trouble::Start(reason) => reason.clone(),
        Trouble::NoCommand => "no worker command is set".to_owned(),
    }
}
