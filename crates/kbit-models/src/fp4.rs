//! Weights of 4-bit floats with a scale for a few that lie together: MXFP4 and NVFP4.
//!
//! Sources: Microscaling Formats specification 1.0 of the Open Compute Project (E2M1, E8M0); transformers'
//! `integrations/mxfp4.py` (gpt-oss); compressed-tensors' `nvfp4-pack-quantized` and `mxfp4-pack-quantized`; llama.cpp's
//! converter, whose scales of whole tensors are always factors.

use crate::ModelError;
use crate::expr::{find, index, read_bytes, read_values, unreadable};
use kbit_formats::{Checkpoint, Element};
use kbit_types::{Dtype, GgmlType, MatrixShape};
use std::ops::Range;

/// 4-bit floats: a tensor of bytes with two codes each, the lower nibble first, row by row, and one of scales.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fp4 {
    /// Shape of the weights; rows are whole groups of codes.
    pub shape: MatrixShape,
    /// Name of the tensor of codes, bytes of any shape.
    pub codes: String,
    /// Name of the tensor of scales, one for each group of codes.
    pub scales: String,
    /// What the scales are.
    pub format: Fp4Format,
}

/// The scales of 4-bit floats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fp4Format {
    /// MXFP4: a byte with a power of two (E8M0) for each 32 codes.
    Mx,
    /// NVFP4: an E4M3 float for each 16 codes, maybe one more scale for all.
    Nv(Option<WholeScale>),
}

/// A scale of a whole tensor, a tensor of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WholeScale {
    /// Name of the tensor.
    pub name: String,
    /// Weights are divided by it, not multiplied.
    pub divides: bool,
}

/// Values of E2M1 codes, doubled. -0 is 0, as it is for ggml.
const E2M1_DOUBLED: [f32; 16] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];

/// Half of the scale that an exponent stands for, `2^(exponent - 128)`; subnormal for the two smallest.
fn half_scale(exponent: u8) -> f32 {
    match exponent {
        0 | 1 => f32::from_bits(0x0020_0000 << exponent),
        _ => f32::from_bits(u32::from(exponent - 1) << 23),
    }
}

impl Fp4 {
    /// Names of the tensors that it reads.
    pub(crate) fn sources(&self) -> Vec<&str> {
        let mut names = vec![self.codes.as_str(), self.scales.as_str()];
        if let Fp4Format::Nv(Some(whole)) = &self.format {
            names.push(&whole.name);
        }
        names
    }

    /// Codes that share a scale.
    const fn group(&self) -> u64 {
        match self.format {
            Fp4Format::Mx => 32,
            Fp4Format::Nv(_) => 16,
        }
    }

    /// Checks that all parts are there with their sizes and types.
    pub(crate) fn check(&self, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        let MatrixShape { rows, cols, slices } = self.shape;
        let group = self.group();
        let groups = rows
            .checked_mul(slices)
            .and_then(|rows| rows.checked_mul(cols / group))
            .filter(|_| cols.is_multiple_of(group));
        let scale = match self.format {
            Fp4Format::Mx => Dtype::U8,
            Fp4Format::Nv(_) => Dtype::F8E4M3,
        };
        for (name, dtype, each) in [(&self.codes, Dtype::U8, group / 2), (&self.scales, scale, 1)] {
            let tensor = find(checkpoint, name)?;
            let found = tensor.shape.iter().try_fold(1u64, |all, axis| all.checked_mul(*axis));
            let wanted = groups.and_then(|groups| groups.checked_mul(each));
            if tensor.element != Element::Plain(dtype) || found.is_none() || found != wanted {
                return Err(unreadable(
                    name,
                    format!(
                        "it does not hold {each} values of {dtype} for each {group} of {slices} x {rows} x {cols} weights; get the checkpoint anew"
                    ),
                ));
            }
        }
        if let Fp4Format::Nv(Some(whole)) = &self.format {
            let tensor = find(checkpoint, &whole.name)?;
            let float = matches!(tensor.element, Element::Plain(dtype) if dtype.is_float());
            if !float || tensor.shape.iter().any(|axis| *axis != 1) {
                return Err(unreadable(
                    &whole.name,
                    "it is not one floating-point number; get the checkpoint anew",
                ));
            }
        }
        Ok(())
    }

    /// Reads rows `rows` of slice `slice` into `out` `[rows, cols]`.
    pub(crate) fn read_rows(
        &self,
        checkpoint: &Checkpoint,
        slice: u64,
        rows: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let (codes, scales) = self.read_parts(checkpoint, slice, rows)?;
        let whole = self.whole_scale(checkpoint)?;
        let group = index(self.group());
        let parts = codes.chunks_exact(group / 2).zip(&scales);
        for (values, (codes, scale)) in out.chunks_exact_mut(group).zip(parts) {
            let half = match self.format {
                Fp4Format::Mx => half_scale(*scale),
                Fp4Format::Nv(_) => {
                    let mut value = [0.0];
                    // llama.cpp takes the scale's sign away.
                    Dtype::F8E4M3
                        .widen(&[scale & 0x7f], &mut value)
                        .map_err(|error| unreadable(&self.scales, error.to_string()))?;
                    value[0] * 0.5
                }
            };
            for (pair, code) in values.chunks_exact_mut(2).zip(codes) {
                pair[0] = E2M1_DOUBLED[usize::from(code & 15)] * half;
                pair[1] = E2M1_DOUBLED[usize::from(code >> 4)] * half;
            }
        }
        if let Some(whole) = whole {
            out.iter_mut().for_each(|value| *value *= whole);
        }
        Ok(())
    }

    /// The ggml type whose blocks hold the same values in as many codes and scales.
    pub(crate) const fn block_type(&self) -> Option<GgmlType> {
        match self.format {
            Fp4Format::Mx => Some(GgmlType::MXFP4),
            // ggml's blocks have no place for a scale of the whole tensor.
            Fp4Format::Nv(_) => None,
        }
    }

    /// Reads rows `rows` of slice `slice` as blocks of [`Fp4::block_type`]: codes and scales only change places.
    pub(crate) fn read_blocks(
        &self,
        checkpoint: &Checkpoint,
        slice: u64,
        rows: Range<u64>,
        out: &mut [u8],
    ) -> Result<(), ModelError> {
        let (codes, scales) = self.read_parts(checkpoint, slice, rows)?;
        for ((block, codes), scale) in out.chunks_exact_mut(17).zip(codes.chunks_exact(16)).zip(scales) {
            block[0] = scale;
            // ggml keeps value i beside value i + 16.
            let code = |at: usize| codes[at / 2] >> (4 * (at % 2)) & 15;
            for (at, byte) in block[1..].iter_mut().enumerate() {
                *byte = code(at) | code(at + 16) << 4;
            }
        }
        Ok(())
    }

    /// Bytes of codes and of scales of some rows.
    fn read_parts(
        &self,
        checkpoint: &Checkpoint,
        slice: u64,
        rows: Range<u64>,
    ) -> Result<(Vec<u8>, Vec<u8>), ModelError> {
        let group = self.group();
        let start = (slice * self.shape.rows + rows.start) * self.shape.cols / group;
        let count = (rows.end - rows.start) * self.shape.cols / group;
        let (mut codes, mut scales) = (vec![0u8; index(count * group / 2)], vec![0u8; index(count)]);
        read_bytes(checkpoint, find(checkpoint, &self.codes)?, start * group / 2, &mut codes)?;
        read_bytes(checkpoint, find(checkpoint, &self.scales)?, start, &mut scales)?;
        Ok((codes, scales))
    }

    /// The factor of all weights.
    fn whole_scale(&self, checkpoint: &Checkpoint) -> Result<Option<f32>, ModelError> {
        let Fp4Format::Nv(Some(whole)) = &self.format else { return Ok(None) };
        let mut value = [0.0];
        read_values(checkpoint, find(checkpoint, &whole.name)?, 0, &mut value)?;
        Ok(Some(if whole.divides { 1.0 / value[0] } else { value[0] }))
    }
}
