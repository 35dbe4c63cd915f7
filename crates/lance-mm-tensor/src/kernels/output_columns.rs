//! An output matrix that threads fill side by side, each its own columns.
//!
//! ```text
//!            part 0   part 1   part 2   part 3
//! token 0  | ------ | ------ | ------ | ---- |      a part is whole units of columns, the last may be narrower
//! token 1  | ------ | ------ | ------ | ---- |
//! ```
//!
//! Weights are read once if a thread has some rows of the weight, which are columns of the output, for all tokens.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

/// A row-major matrix whose columns are handed out.
pub(super) struct Columns<'a> {
    first: *mut f32,
    dims: [usize; 2],
    values: PhantomData<&'a mut [f32]>,
}

/// Columns of a matrix that nobody else has.
pub(super) struct Part<'a> {
    first: *mut f32,
    dims: [usize; 2],
    range: Range<usize>,
    values: PhantomData<&'a mut [f32]>,
}

// SAFETY: a `Columns` is only a place from which `in_parallel` makes disjoint `Part`s of f32 values, which
// may be written from any thread.
#[expect(unsafe_code, reason = "columns of one matrix lie between each other")]
unsafe impl Sync for Columns<'_> {}

impl<'a> Columns<'a> {
    /// Borrows `values`, whole rows of `n_cols`.
    pub(super) fn new(values: &'a mut [f32], n_cols: usize) -> Self {
        assert!(n_cols > 0 && values.len().is_multiple_of(n_cols), "whole rows");
        let dims = [values.len() / n_cols, n_cols];
        Self { first: values.as_mut_ptr(), dims, values: PhantomData }
    }

    /// Calls `run` on all threads with parts that cover every column once; see [`parts`].
    pub(super) fn in_parallel(self, unit: usize, units: usize, run: impl Fn(&mut Part<'_>) + Sync) {
        let all = &self;
        parts(self.dims[1], unit, units).for_each(|range| {
            // `all` has the matrix to itself, and no two of these ranges have a column in common.
            run(&mut Part { first: all.first, dims: all.dims, range, values: PhantomData });
        });
    }
}

/// Divides `n_cols` columns among all threads: about four parts for each, of a multiple of `unit` columns, at most `units`
/// units; the last may be narrower.
// Four parts, so that a thread that is held up leaves work to the others; the same number for each thread, so that none
// waits for a last part.
pub(super) fn parts(n_cols: usize, unit: usize, units: usize) -> impl ParallelIterator<Item = Range<usize>> {
    let threads = rayon::current_num_threads();
    let all = n_cols.div_ceil(unit);
    let count = all.div_ceil(all.div_ceil(4 * threads).clamp(1, units)).next_multiple_of(threads);
    let width = all.div_ceil(count).max(1) * unit;
    // One at a time: a thread that comes late, or is held up, leaves the rest to the others.
    let parts = (0..n_cols.div_ceil(width)).into_par_iter().with_max_len(1);
    parts.map(move |i| i * width..((i + 1) * width).min(n_cols))
}

impl Part<'_> {
    /// The columns.
    pub(super) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// Borrows some of the columns in one row.
    ///
    /// # Panics
    /// When the row is not in the matrix or a column not in this part.
    #[expect(unsafe_code, reason = "columns of one matrix lie between each other")]
    pub(super) fn row(&mut self, row: usize, cols: Range<usize>) -> &mut [f32] {
        let [n_rows, n_cols] = self.dims;
        assert!(row < n_rows, "a row of the matrix");
        assert!(
            self.range.start <= cols.start && cols.start <= cols.end && cols.end <= self.range.end,
            "columns of this part"
        );
        // SAFETY: row < n_rows and cols within 0..n_cols, so all values lie in the slice that `Columns::new`
        // borrowed. Parts have no column in common (`in_parallel` is the only place that makes them) and this
        // one is borrowed mutably for as long as the result lives, so nothing else reads or writes these.
        unsafe { std::slice::from_raw_parts_mut(self.first.add(row * n_cols + cols.start), cols.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_handed_out_once() {
        for (rows, cols, unit, units) in [(1, 1, 4, 1), (3, 100, 16, 2), (2, 64, 16, 64), (0, 5, 2, 1)] {
            let mut values = vec![0.0; rows * cols];
            Columns::new(&mut values, cols).in_parallel(unit, units, |part| {
                for row in 0..rows {
                    for col in part.range() {
                        part.row(row, col..col + 1)[0] += (row * cols + col + 1) as f32;
                    }
                }
            });
            let expected: Vec<f32> = (1..=rows * cols).map(|i| i as f32).collect();
            assert_eq!(values, expected, "{rows} {cols} {unit} {units}");
        }
    }

    #[test]
    #[should_panic(expected = "columns of this part")]
    fn columns_of_another_part_are_refused() {
        Columns::new(&mut [0.0; 8], 8).in_parallel(1, 1, |part| {
            let end = part.range().end;
            part.row(0, end..end + 1);
        });
    }
}
