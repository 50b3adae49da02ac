//! Mixes of one's own: what the rules mean, and how mistakes are told.

use kbit_mixes::{Mix, MixError, ModelFacts, Options, Stored, TensorFacts, choose};
use kbit_types::GgmlType;
use regex::Regex;
use std::path::Path;

fn mix(text: &str) -> Mix {
    Mix::parse(Path::new("own.yaml"), text).unwrap_or_else(|error| panic!("{error}"))
}

fn mistakes(text: &str) -> String {
    Mix::parse(Path::new("own.yaml"), text).expect_err("a mistake").to_string()
}

fn model(layers: u64) -> ModelFacts {
    ModelFacts { architecture: "llama".into(), layers, grouped_heads: 1, ..ModelFacts::default() }
}

/// Types of `names`, all of 4 rows of 256 weights.
fn types(mix: &Mix, model: &ModelFacts, names: &[&str]) -> Result<Vec<Stored>, MixError> {
    let tensors: Vec<_> = names.iter().map(|name| TensorFacts { name, shape: &[4, 256] }).collect();
    let choices = choose(mix, model, &tensors, &Options::default(), false)?;
    Ok(choices.into_iter().map(|choice| choice.stored).collect())
}

#[test]
fn the_first_rule_that_holds_decides() {
    let mix = mix(
        "type: Q4_K\nrules:\n  - { role: values, block: ..1, type: Q8_0 }\n  - { role: values, type: Q6_K }\n",
    );
    let names = ["blk.0.attn_v.weight", "blk.1.attn_v.weight", "blk.1.attn_k.weight"];
    let expected = [GgmlType::Q8_0, GgmlType::Q6_K, GgmlType::Q4_K].map(Stored::As);
    assert_eq!(types(&mix, &model(2), &names), Ok(expected.to_vec()));
}

#[test]
fn rules_of_a_built_in_mix_can_follow_ones_own() {
    let mix = mix("type: Q4_K\nrules:\n  - { name: 'blk\\.0\\.', type: F16 }\n  - use: q4_k_m\n");
    let names = ["blk.0.attn_v.weight", "blk.1.attn_v.weight", "output.weight"];
    let expected = [GgmlType::F16, GgmlType::Q6_K, GgmlType::Q6_K].map(Stored::As);
    assert_eq!(types(&mix, &model(2), &names), Ok(expected.to_vec()));
}

#[test]
fn tensors_can_be_kept_by_a_rule() {
    let mix = mix("type: Q4_K\nrules: [{ role: attn_k, type: keep }]\n");
    assert_eq!(types(&mix, &model(1), &["blk.0.attn_k.weight"]), Ok(vec![Stored::Kept]));
}

#[test]
fn counts_go_by_block_and_name_whatever_the_order_of_the_tensors() {
    let mix = mix("type: Q4_K\nrules: [{ role: values, count: ..1, type: Q8_0 }]\n");
    let names = ["blk.10.attn_v.weight", "blk.9.attn_v.weight", "blk.11.attn_v.weight"];
    let expected = [GgmlType::Q4_K, GgmlType::Q8_0, GgmlType::Q4_K].map(Stored::As);
    assert_eq!(types(&mix, &model(12), &names), Ok(expected.to_vec()));
}

#[test]
fn overridden_tensors_are_not_counted() {
    let mix = mix("type: Q4_K\nrules: [{ role: values, count: ..1, type: Q8_0 }]\n");
    let tensors =
        ["blk.0.attn_v.weight", "blk.1.attn_v.weight"].map(|name| TensorFacts { name, shape: &[4, 256] });
    let overrides = vec![(Regex::new("blk.0").unwrap(), Some(GgmlType::F16))];
    let options = Options { overrides, ..Options::default() };
    let choices = choose(&mix, &model(2), &tensors, &options, false).unwrap();
    assert_eq!(choices.map_stored(), [GgmlType::F16, GgmlType::Q8_0].map(Stored::As));
}

trait MapStored {
    fn map_stored(&self) -> Vec<Stored>;
}

impl MapStored for Vec<kbit_mixes::Choice> {
    fn map_stored(&self) -> Vec<Stored> {
        self.iter().map(|choice| choice.stored).collect()
    }
}

#[test]
fn outer_axes_of_one_do_not_make_a_matrix() {
    let mix = mix("type: Q4_K\n");
    let tensors = [
        TensorFacts { name: "a.weight", shape: &[1, 256] },
        TensorFacts { name: "b.weight", shape: &[2, 1] },
    ];
    let choices = choose(&mix, &model(1), &tensors, &Options::default(), false).unwrap();
    assert_eq!(choices.map_stored(), [Stored::Kept, Stored::As(GgmlType::F16)]);
    assert_eq!(choices[1].wanted, Some(GgmlType::Q4_K));
}

#[test]
fn a_layer_that_the_name_does_not_tell_is_an_error_with_the_tensor() {
    let mix = mix("type: Q4_K\nrules: [{ role: ffn_down, layer: ..1/8, type: Q8_0 }]\n");
    let experts = ModelFacts { experts: 4, ..model(8) };
    let error = types(&mix, &experts, &["dec.0.ffn_down.weight"]).unwrap_err();
    assert!(error.to_string().contains("dec.0.ffn_down.weight"), "{error}");
    assert!(types(&mix, &model(8), &["dec.0.ffn_down.weight"]).is_ok());
}

#[test]
fn overrides_are_refused_where_tensors_are_only_converted() {
    let f16 = kbit_mixes::builtin("f16").unwrap();
    let overrides = vec![(Regex::new("attn").unwrap(), Some(GgmlType::Q8_0))];
    let options = Options { overrides, ..Options::default() };
    let error = choose(f16, &model(1), &[], &options, false).unwrap_err();
    assert!(error.to_string().contains("ggml:f16"), "{error}");
}

#[test]
fn a_wrong_key_is_told_with_its_place_and_the_nearest_one() {
    let text = mistakes("type: Q4_K\nrules:\n  - { rol: values, type: Q8_0 }\n");
    assert!(text.starts_with("own.yaml:3:7: unknown key `rol`"), "{text}");
    assert!(text.contains("did you mean `role`?"), "{text}");
}

#[test]
fn a_wrong_role_type_or_range_is_told_with_its_place() {
    for (text, place, part) in [
        ("type: Q4_K\nrules:\n  - { role: value, type: Q8_0 }\n", "own.yaml:3:13:", "`values`"),
        ("type: Q4_X\n", "own.yaml:1:7:", "did you mean `Q4_"),
        ("type: Q4_K\nrules: [{ layer: 1/0.., type: Q8_0 }]\n", "own.yaml:2:18:", "range of layers"),
        ("type: Q4_K\nrules: [{ experts: many, type: Q8_0 }]\n", "own.yaml:2:20:", "a number, or a range"),
        ("type: Q4_K\nrules: [{ name: '(', type: Q8_0 }]\n", "own.yaml:2:17:", "regular expression"),
        ("type: Q4_K\nrules: [{ role: values }]\n", "own.yaml:2:9:", "needs the key `type`"),
        ("type: Q4_K\nrules: [{ use: q4_0x }]\n", "own.yaml:2:16:", "did you mean `q4_0`?"),
        ("type: Q4_K\nrules: [{ use: q4_k_m, role: values }]\n", "own.yaml:2:24:", "beside `use`"),
        ("rules: []\n", "own.yaml:1:", "at least one item"),
        ("name: x\n", "own.yaml:1:1:", "needs the key `type`"),
        ("type: [Q4_K\n", "own.yaml:", "mend the YAML"),
    ] {
        let error = mistakes(text);
        assert!(error.contains(place) && error.contains(part), "{text}\n{error}");
    }
}

#[test]
fn every_mistake_is_told_at_once() {
    let text = mistakes("type: Q4_K\nrules:\n  - { role: value, type: Q8_0 }\n  - { layr: 3, type: Q8_0 }\n");
    assert!(text.contains("own.yaml:3:") && text.contains("own.yaml:4:"), "{text}");
}

#[test]
fn a_file_that_is_not_there_is_told_by_name() {
    let error = Mix::read(Path::new("/nowhere/own.yaml")).unwrap_err().to_string();
    assert!(error.contains("/nowhere/own.yaml") && error.contains("cannot read the mix"), "{error}");
}

#[test]
fn the_mix_of_the_guide_is_right() {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/guide/mixes.md");
    let guide = std::fs::read_to_string(guide).unwrap();
    let blocks = guide.split("```yaml\n").skip(1).map(|block| block.split("```").next().unwrap());
    let mixes: Vec<_> = blocks.filter(|block| block.contains("rules:")).map(mix).collect();
    assert_eq!(mixes.len(), 1);
    assert_eq!(mixes[0].name, "Q4_K_V8");
}
