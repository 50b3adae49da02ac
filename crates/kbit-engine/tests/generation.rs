//! Generators against sessions that compute everything anew, and the sums of the bench.
#![expect(clippy::print_stdout, reason = "the shared module says what it skipped")]

mod common;

use common::{bits, model, random_tensors, small, tokens};
use kbit_engine::{EngineError, Finish, Generated, Generator, Model, Sampler, Sampling, speed};
use std::ops::ControlFlow;

fn small_model() -> Model {
    let description = small();
    model(&description, &random_tensors(&description, 1, true))
}

fn sampler(seed: u64) -> Sampler {
    let sampling = Sampling { seed, repeat_penalty: 1.1, temperature: 1.5, ..Sampling::default() };
    Sampler::new(sampling).unwrap()
}

/// Continues `prompt` by up to `most` tokens; nothing ends it.
fn continued(generator: &mut Generator<'_>, prompt: &[u32], seed: u64, most: usize) -> Generated {
    let mut all = Vec::new();
    let generated = generator
        .generate(prompt, &mut sampler(seed), Some(most), &|_| false, &mut |token| {
            all.push(token);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(all, generated.tokens);
    generated
}

#[test]
fn a_truncated_session_is_as_if_the_tokens_had_never_been() {
    let model = small_model();
    // Past a block of the cache.
    let text = tokens(model.description(), 200, 1);
    let other = tokens(model.description(), 150, 2);
    for kept in [0, 1, 60, 128, 199] {
        let (mut cut, mut fresh) = (model.session(400), model.session(400));
        let (mut found, mut wanted) = (Vec::new(), Vec::new());
        cut.forward(&text, 199, &mut found).unwrap();
        cut.truncate(kept);
        assert_eq!(cut.len(), kept);
        cut.truncate(1000);
        assert_eq!(cut.len(), kept);
        cut.forward(&other, 0, &mut found).unwrap();
        let all = [&text[..kept], &other].concat();
        fresh.forward(&all, kept, &mut wanted).unwrap();
        assert_eq!(bits(&found), bits(&wanted), "kept {kept}");
    }
}

#[test]
fn what_texts_have_in_common_is_computed_once_and_changes_nothing() {
    let model = small_model();
    let mut generator = Generator::new(model.session(256));
    let first = tokens(model.description(), 20, 3);
    let one = continued(&mut generator, &first, 1, 8);
    assert_eq!((one.reused, one.computed, one.steps, one.finish), (0, 20, 7, Finish::Length));
    // The conversation goes on: all but the last token, which was never computed, is there.
    let second = [&first[..], &one.tokens, &[5, 6, 7]].concat();
    let two = continued(&mut generator, &second, 2, 8);
    assert_eq!((two.reused, two.computed), (27, 4));
    // It goes back: the same prompt, whose last token is computed again.
    let three = continued(&mut generator, &first, 1, 8);
    assert_eq!((three.reused, three.computed), (19, 1));
    assert_eq!(three.tokens, one.tokens);
    for (prompt, seed, found) in [(&first, 1, &one), (&second, 2, &two)] {
        let fresh = continued(&mut Generator::new(model.session(256)), prompt, seed, 8);
        assert_eq!(fresh.tokens, found.tokens);
        assert_eq!(fresh.reused, 0);
    }
}

#[test]
fn ends_for_the_reason_that_comes_first() {
    let model = small_model();
    let prompt = tokens(model.description(), 10, 4);
    let mut generator = Generator::new(model.session(16));
    let free = continued(&mut generator, &prompt, 9, 5).tokens;
    let mut run = |most: Option<usize>, end: Option<u32>, stop_after: usize| {
        let mut seen = 0;
        generator
            .generate(&prompt, &mut sampler(9), most, &|token| Some(token) == end, &mut |_| {
                seen += 1;
                if seen == stop_after { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap()
    };
    // The context holds 10 and 6 tokens; the next one after them is still known.
    let full = run(None, None, 0);
    assert_eq!((full.tokens.len(), full.finish, full.end), (7, Finish::Context, None));
    assert_eq!(full.tokens[..5], free);
    let stopped = run(None, None, 2);
    assert_eq!((&stopped.tokens[..], stopped.finish), (&free[..2], Finish::Stop));
    let first = free.iter().position(|token| *token == free[3]).unwrap();
    let ended = run(Some(100), Some(free[3]), 0);
    assert_eq!(
        (&ended.tokens[..], ended.finish, ended.end),
        (&free[..first], Finish::EndToken, Some(free[3]))
    );
    let none = run(Some(0), None, 0);
    assert_eq!((none.tokens.len(), none.finish, none.steps), (0, Finish::Length, 0));
}

#[test]
fn refuses_prompts_that_are_empty_too_long_or_of_another_vocabulary() {
    let model = small_model();
    let mut generator = Generator::new(model.session(16));
    let mut run = |prompt: &[u32]| {
        generator.generate(prompt, &mut sampler(1), Some(3), &|_| false, &mut |_| ControlFlow::Continue(()))
    };
    assert!(matches!(run(&[]), Err(EngineError::NoPrompt)));
    let found = run(&[1; 17]);
    assert!(matches!(found, Err(EngineError::ContextOverflow { new: 17, capacity: 16, .. })), "{found:?}");
    assert!(matches!(run(&[1, 97]), Err(EngineError::Token { token: 97, .. })));
    // The one before is forgotten, and not in the way.
    assert_eq!(run(&[1; 10]).unwrap().tokens.len(), 3);
}

#[test]
fn the_bench_counts_the_multiply_adds_of_the_forward_pass() {
    let model = small_model();
    // 40 wide, 6 query heads of 10, 2 key heads of 10 with values of 7, 56 inside, 97 tokens.
    let (query, key, value, output) = (40 * 60, 40 * 20, 40 * 14, 42 * 40);
    let (feed_forward, logits) = (3 * 40 * 56, 40 * 97);
    let layer = query + key + value + output + feed_forward;
    let attention = |positions: std::ops::Range<u64>| positions.map(|p| 6 * (10 + 7) * (p + 1)).sum::<u64>();
    let mut ticks = 0;
    let found = speed::prompt(&model, 5, 3, &mut || ticks += 1).unwrap();
    let wanted =
        5 * layer + attention(0..5) + 5 * (key + value) + (layer - key - value) + attention(4..5) + logits;
    assert_eq!((found.tokens, found.times.len(), ticks, found.multiply_adds), (5, 3, 3, wanted));
    let found = speed::generation(&model, 4, 1, &mut || ()).unwrap();
    assert_eq!(found.multiply_adds, 2 * (4 * layer + attention(0..4)) + 4 * logits);
    assert!(found.rates().0 > 0.0 && found.operations() > 0.0);
}
