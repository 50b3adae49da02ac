//! Products in every mode: what they are equal to, and what they do not depend on.
#![expect(clippy::print_stdout, reason = "tests say what they skipped")]

mod common;

use common::{Plain, bits, noise, with_threads};
use kbit_blocks::BlockCodec;
use kbit_engine::{InstructionSet, Kernels, Mode, Multiplier, Rows, RowsMut};
use kbit_types::{ActivationKind, Codec, CodecError, FusedDot, GgmlType, MatrixShape};
use std::ops::Range;
use std::sync::Arc;

const MODES: [&str; 5] = ["f32", "bf16", "int8", "act:4", "act:6:token"];

fn product(codec: &Arc<dyn Codec>, mode: Mode, kernels: Kernels, x: &[f32]) -> Vec<f32> {
    let (rows, cols) = (codec.shape().rows as usize, codec.shape().cols as usize);
    let tokens = x.len() / cols;
    let mut out = vec![f32::NAN; tokens * rows];
    let (x, to) = (Rows::new(x, tokens, cols, cols), RowsMut::new(&mut out, tokens, rows, rows));
    let weight = Multiplier::new(Arc::clone(codec), (rows, cols), mode, kernels).unwrap();
    weight.multiply(x, to).unwrap();
    out
}

fn blocks(ty: GgmlType, rows: usize, cols: usize, seed: u64) -> Arc<dyn Codec> {
    let mut bytes = vec![0; ty.bytes_for((rows * cols) as u64).unwrap() as usize];
    let importance = vec![1.0; cols];
    kbit_blocks::encode_row_range(ty, &noise(rows * cols, seed), cols, Some(&importance), &mut bytes)
        .unwrap();
    Arc::new(BlockCodec::new("w", ty, rows as u64, cols as u64, bytes).unwrap())
}

/// Every type of block, and a matrix of floats whose rows come in groups.
fn matrices(rows: usize, cols: usize) -> Vec<(String, Arc<dyn Codec>)> {
    let mut matrices: Vec<(String, Arc<dyn Codec>)> = GgmlType::ALL
        .iter()
        .filter(|ty| kbit_blocks::can_encode(**ty) && ty.bytes_for(cols as u64).is_some())
        .map(|ty| (ty.to_string(), blocks(*ty, rows, cols, 3)))
        .collect();
    for group in [1, 5, 1000] {
        let plain = Plain { rows, cols, data: noise(rows * cols, 3), group, open: false };
        matrices.push((format!("floats in groups of {group}"), Arc::new(plain)));
    }
    matrices
}

#[test]
fn a_product_depends_on_its_row_and_its_activation_alone() {
    let (tokens, rows, cols) = (29, 75, 768);
    let x = noise(tokens * cols, 1);
    for (name, codec) in matrices(rows, cols) {
        for mode in MODES {
            let mode: Mode = mode.parse().unwrap();
            let whole = product(&codec, mode, Kernels::best(), &x);
            assert!(whole.iter().all(|x| x.is_finite()), "{name} {mode}");
            for step in [1, 2, 5, 6, 7, 12, 13] {
                let pieces: Vec<f32> =
                    x.chunks(step * cols).flat_map(|x| product(&codec, mode, Kernels::best(), x)).collect();
                assert_eq!(bits(&whole), bits(&pieces), "{name} {mode}: {step} at a time");
            }
            for threads in [1, 3] {
                let again = with_threads(threads, || product(&codec, mode, Kernels::best(), &x));
                assert_eq!(bits(&whole), bits(&again), "{name} {mode}: {threads} threads");
            }
        }
    }
}

#[test]
fn rows_decoded_together_have_the_products_of_rows_decoded_apart() {
    // More of them than panels wait in the cache.
    let (rows, cols) = (300, 768);
    let x = noise(14 * cols, 1);
    for mode in [Mode::F32, Mode::Bf16] {
        for kernels in InstructionSet::ALL.into_iter().filter_map(Kernels::of) {
            let [apart, together] = [1, 1000].map(|group| {
                let plain = Plain { rows, cols, data: noise(rows * cols, 3), group, open: false };
                let codec: Arc<dyn Codec> = Arc::new(plain);
                product(&codec, mode, kernels, &x)
            });
            assert_eq!(bits(&apart), bits(&together), "{mode}, {kernels:?}");
        }
    }
}

#[test]
fn one_token_of_floats_is_multiplied_as_many_are() {
    for (rows, cols) in [(15, 40), (16, 1), (17, 3), (23, 33), (31, 264), (40, 515), (48, 1030), (75, 48)] {
        let x = noise(2 * cols, 1);
        for (ty, mode) in
            [(GgmlType::F32, Mode::F32), (GgmlType::F16, Mode::F32), (GgmlType::BF16, Mode::Bf16)]
        {
            let codec = blocks(ty, rows, cols, 3);
            for kernels in InstructionSet::ALL.into_iter().filter_map(Kernels::of) {
                let both = product(&codec, mode, kernels, &x);
                let each: Vec<f32> = x.chunks(cols).flat_map(|x| product(&codec, mode, kernels, x)).collect();
                assert_eq!(bits(&both), bits(&each), "{ty}, {rows} x {cols}, {kernels:?}");
            }
        }
    }
}

#[test]
fn amx_adds_up_bf16_of_even_and_odd_columns_apart() {
    let Some(kernels) = Kernels::of(InstructionSet::Amx) else {
        println!("skipped: this CPU has no AMX, or the system does not lend it");
        return;
    };
    for (tokens, rows, cols) in
        [(1, 1, 1), (1, 17, 33), (2, 15, 64), (16, 16, 31), (17, 32, 96), (33, 33, 545), (70, 49, 1100)]
    {
        let round = |x: &f32| half::bf16::from_f32(*x).to_f32();
        let (x, w) = (noise(tokens * cols, 1), noise(rows * cols, 2));
        let bytes: Vec<u8> = w.iter().flat_map(|w| half::bf16::from_f32(*w).to_le_bytes()).collect();
        let codec: Arc<dyn Codec> =
            Arc::new(BlockCodec::new("w", GgmlType::BF16, rows as u64, cols as u64, bytes).unwrap());
        let mut expected = Vec::new();
        for token in 0..tokens {
            let x: Vec<f32> = x[token * cols..][..cols].iter().map(round).collect();
            for row in 0..rows {
                let w: Vec<f32> = w[row * cols..][..cols].iter().map(round).collect();
                let steps = x.chunks(32).zip(w.chunks(32)).map(|(x, w)| {
                    let of = |first: usize| {
                        let pairs = x.iter().zip(w).skip(first).step_by(2);
                        pairs.fold(0.0_f32, |sum, (x, w)| x.mul_add(*w, sum))
                    };
                    of(0) + of(1)
                });
                expected.push(steps.fold(0.0, |sum, step| sum + step));
            }
        }
        let all = product(&codec, Mode::Bf16, kernels, &x);
        assert_eq!(bits(&all), bits(&expected), "{tokens} x {rows} x {cols}");
        let each: Vec<f32> =
            (0..tokens).flat_map(|i| product(&codec, Mode::Bf16, kernels, &x[i * cols..][..cols])).collect();
        assert_eq!(bits(&each), bits(&expected), "{tokens} x {rows} x {cols}, one by one");
    }
}

#[test]
fn subnormal_bf16_count_as_zero() {
    let (rows, cols) = (35, 52);
    let numbers: Vec<u16> = (0..rows * cols)
        .map(|i| match i % 3 {
            // Of either sign, up to the largest that has no exponent.
            0 => (i % 128) as u16 | (i as u16 & 1) << 15,
            _ => half::bf16::from_f32((i % 17) as f32 - 8.0).to_bits(),
        })
        .collect();
    let zeros = numbers.iter().map(|bits| if bits & 0x7f80 == 0 { 0 } else { *bits });
    let zeros: Vec<u16> = zeros.collect();
    let codec = |numbers: &[u16]| -> Arc<dyn Codec> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        Arc::new(BlockCodec::new("w", GgmlType::BF16, rows as u64, cols as u64, bytes).unwrap())
    };
    let x: Vec<f32> = noise(13 * cols, 1).iter().map(|x| x * 1e30).collect();
    for tokens in [1, 13] {
        let x = &x[..tokens * cols];
        for kernels in InstructionSet::ALL.into_iter().filter_map(Kernels::of) {
            let got = product(&codec(&numbers), Mode::Bf16, kernels, x);
            assert_eq!(got, product(&codec(&zeros), Mode::Bf16, kernels, x), "{tokens} tokens, {kernels:?}");
        }
    }
}

#[test]
fn instruction_sets_agree() {
    let (tokens, rows, cols) = (14, 37, 1280);
    let x = noise(tokens * cols, 1);
    let fused = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    for (name, codec) in matrices(rows, cols) {
        for mode in MODES {
            let mode: Mode = mode.parse().unwrap();
            // AMX adds up products of bf16 in an order of its own.
            let of_bf16 = mode == Mode::Bf16 || (mode == Mode::Int8 && codec.as_bf16().is_some());
            let without = InstructionSet::ALL.into_iter().rev().filter(|set| *set < InstructionSet::Amx);
            let best = of_bf16.then(|| without.filter_map(Kernels::of).next()).flatten();
            let best = product(&codec, mode, best.unwrap_or_else(Kernels::best), &x);
            for set in InstructionSet::ALL {
                let Some(kernels) = Kernels::of(set) else { continue };
                let other = product(&codec, mode, kernels, &x);
                let like_others = set > InstructionSet::Portable
                    || fused
                    || (mode == Mode::Int8 && codec.integers().is_some());
                if like_others && !(of_bf16 && set == InstructionSet::Amx) {
                    assert_eq!(bits(&best), bits(&other), "{name} {mode} {set}");
                }
                for (best, other) in best.iter().zip(&other) {
                    assert!((best - other).abs() < 1e-3, "{name} {mode} {set}: {best} {other}");
                }
            }
        }
    }
}

/// ggml's generic product, by way of the blocks' own.
fn fused(codec: &Arc<dyn Codec>, x: &[f32]) -> Vec<f32> {
    let (rows, cols) = (codec.shape().rows as usize, codec.shape().cols as usize);
    let fused = codec.fused().expect("a product");
    let mut packed = vec![0; fused.activation_bytes()];
    let mut out = vec![0.0; x.len() / cols * rows];
    for (x, out) in x.chunks(cols).zip(out.chunks_mut(rows)) {
        fused.pack(x, &mut packed).unwrap();
        fused.dot(0..rows as u64, &packed, 1, out, rows).unwrap();
    }
    out
}

#[test]
fn integer_products_are_those_of_ggml() {
    use GgmlType as T;
    let (tokens, rows, cols) = (13, 70, 1536);
    let x = noise(tokens * cols, 1);
    let float = [T::F32, T::F16, T::BF16];
    for ty in GgmlType::ALL.iter().filter(|ty| kbit_blocks::can_encode(**ty) && !float.contains(ty)) {
        let codec = blocks(*ty, rows, cols, 3);
        let expected = fused(&codec, &x);
        let got = product(&codec, Mode::Int8, Kernels::best(), &x);
        // ggml adds up a super-block of these in eight floats, or eight times one; here it is one sum of integers.
        if [T::Q3_K, T::Q4_K, T::Q5_K, T::Q6_K, T::IQ4_XS].contains(ty) {
            let scale = (expected.iter().map(|x| x * x).sum::<f32>() / expected.len() as f32).sqrt();
            for (got, expected) in got.iter().zip(&expected) {
                // A few roundings of sums about as large as the result.
                assert!((got - expected).abs() < 3e-6 * scale.max(expected.abs()), "{ty}: {got} {expected}");
            }
        } else {
            assert_eq!(bits(&got), bits(&expected), "{ty}");
        }
    }
}

#[test]
fn modes_round_what_they_say() {
    let (tokens, rows, cols) = (3, 40, 512);
    let x = noise(tokens * cols, 1);
    let w = noise(rows * cols, 3);
    let codec: Arc<dyn Codec> = Arc::new(Plain { rows, cols, data: w.clone(), group: 1, open: false });
    let exact = |x: &[f32], w: &[f32]| -> Vec<f64> {
        let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        x.chunks(cols).flat_map(|x| w.chunks(cols).map(move |w| dot(x, w))).collect()
    };
    let near = |mode: &str, expected: Vec<f64>| {
        let got = product(&codec, mode.parse().unwrap(), Kernels::best(), &x);
        for (got, expected) in got.iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() < 2e-5, "{mode}: {got} {expected}");
        }
    };
    near("f32", exact(&x, &w));
    let bf16 = |x: &[f32]| x.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect::<Vec<_>>();
    near("bf16", exact(&bf16(&x), &bf16(&w)));
    for (mode, bits, group) in [("act:4", 4, 32), ("act:2:token", 2, cols), ("int8", 8, 32)] {
        let levels = ((1 << (bits - 1)) - 1) as f32;
        let rounded: Vec<f32> = x
            .chunks(group)
            .flat_map(|x| {
                let scale = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs())) / levels;
                x.iter().map(move |x| (x / scale).round_ties_even() * scale)
            })
            .collect();
        near(mode, exact(&rounded, &w));
    }
}

#[test]
fn llama_cpp_multiplies_floats_as_they_are() {
    let (tokens, rows, cols) = (3, 40, 512);
    let x = noise(tokens * cols, 1);
    for (ty, mode) in [(GgmlType::F32, Mode::F32), (GgmlType::F16, Mode::F32), (GgmlType::BF16, Mode::Bf16)] {
        let codec = blocks(ty, rows, cols, 3);
        let got = product(&codec, Mode::Int8, Kernels::best(), &x);
        assert_eq!(bits(&got), bits(&product(&codec, mode, Kernels::best(), &x)), "{ty}");
    }
}

/// A matrix whose product is easily told from any other: it counts.
struct Counting(ActivationKind);

impl Codec for Counting {
    fn shape(&self) -> MatrixShape {
        MatrixShape::dense(10, 8)
    }

    fn decode(&self, rows: Range<u64>, out: &mut [f32], stride: usize) -> Result<(), CodecError> {
        for (_, out) in rows.zip(out.chunks_mut(stride)) {
            out[..8].fill(1.0);
        }
        Ok(())
    }

    fn fused(&self) -> Option<&dyn FusedDot> {
        Some(self)
    }
}

impl FusedDot for Counting {
    fn activation(&self) -> ActivationKind {
        self.0
    }

    fn activation_key(&self) -> u64 {
        1
    }

    fn activation_bytes(&self) -> usize {
        3
    }

    fn pack(&self, x: &[f32], packed: &mut [u8]) -> Result<(), CodecError> {
        packed.fill(x[0] as u8);
        Ok(())
    }

    fn dot(
        &self,
        rows: Range<u64>,
        packed: &[u8],
        count: usize,
        y: &mut [f32],
        stride: usize,
    ) -> Result<(), CodecError> {
        for activation in 0..count {
            for (place, row) in rows.clone().enumerate() {
                y[activation * stride + place] = f32::from(packed[3 * activation]) * 100.0 + row as f32;
            }
        }
        Ok(())
    }
}

#[test]
fn a_schemes_own_product_is_used_in_its_mode_and_as_it_would_be_deployed() {
    let x: Vec<f32> = (0..5).flat_map(|token| [token as f32; 8]).collect();
    let kinds =
        [("f32", ActivationKind::F32), ("bf16", ActivationKind::Bf16), ("int8", ActivationKind::Int8)];
    for (own, kind) in kinds {
        let codec: Arc<dyn Codec> = Arc::new(Counting(kind));
        for mode in MODES {
            let got = product(&codec, mode.parse().unwrap(), Kernels::best(), &x);
            for (index, got) in got.iter().enumerate() {
                let (token, row) = ((index / 10) as f32, (index % 10) as f32);
                let used = mode == own || mode == "int8";
                let expected = if used { token * 100.0 + row } else { token * 8.0 };
                assert!((got - expected).abs() < 1e-4, "{own} {mode}: {got} {expected}");
            }
        }
    }
}
