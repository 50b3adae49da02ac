//! Weights of GPTQ, AWQ, compressed-tensors and MXFP4 against codes that are packed here, value by value.

mod common;

use common::{Tensor, tensor, write};
use kbit_formats::Checkpoint;
use kbit_models::{ConvertOptions, convert};
use kbit_types::Dtype;
use serde_json::{Value as Json, json};

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
    let config = json!({
        "architectures": ["Qwen2ForCausalLM"], "hidden_size": COLS, "intermediate_size": ROWS,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 40,
        "tie_word_embeddings": true, "quantization_config": settings
    });
    let hidden = COLS as u64;
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
        ("mlp.up_proj", &[ROWS as u64, hidden]),
        ("mlp.down_proj", &[hidden, ROWS as u64]),
    ] {
        tensors.push(tensor(&format!("model.layers.0.{name}.weight"), shape));
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write(&folder.path().join("model.safetensors"), &tensors);
    let checkpoint = Checkpoint::open(folder.path()).map_err(|error| error.to_string())?;
    let options = ConvertOptions { without_tokenizer: true, ..ConvertOptions::default() };
    let conversion = convert(&checkpoint, &options).map_err(|error| error.to_string())?;
    let gate = conversion.tensors.iter().find(|t| t.name == "blk.0.ffn_gate.weight").unwrap();
    assert_eq!(gate.shape, [ROWS as u64, COLS as u64]);
    let mut all = vec![0.0; ROWS * COLS];
    gate.expr.read_rows(&checkpoint, 0, 0..ROWS as u64, &mut all).map_err(|error| error.to_string())?;
    for (first, last) in [(0, 1), (3, 11), (ROWS - 5, ROWS)] {
        let mut slab = vec![0.0; (last - first) * COLS];
        gate.expr.read_rows(&checkpoint, 0, first as u64..last as u64, &mut slab).unwrap();
        assert_eq!(slab, all[first * COLS..last * COLS], "rows {first}..{last}");
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
