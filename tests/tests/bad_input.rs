//! Wrong, damaged and hostile input: an error that names the place and the cure, the right exit status, no output.

use kbit_tests::{copy_model, kbit, kbit_fails, kbit_in, kbit_ok, repository, root};
use serde_json::Value;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

fn config(folder: &Path, text: &str) {
    let text = text.replace("MODELS", &repository("assets/family"));
    std::fs::write(folder.join("run.yaml"), text).expect("written");
}

fn run_fails(text: &str) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    config(folder.path(), text);
    let message = kbit_fails(folder.path(), 2, &["run", "run.yaml"]);
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 1, "something was written");
    message
}

#[test]
fn a_wrong_key_is_named_with_its_place_and_the_nearest_key() {
    let message = run_fails("models: MODELS/s0\nschemes:\n  - scheme: int\n    parms: {bits: 4}\n");
    assert!(message.contains("run.yaml:4:5: unknown key `parms`"), "{message}");
    assert!(message.contains("did you mean `params`?"), "{message}");
}

#[test]
fn an_unknown_scheme_is_named_with_its_place_and_the_nearest_scheme() {
    let message = run_fails("models: MODELS/s0\nschemes:\n  - quantil:bits=4\n");
    assert!(message.contains("run.yaml:3:5:") && message.contains("quantile"), "{message}");
}

#[test]
fn an_unknown_parameter_is_named_with_its_place_and_the_nearest_parameter() {
    let message = run_fails("models: MODELS/s0\nschemes:\n  - scheme: int\n    params: { bist: 4 }\n");
    assert!(message.contains("run.yaml:4:15:") && message.contains("bits"), "{message}");
}

#[test]
fn a_parameter_out_of_range_is_told_its_range() {
    let message = run_fails("models: MODELS/s0\nschemes:\n  - scheme: int\n    params: { bits: [4, 9] }\n");
    assert!(message.contains("run.yaml:4:") && message.contains('9') && message.contains('8'), "{message}");
}

#[test]
fn yaml_that_does_not_parse_is_told_its_line() {
    let message = run_fails("models: [MODELS/s0\nschemes: int\n");
    assert!(message.contains("run.yaml:"), "{message}");
}

#[test]
fn a_missing_model_is_a_mistake_of_the_configuration() {
    let message = run_fails("models: nowhere\nschemes: [int]\n");
    assert!(message.contains("no model at") && message.contains("nowhere"), "{message}");
}

#[test]
fn an_unknown_file_type_is_told_the_nearest_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let message = kbit_fails(
        folder.path(),
        2,
        &["convert", &repository("assets/family/s0"), "x.gguf", "--scheme", "q6_kk"],
    );
    assert!(message.contains("did you mean") && message.contains("q6_k"), "{message}");
}

/// Converts a damaged copy of s0 and expects a failure that leaves nothing behind.
fn damaged(damage: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    copy_model(&root().join("assets/family/s0"), &model);
    damage(&model);
    let output = kbit(folder.path(), &["convert", "model", "out.gguf", "--scheme", "int:bits=4,block=64"]);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert_eq!(
        std::fs::read_dir(folder.path()).expect("a folder").count(),
        1,
        "something was left: {message}"
    );
    message
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).expect("a file");
    change(&mut bytes);
    std::fs::write(path, bytes).expect("written");
}

#[test]
fn a_truncated_checkpoint_is_refused_by_name() {
    let message =
        damaged(|model| edit(&model.join("model.safetensors"), |bytes| bytes.truncate(bytes.len() / 2)));
    assert!(message.contains("model.safetensors"), "{message}");
}

#[test]
fn a_checkpoint_with_a_hostile_header_length_is_refused() {
    let message = damaged(|model| edit(&model.join("model.safetensors"), |bytes| bytes[..8].fill(0xff)));
    assert!(message.contains("model.safetensors"), "{message}");
}

#[test]
fn a_nan_in_a_matrix_is_refused_with_its_tensor() {
    let message = damaged(|model| {
        edit(&model.join("model.safetensors"), |bytes| {
            let middle = bytes.len() / 2 / 2 * 2;
            bytes[middle..middle + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
        });
    });
    assert!(message.to_lowercase().contains("nan"), "{message}");
    assert!(message.contains("blk.") || message.contains("token_embd"), "{message}");
}

/// Rewrites the checkpoint of `model` with the tensors that `change` leaves.
fn retensor(model: &Path, change: impl FnOnce(&mut Vec<(String, Vec<usize>, Vec<u8>)>)) {
    let path = model.join("model.safetensors");
    let bytes = std::fs::read(&path).expect("a checkpoint");
    let read = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let mut tensors: Vec<_> = read
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            assert_eq!(view.dtype(), safetensors::Dtype::BF16);
            (name, view.shape().to_vec(), view.data().to_vec())
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, shape, data)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), data);
        (name.clone(), view.expect("a view"))
    });
    let written = safetensors::serialize(views.collect::<Vec<_>>(), None).expect("serialized");
    std::fs::write(&path, written).expect("written");
}

const PATCHES: &str = "vision_tower.patch_embed.weight";

fn with_vision(model: &Path) {
    retensor(model, |tensors| tensors.push((PATCHES.to_owned(), vec![4, 8], vec![0; 64])));
}

#[test]
fn tensors_of_a_vision_part_are_refused_by_name_with_the_option_that_keeps_them() {
    let message = damaged(with_vision);
    assert!(message.contains(PATCHES) && message.contains("--pass-through"), "{message}");
}

#[test]
fn tensors_of_a_vision_part_pass_through_on_request() {
    let folder = tempfile::tempdir().expect("a folder");
    copy_model(&root().join("assets/family/s0"), &folder.path().join("model"));
    with_vision(&folder.path().join("model"));
    let _ =
        kbit_ok(folder.path(), &["convert", "model", "o.gguf", "--scheme", "ggml:q8_0", "--pass-through"]);
    let listed = kbit_ok(folder.path(), &["inspect", "o.gguf", "--tensors"]);
    assert!(listed.contains(PATCHES), "{listed}");
    let _ = kbit_ok(folder.path(), &["verify", "o.gguf"]);
    // The engine leaves them out.
    let _ = kbit_ok(folder.path(), &["logits", "o.gguf", "--tokens", "1,2", "--out", "l.safetensors"]);
}

#[test]
fn an_infinity_in_a_vector_is_refused_with_its_tensor() {
    let message = damaged(|model| {
        retensor(model, |tensors| {
            let norm = tensors.iter_mut().find(|(name, ..)| name == "model.norm.weight").expect("a norm");
            norm.2[..2].copy_from_slice(&0x7f80u16.to_le_bytes());
        });
    });
    assert!(message.contains("output_norm.weight") && message.contains("inf"), "{message}");
}

#[test]
fn a_tensor_of_the_wrong_shape_is_refused_by_name() {
    let message = damaged(|model| {
        retensor(model, |tensors| {
            let query =
                tensors.iter_mut().find(|(name, ..)| name.ends_with("0.self_attn.q_proj.weight")).expect("q");
            query.1 = vec![query.1[0] / 2, query.1[1] * 2];
        });
    });
    assert!(message.contains("q_proj") && message.contains("128"), "{message}");
}

#[test]
fn missing_tensors_are_refused_by_name() {
    let message = damaged(|model| {
        retensor(model, |tensors| tensors.retain(|(name, ..)| !name.ends_with("1.mlp.up_proj.weight")));
    });
    assert!(message.contains("up_proj") || message.contains("blk.1.ffn_up.weight"), "{message}");
}

#[test]
fn a_checkpoint_with_a_missing_shard_is_refused_by_name() {
    let message = damaged(|model| {
        std::fs::remove_file(model.join("model.safetensors")).expect("removed");
        let index = r#"{"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}"#;
        std::fs::write(model.join("model.safetensors.index.json"), index).expect("written");
    });
    assert!(message.contains("model-00001-of-00002.safetensors"), "{message}");
}

#[test]
fn a_configuration_that_disagrees_with_the_tensors_is_refused() {
    let message = damaged(|model| {
        edit(&model.join("config.json"), |bytes| {
            let text = String::from_utf8(bytes.clone()).expect("UTF-8");
            *bytes = text.replace("\"intermediate_size\": 192", "\"intermediate_size\": 160").into_bytes();
        });
    });
    assert!(message.contains("192") && message.contains("160"), "{message}");
}

#[test]
fn an_unknown_architecture_lists_the_known_ones() {
    let message = damaged(|model| {
        edit(&model.join("config.json"), |bytes| {
            let text = String::from_utf8(bytes.clone()).expect("UTF-8");
            *bytes = text.replace("LlamaForCausalLM", "FancyForCausalLM").into_bytes();
        });
    });
    assert!(message.contains("FancyForCausalLM") && message.contains("LlamaForCausalLM"), "{message}");
}

#[test]
fn a_broken_tokenizer_is_refused_by_name() {
    let message = damaged(|model| edit(&model.join("tokenizer.json"), |bytes| bytes.truncate(1000)));
    assert!(message.contains("tokenizer.json"), "{message}");
}

#[test]
fn a_model_without_tokenizer_cannot_be_measured_and_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("model");
    copy_model(&root().join("assets/family/s0"), &model);
    std::fs::remove_file(model.join("tokenizer.json")).expect("removed");
    let text = repository("assets/text/prose.txt");
    let message = kbit_fails(folder.path(), 1, &["eval", "model", "--metric", "perplexity", "--text", &text]);
    assert!(message.contains("tokenizer"), "{message}");
    let convert = ["convert", "model", "out.gguf", "--scheme", "ggml:q8_0"];
    let message = kbit_fails(folder.path(), 1, &convert);
    assert!(message.contains("tokenizer.json") && message.contains("--without-tokenizer"), "{message}");
    let _ = kbit_ok(folder.path(), &[&convert[..], &["--without-tokenizer"]].concat());
    let _ = kbit_ok(folder.path(), &["logits", "out.gguf", "--tokens", "1,2", "--out", "l.safetensors"]);
}

#[test]
fn a_text_that_is_not_utf8_is_told_its_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("text.txt"), b"good \xff bad").expect("written");
    let model = repository("assets/family/s0");
    let message =
        kbit_fails(folder.path(), 1, &["eval", &model, "--metric", "perplexity", "--text", "text.txt"]);
    assert!(message.contains("text.txt") && message.contains("byte 5"), "{message}");
}

#[test]
fn a_text_that_is_too_short_says_how_many_tokens_are_needed() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("text.txt"), "short").expect("written");
    let model = repository("assets/family/s0");
    let message =
        kbit_fails(folder.path(), 1, &["eval", &model, "--metric", "perplexity", "--text", "text.txt"]);
    assert!(message.contains("token"), "{message}");
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let mount = folder.path().join("small");
    std::fs::create_dir(&mount).expect("a folder");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
        .arg(&mount)
        .output()
        .is_ok_and(|output| output.status.success());
    if !mounted {
        // Without the right to mount: a limit on the size of files does the same.
        let script = format!(
            "trap '' XFSZ; ulimit -f 64; exec {} convert {} out.gguf --scheme ggml:f16",
            kbit_tests::kbit_path().display(),
            repository("assets/family/s0")
        );
        let output =
            Command::new("bash").args(["-c", &script]).current_dir(&mount).output().expect("bash starts");
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(std::fs::read_dir(&mount).expect("a folder").count(), 0);
        return;
    }
    let message = kbit_fails(
        &mount,
        1,
        &["convert", &repository("assets/family/s0"), "out.gguf", "--scheme", "ggml:f16"],
    );
    let left = std::fs::read_dir(&mount).expect("a folder").count();
    let unmounted = Command::new("umount").arg(&mount).status().expect("umount starts");
    assert!(unmounted.success());
    assert_eq!(left, 0, "something was left: {message}");
    assert!(
        message.contains("out.gguf") || message.contains("space") || message.contains("free"),
        "{message}"
    );
}

#[test]
fn a_plugin_that_is_not_trusted_is_refused_with_the_cure() {
    let folder = tempfile::tempdir().expect("a folder");
    let plugin = kbit_tests::kbit_path().with_file_name("libkbit_scheme_int.so");
    let mut bytes = std::fs::read(plugin).expect("the plugin");
    bytes.push(0);
    std::fs::write(folder.path().join("libmine.so"), bytes).expect("written");
    let lock = folder.path().join("plugins.lock");
    let lock = lock.to_str().expect("UTF-8");
    let message = kbit_fails(folder.path(), 2, &["plugin", "list", "--plugin", "libmine.so", "--lock", lock]);
    assert!(message.contains("kbit plugin add"), "{message}");
}

#[test]
fn a_plugin_file_that_is_no_library_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("x.so"), "not a library").expect("written");
    let output = kbit(folder.path(), &["plugin", "check", "x.so"]);
    assert_ne!(output.status.code(), Some(0));
    let message =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(message.contains("x.so"), "{message}");
}

#[test]
fn a_gguf_that_is_none_is_refused_by_every_reader() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(
        folder.path().join("x.gguf"),
        b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff\x7f",
    )
    .expect("written");
    for arguments in [&["inspect", "x.gguf"][..], &["verify", "x.gguf"], &["diff", "x.gguf", "x.gguf"]] {
        let message = kbit_fails(folder.path(), 1, arguments);
        assert!(message.contains("x.gguf"), "{message}");
    }
}

/// The first `what` in `bytes`, and where it ends.
fn end_of(bytes: &[u8], what: &[u8]) -> usize {
    let found = bytes.windows(what.len()).position(|window| window == what);
    found.expect("it is there") + what.len()
}

/// A file of s0 in f32, changed, in a folder with a text; what each command that runs a model says of it.
fn said_of_file(change: impl FnOnce(&mut Vec<u8>)) -> Vec<(&'static str, String)> {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments =
        ["convert", &repository("assets/family/s0"), "x.gguf", "--scheme", "ggml:f32", "--no-provenance"];
    let _ = kbit_ok(folder.path(), &arguments);
    edit(&folder.path().join("x.gguf"), change);
    std::fs::write(folder.path().join("t.txt"), "One and two and three are six. ".repeat(40))
        .expect("written");
    let evaluation =
        ["eval", "x.gguf", "--metric", "perplexity", "--text", "t.txt", "--context", "32", "--chunks", "1"];
    let commands: [(&str, &[&str]); 5] = [
        ("eval", &evaluation),
        ("eval --mode int8", &[&evaluation[..], &["--mode", "int8"]].concat()),
        ("generate", &["generate", "x.gguf", "--prompt", "One", "-n", "2"]),
        ("logits", &["logits", "x.gguf", "--tokens", "1,2,3", "--out", "l.safetensors"]),
        ("bench", &["bench", "x.gguf", "--prompt", "4", "--generate", "2", "--repetitions", "1"]),
    ];
    let said = commands.map(|(name, arguments)| (name, kbit_fails(folder.path(), 1, arguments)));
    assert!(!folder.path().join("l.safetensors").exists());
    let mut chat = kbit_in(folder.path());
    let chat = chat.args(["chat", "x.gguf", "--template", "plain", "-n", "2"]).stdin(Stdio::piped());
    let mut chat = chat.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("kbit starts");
    // It may have ended before it reads.
    let _ = chat.stdin.take().expect("a pipe").write_all(b"hello\n");
    let output = chat.wait_with_output().expect("it ends");
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "chat: {message}");
    said.into_iter().chain([("chat", message)]).collect()
}

#[test]
fn weights_that_are_not_numbers_are_an_error_of_every_command_that_runs_a_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let arguments =
        ["convert", &repository("assets/family/s0"), "x.gguf", "--scheme", "ggml:f32", "--no-provenance"];
    let _ = kbit_ok(folder.path(), &arguments);
    let tensors: Value =
        serde_json::from_str(&kbit_ok(folder.path(), &["inspect", "x.gguf", "--tensors", "--json"]))
            .expect("JSON");
    let tensors = tensors["tensors"].as_array().expect("tensors").clone();
    let bytes_before = |name: &str| -> usize {
        let before = tensors.iter().take_while(|tensor| tensor["name"] != name);
        // All of them are whole multiples of the alignment.
        before.map(|tensor| usize::try_from(tensor["bytes"].as_u64().expect("bytes")).expect("a size")).sum()
    };
    let all: usize = bytes_before("");
    for (name, words) in
        [("blk.0.attn_q.weight", "not finite"), ("blk.1.ffn_norm.weight", "element 0 is NaN")]
    {
        for (command, message) in said_of_file(|bytes| {
            let place = bytes.len() - all + bytes_before(name);
            bytes[place..place + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        }) {
            assert!(message.contains(words), "{command}: {message}");
            let names = if words == "not finite" { "`kbit verify`" } else { name };
            assert!(message.contains(names), "{command}: {message}");
        }
    }
}

/// What is done to a file.
type Change = Box<dyn FnOnce(&mut Vec<u8>)>;

#[test]
fn tensors_that_contradict_the_metadata_are_named_by_every_command_that_runs_a_model() {
    let number = |key: &'static str, value: u32| {
        move |bytes: &mut Vec<u8>| {
            // Behind the key stands its type.
            let place = end_of(bytes, key.as_bytes()) + 4;
            bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
        }
    };
    let retyped = |bytes: &mut Vec<u8>| {
        // Behind the name stand the number of axes, two axes, and the type: Q8_0 now.
        let place = end_of(bytes, b"blk.0.ffn_up.weight") + 4 + 16;
        bytes[place..place + 4].copy_from_slice(&8u32.to_le_bytes());
    };
    let cases: [(Change, &str); 6] = [
        (
            Box::new(number("llama.block_count", 1)),
            "the tensor blk.1.attn_norm.weight has no place in this llama model of 1 blocks",
        ),
        (Box::new(number("llama.block_count", 3)), "tensor blk.2.attn_norm.weight [64] is missing"),
        (
            Box::new(number("llama.embedding_length", 32)),
            "tensor token_embd.weight: found [2048, 64], wanted [2048, 32]",
        ),
        (
            Box::new(number("llama.attention.head_count_kv", 2)),
            "tensor blk.0.attn_k.weight: found [32, 64], wanted [64, 64]",
        ),
        (
            Box::new(number("llama.vocab_size", 5)),
            "tensor token_embd.weight: found [2048, 64], wanted [5, 64]",
        ),
        (
            Box::new(retyped),
            "tensor blk.0.ffn_up.weight: it has 13056 bytes, and 36096 more stand before the next tensor",
        ),
    ];
    for (change, words) in cases {
        for (command, message) in said_of_file(change) {
            assert!(message.contains(words), "{command}: {message}");
        }
    }
}

#[test]
fn tokens_that_are_none_are_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = repository("assets/family/s0");
    let logits =
        |tokens: &str| ["logits", &model, "--tokens", tokens, "--out", "l.safetensors"].map(str::to_owned);
    let fails = |status: i32, tokens: &str| {
        let arguments = logits(tokens);
        kbit_fails(folder.path(), status, &arguments.each_ref().map(String::as_str))
    };
    let message = fails(1, "1,2048");
    assert!(message.contains("token 2048 at position 1 is not in the vocabulary of 2048"), "{message}");
    for tokens in ["", "4294967296", "one", "1,,2"] {
        assert!(fails(2, tokens).contains("--tokens"), "{tokens}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).expect("a folder").count(), 0);
}
