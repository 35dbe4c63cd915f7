//! Matrices in f32, and sources that are read by rows.

use half::bf16;
use lance_mm_tensor::{AffineWeight, Error, Result, Weight};
use rayon::prelude::*;

/// Rows that a thread works on at once: enough for efficient matmuls, few enough to share among threads.
pub(crate) const CHUNK: usize = 128;

/// A matrix that is read by rows: a [`Matrix`], or a weight that stays in its file.
pub trait RowSource: Sync {
    /// Rows `R`.
    fn n_rows(&self) -> usize;

    /// Columns `K`.
    fn n_cols(&self) -> usize;

    /// Writes row `row` into `out`, which has `K` places.
    fn read_row(&self, row: usize, out: &mut [f32]);

    /// Rows `first..first + n`, one after another.
    fn read_rows(&self, first: usize, n: usize) -> Vec<f32> {
        let cols = self.n_cols();
        let mut values = vec![0.0; n * cols];
        for (i, out) in values.chunks_exact_mut(cols).enumerate() {
            self.read_row(first + i, out);
        }
        values
    }
}

impl RowSource for Weight {
    fn n_rows(&self) -> usize {
        self.n_rows()
    }

    fn n_cols(&self) -> usize {
        self.n_cols()
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        self.read_row(row, out);
    }
}

impl RowSource for AffineWeight {
    fn n_rows(&self) -> usize {
        self.n_rows()
    }

    fn n_cols(&self) -> usize {
        self.n_cols()
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        self.read_row(row, out);
    }
}

/// A source with its columns multiplied.
pub struct Scaled<'a> {
    /// The matrix `(R, K)`.
    pub source: &'a dyn RowSource,
    /// A factor for each of its `K` columns.
    pub factors: &'a [f32],
}

impl RowSource for Scaled<'_> {
    fn n_rows(&self) -> usize {
        self.source.n_rows()
    }

    fn n_cols(&self) -> usize {
        self.source.n_cols()
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        self.source.read_row(row, out);
        out.iter_mut().zip(self.factors).for_each(|(v, f)| *v *= f);
    }
}

/// Evenly spread rows of a source. Rows are rounded one by one, so a part of them is enough to compare methods.
pub(crate) struct Sampled<'a> {
    source: &'a dyn RowSource,
    n: usize,
}

impl<'a> Sampled<'a> {
    /// Takes at most `n` rows.
    pub(crate) fn new(source: &'a dyn RowSource, n: usize) -> Self {
        Self { source, n: n.min(source.n_rows()) }
    }
}

impl RowSource for Sampled<'_> {
    fn n_rows(&self) -> usize {
        self.n
    }

    fn n_cols(&self) -> usize {
        self.source.n_cols()
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        self.source.read_row(row * self.source.n_rows() / self.n, out);
    }
}

/// A `(R, K)` matrix of f32 values, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    values: Vec<f32>,
    cols: usize,
}

impl Matrix {
    /// A matrix from its values, row by row. `name` names it in errors.
    ///
    /// # Errors
    /// No rows or a ragged last one; a value that is not finite, with its row.
    pub fn new(name: &str, values: Vec<f32>, cols: usize) -> Result<Self> {
        check_rows(name, &values, cols)?;
        Ok(Self { values, cols })
    }

    /// Reads all rows of a source, dequantized if it is quantized.
    ///
    /// # Errors
    /// The same as of [`new`](Self::new).
    pub fn read(name: &str, source: &dyn RowSource) -> Result<Self> {
        let rows = source.n_rows();
        let chunks = (0..rows.div_ceil(CHUNK)).into_par_iter();
        let values = chunks.flat_map_iter(|i| source.read_rows(i * CHUNK, CHUNK.min(rows - i * CHUNK)));
        Self::new(name, values.collect(), source.n_cols())
    }

    /// Rows `R`.
    pub fn n_rows(&self) -> usize {
        self.values.len() / self.cols
    }

    /// Columns `K`.
    pub fn n_cols(&self) -> usize {
        self.cols
    }

    /// All values, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// All values, row by row.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }

    /// Multiplies column `k` by `factors[k]`.
    ///
    /// # Panics
    /// When there is not one factor for each column.
    pub fn multiply_cols(&mut self, factors: &[f32]) {
        assert_eq!(factors.len(), self.cols, "one factor for each column");
        for row in self.values.chunks_exact_mut(self.cols) {
            row.iter_mut().zip(factors).for_each(|(v, f)| *v *= f);
        }
    }

    /// Divides row `r` by `divisors[r]`.
    ///
    /// # Panics
    /// When there is not one divisor for each row.
    pub fn divide_rows(&mut self, divisors: &[f32]) {
        assert_eq!(divisors.len(), self.n_rows(), "one divisor for each row");
        for (row, divisor) in self.values.chunks_exact_mut(self.cols).zip(divisors) {
            row.iter_mut().for_each(|v| *v /= divisor);
        }
    }

    /// Rounds every value to bf16, the type of the published weights.
    pub fn round_bf16(&mut self) {
        self.values.iter_mut().for_each(|v| *v = round_bf16(*v));
    }
}

impl RowSource for Matrix {
    fn n_rows(&self) -> usize {
        self.n_rows()
    }

    fn n_cols(&self) -> usize {
        self.cols
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.values[row * self.cols..(row + 1) * self.cols]);
    }
}

/// The nearest bf16 value.
pub(crate) fn round_bf16(value: f32) -> f32 {
    bf16::from_f32(value).to_f32()
}

/// Checks that there are whole rows, at least one, of finite values.
pub(crate) fn check_rows(name: &str, values: &[f32], cols: usize) -> Result<()> {
    if cols == 0 || values.is_empty() || !values.len().is_multiple_of(cols) {
        let found = format!("{} values", values.len());
        return Err(setting(name, format!("rows of {cols}"), found));
    }
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(at) => {
            Err(Error::File { file: name.into(), message: format!("not finite in row {}", at / cols) })
        }
    }
}

pub(crate) fn setting(name: &str, expected: impl ToString, found: impl ToString) -> Error {
    Error::Setting { name: name.into(), expected: expected.to_string(), found: found.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_scaled() {
        let mut w = Matrix::new("w", vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3).unwrap();
        w.multiply_cols(&[1.0, 10.0, 100.0]);
        w.divide_rows(&[2.0, 4.0]);
        assert_eq!(w.values(), [0.5, 10.0, 150.0, 1.0, 12.5, 150.0]);
        assert_eq!((w.n_rows(), w.n_cols()), (2, 3));
        assert_eq!(w.read_rows(1, 1), [1.0, 12.5, 150.0]);
    }

    #[test]
    fn sampled_rows_are_spread_evenly() {
        let w = Matrix::new("w", (0..10).map(|i| i as f32).collect(), 1).unwrap();
        let of = |n| Sampled::new(&w, n).read_rows(0, n.min(10));
        assert_eq!(of(4), [0.0, 2.0, 5.0, 7.0]);
        assert_eq!(of(20), w.values());
    }

    #[test]
    fn bf16_rounding_is_to_nearest_even() {
        let mut w = Matrix::new("w", vec![1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -0.1], 3).unwrap();
        w.round_bf16();
        assert_eq!(w.values(), [1.0, 1.0 + 4.0 / 256.0, -0.100_097_656]);
    }

    #[test]
    fn what_is_not_finite_or_whole_is_named() {
        let error = |values, cols| Matrix::new("layers.0.x", values, cols).unwrap_err().to_string();
        assert_eq!(error(vec![0.0, 1.0, f32::NAN, 1.0], 2), "layers.0.x: not finite in row 1");
        assert_eq!(error(vec![0.0; 3], 2), "layers.0.x: expected rows of 2, found 3 values");
        assert_eq!(error(vec![], 2), "layers.0.x: expected rows of 2, found 0 values");
    }
}
