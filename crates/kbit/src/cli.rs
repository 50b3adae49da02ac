//! The command line, declared once: parsing, `--help`, completions and the reference page read these types.

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use kbit_engine::{CacheTypes, Mode};
use kbit_pipeline::edit::SetMetadata;
use kbit_pipeline::planner::{Target, parse_size};
use kbit_types::GgmlType;
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
        after_help = "Examples:\n  kbit convert assets/family/s3 s3-q4.gguf --scheme q4_k_m\n  kbit convert model.gguf out.gguf --scheme int:bits=4,block=64 --map 'token_embd=ggml:q8_0'\n  kbit convert model.gguf out.gguf --scheme iq2_xs --imatrix model.imatrix.gguf\n  kbit convert model-00001-of-00003.gguf out.gguf --scheme q8_0 --split-size 4G"
    )]
    Convert(Convert),
    /// Plan the best file of a size, or the smallest of a quality: a scheme for each matrix
    ///
    /// What each scheme does to each matrix is computed, what that costs is measured on the text with one matrix quantized at a time,
    /// and an exact knapsack chooses. The choice is measured beside the best of llama-quantize's file types, and the better one is the
    /// plan. `kbit convert --plan` writes the file. Measurements are kept: another target needs few new ones.
    #[command(
        after_help = "Examples:\n  kbit plan assets/family/s3 --target bpw=4.5 --text assets/text/calibration.txt -o s3.plan.yaml\n  kbit plan model.gguf --target size=3.1GiB --text wiki.txt --imatrix model.imatrix.gguf -o model.plan.yaml\n  kbit plan model.gguf --target max_ppl_increase=2% --text wiki.txt --schemes q4_k,q6_k,int:bits=8 --map 'token_embd=q8_0'"
    )]
    Plan(Plan),
    /// Show what a checkpoint, packed file or importance matrix holds
    #[command(
        after_help = "Examples:\n  kbit inspect model.gguf --tensors\n  kbit inspect assets/family/s0 --metadata --json\n  kbit inspect model.imatrix.gguf --tensors"
    )]
    Inspect(Inspect),
    /// Compare two checkpoints: metadata, tensors, bytes
    #[command(after_help = "Example:\n  kbit diff a.gguf b.gguf")]
    Diff(Diff),
    /// Check a file: structure, checksums, numbers that are not finite
    #[command(after_help = "Example:\n  kbit verify model.gguf")]
    Verify(Verify),
    /// Gather an importance matrix: how large the inputs of each matrix are, for schemes that take care of the larger ones
    ///
    /// The file has llama.cpp's format: `llama-quantize --imatrix` and `kbit convert --imatrix` read it. Without MODEL, matrices of
    /// one model that were gathered on several texts are merged. An interrupted gathering goes on when it is run again.
    #[command(
        after_help = "Examples:\n  kbit calibrate model.gguf --text wiki.txt -o model.imatrix.gguf\n  kbit calibrate assets/family/s3 --text a.txt --text b.txt --context 256 --chunks 50 -o s3.imatrix.gguf\n  kbit calibrate --merge a.imatrix.gguf --merge b.imatrix.gguf -o both.imatrix.gguf"
    )]
    Calibrate(Calibrate),
    /// Measure quality on a text
    #[command(
        after_help = "Examples:\n  kbit eval model.gguf --metric perplexity --text wiki.txt --chunks 20\n  kbit eval q4.gguf --metric kl --reference model.gguf --text wiki.txt --json\n  kbit eval model.gguf --metric information --text wiki.txt --baseline-text books.txt --generate"
    )]
    Eval(Eval),
    /// Write the logits of a token sequence as safetensors
    #[command(after_help = "Example:\n  kbit logits model.gguf --tokens 5,17,4 --out logits.safetensors")]
    Logits(Logits),
    /// Turn text into tokens
    #[command(after_help = "Example:\n  echo 'Hello world' | kbit tokenize assets/family/s0")]
    Tokenize(Tokenize),
    /// Continue a text
    #[command(
        after_help = "Examples:\n  kbit generate assets/family/s3 --prompt 'The river' -n 40 --top-k 1\n  kbit generate model.gguf --prompt-file story.txt --temperature 0.7 --top-p 0.9 --seed 7\n  kbit generate model.gguf --prompt 'Q: What is a tensor?' --stop 'Q:' --json"
    )]
    Generate(Generate),
    /// Talk with a model, a line a turn, in the form of its chat template
    ///
    /// A line is a message, or a command: /reset forgets the conversation, /system TEXT begins again with other instructions
    /// (without TEXT with none), /quit ends it, as the end of the input does.
    #[command(
        after_help = "Examples:\n  kbit chat model.gguf\n  kbit chat model.gguf --system 'Answer in one sentence.' --temperature 0.5\n  echo 'Who are you?' | kbit chat assets/family/s3 --template plain -n 40 --json"
    )]
    Chat(Chat),
    /// Measure the speed of a model beside what the machine can do
    #[command(
        after_help = "Examples:\n  kbit bench model.gguf --threads 2\n  kbit bench assets/family/s0 --prompt 128 --generate 16 --repetitions 3 --json"
    )]
    Bench(Bench),
    /// Fit laws of quality against bits and size to measurements
    #[command(
        after_help = "Examples:\n  kbit fit kbit-runs/quickstart/results.jsonl\n  kbit fit configs/pythia.yaml --law chinchilla"
    )]
    Fit(Fit),
    /// Say which of several models and schemes is better, or that it cannot be told, by paired tests
    ///
    /// Without names, all pairs that differ in model or scheme alone; with one, that one against all others; with several, those.
    /// A name is a model, a scheme as results call it, or MODEL/SCHEME. Differences are taken window by window, or document by document.
    #[command(
        after_help = "Examples:\n  kbit compare kbit-runs/quickstart ggml:q4_0 int:bits=4\n  kbit compare kbit-runs/quickstart s1/none --json\n  kbit compare kbit-runs/monday --with kbit-runs/tuesday --metric kl_divergence"
    )]
    Compare(Compare),
    /// Choose a model and a bit width for a budget, from measurements, and say how sure that is
    ///
    /// The choice has the lowest loss of the runs within the budget; where only quality is limited, it is the smallest file.
    #[command(
        after_help = "Examples:\n  kbit recommend kbit-runs/quickstart/results.jsonl --budget 2MiB\n  kbit recommend kbit-runs/quickstart/results.jsonl --bits-per-weight 5 --tokens-per-second 20\n  kbit recommend kbit-runs/quickstart/results.jsonl --perplexity-increase 5%"
    )]
    Recommend(Recommend),
    /// Make the report of one or several runs anew
    #[command(
        after_help = "Examples:\n  kbit report kbit-runs/quickstart\n  kbit report kbit-runs/quickstart --format html,svg,cards\n  kbit report kbit-runs/monday kbit-runs/tuesday --out comparison"
    )]
    Report(Report),
    /// Write a GGUF file as a Hugging Face folder: safetensors, config.json, tokenizer
    #[command(
        after_help = "Examples:\n  kbit export model.gguf model-hf\n  kbit export model-q4_0.gguf decoded --dtype bf16"
    )]
    Export(Export),
    /// Split, merge, edit and hash GGUF files
    #[command(subcommand)]
    Gguf(Gguf),
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
    /// Scheme for all matrices: `name` or `name:key=value,...`; or a mix of types: `q4_k_m` and llama-quantize's other file
    /// types, `mix:FILE` for one's own
    #[arg(long, value_name = "S", required_unless_present = "plan")]
    pub scheme: Option<String>,
    /// Scheme of each matrix from a plan that `kbit plan` made for this model
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["scheme", "map", "output_type", "embedding_type", "pure", "leave_output", "prune_layers"])]
    pub plan: Option<PathBuf>,
    /// Scheme for tensors whose GGUF name matches: as `--scheme`, or a ggml type; the first match wins
    #[arg(long, value_name = "REGEX=S", value_parser = parse_rule)]
    pub map: Vec<(regex::Regex, String)>,
    /// Mixes: the type of the output matrix
    #[arg(long, value_name = "TYPE", value_parser = parse_type)]
    pub output_type: Option<GgmlType>,
    /// Mixes: the type of the token embeddings
    #[arg(long, value_name = "TYPE", value_parser = parse_type)]
    pub embedding_type: Option<GgmlType>,
    /// Mixes: the mix's own type for all matrices
    #[arg(long)]
    pub pure: bool,
    /// Mixes: leave the output matrix as it is
    #[arg(long)]
    pub leave_output: bool,
    /// Set metadata; types are int, float, bool, str, u8 to i64, f32, f64
    #[arg(long, value_name = "KEY=TYPE:VALUE")]
    pub set_metadata: Vec<SetMetadata>,
    /// Layers to leave out, by number from 0; those behind move up
    #[arg(long, value_name = "LAYERS", value_delimiter = ',')]
    pub prune_layers: Vec<u64>,
    /// Quantize tensors that are quantized already; the new error comes on top of the old one
    #[arg(long)]
    pub allow_requantize: bool,
    /// Importance matrix as llama-imatrix writes it (GGUF or .dat), for the schemes that use one
    #[arg(long, value_name = "F", value_hint = ValueHint::FilePath)]
    pub imatrix: Option<PathBuf>,
    /// What to do where matrices or experts have no importance; embedding and output may lack it
    #[arg(long, value_enum, default_value_t = OnMissingImportance::Warn)]
    pub on_missing_importance: OnMissingImportance,
    /// Importance of experts without data
    #[arg(long, value_enum, default_value_t = EmptyExpertsArg::Ones)]
    pub empty_experts: EmptyExpertsArg,
    /// Write shards OUT-00001-of-0000N.gguf with tensors of at most so many bytes each: 4G, 500M (decimal), 2GiB
    #[arg(long, value_name = "SIZE", value_parser = kbit_formats::gguf::shards::parse_split_size)]
    pub split_size: Option<u64>,
    /// Write the same shards as the GGUF source has
    #[arg(long, conflicts_with = "split_size")]
    pub keep_split: bool,
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

/// `kbit plan`.
#[derive(Debug, Args)]
pub struct Plan {
    /// Hugging Face folder or GGUF file, unquantized
    #[arg(value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// What to reach: size=3.1GiB (of the file), bpw=4.5 (of all tensors), max_kld=0.01 (nats) or max_ppl_increase=2%
    #[arg(long, value_name = "TARGET")]
    pub target: Target,
    /// UTF-8 text to measure on
    #[arg(long, value_name = "F", value_hint = ValueHint::FilePath)]
    pub text: PathBuf,
    /// Schemes to choose from, with commas between them: `ggml` for ggml's types, which llama.cpp runs; schemes and ggml types as --map has them
    #[arg(long, value_name = "NAMES", default_value = "ggml")]
    pub schemes: String,
    /// Scheme for tensors whose GGUF name matches, instead of a chosen one; the first match wins
    #[arg(long, value_name = "REGEX=S", value_parser = parse_rule)]
    pub map: Vec<(regex::Regex, String)>,
    /// One scheme for the queries, keys and values of a layer, and one for its gate and up: for readers that fuse them
    #[arg(long)]
    pub agree: bool,
    /// Importance matrix, for the schemes that use one and for the errors of weights
    #[arg(long, value_name = "F", value_hint = ValueHint::FilePath)]
    pub imatrix: Option<PathBuf>,
    /// Tokens in a window [default: 512, or what the model takes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(3..=1 << 20))]
    pub context: Option<u32>,
    /// Number of windows [default: as many as score about 4096 tokens]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunks: Option<u32>,
    /// Do not measure the choice beside the best mixes
    #[arg(long)]
    pub no_verify: bool,
    /// Plan for a file without `kbit.*` metadata
    #[arg(long)]
    pub no_provenance: bool,
    /// Quantize tensors that are quantized already; the new error comes on top of the old one
    #[arg(long)]
    pub allow_requantize: bool,
    /// Pre-tokenizer of a byte-level BPE, where it is not recognised
    #[arg(long, value_name = "NAME")]
    pub pre_tokenizer: Option<String>,
    /// Architecture of a folder whose class is not known: a GGUF name, or a known class that is built like it
    #[arg(long, value_name = "NAME")]
    pub architecture: Option<String>,
    /// Plan file to write
    #[arg(long, short, value_name = "PLAN.yaml", value_hint = ValueHint::FilePath)]
    pub out: Option<PathBuf>,
    /// Write over a file of that name
    #[arg(long)]
    pub overwrite: bool,
    /// Folder of measurements, which later plans take over
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, default_value = "kbit-plans")]
    pub work: PathBuf,
    /// List what every matrix gets
    #[arg(long)]
    pub tensors: bool,
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
    /// Store it otherwise and say so
    Warn,
    /// Stop
    Error,
}

/// What to do where the importance matrix has no data.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum OnMissingImportance {
    /// Quantize without and say so
    Warn,
    /// Stop before anything is written
    Error,
}

/// Importance of experts without data.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum EmptyExpertsArg {
    /// 1 for every column, as llama-quantize has it
    Ones,
    /// The mean of the experts that have data
    Mean,
}

/// `kbit inspect`.
#[derive(Debug, Args)]
pub struct Inspect {
    /// Checkpoint, packed file or importance matrix
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

/// `kbit calibrate`.
#[derive(Debug, Args)]
pub struct Calibrate {
    /// GGUF file or Hugging Face folder, unquantized
    #[arg(value_hint = ValueHint::AnyPath, required_unless_present = "merge", requires = "text")]
    pub model: Option<PathBuf>,
    /// UTF-8 text; several are gathered as one
    #[arg(long, value_name = "F", value_hint = ValueHint::FilePath, requires = "model")]
    pub text: Vec<PathBuf>,
    /// File to write
    #[arg(long, short, value_name = "OUT.gguf", value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
    /// Merge this importance matrix with the others that are given so, instead of gathering
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["model", "text"])]
    pub merge: Vec<PathBuf>,
    /// Tokens in a window
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub context: u32,
    /// Number of windows of each text [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunks: Option<u32>,
    /// Gather for the output matrix too
    #[arg(long)]
    pub output_matrix: bool,
    /// Gather second moments of the inputs too, as `gptq` needs them: the file then has cols^2 / 2 numbers for each input
    #[arg(long, requires = "model", conflicts_with = "output_matrix")]
    pub second_moments: bool,
    /// Write over a file of that name
    #[arg(long)]
    pub overwrite: bool,
    /// Read each block of the model whenever it is used: for models larger than memory
    #[arg(long)]
    pub stream: bool,
    #[command(flatten)]
    pub computing: Computing,
}

/// Metrics of `kbit eval`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum MetricArg {
    /// Perplexity, as llama.cpp defines it
    Perplexity,
    /// KL divergence from a reference model, and how often both agree on the likeliest token
    Kl,
    /// A task, scored as lm-evaluation-harness scores it
    Task,
    /// Bits that the model knows of the text beyond counts of tokens and pairs in a baseline text
    Information,
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
    /// UTF-8 text, for `perplexity`, `kl` and `information`
    #[arg(long, value_name = "F", value_hint = ValueHint::FilePath, required_if_eq_any([("metric", "perplexity"), ("metric", "kl"), ("metric", "information")]))]
    pub text: Option<PathBuf>,
    /// Task file, for `task`
    #[arg(long, value_name = "FILE.yaml", value_hint = ValueHint::FilePath, required_if_eq("metric", "task"))]
    pub task: Option<PathBuf>,
    /// Documents of the task, JSONL [default: the file that the task names]
    #[arg(long, value_name = "FILE.jsonl", value_hint = ValueHint::FilePath, requires = "task")]
    pub data: Option<PathBuf>,
    /// Number of documents, from the first on [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), requires = "task")]
    pub limit: Option<u32>,
    /// Answered examples before each question [default: as many as the task says]
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(0..=1000), requires = "task")]
    pub few_shot: Option<u32>,
    /// Where to write the answer to each document, JSON lines
    #[arg(long, value_name = "OUT.jsonl", value_hint = ValueHint::FilePath, requires = "task")]
    pub items: Option<PathBuf>,
    /// Unquantized model, for `kl`
    #[arg(long, value_name = "BASE", value_hint = ValueHint::AnyPath, required_if_eq("metric", "kl"))]
    pub reference: Option<PathBuf>,
    /// Another text, for `information`, whose tokens and pairs are counted
    #[arg(long, value_name = "F", value_hint = ValueHint::FilePath, required_if_eq("metric", "information"))]
    pub baseline_text: Option<PathBuf>,
    /// For `information`: have the model itself write what is scored of each window, and measure that too
    #[arg(long, requires = "baseline_text", conflicts_with = "stride")]
    pub generate: bool,
    /// Temperature of what is generated; 0 takes the likeliest token
    #[arg(
        long,
        value_name = "T",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        requires = "generate"
    )]
    pub temperature: f32,
    /// Choose among this many likeliest tokens; 0 for all
    #[arg(long, value_name = "K", default_value_t = 0, requires = "generate")]
    pub top_k: u32,
    /// Choose among the likeliest tokens that have this share of probability together; 1 for all
    #[arg(
        long,
        value_name = "P",
        default_value_t = 1.0,
        allow_negative_numbers = true,
        requires = "generate"
    )]
    pub top_p: f32,
    /// Seed of what is generated; window N draws with the seed + N
    #[arg(long, value_name = "S", default_value_t = 1, requires = "generate")]
    pub seed: u64,
    /// Tokens in a window
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub context: u32,
    /// Tokens from one window to the next, below the context; the last N of each window are scored [default: windows do not overlap]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..1 << 20))]
    pub stride: Option<u32>,
    /// Number of windows [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub chunks: Option<u32>,
    /// Read each block of the model whenever it is used: for `perplexity` and `kl` of models larger than memory
    #[arg(long)]
    pub stream: bool,
    #[command(flatten)]
    pub computing: Computing,
}

/// How the engine computes.
#[derive(Clone, Copy, Debug, Args)]
pub struct Computing {
    /// Arithmetic of the engine: f32, bf16, int8 (llama.cpp's) or act:K (activations of K bits)
    #[arg(long, value_name = "MODE", default_value_t = Mode::F32)]
    pub mode: Mode,
    /// How the KV cache keeps keys and values: f32, f16, q8 or q4; or one for keys and one for values, as q8,f16
    #[arg(long, value_name = "TYPE", default_value_t)]
    pub cache_type: CacheTypes,
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
    #[command(flatten)]
    pub computing: Computing,
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
#[command(group = clap::ArgGroup::new("text to continue").required(true).args(["prompt", "prompt_file"]))]
pub struct Generate {
    /// GGUF file or Hugging Face folder
    #[arg(value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// Text to continue; an empty one begins a text, where the model has a token for that
    #[arg(long, value_name = "P")]
    pub prompt: Option<String>,
    /// File with the text to continue, UTF-8; a line break at its end is left out
    #[arg(long, value_name = "F", value_hint = ValueHint::FilePath)]
    pub prompt_file: Option<PathBuf>,
    /// Tokens to generate, at most
    #[arg(short, long = "count", default_value_t = 64)]
    pub n: u32,
    /// How the text goes on
    #[command(flatten)]
    pub continuation: Continuation,
}

/// `kbit chat`.
#[derive(Debug, Args)]
pub struct Chat {
    /// GGUF file or Hugging Face folder
    #[arg(value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// Instructions that the conversation begins with
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Tokens of a reply, at most [default: as many as fit]
    #[arg(short, long = "count", value_parser = clap::value_parser!(u32).range(1..))]
    pub n: Option<u32>,
    /// Chat template instead of the model's: another of the model's own by its name, or chatml, llama2, llama3, mistral, gemma,
    /// phi3, zephyr, vicuna, alpaca, plain
    #[arg(long, value_name = "NAME", conflicts_with = "template_file")]
    pub template: Option<String>,
    /// Chat template instead of the model's: a file in Jinja
    #[arg(long, value_name = "F", value_hint = ValueHint::FilePath)]
    pub template_file: Option<PathBuf>,
    /// Variable for the template, as enable_thinking=false
    #[arg(long, value_name = "KEY=JSON", value_parser = parse_variable)]
    pub template_var: Vec<(String, serde_json::Value)>,
    /// How the text goes on
    #[command(flatten)]
    pub continuation: Continuation,
}

/// Options of what continues texts. The steps are in the order in which llama.cpp takes them.
#[derive(Debug, Args)]
pub struct Continuation {
    /// Stop before this text; may be given more than once
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// Tokens of prompt and continuation together [default: as many as the model was trained for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub context: Option<u32>,
    /// Divide positive logits of recent tokens by this, multiply negative ones; 1 for none
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true, help_heading = SAMPLING)]
    pub repeat_penalty: f32,
    /// Take this from the logits of recent tokens
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, help_heading = SAMPLING)]
    pub presence_penalty: f32,
    /// Take this from the logits of recent tokens for each time that they occur
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true, help_heading = SAMPLING)]
    pub frequency_penalty: f32,
    /// How many tokens back are recent, the prompt's included; -1 for all, 0 for none
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true, help_heading = SAMPLING, value_parser = clap::value_parser!(i32).range(-1..))]
    pub repeat_last_n: i32,
    /// Choose among this many likeliest tokens; 0 for all, 1 takes the likeliest
    #[arg(long, value_name = "K", default_value_t = 40, help_heading = SAMPLING)]
    pub top_k: u32,
    /// Choose among the likeliest tokens that have this share of probability together; 1 for all
    #[arg(long, value_name = "P", default_value_t = 0.95, allow_negative_numbers = true, help_heading = SAMPLING)]
    pub top_p: f32,
    /// Choose among tokens at least this many times as likely as the likeliest; 0 for all
    #[arg(long, value_name = "P", default_value_t = 0.05, allow_negative_numbers = true, help_heading = SAMPLING)]
    pub min_p: f32,
    /// Temperature; 0 takes the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8, allow_negative_numbers = true, help_heading = SAMPLING)]
    pub temperature: f32,
    /// Seed: the same one gives the same text
    #[arg(long, value_name = "S", default_value_t = 1, help_heading = SAMPLING)]
    pub seed: u64,
    #[command(flatten)]
    pub computing: Computing,
}

/// Heading of the options that choose tokens.
const SAMPLING: &str = "Choice of tokens, step by step";

/// `kbit bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// GGUF file or Hugging Face folder
    #[arg(value_hint = ValueHint::AnyPath)]
    pub model: PathBuf,
    /// Tokens of the prompt; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub prompt: u32,
    /// Tokens to generate one by one; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(0..=1 << 20))]
    pub generate: u32,
    /// Repetitions, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repetitions: u32,
    #[command(flatten)]
    pub computing: Computing,
}

/// `kbit fit`.
#[derive(Debug, Args)]
pub struct Fit {
    /// results.jsonl files, or YAML files that describe tables of other figures (CSV)
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

/// `kbit compare`.
#[derive(Debug, Args)]
pub struct Compare {
    /// Folder of a run, or its items.jsonl
    #[arg(value_hint = ValueHint::AnyPath)]
    pub results: PathBuf,
    /// What to compare: MODEL, SCHEME or MODEL/SCHEME; `none` is the unquantized model
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    /// Another run; may be given more than once
    #[arg(long, value_name = "RUN", value_hint = ValueHint::AnyPath)]
    pub with: Vec<PathBuf>,
    /// What to compare in, as items.jsonl calls it
    #[arg(long, value_name = "NAME", default_value = "nll")]
    pub metric: String,
    /// A difference counts where p, corrected for the number of pairs, is below this
    #[arg(long, value_name = "P", default_value_t = 0.05, value_parser = parse_share)]
    pub alpha: f64,
    /// Draws of the bootstrap and of the permutation test
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    pub resamples: u32,
    /// Seed of the draws
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
}

/// `kbit recommend`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("limit").required(true).multiple(true).args(["budget", "bits_per_weight", "tokens_per_second", "kl_divergence", "perplexity_increase"]))]
pub struct Recommend {
    /// results.jsonl files
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    pub results: Vec<PathBuf>,
    /// Memory for the weights, as 6GiB, 700MiB, 2GB or a number of bytes
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub budget: Option<u64>,
    /// True bits a weight of the file, at most
    #[arg(long, value_name = "BITS", value_parser = parse_positive)]
    pub bits_per_weight: Option<f64>,
    /// Tokens a second, at least: the fastest step that costs.jsonl beside the results has of it
    #[arg(long, value_name = "N", value_parser = parse_positive)]
    pub tokens_per_second: Option<f64>,
    /// KL divergence from the unquantized model, at most, in nats
    #[arg(long, value_name = "NATS", value_parser = parse_positive)]
    pub kl_divergence: Option<f64>,
    /// Perplexity above that of the unquantized model, at most, as 1% or 0.01
    #[arg(long, value_name = "SHARE", value_parser = parse_increase)]
    pub perplexity_increase: Option<f64>,
    /// Draws of the text's windows that say how sure the choice is
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    pub resamples: u32,
    /// Seed of the draws
    #[arg(long, value_name = "S", default_value_t = 1)]
    pub seed: u64,
}

/// `kbit report`.
#[derive(Debug, Args)]
pub struct Report {
    /// Output folders of runs; of several, one report compares them
    #[arg(value_hint = ValueHint::DirPath, required = true)]
    pub runs: Vec<PathBuf>,
    /// Formats: html is one file that works offline; csv also writes every table to report/tables, svg every plot to report/plots,
    /// cards a model card beside each packed file
    #[arg(long, value_delimiter = ',', default_value = "html,md,csv,json,svg,cards", value_parser = ["html", "md", "csv", "json", "svg", "cards"])]
    pub format: Vec<String>,
    /// Folder for the report [default: the run's own; of several runs, one beside the first]
    #[arg(long, value_hint = ValueHint::DirPath)]
    pub out: Option<PathBuf>,
}

/// `kbit export`.
#[derive(Debug, Args)]
pub struct Export {
    /// GGUF file, or the first of its shards
    #[arg(value_hint = ValueHint::FilePath)]
    pub source: PathBuf,
    /// Folder to write; it must not exist
    #[arg(value_hint = ValueHint::DirPath)]
    pub out: PathBuf,
    /// Element type of the tensors
    #[arg(long, value_enum, default_value_t = DtypeArg::Keep)]
    pub dtype: DtypeArg,
    /// Leave the tokenizer's files out, as where tokenizer.json cannot say what the GGUF file has
    #[arg(long)]
    pub without_tokenizer: bool,
}

/// Element types of an export.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum DtypeArg {
    /// bf16 or f16 where all matrices have that type, else f32
    Keep,
    /// Single precision: exactly what quantized tensors decode to
    F32,
    /// Half precision, rounded to nearest even
    F16,
    /// bfloat16, rounded to nearest even
    Bf16,
}

/// `kbit gguf`.
#[derive(Debug, Subcommand)]
pub enum Gguf {
    /// Write a file as shards, as llama-gguf-split does
    #[command(
        after_help = "Examples:\n  kbit gguf split model.gguf shards/model --max-size 4G\n  kbit gguf split model.gguf shards/model --max-tensors 128 --dry-run"
    )]
    Split(GgufSplit),
    /// Write shards as one file, as llama-gguf-split does
    #[command(after_help = "Example:\n  kbit gguf merge shards/model-00001-of-00003.gguf model.gguf")]
    Merge(GgufMerge),
    /// Change metadata: in place where the header keeps its size, else by writing the file anew; it says which
    #[command(
        after_help = "Examples:\n  kbit gguf set model.gguf general.name='str:My model'\n  kbit gguf set model.gguf llama.context_length=u32:8192 --remove tokenizer.chat_template"
    )]
    Set(GgufSet),
    /// Print a hash of every tensor
    #[command(
        after_help = "Examples:\n  kbit gguf hash model.gguf\n  kbit gguf hash model.gguf --algorithm xxh64 --json"
    )]
    Hash(GgufHash),
}

/// `kbit gguf split`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("limit").required(true).args(["max_size", "max_tensors"]))]
pub struct GgufSplit {
    /// GGUF file, or the first of other shards
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Path of the shards, without -00001-of-0000N.gguf
    #[arg(value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
    /// Bytes of tensors in a shard: 4G, 500M (decimal), 2GiB; a larger tensor has a shard of its own
    #[arg(long, value_name = "SIZE", value_parser = kbit_formats::gguf::shards::parse_split_size)]
    pub max_size: Option<u64>,
    /// Tensors in a shard
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_tensors: Option<u64>,
    /// Metadata alone in the first shard
    #[arg(long)]
    pub no_tensor_first_split: bool,
    /// Print what would be written and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Replace existing files
    #[arg(long)]
    pub overwrite: bool,
}

/// `kbit gguf merge`.
#[derive(Debug, Args)]
pub struct GgufMerge {
    /// First shard: NAME-00001-of-0000N.gguf
    #[arg(value_hint = ValueHint::FilePath)]
    pub first: PathBuf,
    /// GGUF file to write
    #[arg(value_hint = ValueHint::FilePath)]
    pub out: PathBuf,
    /// Print what would be written and stop
    #[arg(long)]
    pub dry_run: bool,
    /// Replace an existing file
    #[arg(long)]
    pub overwrite: bool,
}

/// `kbit gguf set`.
#[derive(Debug, Args)]
pub struct GgufSet {
    /// GGUF file; of shards, the one whose metadata are to change (all but the first have none of the model)
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Value to give a key; TYPE is u8..u64, i8..i64, f32, f64, bool, str, or a JSON list as [u32]
    #[arg(value_name = "KEY=TYPE:VALUE", value_parser = kbit_formats::gguf::edit::parse_assignment)]
    pub set: Vec<(String, kbit_formats::gguf::Value)>,
    /// Key to remove
    #[arg(long, value_name = "KEY")]
    pub remove: Vec<String>,
}

/// `kbit gguf hash`.
#[derive(Debug, Args)]
pub struct GgufHash {
    /// GGUF file, or the first of its shards
    #[arg(value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// Kind of hash
    #[arg(long, value_enum, default_value_t = HashArg::Sha256)]
    pub algorithm: HashArg,
}

/// Kinds of hashes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum HashArg {
    /// SHA-256, as `kbit verify` compares
    Sha256,
    /// XXH64 with seed 0, as llama-gguf-hash has it
    Xxh64,
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

/// Reads `key=json`; what is no JSON is text.
fn parse_variable(text: &str) -> Result<(String, serde_json::Value), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as enable_thinking=false")?;
    Ok((key.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| value.into())))
}

/// Reads a ggml type by name, in any case.
fn parse_type(text: &str) -> Result<GgmlType, String> {
    let names: Vec<_> = GgmlType::ALL.iter().map(|ty| ty.name()).collect();
    GgmlType::from_name(text).ok_or_else(|| kbit_yaml::suggestion(text, &names))
}

/// Reads a share between 0 and 1.
fn parse_share(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value > 0.0 && value < 1.0 => Ok(value),
        _ => Err("write a number between 0 and 1, as 0.05".to_owned()),
    }
}

/// Reads a number above 0.
fn parse_positive(text: &str) -> Result<f64, String> {
    match text.trim().parse::<f64>() {
        Ok(value) if value > 0.0 && value.is_finite() => Ok(value),
        _ => Err("write a number above 0".to_owned()),
    }
}

/// Reads `1%` or `0.01`.
fn parse_increase(text: &str) -> Result<f64, String> {
    let trimmed = text.trim();
    match trimmed.strip_suffix('%') {
        Some(percent) => Ok(parse_positive(percent)? / 100.0),
        None => parse_positive(trimmed),
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
    fn a_rule_keeps_the_parameters_of_its_scheme() {
        let (pattern, scheme) = parse_rule("embd=int:bits=8,block=32").unwrap();
        assert_eq!((pattern.as_str(), scheme.as_str()), ("embd", "int:bits=8,block=32"));
    }
}
