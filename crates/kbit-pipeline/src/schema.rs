//! The configuration's keys, declared once: checking, the JSON Schema for editors and the reference page all read
//! the tables of this module.

use crate::sensitivity::By;
use kbit_yaml::{Kind, Object, optional, reference_tables, required};
use serde_json::{Value, json};

/// Where plugins run.
pub const ISOLATION: &[&str] = &["none", "process"];
/// What to do when a scheme cannot take a tensor's shape.
pub const ON_FALLBACK: &[&str] = &["warn", "error"];
/// What to do where the importance matrix has no data.
pub const ON_MISSING: &[&str] = &["warn", "error"];
/// Importance of experts without data.
pub const EMPTY_EXPERTS: &[&str] = &["ones", "mean"];
/// Quality metrics.
pub const METRICS: &[&str] =
    &["perplexity", "kl_divergence", "true_token", "flips", "bits_per_token", "bits_per_byte", "information"];
/// Parts of a model whose sensitivity is measured.
pub const PARTS: &[&str] = &[By::Tensors.word(), By::Layers.word(), By::Kinds.word()];
/// Report formats.
pub const FORMATS: &[&str] = &["html", "md", "csv", "json", "svg", "cards"];
/// Computing modes of the engine.
pub const MODES: &[&str] = &[
    "f32",
    "bf16",
    "int8",
    "act:2",
    "act:3",
    "act:4",
    "act:5",
    "act:6",
    "act:7",
    "act:8",
    "act:2:token",
    "act:3:token",
    "act:4:token",
    "act:5:token",
    "act:6:token",
    "act:7:token",
    "act:8:token",
];
/// Types of the engine's KV cache: one for both, or of keys and of values.
pub const CACHE_TYPES: &[&str] = &[
    "f32", "f16", "q8", "q4", "f32,f16", "f32,q8", "f32,q4", "f16,f32", "f16,q8", "f16,q4", "q8,f32",
    "q8,f16", "q8,q4", "q4,f32", "q4,f16", "q4,q8",
];

static MODEL: Object = Object {
    name: "model",
    doc: "A model to quantize: a Hugging Face folder or a GGUF file.",
    keys: &[
        required("path", Kind::Path, "Folder with `config.json` and safetensors, or a GGUF file."),
        optional(
            "name",
            Kind::Text,
            "the file's or folder's name",
            "Name in tables and of the folder for outputs.",
        ),
        optional(
            "pass_through",
            Kind::Bool,
            "false",
            "Copy tensors of other modalities (vision, audio) unchanged instead of refusing the model.",
        ),
        optional(
            "without_tokenizer",
            Kind::Bool,
            "false",
            "Accept a folder without tokenizer files; the outputs have none either and cannot be measured on text.",
        ),
        optional(
            "pre_tokenizer",
            Kind::Text,
            "recognised from `tokenizer.json`",
            "Name of a byte-level BPE's pre-tokenizer, where it is not recognised.",
        ),
        optional(
            "architecture",
            Kind::Text,
            "by the class in `config.json`",
            "Architecture of a folder whose class is not known: a GGUF name, or a known class that is built like it.",
        ),
        optional(
            "set_metadata",
            Kind::Many(&Kind::Text),
            "none",
            "Metadata to set, as `key=type:value` with the types int, float, bool, str, u8 to i64, f32, f64.",
        ),
        optional(
            "prune_layers",
            Kind::Many(&Kind::Int { min: 0, max: 1 << 20 }),
            "none",
            "Layers to leave out, by number from 0; those behind move up.",
        ),
        optional(
            "importance",
            Kind::TextOr("a path", &IMPORTANCE),
            "the configuration's `importance`",
            "Importance matrix of this model.",
        ),
    ],
};

static IMPORTANCE: Object = Object {
    name: "importance",
    doc: "An importance matrix in llama.cpp's GGUF or `.dat` format, for the schemes that use one.",
    keys: &[
        required("path", Kind::Path, "File, as llama-imatrix writes it."),
        optional(
            "on_missing",
            Kind::Choice(ON_MISSING),
            "warn",
            "What to do where matrices (embedding and output aside) or experts have no data: say so, or stop.",
        ),
        optional(
            "empty_experts",
            Kind::Choice(EMPTY_EXPERTS),
            "ones",
            "Importance of experts without data: 1 for every column as llama-quantize has it, or the mean of the other experts.",
        ),
    ],
};

static RULE: Object = Object {
    name: "rule",
    doc: "A scheme for some tensors. The first rule that matches wins.",
    keys: &[
        required("match", Kind::Regex, "Matched anywhere in the tensor's GGUF name, as `token_embd.weight`."),
        required("scheme", Kind::Text, "`name`, `name:key=value,...`, a ggml type, as `q6_k`, or `f32`."),
    ],
};

/// A number, or a list of them for a plan each.
const NUMBERS: Kind = Kind::Many(&Kind::Scalar("a number"));

static TARGET: Object = Object {
    name: "target",
    doc: "What a planned file is to reach: one of these, or a list of values of one for a file each.",
    keys: &[
        optional(
            "size",
            Kind::Many(&Kind::Scalar("a size, as `3.1GiB`")),
            "not limited",
            "Bytes of the file at most.",
        ),
        optional("bpw", NUMBERS, "not limited", "Bits a weight of all tensors at most."),
        optional(
            "max_kld",
            NUMBERS,
            "not limited",
            "KL divergence from the unquantized model at most, nats.",
        ),
        optional(
            "max_ppl_increase",
            Kind::Many(&Kind::Scalar("a share, as `2%` or `0.02`")),
            "not limited",
            "Perplexity over the unquantized model's, less 1, at most.",
        ),
    ],
};

static SCHEME: Object = Object {
    name: "scheme",
    doc: "A quantization scheme with its parameters; a list as a value makes one run for each item. With `target` instead of `scheme`, \
          `kbit plan` chooses a scheme for each matrix.",
    keys: &[
        optional(
            "scheme",
            Kind::Text,
            "none; `scheme` or `target` is needed",
            "Name of the scheme, as `kbit plugin list` shows it, or `name:key=value,...`; a file type of llama-quantize, as `q4_k_m`; `mix:FILE` for a mix of one's own.",
        ),
        optional(
            "params",
            Kind::Parameters,
            "the scheme's defaults",
            "Values of the scheme's parameters; lists expand to a grid.",
        ),
        optional(
            "label",
            Kind::Text,
            "the scheme with its parameters",
            "Name in tables; only where nothing expands.",
        ),
        optional(
            "rules",
            Kind::Many(&Kind::Object(&RULE)),
            "the configuration's `rules`",
            "Other schemes for some tensors.",
        ),
        optional("pure", Kind::Bool, "false", "In a file type or mix: its own type for all matrices."),
        optional(
            "leave_output",
            Kind::Bool,
            "false",
            "In a file type or mix: leave the output matrix as it is.",
        ),
        optional(
            "output_type",
            Kind::Text,
            "by the mix",
            "In a file type or mix: ggml type of the output matrix.",
        ),
        optional(
            "embedding_type",
            Kind::Text,
            "by the mix",
            "In a file type or mix: ggml type of the token embeddings.",
        ),
        optional(
            "isolation",
            Kind::Choice(ISOLATION),
            "the configuration's `isolation`",
            "`process` runs the plugin in a worker process.",
        ),
        optional(
            "target",
            Kind::Object(&TARGET),
            "none; `scheme` or `target` is needed",
            "What the file is to reach; each matrix gets the scheme that the planner chooses.",
        ),
        optional(
            "among",
            Kind::Many(&Kind::Text),
            "ggml",
            "With `target`: schemes to choose from, as rules name them; `ggml` stands for ggml's types.",
        ),
        optional(
            "text",
            Kind::Path,
            "needed with `target`",
            "With `target`: UTF-8 text to calibrate on; better another one than those of `evaluate`.",
        ),
        optional(
            "context",
            Kind::Int { min: 3, max: 1 << 20 },
            "512, or less where the model takes less",
            "With `target`: tokens in a window.",
        ),
        optional(
            "chunks",
            Kind::Int { min: 1, max: 1 << 32 },
            "as many as score about 4096 tokens",
            "With `target`: number of windows.",
        ),
        optional(
            "agree",
            Kind::Bool,
            "false",
            "With `target`: one scheme for the queries, keys and values of a layer, and one for its gate and up.",
        ),
        optional(
            "verify",
            Kind::Bool,
            "true",
            "With `target`: measure the choice beside the best mixes, and take the better one.",
        ),
    ],
};

static EVALUATION: Object = Object {
    name: "evaluation",
    doc: "A text or a task to measure quality on.",
    keys: &[
        optional("text", Kind::Path, "none; `text` or `task` is needed", "UTF-8 text file."),
        optional(
            "task",
            Kind::Path,
            "none; `text` or `task` is needed",
            "Task file, as those in `configs/tasks`.",
        ),
        optional("data", Kind::Path, "the file that the task names", "Documents of a task, JSONL."),
        optional(
            "few_shot",
            Kind::Int { min: 0, max: 1000 },
            "as many as the task says",
            "Answered examples before each question of a task.",
        ),
        optional(
            "limit",
            Kind::Int { min: 1, max: 1 << 32 },
            "all",
            "Number of documents of a task, from the first on.",
        ),
        optional("name", Kind::Text, "the file's name; the task's", "Name in tables."),
        optional(
            "metrics",
            Kind::Many(&Kind::Choice(METRICS)),
            "all; `information` where there is a `baseline_text`",
            "What to measure.",
        ),
        optional(
            "baseline_text",
            Kind::Path,
            "none",
            "UTF-8 text of the same kind as `text`, but another one: what simpler models, which count its tokens, leave unknown of `text` \
             is what `information` compares with.",
        ),
        optional(
            "context",
            Kind::Int { min: 2, max: 1 << 20 },
            "512, or less where the model takes less",
            "Tokens in a window; the second half is scored.",
        ),
        optional(
            "stride",
            Kind::Int { min: 1, max: 1 << 20 },
            "windows that do not overlap",
            "Tokens from one window to the next, below `context`; the last so many of each window are scored.",
        ),
        optional("chunks", Kind::Int { min: 1, max: 1 << 32 }, "all", "Number of windows."),
        optional(
            "mode",
            Kind::Many(&Kind::Choice(MODES)),
            "f32",
            "Arithmetic of the engine; a list measures in each. KL divergence is from the unquantized model in f32.",
        ),
        optional(
            "cache_type",
            Kind::Many(&Kind::Choice(CACHE_TYPES)),
            "f32",
            "How the engine's KV cache keeps keys and values; a list measures with each.",
        ),
        optional(
            "sensitivity",
            Kind::Many(&Kind::Choice(PARTS)),
            "none",
            "Also measure, for each file, the KL divergence of the unquantized model with one part taken from the file: each tensor, \
             each layer, or each kind of tensor in all layers.",
        ),
    ],
};

static LAWS: Object = Object {
    name: "laws",
    doc: "How laws are fitted.",
    keys: &[
        optional(
            "bootstrap",
            Kind::Int { min: 0, max: 100_000 },
            "500",
            "Resamples for intervals; 0 leaves intervals out.",
        ),
        optional("seed", Kind::Int { min: 0, max: i64::MAX }, "1", "Seed of the resampling."),
    ],
};

/// The whole configuration.
pub static CONFIG: Object = Object {
    name: "configuration",
    doc: "One run: models, schemes, evaluation, laws, report.",
    keys: &[
        optional("name", Kind::Text, "the file's name", "Name of the run, the title of the report."),
        optional(
            "output",
            Kind::Path,
            "`kbit-runs/<name>` under the current folder",
            "Folder for everything that the run writes.",
        ),
        required("models", Kind::Many(&Kind::TextOr("a path", &MODEL)), "Models to quantize."),
        required(
            "schemes",
            Kind::Many(&Kind::TextOr("`name` or `name:key=value,...`", &SCHEME)),
            "Schemes to apply to each model.",
        ),
        optional("rules", Kind::Many(&Kind::Object(&RULE)), "none", "Other schemes for some tensors."),
        optional(
            "importance",
            Kind::TextOr("a path", &IMPORTANCE),
            "none",
            "Importance matrix of the models that name none of their own.",
        ),
        optional(
            "evaluate",
            Kind::Many(&Kind::Object(&EVALUATION)),
            "nothing is measured",
            "Texts and tasks to measure quality on.",
        ),
        optional(
            "plugins",
            Kind::Many(&Kind::Path),
            "none",
            "Plugin files to load beside the installed ones.",
        ),
        optional(
            "isolation",
            Kind::Choice(ISOLATION),
            "none",
            "`process` runs every plugin in a worker process: a crash or a hang is one failed file.",
        ),
        optional(
            "timeout_seconds",
            Kind::Int { min: 1, max: 86_400 },
            "60",
            "Longest time for one call of an isolated plugin.",
        ),
        optional(
            "on_fallback",
            Kind::Choice(ON_FALLBACK),
            "warn",
            "What to do when a scheme cannot take a tensor's shape: store it otherwise with a warning that says what it costs, or stop.",
        ),
        optional(
            "allow_requantize",
            Kind::Bool,
            "false",
            "Quantize tensors that are quantized already; the new error comes on top of the old one.",
        ),
        optional(
            "split_size",
            Kind::Text,
            "one file",
            "Write each output in shards with tensors of at most so many bytes: `4G`, `500M` (decimal), `2GiB`.",
        ),
        optional(
            "keep_split",
            Kind::Bool,
            "false",
            "Write outputs in the same shards as their GGUF source has; not beside `split_size`.",
        ),
        optional(
            "error_statistics",
            Kind::Bool,
            "true",
            "Decode what was written and compare it with the source, tensor by tensor.",
        ),
        optional(
            "provenance",
            Kind::Bool,
            "true",
            "Write hashes and the resolved plan into each file; needed by schemes with their own layout.",
        ),
        optional("laws", Kind::Object(&LAWS), "the defaults", "How laws are fitted."),
        optional(
            "report",
            Kind::Many(&Kind::Choice(FORMATS)),
            "html, md, csv, json",
            "Formats of the report.",
        ),
    ],
};

/// JSON Schema (draft 2020-12) of the configuration, for editors.
#[must_use]
pub fn json_schema() -> Value {
    let mut schema = kbit_yaml::json_schema(&CONFIG);
    if let Value::Object(map) = &mut schema {
        map.insert("$schema".into(), json!("https://json-schema.org/draft/2020-12/schema"));
        map.insert("title".into(), json!("kbit configuration"));
    }
    schema
}

/// The reference page of the configuration, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = String::from(
        "# Configuration reference\n\n\
         Generated from the declarations in `crates/kbit-pipeline/src/schema.rs` by `cargo xtask generate`; do not edit.\n\
         `kbit config schema` prints the same as a JSON Schema; `kbit config check FILE` checks a file.\n",
    );
    page.push_str(&reference_tables(&[
        &CONFIG,
        &MODEL,
        &IMPORTANCE,
        &SCHEME,
        &TARGET,
        &RULE,
        &EVALUATION,
        &LAWS,
    ]));
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbit_yaml::{Mistake, Node, Place, check};

    fn mistakes_of(text: &str) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        check(&Node::parse(text).unwrap(), &CONFIG, &mut mistakes);
        mistakes
    }

    #[test]
    fn names_the_nearest_key_for_a_slip() {
        let mistakes = mistakes_of("models: a\nshemes: int\n");
        assert_eq!(mistakes[0].place, Place { line: 2, column: 1 });
        assert!(mistakes[0].help.starts_with("did you mean `schemes`?"), "{}", mistakes[0].help);
        assert!(mistakes[1].message.contains("needs the key `schemes`"));
    }

    #[test]
    fn refuses_values_of_the_wrong_kind_at_their_place() {
        let mistakes =
            mistakes_of("models: a\nschemes:\n  - scheme: int\n    isolation: proces\nprovenance: 3\n");
        assert_eq!((mistakes[0].place.line, mistakes[0].place.column), (4, 16));
        assert!(mistakes[0].help.contains("`process`"));
        assert!(mistakes[1].message.contains("true or false"));
    }

    #[test]
    fn modes_and_cache_types_are_those_of_the_engine() {
        use kbit_engine::{CacheType, CacheTypes, Group, Mode, Rounding};
        let mut modes = vec![Mode::F32, Mode::Bf16, Mode::Int8];
        for group in [Group::Block, Group::Token] {
            modes.extend((2..=8).map(|bits| Mode::Activations(Rounding { bits, group })));
        }
        let names: Vec<String> = modes.iter().map(Mode::to_string).collect();
        assert_eq!(names, MODES);
        let pairs =
            CacheType::ALL.iter().flat_map(|&keys| CacheType::ALL.map(|values| CacheTypes { keys, values }));
        let mut names: Vec<String> = pairs.map(|types| types.to_string()).collect();
        names.sort_by_key(|name| name.contains(','));
        assert_eq!(names, CACHE_TYPES);
    }

    #[test]
    fn refuses_modes_and_cache_types_that_there_are_not() {
        let with =
            |key: &str| mistakes_of(&format!("models: a\nschemes: int\nevaluate: {{text: b, {key}}}\n"));
        assert_eq!(with("mode: int8, cache_type: q8"), []);
        assert_eq!(with("mode: [f32, act:4], cache_type: [f16, 'q8,q4']"), []);
        for (key, known) in
            [("mode: int4", "known: f32, bf16, int8, act:2"), ("cache_type: [q5]", "known: f32, f16, q8, q4")]
        {
            let mistakes = with(key);
            assert!(mistakes[0].help.contains(known), "{mistakes:?}");
        }
    }

    #[test]
    fn refuses_a_broken_regular_expression() {
        let mistakes = mistakes_of("models: a\nschemes: int\nrules: [{match: '(', scheme: f32}]\n");
        assert!(mistakes[0].message.contains("regular expression"), "{mistakes:?}");
    }

    #[test]
    fn accepts_one_item_where_a_list_may_stand() {
        assert_eq!(mistakes_of("models: a\nschemes: int\nevaluate: {text: b, metrics: perplexity}\n"), []);
    }

    #[test]
    fn the_json_schema_requires_what_the_check_requires() {
        assert_eq!(json_schema()["required"], json!(["models", "schemes"]));
    }
}
