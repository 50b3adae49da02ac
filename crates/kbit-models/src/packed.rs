//! Weights that are stored as packed codes with scales and zero points for groups of columns.
//!
//! GPTQ (Frantar et al. 2023), AWQ (Lin et al. 2024) and compressed-tensors store the same thing, `scale * (code - zero)`,
//! in different places. Values equal those of llama.cpp's converter, whose dequantization multiplies once in f32.

use crate::ModelError;
use crate::expr::{find, index, read_bytes, read_values, unreadable};
use kbit_formats::{Checkpoint, Element};
use kbit_types::{Dtype, MatrixShape};
use std::ops::Range;

/// Where the codes, scales and zero points of a matrix `[rows, cols]` lie. Words are I32 of 32 bits, codes from the
/// lowest bit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Codes `[cols bits / 32, rows]` packed along the columns, zero points `[groups, rows bits / 32]`, scales
    /// `[groups, rows]`. Codes of 3 bits run over the ends of words.
    Gptq,
    /// Codes `[cols, rows / 8]` and zero points `[groups, rows / 8]`, of 4 bits in the order 0 2 4 6 1 3 5 7; scales
    /// `[groups, rows]`.
    Awq,
    /// Codes `[rows, words]` packed along the columns, zero points `[words, groups]` packed along the rows, scales
    /// `[rows, groups]`.
    CompressedTensors {
        /// Codes run over the ends of words, as releases from 2026 on pack them; before, a word held whole codes.
        across: bool,
    },
}

/// What is taken from codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Zero {
    /// The same from all.
    Constant(i32),
    /// Packed codes of a tensor, plus this.
    Packed {
        /// Name of the tensor.
        name: String,
        /// What is added to each.
        plus: i32,
    },
}

/// Which columns share a scale and a zero point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Groups {
    /// So many that lie together.
    Of(u64),
    /// Those with the same number in a tensor `[cols]` of I32.
    Named(String),
}

/// A matrix of packed codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packed {
    /// Shape of the matrix; one slice.
    pub shape: MatrixShape,
    /// Where everything lies.
    pub layout: Layout,
    /// Bits of a code: 2, 3, 4 or 8.
    pub bits: u32,
    /// Name of the tensor of codes.
    pub codes: String,
    /// Name of the tensor of scales.
    pub scales: String,
    /// Zero points.
    pub zero: Zero,
    /// Groups of columns.
    pub groups: Groups,
    /// How many groups there are.
    pub group_count: u64,
}

/// The nibble of a word in which AWQ keeps each of its 8 rows.
const AWQ_PLACE: [u32; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

impl Packed {
    /// Names of the tensors that it reads.
    pub(crate) fn sources(&self) -> Vec<&str> {
        let mut names = vec![self.codes.as_str(), self.scales.as_str()];
        if let Zero::Packed { name, .. } = &self.zero {
            names.push(name);
        }
        if let Groups::Named(name) = &self.groups {
            names.push(name);
        }
        names
    }

    /// Words that hold `count` codes.
    fn words(&self, count: u64) -> Option<u64> {
        let bits = u64::from(self.bits);
        Some(match self.layout {
            Layout::CompressedTensors { across: false } => count.div_ceil(32 / bits),
            _ => count.checked_mul(bits)?.div_ceil(32),
        })
    }

    /// The word and the bit where code `at` of a stream of codes begins.
    fn place(&self, at: u64) -> (u64, u32) {
        let bits = u64::from(self.bits);
        let bit = match self.layout {
            Layout::CompressedTensors { across: false } => at / (32 / bits) * 32 + at % (32 / bits) * bits,
            Layout::Awq => at / 8 * 32 + u64::from(4 * AWQ_PLACE[index(at % 8)]),
            _ => at * bits,
        };
        (bit / 32, (bit % 32) as u32)
    }

    /// The code that begins at bit `bit` of `low` and maybe goes on in the next word.
    const fn code(&self, low: u32, high: u32, bit: u32) -> u32 {
        let both = (high as u64) << 32 | low as u64;
        (both >> bit) as u32 & ((1 << self.bits) - 1)
    }

    /// Checks that all parts are there with their sizes and types.
    pub(crate) fn check(&self, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        let MatrixShape { rows, cols, slices } = self.shape;
        let fits = |name: &str, wanted: Option<[u64; 2]>, words: bool| -> Result<(), ModelError> {
            let tensor = find(checkpoint, name)?;
            let wanted =
                wanted.ok_or_else(|| unreadable(name, "its size is too large; get the checkpoint anew"))?;
            if tensor.shape != wanted {
                return Err(ModelError::Shape {
                    tensor: name.to_owned(),
                    found: tensor.shape.clone(),
                    wanted: wanted.to_vec(),
                });
            }
            match tensor.element {
                Element::Plain(Dtype::I32) if words => Ok(()),
                Element::Plain(dtype) if !words && dtype.is_float() => Ok(()),
                _ => Err(unreadable(
                    name,
                    format!(
                        "its values are not {}; get the checkpoint anew",
                        if words { "32-bit words" } else { "floating-point numbers" }
                    ),
                )),
            }
        };
        let known = match self.layout {
            Layout::Gptq => matches!(self.bits, 2 | 3 | 4 | 8),
            Layout::Awq => self.bits == 4,
            Layout::CompressedTensors { .. } => (1..=8).contains(&self.bits),
        };
        let size = match self.groups {
            Groups::Of(size) => size > 0 && cols.div_ceil(size) == self.group_count,
            Groups::Named(_) => self.group_count > 0,
        };
        if slices != 1 || !known || !size {
            return Err(unreadable(
                &self.codes,
                format!(
                    "{} bits in {} groups for {cols} columns are not known; get the unquantized checkpoint",
                    self.bits, self.group_count
                ),
            ));
        }
        let groups = self.group_count;
        let (codes, zeros, scales) = match self.layout {
            Layout::Gptq => (
                self.words(cols).map(|words| [words, rows]),
                self.words(rows).map(|words| [groups, words]),
                [groups, rows],
            ),
            Layout::Awq => (
                self.words(rows).map(|words| [cols, words]),
                self.words(rows).map(|words| [groups, words]),
                [groups, rows],
            ),
            Layout::CompressedTensors { .. } => (
                self.words(cols).map(|words| [rows, words]),
                self.words(rows).map(|words| [words, groups]),
                [rows, groups],
            ),
        };
        fits(&self.codes, codes, true)?;
        fits(&self.scales, Some(scales), false)?;
        if let Zero::Packed { name, .. } = &self.zero {
            fits(name, zeros, true)?;
        }
        if let Groups::Named(name) = &self.groups {
            let tensor = find(checkpoint, name)?;
            if tensor.shape != [cols] || tensor.element != Element::Plain(Dtype::I32) {
                return Err(unreadable(
                    name,
                    format!(
                        "it is not one 32-bit number for each of {cols} columns; get the checkpoint anew"
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Reads rows `rows` into `out` `[rows, cols]`.
    pub(crate) fn read_rows(
        &self,
        checkpoint: &Checkpoint,
        rows: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let cols = index(self.shape.cols);
        let group_of = self.group_of(checkpoint)?;
        let factors = self.scales_of(checkpoint, rows.clone())?;
        let zeros = self.zeros_of(checkpoint, rows.clone())?;
        let groups = index(self.group_count);
        let height = index(rows.end - rows.start);
        let set = |out: &mut [f32], row: usize, col: usize, code: u32| {
            let at = row * groups + group_of[col];
            // Codes and zero points are far below 2^24.
            #[expect(clippy::cast_precision_loss, reason = "codes have at most 8 bits")]
            let difference = (code as i32 - zeros[at]) as f32;
            out[row * cols + col] = factors[at] * difference;
        };
        let name = &self.codes;
        match self.layout {
            Layout::Gptq => {
                // Three words hold 32 codes of 3 bits, one word holds whole codes otherwise.
                let (words, codes) =
                    if self.bits == 3 { (3, 32) } else { (1, index(32 / u64::from(self.bits))) };
                let mut held = vec![0u32; words * height];
                let all = self.words(self.shape.cols).unwrap_or(0);
                for (first, begin) in (0..all).step_by(words).zip((0..cols).step_by(codes)) {
                    for (word, held) in (first..all).zip(held.chunks_exact_mut(height)) {
                        read_words(checkpoint, name, word * self.shape.rows + rows.start, held)?;
                    }
                    for col in begin..cols.min(begin + codes) {
                        let (word, bit) = self.place((col - begin) as u64);
                        for row in 0..height {
                            let low = held[index(word) * height + row];
                            let high = held.get((index(word) + 1) * height + row).copied().unwrap_or(0);
                            set(out, row, col, self.code(low, high, bit));
                        }
                    }
                }
            }
            Layout::Awq => {
                let (first, last) = (rows.start / 8, rows.end.div_ceil(8));
                let width = self.shape.rows.div_ceil(8);
                let mut held = vec![0u32; index(last - first)];
                for col in 0..cols {
                    read_words(checkpoint, name, col as u64 * width + first, &mut held)?;
                    for (row, at) in rows.clone().enumerate() {
                        let (word, bit) = self.place(at);
                        set(out, row, col, self.code(held[index(word - first)], 0, bit));
                    }
                }
            }
            Layout::CompressedTensors { .. } => {
                let width = self.words(self.shape.cols).unwrap_or(0);
                let mut held = vec![0u32; index(width)];
                for (row, at) in rows.enumerate() {
                    read_words(checkpoint, name, at * width, &mut held)?;
                    for col in 0..cols {
                        let (word, bit) = self.place(col as u64);
                        let high = held.get(index(word) + 1).copied().unwrap_or(0);
                        set(out, row, col, self.code(held[index(word)], high, bit));
                    }
                }
            }
        }
        Ok(())
    }

    /// The group of each column.
    fn group_of(&self, checkpoint: &Checkpoint) -> Result<Vec<usize>, ModelError> {
        let cols = self.shape.cols;
        match &self.groups {
            Groups::Of(size) => Ok((0..cols).map(|col| index(col / size)).collect()),
            Groups::Named(name) => {
                let mut words = vec![0u32; index(cols)];
                read_words(checkpoint, name, 0, &mut words)?;
                let group = |word: u32| {
                    // The converter counts groups below zero from the end, as Python does.
                    let group = i64::from(word as i32);
                    let group = if group < 0 { group + self.group_count as i64 } else { group };
                    usize::try_from(group).ok().filter(|group| (*group as u64) < self.group_count)
                };
                words
                    .into_iter()
                    .map(|word| {
                        group(word).ok_or_else(|| {
                            unreadable(
                                name,
                                format!(
                                    "a column is in group {} of {}; get the checkpoint anew",
                                    word as i32, self.group_count
                                ),
                            )
                        })
                    })
                    .collect()
            }
        }
    }

    /// Scales `[rows, groups]`.
    fn scales_of(&self, checkpoint: &Checkpoint, rows: Range<u64>) -> Result<Vec<f32>, ModelError> {
        let (height, groups) = (index(rows.end - rows.start), index(self.group_count));
        let tensor = find(checkpoint, &self.scales)?;
        let mut scales = vec![0.0; height * groups];
        if matches!(self.layout, Layout::CompressedTensors { .. }) {
            read_values(checkpoint, tensor, rows.start * self.group_count, &mut scales)?;
            return Ok(scales);
        }
        let mut held = vec![0.0; height];
        for group in 0..groups {
            read_values(checkpoint, tensor, group as u64 * self.shape.rows + rows.start, &mut held)?;
            for (row, scale) in held.iter().enumerate() {
                scales[row * groups + group] = *scale;
            }
        }
        Ok(scales)
    }

    /// Zero points `[rows, groups]`.
    fn zeros_of(&self, checkpoint: &Checkpoint, rows: Range<u64>) -> Result<Vec<i32>, ModelError> {
        let (height, groups) = (index(rows.end - rows.start), index(self.group_count));
        let (name, plus) = match &self.zero {
            Zero::Constant(zero) => return Ok(vec![*zero; height * groups]),
            Zero::Packed { name, plus } => (name, *plus),
        };
        let mut zeros = vec![0; height * groups];
        let width = self.words(self.shape.rows).unwrap_or(0);
        if matches!(self.layout, Layout::CompressedTensors { .. }) {
            let first = self.place(rows.start).0;
            // The last code may go on in one more word.
            let last = (self.place(rows.end - 1).0 + 2).min(width);
            let mut held = vec![0u32; index(last - first) * groups];
            read_words(checkpoint, name, first * self.group_count, &mut held)?;
            for (row, at) in rows.enumerate() {
                let (word, bit) = self.place(at);
                for group in 0..groups {
                    let place = index(word - first) * groups + group;
                    let high = held.get(place + groups).copied().unwrap_or(0);
                    zeros[row * groups + group] = self.code(held[place], high, bit) as i32 + plus;
                }
            }
            return Ok(zeros);
        }
        let mut held = vec![0u32; index(width)];
        for group in 0..groups {
            read_words(checkpoint, name, group as u64 * width, &mut held)?;
            for (row, at) in rows.clone().enumerate() {
                let (word, bit) = self.place(at);
                let high = held.get(index(word) + 1).copied().unwrap_or(0);
                zeros[row * groups + group] = self.code(held[index(word)], high, bit) as i32 + plus;
            }
        }
        Ok(zeros)
    }
}

/// Ternary codes, four a byte from the lowest bits on, each a quarter of the rows further, with one scale that divides: the
/// packed BitNet of Hugging Face transformers (Ma et al. 2024).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ternary {
    /// Shape of the weights; one slice, rows a multiple of 4.
    pub shape: MatrixShape,
    /// Name of the tensor of bytes `[rows / 4, cols]`.
    pub codes: String,
    /// Name of the tensor of the scale.
    pub scale: String,
}

impl Ternary {
    /// Checks that both parts are there with their sizes and types.
    pub(crate) fn check(&self, checkpoint: &Checkpoint) -> Result<(), ModelError> {
        let MatrixShape { rows, cols, slices } = self.shape;
        let codes = find(checkpoint, &self.codes)?;
        if slices != 1
            || !rows.is_multiple_of(4)
            || codes.shape != [rows / 4, cols]
            || codes.element != Element::Plain(Dtype::U8)
        {
            return Err(unreadable(
                &self.codes,
                format!(
                    "it does not hold {rows} x {cols} ternary codes, four a byte; get the checkpoint anew"
                ),
            ));
        }
        let scale = find(checkpoint, &self.scale)?;
        let float = matches!(scale.element, Element::Plain(dtype) if dtype.is_float());
        if !float || scale.shape.iter().any(|axis| *axis != 1) {
            return Err(unreadable(
                &self.scale,
                "it is not one floating-point number; get the checkpoint anew",
            ));
        }
        Ok(())
    }

    /// Reads rows `rows` into `out` `[rows, cols]`.
    pub(crate) fn read_rows(
        &self,
        checkpoint: &Checkpoint,
        rows: Range<u64>,
        out: &mut [f32],
    ) -> Result<(), ModelError> {
        let codes = find(checkpoint, &self.codes)?;
        let mut scale = [0.0];
        read_values(checkpoint, find(checkpoint, &self.scale)?, 0, &mut scale)?;
        let (cols, quarter) = (index(self.shape.cols), (self.shape.rows / 4).max(1));
        let mut held = vec![0u8; cols];
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            read_bytes(checkpoint, codes, row % quarter * self.shape.cols, &mut held)?;
            for (value, byte) in out.iter_mut().zip(&held) {
                *value = (f32::from(byte >> (2 * (row / quarter)) & 3) - 1.0) / scale[0];
            }
        }
        Ok(())
    }
}

/// Reads `out.len()` words of the tensor `name` from word `start`.
fn read_words(checkpoint: &Checkpoint, name: &str, start: u64, out: &mut [u32]) -> Result<(), ModelError> {
    read_bytes(checkpoint, find(checkpoint, name)?, start * 4, bytemuck::cast_slice_mut(out))?;
    out.iter_mut().for_each(|word| *word = u32::from_le(*word));
    Ok(())
}
