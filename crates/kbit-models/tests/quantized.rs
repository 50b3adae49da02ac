//! Weights of quantized checkpoints: files that the libraries themselves packed, made by `tests/python/pack_golden.py`, and
//! codes that are packed here, value by value.

mod common;

use common::{Tensor, tensor, write};
use kbit_formats::Checkpoint;
use kbit_models::fp4::{Fp4, Fp4Format};
use kbit_models::{Axis, ConvertOptions, SourceExpr, convert};
use kbit_types::{Dtype, GgmlType, MatrixShape};
use safetensors::SafeTensors;
use serde_json::{Value as Json, json};
use std::path::Path;

/// Output features, input features and columns of a group of the tested matrix.
const ROWS: usize = 32;
const COLS: usize = 64;
const GROUP: usize = 16;

fn words(name: &str, shape: &[usize], words: &[u32]) -> Tensor {
    let bytes = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let shape = shape.iter().map(|axis| *axis as u64).collect();
    Tensor { name: name.to_owned(), dtype: Dtype::I32, shape, bytes }
}

/// Pseudo-random codes of `bits` bits, `[rows, cols]`.
fn codes(seed: u32, bits: u32, count: usize) -> Vec<u32> {
    (0..count as u32).map(|at| ((at ^ seed).wrapping_mul(0x9e37_79b1) >> 13) % (1 << bits)).collect()
}

/// A stream of bits, each code from its lowest bit on.
fn stream(codes: impl Iterator<Item = u32>, bits: u32) -> Vec<u32> {
    let bits: Vec<bool> = codes.flat_map(|code| (0..bits).map(move |bit| code >> bit & 1 == 1)).collect();
    bits.chunks(32).map(|word| word.iter().enumerate().map(|(at, bit)| u32::from(*bit) << at).sum()).collect()
}

/// A model of one block whose first matrix, `[ROWS, COLS]`, is replaced by `parts`; what that matrix becomes.
fn decoded(settings: &Json, parts: Vec<Tensor>) -> Result<Vec<f32>, String> {
    decoded_in(settings, &[], parts, [ROWS, COLS])
}

/// The same of shape `[rows, cols]`, with more files beside the model.
fn decoded_in(
    settings: &Json,
    files: &[(&str, Json)],
    parts: Vec<Tensor>,
    [rows, cols]: [usize; 2],
) -> Result<Vec<f32>, String> {
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": cols, "intermediate_size": rows,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 40,
        "tie_word_embeddings": true, "quantization_config": settings
    });
    let hidden = cols as u64;
    let mut tensors = parts;
    tensors.push(tensor("model.embed_tokens.weight", &[40, hidden]));
    tensors.push(tensor("model.norm.weight", &[hidden]));
    for (name, shape) in [
        ("input_layernorm", &[hidden][..]),
        ("post_attention_layernorm", &[hidden]),
        ("self_attn.q_proj", &[hidden, hidden]),
        ("self_attn.k_proj", &[hidden, hidden]),
        ("self_attn.v_proj", &[hidden, hidden]),
        ("self_attn.o_proj", &[hidden, hidden]),
        ("mlp.up_proj", &[rows as u64, hidden]),
        ("mlp.down_proj", &[hidden, rows as u64]),
    ] {
        tensors.push(tensor(&format!("model.layers.0.{name}.weight"), shape));
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    for (name, json) in files {
        std::fs::write(folder.path().join(name), json.to_string()).unwrap();
    }
    write(&folder.path().join("model.safetensors"), &tensors);
    let checkpoint = Checkpoint::open(folder.path()).map_err(|error| error.to_string())?;
    let options = ConvertOptions { without_tokenizer: true, ..ConvertOptions::default() };
    let conversion = convert(&checkpoint, &options).map_err(|error| error.to_string())?;
    let gate = conversion.tensors.iter().find(|t| t.name == "blk.0.ffn_gate.weight").unwrap();
    assert_eq!(gate.shape, [rows as u64, cols as u64]);
    let mut all = vec![0.0; rows * cols];
    gate.expr.read_rows(&checkpoint, 0, 0..rows as u64, &mut all).map_err(|error| error.to_string())?;
    for (first, last) in [(0, 1), (3, 11), (rows - 5, rows)] {
        let mut slab = vec![0.0; (last - first) * cols];
        gate.expr.read_rows(&checkpoint, 0, first as u64..last as u64, &mut slab).unwrap();
        assert_eq!(slab, all[first * cols..last * cols], "rows {first}..{last}");
    }
    Ok(all)
}

const GATE: &str = "model.layers.0.mlp.gate_proj";

/// `scale * (code - zero)` of each value, by tables `[rows, cols]`, `[rows, groups]`, `[rows, groups]`.
fn expected(codes: &[u32], zeros: &[i32], scales: &[f32], group_of: &dyn Fn(usize) -> usize) -> Vec<f32> {
    let groups = zeros.len() / ROWS;
    let value = |at: usize| {
        let place = at / COLS * groups + group_of(at % COLS);
        scales[place] * (codes[at] as i32 - zeros[place]) as f32
    };
    (0..ROWS * COLS).map(value).collect()
}

/// `[a, b]` to `[b, a]`.
fn transposed<T: Copy>(values: &[T], cols: usize) -> Vec<T> {
    (0..cols).flat_map(|col| values.iter().skip(col).step_by(cols)).copied().collect()
}

fn scale_values(count: usize) -> (Vec<f32>, Vec<u8>) {
    let scales = tensor("scales", &[count as u64]);
    (scales.values(), scales.bytes)
}

fn floats(name: &str, shape: [usize; 2], bytes: Vec<u8>) -> Tensor {
    Tensor { name: name.to_owned(), dtype: Dtype::F32, shape: shape.map(|axis| axis as u64).to_vec(), bytes }
}

/// GPTQ's tensors, and what they stand for.
fn gptq(bits: u32, plus: i32, group_of: &dyn Fn(usize) -> usize) -> (Vec<Tensor>, Vec<f32>) {
    let groups = COLS / GROUP;
    let (codes, zeros) = (codes(1, bits, ROWS * COLS), codes(2, bits, groups * ROWS));
    let (scales, bytes) = scale_values(groups * ROWS);
    // Each row of the matrix is a stream of words down a column of the tensor.
    let columns: Vec<u32> = codes.chunks(COLS).flat_map(|row| stream(row.iter().copied(), bits)).collect();
    let height = COLS * bits as usize / 32;
    let zero_words: Vec<u32> =
        zeros.chunks(ROWS).flat_map(|group| stream(group.iter().copied(), bits)).collect();
    let named: Vec<u32> = (0..COLS).map(|col| group_of(col) as u32).collect();
    let parts = vec![
        words(&format!("{GATE}.qweight"), &[height, ROWS], &transposed(&columns, height)),
        words(&format!("{GATE}.qzeros"), &[groups, ROWS * bits as usize / 32], &zero_words),
        floats(&format!("{GATE}.scales"), [groups, ROWS], bytes),
        words(&format!("{GATE}.g_idx"), &[COLS], &named),
    ];
    let zeros: Vec<i32> = transposed(&zeros, ROWS).into_iter().map(|zero| zero as i32 + plus).collect();
    let wanted = expected(&codes, &zeros, &transposed(&scales, ROWS), group_of);
    (parts, wanted)
}

/// A file of golden data: `quantization_config`, the rows that are expected, the tensors, and `expected`.
struct Golden {
    settings: Json,
    rows: Option<[usize; 2]>,
    parts: Vec<Tensor>,
    expected: Tensor,
}

fn golden(name: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/packed/{name}.safetensors"));
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let more = header.metadata().clone().unwrap_or_default();
    let rows = more.get("rows").map(|rows| {
        let (first, last) = rows.split_once(' ').unwrap();
        [first.parse().unwrap(), last.parse().unwrap()]
    });
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut parts: Vec<Tensor> = tensors
        .iter()
        .map(|(name, view)| Tensor {
            name: name.to_owned(),
            dtype: Dtype::from_safetensors_name(&view.dtype().to_string()).unwrap(),
            shape: view.shape().iter().map(|axis| *axis as u64).collect(),
            bytes: view.data().to_vec(),
        })
        .collect();
    let expected = parts.iter().position(|part| part.name == "expected").unwrap();
    let expected = parts.swap_remove(expected);
    let settings = more.get("quantization_config").map_or(Json::Null, |text| text.parse().unwrap());
    Golden { settings, rows, parts, expected }
}

/// The same values, bit for bit.
#[track_caller]
fn assert_same(name: &str, found: &[f32], wanted: &[f32]) {
    assert_eq!(found.len(), wanted.len(), "{name}");
    for (at, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        assert_eq!(found.to_bits(), wanted.to_bits(), "{name}: value {at} is {found}, not {wanted}");
    }
}

/// The matrix that a library packed has the values that llama.cpp's converter finds in it, or the library itself.
fn assert_decoded(name: &str) {
    let Golden { settings, rows, parts, expected } = golden(name);
    // Where only some rows are expected, the stored matrix has all.
    let shape = match rows {
        Some(_) => parts.iter().find(|part| part.name.ends_with(".weight")).unwrap().shape.clone(),
        None => expected.shape.clone(),
    };
    let shape = [shape[0] as usize, shape[1] as usize];
    let found = decoded_in(&settings, &[], parts, shape).unwrap();
    let [first, last] = rows.unwrap_or([0, shape[0]]);
    assert_same(name, &found[first * shape[1]..last * shape[1]], &expected.values());
}

/// One test a file.
macro_rules! decodes {
    ($($test:ident: $file:literal),* $(,)?) => {
        $(#[test] fn $test() { assert_decoded($file); })*

        #[test]
        fn every_file_is_compared() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/packed");
            let files = std::fs::read_dir(folder).unwrap().count();
            // gpt-oss.safetensors holds no matrix of this model.
            assert_eq!(files, [$($file),*].len() + 1);
        }
    };
}

decodes! {
    gptq_2: "gptq-2",
    gptq_3: "gptq-3",
    gptq_4: "gptq-4",
    gptq_8: "gptq-8",
    gptq_3_version_2: "gptq-3-version-2",
    gptq_4_version_2: "gptq-4-version-2",
    gptq_4_desc_act: "gptq-4-desc-act",
    gptq_4_one_group: "gptq-4-one-group",
    awq_4: "awq-4",
    awq_4_one_group: "awq-4-one-group",
    fp8_of_one_scale: "fp8-tensor",
    fp8_by_blocks: "fp8-block",
    compressed_int4_group: "int4-group",
    compressed_int4_group_with_zero_points: "int4-group-zeros",
    compressed_int4_channel: "int4-channel",
    compressed_int4_in_the_order_of_activations: "int4-order",
    compressed_int3_group_with_zero_points: "int3-group-zeros",
    compressed_int8_group: "int8-group",
    compressed_int8_channel: "int8-channel",
    compressed_int8_channel_with_zero_points: "int8-channel-zeros",
    compressed_int8_group_plain: "int8-group-plain",
    compressed_fp8_channel: "fp8-channel",
    compressed_fp8_whole: "fp8-whole",
    compressed_fp8_blocks: "fp8-blocks",
    bitnet: "bitnet",
    nvfp4_of_compressed_tensors: "nvfp4-compressed-tensors",
    nvfp4_of_model_optimizer: "nvfp4-modelopt",
    mxfp4_of_compressed_tensors: "mxfp4-compressed-tensors",
}

/// Values as transformers decodes them; blocks as llama.cpp's converter packs the rows of gate and up anew.
#[test]
fn mxfp4_of_gpt_oss_keeps_its_codes_and_scales() {
    let Golden { parts, expected, .. } = golden("gpt-oss");
    let part = |name: &str| parts.iter().find(|part| part.name == name).unwrap().clone();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    write(&path, &[part("blocks"), part("scales")]);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let (slices, rows, cols) = (2, 8, 64);
    let floats = Fp4 {
        shape: MatrixShape { slices, rows, cols },
        codes: "blocks".to_owned(),
        scales: "scales".to_owned(),
        format: Fp4Format::Mx,
    };
    let whole = SourceExpr::Fp4(Box::new(floats));
    whole.check(&checkpoint).unwrap();
    let a_slice = (rows * cols) as usize;
    let mut values = vec![0.0; 2 * a_slice];
    for (slice, values) in values.chunks_exact_mut(a_slice).enumerate() {
        whole.read_rows(&checkpoint, slice as u64, 0..rows, values).unwrap();
    }
    // Here alone, zeros may differ in sign.
    assert!(values == expected.values());
    for (first, name) in [(0, "gate"), (1, "up")] {
        let half = SourceExpr::Gather {
            of: Box::new(whole.clone()),
            first,
            axes: vec![Axis { count: rows / 2, stride: 2 }],
        };
        assert_eq!(half.block_type(), Some(GgmlType::MXFP4));
        let mut blocks = vec![0u8; part(name).bytes.len()];
        for (slice, blocks) in blocks.chunks_exact_mut(4 * 34).enumerate() {
            half.read_blocks(&checkpoint, slice as u64, 0..3, &mut blocks[..3 * 34]).unwrap();
            half.read_blocks(&checkpoint, slice as u64, 3..4, &mut blocks[3 * 34..]).unwrap();
        }
        assert_eq!(blocks, part(name).bytes, "{name}");
        // Blocks that were only moved stand for the same values.
        let mut decoded = vec![0.0; a_slice];
        kbit_blocks::decode(GgmlType::MXFP4, &blocks, &mut decoded).unwrap();
        for (slice, decoded) in decoded.chunks_exact(a_slice / 2).enumerate() {
            let mut wanted = vec![0.0; a_slice / 2];
            half.read_rows(&checkpoint, slice as u64, 0..4, &mut wanted).unwrap();
            assert_same(name, decoded, &wanted);
        }
        let error = half.read_blocks(&checkpoint, 0, 0..5, &mut [0; 5 * 34]).unwrap_err().to_string();
        assert!(error.contains("do not fit"), "{error}");
    }
}

#[test]
fn settings_beside_the_configuration_are_found() {
    for (name, file) in [
        ("gptq-4", "quantize_config.json"),
        ("awq-4", "quant_config.json"),
        ("nvfp4-modelopt", "hf_quant_config.json"),
    ] {
        let Golden { mut settings, parts, expected, .. } = golden(name);
        settings.as_object_mut().unwrap().remove("quant_method");
        if file == "hf_quant_config.json" {
            settings = json!({ "producer": { "name": "ModelOpt" }, "quantization": settings });
        }
        let found = decoded_in(&Json::Null, &[(file, settings)], parts, [ROWS, COLS]).unwrap();
        assert_same(name, &found, &expected.values());
    }
}

#[test]
fn gptq_of_every_width_and_version() {
    for bits in [2, 3, 4, 8] {
        for (format, plus) in [("gptq", 1), ("gptq_v2", 0)] {
            let (parts, wanted) = gptq(bits, plus, &|col| col / GROUP);
            let settings = json!({ "quant_method": "gptq", "bits": bits, "group_size": GROUP, "checkpoint_format": format });
            assert_eq!(decoded(&settings, parts).unwrap(), wanted, "{bits} bits, {format}");
        }
    }
}

#[test]
fn gptq_columns_in_the_order_of_their_activations() {
    let (parts, wanted) = gptq(4, 1, &|col| (col * 7 + 3) % (COLS / GROUP));
    let settings = json!({ "quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": true });
    assert_eq!(decoded(&settings, parts).unwrap(), wanted);
}

#[test]
fn gptq_without_group_numbers_takes_them_from_the_group_size() {
    let (mut parts, wanted) = gptq(4, 1, &|col| col / GROUP);
    parts.retain(|part| !part.name.ends_with("g_idx"));
    let settings = json!({ "quant_method": "gptq", "bits": 4, "group_size": GROUP });
    assert_eq!(decoded(&settings, parts).unwrap(), wanted);
}

#[test]
fn awq_in_the_order_of_matrix_products() {
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let groups = COLS / GROUP;
    let (codes, zeros) = (codes(3, 4, ROWS * COLS), codes(4, 4, groups * ROWS));
    let (scales, bytes) = scale_values(groups * ROWS);
    let pack = |rows: &[u32]| -> Vec<u32> {
        rows.chunks(8)
            .map(|eight| ORDER.iter().enumerate().map(|(at, from)| eight[*from] << (4 * at)).sum())
            .collect()
    };
    let parts = vec![
        words(&format!("{GATE}.qweight"), &[COLS, ROWS / 8], &pack(&transposed(&codes, COLS))),
        words(&format!("{GATE}.qzeros"), &[groups, ROWS / 8], &pack(&zeros)),
        floats(&format!("{GATE}.scales"), [groups, ROWS], bytes),
    ];
    let settings = json!({ "quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": true });
    let zeros: Vec<i32> = transposed(&zeros, ROWS).into_iter().map(|zero| zero as i32).collect();
    let wanted = expected(&codes, &zeros, &transposed(&scales, ROWS), &|col| col / GROUP);
    assert_eq!(decoded(&settings, parts).unwrap(), wanted);
}

#[test]
fn compressed_tensors_packed_with_and_without_zero_points() {
    for bits in [4, 8] {
        for zero_points in [false, true] {
            let groups = COLS / GROUP;
            let (codes, zeros) = (codes(5, bits, ROWS * COLS), codes(6, bits, groups * ROWS));
            let (scales, bytes) = scale_values(groups * ROWS);
            let mut sizes = tensor(&format!("{GATE}.weight_shape"), &[2]);
            sizes.dtype = Dtype::I64;
            sizes.bytes = [ROWS as i64, COLS as i64].iter().flat_map(|length| length.to_le_bytes()).collect();
            let mut parts = vec![
                words(
                    &format!("{GATE}.weight_packed"),
                    &[ROWS, COLS * bits as usize / 32],
                    &stream(codes.iter().copied(), bits),
                ),
                floats(&format!("{GATE}.weight_scale"), [ROWS, groups], bytes),
                sizes,
            ];
            let middle = 1i32 << (bits - 1);
            let mut taken = vec![middle; ROWS * groups];
            if zero_points {
                // Packed along the rows, each group a stream of its own.
                taken = zeros.iter().map(|zero| *zero as i32).collect();
                let columns: Vec<u32> = transposed(&zeros, groups)
                    .chunks(ROWS)
                    .flat_map(|group| stream(group.iter().copied(), bits))
                    .collect();
                let height = ROWS * bits as usize / 32;
                let packed = transposed(&columns, height);
                parts.push(words(&format!("{GATE}.weight_zero_point"), &[height, groups], &packed));
            }
            let settings = json!({
                "quant_method": "compressed-tensors", "format": "pack-quantized",
                "config_groups": { "group_0": { "weights": { "num_bits": bits, "group_size": GROUP, "strategy": "group" } } }
            });
            let wanted = expected(&codes, &taken, &scales, &|col| col / GROUP);
            assert_eq!(decoded(&settings, parts).unwrap(), wanted, "{bits} bits, zero points {zero_points}");
        }
    }
}

#[test]
fn compressed_tensors_of_whole_numbers() {
    let codes: Vec<u8> = (0..ROWS * COLS).map(|at| (at * 37 % 256) as u8).collect();
    let (scales, bytes) = scale_values(ROWS);
    let weight = Tensor {
        name: format!("{GATE}.weight"),
        dtype: Dtype::I8,
        shape: vec![ROWS as u64, COLS as u64],
        bytes: codes.clone(),
    };
    let settings = json!({
        "quant_method": "compressed-tensors", "format": "int-quantized",
        "config_groups": { "group_0": { "weights": { "num_bits": 8, "strategy": "channel" } } }
    });
    let parts = vec![weight, floats(&format!("{GATE}.weight_scale"), [ROWS, 1], bytes)];
    let wanted: Vec<f32> =
        codes.iter().enumerate().map(|(at, code)| f32::from(*code as i8) * scales[at / COLS]).collect();
    assert_eq!(decoded(&settings, parts).unwrap(), wanted);
}

#[test]
fn rejects_codes_whose_parts_are_missing_or_do_not_fit() {
    let settings = json!({ "quant_method": "gptq", "bits": 4, "group_size": GROUP });
    let (mut parts, _) = gptq(4, 1, &|col| col / GROUP);
    parts.retain(|part| !part.name.ends_with("scales"));
    let error = decoded(&settings, parts).unwrap_err();
    assert!(error.contains("mlp.gate_proj.scales") && error.contains("missing"), "{error}");

    let (parts, _) = gptq(8, 1, &|col| col / GROUP);
    let error = decoded(&settings, parts).unwrap_err();
    assert!(error.contains("mlp.gate_proj"), "{error}");

    let (mut parts, _) = gptq(4, 1, &|col| col / GROUP);
    let named = parts.iter_mut().find(|part| part.name.ends_with("g_idx")).unwrap();
    named.bytes[..4].copy_from_slice(&4u32.to_le_bytes());
    let error = decoded(&settings, parts).unwrap_err();
    assert!(error.contains("g_idx") && error.contains("group 4 of 4"), "{error}");

    let settings = json!({ "quant_method": "gptq", "bits": 40 });
    let error = decoded(&settings, Vec::new()).unwrap_err();
    assert!(error.contains("40 bits"), "{error}");
}

/// A tensor without the last index of its last axis.
fn cut(part: &Tensor) -> Tensor {
    let mut cut = part.clone();
    let last = cut.shape.last_mut().unwrap();
    let (old, new) = (*last as usize * part.dtype.bytes(), (*last - 1) as usize * part.dtype.bytes());
    *last -= 1;
    cut.bytes = part.bytes.chunks(old).flat_map(|row| row[..new].to_vec()).collect();
    cut
}

/// What the weight can do without.
const FREE: &[&str] = &["input_scale", "input_global_scale", "g_idx", "zero_point", "weight_scale_2"];

#[test]
fn rejects_checkpoints_with_a_part_missing_cut_or_of_another_type() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/packed");
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
        .filter(|name| name != "gpt-oss")
        .collect();
    names.sort_unstable();
    for name in names {
        let Golden { settings, rows, parts, .. } = golden(&name);
        let shape = if rows.is_some() { [136, 136] } else { [ROWS, COLS] };
        for (at, part) in parts.iter().enumerate() {
            let unread = part.name.contains("input_");
            let with = |other: Option<Tensor>| {
                let mut parts = parts.clone();
                parts.remove(at);
                parts.extend(other);
                decoded_in(&settings, &[], parts, shape)
            };
            let refuses = |what: &str, found: Result<Vec<f32>, String>| {
                let error = found.err().unwrap_or_else(|| panic!("{name}: {} {what} is taken", part.name));
                assert!(
                    error.contains(GATE) && error.contains("; "),
                    "{name}: {} {what}: {error}",
                    part.name
                );
            };
            if !FREE.iter().any(|ending| part.name.ends_with(ending)) {
                refuses("missing", with(None));
            }
            if !part.shape.is_empty() && !unread {
                refuses("cut", with(Some(cut(part))));
            }
            if !unread {
                let mut other = part.clone();
                // No part is of this type.
                other.dtype = Dtype::U16;
                other.bytes = vec![1; part.bytes.len() / part.dtype.bytes() * 2];
                refuses("of another type", with(Some(other)));
            }
        }
    }
}

/// Settings that contradict the tensors, and sizes that no memory holds.
#[test]
fn rejects_settings_and_sizes_that_contradict_the_tensors() {
    let refused = |name: &str, change: &dyn Fn(&mut Json, &mut Vec<Tensor>), words: &str| {
        let Golden { mut settings, mut parts, .. } = golden(name);
        change(&mut settings, &mut parts);
        let error = decoded_in(&settings, &[], parts, [ROWS, COLS]).unwrap_err();
        assert!(error.contains(words) && error.contains("; "), "{name}: {error}");
    };
    let sizes = |parts: &mut Vec<Tensor>, rows: i64, cols: i64| {
        let sizes = parts.iter_mut().find(|part| part.name.ends_with("weight_shape")).unwrap();
        sizes.bytes = [rows, cols].iter().flat_map(|length| length.to_le_bytes()).collect();
    };
    for bits in [0i64, 9, 1 << 40] {
        refused("gptq-4", &|settings, _| settings["bits"] = json!(bits), "not 1 to 8");
    }
    for bits in [1, 5, 6, 7] {
        refused("gptq-4", &|settings, _| settings["bits"] = json!(bits), &format!("{bits} bits"));
    }
    refused("gptq-4", &|settings, _| settings["checkpoint_format"] = json!("marlin"), "marlin");
    refused("awq-4", &|settings, _| settings["version"] = json!("gemv"), "gemm");
    refused("awq-4", &|settings, _| settings["bits"] = json!(8), "AWQ");
    for size in [-1, 0, 7, i64::MAX] {
        refused("awq-4", &|settings, _| settings["group_size"] = json!(size), "4 groups for 64 columns");
        refused(
            "int4-group",
            &|settings, _| settings["config_groups"]["group_0"]["weights"]["group_size"] = json!(size),
            "4 groups for 64 columns",
        );
    }
    for (rows, cols) in [(1i64 << 31, 1i64 << 31), (-1, 64), (32, 0), (32, i64::MAX), (1 << 20, 64), (32, 65)]
    {
        refused("int4-group", &|_, parts| sizes(parts, rows, cols), GATE);
    }
    refused(
        "int4-group",
        &|settings, _| {
            let group = settings["config_groups"]["group_0"].clone();
            settings["config_groups"]["group_1"] = group;
        },
        "several",
    );
    for block in [json!([0, 128]), json!([128]), json!("all"), json!([-1, 4])] {
        refused("fp8-tensor", &|settings, _| settings["weight_block_size"] = block.clone(), "two positive");
    }
    refused("nvfp4-modelopt", &|settings, _| settings["quant_algo"] = json!("W4A8_AWQ"), "W4A8_AWQ");
    refused("bitnet", &|settings, _| settings["quant_method"] = json!("hqq"), "hqq");
}
