//! Operands of matmuls: matrices in their stored form, biases and residuals.

use super::affine_matrix::Affine;
use super::pointwise::add_to;
use crate::dtype::FloatType;
use crate::precision::ActivationPrecision;

/// A matrix whose rows can be read as f32, in whatever form it is stored.
pub(crate) trait Rows: Send + Sync {
    /// Rows `R`.
    fn n_rows(&self) -> usize;

    /// Columns `K`.
    fn n_cols(&self) -> usize;

    /// Writes row `row` to `out`, which has `n_cols` values.
    fn read_row(&self, row: usize, out: &mut [f32]);

    /// The stored parts.
    fn stored(&self) -> Vec<&[u8]>;

    /// The stored values, row by row, and the precision of activations; `None` if they are not bf16.
    #[cfg(target_arch = "x86_64")]
    fn bf16(&self) -> Option<(&[[u8; 2]], ActivationPrecision)> {
        None
    }
}

/// A borrowed dense matrix.
#[derive(Clone, Copy)]
pub(crate) struct Dense<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) dtype: FloatType,
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "read where bf16 is multiplied as stored")
    )]
    pub(crate) precision: ActivationPrecision,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl<'a> Dense<'a> {
    /// Widens values of one row from `first` on to f32.
    ///
    /// # Panics
    /// When they are not all in the row.
    pub(crate) fn read_part(&self, row: usize, first: usize, out: &mut [f32]) {
        assert!(first <= self.cols && out.len() <= self.cols - first, "within one row");
        let (start, size) = (row * self.cols + first, self.dtype.size());
        self.dtype.widen(&self.bytes[start * size..(start + out.len()) * size], out);
    }

    /// The stored values and the precision of activations; see [`Rows::bf16`].
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn bf16(&self) -> Option<(&'a [[u8; 2]], ActivationPrecision)> {
        (self.dtype == FloatType::BF16).then_some((self.bytes.as_chunks().0, self.precision))
    }
}

/// A weight `(R, K)` in the form that kernels read.
#[derive(Clone, Copy)]
pub(crate) enum Matrix<'a> {
    Rows(&'a dyn Rows),
    Affine(Affine<'a>),
}

impl Matrix<'_> {
    pub(super) fn dims(&self) -> [usize; 2] {
        match self {
            Self::Rows(w) => [w.n_rows(), w.n_cols()],
            Self::Affine(w) => [w.rows, w.cols],
        }
    }
}

/// Bias and residual that are added to a matmul.
#[derive(Clone, Copy, Default)]
pub(crate) struct Addends<'a> {
    /// `(R)`, for every token.
    pub(crate) bias: Option<&'a [f32]>,
    /// `(n, R)`.
    pub(crate) residual: Option<&'a [f32]>,
}

/// A layer: weight and bias `(R)`.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) weight: Matrix<'a>,
    pub(crate) bias: Option<&'a [f32]>,
}

/// Adds bias and residual to a finished matmul.
pub(super) fn added(mut y: Vec<f32>, add: Addends<'_>) -> Vec<f32> {
    for values in [add.bias, add.residual].into_iter().flatten() {
        add_to(&mut y, values);
    }
    y
}
