//! Models larger than memory: read block by block, under a limit on the process's memory.

mod hollow;

use hollow::{Blocks, hollow_llama};
use kbit_tests::{kbit_fails, kbit_ok, kbit_path, repository};
use serde_json::Value as Json;
use std::path::Path;
use std::process::Command;

const TEXT: &str = "assets/text/prose.txt";

/// Channels, and width and number of the blocks of a model that is mostly a hole in its file.
const HIDDEN: u32 = 1024;
const INNER: u32 = 4096;
const BLOCKS: u32 = 24;

/// A Llama of 1.6 GB in f32. Its blocks are zeros and pass the embedding on as it is; that and the vocabulary are those of a small model.
fn large(folder: &Path) -> String {
    let blocks = Blocks { count: BLOCKS, hidden: HIDDEN, inner: INNER, heads: 16 };
    hollow_llama(folder, "large.gguf", &blocks, |writer, index, tensor, small| {
        if tensor.dims.len() == 1 {
            writer.write_at(index, 0, &1f32.to_le_bytes().repeat(HIDDEN as usize)).expect("written");
        }
        if tensor.name == "token_embd.weight" {
            // Each row of the small embedding, and zeros.
            let known = small.tensor(&tensor.name).expect("an embedding");
            let (width, vocab) = (known.dims[0], known.dims[1]);
            let mut row = vec![0; width as usize * 4];
            for token in 0..vocab {
                small.read_at(known, token * width * 4, &mut row).expect("read");
                writer.write_at(index, token * u64::from(HIDDEN) * 4, &row).expect("written");
            }
        }
    });
    "large.gguf".to_owned()
}

/// Runs kbit with at most `limit` KiB of address space.
fn limited(folder: &Path, limit: u64, arguments: &[&str]) -> std::process::Output {
    let mut command = Command::new("sh");
    command.current_dir(folder).args(["-c", &format!("ulimit -v {limit} && exec \"$0\" \"$@\"")]);
    command.arg(kbit_path()).args(arguments).output().expect("it starts")
}

fn json(bytes: &[u8]) -> Json {
    serde_json::from_slice(bytes).expect("JSON")
}

#[test]
fn a_model_of_four_times_the_memory_evaluates_and_calibrates() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = large(folder.path());
    let bytes = std::fs::metadata(folder.path().join(&model)).expect("the file").len();
    let limit = bytes / 4;
    let text = repository(TEXT);
    let eval = [
        "eval",
        &model,
        "--metric",
        "perplexity",
        "--text",
        &text,
        "--context",
        "64",
        "--chunks",
        "3",
        "--threads",
        "2",
        "--json",
    ];
    let refused = limited(folder.path(), limit / 1024, &eval);
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && message.contains("large.gguf"), "{message}");

    let whole = json(kbit_ok(folder.path(), &eval).as_bytes());
    let streamed = limited(folder.path(), limit / 1024, &[&eval[..], &["--stream"]].concat());
    assert!(streamed.status.success(), "{}", String::from_utf8_lossy(&streamed.stderr));
    let streamed = json(&streamed.stdout);
    assert_eq!(streamed["value"], whole["value"]);
    assert!(streamed["tokens_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{streamed}");
    let peak = streamed["peak_rss_bytes"].as_u64().expect("a peak");
    assert!(peak < limit, "{peak} of {limit}");

    let calibrate = |out: &'static str, more: &[&'static str]| {
        let arguments = [
            "calibrate",
            &model,
            "--text",
            &text,
            "--context",
            "64",
            "--chunks",
            "3",
            "--threads",
            "2",
            "--json",
            "-o",
            out,
        ];
        [&arguments[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |arguments: &[String]| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let done = limited(folder.path(), limit / 1024, &arguments);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        json(&done.stdout)
    };
    let found = run(&calibrate("streamed.gguf", &["--stream"]));
    assert!(found["tokens_per_second"].as_f64().is_some_and(|rate| rate > 0.0), "{found}");
    let all = calibrate("whole.gguf", &[]);
    let _ = kbit_ok(folder.path(), &all.iter().map(String::as_str).collect::<Vec<_>>());
    let bytes = |name: &str| std::fs::read(folder.path().join(name)).expect(name);
    assert!(bytes("streamed.gguf") == bytes("whole.gguf"));
}

#[test]
fn streamed_figures_are_those_of_a_whole_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let (model, text) = (repository("assets/family/s1"), repository(TEXT));
    for (scheme, out) in [("q4_k_m", "q4_k_m.gguf"), ("int:bits=3,block=32", "int.gguf")] {
        let _ = kbit_ok(folder.path(), &["convert", &model, out, "--scheme", scheme]);
        let eval = [
            "eval",
            out,
            "--metric",
            "kl",
            "--reference",
            &model,
            "--text",
            &text,
            "--context",
            "128",
            "--chunks",
            "6",
            "--json",
        ];
        let whole = json(kbit_ok(folder.path(), &eval).as_bytes());
        let streamed = json(kbit_ok(folder.path(), &[&eval[..], &["--stream"]].concat()).as_bytes());
        for figure in ["value", "perplexity", "same_top"] {
            assert_eq!(streamed[figure], whole[figure], "{scheme}: {figure}");
        }
    }
    let message = kbit_fails(
        folder.path(),
        2,
        &[
            "eval",
            "int.gguf",
            "--metric",
            "information",
            "--text",
            &text,
            "--baseline-text",
            &text,
            "--stream",
        ],
    );
    assert!(message.contains("--stream"), "{message}");
}
