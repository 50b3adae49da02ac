//! A kbit with its plugins built in knows the same schemes and writes the same bytes as one that loads them.

use kbit_tests::{kbit_ok, repository};
use std::path::PathBuf;
use std::process::Command;

/// The kbit built with the feature `static-plugins`, if `KBIT_STATIC_BIN` names it; else says what is skipped.
#[expect(clippy::print_stderr, reason = "a test says what it skipped")]
fn static_kbit() -> Option<PathBuf> {
    let path = std::env::var_os("KBIT_STATIC_BIN").map(PathBuf::from).filter(|path| path.exists());
    if path.is_none() {
        eprintln!(
            "skipped: KBIT_STATIC_BIN does not name a kbit with built-in plugins (`cargo xtask test` makes one)"
        );
    }
    path
}

#[test]
fn built_in_plugins_write_the_same_bytes() {
    let Some(kbit) = static_kbit() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    let model = repository("assets/family/s0");
    for (number, scheme) in
        ["ggml:q5_1", "int:bits=3,block=64,scale_bits=8", "float:bits=4", "quantile:bits=3,block=128"]
            .into_iter()
            .chain(["dynamic:bits=5", "ternary", "trellis:bits=2.5,state_bits=10"])
            .enumerate()
    {
        let loaded = format!("{number}-loaded.gguf");
        let _ = kbit_ok(folder.path(), &["convert", &model, &loaded, "--scheme", scheme]);
        for isolation in ["none", "process"] {
            let built_in = format!("{number}-{isolation}.gguf");
            let output = Command::new(&kbit)
                .current_dir(folder.path())
                .args(["convert", &model, &built_in, "--scheme", scheme, "--isolation", isolation])
                .output()
                .expect("kbit starts");
            assert!(output.status.success(), "{scheme}: {}", String::from_utf8_lossy(&output.stderr));
            let found = kbit_tests::kbit(folder.path(), &["diff", &loaded, &built_in, "--json"]);
            let found: serde_json::Value = serde_json::from_slice(&found.stdout).expect("JSON");
            assert_eq!(found["tensors"], serde_json::json!([]), "{scheme}, isolation {isolation}");
            // The hash of the plugin's file is the program's here; nothing else may differ.
            for difference in found["metadata"].as_array().expect("a list") {
                let key = difference["key"].as_str().expect("a key");
                let of_the_file = key == "kbit.plan" || key.ends_with(".plugin.sha256");
                assert!(of_the_file, "{scheme}, isolation {isolation}: {difference}");
            }
        }
    }
}
