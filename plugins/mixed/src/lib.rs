//! Mixed precision by input dimension: a share of a matrix's columns stays in 16 bits, the rest goes through another scheme.
//!
//! The columns are those whose inputs are likeliest to be outliers. Dettmers and Zettlemoyer (arXiv 2212.09720, section 3.2) find
//! them without data, by a proxy: the standard deviation of the weights of the unit that produces each input. The columns that
//! stay are taken out of the matrix before the rest is quantized, so that they neither widen its blocks nor take bits twice: `p` of
//! them cost `p * (16 - k)` bits a weight, as in the paper's count.

use kbit_plugin::abi::{AUX_DIAG, AUX_PRODUCER};
use kbit_plugin::convert::{bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use kbit_plugin::{
    Aux, DefaultValue, Error, Host, Param, ParamKind, Params, Part, PartType, Plan, Scheme, SchemeInfo,
    Shape, Slab, SlabMut, export_plugin,
};
use kbit_scheme_kit::levels::{Dynamic, Float, Int, Quantile};
use kbit_scheme_kit::{BlockJob, BlockScheme, BlockTensor, block_param, columns_of, refuse_not_finite};
use std::ops::Range;

/// Bytes of a column's number in the head.
const INDEX_BYTES: usize = 4;

/// What makes a column stay in 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Select {
    Producer,
    Importance,
    Magnitude,
}

/// The type of the columns that stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Half {
    F16,
    Bf16,
}

/// The scheme of all other columns.
enum Base {
    Int(BlockScheme<Int>),
    Float(BlockScheme<Float>),
    Quantile(BlockScheme<Quantile>),
    Dynamic(BlockScheme<Dynamic>),
}

/// Calls the same method of whichever scheme the base is.
macro_rules! of_base {
    ($base:expr, $scheme:ident => $call:expr) => {
        match $base {
            Base::Int($scheme) => $call,
            Base::Float($scheme) => $call,
            Base::Quantile($scheme) => $call,
            Base::Dynamic($scheme) => $call,
        }
    };
}

struct Mixed {
    base: Base,
    share: f64,
    select: Select,
    half: Half,
}

struct MixedJob {
    columns: Columns,
    base: BlockJob,
    tensor: String,
}

struct MixedTensor {
    columns: Columns,
    base: BlockTensor,
}

/// Which columns stay in 16 bits, ascending, and which do not.
struct Columns {
    kept: Vec<usize>,
    rest: Vec<usize>,
}

impl Columns {
    /// `kept` is ascending and below `cols`.
    fn new(kept: Vec<usize>, cols: usize) -> Self {
        let mut is_kept = vec![false; cols];
        kept.iter().for_each(|column| is_kept[*column] = true);
        Self { kept, rest: (0..cols).filter(|column| !is_kept[*column]).collect() }
    }

    /// The `count` columns with the greatest scores; of equal ones, the first.
    fn greatest(scores: &[f64], count: usize) -> Self {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        order.truncate(count);
        order.sort_unstable();
        Self::new(order, scores.len())
    }
}

const PARAMS: &[Param] = &[
    Param {
        key: "base",
        doc: "Scheme of the columns that do not stay in 16 bits, with its defaults but for bits and block.",
        unit: "",
        kind: ParamKind::Choice(&["int", "float", "quantile", "dynamic"]),
        default: DefaultValue::Str("int"),
    },
    Param {
        key: "bits",
        doc: "Bits of a weight of those columns: 2 to 8, from 3 for float and dynamic.",
        unit: "bits",
        kind: ParamKind::Int { min: 2, max: 8 },
        default: DefaultValue::Int(4),
    },
    Param {
        key: "share",
        doc: "Share of the columns that stay in 16 bits, rounded to whole columns.",
        unit: "",
        kind: ParamKind::Float { min: 0.0, max: 0.5 },
        default: DefaultValue::Float(0.02),
    },
    Param {
        key: "select",
        doc: "Which columns stay. producer: those whose inputs come from units with the greatest standard deviation of weights. \
              importance: those with the greatest mean squared input times squared norm (needs an importance matrix). magnitude: \
              those with the greatest norm.",
        unit: "",
        kind: ParamKind::Choice(&["producer", "importance", "magnitude"]),
        default: DefaultValue::Str("producer"),
    },
    Param {
        key: "half",
        doc: "Type of the columns that stay.",
        unit: "",
        kind: ParamKind::Choice(&["f16", "bf16"]),
        default: DefaultValue::Str("f16"),
    },
    block_param(64),
];

/// The same matrix without the columns that stay.
fn rest_shape<'a>(shape: &Shape<'a>, kept: usize) -> Shape<'a> {
    Shape { cols: shape.cols - kept as u64, ..*shape }
}

impl Mixed {
    /// How many of `cols` columns stay: at least one column does not.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of the columns, from 0 to half of them"
    )]
    fn kept(&self, cols: usize) -> usize {
        ((self.share * cols as f64).round() as usize).min(cols.saturating_sub(1))
    }

    fn half_bits(&self, value: f32, place: impl Fn() -> String) -> Result<u16, Error> {
        match self.half {
            Half::Bf16 => Ok(f32_to_bf16(value)),
            Half::F16 => {
                let bits = f32_to_f16(value);
                if f16_to_f32(bits).is_finite() {
                    Ok(bits)
                } else {
                    Err(Error::numeric(format!(
                        "{}: {value:e} does not fit half precision; choose half=bf16",
                        place()
                    )))
                }
            }
        }
    }

    fn half_value(&self, bits: u16) -> f32 {
        match self.half {
            Half::F16 => f16_to_f32(bits),
            Half::Bf16 => bf16_to_f32(bits),
        }
    }

    /// A score for each column; the greatest stay.
    fn scores(&self, shape: &Shape<'_>, data: Option<Slab<'_>>, aux: &Aux<'_>) -> Result<Vec<f64>, Error> {
        let missing = |what: &str| Error::missing(format!("tensor {}: select needs {what}", shape.tensor));
        if self.select == Select::Producer {
            let deviations = aux.producer_std.ok_or_else(|| missing("the producing unit's deviations"))?;
            return Ok(deviations.iter().map(|deviation| f64::from(*deviation)).collect());
        }
        let data = data.ok_or_else(|| missing("the whole matrix"))?;
        let mut squares = vec![0f64; data.cols()];
        for row in 0..data.len() {
            refuse_not_finite(data.row(row), shape.tensor, data.first() + row as u64)?;
            for (sum, value) in squares.iter_mut().zip(data.row(row)) {
                *sum += f64::from(*value) * f64::from(*value);
            }
        }
        if self.select == Select::Importance {
            let importance = aux.diag.ok_or_else(|| missing("an importance matrix"))?;
            squares.iter_mut().zip(importance).for_each(|(square, weight)| *square *= f64::from(*weight));
        }
        Ok(squares)
    }
}

impl Scheme for Mixed {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.kbit.mixed/1",
        title: "Mixed precision",
        doc: "A share of the input dimensions stays in 16 bits, the rest goes through another scheme without them.",
        citation: "Dettmers and Zettlemoyer 2022, arXiv 2212.09720 (outlier-dependent quantization through proxy quantization)",
        ggml_type: -1,
        params: PARAMS,
    };
    type Job = MixedJob;
    type Tensor = MixedTensor;

    fn open(host: &Host<'_>, params: &Params) -> Result<Self, Error> {
        let settings = format!("bits={},block={}", params.int("bits")?, params.int("block")?);
        let base = match params.str("base")? {
            "float" => Base::Float(Scheme::open(host, &parse::<Float>(&settings)?)?),
            "quantile" => Base::Quantile(Scheme::open(host, &parse::<Quantile>(&settings)?)?),
            "dynamic" => Base::Dynamic(Scheme::open(host, &parse::<Dynamic>(&settings)?)?),
            _ => Base::Int(Scheme::open(host, &parse::<Int>(&settings)?)?),
        };
        let select = match params.str("select")? {
            "importance" => Select::Importance,
            "magnitude" => Select::Magnitude,
            _ => Select::Producer,
        };
        let half = if params.str("half")? == "bf16" { Half::Bf16 } else { Half::F16 };
        Ok(Self { base, share: params.float("share")?, select, half })
    }

    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
        let kept = self.kept(columns_of(shape)?);
        let mut plan = of_base!(&self.base, base => base.plan(&rest_shape(shape, kept)))?;
        if kept == 0 {
            return Ok(plan);
        }
        plan.parts.push(Part {
            name: "kept",
            dtype: match self.half {
                Half::F16 => PartType::F16,
                Half::Bf16 => PartType::Bf16,
            },
            head_bytes: (kept * INDEX_BYTES) as u64,
            group_bytes: u64::from(plan.row_group) * kept as u64 * 2,
        });
        match self.select {
            Select::Producer => plan.aux_required |= AUX_PRODUCER,
            Select::Importance => {
                plan.aux_required |= AUX_DIAG;
                plan.whole_matrix = true;
            }
            Select::Magnitude => plan.whole_matrix = true,
        }
        Ok(plan)
    }

    fn begin(&self, shape: &Shape<'_>, data: Option<Slab<'_>>, aux: &Aux<'_>) -> Result<MixedJob, Error> {
        let cols = columns_of(shape)?;
        let kept = self.kept(cols);
        let columns = if kept == 0 {
            Columns::new(Vec::new(), cols)
        } else {
            Columns::greatest(&self.scores(shape, data, aux)?, kept)
        };
        let base = of_base!(&self.base, base => base.begin(&rest_shape(shape, kept), None, aux))?;
        Ok(MixedJob { columns, base, tensor: shape.tensor.to_owned() })
    }

    fn prepare(&self, job: &mut MixedJob, _: &[u8], heads: &mut [&mut [u8]]) -> Result<(), Error> {
        let Some(head) = heads.last_mut() else { return Err(Error::internal("no part has a head")) };
        for (column, out) in job.columns.kept.iter().zip(head.as_chunks_mut::<INDEX_BYTES>().0) {
            let column = u32::try_from(*column).map_err(|_| Error::internal("a column above 2^32"))?;
            *out = column.to_le_bytes();
        }
        Ok(())
    }

    fn encode(
        &self,
        job: &MixedJob,
        rows: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        scratch: &mut [u8],
    ) -> Result<(), Error> {
        let Columns { kept, rest } = &job.columns;
        let mut values = Vec::with_capacity(slab.len() * rest.len());
        for row in 0..slab.len() {
            let source = slab.row(row);
            refuse_not_finite(source, &job.tensor, slab.first() + row as u64)?;
            values.extend(rest.iter().map(|column| source[*column]));
        }
        let base_parts = parts.len() - usize::from(!kept.is_empty());
        let (base, own) = parts.split_at_mut(base_parts);
        let reduced = Slab::new(&values, slab.first(), slab.len(), rest.len(), rest.len());
        of_base!(&self.base, scheme => scheme.encode(&job.base, rows, &reduced, base, scratch))?;
        let Some(own) = own.first_mut() else { return Ok(()) };
        own.fill(0);
        for (row, out) in (0..slab.len()).zip(own.chunks_mut(kept.len() * 2)) {
            for (column, out) in kept.iter().zip(out.as_chunks_mut::<2>().0) {
                let place =
                    || format!("tensor {}: row {}, column {column}", job.tensor, slab.first() + row as u64);
                *out = self.half_bits(slab.row(row)[*column], place)?.to_le_bytes();
            }
        }
        Ok(())
    }

    fn open_tensor(&self, shape: &Shape<'_>, heads: &[&[u8]]) -> Result<MixedTensor, Error> {
        let cols = columns_of(shape)?;
        let count = self.kept(cols);
        let (base_heads, own) = heads.split_at(heads.len() - usize::from(count > 0));
        let indices = own.first().map_or(&[][..], |head| head.as_chunks::<INDEX_BYTES>().0);
        let kept: Vec<usize> = indices.iter().map(|bytes| u32::from_le_bytes(*bytes) as usize).collect();
        let ascending = kept.windows(2).all(|pair| pair[0] < pair[1]);
        if kept.len() != count || !ascending || kept.last().is_some_and(|last| *last >= cols) {
            return Err(Error::internal(format!(
                "tensor {}: the columns in 16 bits are not {count} ascending numbers below {cols}; the file is damaged: convert it anew",
                shape.tensor
            )));
        }
        let base = of_base!(&self.base, base => base.open_tensor(&rest_shape(shape, count), base_heads))?;
        Ok(MixedTensor { columns: Columns::new(kept, cols), base })
    }

    fn decode(
        &self,
        tensor: &MixedTensor,
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        out: &mut SlabMut<'_>,
        scratch: &mut [u8],
    ) -> Result<(), Error> {
        let Columns { kept, rest } = &tensor.columns;
        let (base, own) = parts.split_at(parts.len() - usize::from(!kept.is_empty()));
        let mut values = vec![0f32; out.len() * rest.len()];
        let mut reduced = SlabMut::new(&mut values, out.len(), rest.len(), rest.len());
        let shape = rest_shape(shape, kept.len());
        of_base!(&self.base, scheme => {
            scheme.decode(&tensor.base, &shape, base, rows.clone(), &mut reduced, scratch)
        })?;
        let first =
            usize::try_from(rows.start).map_err(|_| Error::internal("a row above the address space"))?;
        for (row, source) in values.chunks(rest.len()).enumerate() {
            let out = out.row_mut(row);
            for (column, value) in rest.iter().zip(source) {
                out[*column] = *value;
            }
            if let Some(own) = own.first() {
                // Rows of a group follow one another, and so do groups.
                let bytes = &own[(first + row) * kept.len() * 2..][..kept.len() * 2];
                for (column, bits) in kept.iter().zip(bytes.as_chunks::<2>().0) {
                    out[*column] = self.half_value(u16::from_le_bytes(*bits));
                }
            }
        }
        Ok(())
    }
}

fn parse<L: kbit_scheme_kit::Levels>(settings: &str) -> Result<Params, Error> {
    Params::parse(L::INFO.params, settings)
}

export_plugin! {
    id: "org.kbit.mixed",
    vendor: "kbit",
    url: "https://github.com/kbit-dev/kbit",
    license: "MIT OR Apache-2.0",
    schemes: [Mixed],
}

#[cfg(test)]
mod tests {
    use super::*;
    use kbit_scheme_kit::testing;

    #[test]
    fn keeps_the_rules_of_the_abi() {
        for settings in [
            "bits=4",
            "bits=3,share=0.1,select=magnitude",
            "base=float,bits=3,share=0",
            "base=quantile,bits=2,share=0.5,select=importance,half=bf16",
            "base=dynamic,bits=6,block=128",
        ] {
            testing::keeps_the_rules::<Mixed>(settings);
        }
    }

    #[test]
    fn a_column_in_16_bits_costs_16_bits_and_nothing_else() {
        // 4 of 200 columns stay; 196 take 4 bits and a scale of 16 bits for each 64.
        let bytes = testing::bytes::<Mixed>("bits=4,share=0.02", 10, 200);
        assert_eq!(bytes, 4 * 4 + 10 * (4 * 2 + 196 / 2 + 4 * 2));
    }

    #[test]
    fn outlier_columns_come_back_and_do_not_widen_blocks() {
        let mut values = testing::gaussian(40 * 100);
        values.iter_mut().skip(17).step_by(100).for_each(|value| *value *= 50.0);
        let decoded = |settings: &str| testing::round_trip::<Mixed>(settings, 40, 100, &values);
        let mixed = decoded("bits=4,share=0.01,select=magnitude");
        for (row, value) in mixed.iter().skip(17).step_by(100).enumerate() {
            let source = values[row * 100 + 17];
            assert!((value - source).abs() <= source.abs() / 2048.0, "{value} {source}");
        }
        let others = |decoded: &[f32]| {
            let of_others = |values: &[f32]| -> Vec<f32> {
                values.iter().enumerate().filter(|(i, _)| i % 100 != 17).map(|(_, value)| *value).collect()
            };
            testing::relative_mse(&of_others(&values), &of_others(decoded))
        };
        assert!(others(&mixed) < others(&decoded("bits=4,share=0")) / 4.0);
    }

    #[test]
    fn the_columns_are_those_with_the_greatest_scores() {
        let columns = Columns::greatest(&[1.0, 5.0, 3.0, 5.0, 5.0], 2);
        assert_eq!((columns.kept, columns.rest), (vec![1, 3], vec![0, 2, 4]));
    }

    #[test]
    fn a_damaged_list_of_columns_is_refused() {
        let scheme = Mixed::open(&Host::none(), &Params::parse(PARAMS, "share=0.03").unwrap()).unwrap();
        let shape = Shape { tensor: "t", rows: 1, cols: 100, slice: 0, n_slices: 1 };
        for columns in [[1u32, 2, 100], [2, 1, 3], [1, 1, 3]] {
            let head: Vec<u8> = columns.iter().flat_map(|column| column.to_le_bytes()).collect();
            let error = scheme.open_tensor(&shape, &[&[], &[], &head]).err().unwrap();
            assert!(error.message.contains("3 ascending numbers below 100"), "{}", error.message);
        }
    }
}
