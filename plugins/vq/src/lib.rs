//! Vector quantization: vectors of 2, 4 or 8 weights become entries of codebooks that are trained on the matrix itself.
//!
//! `dim` consecutive weights of a row, divided by the scale of their block, are a vector; its code is the number of the nearest entry
//! in a codebook of 2^bits entries. With more `stages` than one, each further codebook takes up what those before it leave (residual
//! codebooks: Juang and Gray 1982), and the vector is the sum of their entries. So `stages * bits / dim` bits a weight are codes. Codebooks
//! are trained by k-means (Lloyd 1982; Linde, Buzo and Gray 1980) on a sample of the vectors, seeded as k-means++ is; see `train.rs`. Of
//! large language models, GPTVQ (van Baalen et al. 2024, arXiv 2402.15319) and AQLM (Egiazarian et al. 2024, arXiv 2401.06118) quantize
//! vectors so.
//!
//! With importance of the columns, distances, means and root mean squares are weighted by it, so that what is small is the error of the
//! matrix's outputs. After a block has its codes, its scale is fitted to them by least squares, and the codes to the scale (`refits` times,
//! as long as that helps).
//!
//! # Stored bytes
//!
//! | part | head | each row |
//! |---|---|---|
//! | `codes`, bytes | the codebooks: half-precision values, dimension by dimension, entry by entry, stage by stage | codes of `bits` bits, the least significant bit first: all stages of the first vector, then of the next; zeros to a whole byte |
//! | `scales`, in the type `scale` | | one for each `block` columns, of which the last may be fewer |
//!
//! A weight is its block's scale times the sum of its vector's entries, added in the order of the stages in single precision. The last
//! vector of a row reaches past the columns where `dim` does not divide them. A block whose scale is 0 is zeros.
//!
//! The sample has about 64 vectors for each entry, 2^16 at least and 2^18 at most, rounded up to the same number in each row; so what is
//! in memory is that, or one vector a row, and not the matrix. Which ones, and the seeds of the codebooks, follow from the seed that the
//! host gives.

mod book;
mod train;

use book::Book;
use kbit_plugin::convert::{f16_to_f32, f32_to_f16};
use kbit_plugin::{
    Aux, DefaultValue, Error, Host, Isa, Param, ParamKind, Params, Part, PartType, Plan, Scheme, SchemeInfo,
    Shape, Slab, SlabMut, abi, export_plugin, pack,
};
use kbit_scheme_kit::{
    SCALE_PARAM, ScaleType, block_param, columns_of, largest_magnitude, refuse_not_finite,
    relative_importance,
};
use std::ops::Range;
use train::{Random, Sample, Training, add, subtract};

/// Vectors of the sample for each entry of a codebook, and how many they are at least and at most, before rounding up.
const SAMPLE_SHARE: usize = 64;
const SAMPLE_LEAST: usize = 1 << 16;
const SAMPLE_MOST: usize = 1 << 18;
/// Rounds in which each stage's code is chosen anew for what the others leave, at most.
const ROUNDS: usize = 3;
/// The vector number of a record from a block of zeros.
const NO_VECTOR: u32 = u32::MAX;

const PARAMS: &[Param] = &[
    Param {
        key: "dim",
        doc: "Weights of a vector: 2, 4 or 8.",
        unit: "weights",
        kind: ParamKind::Int { min: 2, max: 8 },
        default: DefaultValue::Int(4),
    },
    Param {
        key: "bits",
        doc: "Bits of a code, for each stage of a vector: 2^bits entries of a codebook.",
        unit: "bits",
        kind: ParamKind::Int { min: 4, max: 12 },
        default: DefaultValue::Int(8),
    },
    Param {
        key: "stages",
        doc: "Codebooks whose entries are added, so that a weight has stages * bits / dim bits of codes. At equal bits one larger codebook \
              loses less, and takes more memory.",
        unit: "",
        kind: ParamKind::Int { min: 1, max: 4 },
        default: DefaultValue::Int(1),
    },
    block_param(16),
    Param {
        key: "norm",
        doc: "What the weights of a block are divided by: their largest magnitude, or the root of their mean square (weighted, \
              with importance).",
        unit: "",
        kind: ParamKind::Choice(&["absmax", "rms"]),
        default: DefaultValue::Str("rms"),
    },
    Param {
        key: "iterations",
        doc: "Iterations of k-means for each codebook, at most; they end where an iteration hardly helps. 0 takes vectors of the matrix.",
        unit: "",
        kind: ParamKind::Int { min: 0, max: 50 },
        default: DefaultValue::Int(20),
    },
    Param {
        key: "refits",
        doc: "Times that a block's scale is fitted to its codes and the codes to the scale, at most.",
        unit: "",
        kind: ParamKind::Int { min: 0, max: 4 },
        default: DefaultValue::Int(1),
    },
    SCALE_PARAM,
];

/// What the weights of a block are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Norm {
    Absmax,
    Rms,
}

struct Vq {
    host: Host<'static>,
    isa: Isa,
    dim: usize,
    bits: u32,
    stages: usize,
    block: usize,
    norm: Norm,
    scale: ScaleType,
    iterations: u32,
    refits: u32,
}

/// How the rows of a matrix are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    cols: usize,
    vectors: usize,
    blocks: usize,
}

/// The codebooks of the stages.
enum Books {
    Two(Vec<Book<2>>),
    Four(Vec<Book<4>>),
    Eight(Vec<Book<8>>),
}

struct VqJob {
    tensor: String,
    cut: Cut,
    /// What errors of each column count; 0 for the padding of the last vector.
    weights: Vec<f32>,
    /// True where the weights are importance.
    weighed: bool,
    seed: u64,
    /// Of the sample in each row.
    row_sample: usize,
    books: Option<Books>,
}

struct VqTensor {
    cut: Cut,
    /// Stage by stage, entry by entry.
    values: Vec<f32>,
}

/// Bytes of a vector of the sample: its values, the scale of its block, its number in the row.
const fn record_bytes(dim: usize) -> usize {
    (dim + 2) * 4
}

/// A sum of squares, and what a scale is fitted from.
#[derive(Clone, Copy, Default)]
struct Sums {
    error: f64,
    /// Of weights and the entries that stand for them.
    product: f64,
    /// Of the entries.
    square: f64,
}

/// Chooses the codes of one block after the other.
struct Coder<'a, const D: usize> {
    books: &'a [Book<D>],
    isa: Isa,
    rest: Vec<[f32; D]>,
    targets: Vec<[f32; D]>,
    /// Of the stages.
    codes: Vec<Vec<u16>>,
    chosen: Vec<u16>,
    squares: Vec<f32>,
}

impl<'a, const D: usize> Coder<'a, D> {
    fn new(books: &'a [Book<D>], isa: Isa, vectors: usize) -> Self {
        Self {
            books,
            isa,
            rest: Vec::with_capacity(vectors),
            targets: vec![[0.0; D]; vectors],
            codes: vec![vec![0; vectors]; books.len()],
            chosen: vec![0; vectors],
            squares: vec![0.0; vectors],
        }
    }

    /// Chooses codes for `values` over `scale`, and measures them. `weights`: of the values, padded to whole vectors; `weighed`: they differ.
    fn choose(&mut self, values: &[f32], weights: &[[f32; D]], weighed: bool, scale: f32) -> Sums {
        let vector = |values: &[f32]| -> [f32; D] {
            std::array::from_fn(|k| values.get(k).map_or(0.0, |value| value / scale))
        };
        self.rest.clear();
        self.rest.extend(values.chunks(D).map(vector));
        let given = weighed.then_some(weights);
        let count = self.rest.len();
        let squares = &mut self.squares[..count];
        for (book, codes) in self.books.iter().zip(&mut self.codes) {
            book.nearest(self.isa, &self.rest, given, &mut codes[..count], squares);
            for (rest, code) in self.rest.iter_mut().zip(codes.iter()) {
                subtract(rest, book.vector(*code));
            }
        }
        for _ in 0..if self.books.len() > 1 { ROUNDS } else { 0 } {
            let mut changed = false;
            for (book, codes) in self.books.iter().zip(&mut self.codes) {
                let (codes, targets) = (&mut codes[..count], &mut self.targets[..count]);
                targets.copy_from_slice(&self.rest);
                for (target, code) in targets.iter_mut().zip(codes.iter()) {
                    add(target, book.vector(*code));
                }
                let chosen = &mut self.chosen[..count];
                book.nearest(self.isa, targets, given, chosen, squares);
                for ((rest, target), (code, chosen)) in
                    self.rest.iter_mut().zip(targets.iter()).zip(codes.iter_mut().zip(chosen))
                {
                    if code != chosen {
                        changed = true;
                        *code = *chosen;
                        *rest = *target;
                        subtract(rest, book.vector(*code));
                    }
                }
            }
            if !changed {
                break;
            }
        }
        self.measure(values, weights, scale)
    }

    fn measure(&self, values: &[f32], weights: &[[f32; D]], scale: f32) -> Sums {
        let mut sums = Sums::default();
        for (index, (values, weights)) in values.chunks(D).zip(weights).enumerate() {
            let mut vector = [0f32; D];
            for (book, codes) in self.books.iter().zip(&self.codes) {
                add(&mut vector, book.vector(codes[index]));
            }
            for ((value, entry), weight) in values.iter().zip(&vector).zip(weights) {
                let (value64, entry64, weight64) = (f64::from(*value), f64::from(*entry), f64::from(*weight));
                let off = value64 - f64::from(scale * entry);
                sums.error += weight64 * off * off;
                sums.product += weight64 * value64 * entry64;
                sums.square += weight64 * entry64 * entry64;
            }
        }
        sums
    }

    /// The codes of `vectors` vectors: all stages of one, then of the next.
    fn write(&self, vectors: usize, out: &mut [u16]) {
        for (index, out) in (0..vectors).zip(out.chunks_mut(self.books.len())) {
            for (out, codes) in out.iter_mut().zip(&self.codes) {
                *out = codes[index];
            }
        }
    }
}

impl Vq {
    fn cut(&self, shape: &Shape<'_>) -> Result<Cut, Error> {
        let cols = columns_of(shape)?;
        Ok(Cut { cols, vectors: cols.div_ceil(self.dim), blocks: cols.div_ceil(self.block) })
    }

    const fn entries(&self) -> usize {
        1 << self.bits
    }

    fn sample_size(&self) -> usize {
        (self.entries() * SAMPLE_SHARE).clamp(SAMPLE_LEAST, SAMPLE_MOST)
    }

    /// Vectors of the sample in each row.
    fn row_sample(&self, shape: &Shape<'_>, cut: Cut) -> usize {
        let wanted = (self.sample_size() as u64).div_ceil(shape.rows.max(1));
        usize::try_from(wanted).unwrap_or(usize::MAX).min(cut.vectors)
    }

    /// The scale of a block before its codes are known, as it will be stored. `weights`: of the values, not all 0.
    fn first_scale(&self, values: &[f32], weights: &[f32], tensor: &str, row: u64) -> Result<f32, Error> {
        let scale = match self.norm {
            Norm::Absmax => largest_magnitude(values).0,
            Norm::Rms => {
                let (mut square, mut total) = (0f64, 0f64);
                for (value, weight) in values.iter().zip(weights) {
                    square += f64::from(*weight) * f64::from(*value) * f64::from(*value);
                    total += f64::from(*weight);
                }
                #[expect(clippy::cast_possible_truncation, reason = "a magnitude among those of the values")]
                {
                    (square / total).sqrt() as f32
                }
            }
        };
        self.scale.round_in_row(scale, tensor, row)
    }

    /// Writes the records of a row: in each of as many equal stretches of the row, one vector.
    fn observe_row<const D: usize>(
        &self,
        job: &VqJob,
        number: u64,
        row: &[f32],
        records: &mut [u8],
    ) -> Result<(), Error> {
        refuse_not_finite(row, &job.tensor, number)?;
        let mut random = Random::new(job.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (mut block, mut scale) = (usize::MAX, 0.0);
        let bound = |index: usize| index * job.cut.vectors / job.row_sample;
        for (index, record) in records.chunks_mut(record_bytes(D)).enumerate() {
            let vector = bound(index) + random.below(bound(index + 1) - bound(index));
            let first = vector * D;
            if first / self.block != block {
                block = first / self.block;
                let end = ((block + 1) * self.block).min(row.len());
                let columns = block * self.block..end;
                scale =
                    self.first_scale(&row[columns.clone()], &job.weights[columns], &job.tensor, number)?;
            }
            record.fill(0);
            let (values, place) = record.split_at_mut(D * 4);
            place[..4].copy_from_slice(&scale.to_le_bytes());
            let vector = u32::try_from(vector).ok().filter(|_| scale != 0.0).unwrap_or(NO_VECTOR);
            place[4..].copy_from_slice(&vector.to_le_bytes());
            if scale != 0.0 {
                for (out, value) in values.as_chunks_mut::<4>().0.iter_mut().zip(&row[first..]) {
                    *out = (value / scale).to_le_bytes();
                }
            }
        }
        Ok(())
    }

    /// The sample that the records of all rows are. Its weights are importance times the square of the scale over the greatest.
    fn sample<const D: usize>(&self, job: &VqJob, stats: &[u8]) -> Sample<D> {
        let column_weights = job.weights.as_chunks::<D>().0;
        let step = (stats.len() / record_bytes(D) / self.sample_size()).max(1);
        let mut sample = Sample {
            vectors: Vec::new(),
            weights: Vec::new(),
            weighed: job.weighed || !job.cut.cols.is_multiple_of(D),
        };
        let mut scales = Vec::new();
        for record in stats.chunks_exact(record_bytes(D)).step_by(step) {
            let words = record.as_chunks::<4>().0;
            let Some(weights) = column_weights.get(u32::from_le_bytes(words[D + 1]) as usize) else {
                continue;
            };
            sample.vectors.push(std::array::from_fn(|k| f32::from_le_bytes(words[k])));
            sample.weights.push(*weights);
            scales.push(f32::from_le_bytes(words[D]));
        }
        let greatest = scales.iter().fold(0f32, |greatest, scale| greatest.max(*scale));
        for (weights, scale) in sample.weights.iter_mut().zip(scales) {
            let share = scale / greatest;
            weights.iter_mut().for_each(|weight| *weight *= share * share);
        }
        sample
    }

    fn train<const D: usize>(
        &self,
        job: &VqJob,
        stats: &[u8],
        head: &mut [u8],
    ) -> Result<Vec<Book<D>>, Error> {
        let training = Training {
            host: &self.host,
            isa: self.isa,
            entries: self.entries(),
            stages: self.stages,
            iterations: self.iterations,
            seed: job.seed,
        };
        let books = training.train(&self.sample::<D>(job, stats))?;
        let values = books.iter().flat_map(Book::vectors).flatten();
        for (out, value) in head.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *out = f32_to_f16(*value).to_le_bytes();
        }
        Ok(books)
    }

    fn encode_rows<const D: usize>(
        &self,
        job: &VqJob,
        books: &[Book<D>],
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
    ) -> Result<(), Error> {
        let [codes_out, scales_out] = parts else { return Err(Error::internal("two parts")) };
        let weights = job.weights.as_chunks::<D>().0;
        let mut coder = Coder::new(books, self.isa, self.block / D);
        let mut codes = vec![0; job.cut.vectors * self.stages];
        let code_bytes = pack::packed_bytes(self.bits, codes.len());
        let scale_bytes = job.cut.blocks * self.scale.bytes();
        for ((index, codes_out), scales_out) in
            (0..slab.len()).zip(codes_out.chunks_mut(code_bytes)).zip(scales_out.chunks_mut(scale_bytes))
        {
            let (row, number) = (slab.row(index), slab.first() + index as u64);
            refuse_not_finite(row, &job.tensor, number)?;
            let blocks = row
                .chunks(self.block)
                .zip(weights.chunks(self.block / D))
                .zip(codes.chunks_mut(self.block / D * self.stages));
            for (block, ((values, weights), codes)) in blocks.enumerate() {
                let first = self.first_scale(values, weights.as_flattened(), &job.tensor, number)?;
                let scale = self.encode_block(&mut coder, values, weights, job.weighed, first, codes);
                self.scale.write(scales_out, block, scale);
            }
            pack::pack_wide_codes(self.bits, &codes, codes_out);
        }
        Ok(())
    }

    /// Writes the codes of a block, and gives its scale.
    fn encode_block<const D: usize>(
        &self,
        coder: &mut Coder<'_, D>,
        values: &[f32],
        weights: &[[f32; D]],
        weighed: bool,
        first: f32,
        codes: &mut [u16],
    ) -> f32 {
        codes.fill(0);
        if first == 0.0 {
            return 0.0;
        }
        let weighed = weighed || !values.len().is_multiple_of(D);
        let mut scale = first;
        let mut sums = coder.choose(values, weights, weighed, scale);
        coder.write(weights.len(), codes);
        for _ in 0..self.refits {
            #[expect(clippy::cast_possible_truncation, reason = "a scale near the one before")]
            let fitted = (sums.product / sums.square) as f32;
            let Some(next) = self.scale.round(fitted).filter(|next| *next > 0.0 && *next != scale) else {
                break;
            };
            let found = coder.choose(values, weights, weighed, next);
            if found.error >= sums.error {
                break;
            }
            (scale, sums) = (next, found);
            coder.write(weights.len(), codes);
        }
        scale
    }

    fn decode_rows<const D: usize>(
        &self,
        tensor: &VqTensor,
        parts: &[&[u8]],
        first: usize,
        out: &mut SlabMut<'_>,
    ) {
        let entries = tensor.values.as_chunks::<D>().0;
        let mut codes = vec![0; tensor.cut.vectors * self.stages];
        let code_bytes = pack::packed_bytes(self.bits, codes.len());
        let scale_bytes = tensor.cut.blocks * self.scale.bytes();
        for index in 0..out.len() {
            let row = first + index;
            pack::unpack_wide_codes(self.bits, &parts[0][row * code_bytes..][..code_bytes], &mut codes);
            let scales = &parts[1][row * scale_bytes..][..scale_bytes];
            let blocks =
                out.row_mut(index).chunks_mut(self.block).zip(codes.chunks(self.block / D * self.stages));
            for (block, (out, codes)) in blocks.enumerate() {
                let scale = self.scale.read(scales, block);
                if scale == 0.0 {
                    out.fill(0.0);
                    continue;
                }
                for (out, codes) in out.chunks_mut(D).zip(codes.chunks(self.stages)) {
                    let mut vector = [0f32; D];
                    for (stage, code) in codes.iter().enumerate() {
                        add(&mut vector, &entries[stage * self.entries() + usize::from(*code)]);
                    }
                    for (out, value) in out.iter_mut().zip(&vector) {
                        *out = scale * value;
                    }
                }
            }
        }
    }
}

impl Scheme for Vq {
    const INFO: SchemeInfo = SchemeInfo {
        id: "org.kbit.vq/1",
        title: "Vector quantization",
        doc: "Vectors of 2, 4 or 8 weights, over the scale of their block, as sums of entries of codebooks that k-means makes for the matrix \
              itself; weighted by importance where there is some.",
        citation: "Juang and Gray 1982 (residual codebooks); Linde, Buzo and Gray 1980 (k-means for vectors); van Baalen et al. 2024, \
                   arXiv 2402.15319 (GPTVQ); Egiazarian et al. 2024, arXiv 2401.06118 (AQLM)",
        ggml_type: -1,
        params: PARAMS,
    };
    type Job = VqJob;
    type Tensor = VqTensor;

    fn open(host: &Host<'_>, params: &Params) -> Result<Self, Error> {
        let number = |key: &str| -> Result<u32, Error> {
            u32::try_from(params.int(key)?)
                .map_err(|_| Error::param(format!("{key}: a number that is not negative")))
        };
        let (dim, block) = (number("dim")? as usize, number("block")? as usize);
        if ![2, 4, 8].contains(&dim) {
            return Err(Error::param(format!("dim={dim}: choose 2, 4 or 8")));
        }
        if !block.is_multiple_of(dim) {
            return Err(Error::param(format!(
                "block={block} with dim={dim}: a block must be whole vectors; choose a multiple of {dim}"
            )));
        }
        Ok(Self {
            host: host.to_static(),
            isa: host.isa_limit(),
            dim,
            bits: number("bits")?,
            stages: number("stages")? as usize,
            block,
            norm: if params.str("norm")? == "absmax" { Norm::Absmax } else { Norm::Rms },
            scale: ScaleType::parse(params.str("scale")?)?,
            iterations: number("iterations")?,
            refits: number("refits")?,
        })
    }

    fn plan(&self, shape: &Shape<'_>) -> Result<Plan, Error> {
        let cut = self.cut(shape)?;
        let codes = Part {
            name: "codes",
            dtype: PartType::U8,
            head_bytes: (self.stages * self.entries() * self.dim * 2) as u64,
            group_bytes: pack::packed_bytes(self.bits, cut.vectors * self.stages) as u64,
        };
        let scales = Part::new("scales", self.scale.part_type(), (cut.blocks * self.scale.bytes()) as u64);
        let record = record_bytes(self.dim) as u64;
        Ok(Plan {
            parts: vec![codes, scales],
            stat_bytes: self.row_sample(shape, cut) as u64 * record,
            aux_used: abi::AUX_DIAG,
            // Sample, weights, rest and records, and codes of the stages.
            job_bytes_hint: self.sample_size() as u64 * (4 * record + 16),
            ..Plan::default()
        })
    }

    fn begin(&self, shape: &Shape<'_>, _: Option<Slab<'_>>, aux: &Aux<'_>) -> Result<VqJob, Error> {
        let cut = self.cut(shape)?;
        let mut weights = match aux.diag {
            Some(diag) => relative_importance(shape, diag)?,
            None => vec![1.0; cut.cols],
        };
        weights.resize(cut.vectors * self.dim, 0.0);
        Ok(VqJob {
            tensor: shape.tensor.to_owned(),
            cut,
            weights,
            weighed: aux.diag.is_some(),
            seed: aux.seed,
            row_sample: self.row_sample(shape, cut),
            books: None,
        })
    }

    fn observe(
        &self,
        job: &VqJob,
        _: Range<u64>,
        slab: &Slab<'_>,
        stats: &mut [u8],
        _: &mut [u8],
    ) -> Result<(), Error> {
        let row_bytes = job.row_sample * record_bytes(self.dim);
        for (index, records) in (0..slab.len()).zip(stats.chunks_mut(row_bytes)) {
            let (number, row) = (slab.first() + index as u64, slab.row(index));
            match self.dim {
                2 => self.observe_row::<2>(job, number, row, records)?,
                4 => self.observe_row::<4>(job, number, row, records)?,
                _ => self.observe_row::<8>(job, number, row, records)?,
            }
        }
        Ok(())
    }

    fn prepare(&self, job: &mut VqJob, stats: &[u8], heads: &mut [&mut [u8]]) -> Result<(), Error> {
        let Some(head) = heads.first_mut() else { return Err(Error::internal("no part has a head")) };
        job.books = Some(match self.dim {
            2 => Books::Two(self.train(job, stats, head)?),
            4 => Books::Four(self.train(job, stats, head)?),
            _ => Books::Eight(self.train(job, stats, head)?),
        });
        Ok(())
    }

    fn encode(
        &self,
        job: &VqJob,
        _: Range<u64>,
        slab: &Slab<'_>,
        parts: &mut [&mut [u8]],
        _: &mut [u8],
    ) -> Result<(), Error> {
        match &job.books {
            Some(Books::Two(books)) => self.encode_rows(job, books, slab, parts),
            Some(Books::Four(books)) => self.encode_rows(job, books, slab, parts),
            Some(Books::Eight(books)) => self.encode_rows(job, books, slab, parts),
            None => Err(Error::internal(format!(
                "tensor {}: rows are encoded before the codebooks are made; update kbit",
                job.tensor
            ))),
        }
    }

    fn open_tensor(&self, shape: &Shape<'_>, heads: &[&[u8]]) -> Result<VqTensor, Error> {
        let bytes = heads.first().map_or(&[][..], |head| head.as_chunks::<2>().0);
        let values: Vec<f32> = bytes.iter().map(|bytes| f16_to_f32(u16::from_le_bytes(*bytes))).collect();
        let damaged = |what: String| {
            Err(Error::internal(format!(
                "tensor {}: {what}; the file is damaged: convert it anew",
                shape.tensor
            )))
        };
        let expected = self.stages * self.entries() * self.dim;
        if values.len() != expected {
            return damaged(format!("the codebooks have {} values for {expected}", values.len()));
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return damaged(format!(
                "entry {} of codebook {} has the value {}",
                index / self.dim % self.entries(),
                index / self.dim / self.entries(),
                values[index]
            ));
        }
        Ok(VqTensor { cut: self.cut(shape)?, values })
    }

    fn decode(
        &self,
        tensor: &VqTensor,
        _: &Shape<'_>,
        parts: &[&[u8]],
        rows: Range<u64>,
        out: &mut SlabMut<'_>,
        _: &mut [u8],
    ) -> Result<(), Error> {
        let first =
            usize::try_from(rows.start).map_err(|_| Error::internal("a row above the address space"))?;
        match self.dim {
            2 => self.decode_rows::<2>(tensor, parts, first, out),
            4 => self.decode_rows::<4>(tensor, parts, first, out),
            _ => self.decode_rows::<8>(tensor, parts, first, out),
        }
        Ok(())
    }
}

export_plugin! {
    id: "org.kbit.vq",
    vendor: "kbit",
    url: "https://github.com/kbit-dev/kbit",
    license: "MIT OR Apache-2.0",
    schemes: [Vq],
}

#[cfg(test)]
mod tests;
