//! The keys of a task file, declared once: checking, the JSON Schema and the guide's table read them.

use kbit_yaml::{Kind, Object, optional, reference_tables, required};

/// What a document asks.
pub(crate) const KINDS: &[&str] =
    &["multiple_choice", "minimal_pair", "cloze", "classification", "generation"];
/// How few-shot examples are chosen.
pub(crate) const SAMPLERS: &[&str] = &["random", "first_n"];
/// What filters do with a generated text.
pub(crate) const FILTERS: &[&str] = &["regex", "strip", "lowercase", "uppercase", "take_first"];
/// Metrics of choices among texts.
pub(crate) const CHOICE_METRICS: &[&str] = &[
    "acc",
    "acc_norm",
    "acc_bytes",
    "acc_tokens",
    "acc_mutual_info",
    "exact_match",
    "probability_mass",
    "f1",
    "macro_f1",
    "weighted_f1",
    "macro_precision",
    "macro_recall",
    "mcc",
];
/// Metrics of texts that are to be predicted.
pub(crate) const CLOZE_METRICS: &[&str] = &["acc", "perplexity"];
/// Metrics of generated texts.
pub(crate) const GENERATION_METRICS: &[&str] =
    &["exact_match", "bleu", "chrf", "chrf++", "rouge1", "rouge2", "rougeL", "rougeLsum"];
/// All of them.
pub(crate) const METRICS: &[&str] = &[
    "acc",
    "acc_norm",
    "acc_bytes",
    "acc_tokens",
    "acc_mutual_info",
    "exact_match",
    "probability_mass",
    "f1",
    "macro_f1",
    "weighted_f1",
    "macro_precision",
    "macro_recall",
    "mcc",
    "perplexity",
    "bleu",
    "chrf",
    "chrf++",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeLsum",
];

const TEMPLATE: Kind = Kind::Scalar("a template: text, or a number");
const NUMBER: Kind = Kind::Scalar("a number");

static FEWSHOT: Object = Object {
    name: "fewshot",
    doc: "Answered examples before each question.",
    keys: &[
        optional(
            "count",
            Kind::Int { min: 0, max: 1000 },
            "0",
            "Examples before each document; `--few-shot` overrides it.",
        ),
        optional(
            "file",
            Kind::Path,
            "the data itself, without the document that is asked",
            "JSONL with the documents that examples are taken from.",
        ),
        optional(
            "sampler",
            Kind::Choice(SAMPLERS),
            "random",
            "`random` draws anew for each document, as Python's `random` does; `first_n` takes the first ones.",
        ),
        optional(
            "seed",
            Kind::Int { min: 0, max: i64::MAX },
            "1234",
            "Seed of `random`; 1234 is lm-evaluation-harness's.",
        ),
        optional("delimiter", TEMPLATE, "two line breaks", "Text after each example."),
        optional(
            "target_delimiter",
            TEMPLATE,
            "the task's",
            "Text between the question and the answer of an example.",
        ),
        optional("doc_to_text", TEMPLATE, "the task's", "Question of an example."),
        optional("doc_to_target", Kind::Many(&TEMPLATE), "the task's", "Answer of an example."),
    ],
};

static FILTER: Object = Object {
    name: "filter",
    doc: "What is done with a generated text before it is compared, in the order given.",
    keys: &[
        required(
            "function",
            Kind::Choice(FILTERS),
            "`regex` takes what a pattern finds; `strip` takes white space off both ends; `lowercase`, `uppercase`; `take_first` changes nothing.",
        ),
        optional(
            "pattern",
            Kind::Regex,
            "none; `regex` needs it",
            "Pattern of `regex`; its first group that found something counts, or all.",
        ),
        optional(
            "group_select",
            Kind::Int { min: -1000, max: 1000 },
            "0",
            "Which of several finds; -1 is the last.",
        ),
        optional("fallback", TEMPLATE, "[invalid]", "What the text becomes where nothing is found."),
    ],
};

static GENERATION: Object = Object {
    name: "generation",
    doc: "How a text is generated.",
    keys: &[
        optional(
            "until",
            Kind::Many(&TEMPLATE),
            "the fewshot delimiter",
            "Texts that end the generation; they are cut off.",
        ),
        optional("max_tokens", Kind::Int { min: 1, max: 1 << 20 }, "256", "Most tokens that are generated."),
        optional("temperature", NUMBER, "0", "0 always takes the likeliest token; above 0 tokens are drawn."),
        optional(
            "top_k",
            Kind::Int { min: 0, max: 1 << 20 },
            "0",
            "Draw among so many likeliest tokens; 0: all.",
        ),
        optional(
            "top_p",
            NUMBER,
            "1",
            "Draw among the likeliest tokens that together have this probability.",
        ),
        optional(
            "seed",
            Kind::Int { min: 0, max: i64::MAX },
            "1",
            "Seed of the drawing; document number n draws with the seed plus n.",
        ),
    ],
};

/// A whole task.
pub(crate) static TASK: Object = Object {
    name: "task",
    doc: "A task: questions made of documents, and how answers are measured.",
    keys: &[
        optional("name", Kind::Text, "the file's name", "Name in tables."),
        required("kind", Kind::Choice(KINDS), "What a document asks."),
        optional("data", Kind::Path, "none; give it with `--data`", "JSONL: one document a line."),
        optional(
            "fields",
            Kind::Parameters,
            "none",
            "More fields, made of each document in the order given: a template each. A single `{{ expression }}` keeps its value, as a list.",
        ),
        optional("description", TEMPLATE, "empty", "Template of the text before everything else."),
        optional("doc_to_text", TEMPLATE, "empty", "Template of the question, or the name of a field."),
        optional(
            "doc_to_choice",
            Kind::Many(&TEMPLATE),
            "none; kinds that choose need it",
            "Choices: a list of templates, or one that gives a list, or the name of a field that holds one.",
        ),
        optional(
            "doc_to_target",
            Kind::Many(&TEMPLATE),
            "0 for minimal_pair, else required",
            "The right answer: the place of a choice from 0 or its text, several of them in a list; or the text itself.",
        ),
        optional(
            "continuation",
            TEMPLATE,
            "none",
            "Text that follows every choice and is scored in its stead; choices are then part of the question (partial evaluation).",
        ),
        optional(
            "target_delimiter",
            TEMPLATE,
            "one space; empty for cloze",
            "Text between the question and the answer.",
        ),
        optional("fewshot", Kind::Object(&FEWSHOT), "no examples", "Answered examples before each question."),
        optional(
            "metrics",
            Kind::Many(&Kind::Choice(METRICS)),
            "acc and acc_norm of multiple_choice; acc of minimal_pair; acc and perplexity of cloze; acc, macro_f1 and mcc of classification; exact_match of generation",
            "What is measured.",
        ),
        optional(
            "filters",
            Kind::Many(&Kind::Object(&FILTER)),
            "none",
            "What is done with generated texts, in this order.",
        ),
        optional("generation", Kind::Object(&GENERATION), "the defaults", "How texts are generated."),
    ],
};

/// The reference tables of task files, in Markdown.
#[must_use]
pub fn reference() -> String {
    reference_tables(&[&TASK, &FEWSHOT, &FILTER, &GENERATION])
}

/// JSON Schema of task files, for editors.
#[must_use]
pub fn json_schema() -> serde_json::Value {
    kbit_yaml::json_schema(&TASK)
}
