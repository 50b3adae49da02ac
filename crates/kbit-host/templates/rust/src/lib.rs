//! @NAME@: a quantization scheme for kbit.
//!
//! As it stands: each block of weights keeps one f32 scale and 4-bit codes -7..7 (absmax rounding). Make it yours in
//! [`@TYPE@::encode_row`] and [`@TYPE@::decode_row`]; `plan` says how many bytes a row takes. Bytes must be a function of
//! values and shape alone: no libm (`exp`, `ln`, `powf`), no threads, no `mul_add`.

use kbit_plugin::{
    Aux, DefaultValue, Error, Host, Param, ParamKind, Params, Part, PartType, Plan, Scheme, SchemeInfo, Shape, Slab,
    SlabMut, export_plugin,
};
use std::ops::Range;

/// The scheme with its parameter values.
pub struct @TYPE@ {
    /// Weights that share a scale.
    block: usize,
}

impl @TYPE@ {
    /// One row into its codes (two to a byte) and scales. The column of a weight that is not finite is an error.
    fn encode_row(&self, row: &[f32], codes: &mut [u8], scales: &mut [u8]) -> Result<(), usize> {
        codes.fill(0);
        for (b, (block, scale_bytes)) in row.chunks(self.block).zip(scales.chunks_exact_mut(4)).enumerate() {
            if let Some(c) = block.iter().position(|weight| !weight.is_finite()) {
                return Err(b * self.block + c);
            }
            let largest = block.iter().fold(0.0f32, |largest, weight| largest.max(weight.abs()));
            let scale = largest / 7.0;
            scale_bytes.copy_from_slice(&scale.to_le_bytes());
            for (c, weight) in block.iter().enumerate() {
                let steps = if scale > 0.0 { weight / scale } else { 0.0 };
                let code = (steps.round_ties_even() as i32).clamp(-7, 7) + 8;
                let at = b * self.block + c;
                codes[at / 2] |= (code as u8) << (at % 2 * 4);
            }
        }
        Ok(())
    }

    /// The row back from its codes and scales.
    fn decode_row(&self, codes: &[u8], scales: &[u8], out: &mut [f32]) {
        for (b, (block, scale)) in out.chunks_mut(self.block).zip(scales.chunks_exact(4)).enumerate() {
            let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
            for (c, weight) in block.iter_mut().enumerate() {
                let at = b * self.block + c;
                let code = i32::from(codes[at / 2] >> (at % 2 * 4) & 15) - 8;
                *weight = code as f32 * scale;
            }
        }
    }

    /// Bytes of codes and of scales of one row.
    fn row_bytes(&self, cols: u64) -> (u64, u64) {
        (cols.div_ceil(2), cols.div_ceil(self.block as u64) * 4)
    }
}

impl Scheme for @TYPE@ {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.example.@NAME@/1", // your domain; a new number whenever stored bytes change their meaning
        title: "@NAME@",
        doc: "4-bit codes with one f32 scale a block, by absmax rounding.",
        citation: "",
        ggml_type: -1,
        params: &[Param {
            key: "block",
            doc: "Weights of a row that share one scale",
            unit: "weights",
            kind: ParamKind::Int { min: 8, max: 4096 },
            default: DefaultValue::Int(32),
        }],
    };
    type Job = ();
    type Tensor = ();

    fn open(_: &Host<'_>, params: &Params) -> Result<Self, Error> {
        Ok(Self { block: params.int("block")? as usize })
    }

    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
        if shape.cols > u64::MAX / 16 {
            return Err(Error::unsupported(format!("{} columns are too many", shape.cols)));
        }
        let (codes, scales) = self.row_bytes(shape.cols);
        let parts = vec![Part::new("codes", PartType::U8, codes), Part::new("scales", PartType::F32, scales)];
        Ok(Plan { parts, ..Plan::default() })
    }

    fn begin(&self, _: &Shape<'_>, _: Option<Slab<'_>>, _: &Aux<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn encode(
        &self,
        _: &(),
        rows: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        _: &mut [u8],
    ) -> Result<(), Error> {
        let [codes, scales] = parts else { return Err(Error::internal("the plan has two parts")) };
        let (code_bytes, scale_bytes) = self.row_bytes(slab.cols() as u64);
        let rows_of_parts = codes.chunks_exact_mut(code_bytes as usize).zip(scales.chunks_exact_mut(scale_bytes as usize));
        for ((i, row), (codes, scales)) in rows.enumerate().zip(rows_of_parts) {
            self.encode_row(slab.row(i), codes, scales)
                .map_err(|column| Error::numeric(format!("row {row}, column {column} is not finite")))?;
        }
        Ok(())
    }

    fn open_tensor(&self, _: &Shape<'_>, _: &[&[u8]]) -> Result<(), Error> {
        Ok(())
    }

    fn decode(
        &self,
        _: &(),
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        out: &mut SlabMut<'_>,
        _: &mut [u8],
    ) -> Result<(), Error> {
        let (code_bytes, scale_bytes) = self.row_bytes(shape.cols);
        let row_of = |part: usize, row: u64, bytes: u64| &parts[part][(row * bytes) as usize..((row + 1) * bytes) as usize];
        for (i, row) in rows.enumerate() {
            self.decode_row(row_of(0, row, code_bytes), row_of(1, row, scale_bytes), out.row_mut(i));
        }
        Ok(())
    }
}

export_plugin! {
    id: "org.example.@NAME@",
    vendor: "you",
    url: "https://example.org/@NAME@",
    license: "MIT OR Apache-2.0",
    schemes: [@TYPE@],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoded_weights_are_within_half_a_step() {
        let scheme = @TYPE@ { block: 32 };
        let row: Vec<f32> = (0..75).map(|i| ((i * 7919) % 201 - 100) as f32 / 500.0).collect();
        let (codes, scales) = scheme.row_bytes(75);
        let (mut codes, mut scales) = (vec![0; codes as usize], vec![0; scales as usize]);
        scheme.encode_row(&row, &mut codes, &mut scales).unwrap();
        let mut decoded = vec![0.0; 75];
        scheme.decode_row(&codes, &scales, &mut decoded);
        for (weight, back) in row.iter().zip(&decoded) {
            assert!((weight - back).abs() <= 0.2 / 14.0 + 1e-6, "{weight} became {back}");
        }
    }

    #[test]
    fn a_weight_that_is_not_finite_is_refused_by_column() {
        let scheme = @TYPE@ { block: 32 };
        let mut row = vec![0.1; 40];
        row[37] = f32::NAN;
        assert_eq!(scheme.encode_row(&row, &mut [0; 20], &mut [0; 8]), Err(37));
    }
}
