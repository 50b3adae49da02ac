//! Conversion of small checkpoints: what comes out, and what is refused.

mod common;

use common::{Tensor, tensor, write};
use kbit_formats::Checkpoint;
use kbit_formats::gguf::Value;
use kbit_models::description::{Position, RopeScaling};
use kbit_models::{Conversion, ConvertOptions, ModelError, Role, TrainingInfo, convert};
use kbit_types::Dtype;
use serde_json::{Value as Json, json};
use std::path::Path;

/// Configuration of a Llama of two blocks, 16 wide, with 4 query and 2 key heads of 4, and a vocabulary of 40.
fn config() -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 40, "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": false
    })
}

/// The tensors that go with [`config`].
fn tensors() -> Vec<Tensor> {
    let mut tensors = vec![
        tensor("model.embed_tokens.weight", &[40, 16]),
        tensor("lm_head.weight", &[40, 16]),
        tensor("model.norm.weight", &[16]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", &[16][..]),
            ("self_attn.q_proj", &[16, 16]),
            ("self_attn.k_proj", &[8, 16]),
            ("self_attn.v_proj", &[8, 16]),
            ("self_attn.o_proj", &[16, 16]),
            ("post_attention_layernorm", &[16]),
            ("mlp.gate_proj", &[24, 16]),
            ("mlp.up_proj", &[24, 16]),
            ("mlp.down_proj", &[16, 24]),
        ] {
            tensors.push(tensor(&format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    tensors
}

/// A folder with the configuration and the tensors.
fn folder(config: &Json, tensors: &[Tensor]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    write(&folder.path().join("model.safetensors"), tensors);
    folder
}

fn without_tokenizer() -> ConvertOptions {
    ConvertOptions { without_tokenizer: true, ..ConvertOptions::default() }
}

fn converted(config: &Json, tensors: &[Tensor]) -> Result<Conversion, ModelError> {
    let folder = folder(config, tensors);
    convert(&Checkpoint::open(folder.path()).unwrap(), &without_tokenizer())
}

fn refusal(config: &Json, tensors: &[Tensor]) -> String {
    converted(config, tensors).unwrap_err().to_string()
}

fn with(key: &str, value: Json) -> Json {
    let mut config = config();
    config[key] = value;
    config
}

/// The embedded models, which come with the repository.
fn family(name: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/family").join(name)).unwrap()
}

#[test]
fn the_embedded_models_convert() {
    let checkpoint = family("s0");
    let conversion = convert(&checkpoint, &ConvertOptions::default()).unwrap();
    let training = TrainingInfo::read(checkpoint.path()).unwrap().unwrap();
    assert_eq!(conversion.parameters(), training.params);
    let model = conversion.description.as_ref().unwrap();
    assert_eq!((model.layers, model.heads, model.kv_heads, model.head_dim), (2, 2, 1, 32));
    assert!(model.tied_output);
    assert_eq!(conversion.tensors[0].name, "token_embd.weight");
    assert_eq!(conversion.metadata.str("general.name").unwrap(), "S0");
    assert_eq!(conversion.metadata.str("general.size_label").unwrap(), "230K");
    for tensor in &conversion.tensors {
        let dimensions = tensor.shape.len();
        let is_vector = tensor.role == Role::Vector;
        assert_eq!(is_vector, dimensions == 1, "{}", tensor.name);
        assert_eq!(tensor.expr.stored_bits(&checkpoint), Some(16.0));
    }
}

#[test]
fn the_file_type_stands_where_the_converter_puts_it() {
    let conversion = converted(&config(), &tensors()).unwrap();
    let keys = |file_type| -> Vec<String> {
        conversion.metadata_for(file_type).iter().map(|(key, _)| key.to_owned()).collect()
    };
    let all = keys(Some(2));
    let at = |key: &str| all.iter().position(|known| known == key).unwrap();
    assert_eq!(at("general.file_type"), at("llama.attention.value_length") + 1);
    assert_eq!(at("general.quantization_version"), at("llama.rope.dimension_count") + 1);
    assert_eq!(keys(None).len(), all.len() - 1);
}

#[test]
fn defaults_stand_in_for_what_config_json_leaves_out() {
    let mut config = config();
    for key in ["num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings"] {
        config.as_object_mut().unwrap().remove(key);
    }
    let mut tensors = tensors();
    for t in &mut tensors {
        if t.name.contains("k_proj") || t.name.contains("v_proj") {
            *t = tensor(&t.name, &[16, 16]);
        }
    }
    let model = converted(&config, &tensors).unwrap().description.unwrap();
    assert_eq!((model.kv_heads, model.context_length, model.norm.epsilon), (4, 2048, 1e-6));
}

#[test]
fn linear_scaling_is_carried_over() {
    let config = with("rope_scaling", json!({ "type": "linear", "factor": 4.0 }));
    let conversion = converted(&config, &tensors()).unwrap();
    assert_eq!(conversion.metadata.get("llama.rope.scaling.factor"), Some(&Value::F32(4.0)));
    let Position::Rope(rope) = conversion.description.unwrap().blocks.swap_remove(0).position else {
        panic!("no rotary positions");
    };
    assert_eq!((rope.scaling, rope.base), (RopeScaling::Linear { factor: 4.0 }, 10000.0));
}

#[test]
fn biases_are_carried_over_and_permuted() {
    let mut tensors = tensors();
    tensors.push(tensor("model.layers.1.self_attn.q_proj.bias", &[16]));
    let folder = folder(&config(), &tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let conversion = convert(&checkpoint, &without_tokenizer()).unwrap();
    let bias = conversion.tensors.iter().find(|tensor| tensor.name == "blk.1.attn_q.bias").unwrap();
    let mut found = vec![0.0; 16];
    bias.expr.read_rows(&checkpoint, 0, 0..1, &mut found).unwrap();
    let source = tensors.last().unwrap().values();
    let wanted: Vec<f32> = (0..4).flat_map(|head| [0, 2, 1, 3].map(|at| source[head * 4 + at])).collect();
    assert_eq!(found, wanted);
}

#[test]
fn shards_come_in_the_order_of_their_names() {
    let all = tensors();
    let (first, second): (Vec<Tensor>, Vec<Tensor>) =
        all.iter().cloned().partition(|t| t.name.contains("layers.1"));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config().to_string()).unwrap();
    let mut places = serde_json::Map::new();
    for (name, part) in
        [("model-00001-of-00002.safetensors", &first), ("model-00002-of-00002.safetensors", &second)]
    {
        write(&folder.path().join(name), part);
        places.extend(part.iter().map(|t| (t.name.clone(), json!(name))));
    }
    std::fs::write(
        folder.path().join("model.safetensors.index.json"),
        json!({ "weight_map": places }).to_string(),
    )
    .unwrap();
    let conversion = convert(&Checkpoint::open(folder.path()).unwrap(), &without_tokenizer()).unwrap();
    let names: Vec<&str> = conversion.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names[0], "blk.1.attn_norm.weight");
    assert_eq!(names[9..12], ["output.weight", "token_embd.weight", "blk.0.attn_norm.weight"]);
}

#[test]
fn rotary_buffers_are_left_out() {
    let mut tensors = tensors();
    tensors.push(tensor("model.layers.0.self_attn.rotary_emb.inv_freq", &[2]));
    let conversion = converted(&config(), &tensors).unwrap();
    assert_eq!(conversion.dropped, ["model.layers.0.self_attn.rotary_emb.inv_freq"]);
}

#[test]
fn eight_bit_weights_come_with_their_scales() {
    let mut tensors = tensors();
    let gate = tensors.iter_mut().find(|t| t.name == "model.layers.0.mlp.gate_proj.weight").unwrap();
    gate.dtype = Dtype::F8E4M3;
    gate.bytes = (0..24 * 16).map(|at| (at % 0x70) as u8).collect();
    let values = gate.values();
    tensors.push(tensor("model.layers.0.mlp.gate_proj.weight_scale_inv", &[3, 2]));
    let config = with("quantization_config", json!({ "quant_method": "fp8", "weight_block_size": [8, 8] }));
    let folder = folder(&config, &tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let conversion = convert(&checkpoint, &without_tokenizer()).unwrap();
    let gate = conversion.tensors.iter().find(|t| t.name == "blk.0.ffn_gate.weight").unwrap();
    let mut found = vec![0.0; 24 * 16];
    gate.expr.read_rows(&checkpoint, 0, 0..24, &mut found).unwrap();
    let scales = tensors.last().unwrap().values();
    let wanted: Vec<f32> =
        values.iter().enumerate().map(|(at, value)| value * scales[at / 16 / 8 * 2 + at % 16 / 8]).collect();
    assert_eq!(found, wanted);
    assert!(conversion.tensors.iter().all(|t| !t.name.contains("scale")));
}

#[test]
fn rejects_a_gguf_that_is_packed_already() {
    use kbit_formats::gguf::{Array, GgufLayout, GgufWriter, Metadata, WriteOptions};
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", Value::String("llama".to_owned()));
    metadata.insert("kbit.tensors.name", Value::Array(Array::String(vec!["blk.0.attn_q.weight".to_owned()])));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let layout = GgufLayout::new(&metadata, &[], 32).unwrap();
    GgufWriter::create(&layout, &path, &WriteOptions::default()).unwrap().finish().unwrap();
    let error =
        convert(&Checkpoint::open(&path).unwrap(), &ConvertOptions::default()).unwrap_err().to_string();
    assert!(error.contains("packed"), "{error}");
}

#[test]
fn a_gguf_without_a_table_keeps_its_tensors_and_has_no_description() {
    use kbit_formats::gguf::{GgufLayout, GgufWriter, Metadata, NewTensor, WriteOptions};
    let mut metadata = Metadata::new();
    metadata.insert("general.architecture", Value::String("unheard-of".to_owned()));
    let names = ["output_norm.weight", "blk.10.attn_q.weight", "blk.2.attn_q.weight", "token_embd.weight"];
    let new = |name: &str| NewTensor {
        name: name.to_owned(),
        dims: if name.contains("norm") { vec![32] } else { vec![32, 2] },
        ty: kbit_types::GgmlType::F32,
    };
    let layout = GgufLayout::new(&metadata, &names.map(new), 32).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.gguf");
    let writer = GgufWriter::create(&layout, &path, &WriteOptions::default()).unwrap();
    writer.finish().unwrap();
    let conversion = convert(&Checkpoint::open(&path).unwrap(), &ConvertOptions::default()).unwrap();
    let found: Vec<_> = conversion.tensors.iter().map(|t| (t.name.as_str(), t.role)).collect();
    assert_eq!(
        found,
        [
            ("output_norm.weight", Role::Vector),
            ("token_embd.weight", Role::TokenEmbedding),
            ("blk.2.attn_q.weight", Role::Matrix),
            ("blk.10.attn_q.weight", Role::Matrix),
        ]
    );
    assert!(conversion.description.is_none());
}

#[test]
fn rejects_an_architecture_that_it_does_not_know() {
    let error = refusal(&with("architectures", json!(["MambaForCausalLM"])), &tensors());
    assert!(
        error.contains("MambaForCausalLM")
            && error.contains("LlamaForCausalLM")
            && error.contains("llama.cpp"),
        "{error}"
    );
}

#[test]
fn rejects_missing_tensors_naming_all() {
    let mut tensors = tensors();
    tensors.retain(|t| !t.name.contains("up_proj") && t.name != "lm_head.weight");
    let error = refusal(&config(), &tensors);
    for name in [
        "3 tensors",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
        "lm_head.weight",
    ] {
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn an_output_matrix_may_be_missing_where_it_is_tied() {
    let mut tensors = tensors();
    tensors.retain(|t| t.name != "lm_head.weight");
    let conversion = converted(&with("tie_word_embeddings", json!(true)), &tensors).unwrap();
    assert!(conversion.description.unwrap().tied_output);
}

#[test]
fn rejects_a_shape_against_the_configuration() {
    let error = refusal(&with("num_key_value_heads", json!(4)), &tensors());
    assert!(
        error.contains("k_proj.weight") && error.contains("[8, 16]") && error.contains("[16, 16]"),
        "{error}"
    );
}

#[test]
fn rejects_a_block_past_the_last() {
    let error = refusal(&with("num_hidden_layers", json!(1)), &tensors());
    assert!(error.contains("1 blocks") && error.contains("model.layers.1."), "{error}");
}

#[test]
fn rejects_tensors_that_have_no_place() {
    let mut tensors = tensors();
    tensors.push(tensor("model.layers.0.self_attn.q_norm.weight", &[4]));
    tensors.push(tensor("model.layers.00.input_layernorm.weight", &[16]));
    let error = refusal(&config(), &tensors);
    assert!(
        error.contains("q_norm") && error.contains("layers.00") && error.contains("2 tensors"),
        "{error}"
    );
}

#[test]
fn rejects_a_vision_tower_or_passes_it_through() {
    let mut tensors = tensors();
    tensors.push(tensor("vision_tower.patch_embed.weight", &[4, 3]));
    let folder = folder(&config(), &tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = convert(&checkpoint, &without_tokenizer()).unwrap_err();
    assert!(
        matches!(&error, ModelError::OtherModalities { names } if names == &["vision_tower.patch_embed.weight"])
    );
    assert!(error.to_string().contains("--pass-through"));
    let options = ConvertOptions { pass_through_other_modalities: true, ..without_tokenizer() };
    let conversion = convert(&checkpoint, &options).unwrap();
    let last = conversion.tensors.last().unwrap();
    assert_eq!((last.name.as_str(), last.role), ("vision_tower.patch_embed.weight", Role::Other));
}

#[test]
fn a_text_model_within_another_is_found() {
    let inner = config();
    let outer = json!({ "architectures": ["LlavaForConditionalGeneration"], "text_config": inner });
    let mut tensors = tensors();
    for t in &mut tensors {
        t.name = format!("language_model.{}", t.name);
    }
    assert_eq!(converted(&outer, &tensors).unwrap().architecture, "llama");
}

#[test]
fn rejects_a_model_without_tokenizer_unless_asked() {
    let folder = folder(&config(), &tensors());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = convert(&checkpoint, &ConvertOptions::default()).unwrap_err();
    assert!(matches!(error, ModelError::NoTokenizer { .. }), "{error}");
    let conversion = convert(&checkpoint, &without_tokenizer()).unwrap();
    assert_eq!(conversion.metadata.str("tokenizer.ggml.model").unwrap(), "none");
}

/// The tensors of [`tensors`] with two experts instead of each feed-forward network.
fn expert_tensors() -> Vec<Tensor> {
    let mut tensors = tensors();
    tensors.retain(|t| !t.name.contains(".mlp."));
    for layer in 0..2 {
        let moe = format!("model.layers.{layer}.block_sparse_moe");
        tensors.push(tensor(&format!("{moe}.gate.weight"), &[2, 16]));
        for expert in 0..2 {
            for (name, shape) in [("w1", &[24, 16]), ("w2", &[16, 24]), ("w3", &[24, 16])] {
                tensors.push(tensor(&format!("{moe}.experts.{expert}.{name}.weight"), shape));
            }
        }
    }
    tensors
}

#[test]
fn experts_are_stacked() {
    let tensors = expert_tensors();
    let mut config = with("num_local_experts", json!(2));
    config["num_experts_per_tok"] = json!(1);
    let folder = folder(&config, &tensors);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let conversion = convert(&checkpoint, &without_tokenizer()).unwrap();
    let model = conversion.description.unwrap();
    assert_eq!(model.experts.map(|experts| (experts.count, experts.width)), Some((2, 24)));
    assert!(model.blocks.iter().all(|block| block.experts));
    assert_eq!(conversion.metadata.str("general.size_label").unwrap(), "2x5.3K");
    let up = conversion.tensors.iter().find(|t| t.name == "blk.1.ffn_up_exps.weight").unwrap();
    assert_eq!((up.shape.as_slice(), up.role), (&[2, 24, 16][..], Role::Matrix));
    let mut found = vec![0.0; 24 * 16];
    up.expr.read_rows(&checkpoint, 1, 0..24, &mut found).unwrap();
    let source =
        tensors.iter().find(|t| t.name == "model.layers.1.block_sparse_moe.experts.1.w3.weight").unwrap();
    assert_eq!(found, source.values());
}

#[test]
fn rejects_experts_that_are_missing_too_many_or_not_configured() {
    let config = with("num_local_experts", json!(2));
    let mut fewer = expert_tensors();
    fewer.retain(|t| !t.name.contains("layers.1.block_sparse_moe.experts.1.w2"));
    let error = refusal(&config, &fewer);
    assert!(
        error.contains("1 tensors") && error.contains("layers.1.block_sparse_moe.experts.1.w2.weight"),
        "{error}"
    );
    let mut more = expert_tensors();
    more.push(tensor("model.layers.0.block_sparse_moe.experts.2.w1.weight", &[24, 16]));
    let error = refusal(&config, &more);
    assert!(error.contains("experts.2.w1") && error.contains("config.json"), "{error}");
    let error = refusal(&crate::config(), &expert_tensors());
    assert!(error.contains("no place") && error.contains("block_sparse_moe.gate"), "{error}");
    let error = refusal(&config, &tensors());
    assert!(error.contains("no place") && error.contains("mlp.gate_proj"), "{error}");
}

#[test]
fn an_architecture_is_named_by_hand() {
    let folder = folder(&with("architectures", json!(["NovelForCausalLM"])), &tensors());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let error = convert(&checkpoint, &without_tokenizer()).unwrap_err().to_string();
    assert!(error.contains("NovelForCausalLM") && error.contains("--architecture"), "{error}");
    for name in ["llama", "LlamaForCausalLM"] {
        let options = ConvertOptions { architecture: Some(name.to_owned()), ..without_tokenizer() };
        assert_eq!(convert(&checkpoint, &options).unwrap().architecture, "llama");
    }
    let options = ConvertOptions { architecture: Some("lama".to_owned()), ..without_tokenizer() };
    let error = convert(&checkpoint, &options).unwrap_err().to_string();
    assert!(error.contains("lama") && error.contains("qwen3moe"), "{error}");
}

#[test]
fn rejects_weights_quantized_by_a_method_that_it_does_not_read() {
    let error =
        refusal(&with("quantization_config", json!({ "quant_method": "hqq", "nbits": 4 })), &tensors());
    assert!(error.contains("hqq") && error.contains("gptq") && error.contains("unquantized"), "{error}");
}

#[test]
fn rejects_impossible_numbers_in_the_configuration() {
    for (key, value) in [
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("num_hidden_layers", json!(0)),
        ("hidden_size", json!(u64::MAX)),
        ("hidden_size", json!(-1)),
        ("head_dim", json!(5)),
        ("head_dim", json!(u32::MAX)),
        ("vocab_size", json!("many")),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(0.0)),
        ("hidden_act", json!("gelu")),
        ("rope_scaling", json!({ "rope_type": "longrope", "factor": 2.0 })),
        ("rope_scaling", json!({ "rope_type": "llama3", "factor": -2.0 })),
        ("architectures", Json::Null),
    ] {
        assert!(converted(&with(key, value.clone()), &tensors()).is_err(), "{key}: {value}");
    }
}

#[test]
fn rejects_a_damaged_configuration_by_its_line() {
    let folder = folder(&config(), &tensors());
    std::fs::write(folder.path().join("config.json"), "{\n\"architectures\": [\n").unwrap();
    let error =
        convert(&Checkpoint::open(folder.path()).unwrap(), &without_tokenizer()).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("line 3"), "{error}");
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    let error =
        convert(&Checkpoint::open(folder.path()).unwrap(), &without_tokenizer()).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("missing"), "{error}");
}

#[test]
fn rejects_training_json_that_says_something_else() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(TrainingInfo::read(folder.path()).unwrap(), None);
    std::fs::write(folder.path().join("training.json"), "{\"params\": -4}").unwrap();
    assert!(TrainingInfo::read(folder.path()).unwrap_err().to_string().contains("line 1"));
}

/// Standard deviations of the rows of a tensor as the engine has it, in double precision and two passes.
fn row_deviations(checkpoint: &Checkpoint, conversion: &Conversion, name: &str) -> Vec<f32> {
    let tensor = conversion.tensors.iter().find(|tensor| tensor.name == name).unwrap();
    let shape = tensor.expr.shape();
    let mut values = vec![0.0; usize::try_from(shape.rows * shape.cols).unwrap()];
    tensor.expr.read_rows(checkpoint, 0, 0..shape.rows, &mut values).unwrap();
    values.chunks(usize::try_from(shape.cols).unwrap()).map(deviation).collect()
}

fn deviation(values: &[f32]) -> f32 {
    let count = values.len() as f64;
    let mean = values.iter().map(|value| f64::from(*value)).sum::<f64>() / count;
    (values.iter().map(|value| (f64::from(*value) - mean).powi(2)).sum::<f64>() / count).sqrt() as f32
}

#[test]
fn the_producer_of_a_matrix_is_the_one_before_it() {
    let checkpoint = family("s1");
    let conversion = convert(&checkpoint, &ConvertOptions::default()).unwrap();
    let shape_of =
        |name: &str| conversion.tensors.iter().find(|tensor| tensor.name == name).unwrap().expr.shape();
    let deviations = |name: &str| {
        let shape = shape_of(name);
        let producer = conversion.producer(name, shape).unwrap();
        producer.deviations(&checkpoint, shape.cols, 0, shape.slices).unwrap()
    };
    let near = |found: &[f32], wanted: &[f32], what: &str| {
        assert_eq!(found.len(), wanted.len(), "{what}");
        // One pass against two, both in double precision.
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-6 * b.abs();
        assert!(found.iter().zip(wanted).all(close), "{what}");
    };
    let rows = |name: &str| row_deviations(&checkpoint, &conversion, name);
    near(&deviations("blk.1.ffn_down.weight"), &rows("blk.1.ffn_up.weight"), "ffn_down");
    near(&deviations("blk.1.ffn_gate.weight"), &rows("blk.1.attn_output.weight"), "ffn_gate");
    near(&deviations("blk.1.attn_k.weight"), &rows("blk.0.ffn_down.weight"), "attn_k");
    // Four query heads of 32 share two value heads.
    let values = rows("blk.0.attn_v.weight");
    let shared: Vec<f32> =
        [0, 0, 32, 32].iter().flat_map(|first| values[*first..first + 32].to_vec()).collect();
    near(&deviations("blk.0.attn_output.weight"), &shared, "attn_output");
    // Before the first block stands the embedding; its columns are the units.
    let embedding = conversion.tensors.iter().find(|tensor| tensor.name == "token_embd.weight").unwrap();
    let (vocab, hidden) = (embedding.shape[0], usize::try_from(embedding.shape[1]).unwrap());
    let mut all = vec![0.0; usize::try_from(vocab).unwrap() * hidden];
    embedding.expr.read_rows(&checkpoint, 0, 0..vocab, &mut all).unwrap();
    let column = |unit: usize| deviation(&all.iter().skip(unit).step_by(hidden).copied().collect::<Vec<_>>());
    let columns: Vec<f32> = (0..hidden).map(column).collect();
    near(&deviations("blk.0.attn_q.weight"), &columns, "attn_q");
    assert!(conversion.producer("blk.0.attn_norm.weight", shape_of("blk.0.attn_norm.weight")).is_none());
}
