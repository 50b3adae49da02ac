//! ggml block types as kbit schemes: one scheme a type, the bytes of ggml's reference code.

use kbit_blocks::BlockError;
use kbit_plugin::{
    Aux, Error, Host, Params, Part, PartType, Plan, Scheme, SchemeInfo, Shape, Slab, SlabMut, abi,
    export_plugin,
};
use kbit_scheme_kit::ggml::{BlockType, decode, encode_error, row_bytes};
use kbit_types::GgmlType;
use std::ops::Range;

/// The scheme of a ggml type.
pub struct Blocks<T>(std::marker::PhantomData<T>);

/// Importance of the columns, copied from the auxiliary data.
pub struct Job {
    tensor: String,
    importance: Option<Vec<f32>>,
}

impl<T: BlockType> Scheme for Blocks<T> {
    const INFO: SchemeInfo = T::INFO;
    type Job = Job;
    type Tensor = ();

    fn open(_: &Host<'_>, _: &Params) -> Result<Self, Error> {
        Ok(Self(std::marker::PhantomData))
    }

    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
        let dtype = match T::TYPE {
            GgmlType::F32 => PartType::F32,
            GgmlType::F16 => PartType::F16,
            GgmlType::BF16 => PartType::Bf16,
            _ => PartType::U8,
        };
        let aux_used = if kbit_blocks::uses_importance(T::TYPE) { abi::AUX_DIAG } else { 0 };
        let aux_required = if kbit_blocks::needs_importance(T::TYPE) { abi::AUX_DIAG } else { 0 };
        Ok(Plan {
            parts: vec![Part::new("blocks", dtype, row_bytes::<T>(shape)?)],
            aux_used,
            aux_required,
            ..Plan::default()
        })
    }

    fn begin(&self, shape: &Shape<'_>, _: Option<Slab<'_>>, aux: &Aux<'_>) -> Result<Job, Error> {
        row_bytes::<T>(shape)?;
        Ok(Job { tensor: shape.tensor.to_owned(), importance: aux.diag.map(<[f32]>::to_vec) })
    }

    fn encode(
        &self,
        job: &Job,
        rows: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        _: &mut [u8],
    ) -> Result<(), Error> {
        let [out] = parts else { return Err(Error::internal("one part")) };
        let row_bytes = out.len() / slab.len().max(1);
        let place = |first: u64, error: BlockError| encode_error(&job.tensor, first, error);
        let importance = job.importance.as_deref();
        if let Some(values) = slab.contiguous() {
            return kbit_blocks::encode_row_range(T::TYPE, values, slab.cols(), importance, out)
                .map_err(|error| place(rows.start, error));
        }
        for (index, out) in out.chunks_mut(row_bytes).enumerate() {
            kbit_blocks::encode_row_range(T::TYPE, slab.row(index), slab.cols(), importance, out)
                .map_err(|error| place(rows.start + index as u64, error))?;
        }
        Ok(())
    }

    fn open_tensor(&self, shape: &Shape<'_>, _: &[&[u8]]) -> Result<(), Error> {
        row_bytes::<T>(shape).map(|_| ())
    }

    fn decode(
        &self,
        (): &(),
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        out: &mut SlabMut<'_>,
        _: &mut [u8],
    ) -> Result<(), Error> {
        decode::<T>(shape, parts[0], rows, out)
    }
}

macro_rules! block_types {
    ($($name:ident, $ty:ident, $id:literal, $title:literal, $doc:literal;)*) => {
        $(#[doc = $title]
        pub struct $name;

        impl BlockType for $name {
            const TYPE: GgmlType = GgmlType::$ty;
            const INFO: SchemeInfo = SchemeInfo {
                id: $id,
                title: $title,
                doc: $doc,
                citation: "ggml 0.25, ggml-quants.c",
                ggml_type: GgmlType::$ty.id() as i32,
                params: &[],
            };
        })*

        #[cfg(test)]
        const TYPES: &[GgmlType] = &[$(GgmlType::$ty),*];

        export_plugin! {
            id: "org.kbit.ggml",
            vendor: "kbit",
            url: "https://github.com/kbit-dev/kbit",
            license: "MIT OR Apache-2.0",
            schemes: [$(Blocks<$name>),*],
        }
    };
}

block_types! {
    F32, F32, "org.kbit.ggml.f32/1", "ggml F32", "Single precision: 32 bits a weight.";
    F16, F16, "org.kbit.ggml.f16/1", "ggml F16", "Half precision, rounded to nearest even: 16 bits a weight.";
    Bf16, BF16, "org.kbit.ggml.bf16/1", "ggml BF16", "bfloat16, rounded to nearest even: 16 bits a weight.";
    Q8_0, Q8_0, "org.kbit.ggml.q8_0/1", "ggml Q8_0", "Blocks of 32, 8 bits and a half-precision scale: 8.5 bits a weight.";
    Q4_0, Q4_0, "org.kbit.ggml.q4_0/1", "ggml Q4_0", "Blocks of 32, 4 bits and a half-precision scale: 4.5 bits a weight.";
    Q4_1, Q4_1, "org.kbit.ggml.q4_1/1", "ggml Q4_1", "Blocks of 32, 4 bits, a half-precision scale and minimum: 5 bits a weight.";
    Q5_0, Q5_0, "org.kbit.ggml.q5_0/1", "ggml Q5_0", "Blocks of 32, 5 bits and a half-precision scale: 5.5 bits a weight.";
    Q5_1, Q5_1, "org.kbit.ggml.q5_1/1", "ggml Q5_1", "Blocks of 32, 5 bits, a half-precision scale and minimum: 6 bits a weight.";
    Q2K, Q2_K, "org.kbit.ggml.q2_k/1", "ggml Q2_K", "Blocks of 256, 2 bits, 4-bit scales and minimums of 16: 2.625 bits a weight.";
    Q3K, Q3_K, "org.kbit.ggml.q3_k/1", "ggml Q3_K", "Blocks of 256, 3 bits, 6-bit scales of 16: 3.4375 bits a weight.";
    Q4K, Q4_K, "org.kbit.ggml.q4_k/1", "ggml Q4_K", "Blocks of 256, 4 bits, 6-bit scales and minimums of 32: 4.5 bits a weight.";
    Q5K, Q5_K, "org.kbit.ggml.q5_k/1", "ggml Q5_K", "Blocks of 256, 5 bits, 6-bit scales and minimums of 32: 5.5 bits a weight.";
    Q6K, Q6_K, "org.kbit.ggml.q6_k/1", "ggml Q6_K", "Blocks of 256, 6 bits, 8-bit scales of 16: 6.5625 bits a weight.";
    Iq1S, IQ1_S, "org.kbit.ggml.iq1_s/1", "ggml IQ1_S", "Blocks of 256, points of a ternary grid for 8 weights: 1.5625 bits a weight; needs importance.";
    Iq1M, IQ1_M, "org.kbit.ggml.iq1_m/1", "ggml IQ1_M", "Blocks of 256, points of a ternary grid for 8 weights, finer scales: 1.75 bits a weight.";
    Iq2Xxs, IQ2_XXS, "org.kbit.ggml.iq2_xxs/1", "ggml IQ2_XXS", "Blocks of 256, points of a grid of 256 for 8 weights: 2.0625 bits a weight; needs importance.";
    Iq2Xs, IQ2_XS, "org.kbit.ggml.iq2_xs/1", "ggml IQ2_XS", "Blocks of 256, points of a grid of 512 for 8 weights: 2.3125 bits a weight; needs importance.";
    Iq2S, IQ2_S, "org.kbit.ggml.iq2_s/1", "ggml IQ2_S", "Blocks of 256, points of a grid of 1024 for 8 weights: 2.5625 bits a weight.";
    Iq3Xxs, IQ3_XXS, "org.kbit.ggml.iq3_xxs/1", "ggml IQ3_XXS", "Blocks of 256, points of a grid of 256 for 4 weights: 3.0625 bits a weight.";
    Iq3S, IQ3_S, "org.kbit.ggml.iq3_s/1", "ggml IQ3_S", "Blocks of 256, points of a grid of 512 for 4 weights: 3.4375 bits a weight.";
    Iq4Nl, IQ4_NL, "org.kbit.ggml.iq4_nl/1", "ggml IQ4_NL", "Blocks of 32, 4 bits on uneven levels and a half-precision scale: 4.5 bits a weight.";
    Iq4Xs, IQ4_XS, "org.kbit.ggml.iq4_xs/1", "ggml IQ4_XS", "Blocks of 256, 4 bits on uneven levels, 6-bit scales of 32: 4.25 bits a weight.";
    Tq1_0, TQ1_0, "org.kbit.ggml.tq1_0/1", "ggml TQ1_0", "Ternary blocks of 256, five weights a byte: 1.6875 bits a weight.";
    Tq2_0, TQ2_0, "org.kbit.ggml.tq2_0/1", "ggml TQ2_0", "Ternary blocks of 256, four weights a byte: 2.0625 bits a weight.";
    Mxfp4, MXFP4, "org.kbit.ggml.mxfp4/1", "ggml MXFP4", "Blocks of 32 floats of 4 bits and an 8-bit exponent: 4.25 bits a weight.";
    Nvfp4, NVFP4, "org.kbit.ggml.nvfp4/1", "ggml NVFP4", "Blocks of 64 floats of 4 bits, 16 of them to an 8-bit float: 4.5 bits a weight.";
    Q1_0, Q1_0, "org.kbit.ggml.q1_0/1", "ggml Q1_0", "Signs in blocks of 128 with a half-precision scale: 1.125 bits a weight.";
    Q2_0, Q2_0, "org.kbit.ggml.q2_0/1", "ggml Q2_0", "Blocks of 64, 2 bits and a half-precision scale: 2.25 bits a weight.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_that_can_be_encoded_is_a_scheme() {
        let missing: Vec<_> = GgmlType::ALL
            .iter()
            .filter(|ty| kbit_blocks::can_encode(**ty) && !TYPES.contains(ty))
            .map(|ty| ty.name())
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn weights_that_a_type_cannot_hold_are_a_numeric_error_at_their_row() {
        let mut values = vec![0.5; 4 * 64];
        values[3 * 64 + 7] = 1e6;
        let scheme = Blocks::<F16>(std::marker::PhantomData);
        let job = Job { tensor: "blk.0.ffn_up.weight".to_owned(), importance: None };
        // In one piece, and with gaps between rows.
        for (cols, stride) in [(64, 64), (32, 64)] {
            let slab = Slab::new(&values, 100, 4, cols, stride);
            let mut out = vec![0; 4 * cols * 2];
            let error =
                scheme.encode(&job, 100..104, &slab, &mut [&mut out[..]], &mut []).expect_err("too large");
            assert_eq!(error.status, Error::numeric("").status);
            assert_eq!(
                error.message,
                "tensor blk.0.ffn_up.weight: 1000000 at row 103, column 7 is too large for F16; choose bf16 or f32 for this tensor"
            );
        }
    }
}
