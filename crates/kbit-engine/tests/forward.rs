//! The forward pass against a naive one in double precision, and what its results may not depend on.
#![expect(clippy::print_stdout, reason = "tests say what they measured and what they skipped")]

mod common;

use common::{bits, logits, model, random_tensors, small, tokens, with_threads};
use kbit_engine::{
    Attention, Description, EngineError, InstructionSet, Kernels, MatrixName, Model, Observer, Passed, Rows,
    Session,
};
use kbit_models::description::{Activation, Gate, NormKind, Position, Residual, RopeScaling, RopeStyle};
use kbit_types::{Codec, CodecError, MatrixShape};
use std::ops::Range;
use std::sync::{Arc, Mutex};

/// A transformer as one would write it on a blackboard: double precision, no batches, no cache, no tricks.
struct Naive<'a> {
    d: &'a Description,
    tensors: &'a common::Tensors,
}

impl Naive<'_> {
    fn tensor(&self, name: &str) -> Option<Vec<Vec<f64>>> {
        let codec = &self.tensors.get(name)?[0];
        let MatrixShape { rows, cols, .. } = codec.shape();
        let mut data = vec![0.0; (rows * cols) as usize];
        codec.decode(0..rows, &mut data, cols as usize).unwrap();
        Some(data.chunks(cols as usize).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect())
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mut out: Vec<f64> = self
            .tensor(&format!("{name}.weight"))
            .unwrap()
            .iter()
            .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect();
        if let Some(bias) = self.tensor(&format!("{name}.bias")) {
            out.iter_mut().zip(&bias[0]).for_each(|(out, bias)| *out += bias);
        }
        out
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = match self.d.norm.weights {
            true => self.tensor(&format!("{name}.weight")).unwrap().remove(0),
            false => vec![1.0; x.len()],
        };
        let mean = match self.d.norm.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => x.iter().sum::<f64>() / x.len() as f64,
        };
        let square = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let root = (square + f64::from(self.d.norm.epsilon)).sqrt();
        x.iter().zip(&weight).map(|(x, w)| (x - mean) / root * w).collect()
    }

    fn rotate(&self, layer: usize, x: &mut [f64], position: usize) {
        let Position::Rope(rope) = &self.d.blocks[layer].position else { return };
        let factors = rope.factors.as_ref().map(|name| self.tensor(name).unwrap().remove(0));
        let stretch = match rope.scaling {
            RopeScaling::Linear { factor } => f64::from(factor),
            _ => 1.0,
        };
        for head in x.chunks_mut(self.d.head_dim) {
            for pair in 0..rope.dims / 2 {
                let (a, b) = match rope.style {
                    RopeStyle::Adjacent => (2 * pair, 2 * pair + 1),
                    RopeStyle::Halves => (pair, pair + rope.dims / 2),
                };
                let (a, b) = (rope.first + a, rope.first + b);
                let frequency = f64::from(rope.base).powf(-2.0 * pair as f64 / rope.dims as f64) / stretch;
                let angle = position as f64 * frequency / factors.as_ref().map_or(1.0, |f| f[pair]);
                (head[a], head[b]) = (
                    head[a] * angle.cos() - head[b] * angle.sin(),
                    head[a] * angle.sin() + head[b] * angle.cos(),
                );
            }
        }
    }

    /// Logits of all tokens.
    fn logits(&self, tokens: &[u32]) -> Vec<f64> {
        let d = self.d;
        let embedding = self.tensor("token_embd.weight").unwrap();
        let mut stream: Vec<Vec<f64>> = tokens
            .iter()
            .map(|&t| embedding[t as usize].iter().map(|x| x * f64::from(d.embedding.scale)).collect())
            .collect();
        for layer in 0..d.layers {
            let name = |part: &str| format!("blk.{layer}.{part}");
            let after = d.residual == Residual::NormAfter;
            let norm = |part: Option<&str>, x: &[f64]| self.norm(&name(part.unwrap()), x);
            let input = |part, x: &Vec<f64>| if after { x.clone() } else { norm(part, x) };
            let normed: Vec<Vec<f64>> = stream.iter().map(|x| input(d.norms.before_attention, x)).collect();
            let project = |part: &str| -> Vec<Vec<f64>> {
                let bound = d.attention.clamp.map_or(f64::INFINITY, f64::from);
                let clamp = |x: f64| x.clamp(-bound, bound);
                normed.iter().map(|x| self.linear(&name(part), x).into_iter().map(clamp).collect()).collect()
            };
            let (mut q, mut k, v) = (project("attn_q"), project("attn_k"), project("attn_v"));
            q.iter_mut().enumerate().for_each(|(position, x)| self.rotate(layer, x, position));
            k.iter_mut().enumerate().for_each(|(position, x)| self.rotate(layer, x, position));
            let attention = |i: usize| {
                let first = d.blocks[layer].window.map_or(0, |window| (i + 1).saturating_sub(window));
                let mut mixed = Vec::new();
                for head in 0..d.heads {
                    let key_head = head / (d.heads / d.kv_heads);
                    let query = &q[i][head * d.head_dim..][..d.head_dim];
                    // Of six heads, the last two lie between the others.
                    let slope = match d.blocks[layer].position {
                        Position::Alibi { .. } => {
                            [2.0, 4.0, 6.0, 8.0, 1.0, 3.0].map(|x: f64| (-x).exp2())[head]
                        }
                        _ => 0.0,
                    };
                    let scores: Vec<f64> = (first..=i)
                        .map(|j| {
                            let key = &k[j][key_head * d.head_dim..][..d.head_dim];
                            let dot: f64 = query.iter().zip(key).map(|(q, k)| q * k).sum();
                            let score = capped(dot * f64::from(d.attention.scale), d.attention.cap);
                            (score - slope * (i - j) as f64).exp()
                        })
                        .collect();
                    let total: f64 = scores.iter().sum();
                    for dim in 0..d.value_dim {
                        let value = |j: usize| v[j][key_head * d.value_dim + dim];
                        mixed.push((first..=i).zip(&scores).map(|(j, s)| s / total * value(j)).sum());
                    }
                }
                self.linear(&name("attn_output"), &mixed)
            };
            let feed_forward = |normed: &[f64]| {
                let up = self.linear(&name("ffn_up"), normed);
                let inner: Vec<f64> = if d.gate == Gate::Separate {
                    let gate = self.linear(&name("ffn_gate"), normed);
                    gate.iter().zip(up).map(|(&gate, up)| activation(d.activation, gate) * up).collect()
                } else {
                    up.into_iter().map(|up| activation(d.activation, up)).collect()
                };
                self.linear(&name("ffn_down"), &inner)
            };
            let add = |x: &mut Vec<f64>, y: Vec<f64>| {
                x.iter_mut().zip(y).for_each(|(x, y)| *x += f64::from(d.residual_scale) * y);
            };
            for (i, x) in stream.iter_mut().enumerate() {
                let before = x.clone();
                add(x, attention(i));
                if after {
                    *x = norm(d.norms.before_attention, x);
                }
                let seen = if d.residual == Residual::Parallel { &before } else { &*x };
                let added = feed_forward(&input(d.norms.before_feed_forward, seen));
                add(x, added);
                if after {
                    *x = norm(d.norms.before_feed_forward, x);
                }
            }
        }
        let output = if d.tied_output { "token_embd" } else { "output" };
        stream
            .iter()
            .flat_map(|x| self.linear(output, &self.norm("output_norm", x)))
            .map(|logit| capped(logit * f64::from(d.output_scale), d.output_cap))
            .collect()
    }
}

fn capped(x: f64, cap: Option<f32>) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

fn activation(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Silu => x / (1.0 + (-x).exp()),
        // The series of the error function.
        Activation::Gelu => {
            let z = x / 2f64.sqrt();
            let terms = (0..80).scan(z, |term, n| {
                let found = *term / f64::from(2 * n + 1);
                *term *= -z * z / f64::from(n + 1);
                Some(found)
            });
            x * (1.0 + 2.0 / std::f64::consts::PI.sqrt() * terms.sum::<f64>()) / 2.0
        }
        Activation::GeluTanh => {
            x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()) / 2.0
        }
        Activation::Relu => x.max(0.0),
        Activation::ClampedSwiglu { .. } => panic!("has a gate of its own"),
    }
}

/// Descriptions that differ in everything that a description can say.
fn variants() -> Vec<(&'static str, Description)> {
    let mut variants = vec![("as it is", small())];
    let mut add = |name, change: &dyn Fn(&mut Description)| {
        let mut description = small();
        change(&mut description);
        variants.push((name, description));
    };
    fn rope(d: &mut Description, change: impl Fn(&mut kbit_models::description::Rope)) {
        for block in &mut d.blocks {
            if let Position::Rope(rope) = &mut block.position {
                change(rope);
            }
        }
    }
    add("halves", &|d| rope(d, |rope| rope.style = RopeStyle::Halves));
    add("frequency factors", &|d| rope(d, |rope| rope.factors = Some("rope_freqs.weight".to_owned())));
    add("linear scaling", &|d| rope(d, |rope| rope.scaling = RopeScaling::Linear { factor: 3.0 }));
    add("last dimensions turn", &|d| rope(d, |rope| (rope.first, rope.dims) = (4, 6)));
    add("sliding window", &|d| d.blocks.iter_mut().for_each(|block| block.window = Some(5)));
    add("wide window in one block", &|d| d.blocks[1].window = Some(130));
    add("no positions in one block", &|d| d.blocks[1].position = Position::None);
    add("another base in one block", &|d| {
        if let Position::Rope(rope) = &mut d.blocks[1].position {
            rope.base = 7.0;
        }
    });
    add("scores that fall with the distance", &|d| {
        d.blocks.iter_mut().for_each(|block| block.position = Position::Alibi { max_bias: 8.0 });
    });
    add("capped scores and logits", &|d| (d.attention.cap, d.output_cap) = (Some(0.7), Some(1.5)));
    add("clamped queries, keys and values", &|d| d.attention.clamp = Some(0.4));
    add("side by side", &|d| d.residual = Residual::Parallel);
    add("one norm for both", &|d| {
        d.residual = Residual::Parallel;
        d.norms.before_feed_forward = d.norms.before_attention;
    });
    add("norms after", &|d| d.residual = Residual::NormAfter);
    add("layer norms", &|d| d.norm.kind = NormKind::Layer);
    add("norms without weights", &|d| d.norm.weights = false);
    add("exact GELU", &|d| d.activation = Activation::Gelu);
    add("approximate GELU", &|d| d.activation = Activation::GeluTanh);
    add("ReLU", &|d| d.activation = Activation::Relu);
    add("one key head", &|d| d.kv_heads = 1);
    add("as many key heads as query heads", &|d| d.kv_heads = 6);
    add("untied output", &|d| d.tied_output = false);
    add("no gate", &|d| d.gate = Gate::None);
    add("scales", &|d| (d.embedding.scale, d.residual_scale, d.output_scale) = (3.0, 0.5, 0.25));
    add("score scale", &|d| d.attention.scale = 0.1);
    add("one layer", &|d| (d.layers, _) = (1, d.blocks.truncate(1)));
    variants
}

#[test]
fn logits_are_those_of_a_naive_transformer() {
    for (name, d) in variants() {
        let tensors = random_tensors(&d, 1, true);
        let tokens = tokens(&d, 40, 7);
        let expected = Naive { d: &d, tensors: &tensors }.logits(&tokens);
        let deviation = (expected.iter().map(|x| x * x).sum::<f64>() / expected.len() as f64).sqrt();
        for set in InstructionSet::ALL {
            let Some(kernels) = Kernels::of(set) else { continue };
            let model = model(&d, &tensors).with_kernels(kernels);
            let worst = logits(&model, &tokens)
                .iter()
                .zip(&expected)
                .map(|(got, want)| (f64::from(*got) - want).abs())
                .fold(0.0, f64::max);
            println!("{name}, {set}: {:.1e} of the logits' deviation", worst / deviation);
            assert!(worst < 1e-5 * deviation, "{name}, {set}: off by {worst} of {deviation}");
        }
    }
}

#[test]
fn results_do_not_depend_on_the_thread_count() {
    for (name, d) in variants() {
        for (group, open) in [(1, true), (1, false), (3, false), (1000, false)] {
            let tensors = random_tensors(&d, group, open);
            let model = model(&d, &tensors);
            let tokens = tokens(&d, 150, 3);
            let run = |threads| {
                with_threads(threads, || {
                    let (mut prompt, mut next) = (Vec::new(), Vec::new());
                    let mut session = model.session(200);
                    session.forward(&tokens, 0, &mut prompt).unwrap();
                    session.forward(&[1], 0, &mut next).unwrap();
                    prompt.extend(next);
                    bits(&prompt)
                })
            };
            let one = run(1);
            assert_eq!(one, run(2), "{name}, groups of {group}: 2 threads");
            assert_eq!(one, run(3), "{name}, groups of {group}: 3 threads");
            let mut alone = Vec::new();
            model.session(200).on_one_thread().forward(&tokens, 0, &mut alone).unwrap();
            assert_eq!(one[..alone.len()], bits(&alone), "{name}, groups of {group}: no pool");
        }
    }
}

#[test]
fn results_do_not_depend_on_how_the_prompt_is_split() {
    for (name, d) in variants() {
        let model = model(&d, &random_tensors(&d, 1, true));
        let tokens = tokens(&d, 300, 5);
        let whole = logits(&model, &tokens);
        for step in [1, 2, 15, 16, 17, 129] {
            let mut session = model.session(tokens.len());
            let mut pieces = Vec::new();
            for chunk in tokens.chunks(step) {
                let mut part = Vec::new();
                session.forward(chunk, 0, &mut part).unwrap();
                pieces.extend(part);
            }
            assert_eq!(bits(&whole), bits(&pieces), "{name}: {step} tokens at a time");
        }
    }
}

#[test]
fn prompts_longer_than_a_batch_are_split() {
    let d = small();
    let model = model(&d, &random_tensors(&d, 1, true));
    let tokens = tokens(&d, 2 * Session::BATCH + 9, 11);
    let whole = logits(&model, &tokens);
    let mut session = model.session(tokens.len());
    let (mut first, mut second) = (Vec::new(), Vec::new());
    session.forward(&tokens[..700], 0, &mut first).unwrap();
    session.forward(&tokens[700..], 0, &mut second).unwrap();
    first.extend(second);
    assert_eq!(bits(&whole), bits(&first));
}

#[test]
fn only_the_wanted_logits_are_computed() {
    let d = small();
    let model = model(&d, &random_tensors(&d, 1, true));
    let tokens = tokens(&d, 530, 13);
    let whole = logits(&model, &tokens);
    for from in [0, 1, 511, 512, 529, 530, 600] {
        let mut part = vec![1.0; 3];
        let mut session = model.session(tokens.len());
        session.forward(&tokens, from, &mut part).unwrap();
        assert_eq!(bits(&part), bits(&whole[from.min(530) * d.vocab..]), "from {from}");
        assert_eq!(session.len(), 530);
    }
}

/// Texts of these lengths, each of other tokens.
fn texts(d: &Description, lens: &[usize]) -> Vec<Vec<u32>> {
    lens.iter().enumerate().map(|(i, &len)| tokens(d, len, i as u64)).collect()
}

#[test]
fn texts_together_give_what_each_gives_alone() {
    for (name, d) in variants() {
        let model = model(&d, &random_tensors(&d, 1, true));
        let texts = texts(&d, &[100, 3, 256, 200, 513, 1]);
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let mut session = model.session(600);
        session.forward(&[1, 2, 3], 3, &mut Vec::new()).unwrap();
        let mut states = Vec::new();
        session.hidden_states(&texts, 2, &mut states).unwrap();
        let mut together = vec![0.0; states.len() / d.hidden * d.vocab];
        session.logits(&states, &mut together).unwrap();
        let mut alone = Vec::new();
        for text in &texts {
            let mut part = Vec::new();
            model.session(600).forward(text, 2, &mut part).unwrap();
            alone.extend(part);
        }
        assert_eq!(bits(&together), bits(&alone), "{name}");
    }
}

#[test]
fn block_by_block_states_are_those_of_a_whole_pass() {
    for (name, d) in variants() {
        let model = model(&d, &random_tensors(&d, 1, true));
        let texts = texts(&d, &[100, 3, 256, 200, 513, 1]);
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let mut whole = Vec::new();
        model.session(600).hidden_states(&texts, 0, &mut whole).unwrap();
        let mut session = model.session(600);
        session.forward(&[1, 2, 3], 3, &mut Vec::new()).unwrap();
        let (mut states, mut blocks, mut batched) = (Vec::new(), Vec::new(), vec![0; d.layers]);
        session
            .block_by_block(&texts, &mut states, |passed| {
                match passed {
                    Passed::Batch { block, tokens } => batched[block] += tokens,
                    Passed::Block(block) => blocks.push(block),
                }
                Ok::<(), EngineError>(())
            })
            .unwrap();
        assert_eq!(bits(&states), bits(&whole), "{name}");
        assert_eq!(blocks, (0..d.layers).collect::<Vec<_>>(), "{name}");
        assert_eq!(batched, vec![1073; d.layers], "{name}");
        // The session is as good as new.
        let mut after = Vec::new();
        assert!(session.is_empty(), "{name}");
        session.forward(texts[0], 0, &mut after).unwrap();
        assert_eq!(bits(&after), bits(&logits(&model, texts[0])), "{name}");
        // Whoever looks on may stop it.
        let stop = |_| Err(EngineError::OutOfMemory { bytes: 7 });
        assert!(matches!(
            session.block_by_block(&texts, &mut states, stop),
            Err(EngineError::OutOfMemory { bytes: 7 })
        ));
    }
}

#[test]
fn a_streamed_model_gives_what_the_whole_one_gives_and_holds_one_block() {
    for (name, d) in variants() {
        let tensors = random_tensors(&d, 1, true);
        let whole = model(&d, &tensors);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let source = {
            let (tensors, asked) = (tensors.clone(), Arc::clone(&asked));
            move |name: &str| {
                asked.lock().unwrap().push(name.to_owned());
                Ok(tensors.get(name).cloned())
            }
        };
        let streamed = Model::streamed(d.clone(), Arc::new(source)).unwrap();
        assert!(streamed.is_streamed() && !whole.is_streamed());
        assert!(asked.lock().unwrap().iter().all(|name| !name.starts_with("blk.")), "{name}");
        let texts = texts(&d, &[100, 3, 513]);
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let of = |model: &Model, from: usize| {
            let mut states = Vec::new();
            model.session(600).hidden_states(&texts, from, &mut states).unwrap();
            bits(&states)
        };
        for from in [0, 2, 99, 600] {
            assert_eq!(of(&streamed, from), of(&whole, from), "{name}, from {from}");
        }
        // Once a pass: blocks in their order.
        asked.lock().unwrap().clear();
        let _ = of(&streamed, 0);
        let blocks: Vec<String> = asked
            .lock()
            .unwrap()
            .iter()
            .filter(|name| name.ends_with("attn_output.weight"))
            .cloned()
            .collect();
        let expected: Vec<String> =
            (0..d.layers).map(|layer| format!("blk.{layer}.attn_output.weight")).collect();
        assert_eq!(blocks, expected, "{name}");
        assert_eq!(bits(&logits(&streamed, texts[0])), bits(&logits(&whole, texts[0])), "{name}");
    }
    let d = small();
    let mut tensors = random_tensors(&d, 1, true);
    tensors.remove("blk.1.ffn_up.weight");
    let streamed =
        Model::streamed(d.clone(), Arc::new(move |name: &str| Ok(tensors.get(name).cloned()))).unwrap();
    let error = streamed.session(8).forward(&[1, 2], 0, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("blk.1.ffn_up.weight"), "{error}");
}

#[test]
fn branches_give_what_whole_texts_give() {
    for (name, d) in variants() {
        let model = model(&d, &random_tensors(&d, 1, true));
        let mut session = model.session(400);
        let mut states = Vec::new();
        // Nothing in common, in a session that never held a token; one block of the cache, the first place of the second; nothing.
        for shared in [0, 100, 129, 0] {
            let prefix = tokens(&d, shared, 7);
            let tails = texts(&d, &[40, 1, 200, 130]);
            let texts: Vec<(&[u32], usize)> =
                tails.iter().map(|tail| (tail.as_slice(), tail.len() / 2)).collect();
            session.clear();
            if shared > 0 {
                session.forward(&prefix, shared, &mut Vec::new()).unwrap();
            }
            // Twice: branches leave the session as it was.
            for _ in 0..2 {
                session.branches(&texts, &mut states).unwrap();
                assert_eq!(session.len(), shared, "{name}");
                let mut together = vec![0.0; states.len() / d.hidden * d.vocab];
                session.logits(&states, &mut together).unwrap();
                let mut alone = Vec::new();
                for (tail, from) in &texts {
                    let whole = [&prefix, *tail].concat();
                    let mut part = Vec::new();
                    model.session(400).forward(&whole, shared + from, &mut part).unwrap();
                    alone.extend(part);
                }
                assert_eq!(bits(&together), bits(&alone), "{name}, {shared} shared");
            }
        }
        let long = tokens(&d, 401, 1);
        assert!(session.branches(&[(&long, 0)], &mut states).is_err(), "{name}");
    }
}

#[test]
fn a_cleared_session_starts_anew() {
    let d = small();
    let model = model(&d, &random_tensors(&d, 1, true));
    let (first, second) = (tokens(&d, 200, 1), tokens(&d, 150, 2));
    let mut session = model.session(200);
    let mut out = Vec::new();
    session.forward(&first, 0, &mut out).unwrap();
    session.clear();
    assert!(session.is_empty());
    session.forward(&second, 0, &mut out).unwrap();
    assert_eq!(bits(&out), bits(&logits(&model, &second)));
}

#[test]
fn instruction_sets_with_fused_multiply_add_agree() {
    let d = small();
    let tensors = random_tensors(&d, 1, true);
    let tokens = tokens(&d, 200, 3);
    let of = |set| Kernels::of(set).map(|k| bits(&logits(&model(&d, &tensors).with_kernels(k), &tokens)));
    match (of(InstructionSet::Avx2), of(InstructionSet::Avx512)) {
        (Some(avx2), Some(avx512)) => assert_eq!(avx2, avx512),
        _ => println!("skipped: this CPU has not got both AVX2 and AVX-512"),
    }
}

#[test]
fn context_overflow_is_refused_and_changes_nothing() {
    let d = small();
    let model = model(&d, &random_tensors(&d, 1, true));
    let mut session = model.session(10);
    let mut out = Vec::new();
    session.forward(&tokens(&d, 8, 1), 8, &mut out).unwrap();
    let error = session.forward(&[1, 2, 3], 0, &mut out).unwrap_err();
    assert!(matches!(error, EngineError::ContextOverflow { used: 8, new: 3, capacity: 10 }));
    assert_eq!(
        error.to_string(),
        "8 tokens and 3 more do not fit into a context of 10: use a longer context, or fewer tokens"
    );
    session.forward(&[1, 2], 0, &mut out).unwrap();
    assert_eq!(session.len(), 10);
}

#[test]
fn tokens_outside_the_vocabulary_are_refused() {
    let d = small();
    let model = model(&d, &random_tensors(&d, 1, true));
    let error = model.session(10).forward(&[1, 97], 0, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, EngineError::Token { token: 97, position: 1, vocab: 97 }), "{error}");
    assert!(model.session(10).hidden_states(&[&[1], &[97]], 0, &mut Vec::new()).is_err());
}

#[test]
fn a_missing_tensor_is_named() {
    let d = small();
    let mut tensors = random_tensors(&d, 1, true);
    tensors.remove("blk.1.ffn_up.weight");
    let error = Model::new(d, &mut |name| Ok(tensors.get(name).cloned())).unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with("tensor blk.1.ffn_up.weight [56, 40] is missing"), "{message}");
}

#[test]
fn a_tensor_of_another_shape_is_named() {
    for (tensor, rows, cols, message) in [
        ("blk.0.attn_k.weight", 20, 41, "tensor blk.0.attn_k.weight: found [20, 41], wanted [20, 40]"),
        ("token_embd.weight", 96, 40, "tensor token_embd.weight: found [96, 40], wanted [97, 40]"),
        ("output_norm.weight", 1, 39, "tensor output_norm.weight: found [39], wanted [40]"),
        ("output_norm.weight", 40, 1, "tensor output_norm.weight: found [40, 1], wanted [40]"),
    ] {
        let d = small();
        let mut tensors = random_tensors(&d, 1, true);
        let data = vec![0.5; rows * cols];
        tensors.insert(
            tensor.to_owned(),
            vec![Arc::new(common::Plain { rows, cols, data, group: 1, open: true })],
        );
        let error = Model::new(d, &mut |name| Ok(tensors.get(name).cloned())).unwrap_err();
        assert!(error.to_string().starts_with(message), "{error}");
    }
}

#[test]
fn a_norm_with_nan_is_refused() {
    let d = small();
    let mut tensors = random_tensors(&d, 1, true);
    let mut data = vec![1.0; 40];
    data[7] = f32::NAN;
    let plain = common::Plain { rows: 1, cols: 40, data, group: 1, open: true };
    tensors.insert("blk.0.attn_norm.weight".to_owned(), vec![Arc::new(plain)]);
    let error = Model::new(d, &mut |name| Ok(tensors.get(name).cloned())).unwrap_err();
    assert!(error.to_string().starts_with("tensor blk.0.attn_norm.weight: element 7 is NaN"), "{error}");
}

/// A codec that fails from some row on.
struct Failing;

impl Codec for Failing {
    fn shape(&self) -> MatrixShape {
        MatrixShape::dense(40, 56)
    }

    fn decode(&self, rows: Range<u64>, out: &mut [f32], _: usize) -> Result<(), CodecError> {
        if rows.end > 30 {
            return Err(CodecError::Scheme {
                tensor: "blk.1.ffn_down.weight".to_owned(),
                scheme: "org.example/1".to_owned(),
                message: "codebook index 17 of 16".to_owned(),
            });
        }
        out.fill(0.0);
        Ok(())
    }
}

#[test]
fn a_codec_that_fails_ends_the_pass_with_its_message() {
    let d = small();
    let mut tensors = random_tensors(&d, 1, true);
    tensors.insert("blk.1.ffn_down.weight".to_owned(), vec![Arc::new(Failing)]);
    let model = model(&d, &tensors);
    for len in [1, 5, 100] {
        let mut session = model.session(200);
        let error = session.forward(&tokens(&d, len, 1), 0, &mut Vec::new()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "tensor blk.1.ffn_down.weight: scheme org.example/1: codebook index 17 of 16"
        );
        assert!(session.is_empty());
    }
}

/// What an observer was shown of one key head: inputs, and weights by token, head and position.
#[derive(Debug)]
struct ShownHead {
    kv_head: usize,
    inputs: Vec<f32>,
    weights: Vec<f32>,
}

#[derive(Debug, Default)]
struct Shown(Mutex<Vec<ShownHead>>);

impl Observer for Shown {
    fn inputs(&self, _: &[&MatrixName], _: Rows<'_>) {}

    fn wants_attention(&self) -> bool {
        true
    }

    fn attention(&self, attention: &Attention<'_>) {
        let copy = |rows: Rows<'_>| (0..rows.rows()).flat_map(|row| rows.row(row)).copied().collect();
        let Attention { kv_head, key, inputs, weights, .. } = *attention;
        if key.tensor == "blk.1.attn_k.weight" {
            let head = ShownHead { kv_head, inputs: copy(inputs), weights: copy(weights) };
            self.0.lock().unwrap().push(head);
        }
    }
}

#[test]
fn attention_is_shown_with_its_weights() {
    let description = small();
    let model = model(&description, &random_tensors(&description, 1, true));
    let (heads, kv_heads) = (description.heads, description.kv_heads);
    let group = heads / kv_heads;
    let text = tokens(&description, 150, 3);
    let show = |pieces: &[&[u32]]| {
        let shown = Arc::new(Shown::default());
        let mut session = model.session(200).observed(Arc::clone(&shown) as Arc<dyn Observer>);
        for piece in pieces {
            session.forward(piece, 0, &mut Vec::new()).unwrap();
        }
        std::mem::take(&mut *shown.0.lock().unwrap())
    };
    let whole = show(&[&text]);
    assert_eq!(whole.iter().map(|head| head.kv_head).collect::<Vec<_>>(), (0..kv_heads).collect::<Vec<_>>());
    for ShownHead { inputs, weights, .. } in &whole {
        assert_eq!(inputs.len(), text.len() * description.hidden);
        for (query, row) in weights.chunks(text.len()).enumerate() {
            let token = query / group;
            // 150 weights that are rounded to 2^-24 each.
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{query}: {row:?}");
            assert!(row[..=token].iter().all(|weight| *weight > 0.0));
            assert!(row[token + 1..].iter().all(|weight| *weight == 0.0));
        }
    }
    // In two pieces: the same weights, and the inputs of the first piece are known to the second.
    let first = 67;
    let parts = show(&[&text[..first], &text[first..]]);
    for (head, ShownHead { inputs, weights, .. }) in whole.iter().enumerate() {
        let (early, late) = (&parts[head], &parts[kv_heads + head]);
        assert_eq!(bits(&late.inputs), bits(inputs));
        for (query, row) in weights.chunks(text.len()).enumerate() {
            let (found, positions, query) = if query < first * group {
                (&early.weights, first, query)
            } else {
                (&late.weights, text.len(), query - first * group)
            };
            assert_eq!(bits(&found[query * positions..][..positions]), bits(&row[..positions]), "{query}");
        }
    }
}
