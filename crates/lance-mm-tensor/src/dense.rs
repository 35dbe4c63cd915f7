//! Dense weight matrices, left in the file in the dtype they are stored in.

use crate::bytes::Bytes;
use crate::dtype::FloatType;
use crate::kernels::{Addends, Dense, Matrix, Rows, matmul};
use crate::precision::ActivationPrecision;

/// A `(R, K)` matrix of `F32`, `F16` or `BF16` values. Cloning shares the bytes.
#[derive(Clone)]
pub struct DenseWeight {
    bytes: Bytes,
    dtype: FloatType,
    precision: ActivationPrecision,
    rows: usize,
    cols: usize,
}

impl DenseWeight {
    pub(crate) fn new(bytes: Bytes, dtype: FloatType, rows: usize, cols: usize) -> Self {
        assert_eq!(bytes.len(), rows * cols * dtype.size(), "the header was checked against the shape");
        Self { bytes, dtype, precision: ActivationPrecision::default(), rows, cols }
    }

    /// Makes a matrix of f32 values, row by row.
    ///
    /// # Panics
    /// When `values` are not whole rows of `cols`.
    pub fn from_f32(values: &[f32], cols: usize) -> Self {
        assert!(cols > 0 && values.len().is_multiple_of(cols), "whole rows");
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(Bytes::from_vec(bytes), FloatType::F32, values.len() / cols, cols)
    }

    /// Makes a matrix of values rounded to `dtype`, row by row.
    ///
    /// # Panics
    /// When `values` are not whole rows of `cols`.
    pub fn rounded(values: &[f32], cols: usize, dtype: FloatType) -> Self {
        assert!(cols > 0 && values.len().is_multiple_of(cols), "whole rows");
        let mut bytes = Vec::with_capacity(values.len() * dtype.size());
        values.iter().for_each(|v| dtype.push(*v, &mut bytes));
        Self::new(Bytes::from_vec(bytes), dtype, values.len() / cols, cols)
    }

    /// The same matrix with this precision of activations in matmuls, which matters to bf16 matrices only.
    pub fn with_activation_precision(self, precision: ActivationPrecision) -> Self {
        Self { precision, ..self }
    }

    /// `x · Wᵀ` of f32 `(n, K)`: `(n, R)`, on all threads, summed in f32. A bf16 matrix is multiplied as it is stored if
    /// the processor can ([`ActivationPrecision`]); other dtypes are widened a few rows at a time.
    ///
    /// # Panics
    /// When `x` is not `n` rows of `K`.
    pub fn matmul(&self, x: &[f32], n: usize) -> Vec<f32> {
        matmul(x, n, Matrix::Rows(self), Addends::default())
    }

    /// The bytes as stored, row by row.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Rows `R`.
    pub fn n_rows(&self) -> usize {
        self.rows
    }

    /// Dtype of the stored values.
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }

    /// Widens one row to f32.
    ///
    /// # Panics
    /// When `row` or the length of `out` does not fit.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a place for every value of the row");
        self.view().read_part(row, 0, out);
    }

    /// The view that kernels read.
    pub(crate) fn view(&self) -> Dense<'_> {
        let Self { ref bytes, dtype, precision, rows, cols } = *self;
        Dense { bytes, dtype, precision, rows, cols }
    }
}

impl Rows for DenseWeight {
    fn n_rows(&self) -> usize {
        self.rows
    }

    fn n_cols(&self) -> usize {
        self.cols
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        self.read_row(row, out);
    }

    fn stored(&self) -> Vec<&[u8]> {
        vec![&self.bytes]
    }

    #[cfg(target_arch = "x86_64")]
    fn bf16(&self) -> Option<(&[[u8; 2]], ActivationPrecision)> {
        self.view().bf16()
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn every_type_is_widened_exactly() {
        let values = [0.0f32, -0.0, 1.5, -2.25, 65504.0, 6.1035156e-5];
        let bytes: [Vec<u8>; 3] = [
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        ];
        for (dtype, bytes) in [FloatType::F32, FloatType::F16, FloatType::BF16].into_iter().zip(bytes) {
            let weight = DenseWeight::new(Bytes::from_vec(bytes), dtype, 2, 3);
            let mut row = [f32::NAN; 3];
            weight.read_row(1, &mut row);
            let expected: Vec<f32> = values[3..]
                .iter()
                .map(|v| if dtype == FloatType::BF16 { bf16::from_f32(*v).to_f32() } else { *v })
                .collect();
            assert_eq!(row.as_slice(), expected, "{dtype:?}");
        }
    }
}
