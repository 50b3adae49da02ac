//! ggml block types: encode, decode and multiply, with the bytes and floats of ggml's reference code.
//!
//! Reference: `ggml-quants.c`, `ggml-impl.h` and, for products, `ggml-cpu/quants.c` of ggml 0.25.3 (llama.cpp commit 0c1e57098,
//! as in llama-cpp-python 0.3.36), compiled without contraction to fused multiply-add. Sums run in source order and C's
//! conversions of floats to integers are reproduced (they truncate, and what does not fit becomes the low byte of the "integer
//! indefinite" of x86), so encoded bytes are equal, with and without importance. `tests/golden.rs` compares with ggml's own
//! output.
//!
//! What ggml would write and then refuse to load is refused here when encoding: NaN, infinity, finite weights that become
//! infinite because the type cannot hold them (or their scale), importance so large that the searches of the IQ types overflow
//! (where ggml stops, or reads past its buffers), and MXFP4 blocks of nothing but the smallest normal numbers.
//!
//! ```
//! use kbit_types::GgmlType;
//!
//! let row: Vec<f32> = (0u8..64).map(|i| f32::from(i) - 32.0).collect();
//! let mut bytes = [0; 36];
//! kbit_blocks::encode_row_range(GgmlType::Q4_0, &row, 64, None, &mut bytes)?;
//! let mut back = [0.0; 64];
//! kbit_blocks::decode(GgmlType::Q4_0, &bytes, &mut back)?;
//! assert_eq!(back[0], -32.0);
//! # Ok::<(), kbit_blocks::BlockError>(())
//! ```

mod activations;
mod arch;
mod block;
mod codebook;
mod codec;
mod dot;
mod even;
mod fp4;
mod grid;
mod iq1;
mod iq4;
mod iquants;
mod kquants;
mod lanes;
mod legacy;
mod panel;
mod plain;
mod search;
mod ternary;

pub use arch::{InstructionSet, Kernels};
pub use codec::BlockCodec;
pub use dot::activation_type;
pub use even::{EvenLevels, LevelStep};

use kbit_types::GgmlType;

/// Why rows could not be encoded or decoded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BlockError {
    /// There is no code for the type.
    #[error("{ty} cannot be {action} by this version of kbit; choose one of {known}")]
    Type {
        /// Type.
        ty: GgmlType,
        /// `encoded` or `decoded`.
        action: &'static str,
        /// The types that can.
        known: String,
    },
    /// Rows are not whole blocks.
    #[error("{cols} columns are not whole blocks of {block} ({ty}); choose f16, bf16 or f32 for this tensor")]
    Columns {
        /// Type.
        ty: GgmlType,
        /// Weights in a row.
        cols: usize,
        /// Weights in a block.
        block: u64,
    },
    /// A buffer has another size than the weights need.
    #[error("{ty}: {message}; the file is damaged, or its header names another shape")]
    Size {
        /// Type.
        ty: GgmlType,
        /// What does not fit.
        message: String,
    },
    /// A weight is NaN or infinite.
    #[error("{value} at row {row}, column {column}; the checkpoint is damaged: get it anew")]
    NotFinite {
        /// `NaN` or `infinity`.
        value: &'static str,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
    },
    /// A weight is too large for the type, or makes its scale too large.
    #[error("{value} at row {row}, column {column} is too large for {ty}; choose {cure} for this tensor")]
    TooLarge {
        /// Type.
        ty: GgmlType,
        /// The weight.
        value: f32,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
        /// Types that could hold it.
        cure: &'static str,
    },
    /// The largest weight of a block is so small that the block's scale becomes NaN.
    #[error(
        "{value} at row {row}, column {column} is too small to be the largest of its block in {ty}; choose {cure} for this tensor"
    )]
    TooSmall {
        /// Type.
        ty: GgmlType,
        /// The weight.
        value: f32,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
        /// Types that could hold it.
        cure: &'static str,
    },
    /// An activation is NaN, infinite, or too large to be rounded to 8 bits.
    #[error(
        "activation {value} at row {row}, column {column} does not fit {ty}; compute with f32 activations"
    )]
    Activation {
        /// Type of the activations.
        ty: GgmlType,
        /// The activation.
        value: f32,
        /// Row, from 0.
        row: usize,
        /// Column, from 0.
        column: usize,
    },
    /// The type cannot be encoded without importance.
    #[error(
        "{ty} needs importance: gather an importance matrix with llama-imatrix and pass it, or choose a type that needs none: {known}"
    )]
    NeedsImportance {
        /// Type.
        ty: GgmlType,
        /// Types of about as few bits that can do without.
        known: String,
    },
    /// Sums over a block overflow, though the type could hold its weights.
    #[error(
        "sums over the weights of row {row} from column {column} on overflow when they are encoded as {ty}; their importance is \
         too large: gather it anew, or choose bf16 or f32 for this tensor"
    )]
    Overflow {
        /// Type.
        ty: GgmlType,
        /// Row, from 0.
        row: usize,
        /// First column of the block, from 0.
        column: usize,
    },
    /// An importance weight is NaN, infinite or negative.
    #[error("importance {value} of column {column}; importance is a mean square: gather it anew")]
    Importance {
        /// The importance weight.
        value: f32,
        /// Column, from 0.
        column: usize,
    },
}

impl BlockError {
    /// The error with rows counted from `first` rows above those that were passed.
    #[must_use]
    pub fn below(mut self, first: usize) -> Self {
        match &mut self {
            Self::NotFinite { row, .. }
            | Self::TooLarge { row, .. }
            | Self::TooSmall { row, .. }
            | Self::Activation { row, .. }
            | Self::Overflow { row, .. } => *row += first,
            Self::Type { .. }
            | Self::Columns { .. }
            | Self::Size { .. }
            | Self::NeedsImportance { .. }
            | Self::Importance { .. } => {}
        }
        self
    }
}

type Encode = fn(Kernels, &[f32], &mut [u8]);
/// Whole rows: weights, importance of the columns.
type EncodeWeighted = fn(Kernels, &[f32], &[f32], &mut [u8]);
type Decode = fn(Kernels, &[u8], &mut [f32]);

/// What is known of a type.
struct Kind {
    ty: GgmlType,
    encode: Option<Encode>,
    weighted: Option<EncodeWeighted>,
    decode: Decode,
}

impl Kind {
    fn encodes(&self) -> bool {
        self.encode.is_some() || self.weighted.is_some()
    }
}

macro_rules! kinds {
    ($($ty:ident: $decode:ident $(, $encode:ident $(, $weighted:ident)?)? $(=> $only:ident)?;)*) => {
        /// The only list of types. What follows an arrow needs importance.
        const KINDS: &[Kind] = &[$(Kind {
            ty: GgmlType::$ty,
            encode: kinds!(@some $($encode)?),
            weighted: kinds!(@some $($($weighted)?)? $($only)?),
            decode: Kernels::$decode,
        },)*];
    };
    (@some) => { None };
    (@some $method:ident) => { Some(Kernels::$method) };
}

kinds! {
    F32: decode_f32, encode_f32;
    F16: decode_f16, encode_f16;
    BF16: decode_bf16, encode_bf16;
    Q8_0: decode_q8_0, encode_q8_0;
    Q4_0: decode_q4_0, encode_q4_0, weighted_q4_0;
    Q4_1: decode_q4_1, encode_q4_1, weighted_q4_1;
    Q5_0: decode_q5_0, encode_q5_0, weighted_q5_0;
    Q5_1: decode_q5_1, encode_q5_1, weighted_q5_1;
    Q2_K: decode_q2_k, encode_q2_k, weighted_q2_k;
    Q3_K: decode_q3_k, encode_q3_k, weighted_q3_k;
    Q4_K: decode_q4_k, encode_q4_k, weighted_q4_k;
    Q5_K: decode_q5_k, encode_q5_k, weighted_q5_k;
    Q6_K: decode_q6_k, encode_q6_k, weighted_q6_k;
    TQ1_0: decode_tq1_0, encode_tq1_0;
    TQ2_0: decode_tq2_0, encode_tq2_0;
    MXFP4: decode_mxfp4, encode_mxfp4;
    NVFP4: decode_nvfp4, encode_nvfp4;
    Q1_0: decode_q1_0, encode_q1_0;
    Q2_0: decode_q2_0, encode_q2_0;
    IQ2_XXS: decode_iq2_xxs => weighted_iq2_xxs;
    IQ2_XS: decode_iq2_xs => weighted_iq2_xs;
    IQ2_S: decode_iq2_s, encode_iq2_s, weighted_iq2_s;
    IQ3_XXS: decode_iq3_xxs, encode_iq3_xxs, weighted_iq3_xxs;
    IQ3_S: decode_iq3_s, encode_iq3_s, weighted_iq3_s;
    IQ1_S: decode_iq1_s => weighted_iq1_s;
    IQ1_M: decode_iq1_m, encode_iq1_m, weighted_iq1_m;
    IQ4_NL: decode_iq4_nl, encode_iq4_nl, weighted_iq4_nl;
    IQ4_XS: decode_iq4_xs, encode_iq4_xs, weighted_iq4_xs;
}

fn kind(ty: GgmlType) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.ty == ty)
}

/// True where the sums of the search for a block may overflow, so that no point of the type's grid is found.
fn overflows(ty: GgmlType) -> bool {
    use GgmlType as T;
    matches!(ty, T::IQ1_S | T::IQ1_M | T::IQ2_XXS | T::IQ2_XS | T::IQ2_S | T::IQ3_XXS | T::IQ3_S)
}

fn unknown(ty: GgmlType, action: &'static str, has: fn(&Kind) -> bool) -> BlockError {
    let known = KINDS.iter().filter(|kind| has(kind)).map(|kind| kind.ty.name()).collect::<Vec<_>>();
    BlockError::Type { ty, action, known: known.join(", ") }
}

/// The error that names the types of less than four bits a weight that can be encoded without importance.
fn without_importance(ty: GgmlType) -> BlockError {
    let known = KINDS.iter().filter(|kind| kind.encode.is_some() && kind.ty.bits_per_weight() < 4.0);
    BlockError::NeedsImportance { ty, known: known.map(|kind| kind.ty.name()).collect::<Vec<_>>().join(", ") }
}

/// True where rows can be encoded.
#[must_use]
pub fn can_encode(ty: GgmlType) -> bool {
    kind(ty).is_some_and(Kind::encodes)
}

/// True where blocks can be decoded.
#[must_use]
pub fn can_decode(ty: GgmlType) -> bool {
    kind(ty).is_some()
}

/// True where rows can only be encoded with importance.
#[must_use]
pub fn needs_importance(ty: GgmlType) -> bool {
    kind(ty).is_some_and(|kind| kind.encode.is_none() && kind.weighted.is_some())
}

/// True where importance changes the bytes.
#[must_use]
pub fn uses_importance(ty: GgmlType) -> bool {
    kind(ty).is_some_and(|kind| kind.weighted.is_some())
}

/// [`Kernels::encode_row_range`] with the best kernels of this CPU.
///
/// # Errors
/// As there.
pub fn encode_row_range(
    ty: GgmlType,
    rows: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<(), BlockError> {
    Kernels::best().encode_row_range(ty, rows, cols, importance, out)
}

/// [`Kernels::decode`] with the best kernels of this CPU.
///
/// # Errors
/// As there.
pub fn decode(ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), BlockError> {
    Kernels::best().decode(ty, bytes, out)
}

/// Bytes of a row of `cols` weights.
fn row_bytes(ty: GgmlType, cols: usize) -> Result<usize, BlockError> {
    ty.bytes_for(cols as u64)
        .filter(|_| cols > 0)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or(BlockError::Columns { ty, cols, block: ty.block_elements() })
}

/// Bits of infinity, and of a magnitude below which all types hold any weight, with its scale: half the largest half-precision
/// number.
const INFINITY: u32 = f32::INFINITY.to_bits();
const HARMLESS: u32 = 32752f32.to_bits();

impl Kernels {
    /// Encodes `rows` (row-major, `cols` floats each) into `out`; `importance` `[cols]`, the mean square of each column's input,
    /// weighs the columns where the type has a use for it. Bytes do not depend on the instruction set.
    ///
    /// # Errors
    /// A type without encoder, no importance for a type that needs it, rows that are not whole blocks, a buffer of another size,
    /// importance that is not a mean square or too large, and a weight that is NaN, infinite or too large. `out` then holds
    /// arbitrary bytes.
    pub fn encode_row_range(
        self,
        ty: GgmlType,
        rows: &[f32],
        cols: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<(), BlockError> {
        let Some(kind) = kind(ty).filter(|kind| kind.encodes()) else {
            return Err(unknown(ty, "encoded", Kind::encodes));
        };
        let row_bytes = row_bytes(ty, cols)?;
        let size = |message: String| BlockError::Size { ty, message };
        if !rows.len().is_multiple_of(cols) || Some(out.len()) != (rows.len() / cols).checked_mul(row_bytes) {
            return Err(size(format!(
                "{} weights in rows of {cols} do not fit {} bytes",
                rows.len(),
                out.len()
            )));
        }
        if let (Some(weighted), Some(importance)) = (kind.weighted, importance) {
            if importance.len() != cols {
                return Err(size(format!("{} importance weights for {cols} columns", importance.len())));
            }
            if let Some(column) = importance.iter().position(|value| !(value.is_finite() && *value >= 0.0)) {
                return Err(BlockError::Importance { value: importance[column], column });
            }
            // As many rows as fill the lanes of the widest search several times over.
            const SEVERAL: usize = 1 << 16;
            let several = SEVERAL.div_ceil(cols);
            let pieces = rows.chunks(several * cols).zip(out.chunks_mut(several * row_bytes));
            for (piece, (x, out)) in pieces.enumerate() {
                self.checked(ty, x, out, |x, out| weighted(self, x, importance, out))
                    .map_err(|flaw| flaw.at(ty, piece * several * cols, rows, cols))?;
            }
            return Ok(());
        }
        let Some(encode) = kind.encode else { return Err(without_importance(ty)) };
        // Rows are whole blocks, so their borders do not matter. A piece stays in the first-level cache between its check and
        // its encoding, and is a super-block for each lane of the widest search.
        const PIECE: usize = 4096;
        const { assert!(PIECE.is_multiple_of(256)) };
        let piece_bytes = ty.bytes_for(PIECE as u64).map_or(usize::MAX, |bytes| bytes as usize);
        for (piece, (x, out)) in rows.chunks(PIECE).zip(out.chunks_mut(piece_bytes)).enumerate() {
            self.checked(ty, x, out, |x, out| encode(self, x, out))
                .map_err(|flaw| flaw.at(ty, piece * PIECE, rows, cols))?;
        }
        Ok(())
    }

    /// Encodes `x`, unless something is not finite, before or after.
    fn checked(
        self,
        ty: GgmlType,
        x: &[f32],
        out: &mut [u8],
        encode: impl FnOnce(&[f32], &mut [u8]),
    ) -> Result<(), Flaw> {
        let largest = self.largest_bits(x);
        if largest >= INFINITY {
            return Err(Flaw::NotFinite);
        }
        encode(x, out);
        if ty == GgmlType::MXFP4
            && let Some(index) = fp4::without_scale(out)
        {
            return Err(Flaw::TooSmall(index));
        }
        // Grid types mark a block whose sums overflowed by a scale that is NaN.
        if largest < HARMLESS && !overflows(ty) {
            return Ok(());
        }
        let mut back = vec![0.0; x.len()];
        self.decode(ty, out, &mut back).map_err(|_| Flaw::TooLarge(0))?;
        back.iter().position(|value| !value.is_finite()).map_or(Ok(()), |index| Err(Flaw::TooLarge(index)))
    }

    /// Decodes whole blocks. Floats do not depend on the instruction set, but for the payload of NaN.
    ///
    /// # Errors
    /// A type without decoder, or sizes that do not fit.
    pub fn decode(self, ty: GgmlType, bytes: &[u8], out: &mut [f32]) -> Result<(), BlockError> {
        let Some(kind) = kind(ty) else { return Err(unknown(ty, "decoded", |_| true)) };
        if ty.bytes_for(out.len() as u64) != Some(bytes.len() as u64) {
            let message = format!("{} bytes do not hold {} weights", bytes.len(), out.len());
            return Err(BlockError::Size { ty, message });
        }
        (kind.decode)(self, bytes, out);
        Ok(())
    }
}

/// What is wrong with a piece of the weights.
enum Flaw {
    NotFinite,
    /// The decoded weight at this index is not finite.
    TooLarge(usize),
    /// The block of the weight at this index has no scale.
    TooSmall(usize),
}

impl Flaw {
    /// As an error: the piece starts at weight `start` of `rows`.
    fn at(self, ty: GgmlType, start: usize, rows: &[f32], cols: usize) -> BlockError {
        match self {
            Self::NotFinite => {
                let index = rows.iter().position(|value| !value.is_finite()).unwrap_or(start);
                let value = if rows[index].is_nan() { "NaN" } else { "infinity" };
                BlockError::NotFinite { value, row: index / cols, column: index % cols }
            }
            Self::TooLarge(index) | Self::TooSmall(index) => {
                // The culprit is the largest weight of the block whose scale it is.
                let block = usize::try_from(ty.block_elements()).unwrap_or(1);
                let first = start + index / block * block;
                let culprit = (first..first + block).max_by(|a, b| rows[*a].abs().total_cmp(&rows[*b].abs()));
                let index = culprit.unwrap_or(first);
                if matches!(self, Self::TooLarge(_)) && rows[index].abs() < f32::from_bits(HARMLESS) {
                    return BlockError::Overflow { ty, row: first / cols, column: first % cols };
                }
                let cure = if ty == GgmlType::BF16 { "f32" } else { "bf16 or f32" };
                let (row, column) = (index / cols, index % cols);
                let value = rows[index];
                match self {
                    Self::TooSmall(_) => BlockError::TooSmall { ty, value, row, column, cure },
                    _ => BlockError::TooLarge { ty, value, row, column, cure },
                }
            }
        }
    }
}
