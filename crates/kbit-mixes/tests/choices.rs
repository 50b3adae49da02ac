//! Types chosen for models of many architectures, against llama-quantize's.
//!
//! Its choices are recorded in `golden/`, one file a model, so that the comparison needs nothing else. Where the environment variable
//! `KBIT_LLAMA_QUANTIZE` names the program itself, all models are also held against it, with all options; `KBIT_RECORD=1` records instead.

mod cases;

use cases::Case;
use kbit_mixes::{Mix, ModelFacts, Options, Stored, TensorFacts, builtins, choose, quantize_order};
use kbit_types::GgmlType;
use regex::Regex;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Models whose choices are recorded.
const RECORDED: &[&str] = &[
    "llama-2-layers",
    "llama-tied",
    "llama-grouped",
    "llama-70b",
    "llama-tied-96",
    "llama-odd",
    "mixtral",
    "falcon",
    "deepseek2",
    "gemma3n",
    "glm5-next",
    "bailingmoe3",
];

/// One way to apply a mix: llama-quantize's arguments, and the same as options.
struct Variant {
    name: &'static str,
    arguments: &'static [&'static str],
    options: Options,
    importance: bool,
}

fn variants() -> Vec<Variant> {
    let plain = |name, arguments, options| Variant { name, arguments, options, importance: false };
    let over = |pattern: &str, ty| (Regex::new(pattern).unwrap(), Some(ty));
    vec![
        plain("", &[], Options::default()),
        Variant { name: "importance", arguments: &[], options: Options::default(), importance: true },
        plain("pure", &["--pure"], Options { pure: true, ..Options::default() }),
        plain(
            "leave output",
            &["--leave-output-tensor"],
            Options { leave_output: true, ..Options::default() },
        ),
        plain(
            "output and embedding",
            &["--output-tensor-type", "f16", "--token-embedding-type", "bf16"],
            Options {
                output_type: Some(GgmlType::F16),
                embedding_type: Some(GgmlType::BF16),
                ..Options::default()
            },
        ),
        plain(
            "output alone, pure",
            &["--output-tensor-type", "f16", "--pure"],
            Options { output_type: Some(GgmlType::F16), pure: true, ..Options::default() },
        ),
        plain(
            "output alone",
            &["--output-tensor-type", "q5_K"],
            Options { output_type: Some(GgmlType::Q5_K), ..Options::default() },
        ),
        plain(
            "overrides",
            &[
                "--tensor-type",
                r"blk\.[1-3]\.attn_v=q8_0",
                "--tensor-type",
                "ffn_down=iq3_s",
                "--tensor-type",
                "attn_v=f16",
            ],
            Options {
                overrides: vec![
                    over(r"blk\.[1-3]\.attn_v", GgmlType::Q8_0),
                    over("ffn_down", GgmlType::IQ3_S),
                    over("attn_v", GgmlType::F16),
                ],
                ..Options::default()
            },
        ),
        plain(
            "embedding and layers' embeddings",
            &["--tensor-type", "per_layer=q6_K", "--token-embedding-type", "f16"],
            Options {
                embedding_type: Some(GgmlType::F16),
                overrides: vec![over("per_layer", GgmlType::Q6_K)],
                ..Options::default()
            },
        ),
    ]
}

/// What becomes of each tensor: the type's name, or `kept`.
type Types = BTreeMap<String, String>;

fn chosen(case: &Case, mix: &Mix, variant: &Variant) -> (Types, bool) {
    let model = ModelFacts::from_metadata(&case.metadata);
    let tensors: Vec<_> = case.tensors.iter().map(|(name, shape)| TensorFacts { name, shape }).collect();
    let choices = choose(mix, &model, &tensors, &variant.options, variant.importance).unwrap();
    let needs = choices.iter().any(|choice| choice.needs_importance);
    let types = tensors.iter().zip(&choices).map(|(tensor, choice)| {
        let ty = match choice.stored {
            // What is stored as f32 already is not encoded either.
            Stored::Kept | Stored::As(GgmlType::F32) => "kept".to_owned(),
            Stored::As(ty) => ty.name().to_owned(),
            Stored::Elsewhere => "elsewhere".to_owned(),
        };
        (tensor.name.to_owned(), ty)
    });
    (types.collect(), needs)
}

/// Types in few lines: tensors of one kind that get the same types, layer by layer, share a line; the types of most kinds are told as
/// those of the rest, and of tensors that are kept only the number.
fn render(case: &Case, types: &Types) -> String {
    let names: Vec<&str> = case.tensors.iter().map(|(name, _)| name.as_str()).collect();
    let layer = Regex::new(r"\d+").unwrap();
    let mut kinds: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for index in quantize_order(&names) {
        let kind = layer.replace(names[index], "#");
        let kind = kind.trim_start_matches("blk.#.").trim_end_matches(".weight");
        kinds.entry(kind.to_owned()).or_default().push(&types[names[index]]);
    }
    let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut kept = 0;
    for (kind, types) in kinds {
        let mut runs: Vec<(usize, &str)> = Vec::new();
        for ty in types {
            match runs.last_mut() {
                Some((count, last)) if *last == ty => *count += 1,
                _ => runs.push((1, ty)),
            }
        }
        match runs[..] {
            [(count, "kept")] => kept += count,
            // How many layers there are is the same for all.
            [(_, ty)] => lines.entry(ty.to_owned()).or_default().push(kind),
            _ => {
                let runs: Vec<_> = runs
                    .iter()
                    .map(|(count, ty)| if *count == 1 { (*ty).to_owned() } else { format!("{count}*{ty}") })
                    .collect();
                lines.entry(runs.join(" ")).or_default().push(kind);
            }
        }
    }
    let most = lines.iter().max_by_key(|(_, kinds)| kinds.len()).map(|(runs, _)| runs.clone());
    let mut text = String::new();
    for (runs, kinds) in lines.iter().filter(|(runs, _)| Some(*runs) != most.as_ref()) {
        let _ = writeln!(text, "  {}: {runs}", kinds.join(" "));
    }
    if let Some(most) = most {
        let _ = writeln!(text, "  rest: {most}");
    }
    let _ = writeln!(text, "  kept: {kept}");
    text
}

fn golden_path(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{case}.txt"))
}

fn heading(mix: &Mix, variant: &Variant) -> String {
    if variant.name.is_empty() {
        format!("{}\n", mix.name)
    } else {
        format!("{}, {}\n", mix.name, variant.name)
    }
}

/// What stands for the types where llama-quantize has no choice to offer.
const REFUSED: &str = "  refused\n";

fn table(case: &Case, types: impl Fn(&Mix, &Variant) -> Option<Types>) -> String {
    let mut text =
        format!("# Types that llama-quantize chooses for {}. It keeps some as they are.\n", case.name);
    let told = |key: &str| key.contains("count") || key.contains("architecture");
    for (key, value) in case.metadata.iter().filter(|(key, _)| told(key)) {
        let _ = writeln!(text, "# {key} = {}", value.to_json());
    }
    for mix in builtins() {
        for variant in variants().iter().take(2) {
            let types = types(mix, variant).map_or_else(|| REFUSED.to_owned(), |types| render(case, &types));
            let _ = write!(text, "\n{}{types}", heading(mix, variant));
        }
    }
    text
}

#[test]
fn choices_are_those_that_llama_quantize_made() {
    let cases = cases::cases();
    for name in RECORDED {
        let case = cases.iter().find(|case| case.name == *name).unwrap();
        let golden = std::fs::read_to_string(golden_path(name)).unwrap();
        let ours = table(case, |mix, variant| Some(chosen(case, mix, variant).0));
        for (ours, golden) in ours.split("\n\n").zip(golden.split("\n\n")) {
            // It knows no stand-in for Q1_0, and stops; here F16 stands in.
            let refused = golden.ends_with(REFUSED.trim_end()) && golden.starts_with("Q1_0");
            assert!(refused || ours == golden, "{name}\n{ours}\n{golden}");
        }
        assert_eq!(ours.split("\n\n").count(), golden.split("\n\n").count(), "{name}");
    }
}

/// The program, and a folder with models for it.
struct Reference {
    program: String,
    folder: tempfile::TempDir,
}

impl Reference {
    /// Types and whether it would ask for importance; `None` where it refuses.
    fn types(&self, case: &Case, mix: &Mix, variant: &Variant) -> Option<(Types, bool)> {
        let mut command = Command::new(&self.program);
        command.arg("--dry-run").args(variant.arguments);
        if variant.importance {
            command.arg("--imatrix").arg(self.folder.path().join("importance.dat"));
        }
        command.arg(self.folder.path().join(format!("{}.gguf", case.name))).arg(&mix.name).arg("1");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        if !output.status.success() {
            // It knows no stand-in for this type.
            let known = text.contains("no tensor type fallback is defined for type q1_0");
            assert!(known, "{} {}{text}", case.name, heading(mix, variant));
            return None;
        }
        let line = Regex::new(r"\[ *\d+/ *\d+\] +(\S+) +- \[.*?\], type = +\w+, (?:.|\n)*?size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((\w+)\))?").unwrap();
        let types: Types = line
            .captures_iter(&text)
            .map(|found| {
                let ty = found.get(2).map_or("kept".to_owned(), |ty| ty.as_str().to_uppercase());
                (found[1].to_owned(), ty)
            })
            .collect();
        assert_eq!(types.len(), case.tensors.len(), "{text}");
        Some((types, text.contains("will require an imatrix")))
    }
}

#[expect(clippy::print_stderr, reason = "a test says what it skipped or compared")]
fn reference(cases: &[Case]) -> Option<Reference> {
    let Ok(program) = std::env::var("KBIT_LLAMA_QUANTIZE") else {
        eprintln!("skipped: KBIT_LLAMA_QUANTIZE does not name llama-quantize");
        return None;
    };
    let folder = tempfile::tempdir().unwrap();
    for case in cases {
        case.write(&folder.path().join(format!("{}.gguf", case.name)));
    }
    // llama-imatrix's older format: entries of name, calls, values.
    let name = b"blk.0.attn_q.weight";
    let mut importance = Vec::new();
    for number in [1, name.len() as i32] {
        importance.extend(number.to_le_bytes());
    }
    importance.extend(name);
    for number in [1, 256] {
        importance.extend(i32::to_le_bytes(number));
    }
    importance.extend([1.0f32; 256].iter().flat_map(|value| value.to_le_bytes()));
    std::fs::write(folder.path().join("importance.dat"), importance).unwrap();
    Some(Reference { program, folder })
}

#[test]
#[expect(clippy::print_stderr, reason = "a test says what it skipped or compared")]
fn choices_are_those_of_llama_quantize() {
    let cases = cases::cases();
    let Some(reference) = reference(&cases) else { return };
    let record = std::env::var_os("KBIT_RECORD").is_some();
    let mut refused = 0;
    let mut compared = 0;
    let mut differences = Vec::new();
    for case in &cases {
        if record {
            if RECORDED.contains(&case.name) {
                let text =
                    table(case, |mix, variant| reference.types(case, mix, variant).map(|(types, _)| types));
                std::fs::write(golden_path(case.name), text).unwrap();
            }
            continue;
        }
        for mix in builtins() {
            for variant in &variants() {
                let takes_overrides = mix.main.is_some_and(GgmlType::is_quantized);
                if !takes_overrides && !variant.options.overrides.is_empty() {
                    continue;
                }
                let Some((theirs, theirs_need)) = reference.types(case, mix, variant) else {
                    refused += 1;
                    continue;
                };
                compared += 1;
                let (ours, ours_need) = chosen(case, mix, variant);
                // With importance given, the program finds out what it lacks only on the way.
                let mut differing: Vec<String> = Vec::new();
                if !variant.importance && ours_need != theirs_need {
                    differing.push(format!("importance: {ours_need}, {theirs_need}"));
                }
                for (name, shape) in &case.tensors {
                    // Types named by hand for output and embedding are promised without a look at the rows; it could not write them.
                    let could_write = GgmlType::from_name(&theirs[name])
                        .is_none_or(|ty| shape.last().unwrap().is_multiple_of(ty.block_elements()));
                    if could_write && ours[name] != theirs[name] {
                        differing.push(format!("{name}: {}, {}", ours[name], theirs[name]));
                    }
                }
                if !differing.is_empty() {
                    differences.push(format!(
                        "{}: {}{}",
                        case.name,
                        heading(mix, variant),
                        differing.join("; ")
                    ));
                }
            }
        }
    }
    eprintln!("{compared} compared, {refused} refused by llama-quantize");
    assert!(
        differences.is_empty(),
        "{} differences\n{}",
        differences.len(),
        differences[..differences.len().min(40)].join("\n")
    );
}
