//! Rows are encoded column by column, and the error of each is made good by the columns after it.

use kbit_blocks::LevelStep;
use kbit_plugin::Error;
use kbit_scheme_kit::Factor;
use std::ops::Range;

/// Rows that go through the columns together, so that factors are read once for all of them.
pub const ROWS: usize = 8;
/// Columns whose errors are gathered before they correct all columns after them.
const GATHERED: usize = 128;

/// How a row is stored: in units, whose levels are fitted together, and which have even levels in each of their parts.
pub trait Storage: Send + Sync {
    /// The levels of a unit, as they are stored.
    type Unit;
    /// Weights of a unit; the last one of a row may be shorter.
    fn unit(&self) -> usize;
    /// Weights that have the same levels; a unit is whole parts.
    fn part(&self) -> usize;
    /// The largest code.
    fn most(&self) -> u8;
    /// Fits the levels of a unit to `values`, of which each counts by its weight, and writes the levels of its parts. `row` is for errors.
    ///
    /// # Errors
    /// Values that the storage cannot hold.
    fn fit(
        &self,
        row: u64,
        values: &[f32],
        weights: &[f32],
        steps: &mut [LevelStep],
    ) -> Result<Self::Unit, Error>;
}

/// The order in which columns are encoded.
#[derive(Debug)]
pub struct Order {
    /// The column at each place.
    pub columns: Vec<u32>,
    /// True where columns come as they are, so that levels can be fitted to weights that are already corrected.
    pub is_natural: bool,
}

impl Order {
    /// Columns as they are.
    pub fn natural(cols: usize) -> Self {
        Self { columns: (0..).take(cols).collect(), is_natural: true }
    }

    /// Columns with large second moments first; of equal ones, the first.
    pub fn largest_first(moments: &[f32]) -> Self {
        let mut columns: Vec<u32> = (0..).take(moments.len()).collect();
        columns.sort_by(|a, b| moments[*b as usize].total_cmp(&moments[*a as usize]).then(a.cmp(b)));
        Self { columns, is_natural: false }
    }
}

/// The encoded form of some rows.
pub struct Encoded<U> {
    /// The units of each row, one row after the other.
    pub units: Vec<U>,
    /// The codes `[rows][cols]`.
    pub codes: Vec<u8>,
}

/// What all rows of a matrix are encoded with.
#[derive(Debug)]
pub struct Feedback {
    factor: Factor,
    order: Order,
    /// How much an error of each column counts, once later columns have made good what they can.
    weights: Vec<f32>,
}

impl Feedback {
    /// With the factors of the columns in that order.
    pub fn new(factor: Factor, order: Order) -> Self {
        let mut weights = vec![0.0; order.columns.len()];
        for (column, variance) in order.columns.iter().zip(factor.variances()) {
            weights[*column as usize] = *variance;
        }
        Self { factor, order, weights }
    }

    /// Encodes `rows`, at most [`ROWS`] of finite numbers; `first` is the number of the first one, for errors.
    ///
    /// # Errors
    /// As [`Storage::fit`].
    pub fn encode<S: Storage>(
        &self,
        storage: &S,
        first: u64,
        rows: &[&[f32]],
    ) -> Result<Encoded<S::Unit>, Error> {
        pulp::Arch::new().dispatch(|| self.encode_here(storage, first, rows))
    }

    /// [`Feedback::encode`], compiled for each instruction set.
    #[inline(always)]
    fn encode_here<S: Storage>(
        &self,
        storage: &S,
        first: u64,
        rows: &[&[f32]],
    ) -> Result<Encoded<S::Unit>, Error> {
        let Order { columns, is_natural } = &self.order;
        let (cols, unit, part) = (columns.len(), storage.unit(), storage.part());
        let parts = cols.div_ceil(part);
        let units = cols.div_ceil(unit);
        let most = f32::from(storage.most());
        let numbers = (first..).take(rows.len());

        // Weights in the order of their columns, with the corrections so far.
        let mut targets: Vec<f32> =
            rows.iter().flat_map(|row| columns.iter().map(|column| row[*column as usize])).collect();
        let mut steps = vec![LevelStep::default(); rows.len() * parts];
        let mut fitted: Vec<Option<S::Unit>> = Vec::new();
        fitted.resize_with(rows.len() * units, || None);
        let mut codes = vec![0u8; rows.len() * cols];
        let mut errors = vec![0f32; rows.len() * GATHERED];

        let fit = |row: usize, number: u64, index: usize, values: &[f32], steps: &mut [LevelStep]| {
            let place = index * unit..index * unit + values.len();
            let steps = &mut steps[row * parts..][place.start / part..place.end.div_ceil(part)];
            storage.fit(number, values, &self.weights[place], steps)
        };
        if !is_natural {
            for (row, number) in numbers.clone().enumerate() {
                for (index, values) in rows[row].chunks(unit).enumerate() {
                    fitted[row * units + index] = Some(fit(row, number, index, values, &mut steps)?);
                }
            }
        }
        for block in blocks(cols, unit) {
            for (row, number) in numbers.clone().enumerate() {
                let target = &mut targets[row * cols..][..cols];
                for place in block.clone() {
                    let column = columns[place] as usize;
                    if *is_natural && column.is_multiple_of(unit) {
                        let values = &target[place..(place + unit).min(cols)];
                        let index = column / unit;
                        fitted[row * units + index] = Some(fit(row, number, index, values, &mut steps)?);
                    }
                    let LevelStep { step, least } = steps[row * parts + column / part];
                    let code = if step == 0.0 {
                        0.0
                    } else {
                        kbit_scheme_kit::round_half_even(((target[place] - least) / step).clamp(0.0, most))
                    };
                    #[expect(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "0 to 255 by the clamp"
                    )]
                    {
                        codes[row * cols + column] = code as u8;
                    }
                    let error = target[place] - (code * step + least);
                    errors[row * GATHERED + place - block.start] = error;
                    self.factor.take(place, error, &mut target[place + 1..block.end]);
                }
            }
            self.factor.correct(&block, &errors, GATHERED, &mut targets);
        }
        let units: Option<Vec<S::Unit>> = fitted.into_iter().collect();
        let units = units.ok_or_else(|| Error::internal("a unit of weights was not fitted"))?;
        Ok(Encoded { units, codes })
    }
}

/// Ranges of at most [`GATHERED`] columns; where units begin, all corrections by columns of earlier ranges have been made.
fn blocks(cols: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    // Whole units, or pieces of one.
    let outer = unit.max(GATHERED / unit.min(GATHERED) * unit);
    (0..cols).step_by(outer).flat_map(move |start| {
        let end = (start + outer).min(cols);
        (start..end).step_by(GATHERED).map(move |start| start..(start + GATHERED).min(end))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_all_columns_and_units_begin_where_all_is_corrected() {
        for (cols, unit) in
            [(1, 32), (100, 16), (600, 32), (600, 48), (512, 256), (1000, 300), (64, 4096), (130, 129)]
        {
            let mut next = 0;
            let mut starts = Vec::new();
            for block in blocks(cols, unit) {
                assert_eq!(block.start, next, "{cols}, {unit}");
                assert!(block.len() <= GATHERED && !block.is_empty());
                next = block.end;
                starts.push(block.start);
            }
            assert_eq!(next, cols);
            if unit > GATHERED {
                assert!((0..cols).step_by(unit).all(|start| starts.contains(&start)), "{cols}, {unit}");
            } else {
                // A unit does not reach from one block into the next.
                assert!(starts.iter().all(|start| start.is_multiple_of(unit)), "{cols}, {unit}");
            }
        }
    }

    #[test]
    fn large_moments_come_first() {
        assert_eq!(Order::largest_first(&[1.0, 3.0, 2.0, 3.0]).columns, [1, 3, 2, 0]);
    }
}
