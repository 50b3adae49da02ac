//! Activation-aware quantization: columns with large inputs are made larger before they are rounded.
//!
//! Lin et al. (2023, arXiv 2306.00978) multiply each column of a matrix by a power `alpha` of its inputs' magnitude, round the product to
//! integers in blocks, and divide the inputs by the same number. An important column so has finer steps, relative to its weights, than others
//! of its blocks. `alpha` is the one of least error of the outputs among steps from 0 (plain rounding) to 1. Here the division stays with
//! the tensor: decoding divides the columns, so no other tensor changes and any model can be quantized so.
//!
//! The magnitude of an input is the root of its mean square, which an importance matrix holds. With second moments of the inputs `H` the
//! error is `tr(D H D^T)` for the matrix `D` of what is lost, the mean squared error of the outputs; without, that of its diagonal. It
//! is measured on evenly spaced rows: as many as make 2^20 weights (with second moments 2^29 products), but 64 at least. Powers are products
//! of square roots, so that every machine finds the same; that is why the grid has powers of two.
//!
//! Where `clip` is set, each block's range is shrunk from both ends by up to half, if that makes its weighted error smaller.
//!
//! # Stored bytes
//!
//! The parts are those of `int`: `codes`, `scales` and, with levels from a minimum up, `minima`, of the scaled matrix. The head of `codes`
//! holds what columns are divided by, in half precision.

mod levels;
mod search;

use kbit_plugin::convert::{f16_to_f32, f32_to_f16};
use kbit_plugin::{
    Aux, Error, Host, Params, Plan, Scheme, SchemeInfo, Shape, Slab, SlabMut, abi, export_plugin,
};
use kbit_scheme_kit::{BlockJob, BlockScheme, BlockTensor, Levels, refuse_not_finite, relative_importance};
use levels::Clipped;
use search::{Candidate, Norm, Search, scale_row};
use std::ops::Range;

struct Awq {
    host: Host<'static>,
    base: BlockScheme<Clipped>,
    grid: u32,
}

struct AwqJob {
    tensor: String,
    scales: Vec<f32>,
    base: BlockJob,
}

struct AwqTensor {
    scales: Vec<f32>,
    base: BlockTensor,
}

impl Scheme for Awq {
    const INFO: SchemeInfo = Clipped::INFO;
    type Job = AwqJob;
    type Tensor = AwqTensor;

    fn open(host: &Host<'_>, params: &Params) -> Result<Self, Error> {
        let grid = u32::try_from(params.int("grid")?).unwrap_or(0);
        if !grid.is_power_of_two() {
            return Err(Error::param(format!("grid={grid}: choose 1, 2, 4, 8, 16 or 32")));
        }
        Ok(Self { host: host.to_static(), base: Scheme::open(host, params)?, grid })
    }

    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
        let mut plan = self.base.plan(shape)?;
        let Some(codes) = plan.parts.first_mut() else { return Err(Error::internal("a plan without parts")) };
        codes.head_bytes = shape.cols * 2;
        // Scales and weights of the candidates.
        plan.job_bytes_hint = u64::from(self.grid + 3) * shape.cols * 8;
        plan.whole_matrix = true;
        plan.aux_required |= abi::AUX_DIAG;
        plan.aux_used |= abi::AUX_DIAG | abi::AUX_HESSIAN;
        Ok(plan)
    }

    fn begin(&self, shape: &Shape<'_>, data: Option<Slab<'_>>, aux: &Aux<'_>) -> Result<AwqJob, Error> {
        let diag = aux.diag.ok_or_else(|| {
            Error::missing(format!(
                "tensor {}: awq needs importance of the columns; gather it by `kbit calibrate MODEL --text FILE -o FILE` and give it by \
                 `--imatrix FILE` (`importance: FILE` in a configuration)",
                shape.tensor
            ))
        })?;
        let data = data.ok_or_else(|| {
            Error::internal(format!("tensor {}: awq needs the whole matrix; update kbit", shape.tensor))
        })?;
        let importance = relative_importance(shape, diag)?;
        let search = Search {
            host: &self.host,
            base: &self.base,
            shape,
            data: &data,
            importance: &importance,
            norm: Norm::new(shape, &importance, aux)?,
            grid: self.grid,
        };
        let Candidate { scales, job } = search.best()?;
        Ok(AwqJob { tensor: shape.tensor.to_owned(), scales, base: job })
    }

    fn prepare(&self, job: &mut AwqJob, _: &[u8], heads: &mut [&mut [u8]]) -> Result<(), Error> {
        let Some(head) = heads.first_mut() else { return Err(Error::internal("no part has a head")) };
        for (out, scale) in head.as_chunks_mut::<2>().0.iter_mut().zip(&job.scales) {
            *out = f32_to_f16(*scale).to_le_bytes();
        }
        Ok(())
    }

    fn encode(
        &self,
        job: &AwqJob,
        rows: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        scratch: &mut [u8],
    ) -> Result<(), Error> {
        let (count, cols) = (slab.len(), slab.cols());
        let mut scaled = vec![0f32; count * cols];
        for (index, out) in scaled.chunks_mut(cols).enumerate() {
            let (row, number) = (slab.row(index), slab.first() + index as u64);
            refuse_not_finite(row, &job.tensor, number)?;
            scale_row(row, &job.scales, out, &job.tensor, number)?;
        }
        let scaled = Slab::new(&scaled, slab.first(), count, cols, cols);
        self.base.encode(&job.base, rows, &scaled, parts, scratch)
    }

    fn open_tensor(&self, shape: &Shape<'_>, heads: &[&[u8]]) -> Result<AwqTensor, Error> {
        let bytes = heads.first().map_or(&[][..], |head| head.as_chunks::<2>().0);
        let scales: Vec<f32> = bytes.iter().map(|bytes| f16_to_f32(u16::from_le_bytes(*bytes))).collect();
        let damaged = |what: String| {
            Err(Error::internal(format!(
                "tensor {}: {what}; the file is damaged: convert it anew",
                shape.tensor
            )))
        };
        if scales.len() as u64 != shape.cols {
            return damaged(format!("{} scales for {} columns", scales.len(), shape.cols));
        }
        if let Some(column) = scales.iter().position(|scale| !scale.is_finite() || *scale <= 0.0) {
            return damaged(format!("the scale of column {column} is {}", scales[column]));
        }
        Ok(AwqTensor { scales, base: self.base.open_tensor(shape, heads)? })
    }

    fn decode(
        &self,
        tensor: &AwqTensor,
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        out: &mut SlabMut<'_>,
        scratch: &mut [u8],
    ) -> Result<(), Error> {
        self.base.decode(&tensor.base, shape, parts, rows, out, scratch)?;
        for row in 0..out.len() {
            for (value, scale) in out.row_mut(row).iter_mut().zip(&tensor.scales) {
                *value /= scale;
            }
        }
        Ok(())
    }
}

export_plugin! {
    id: "org.kbit.awq",
    vendor: "kbit",
    url: "https://github.com/kbit-dev/kbit",
    license: "MIT OR Apache-2.0",
    schemes: [Awq],
}

#[cfg(test)]
mod tests;
