//! Types of the KV cache: what results may not depend on, how far they are from f32, and what they take.
#![expect(clippy::print_stdout, reason = "tests say what they measured")]

mod common;

use common::{Plain, bits, logits, model, random_tensors, small, tokens, with_threads};
use kbit_engine::{CacheType, CacheTypes, Description, EngineError, Model, Session};
use std::sync::Arc;

/// Every type for both, and types that differ.
fn all_types() -> Vec<CacheTypes> {
    ["f32", "f16", "q8", "q4", "q8,f16", "f32,q4", "q4,q8"].map(|name| name.parse().unwrap()).to_vec()
}

/// Descriptions whose attention differs: groups of heads, windows, heads of whole groups and not.
fn variants() -> Vec<(&'static str, Description)> {
    let mut variants = vec![("as it is", small())];
    let mut add = |name, change: &dyn Fn(&mut Description)| {
        let mut description = small();
        change(&mut description);
        variants.push((name, description));
    };
    add("wide heads", &|d| {
        (d.head_dim, d.value_dim) = (70, 64);
        d.attention.scale = 1.0 / 70f32.sqrt();
    });
    add("one key head", &|d| d.kv_heads = 1);
    add("sliding window", &|d| d.blocks.iter_mut().for_each(|block| block.window = Some(70)));
    variants
}

#[test]
fn logits_do_not_depend_on_threads_or_on_how_the_prompt_is_split() {
    for (name, d) in variants() {
        let tensors = random_tensors(&d, 1, true);
        let tokens = tokens(&d, 300, 5);
        for types in all_types() {
            let model = model(&d, &tensors).with_cache(types);
            let whole = bits(&logits(&model, &tokens));
            // Spinning threads take long for tokens one by one where they have no processors of their own.
            for (threads, step) in [(1, 1), (1, 129), (2, 17), (2, 300), (3, 64), (3, 300)] {
                let pieces = with_threads(threads, || {
                    let mut session = model.session(tokens.len());
                    let mut pieces = Vec::new();
                    for chunk in tokens.chunks(step) {
                        let mut part = Vec::new();
                        session.forward(chunk, 0, &mut part).unwrap();
                        pieces.extend(part);
                    }
                    bits(&pieces)
                });
                assert!(whole == pieces, "{name}, {types}: {threads} threads, {step} tokens at a time");
            }
        }
    }
}

#[test]
fn texts_together_give_what_each_gives_alone() {
    let d = small();
    for types in all_types() {
        let model = model(&d, &random_tensors(&d, 1, true)).with_cache(types);
        let texts = [tokens(&d, 100, 1), tokens(&d, 3, 2), tokens(&d, 256, 3)];
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let mut session = model.session(600);
        let mut states = Vec::new();
        session.hidden_states(&texts, 0, &mut states).unwrap();
        let mut together = vec![0.0; states.len() / d.hidden * d.vocab];
        session.logits(&states, &mut together).unwrap();
        let alone: Vec<f32> = texts.iter().flat_map(|text| logits(&model, text)).collect();
        assert!(bits(&together) == bits(&alone), "{types}");
    }
}

#[test]
fn forgotten_tokens_leave_nothing_behind() {
    let d = small();
    for types in all_types() {
        let model = model(&d, &random_tensors(&d, 1, true)).with_cache(types);
        let (first, second) = (tokens(&d, 200, 1), tokens(&d, 150, 2));
        let mut session = model.session(300);
        let mut out = Vec::new();
        session.forward(&first, 0, &mut out).unwrap();
        session.truncate(61);
        session.forward(&second, 0, &mut out).unwrap();
        let text: Vec<u32> = first[..61].iter().chain(&second).copied().collect();
        assert!(bits(&out) == bits(&logits(&model, &text)[61 * d.vocab..]), "{types}, truncated");
        session.clear();
        session.forward(&second, 0, &mut out).unwrap();
        assert!(bits(&out) == bits(&logits(&model, &second)), "{types}, cleared");
    }
}

#[test]
fn errors_are_those_of_the_rounding() {
    for (name, d) in variants() {
        let tensors = random_tensors(&d, 1, true);
        let tokens = tokens(&d, 200, 9);
        let exact = logits(&model(&d, &tensors), &tokens);
        let deviation = (exact.iter().map(|x| x * x).sum::<f32>() / exact.len() as f32).sqrt();
        // What the rounding of one number is at most, as a share of the largest of its group. Attention takes means of many such
        // numbers, and the errors go in all directions; so in the logits as a whole they are smaller, but of that order.
        for (ty, bound) in
            [(CacheType::F16, 1.0 / 2048.0), (CacheType::Q8, 0.5 / 127.0), (CacheType::Q4, 1.0 / 8.0)]
        {
            for (keys, values) in [(ty, ty), (ty, CacheType::F32), (CacheType::F32, ty)] {
                let types = CacheTypes { keys, values };
                let got = logits(&model(&d, &tensors).with_cache(types), &tokens);
                let square = got.iter().zip(&exact).map(|(got, want)| (got - want).powi(2)).sum::<f32>();
                let error = (square / exact.len() as f32).sqrt() / deviation;
                println!("{name}, {types}: {error:.1e} of the logits' deviation, at most {bound:.1e}");
                assert!(error > bound / 1000.0 && error < bound, "{name}, {types}: {error}");
            }
        }
    }
}

#[test]
fn memory_is_what_the_types_say() {
    let mut d = small();
    (d.head_dim, d.value_dim) = (64, 64);
    let heads = d.layers * d.kv_heads;
    let tensors = random_tensors(&d, 1, true);
    for (types, bytes) in [("f32", 512), ("f16", 256), ("q8", 136), ("q4", 72), ("q8,f32", 68 + 256)] {
        let model = model(&d, &tensors).with_cache(types.parse().unwrap());
        assert_eq!(model.cache_bytes_per_token(), heads * bytes, "{types}");
        let mut session = model.session(300);
        assert_eq!(session.cache_bytes(), 0);
        for (more, blocks) in [(1, 1), (127, 1), (1, 2), (100, 2)] {
            session.forward(&tokens(&d, more, 1), more, &mut Vec::new()).unwrap();
            assert_eq!(session.cache_bytes(), blocks * 128 * model.cache_bytes_per_token(), "{types}");
        }
    }
}

/// A model whose keys are larger by `factor`.
fn with_large_keys(factor: f32) -> Model {
    let d = small();
    let mut tensors = random_tensors(&d, 1, true);
    let codec = &tensors["blk.1.attn_k.weight"][0];
    let shape = codec.shape();
    let (rows, cols) = (shape.rows as usize, shape.cols as usize);
    let mut data = vec![0.0; rows * cols];
    codec.decode(0..shape.rows, &mut data, cols).unwrap();
    data.iter_mut().for_each(|x| *x *= factor);
    tensors.insert("blk.1.attn_k.weight".to_owned(), vec![Arc::new(Plain::new(rows, cols, data))]);
    model(&d, &tensors)
}

#[test]
fn numbers_that_a_type_cannot_hold_are_refused_and_change_nothing() {
    let too_large = [("f16", 1e6), ("q8", 1e8), ("q4,f32", 1e7)];
    for (types, factor) in too_large {
        let model = with_large_keys(factor).with_cache(types.parse().unwrap());
        let mut session = model.session(10);
        let error = session.forward(&[1, 2, 3], 0, &mut Vec::new()).unwrap_err();
        let EngineError::CacheRange { what: "key", layer: 1, position: 0..3, value, .. } = error else {
            panic!("{types}: {error}");
        };
        assert!(value.abs() >= 65520.0);
        assert!(error.to_string().ends_with("cannot hold: use another type of the cache, as f32"), "{error}");
        assert_eq!(session.len(), 0);
    }
    for types in ["f32", "f32,q4"] {
        let mut out = Vec::new();
        let model = with_large_keys(1e8).with_cache(types.parse().unwrap());
        model.session(10).forward(&[1, 2, 3], 0, &mut out).unwrap();
        assert!(out.iter().all(|x| x.is_finite()), "{types}");
    }
}

#[test]
fn what_is_not_finite_shows_in_the_logits() {
    for types in all_types() {
        for factor in [f32::NAN, f32::INFINITY] {
            let model = with_large_keys(factor).with_cache(types);
            let mut out = Vec::new();
            model.session(Session::BATCH).forward(&[1, 2, 3], 0, &mut out).unwrap();
            assert!(out.iter().all(|x| x.is_nan()), "{types}, {factor}");
        }
    }
}
