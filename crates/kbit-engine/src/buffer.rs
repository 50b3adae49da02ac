//! Buffers of f32 that start on a cache line, and checked views of rows in them.
//!
//! Kernels take [`Rows`] and [`RowsMut`]: whoever holds one knows that every row lies inside the slice, so kernels
//! need no bounds checks of their own. Matrices of the engine keep their rows [`padded`] apart: a whole number of
//! cache lines, and never a multiple of 2 KiB, so that a few rows side by side do not fall into the same cache sets.

#![expect(unsafe_code, reason = "windows lie side by side in the same rows")]

use crate::EngineError;
use std::marker::PhantomData;

/// Floats in one cache line.
pub(crate) const LINE: usize = 16;

/// Floats from one row of `cols` floats to the next in the engine's own matrices.
#[must_use]
pub(crate) const fn padded(cols: usize) -> usize {
    let stride = cols.next_multiple_of(LINE);
    if stride.is_multiple_of(512) { stride + LINE } else { stride }
}

/// Zeroed floats, of which the first lies on a 64-byte boundary.
#[derive(Debug, Default)]
pub(crate) struct Aligned {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` zeros.
    pub(crate) fn zeroed(len: usize) -> Result<Self, EngineError> {
        let out_of_memory = || EngineError::OutOfMemory { bytes: len.saturating_mul(4) };
        let total = len.checked_add(LINE).ok_or_else(out_of_memory)?;
        let mut memory = Vec::new();
        memory.try_reserve_exact(total).map_err(|_| out_of_memory())?;
        memory.resize(total, 0.0);
        // `align_offset` may decline to answer; then the buffer is merely unaligned.
        let start = memory.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        Ok(Self { memory, start, len })
    }

    /// Makes room for at least `len` floats; what was there is lost where it has to grow.
    pub(crate) fn reserve(&mut self, len: usize) -> Result<(), EngineError> {
        if self.len < len {
            *self = Self::default();
            *self = Self::zeroed(len)?;
        }
        Ok(())
    }

    pub(crate) fn as_slice(&self) -> &[f32] {
        &self.memory[self.start..self.start + self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// A matrix of the engine: [`Aligned`], rows [`padded`] apart.
#[derive(Debug, Default)]
pub(crate) struct Matrix {
    data: Aligned,
    rows: usize,
    cols: usize,
}

impl Matrix {
    /// Sets the shape, growing the memory where needed. Contents are unspecified afterwards.
    pub(crate) fn resize(&mut self, rows: usize, cols: usize) -> Result<(), EngineError> {
        let len = rows.checked_mul(padded(cols)).ok_or(EngineError::OutOfMemory { bytes: usize::MAX })?;
        self.data.reserve(len)?;
        (self.rows, self.cols) = (rows, cols);
        Ok(())
    }

    pub(crate) fn rows(&self) -> Rows<'_> {
        Rows::new(self.data.as_slice(), self.rows, self.cols, padded(self.cols))
    }

    pub(crate) fn rows_mut(&mut self) -> RowsMut<'_> {
        let stride = padded(self.cols);
        RowsMut::new(self.data.as_mut_slice(), self.rows, self.cols, stride)
    }
}

/// `rows` rows of `cols` floats, `stride` floats from one to the next.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> Rows<'a> {
    /// A view of `data`.
    ///
    /// # Panics
    /// If a row would end past the end of `data`, or rows overlap.
    #[must_use]
    pub fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        check(data.len(), rows, cols, stride);
        Self { data, rows, cols, stride }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Floats in a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Floats from one row to the next.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `index`.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row(&self, index: usize) -> &'a [f32] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        &self.data[index * self.stride..][..self.cols]
    }

    /// Rows `first..first + count`, columns `col..col + cols`.
    ///
    /// # Panics
    /// If they are not all there.
    #[must_use]
    pub fn window(&self, first: usize, count: usize, col: usize, cols: usize) -> Self {
        assert!(first <= self.rows && count <= self.rows - first, "rows {first}+{count} of {}", self.rows);
        assert!(col <= self.cols && cols <= self.cols - col, "columns {col}+{cols} of {}", self.cols);
        let data = if count == 0 { &[] } else { &self.data[first * self.stride + col..] };
        Self::new(data, count, cols, self.stride)
    }

    /// Rows `first..first + count`.
    ///
    /// # Panics
    /// If they are not all there.
    #[must_use]
    pub fn band(&self, first: usize, count: usize) -> Self {
        self.window(first, count, 0, self.cols)
    }

    /// The floats from the first row to the end of the slice.
    #[must_use]
    pub fn data(&self) -> &'a [f32] {
        self.data
    }
}

/// As [`Rows`], writable.
#[derive(Debug)]
pub struct RowsMut<'a> {
    data: &'a mut [f32],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a> RowsMut<'a> {
    /// A view of `data`.
    ///
    /// # Panics
    /// If a row would end past the end of `data`, or rows overlap.
    #[must_use]
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        check(data.len(), rows, cols, stride);
        Self { data, rows, cols, stride }
    }

    /// Number of rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Floats in a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Floats from one row to the next.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Row `index`.
    ///
    /// # Panics
    /// If there is no such row.
    #[must_use]
    pub fn row_mut(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        &mut self.data[index * self.stride..][..self.cols]
    }

    /// The same rows for a shorter time.
    #[must_use]
    pub fn reborrow(&mut self) -> RowsMut<'_> {
        RowsMut { data: self.data, rows: self.rows, cols: self.cols, stride: self.stride }
    }

    /// The first `count` rows and the others.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn split(self, count: usize) -> (Self, Self) {
        assert!(count <= self.rows, "{count} rows of {}", self.rows);
        let at = if count == self.rows { self.data.len() } else { count * self.stride };
        let (first, others) = self.data.split_at_mut(at);
        (
            Self::new(first, count, self.cols, self.stride),
            Self::new(others, self.rows - count, self.cols, self.stride),
        )
    }

    /// The floats of the first row.
    ///
    /// # Panics
    /// If there are no rows.
    #[must_use]
    pub fn into_row(self) -> &'a mut [f32] {
        assert!(self.rows > 0, "no rows");
        &mut self.data[..self.cols]
    }

    /// Columns `col..col + cols` of all rows.
    ///
    /// # Panics
    /// If they are not all there.
    #[must_use]
    pub fn columns(self, col: usize, cols: usize) -> Self {
        assert!(col <= self.cols && cols <= self.cols - col, "columns {col}+{cols} of {}", self.cols);
        let data = if self.rows == 0 { &mut [][..] } else { &mut self.data[col..] };
        Self::new(data, self.rows, cols, self.stride)
    }

    /// Bands of `count` rows (the last may have fewer), as [`slice::chunks_mut`].
    ///
    /// # Panics
    /// If `count` is 0.
    pub fn bands(self, count: usize) -> impl ExactSizeIterator<Item = RowsMut<'a>> + Send {
        let (rows, cols, stride) = (self.rows, self.cols, self.stride);
        self.data
            .chunks_mut((count * stride).max(1))
            .take(rows.div_ceil(count))
            .enumerate()
            .map(move |(band, data)| RowsMut::new(data, count.min(rows - band * count), cols, stride))
    }

    /// The floats from the first row to the end of the slice.
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [f32] {
        self.data
    }
}

/// Some columns of all rows of a matrix, whose other columns may be written at the same time.
///
/// Invariants: the `cols` floats from `first + row * stride` on may be written for every `row < rows` as long as `'a`, and by nobody
/// else.
#[derive(Debug)]
pub(crate) struct Window<'a> {
    first: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    floats: PhantomData<&'a mut [f32]>,
}

// SAFETY: a window is a mutable borrow of its floats.
unsafe impl Send for Window<'_> {}

impl<'a> Window<'a> {
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The first float, and how many lie from one row to the next.
    pub(crate) fn parts(&mut self) -> (*mut f32, usize) {
        (self.first, self.stride)
    }

    pub(crate) fn row_mut(&mut self, index: usize) -> &mut [f32] {
        assert!(index < self.rows, "row {index} of {}", self.rows);
        // SAFETY: the row is inside, and the window's alone.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(index * self.stride), self.cols) }
    }

    /// Rows `first..first + rows` of columns `col..col + cols`.
    pub(crate) fn tile(&mut self, first: usize, rows: usize, col: usize, cols: usize) -> Window<'_> {
        assert!(first <= self.rows && rows <= self.rows - first, "rows {first}+{rows} of {}", self.rows);
        assert!(col <= self.cols && cols <= self.cols - col, "columns {col}+{cols} of {}", self.cols);
        // Where nothing is left the pointer is never followed, so it may lie anywhere.
        let first = self.first.wrapping_add(first * self.stride + col);
        Window { first, rows, cols, stride: self.stride, floats: PhantomData }
    }
}

impl<'a> RowsMut<'a> {
    /// All columns, `width` at a time (the last may be fewer).
    pub(crate) fn windows(self, width: usize) -> impl ExactSizeIterator<Item = Window<'a>> + Send {
        let (rows, cols, stride) = (self.rows, self.cols, self.stride);
        let first = Window {
            first: self.data.as_mut_ptr(),
            rows,
            cols,
            stride,
            floats: PhantomData::<&'a mut [f32]>,
        };
        (0..cols.div_ceil(width)).map(move |index| {
            // As a whole, so that the pointer is sent as part of the window.
            let all = &first;
            Window {
                first: all.first.wrapping_add(index * width),
                rows,
                cols: width.min(cols - index * width),
                stride,
                floats: PhantomData,
            }
        })
    }
}

/// Panics unless all rows lie inside `len` floats without overlapping.
fn check(len: usize, rows: usize, cols: usize, stride: usize) {
    assert!(cols <= stride || rows <= 1, "rows of {cols} floats, {stride} apart, overlap");
    let needed = match rows {
        0 => Some(0),
        _ => (rows - 1).checked_mul(stride).and_then(|start| start.checked_add(cols)),
    };
    assert!(
        needed.is_some_and(|needed| needed <= len),
        "{rows} rows of {cols} floats, {stride} apart, in {len} floats"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_on_a_cache_line() {
        for len in [1, 15, 16, 17, 1000] {
            let mut buffer = Aligned::zeroed(len).unwrap();
            assert_eq!(buffer.as_slice().as_ptr() as usize % 64, 0);
            assert_eq!(buffer.as_mut_slice().len(), len);
        }
        assert!(matches!(Aligned::zeroed(usize::MAX / 8), Err(EngineError::OutOfMemory { .. })));
    }

    #[test]
    fn rows_of_neighbours_do_not_share_cache_sets() {
        for cols in 1..5000 {
            let stride = padded(cols);
            assert!(stride >= cols && stride.is_multiple_of(LINE) && !stride.is_multiple_of(512), "{cols}");
        }
    }

    #[test]
    fn windows_cover_all_columns_once() {
        let mut data = vec![0.0; 3 * 8];
        for (index, mut window) in RowsMut::new(&mut data, 3, 7, 8).windows(3).enumerate() {
            for row in 0..3 {
                window.row_mut(row).fill((10 * row + index + 1) as f32);
            }
            assert_eq!(window.tile(1, 2, 0, 1).row_mut(1), [21.0 + index as f32]);
        }
        for (row, floats) in data.chunks(8).enumerate() {
            let value = |index: usize| (10 * row + index + 1) as f32;
            let [a, b, c] = [value(0), value(1), value(2)];
            assert_eq!(floats, [a, a, a, b, b, b, c, 0.0]);
        }
    }

    #[test]
    #[should_panic(expected = "2 rows of 4 floats")]
    fn rows_past_the_end_are_refused() {
        let _ = Rows::new(&[0.0; 8], 2, 4, 5);
    }

    #[test]
    fn bands_cover_all_rows_once() {
        let mut data = vec![0.0; 7 * 5];
        for (band, mut rows) in RowsMut::new(&mut data, 7, 3, 5).bands(3).enumerate() {
            for row in 0..rows.rows() {
                rows.row_mut(row).fill((band + 1) as f32);
            }
        }
        for (row, floats) in data.chunks(5).enumerate() {
            assert_eq!(floats, [(row / 3 + 1) as f32, (row / 3 + 1) as f32, (row / 3 + 1) as f32, 0.0, 0.0]);
        }
    }
}
