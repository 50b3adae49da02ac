//! Shapes of the matrices that schemes encode.

/// A stack of row-major matrices `[slices, rows, cols]`; `cols` is the reduction (input) axis.
///
/// A dense weight has one slice; an expert tensor has one slice an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MatrixShape {
    /// Rows of one slice (outputs).
    pub rows: u64,
    /// Columns of one slice (inputs), contiguous in memory.
    pub cols: u64,
    /// Number of slices; 1 for a dense matrix.
    pub slices: u64,
}

impl MatrixShape {
    /// A dense matrix of one slice.
    #[must_use]
    pub const fn dense(rows: u64, cols: u64) -> Self {
        Self { rows, cols, slices: 1 }
    }

    /// Number of weights, or `None` where it does not fit 64 bits.
    #[must_use]
    pub fn elements(&self) -> Option<u64> {
        self.rows.checked_mul(self.cols)?.checked_mul(self.slices)
    }
}
