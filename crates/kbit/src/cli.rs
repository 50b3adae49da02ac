//! The command line, declared once: parsing, `--help`, completions and the reference page read these types.

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

/// k-bit language models: quantize, evaluate, fit, choose.
#[derive(Debug, Parser)]
#[command(
    name = "kbit",
    version,
    propagate_version = true,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 done with some items failed.",
    max_term_width = 100
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Heading of the options that every command has.
const GLOBAL: &str = "Options of every command";

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Print one JSON document on stdout instead of text
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub json: bool,
    /// Threads to compute with [default: one a core]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub threads: Option<u32>,
    /// Load this plugin file too; it must be in the lock, or stand in a trusted folder
    #[arg(long = "plugin", global = true, help_heading = GLOBAL, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub plugins: Vec<PathBuf>,
    /// Lock file of plugins outside the trusted folders [default: plugins.lock in the user's configuration folder]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub lock: Option<PathBuf>,
    /// No progress bars
    #[arg(long, short, global = true, help_heading = GLOBAL)]
    pub quiet: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a configuration: quantize, measure, fit, report; running it again resumes
    #[command(
        after_help = "Examples:\n  kbit run configs/quickstart.yaml\n  kbit run my.yaml --dry-run\n  kbit run my.yaml --out /data/run1 --threads 8"
    )]
    Run(Run),
    /// Quantize one model into one GGUF file
    #[command(
        after_help = "Examples:\n  kbit convert assets/family/s3 s3-q4.gguf --scheme ggml:q4_0\n  kbit convert model.gguf out.gguf --scheme int:bits=4,block=64 --map 'token_embd=ggml:q8_0'"
    )]
    Convert(Convert),
    /// Show what a checkpoint or packed file holds
    #[command(
        after_help = "Examples:\n  kbit inspect model.gguf --tensors\n  kbit inspect assets/family/s0 --metadata --json"
    )]
    Inspect(Inspect),
    /// Compare two checkpoints: metadata, tensors, bytes
    #[command(after_help = "Example:\n  kbit diff a.gguf b.gguf")]
    Diff(Diff),
    /// Check a file: structure, checksums, numbers that are not finite
    #[command(after_help = "Example:\n  kbit verify model.gguf")]
    Verify(Verify),
    /// Measure quality on a text
    #[command(
        after_help = "Examples:\n  kbit eval model.gguf --metric perplexity --text wiki.txt --chunks 20\n  kbit eval q4.gguf --metric kl --reference model.gguf --text wiki.txt --json"
    )]
    Eval(Eval),
    /// Write the logits of a token sequence as safetensors
    #[command(after_help = "Example:\n  kbit logits model.gguf --tokens 5,17,4 --out logits.safetensors")]
    Logits(Logits),
    /// Turn text into tokens
    #[command(after_help = "Example:\n  echo 'Hello world' | kbit tokenize assets/family/s0")]
    Tokenize(Tokenize),
    /// Continue a text
    #[command(after_help = "Example:\n  kbit generate assets/family/s3 --prompt 'The river' -n 40 --top-k 1")]
    Generate(Generate),
    /// Fit laws of quality against bits and size to measurements
    #[command(after_help = "Example:\n  kbit fit kbit-runs/quickstart/results.jsonl")]
    Fit(Fit),
    /// Choose a model and a bit width for a memory budget, from measurements
    #[command(after_help = "Example:\n  kbit recommend kbit-runs/quickstart/results.jsonl --budget 2MiB")]
    Recommend(Recommend),
    /// Make the report of a run anew
    #[command(after_help = "Example:\n  kbit report kbit-runs/quickstart --format html,md")]
    Report(Report),
    /// List, show, check, write and trust plugins
    #[command(subcommand)]
    Plugin(Plugin),
    /// Check a configuration, or print its JSON Schema
    #[command(subcommand)]
    Config(Config),
    /// Print shell completions
    #[command(after_help = "Example:\n  kbit completions bash > /etc/bash_completion.d/kbit")]
    Completions {
        /// Shell
        shell: clap_complete::Shell,
    },
    /// Print a page of the reference
    #[command(hide = true)]
    Reference {
        /// Page
        page: Page,
    },
    /// Serve one isolated plugin over inherited descriptors
    #[command(hide = true, name = kbit_host::WORKER_COMMAND, disable_help_flag = true)]
    PluginWorker {
        /// Passed on to the worker
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        rest: Vec<std::ffi::OsString>,
    },
}

/// Pages of the generated reference.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Page {
    /// The command line.
    Cli,
    /// The configuration.
    Config,
    /// The bundled schemes.
    Schemes,
}

/// `kbit run`.
#[derive(Debug, Args)]
pub struct Run {
    /// YAML configuration
    #[arg(value_hint = ValueHint::FilePath)]
    pub config: PathBuf,
    /// Print the plan and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Output folder [default: the configuration's `output`, or kbit-runs/NAME]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub out: Option<PathBuf>,
}

/// `kbit convert`.
#[derive(Debug, Args)]
pub struct Convert {
    /// Hugging Face folder, .safetensors or .gguf
    #[arg(value_hint = ValueHint::AnyPath)]
    pub source: PathBuf,
    /// GGUF file to write
    #[arg(value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
    /// Scheme for all matrices: `name` or `name:key=value,...`
    #[arg(long, value_name = "S")]
    pub scheme: String,
    /// Scheme for tensors whose GGUF name matches; `f32` keeps them; the first match wins
    #[arg(long, value_name = "REGEX=S", value_parser = parse_rule)]
    pub map: Vec<(regex::Regex, String)>,
    /// Print the plan and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Replace an existing file
    #[arg(long)]
    pub overwrite: bool,
    /// Leave `kbit.*` metadata out (files of ggml types only keep none)
    #[arg(long)]
    pub no_provenance: bool,
    /// Do not decode what was written to measure its error
    #[arg(long)]
    pub no_error_statistics: bool,
    /// Where plugins run
    #[arg(long, value_enum, default_value_t = IsolationArg::None)]
    pub isolation: IsolationArg,
    /// What to do when a scheme cannot take a tensor's shape
    #[arg(long, value_enum, default_value_t = OnFallback::Warn)]
    pub on_fallback: OnFallback,
    /// Copy tensors of other modalities (vision, audio) unchanged
    #[arg(long)]
    pub pass_through: bool,
    /// Accept a folder without tokenizer files; the output has no tokenizer either
    #[arg(long)]
    pub without_tokenizer: bool,
    /// Pre-tokenizer of a byte-level BPE, where it is not recognised
    #[arg(long, value_name = "NAME")]
    pub pre_tokenizer: Option<String>,
    /// Architecture of a folder whose class is not known: a GGUF name, or a known class that is built like it
    #[arg(long, value_name = "NAME")]
    pub architecture: Option<String>,
}

/// Where plugins run.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum IsolationArg {
    /// In this process
    None,
    /// In a worker process
    Process,
}

/// What to do when a scheme cannot take a tensor's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnFallback {
    /// Store it as f16 and say so
    Warn,
    /// Stop
    Error,
}

/// `kbit inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Checkpoint or packed file
    #[arg(value_hint = ValueHint::AnyPath)]
    pub file: PathBuf,
    /// List every tensor
    #[arg(long)]
    pub tensors: bool,
    /// List all metadata
    #[arg(long)]
    pub metadata: bool,
}

/// `kbit diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// First checkpoint
    #[arg(value_hint = ValueHint::AnyPath)]
    pub a: PathBuf,
    /// Second checkpoint
    #[arg(value_hint = ValueHint::AnyPath)]
    pub b: PathBuf,
}

/// `kbit verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Checkpoint or packed file
    #[arg(value_hint = ValueHint::AnyPath)]
    pub file: PathBuf,
}

/// Metrics of `kbit eval`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum MetricArg {
    /// Perplexity, as llama.cpp defines it
    Perplexity,
    /// KL divergence from a reference model, and how often both agree on the likeliest token
    Kl,
}

/// Computing modes of the engine.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ModeArg {
    /// Weights decoded to f32, activations f32
    F32,
}

/// `kbit eval`.
#[derive(Debug, Args)]
pub struct Eval {
    /// GGUF file or Hugging Face folder
    #[arg(value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// What to measure
    #[arg(long, value_enum)]
    pub metric: MetricArg,
    /// UTF-8 text
    #[arg(long, value_name = "F", value_hint = ValueHint::FilePath)]
    pub text: PathBuf,
    /// Unquantized model, for `kl`
    #[arg(long, value_name = "BASE", value_hint = ValueHint::AnyPath, required_if_eq("metric", "kl"))]
    pub reference: Option<PathBuf>,
    /// Tokens in a window
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub context: u32,
    /// Number of windows [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunks: Option<u32>,
    /// Arithmetic of the engine
    #[arg(long, value_enum, default_value_t = ModeArg::F32)]
    pub mode: ModeArg,
}

/// `kbit logits`.
#[derive(Debug, Args)]
pub struct Logits {
    /// GGUF file or Hugging Face folder
    #[arg(value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// Token ids
    #[arg(long, value_name = "IDS", value_delimiter = ',', required = true, num_args = 1..)]
    pub tokens: Vec<u32>,
    /// safetensors file to write: `logits`, f32, [T, vocab]
    #[arg(long, value_name = "F", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
}

/// `kbit tokenize`.
#[derive(Debug, Args)]
pub struct Tokenize {
    /// GGUF file or Hugging Face folder
    #[arg(value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// UTF-8 text [default: stdin]
    #[arg(long, value_name = "F", value_hint = ValueHint::FilePath)]
    pub text: Option<PathBuf>,
    /// Read `<|...|>` and the like as special tokens
    #[arg(long)]
    pub parse_special: bool,
    /// Leave out the tokens that the model wants at the start or end
    #[arg(long)]
    pub no_special: bool,
}

/// `kbit generate`.
#[derive(Debug, Args)]
pub struct Generate {
    /// GGUF file or Hugging Face folder
    #[arg(value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// Text to continue
    #[arg(long, value_name = "P")]
    pub prompt: String,
    /// Tokens to generate
    #[arg(short, long = "count", default_value_t = 64)]
    pub n: u32,
    /// Sample among this many likeliest tokens; 1 takes the likeliest
    #[arg(long, value_name = "K", default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..))]
    pub top_k: u32,
    /// Temperature
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    pub temperature: f32,
    /// Seed
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
}

/// `kbit fit`.
#[derive(Debug, Args)]
pub struct Fit {
    /// results.jsonl files
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    pub results: Vec<PathBuf>,
    /// Only this law; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub law: Vec<String>,
    /// Resamples for intervals
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub bootstrap: u32,
    /// Seed of the resampling
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// `kbit recommend`.
#[derive(Debug, Args)]
pub struct Recommend {
    /// results.jsonl files
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    pub results: Vec<PathBuf>,
    /// Memory for the weights, as 6GiB, 700MiB, 2GB or a number of bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub budget: u64,
}

/// `kbit report`.
#[derive(Debug, Args)]
pub struct Report {
    /// Output folder of a run
    #[arg(value_hint = ValueHint::DirPath)]
    pub run: PathBuf,
    /// Formats
    #[arg(long, value_delimiter = ',', default_value = "html,md,csv,json", value_parser = ["html", "md", "csv", "json"])]
    pub format: Vec<String>,
}

/// `kbit plugin`.
#[derive(Debug, Subcommand)]
pub enum Plugin {
    /// List schemes and where they come from
    List,
    /// Show a scheme: parameters with defaults, ranges and docs
    #[command(after_help = "Example:\n  kbit plugin show int")]
    Show {
        /// Scheme name
        scheme: String,
    },
    /// Run the conformance kit on a plugin file
    #[command(after_help = "Example:\n  kbit plugin check build/libmy_scheme.so")]
    Check {
        /// Shared library
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
        /// Only cases whose name contains this
        #[arg(long)]
        case: Option<String>,
    },
    /// Write a new plugin project that builds and passes `check`
    #[command(after_help = "Example:\n  kbit plugin new my-scheme --lang c")]
    New {
        /// Name of the scheme: letters, digits and dashes
        name: String,
        /// Language
        #[arg(long, value_enum, default_value_t = LangArg::Rust)]
        lang: LangArg,
        /// Folder to write [default: ./NAME]
        #[arg(long, value_hint = ValueHint::DirPath)]
        out: Option<PathBuf>,
    },
    /// Trust a plugin file: show what it is and write its hash to the lock
    #[command(after_help = "Example:\n  kbit plugin add build/libmy_scheme.so")]
    Add {
        /// Shared library
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
}

/// Languages of new plugin projects.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LangArg {
    /// Rust, through the kbit-plugin crate
    Rust,
    /// C99
    C,
    /// C++11
    Cpp,
}

/// `kbit config`.
#[derive(Debug, Subcommand)]
pub enum Config {
    /// Print the JSON Schema of configurations, for editors
    Schema,
    /// Check a configuration without running it
    Check {
        /// YAML configuration
        #[arg(value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
}

fn parse_rule(text: &str) -> Result<(regex::Regex, String), String> {
    // The scheme itself may hold `=`: the pattern ends at the first one that a scheme name follows.
    let (pattern, scheme) = text.split_once('=').ok_or("write REGEX=SCHEME, as token_embd=ggml:q8_0")?;
    let pattern = regex::Regex::new(pattern).map_err(|error| error.to_string())?;
    Ok((pattern, scheme.to_owned()))
}

/// Reads `6GiB`, `1.5GB`, `700MiB`, `4096`.
fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, f64); 11] = [
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("TiB", 1_099_511_627_776.0),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
        ("G", 1_073_741_824.0),
        ("M", 1_048_576.0),
        ("B", 1.0),
    ];
    let trimmed = text.trim();
    let (number, factor) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((trimmed.strip_suffix(unit)?, *factor)))
        .unwrap_or((trimmed, 1.0));
    match number.trim().parse::<f64>() {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in range")]
        Ok(value) if value > 0.0 && value * factor < 9e18 => Ok((value * factor) as u64),
        _ => Err("write a size such as 6GiB, 700MiB, 2GB or a number of bytes".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_declarations_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        for (text, bytes) in [("6GiB", 6 << 30), ("2GB", 2_000_000_000), ("1.5 MiB", 3 << 19), ("42", 42)] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        assert!(parse_size("-1").is_err() && parse_size("lots").is_err() && parse_size("1e30").is_err());
    }

    #[test]
    fn a_rule_keeps_the_parameters_of_its_scheme() {
        let (pattern, scheme) = parse_rule("embd=int:bits=8,block=32").unwrap();
        assert_eq!((pattern.as_str(), scheme.as_str()), ("embd", "int:bits=8,block=32"));
    }
}
