//! What schemes share that store blocks of a ggml type.

use kbit_blocks::BlockError;
use kbit_plugin::{Error, SchemeInfo, Shape, SlabMut};
use kbit_types::GgmlType;
use std::ops::Range;

/// A ggml type, known at compile time.
pub trait BlockType: Send + Sync + 'static {
    /// Type.
    const TYPE: GgmlType;
    /// What the scheme says of itself.
    const INFO: SchemeInfo;
}

/// Bytes of a row.
///
/// # Errors
/// Rows that are not whole blocks.
pub fn row_bytes<T: BlockType>(shape: &Shape<'_>) -> Result<u64, Error> {
    T::TYPE.bytes_for(shape.cols).ok_or_else(|| {
        Error::unsupported(format!(
            "tensor {}: rows of {} weights are not whole blocks of {} ({})",
            shape.tensor,
            shape.cols,
            T::TYPE.block_elements(),
            T::TYPE
        ))
    })
}

/// What an encoder's error, of rows from row `first` on, is for the host.
#[must_use]
pub fn encode_error(tensor: &str, first: u64, error: BlockError) -> Error {
    let error = error.below(usize::try_from(first).unwrap_or(usize::MAX));
    let message = format!("tensor {tensor}: {error}");
    match error {
        BlockError::NotFinite { .. }
        | BlockError::TooLarge { .. }
        | BlockError::TooSmall { .. }
        | BlockError::Overflow { .. }
        | BlockError::Importance { .. } => Error::numeric(message),
        BlockError::NeedsImportance { .. } => Error::missing(message),
        _ => Error::internal(message),
    }
}

/// Decodes `rows` of a matrix whose blocks are `blocks`.
///
/// # Errors
/// Sizes that exceed memory, and bytes that do not have the rows' size.
pub fn decode<T: BlockType>(
    shape: &Shape<'_>,
    blocks: &[u8],
    rows: Range<u64>,
    out: &mut SlabMut<'_>,
) -> Result<(), Error> {
    let size = |value: u64| usize::try_from(value).map_err(|_| Error::internal("a size that exceeds memory"));
    let row_bytes = size(row_bytes::<T>(shape)?)?;
    let first = size(rows.start)?;
    for index in 0..out.len() {
        let start = (first + index) * row_bytes;
        kbit_blocks::decode(T::TYPE, &blocks[start..start + row_bytes], out.row_mut(index))
            .map_err(|error| Error::internal(format!("tensor {}: {error}", shape.tensor)))?;
    }
    Ok(())
}
