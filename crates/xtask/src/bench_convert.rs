//! `cargo xtask bench-convert`: how fast conversion streams, beside a plain copy of the same files on the same disk.

use crate::{Outcome, build, root, target};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;
use std::time::Instant;

const HIDDEN: u64 = 4096;
const FEED_FORWARD: u64 = 11008;
const VOCABULARY: u64 = 32000;
const KEY_VALUE: u64 = 1024;
/// Bytes of a shard, about.
const SHARD: u64 = 2 << 30;

/// Conversions beside the copy: name, scheme, and the bar.
const SCHEMES: &[(&str, &str)] = &[
    ("f16", "ggml:f16"),
    ("q8_0", "ggml:q8_0"),
    ("int4", "int:bits=4,block=64"),
    ("nf4", "quantile:bits=4,block=64"),
];

/// Writes a Llama checkpoint of about `gib` GiB of f32 weights, copies it, converts it, and prints rates and peak memory.
/// Every step begins with the checkpoint out of the page cache, and ends with its output on disk.
pub fn bench_convert(gib: u64) -> Outcome {
    build("release")?;
    let folder = target().join("bench-convert");
    let model = folder.join("model");
    let bytes = synthesize(&model, gib << 30).map_err(|error| format!("{}: {error}", model.display()))?;
    println!("checkpoint: {:.2} GB of f32 in {}", bytes as f64 / 1e9, model.display());

    let copy = folder.join("copy");
    evict(&model)?;
    let begin = Instant::now();
    succeed(Command::new("cp").args(["--reflink=never", "-r"]).arg(&model).arg(&copy))?;
    succeed(&mut Command::new("sync"))?;
    let copied = rate(bytes, begin);
    fs::remove_dir_all(&copy).map_err(|error| format!("{}: {error}", copy.display()))?;
    println!("{:<12} {copied:>8.0} MB/s", "cp and sync");

    for (name, scheme) in SCHEMES {
        let output = folder.join(format!("{name}.gguf"));
        evict(&model)?;
        let begin = Instant::now();
        let found = Command::new(target().join("release/kbit"))
            .arg("convert")
            .args([&model, &output])
            .args([
                "--scheme",
                scheme,
                "--without-tokenizer",
                "--no-error-statistics",
                "--overwrite",
                "--json",
            ])
            .current_dir(root())
            .output()
            .map_err(|error| format!("kbit: {error}"))?;
        let reached = rate(bytes, begin);
        if !found.status.success() {
            return Err(format!(
                "kbit convert --scheme {scheme}: {}",
                String::from_utf8_lossy(&found.stderr)
            ));
        }
        let peak = number(&String::from_utf8_lossy(&found.stdout), "peak_rss_bytes")?;
        println!(
            "{scheme:<28} {reached:>8.0} MB/s of f32, {:>4.0} % of the copy, peak memory {:.0} MiB",
            100.0 * reached / copied,
            peak / f64::from(1 << 20)
        );
        fs::remove_file(&output).map_err(|error| format!("{}: {error}", output.display()))?;
    }
    Ok(())
}

/// MB a second since `begin`.
fn rate(bytes: u64, begin: Instant) -> f64 {
    bytes as f64 / 1e6 / begin.elapsed().as_secs_f64()
}

fn succeed(command: &mut Command) -> Outcome {
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?} failed")) }
}

/// Takes the checkpoint out of the page cache.
fn evict(model: &Path) -> Outcome {
    succeed(&mut Command::new("sync"))?;
    for entry in fs::read_dir(model).map_err(|error| format!("{}: {error}", model.display()))? {
        let path = entry.map_err(|error| error.to_string())?.path();
        // With a count of 0, `nocache` drops the whole file from the cache.
        let mut input = std::ffi::OsString::from("if=");
        input.push(&path);
        succeed(Command::new("dd").arg(input).args([
            "of=/dev/null",
            "iflag=nocache",
            "count=0",
            "status=none",
        ]))?;
    }
    Ok(())
}

/// The number behind `"key":` in a JSON text.
fn number(json: &str, key: &str) -> Result<f64, String> {
    let rest = json.split_once(&format!("\"{key}\":")).map(|(_, rest)| rest.trim_start());
    let digits = rest.map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(|| format!("kbit convert --json has no {key}"))
}

/// Writes the checkpoint unless it is there; its bytes of weights.
fn synthesize(folder: &Path, wanted: u64) -> std::io::Result<u64> {
    let matrix = |name: String, rows: u64, cols: u64| (name, vec![rows, cols]);
    let ends = 2 * VOCABULARY * HIDDEN * 4;
    let layer_bytes =
        (2 * HIDDEN * HIDDEN + 2 * KEY_VALUE * HIDDEN + 3 * FEED_FORWARD * HIDDEN + 2 * HIDDEN) * 4;
    let layers = (wanted.saturating_sub(ends) / layer_bytes).max(1);
    let mut tensors = vec![
        matrix("model.embed_tokens.weight".into(), VOCABULARY, HIDDEN),
        matrix("lm_head.weight".into(), VOCABULARY, HIDDEN),
        ("model.norm.weight".into(), vec![HIDDEN]),
    ];
    for layer in 0..layers {
        let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
        tensors.push((name("input_layernorm"), vec![HIDDEN]));
        tensors.push((name("post_attention_layernorm"), vec![HIDDEN]));
        for (part, rows, cols) in [
            ("self_attn.q_proj", HIDDEN, HIDDEN),
            ("self_attn.k_proj", KEY_VALUE, HIDDEN),
            ("self_attn.v_proj", KEY_VALUE, HIDDEN),
            ("self_attn.o_proj", HIDDEN, HIDDEN),
            ("mlp.gate_proj", FEED_FORWARD, HIDDEN),
            ("mlp.up_proj", FEED_FORWARD, HIDDEN),
            ("mlp.down_proj", HIDDEN, FEED_FORWARD),
        ] {
            tensors.push(matrix(name(part), rows, cols));
        }
    }
    let size = |shape: &[u64]| shape.iter().product::<u64>() * 4;
    let total = tensors.iter().map(|(_, shape)| size(shape)).sum();
    let done = folder.join(format!("{layers}-layers"));
    if done.exists() {
        return Ok(total);
    }
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let config = format!(
        "{{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": {HIDDEN}, \"intermediate_size\": {FEED_FORWARD}, \
         \"num_hidden_layers\": {layers}, \"num_attention_heads\": 32, \"num_key_value_heads\": 8, \"vocab_size\": {VOCABULARY}, \
         \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, \"max_position_embeddings\": 4096, \"tie_word_embeddings\": false, \
         \"torch_dtype\": \"float32\"}}\n"
    );
    fs::write(folder.join("config.json"), config)?;

    let mut shards: Vec<Vec<(String, Vec<u64>)>> = vec![Vec::new()];
    let mut filled = 0;
    for (name, shape) in tensors {
        if filled + size(&shape) > SHARD && filled > 0 {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += size(&shape);
        if let Some(shard) = shards.last_mut() {
            shard.push((name, shape));
        }
    }
    let noise = noise();
    let count = shards.len();
    let mut map = Vec::new();
    for (number, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", number + 1);
        let mut header = Vec::new();
        let mut offset = 0;
        for (name, shape) in shard {
            let shape_text: Vec<String> = shape.iter().map(u64::to_string).collect();
            let end = offset + size(shape);
            header.push(format!(
                "\"{name}\":{{\"dtype\":\"F32\",\"shape\":[{}],\"data_offsets\":[{offset},{end}]}}",
                shape_text.join(",")
            ));
            map.push(format!("\"{name}\":\"{file}\""));
            offset = end;
        }
        let mut header = format!("{{{}}}", header.join(","));
        while !header.len().is_multiple_of(8) {
            header.push(' ');
        }
        let mut out = BufWriter::with_capacity(1 << 20, File::create(folder.join(&file))?);
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        let mut left = offset;
        while left > 0 {
            let piece = left.min(noise.len() as u64);
            out.write_all(&noise[..usize::try_from(piece).unwrap_or(noise.len())])?;
            left -= piece;
        }
        out.flush()?;
    }
    let index = format!("{{\"metadata\":{{}},\"weight_map\":{{{}}}}}\n", map.join(","));
    fs::write(folder.join("model.safetensors.index.json"), index)?;
    File::create(done)?;
    Ok(total)
}

/// About 64 MB of numbers like a normal distribution, as f32. Its length is odd, so that rows do not repeat.
fn noise() -> Vec<u8> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..16_000_001u32)
        .flat_map(|_| (0.02 * (uniform() + uniform() + uniform() + uniform())).to_le_bytes())
        .collect()
}
