//! Trellis-coded quantization with incoherence processing: rows are rotated until they look Gaussian, and a path through a trellis of
//! many states says which values come nearest to them.
//!
//! After QTIP (Tseng, Sun, Hou and De Sa 2024, arXiv 2406.11235): the bitshift trellis, computed codes and tail-biting. The random
//! Hadamard transform is that of QuIP# (Tseng et al. 2024, arXiv 2402.04396), here of the inputs alone. Trellis-coded quantization is
//! Marcellin and Fischer's (1990), the search Viterbi's (1967). The code is linear in the bits of a window but for the shape of its
//! values, after the linear congruential codes of Eriksson, Novak and Anderson (2012): with the right multiplier, the values that can
//! follow one another are spread evenly over the normal distribution, and so are those that lead to the same successors. A hash of the
//! window does neither, and needs several times the states to lose as little.
//!
//! At 2 bits a weight a scalar quantizer loses 12 % of the variance of Gaussian weights, the best that there can be loses 6.25 %, and
//! this code 7 %.
//!
//! # Layout
//!
//! `R` is the parameter `bits`, `L` the parameter `state_bits`. Rows have a multiple of 32 weights.
//!
//! | part | head | a row |
//! |---|---|---|
//! | `codes` | the seed of the signs, 8 bytes, little-endian | `cols * R / 8` bytes |
//! | `scale` | | the scale `s` |
//!
//! Bit `b` of a row's codes is bit `b % 8` of byte `b / 8`. The window of weight `t` is the `L` bits from bit `floor(t * R)` on, the
//! first one its lowest; behind the last bit of the row comes the first. So windows overlap, and each brings `R` new bits (at half
//! steps, one fewer and one more in turn).
//!
//! The value of a window comes by arithmetic on signed numbers of 16 bits that wrap around, where `x * y` is the product over 2^15,
//! rounded to nearest, ties upwards: `t` is the window times `M * 2^(16 - L)`, mod 2^16; `t2 = t * t`, `t4 = t2 * t2` and so on to
//! `t32`; `v = t * (F0 + F1 * t4 + F2 * t32)`. The constants `M` (of `R` and `L`) and `F0` to `F2` (of `R`) are `MULTIPLIERS` and `FACTORS`
//! in `code.rs`. The weight of the rotated row is `s * v / 8192`.
//!
//! The rotation: with `n` the largest power of two up to `cols`, the signs of the first `n` columns are changed and the
//! Walsh-Hadamard transform over `sqrt(n)` is applied to them; where `n < cols`, the same happens to the last `n` columns with signs of
//! their own. Signs are the bits of `SplitMix64` from the seed on, lowest first, 1 for minus: `n` for the first transform, then, from
//! the next number on, `n` for the second. Decoding undoes it. The seed is the job's, so that matrices have signs of their own.
//!
//! # Encoding
//!
//! A row is rotated, divided by its root mean square, and coded by the best closed path, which is found from a state at the end of
//! the row that a search around the end has chosen first. The scale is then the one with the least squared error for that path. All
//! this is plain arithmetic in a fixed order. Nothing in the layout says how the path is found: with second moments of the inputs, the
//! errors of some weights are fed back into the next ones (module `feedback`), and the scale is the one whose errors cost the least on
//! those inputs.
//!
//! # Products
//!
//! Of f32 activations, which are rotated instead of the weights: a rotation for each activation in the place of one for each row. So a
//! product is that of the decoded weights, up to rounding, in kbit's default arithmetic. Values have 16 bits, which 8-bit products
//! could not hold.

mod arch;
mod code;
mod feedback;
mod rotation;
mod search;

use crate::arch::Kernels;
use crate::code::{Code, DENOMINATOR, LONGEST, SHORTEST, UNIT};
use crate::rotation::{Rotation, split_mix};
use crate::search::{Search, Trellis};
use kbit_plugin::abi::AUX_HESSIAN;
use kbit_plugin::{
    Activation, Activations, Aux, DefaultValue, Error, Host, Param, ParamKind, Params, Part, PartType, Plan,
    Runtime, RuntimeInfo, Scheme, SchemeInfo, Shape, Slab, SlabMut, export_plugin,
};
use kbit_scheme_kit::{DAMPING_PARAM, Factor, SCALE_PARAM, ScaleType, largest_magnitude, refuse_not_finite};
use std::ops::Range;

/// Bytes of the seed in the head.
const SEED_BYTES: usize = 8;
/// Rows that are decoded before they are multiplied with several activations.
const ROWS: usize = 4;

/// The scheme, opened.
struct Trellised {
    code: Code,
    scale: ScaleType,
    /// Damping of the second moments, where errors are to be fed back.
    feedback: Option<f64>,
    kernels: Kernels,
    host: Host<'static>,
}

/// A matrix being encoded.
struct Job {
    tensor: String,
    seed: u64,
    rotation: Rotation,
    trellis: Trellis,
    factor: Option<Factor>,
}

const PARAMS: &[Param] = &[
    Param {
        key: "bits",
        doc: "Bits of a weight: 2, 2.5, 3, 3.5 or 4.",
        unit: "bits",
        kind: ParamKind::Float { min: 2.0, max: 4.0 },
        default: DefaultValue::Float(3.0),
    },
    Param {
        key: "state_bits",
        doc: "Bits of the trellis' state: each more loses a little less and takes twice the time to encode. It changes neither the size of a \
              file nor the time to read it.",
        unit: "bits",
        kind: ParamKind::Int { min: SHORTEST as i64, max: LONGEST as i64 },
        default: DefaultValue::Int(12),
    },
    Param {
        key: "feedback",
        doc: "Let later weights make good the errors of earlier ones, where there are second moments of the inputs (kbit calibrate \
              --second-moments). Takes some times as long to encode.",
        unit: "",
        kind: ParamKind::Bool,
        default: DefaultValue::Bool(true),
    },
    DAMPING_PARAM,
    SCALE_PARAM,
];

/// Columns of a matrix that the scheme takes.
fn columns(shape: &Shape<'_>) -> Result<usize, Error> {
    let refused = |reason: &str| {
        Err(Error::unsupported(format!(
            "tensor {}: rows of {} weights {reason}; choose another scheme for it, such as int",
            shape.tensor, shape.cols
        )))
    };
    if !shape.cols.is_multiple_of(UNIT as u64) {
        return refused("are no multiple of 32, as the rotation needs");
    }
    match usize::try_from(shape.cols) {
        Ok(cols) if cols < 1 << 31 => Ok(cols),
        _ => refused("are longer than 2^31"),
    }
}

fn row(row: u64) -> Result<usize, Error> {
    usize::try_from(row).map_err(|_| Error::internal(format!("row {row} is above the address space")))
}

impl Trellised {
    /// The codes of `count` rows from row `first` on.
    fn codes<'a>(&self, parts: &[&'a [u8]], cols: usize, first: usize, count: usize) -> &'a [u8] {
        let bytes = self.code.row_bytes(cols);
        &parts[0][first * bytes..(first + count) * bytes]
    }

    /// What a value of 1 in a row is as a weight.
    fn unit(&self, parts: &[&[u8]], row: usize) -> f32 {
        self.scale.read(parts[1], row) / DENOMINATOR
    }
}

/// 2^`exponent`, for normal numbers.
const fn power_of_two(exponent: i32) -> f32 {
    f32::from_bits(((exponent + 127) as u32) << 23)
}

/// Memory for encoding rows.
struct Space<'a> {
    search: Search<'a>,
    /// `[rows][cols]`, rotated and of unit variance.
    rotated: Vec<f32>,
    windows: Vec<u32>,
    fed_back: feedback::Rows,
}

impl Trellised {
    /// Appends a row of finite values to `rotated`, turned and of unit variance; returns what a number of 1 there is as a weight, in double
    /// precision. Nothing but zeros has no variance: `None`, and nothing is appended.
    fn rotate(&self, job: &Job, values: &[f32], rotated: &mut Vec<f32>) -> Option<f64> {
        let (largest, _) = largest_magnitude(values);
        if largest == 0.0 {
            return None;
        }
        // Exact, and no sum of the rotation can overflow or lose bits at the lower end.
        let exponent = ((largest.to_bits() >> 23) as i32 - 127).clamp(-126, 126);
        let start = rotated.len();
        rotated.extend(values.iter().map(|value| value * power_of_two(-exponent)));
        let row = &mut rotated[start..];
        job.rotation.apply(self.kernels, row);
        let square = |x: f32| f64::from(x) * f64::from(x);
        let deviation = (row.iter().map(|x| square(*x)).sum::<f64>() / row.len() as f64).sqrt();
        if deviation == 0.0 {
            rotated.truncate(start);
            return None;
        }
        let inverse = (1.0 / deviation) as f32;
        row.iter_mut().for_each(|x| *x *= inverse);
        Some(f64::from(power_of_two(exponent)) / f64::from(inverse))
    }

    /// Finds windows for the rows of `space.rotated`. Returns for each row the factor of its values with the least error.
    fn find(&self, job: &Job, cols: usize, space: &mut Space<'_>) -> Vec<f64> {
        let Space { search, rotated, windows, fed_back } = space;
        windows.resize(rotated.len(), 0);
        if let Some(factor) = &job.factor {
            return fed_back.search(factor, self.code, search, rotated, cols, windows);
        }
        let rows = rotated.chunks_exact(cols).zip(windows.chunks_exact_mut(cols));
        rows.map(|(row, windows)| {
            search.closed(row, windows);
            let (mut with, mut without) = (0.0, 0.0);
            for (x, window) in row.iter().zip(&*windows) {
                let value = f64::from(self.code.value(*window as u16)) / f64::from(DENOMINATOR);
                with += f64::from(*x) * value;
                without += value * value;
            }
            if without > 0.0 { with / without } else { 0.0 }
        })
        .collect()
    }
}

impl Scheme for Trellised {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.kbit.trellis/1",
        title: "Trellis-coded",
        doc: "Rows are rotated by random Hadamard transforms and coded by the best path through a bitshift trellis with a computed Gaussian \
              code, closed in itself; one scale a row. Rows must be a multiple of 32 weights. Uses second moments where there are some.",
        citation: "Tseng, Sun, Hou and De Sa 2024, QTIP: Quantization with Trellises and Incoherence Processing, arXiv 2406.11235",
        ggml_type: -1,
        params: PARAMS,
    };
    type Job = Job;
    type Tensor = Rotation;

    fn open(host: &Host<'_>, params: &Params) -> Result<Self, Error> {
        let window =
            u32::try_from(params.int("state_bits")?).map_err(|_| Error::param("state_bits: 8 to 16"))?;
        Ok(Self {
            code: Code::new(params.float("bits")?, window)?,
            scale: ScaleType::parse(params.str("scale")?)?,
            feedback: params.bool("feedback")?.then_some(params.float("damping")?),
            kernels: Kernels::up_to(host.isa_limit()),
            host: host.to_static(),
        })
    }

    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
        let codes = self.code.row_bytes(columns(shape)?) as u64;
        let moments = if self.feedback.is_some() { AUX_HESSIAN } else { 0 };
        Ok(Plan {
            parts: vec![
                Part {
                    name: "codes",
                    dtype: PartType::U8,
                    head_bytes: SEED_BYTES as u64,
                    group_bytes: codes,
                },
                Part::new("scale", self.scale.part_type(), self.scale.bytes() as u64),
            ],
            aux_used: moments,
            job_bytes_hint: Trellis::bytes(self.code) + Search::bytes(self.code),
            ..Plan::default()
        })
    }

    fn begin(&self, shape: &Shape<'_>, _: Option<Slab<'_>>, aux: &Aux<'_>) -> Result<Job, Error> {
        let (cols, tensor) = (columns(shape)?, shape.tensor);
        let rotation = Rotation::new(cols, aux.seed);
        let factor = match (self.feedback, aux.hessian) {
            (Some(damping), Some((moments, stride))) => {
                let stride = usize::try_from(stride)
                    .map_err(|_| Error::internal("a stride above the address space"))?;
                let moments = (moments, stride);
                Some(feedback::factor(&self.host, &rotation, self.kernels, moments, cols, damping, tensor)?)
            }
            _ => None,
        };
        let trellis = Trellis::new(self.code);
        Ok(Job { tensor: tensor.to_owned(), seed: aux.seed, rotation, trellis, factor })
    }

    fn prepare(&self, job: &mut Job, _: &[u8], heads: &mut [&mut [u8]]) -> Result<(), Error> {
        match heads {
            [head, ..] if head.len() == SEED_BYTES => head.copy_from_slice(&job.seed.to_le_bytes()),
            _ => return Err(Error::internal("the codes have a head of 8 bytes")),
        }
        Ok(())
    }

    fn encode(
        &self,
        job: &Job,
        rows: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        _: &mut [u8],
    ) -> Result<(), Error> {
        let [codes, scales] = parts else { return Err(Error::internal("two parts")) };
        let cols = slab.cols();
        let mut space = Space {
            search: Search::new(&job.trellis, self.kernels),
            rotated: Vec::new(),
            windows: Vec::new(),
            fed_back: feedback::Rows::default(),
        };
        let row_bytes = self.code.row_bytes(cols);
        for first in (0..slab.len()).step_by(feedback::ROWS) {
            if self.host.cancelled() {
                let row = rows.start + first as u64;
                return Err(Error::cancelled(format!("tensor {}: stopped before row {row}", job.tensor)));
            }
            let some = first..(first + feedback::ROWS).min(slab.len());
            space.rotated.clear();
            let mut units = Vec::with_capacity(some.len());
            for index in some.clone() {
                refuse_not_finite(slab.row(index), &job.tensor, rows.start + index as u64)?;
                units.push(self.rotate(job, slab.row(index), &mut space.rotated));
            }
            let factors = self.find(job, cols, &mut space);
            let mut found = space.windows.chunks_exact(cols).zip(factors);
            for (index, unit) in some.zip(units) {
                let codes = &mut codes[index * row_bytes..(index + 1) * row_bytes];
                codes.fill(0);
                let mut scale = 0.0;
                if let Some(unit) = unit
                    && let Some((windows, factor)) = found.next()
                {
                    self.code.pack(windows, codes);
                    scale = factor * unit;
                }
                let stored = self.scale.round(scale as f32).ok_or_else(|| {
                    Error::numeric(format!(
                        "tensor {}: the scale {scale:e} of row {} does not fit its type; choose scale=bf16 or scale=f32",
                        job.tensor,
                        rows.start + index as u64
                    ))
                })?;
                self.scale.write(scales, index, stored);
            }
        }
        Ok(())
    }

    fn open_tensor(&self, shape: &Shape<'_>, heads: &[&[u8]]) -> Result<Rotation, Error> {
        let seed = heads.first().and_then(|head| head.first_chunk().filter(|_| head.len() == SEED_BYTES));
        let seed = seed.ok_or_else(|| {
            Error::internal(format!(
                "tensor {}: the head of its codes is not 8 bytes long; the file is damaged: convert again",
                shape.tensor
            ))
        })?;
        Ok(Rotation::new(columns(shape)?, u64::from_le_bytes(*seed)))
    }

    fn decode(
        &self,
        rotation: &Rotation,
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        out: &mut SlabMut<'_>,
        _: &mut [u8],
    ) -> Result<(), Error> {
        let (cols, first) = (columns(shape)?, row(rows.start)?);
        for index in 0..out.len() {
            let (values, unit) = (out.row_mut(index), self.unit(parts, first + index));
            self.kernels.values(self.code, self.codes(parts, cols, first + index, 1), cols, values);
            values.iter_mut().for_each(|value| *value *= unit);
            rotation.undo(self.kernels, values);
        }
        Ok(())
    }
}

impl Runtime for Trellised {
    const ACTIVATION: Activation = Activation::F32;

    fn kernel(&self) -> &'static str {
        self.kernels.name()
    }

    fn runtime(&self, rotation: &Rotation, shape: &Shape<'_>) -> RuntimeInfo {
        let mut key = rotation.seed() ^ shape.cols.rotate_left(32);
        RuntimeInfo { activation_bytes: shape.cols * 4, activation_key: split_mix(&mut key) }
    }

    fn pack(
        &self,
        rotation: &Rotation,
        _: &Shape<'_>,
        x: &[f32],
        packed: &mut [u8],
        _: &mut [u8],
    ) -> Result<(), Error> {
        let mut x = x.to_vec();
        rotation.apply(self.kernels, &mut x);
        for (x, packed) in x.iter().zip(packed.as_chunks_mut().0) {
            *packed = x.to_le_bytes();
        }
        Ok(())
    }

    fn dot(
        &self,
        _: &Rotation,
        shape: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        activations: &Activations<'_>,
        y: &mut SlabMut<'_>,
        _: &mut [u8],
    ) -> Result<(), Error> {
        let (cols, first) = (columns(shape)?, row(rows.start)?);
        let count = row(rows.end)? - first;
        if activations.len() == 1 {
            let y = &mut y.row_mut(0)[..count];
            let codes = self.codes(parts, cols, first, count);
            self.kernels.dot(self.code, codes, activations.get(0), y);
            for (index, y) in y.iter_mut().enumerate() {
                *y *= self.unit(parts, first + index);
            }
            return Ok(());
        }
        let mut values = vec![0.0; ROWS * cols];
        for start in (0..count).step_by(ROWS) {
            let some = ROWS.min(count - start);
            let values = &mut values[..some * cols];
            self.kernels.values(self.code, self.codes(parts, cols, first + start, some), cols, values);
            let units: [f32; ROWS] =
                std::array::from_fn(
                    |index| if index < some { self.unit(parts, first + start + index) } else { 0.0 },
                );
            for first in (0..activations.len()).step_by(2) {
                let both =
                    [first, (first + 1).min(activations.len() - 1)].map(|index| activations.get(index));
                let both = &both[..2.min(activations.len() - first)];
                let mut sums = [0.0; 2 * ROWS];
                let sums = &mut sums[..both.len() * some];
                self.kernels.products(values, both, sums);
                for (index, sums) in sums.chunks_exact(some).enumerate() {
                    let y = &mut y.row_mut(first + index)[start..start + some];
                    for ((y, sum), unit) in y.iter_mut().zip(sums).zip(units) {
                        *y = sum * unit;
                    }
                }
            }
        }
        Ok(())
    }
}

export_plugin! {
    id: "org.kbit.trellis",
    vendor: "kbit",
    url: "https://github.com/kbit-dev/kbit",
    license: "MIT OR Apache-2.0",
    schemes: [Trellised: Runtime],
}

#[cfg(test)]
mod tests;
