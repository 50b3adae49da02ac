//! Which units produce the inputs of a matrix, and how far their weights spread.
//!
//! A scheme can tell without data which inputs are likely to be outliers: those from units whose weights have a great standard
//! deviation (Dettmers and Zettlemoyer, arXiv 2212.09720, section 3.2, "proxy quantization"). In a transformer the producer of a matrix
//! is the matrix before it: values for the attention's output, the upward projection for the downward one; for what reads the residual
//! stream it is the matrix that added to it last, or the token embedding.

use crate::convert::{Conversion, OutputTensor};
use crate::description::Residual;
use crate::error::ModelError;
use crate::in_block;
use kbit_formats::Checkpoint;
use kbit_types::MatrixShape;

/// Weights that are read at a time.
const CHUNK_WEIGHTS: u64 = 1 << 20;

/// The units that produce the columns of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct Producer<'a> {
    tensor: &'a OutputTensor,
    units: Units,
}

/// Which units of the producing tensor are columns of the matrix, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Units {
    /// Its last rows, each repeated for the `group` heads of `width` columns that share it.
    Rows { group: u64, width: u64 },
    /// Its columns: those of an embedding.
    Columns,
}

impl Producer<'_> {
    /// GGUF name of the producing tensor.
    #[must_use]
    pub fn tensor(&self) -> &str {
        &self.tensor.name
    }

    /// `[cols]`: for each of `cols` columns of a matrix with `slices` slices, the standard deviation of the weights that produce it.
    /// Where the producer has as many slices, that of `slice` counts, else all of them.
    ///
    /// # Errors
    /// When the producer cannot be read.
    pub fn deviations(
        &self,
        checkpoint: &Checkpoint,
        cols: u64,
        slice: u64,
        slices: u64,
    ) -> Result<Vec<f32>, ModelError> {
        let shape = self.tensor.expr.shape();
        let slices = if shape.slices == slices { slice..slice + 1 } else { 0..shape.slices };
        let units = match self.units {
            Units::Rows { group, .. } => cols / group,
            Units::Columns => cols,
        };
        let mut moments = vec![Moments::default(); index(units)];
        let chunk = (CHUNK_WEIGHTS / shape.cols.max(1)).max(1);
        let first = match self.units {
            Units::Rows { .. } => shape.rows - units,
            Units::Columns => 0,
        };
        let mut values = Vec::new();
        for slice in slices {
            for start in (first..shape.rows).step_by(index(chunk)) {
                let rows = start..(start + chunk).min(shape.rows);
                values.resize(index((rows.end - rows.start) * shape.cols), 0.0);
                self.tensor.expr.read_rows(checkpoint, slice, rows, &mut values)?;
                for (row, values) in (start - first..).zip(values.chunks(index(shape.cols))) {
                    match self.units {
                        Units::Rows { .. } => values.iter().for_each(|value| moments[index(row)].add(*value)),
                        Units::Columns => {
                            moments.iter_mut().zip(values).for_each(|(unit, value)| unit.add(*value));
                        }
                    }
                }
            }
        }
        let unit_of = |column: u64| match self.units {
            Units::Rows { group, width } => column / width / group * width + column % width,
            Units::Columns => column,
        };
        Ok((0..cols).map(|column| moments[index(unit_of(column))].deviation()).collect())
    }
}

/// Sums over the weights of a unit.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: u32,
    sum: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, value: f32) {
        let value = f64::from(value);
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    #[expect(clippy::cast_possible_truncation, reason = "a figure in single precision")]
    fn deviation(&self) -> f32 {
        let count = f64::from(self.count.max(1));
        let mean = self.sum / count;
        (self.squares / count - mean * mean).max(0.0).sqrt() as f32
    }
}

fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

impl Conversion {
    /// The units that produce the inputs of the matrix `name` of shape `shape`; of the token embedding, whose inputs nothing produces, the
    /// units that it consists of, unless it is the output matrix too. `None` where kbit does not know, as for latent attention.
    #[must_use]
    pub fn producer(&self, name: &str, shape: MatrixShape) -> Option<Producer<'_>> {
        let description = self.description.as_ref()?;
        let find = |name: &str| self.tensors.iter().find(|tensor| tensor.name == name);
        let in_layer = |block: u64, matrix: &str| find(&format!("blk.{block}.{matrix}.weight"));
        // What added to the residual stream last before a block; before the first it is the embedding.
        let stream = |block: u64| match block.checked_sub(1) {
            Some(before) => {
                in_layer(before, "ffn_down").or_else(|| in_layer(before, "ffn_down_exps")).map(rows)
            }
            None => find("token_embd.weight").map(|tensor| Producer { tensor, units: Units::Columns }),
        };
        let matrix = in_block(name).and_then(|(block, rest)| Some((block, rest.strip_suffix(".weight")?)));
        let producer = match matrix {
            None if name == "output.weight" || (name == "token_embd.weight" && description.tied_output) => {
                stream(description.layers as u64)
            }
            None if name == "token_embd.weight" => stream(0),
            None => None,
            Some((block, "attn_q" | "attn_k" | "attn_v" | "attn_qkv")) => stream(block),
            Some((block, "attn_output")) => {
                let values = in_layer(block, "attn_v").or_else(|| in_layer(block, "attn_qkv"))?;
                let (group, width) = (description.heads / description.kv_heads.max(1), description.value_dim);
                Some(Producer {
                    tensor: values,
                    units: Units::Rows { group: group.max(1) as u64, width: width.max(1) as u64 },
                })
            }
            Some((block, "ffn_up" | "ffn_gate" | "ffn_up_exps" | "ffn_gate_exps" | "ffn_gate_up_exps"))
                if matches!(description.residual, Residual::Sequential) =>
            {
                in_layer(block, "attn_output").map(rows)
            }
            Some((block, "ffn_up" | "ffn_gate")) => stream(block),
            Some((block, "ffn_down")) => in_layer(block, "ffn_up").map(rows),
            Some((block, "ffn_down_exps")) => {
                in_layer(block, "ffn_up_exps").or_else(|| in_layer(block, "ffn_gate_up_exps")).map(rows)
            }
            Some(_) => None,
        }?;
        let found = producer.tensor.expr.shape();
        let fits = match producer.units {
            Units::Rows { group, width } => {
                shape.cols.is_multiple_of(group * width) && found.rows >= shape.cols / group
            }
            Units::Columns => found.cols == shape.cols,
        };
        fits.then_some(producer)
    }
}

/// Rows of `tensor`, one a column.
const fn rows(tensor: &OutputTensor) -> Producer<'_> {
    Producer { tensor, units: Units::Rows { group: 1, width: 1 } }
}
