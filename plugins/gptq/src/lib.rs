//! GPTQ: columns are rounded one after the other, and the error of each is made good by those after it, as far as inputs of the layer
//! resemble each other.
//!
//! Frantar, Ashkboos, Hoefler and Alistarh (2022) minimise what rounding costs on the layer's own inputs, whose second moments
//! `H = mean(x x^T)` are gathered beforehand (`kbit calibrate --second-moments`). Levels are those of the scheme `int`, in its layout, or
//! those of a ggml block type, byte for byte, so that every program that reads GGUF runs the result: for these the scheme's encoder fits
//! scales and minimums to the corrected weights when a block begins, and the codes are chosen here.
//!
//! `Factor` of the scheme kit turns the second moments into corrections, the module `feedback` encodes rows with them.

mod feedback;

use feedback::{Encoded, Feedback, Order, Storage};
use kbit_blocks::{EvenLevels, LevelStep};
use kbit_plugin::abi::AUX_HESSIAN;
use kbit_plugin::{
    Aux, DefaultValue, Error, Host, Param, ParamKind, Params, Part, PartType, Plan, Scheme, SchemeInfo,
    Shape, Slab, SlabMut, export_plugin,
};
use kbit_scheme_kit::ggml::{BlockType, decode, encode_error, row_bytes};
use kbit_scheme_kit::levels::Int;
use kbit_scheme_kit::{
    BlockScheme, BlockTensor, DAMPING_PARAM, Factor, Fit, Layout, Levels, SCALE_PARAM, SYMMETRIC_PARAM,
    bits_param, block_param, columns_of, refuse_not_finite, round_half_even, shrink_factors,
};
use kbit_types::GgmlType;
use std::ops::Range;

const CITATION: &str = "Frantar et al. 2022, arXiv 2210.17323 (GPTQ); Chee et al. 2023, arXiv 2307.13304 (its form without an inverse)";

const ACT_ORDER_PARAM: Param = Param {
    key: "act_order",
    doc: "Encode columns with large inputs first. Scales are then fitted to the weights before any correction.",
    unit: "",
    kind: ParamKind::Bool,
    default: DefaultValue::Bool(false),
};

/// How errors are fed back.
struct Method {
    damping: f64,
    act_order: bool,
    host: Host<'static>,
}

/// A matrix being encoded.
pub struct Job {
    tensor: String,
    feedback: Feedback,
}

impl Method {
    fn open(host: &Host<'_>, params: &Params) -> Result<Self, Error> {
        let (damping, act_order) = (params.float("damping")?, params.bool("act_order")?);
        Ok(Self { damping, act_order, host: host.to_static() })
    }

    fn begin(&self, shape: &Shape<'_>, aux: &Aux<'_>) -> Result<Job, Error> {
        let tensor = shape.tensor;
        let (moments, stride) = aux.hessian.ok_or_else(|| {
            Error::missing(format!(
                "tensor {tensor}: no second moments of its inputs; gather them with `kbit calibrate --second-moments`"
            ))
        })?;
        let cols = columns_of(shape)?;
        let stride =
            usize::try_from(stride).map_err(|_| Error::internal("a stride above the address space"))?;
        let order = if self.act_order {
            let diagonal: Vec<f32> = (0..cols).map(|column| moments[column * stride + column]).collect();
            Order::largest_first(&diagonal)
        } else {
            Order::natural(cols)
        };
        let factor = Factor::new(&self.host, moments, stride, &order.columns, self.damping)
            .map_err(|error| error.of_tensor(tensor))?;
        Ok(Job { tensor: tensor.to_owned(), feedback: Feedback::new(factor, order) })
    }

    /// Bytes that a job of so many columns holds: factors in single precision, and in double precision while they are made.
    const fn job_bytes(cols: u64) -> u64 {
        cols.saturating_mul(cols).saturating_mul(6)
    }
}

impl Job {
    /// Encodes the rows of `slab` and hands each one's units and codes to `write`, with its number within the slab.
    fn encode<S: Storage>(
        &self,
        storage: &S,
        slab: &Slab<'_>,
        mut write: impl FnMut(usize, &[S::Unit], &[u8]),
    ) -> Result<(), Error> {
        for first in (0..slab.len()).step_by(feedback::ROWS) {
            let numbers = first..(first + feedback::ROWS).min(slab.len());
            let rows: Vec<&[f32]> = numbers.clone().map(|row| slab.row(row)).collect();
            for (row, number) in rows.iter().zip(slab.first() + first as u64..) {
                refuse_not_finite(row, &self.tensor, number)?;
            }
            let Encoded { units, codes } =
                self.feedback.encode(storage, slab.first() + first as u64, &rows)?;
            let each = units.len() / rows.len();
            for ((row, units), codes) in numbers.zip(units.chunks(each)).zip(codes.chunks(slab.cols())) {
                write(row, units, codes);
            }
        }
        Ok(())
    }
}

/// The scheme `gptq`: the layout of `int`.
struct Gptq {
    method: Method,
    base: BlockScheme<Int>,
    bits: u32,
    block: usize,
    symmetric: bool,
    search: bool,
}

const PARAMS: &[Param] = &[
    bits_param(2, 4),
    block_param(16),
    SYMMETRIC_PARAM,
    Param {
        key: "scale_search",
        doc: "range: levels reach from the least to the greatest weight of a block. error: of those and of 24 narrower ones, down to \
              52 %, the levels with the least error, weighted by what later columns cannot make good.",
        unit: "",
        kind: ParamKind::Choice(&["range", "error"]),
        default: DefaultValue::Str("error"),
    },
    DAMPING_PARAM,
    ACT_ORDER_PARAM,
    SCALE_PARAM,
];

/// Rows in the layout of `int`.
struct Rows<'a> {
    scheme: &'a Gptq,
    tensor: &'a str,
}

impl Rows<'_> {
    fn step(&self, fit: Fit) -> LevelStep {
        let half = if self.scheme.symmetric { f32::from(1u8 << (self.scheme.bits - 1)) } else { 0.0 };
        LevelStep { step: fit.scale, least: fit.minimum - half * fit.scale }
    }
}

impl Storage for Rows<'_> {
    type Unit = Fit;

    fn unit(&self) -> usize {
        self.scheme.block
    }

    fn part(&self) -> usize {
        self.scheme.block
    }

    fn most(&self) -> u8 {
        u8::MAX >> (8 - self.scheme.bits)
    }

    fn fit(&self, row: u64, values: &[f32], weights: &[f32], steps: &mut [LevelStep]) -> Result<Fit, Error> {
        let min = values.iter().fold(f32::INFINITY, |min, value| min.min(*value));
        let max = values.iter().fold(f32::NEG_INFINITY, |max, value| max.max(*value));
        let most = f32::from(self.most());
        let fit_by = |factor: f32| self.scheme.base.fit_range(min * factor, max * factor, self.tensor, row);
        let mut best = (f32::INFINITY, fit_by(1.0)?);
        for factor in shrink_factors().filter(|_| self.scheme.search) {
            let fit = fit_by(factor)?;
            let LevelStep { step, least } = self.step(fit);
            if step == 0.0 {
                break;
            }
            let error = values.iter().zip(weights).fold(0f32, |sum, (value, weight)| {
                let code = round_half_even(((value - least) / step).clamp(0.0, most));
                let error = value - (code * step + least);
                sum + weight * error * error
            });
            if error < best.0 {
                best = (error, fit);
            }
        }
        steps.fill(self.step(best.1));
        Ok(best.1)
    }
}

impl Scheme for Gptq {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.kbit.gptq/1",
        title: "GPTQ",
        doc: "Whole multiples of a scale as int, chosen column by column so that later columns make good the errors of earlier ones. \
              Needs second moments (kbit calibrate --second-moments).",
        citation: CITATION,
        ggml_type: -1,
        params: PARAMS,
    };
    type Job = (Job, Layout);
    type Tensor = BlockTensor;

    fn open(host: &Host<'_>, params: &Params) -> Result<Self, Error> {
        let symmetric = params.bool("symmetric")?;
        let bits = u32::try_from(params.int("bits")?).map_err(|_| Error::param("bits: 2 to 8"))?;
        let block = usize::try_from(params.int("block")?).map_err(|_| Error::param("block: 16 to 4096"))?;
        let scale = params.str("scale")?;
        let settings = format!("bits={bits},block={block},symmetric={symmetric},scale={scale}");
        let base = Scheme::open(host, &Params::parse(<Int as Levels>::INFO.params, &settings)?)?;
        let search = params.str("scale_search")? == "error";
        Ok(Self { method: Method::open(host, params)?, base, bits, block, symmetric, search })
    }

    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
        Ok(Plan {
            aux_required: AUX_HESSIAN,
            aux_used: AUX_HESSIAN,
            job_bytes_hint: Method::job_bytes(shape.cols),
            ..self.base.plan(shape)?
        })
    }

    fn begin(&self, shape: &Shape<'_>, _: Option<Slab<'_>>, aux: &Aux<'_>) -> Result<Self::Job, Error> {
        Ok((self.method.begin(shape, aux)?, self.base.layout(shape)?))
    }

    fn encode(
        &self,
        (job, layout): &Self::Job,
        _: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        _: &mut [u8],
    ) -> Result<(), Error> {
        let bytes: Vec<usize> = parts.iter().map(|part| part.len() / slab.len().max(1)).collect();
        let storage = Rows { scheme: self, tensor: &job.tensor };
        job.encode(&storage, slab, |row, fits, codes| {
            let mut own: Vec<&mut [u8]> = parts
                .iter_mut()
                .zip(&bytes)
                .map(|(part, bytes)| &mut part[row * bytes..(row + 1) * bytes])
                .collect();
            self.base.write(layout, fits, codes, &mut own);
        })
    }

    fn open_tensor(&self, shape: &Shape<'_>, heads: &[&[u8]]) -> Result<BlockTensor, Error> {
        self.base.open_tensor(shape, heads)
    }

    fn decode(
        &self,
        tensor: &BlockTensor,
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        out: &mut SlabMut<'_>,
        scratch: &mut [u8],
    ) -> Result<(), Error> {
        self.base.decode(tensor, shape, parts, rows, out, scratch)
    }
}

/// GPTQ in the blocks of a ggml type.
pub struct Blocks<T> {
    method: Method,
    levels: EvenLevels,
    ty: std::marker::PhantomData<T>,
}

/// Rows in blocks of a ggml type.
struct BlockRows<'a> {
    levels: &'a EvenLevels,
    tensor: &'a str,
}

impl Storage for BlockRows<'_> {
    /// The bytes of a block.
    type Unit = Vec<u8>;

    fn unit(&self) -> usize {
        self.levels.block
    }

    fn part(&self) -> usize {
        self.levels.part
    }

    fn most(&self) -> u8 {
        self.levels.most
    }

    fn fit(
        &self,
        row: u64,
        values: &[f32],
        weights: &[f32],
        steps: &mut [LevelStep],
    ) -> Result<Vec<u8>, Error> {
        let ty = self.levels.ty;
        let mut block = vec![0; usize::try_from(ty.block_bytes()).unwrap_or(0)];
        // Weights that are all zero say nothing.
        let weights = weights.iter().any(|weight| *weight > 0.0).then_some(weights);
        kbit_blocks::encode_row_range(ty, values, values.len(), weights, &mut block)
            .map_err(|error| encode_error(self.tensor, row, error))?;
        self.levels.steps(&block, steps);
        Ok(block)
    }
}

impl<T: BlockType> Scheme for Blocks<T> {
    const INFO: SchemeInfo = T::INFO;
    type Job = Job;
    type Tensor = ();

    fn open(host: &Host<'_>, params: &Params) -> Result<Self, Error> {
        let levels = EvenLevels::of(T::TYPE)
            .ok_or_else(|| Error::internal(format!("{} has no even levels", T::TYPE)))?;
        Ok(Self { method: Method::open(host, params)?, levels, ty: std::marker::PhantomData })
    }

    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
        Ok(Plan {
            parts: vec![Part::new("blocks", PartType::U8, row_bytes::<T>(shape)?)],
            aux_required: AUX_HESSIAN,
            aux_used: AUX_HESSIAN,
            job_bytes_hint: Method::job_bytes(shape.cols),
            ..Plan::default()
        })
    }

    fn begin(&self, shape: &Shape<'_>, _: Option<Slab<'_>>, aux: &Aux<'_>) -> Result<Job, Error> {
        row_bytes::<T>(shape)?;
        self.method.begin(shape, aux)
    }

    fn encode(
        &self,
        job: &Job,
        _: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        _: &mut [u8],
    ) -> Result<(), Error> {
        let [out] = parts else { return Err(Error::internal("one part")) };
        let row_bytes = out.len() / slab.len().max(1);
        let storage = BlockRows { levels: &self.levels, tensor: &job.tensor };
        job.encode(&storage, slab, |row, blocks, codes| {
            let own = &mut out[row * row_bytes..(row + 1) * row_bytes];
            let places = own.chunks_mut(row_bytes / blocks.len()).zip(codes.chunks(self.levels.block));
            for (block, (own, codes)) in blocks.iter().zip(places) {
                own.copy_from_slice(block);
                self.levels.set_codes(own, codes);
            }
        })
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
    ($($name:ident, $ty:ident, $id:literal, $title:literal;)*) => {
        $(#[doc = $title]
        pub struct $name;

        impl BlockType for $name {
            const TYPE: GgmlType = GgmlType::$ty;
            const INFO: SchemeInfo = SchemeInfo {
                id: $id,
                title: $title,
                doc: "The bytes of that ggml type, with codes chosen by error feedback as gptq; every GGUF reader runs them.",
                citation: CITATION,
                ggml_type: GgmlType::$ty.id() as i32,
                params: &[DAMPING_PARAM, ACT_ORDER_PARAM],
            };
        })*

        export_plugin! {
            id: "org.kbit.gptq",
            vendor: "kbit",
            url: "https://github.com/kbit-dev/kbit",
            license: "MIT OR Apache-2.0",
            schemes: [Gptq, $(Blocks<$name>),*],
        }
    };
}

block_types! {
    Q8_0, Q8_0, "org.kbit.gptq.q8_0/1", "GPTQ in ggml Q8_0";
    Q4_0, Q4_0, "org.kbit.gptq.q4_0/1", "GPTQ in ggml Q4_0";
    Q4_1, Q4_1, "org.kbit.gptq.q4_1/1", "GPTQ in ggml Q4_1";
    Q5_0, Q5_0, "org.kbit.gptq.q5_0/1", "GPTQ in ggml Q5_0";
    Q5_1, Q5_1, "org.kbit.gptq.q5_1/1", "GPTQ in ggml Q5_1";
    Q2K, Q2_K, "org.kbit.gptq.q2_k/1", "GPTQ in ggml Q2_K";
    Q3K, Q3_K, "org.kbit.gptq.q3_k/1", "GPTQ in ggml Q3_K";
    Q4K, Q4_K, "org.kbit.gptq.q4_k/1", "GPTQ in ggml Q4_K";
    Q5K, Q5_K, "org.kbit.gptq.q5_k/1", "GPTQ in ggml Q5_K";
    Q6K, Q6_K, "org.kbit.gptq.q6_k/1", "GPTQ in ggml Q6_K";
}

#[cfg(test)]
mod tests;
