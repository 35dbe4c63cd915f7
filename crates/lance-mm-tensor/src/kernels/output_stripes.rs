//! An output matrix that threads write side by side, each value once, into memory that was not cleared.
//!
//! A stripe is some columns of rows that are written in order, top to bottom; see `output_columns` for the division among
//! threads. Each row of a stripe is contiguous, so that large matrices can be written past the caches line by line.

use std::arch::x86_64::{_mm_loadu_ps, _mm_sfence, _mm_stream_ps};
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::output_columns::parts;

/// Values from which on a matrix is written past the caches.
// 16 MB: the first values would have left the caches before they are read. Part of a change that took gate of the vision
// encoder from 30 to 22 ms (two threads of Sapphire Rapids).
const LARGE: usize = 4 << 20;

/// A row-major matrix that is being written, some rows at a time. Its memory is not cleared before.
pub(super) struct Stripes {
    values: Vec<f32>,
    dims: [usize; 2],
    /// Number of rows written.
    written: usize,
}

/// Columns of rows that are being written, which nobody else has.
pub(super) struct Stripe<'a> {
    first: *mut f32,
    n_cols: usize,
    rows: Range<usize>,
    cols: Range<usize>,
    /// Whether the matrix is large.
    past_caches: bool,
    values: PhantomData<&'a mut [f32]>,
}

/// The address of the first value.
#[derive(Clone, Copy)]
struct Place(*mut f32);

// SAFETY: only a place from which `Stripes::write` makes disjoint `Stripe`s of f32 values, which may be
// written from any thread.
#[expect(unsafe_code, reason = "columns of one matrix lie between each other")]
unsafe impl Sync for Place {}

impl Stripes {
    /// Allocates a matrix `(n_rows, n_cols)` without a written row.
    ///
    /// # Panics
    /// When it has no columns or is too large for memory.
    pub(super) fn new(n_rows: usize, n_cols: usize) -> Self {
        assert!(n_cols > 0, "columns");
        let len = n_rows.checked_mul(n_cols).expect("an output that fits into memory");
        Self { values: Vec::with_capacity(len), dims: [n_rows, n_cols], written: 0 }
    }

    /// Writes the next `count` rows: calls `run` on all threads with stripes that cover every column once, divided by
    /// [`parts`].
    ///
    /// # Panics
    /// When there are not so many rows left, or `run` does not write all rows of its stripe.
    pub(super) fn write(
        &mut self,
        count: usize,
        unit: usize,
        units: usize,
        run: impl Fn(&mut Stripe<'_>) + Sync,
    ) {
        let [n_rows, n_cols] = self.dims;
        let rows = self.written..self.written + count;
        assert!(rows.end <= n_rows, "rows of the matrix");
        let first = Place(self.values.as_mut_ptr());
        parts(n_cols, unit, units).for_each(|cols| {
            let Place(first) = { first };
            // No two of these stripes have a column in common, and the matrix is borrowed mutably.
            let past_caches = n_rows * n_cols >= LARGE;
            let mut stripe =
                Stripe { first, n_cols, rows: rows.clone(), cols, past_caches, values: PhantomData };
            run(&mut stripe);
            stripe.finish();
            assert!(stripe.rows.is_empty(), "all rows of a stripe are written");
        });
        self.written = rows.end;
    }

    /// The values.
    ///
    /// # Panics
    /// When rows are left to write.
    #[expect(unsafe_code, reason = "the length of memory that was written through pointers")]
    pub(super) fn finish(self) -> Vec<f32> {
        let Self { mut values, dims: [n_rows, n_cols], written } = self;
        assert_eq!(written, n_rows, "rows written");
        // SAFETY: `new` made room for as many values. `write` counts rows as written after stripes that cover all
        // columns have each written all of them, so every value is initialized.
        unsafe { values.set_len(n_rows * n_cols) };
        values
    }
}

impl Stripe<'_> {
    /// The columns.
    pub(super) fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// Writes the stripe's next row.
    ///
    /// # Panics
    /// When there is no row left, or `values` is not one value for each column.
    #[expect(unsafe_code, reason = "columns of one matrix lie between each other")]
    pub(super) fn push_row(&mut self, values: &[f32]) {
        let row = self.rows.next().expect("a row is left to write");
        assert_eq!(values.len(), self.cols.len(), "one value for each column");
        // SAFETY: `row` and all columns lie within the dimensions for which `Stripes::new` made room; nobody
        // else has these columns of these rows (`Stripes::write` is the only place that makes stripes), and
        // `values` is another slice, since what is written here is not handed out before `finish`.
        unsafe {
            let out = self.first.add(row * self.n_cols + self.cols.start);
            if self.past_caches {
                stream(values, out)
            } else {
                std::ptr::copy_nonoverlapping(values.as_ptr(), out, values.len())
            }
        }
    }

    /// Orders the writes past the caches before later reads of other threads.
    #[expect(unsafe_code, reason = "an instruction")]
    fn finish(&self) {
        if self.past_caches {
            // SAFETY: part of every x86-64 processor.
            unsafe { _mm_sfence() };
        }
    }
}

/// Copies values, whole cache lines of them past the caches.
///
/// # Safety
/// `out` is valid for writes of as many values, none of `values` among them, and what has been written is not read before
/// an `_mm_sfence` on this thread.
#[expect(unsafe_code, reason = "stores without intrinsics that take slices")]
unsafe fn stream(values: &[f32], out: *mut f32) {
    let head = out.align_offset(64).min(values.len());
    let (head, rest) = values.split_at(head);
    let (lines, tail) = rest.as_chunks::<16>();
    // SAFETY: head, lines and tail are, one after another, as many values as the caller says may be written;
    // `head` ends where `out` is a multiple of 64 bytes, and SSE is part of every x86-64 processor.
    unsafe {
        std::ptr::copy_nonoverlapping(head.as_ptr(), out, head.len());
        let mut out = out.add(head.len());
        for line in lines {
            for (i, four) in line.as_chunks::<4>().0.iter().enumerate() {
                _mm_stream_ps(out.add(4 * i), _mm_loadu_ps(four.as_ptr()));
            }
            out = out.add(line.len());
        }
        std::ptr::copy_nonoverlapping(tail.as_ptr(), out, tail.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_written_once() {
        for (counts, cols, unit, units) in [
            (&[1][..], 1, 4, 1),
            (&[2, 1], 100, 16, 2),
            (&[2], 64, 16, 64),
            (&[], 5, 2, 1),
            // Past the caches, and lines that begin anywhere.
            (&[1, 2], LARGE / 3 + 5, 16, usize::MAX / 16),
        ] {
            let mut stripes = Stripes::new(counts.iter().sum(), cols);
            let mut first = 0;
            for count in counts {
                stripes.write(*count, unit, units, |stripe| {
                    for row in first..first + count {
                        let values: Vec<f32> = stripe.cols().map(|col| (row * cols + col) as f32).collect();
                        stripe.push_row(&values);
                    }
                });
                first += count;
            }
            let expected: Vec<f32> = (0..first * cols).map(|i| i as f32).collect();
            assert_eq!(stripes.finish(), expected, "{counts:?} {cols} {unit} {units}");
        }
    }

    #[test]
    fn what_is_not_written_is_refused() {
        let refused = |run: fn()| std::panic::catch_unwind(run).is_err();
        assert!(refused(|| Stripes::new(1, 1).write(1, 1, 1, |_| {})));
        assert!(refused(|| Stripes::new(1, 2).write(1, 2, 1, |stripe| stripe.push_row(&[0.0]))));
        assert!(refused(|| Stripes::new(1, 1).write(1, 1, 1, |stripe| {
            stripe.push_row(&[0.0]);
            stripe.push_row(&[0.0]);
        })));
        assert!(refused(|| Stripes::new(1, 1).write(2, 1, 1, |_| {})));
        assert!(refused(|| drop(Stripes::new(1, 1).finish())));
    }
}
