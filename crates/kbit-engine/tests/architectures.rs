//! Every architecture against the logits of Hugging Face transformers, on the tiny random checkpoints in `models`, which
//! `tests/python/tiny_models.py` makes.
#![expect(clippy::print_stdout, reason = "tests say what they measured")]

mod common;
#[path = "common/reference.rs"]
mod reference;

use common::{
    Plain, Tensors, bits, folder_tensors, load_folder, logits, model, random_tensors, repository,
    with_threads,
};
use kbit_engine::{Description, EngineError};
use kbit_formats::gguf::{Metadata, Value};
use kbit_models::architecture::ARCHITECTURES;
use kbit_models::description::{Activation, Experts, Gating, Position, Residual, Rope, RopeScaling};
use kbit_types::{Codec, GgmlType};
use reference::{difference, in_every_way, reference};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

/// Folders of the checkpoints.
fn models() -> Vec<PathBuf> {
    let folder = repository().join("crates/kbit-engine/tests/models");
    let mut models: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    models.sort();
    models
}

#[test]
fn logits_agree_with_transformers() {
    let mut wrong = Vec::new();
    for folder in models() {
        let (ids, expected) = reference(&folder);
        let (model, _) = load_folder(&folder, None);
        let difference = difference(&in_every_way(&model, &ids), &expected);
        println!("{}: {difference:.1e} of the logits' deviation", folder.display());
        // Sums of f32 in another order.
        if difference.is_nan() || difference > 1e-4 {
            wrong.push(format!("{}: {difference}", folder.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What a description may say, and how to unsay it.
type Fact = (&'static str, fn(&mut Description));

const FACTS: &[Fact] = &[
    ("bound of scores", |d| d.attention.cap = None),
    ("bound of logits", |d| d.output_cap = None),
    ("bound of queries, keys and values", |d| d.attention.clamp = None),
    ("windows", |d| d.blocks.iter_mut().for_each(|block| block.window = None)),
    ("positions", |d| d.blocks.iter_mut().for_each(|block| block.position = Position::None)),
    ("blocks without positions", |d| {
        let with = d.blocks[0].position.clone();
        d.blocks.iter_mut().for_each(|block| block.position = with.clone());
    }),
    ("rotary scaling", |d| each_rope(d, |rope| rope.scaling = RopeScaling::None)),
    ("frequency factors", |d| each_rope(d, |rope| rope.factors = None)),
    ("magnitude", |d| {
        each_rope(d, |rope| match &mut rope.scaling {
            RopeScaling::Yarn { attention, .. } | RopeScaling::LongRope { attention, .. } => *attention = 1.0,
            _ => {}
        });
    }),
    ("bounds of YaRN", |d| {
        each_rope(d, |rope| {
            if let RopeScaling::Yarn { whole_pairs: whole_pairs @ false, .. } = &mut rope.scaling {
                *whole_pairs = true;
            }
        });
    }),
    ("norms of heads", |d| d.attention.head_norm = None),
    ("sinks", |d| d.attention.sinks = false),
    ("factor on the embedding", |d| d.embedding.scale = 1.0),
    ("factor on scores", |d| d.attention.scale = 1.0 / (d.head_dim as f32).sqrt()),
    ("factor on the residual stream", |d| d.residual_scale = 1.0),
    ("factor on logits", |d| d.output_scale = 1.0),
    ("groups of experts", |d| d.experts.iter_mut().for_each(|experts| experts.groups = None)),
    ("sum of weights", |d| d.experts.iter_mut().for_each(|experts| experts.normalised ^= true)),
    ("experts one by one", |d| {
        if let Some(Experts { gating: gating @ Gating::SparseMixer { .. }, .. }) = &mut d.experts {
            *gating = Gating::Softmax;
        }
    }),
    ("experts that are close", |d| {
        if let Some(Experts { gating: Gating::SparseMixer { tolerance }, .. }) = &mut d.experts {
            *tolerance = 0.02;
        }
    }),
    ("factor on experts", |d| d.experts.iter_mut().for_each(|experts| experts.scale = 1.0)),
    ("shared expert", |d| d.experts.iter_mut().for_each(|experts| experts.shared = None)),
    ("kind of GELU", |d| match d.activation {
        Activation::Gelu => d.activation = Activation::GeluTanh,
        Activation::GeluTanh => d.activation = Activation::Gelu,
        _ => {}
    }),
    ("side by side", |d| {
        if d.residual == Residual::Parallel {
            d.residual = Residual::Sequential;
        }
    }),
];

fn each_rope(d: &mut Description, change: impl Fn(&mut Rope)) {
    for block in &mut d.blocks {
        if let Position::Rope(rope) = &mut block.position {
            change(rope);
        }
    }
}

#[test]
fn checkpoints_show_whatever_their_descriptions_say() {
    // These two say nothing: a softmax sums to one, and the factors are those of shorter contexts.
    let silent = [("gpt-oss", "sum of weights"), ("phi3-long", "frequency factors")];
    let (mut seen, mut unseen) = (BTreeSet::new(), Vec::new());
    for folder in models() {
        let name = folder.file_name().unwrap().to_str().unwrap();
        let (ids, expected) = reference(&folder);
        let (conversion, tensors) = folder_tensors(&folder, None);
        let description = conversion.description.unwrap();
        for (fact, unsay) in FACTS {
            let mut changed = description.clone();
            unsay(&mut changed);
            if changed == description || silent.contains(&(name, fact)) {
                continue;
            }
            seen.insert(*fact);
            let difference = difference(&logits(&model(&changed, &tensors), &ids), &expected);
            if difference < 2e-4 {
                unseen.push(format!("{name}: {fact} ({difference:.1e})"));
            }
        }
    }
    assert!(unseen.is_empty(), "{unseen:#?}");
    assert_eq!(seen.len(), FACTS.len());
}

#[test]
fn every_architecture_that_can_be_run_has_a_checkpoint() {
    let tested: BTreeSet<String> = models()
        .iter()
        .map(|folder| load_folder(folder, None).0.description().architecture.clone())
        .collect();
    let runnable = ARCHITECTURES
        .iter()
        .filter(|a| a.forward.is_some())
        .map(|a| a.name.to_owned())
        .collect::<BTreeSet<_>>();
    assert_eq!(tested, runnable);
}

#[test]
fn results_do_not_depend_on_the_thread_count() {
    for folder in models() {
        let (ids, _) = reference(&folder);
        let (model, _) = load_folder(&folder, None);
        let run = |threads| with_threads(threads, || bits(&logits(&model, &ids)));
        let one = run(1);
        assert_eq!(one, run(2), "{}: 2 threads", folder.display());
        assert_eq!(one, run(3), "{}: 3 threads", folder.display());
    }
}

#[test]
fn a_file_says_what_its_folder_says() {
    for folder in models() {
        let (conversion, tensors) = folder_tensors(&folder, None);
        let wanted = conversion.description.unwrap();
        // GGUF has no word for dynamic scaling.
        if !folder.ends_with("llama-dynamic") {
            let found = described(&conversion.metadata, &tensors);
            assert_eq!(found, wanted, "{}", folder.display());
        }
    }
}

fn described(metadata: &Metadata, tensors: &Tensors) -> Description {
    kbit_models::describe(metadata, &|name| tensors.contains_key(name)).unwrap()
}

fn folder(name: &str) -> PathBuf {
    repository().join("crates/kbit-engine/tests/models").join(name)
}

/// All rows of a slice of a tensor.
fn rows(tensors: &Tensors, name: &str, slice: usize) -> Vec<Vec<f32>> {
    let codec = &tensors[name][slice];
    let cols = codec.shape().cols as usize;
    let mut data = vec![0.0; codec.shape().rows as usize * cols];
    codec.decode(0..codec.shape().rows, &mut data, cols).unwrap();
    data.chunks(cols).map(<[f32]>::to_vec).collect()
}

fn tensor(rows: &[Vec<f32>]) -> Vec<Arc<dyn Codec>> {
    vec![Arc::new(Plain::new(rows.len(), rows[0].len(), rows.concat()))]
}

#[test]
fn older_files_have_latent_attention_unabsorbed() {
    for name in ["deepseek-v2", "deepseek-v3"] {
        let (conversion, mut tensors) = folder_tensors(&folder(name), None);
        let wanted = conversion.description.unwrap();
        let latent = wanted.attention.latent.unwrap();
        for layer in 0..wanted.layers {
            let mut all = Vec::new();
            for head in 0..wanted.heads {
                let keys = rows(&tensors, &format!("blk.{layer}.attn_k_b.weight"), head);
                all.extend((0..latent.nope).map(|i| keys.iter().map(|row| row[i]).collect::<Vec<f32>>()));
                all.extend(rows(&tensors, &format!("blk.{layer}.attn_v_b.weight"), head));
            }
            for part in ["attn_k_b", "attn_v_b"] {
                tensors.remove(&format!("blk.{layer}.{part}.weight"));
            }
            tensors.insert(format!("blk.{layer}.attn_kv_b.weight"), tensor(&all));
        }
        let mut metadata = conversion.metadata;
        for (key, value) in [
            ("head_count_kv", wanted.heads),
            ("key_length", latent.nope + latent.rope),
            ("value_length", latent.value),
        ] {
            metadata.insert(format!("deepseek2.attention.{key}"), Value::U32(u32::try_from(value).unwrap()));
            metadata.remove(&format!("deepseek2.attention.{key}_mla"));
        }
        let found = described(&metadata, &tensors);
        assert!(!found.attention.latent.unwrap().absorbed);
        let (ids, expected) = reference(&folder(name));
        let difference = difference(&in_every_way(&model(&found, &tensors), &ids), &expected);
        println!("{name}, keys and values made of the latent vector: {difference:.1e}");
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

#[test]
fn older_files_have_queries_keys_and_values_in_one_matrix() {
    let (conversion, mut tensors) = folder_tensors(&folder("phi2"), None);
    let wanted = conversion.description.unwrap();
    for layer in 0..wanted.layers {
        let part = |name: &str, ending: &str| format!("blk.{layer}.attn_{name}.{ending}");
        for ending in ["weight", "bias"] {
            let all: Vec<Vec<f32>> =
                ["q", "k", "v"].iter().flat_map(|name| rows(&tensors, &part(name, ending), 0)).collect();
            let all = if ending == "bias" { vec![all.concat()] } else { all };
            for name in ["q", "k", "v"] {
                tensors.remove(&part(name, ending));
            }
            tensors.insert(part("qkv", ending), tensor(&all));
        }
    }
    let found = described(&conversion.metadata, &tensors);
    let (ids, _) = reference(&folder("phi2"));
    let apart = logits(&load_folder(&folder("phi2"), None).0, &ids);
    assert_eq!(bits(&in_every_way(&model(&found, &tensors), &ids)), bits(&apart));
}

#[test]
fn some_files_have_gate_and_up_of_experts_in_one_stack() {
    for name in ["deepseek-v2", "qwen3moe", "mixtral"] {
        let (conversion, mut tensors) = folder_tensors(&folder(name), None);
        let wanted = conversion.description.unwrap();
        let experts = wanted.experts.unwrap();
        for layer in (0..wanted.layers).filter(|layer| wanted.blocks[*layer].experts) {
            let part = |part: &str| format!("blk.{layer}.ffn_{part}_exps.weight");
            let of = |expert| {
                let both =
                    [rows(&tensors, &part("gate"), expert), rows(&tensors, &part("up"), expert)].concat();
                tensor(&both).remove(0)
            };
            let both = (0..experts.count).map(of).collect();
            for apart in ["gate", "up"] {
                tensors.remove(&part(apart));
            }
            tensors.insert(part("gate_up"), both);
        }
        let found = described(&conversion.metadata, &tensors);
        assert!(found.experts.unwrap().fused);
        let (ids, _) = reference(&folder(name));
        let apart = logits(&load_folder(&folder(name), None).0, &ids);
        assert_eq!(bits(&in_every_way(&model(&found, &tensors), &ids)), bits(&apart), "{name}");
        let stack = tensors.iter_mut().find(|(name, _)| name.contains("gate_up")).unwrap();
        let (stacked, _) = (stack.0.clone(), stack.1.pop());
        let mut answer = |name: &str| Ok(tensors.get(name).cloned());
        let error = kbit_engine::Model::new(found, &mut answer).unwrap_err().to_string();
        assert!(error.starts_with(&format!("tensor {stacked}: found ")), "{error}");
    }
}

#[test]
fn learned_positions_end_where_their_table_ends() {
    for name in ["gpt2", "gptneo", "opt"] {
        let (model, _) = load_folder(&folder(name), None);
        let mut session = model.session(100);
        let mut logits = Vec::new();
        session.forward(&[5; 32], 31, &mut logits).unwrap();
        let error = session.forward(&[5], 0, &mut logits).unwrap_err();
        assert!(matches!(error, EngineError::Positions { needed: 33, positions: 32 }), "{error}");
        assert_eq!(session.len(), 32);
    }
}

#[test]
fn computed_positions_go_on_past_the_trained_context() {
    for name in ["llama", "bloom", "falcon", "gemma2"] {
        let (model, _) = load_folder(&folder(name), None);
        let found = logits(&model, &[5; 150]);
        assert!(found.iter().all(|logit| logit.is_finite()), "{name}");
    }
}

#[test]
fn experts_that_contradict_the_metadata_are_named() {
    let (conversion, tensors) = folder_tensors(&folder("mixtral"), None);
    let description = conversion.description.unwrap();
    let refused = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        let mut found = |name: &str| Ok(tensors.get(name).cloned());
        kbit_engine::Model::new(description.clone(), &mut found).unwrap_err().to_string()
    };
    let name = "blk.1.ffn_up_exps.weight";
    let error = refused(&|tensors| drop(tensors.get_mut(name).unwrap().pop()));
    assert!(error.starts_with(&format!("tensor {name}: found [3, 8, 12], wanted [4, 8, 12]")), "{error}");
    let error =
        refused(&|tensors| tensors.get_mut(name).unwrap()[2] = Arc::new(Plain::new(7, 12, vec![0.0; 84])));
    assert!(error.starts_with(&format!("tensor {name}: ")), "{error}");
    let error = refused(&|tensors| drop(tensors.insert(name.to_owned(), Vec::new())));
    assert!(error.starts_with(&format!("tensor {name}: found [0, ")), "{error}");
    let error = refused(&|tensors| drop(tensors.remove("blk.0.ffn_gate_inp.weight")));
    assert!(error.starts_with("tensor blk.0.ffn_gate_inp.weight [4, 12] is missing"), "{error}");
}

#[test]
fn experts_of_any_codec_are_multiplied() {
    // Rows of 32 are whole blocks; the same weights as floats give the same bits.
    let (conversion, tensors) = folder_tensors(&folder("mixtral"), None);
    let mut description = conversion.description.unwrap();
    (description.hidden, description.embedding.width, description.feed_forward) = (32, 32, 32);
    (description.head_dim, description.value_dim) = (8, 8);
    if let Some(experts) = &mut description.experts {
        experts.width = 32;
    }
    for block in &mut description.blocks {
        if let Position::Rope(rope) = &mut block.position {
            rope.dims = 8;
        }
    }
    drop(tensors);
    let plain = random_tensors(&description, 1, true);
    for ty in [GgmlType::Q8_0, GgmlType::MXFP4] {
        let (mut packed, mut decoded) = (plain.clone(), plain.clone());
        for (name, codecs) in plain.iter().filter(|(name, _)| name.contains("_exps.weight")) {
            let of = |slice: usize| {
                let data = rows(&plain, name, slice).concat();
                let mut bytes = vec![0; ty.bytes_for(data.len() as u64).unwrap() as usize];
                kbit_blocks::encode_row_range(ty, &data, 32, None, &mut bytes).unwrap();
                Arc::new(kbit_blocks::BlockCodec::new(name, ty, 32, 32, bytes).unwrap()) as Arc<dyn Codec>
            };
            packed.insert(name.clone(), (0..codecs.len()).map(of).collect());
            let floats = |slice: usize| tensor(&rows(&packed, name, slice)).remove(0);
            decoded.insert(name.clone(), (0..codecs.len()).map(floats).collect());
        }
        let ids = common::tokens(&description, 40, 3);
        let of = |tensors: &Tensors| bits(&logits(&model(&description, tensors), &ids));
        assert_eq!(of(&packed), of(&decoded), "{ty:?}");
        assert_ne!(of(&packed), of(&plain), "{ty:?}");
    }
}
