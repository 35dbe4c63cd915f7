//! A dense weight matrix, left in the file in the type it is stored in.

use candle_core::{DType, Device};
use half::f16;
use safetensors::Dtype;

use crate::affine::push;
use crate::error::{Error, Result};
use crate::kernels::{Addends, Matrix, Rows, matmul, metal};
use crate::weights::Bytes;

/// Floating types a weight, scale or bias may be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
}

impl FloatType {
    /// The floating type of a safetensors dtype, if it is one we read.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// Bytes of one value.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// Widens little-endian values; `bytes` holds exactly `out.len()` of them.
    pub(crate) fn widen(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.size(), "one stored value for each output");
        match self {
            Self::F32 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *o = f32::from_le_bytes(*b);
                }
            }
            Self::F16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *o = f16::from_le_bytes(*b).to_f32();
                }
            }
            Self::BF16 => {
                for (o, b) in out.iter_mut().zip(bytes.as_chunks().0) {
                    *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
                }
            }
        }
    }

    /// One value widened.
    pub(crate) fn widen_one(self, bytes: &[u8], index: usize) -> f32 {
        let mut out = [0.0];
        self.widen(&bytes[index * self.size()..(index + 1) * self.size()], &mut out);
        out[0]
    }
}

impl From<FloatType> for DType {
    fn from(float: FloatType) -> Self {
        match float {
            FloatType::F32 => Self::F32,
            FloatType::F16 => Self::F16,
            FloatType::BF16 => Self::BF16,
        }
    }
}

impl TryFrom<DType> for FloatType {
    type Error = Error;

    fn try_from(dtype: DType) -> Result<Self> {
        match dtype {
            DType::F32 => Ok(Self::F32),
            DType::F16 => Ok(Self::F16),
            DType::BF16 => Ok(Self::BF16),
            other => Err(Error::input("values", "f32, f16 or bf16", format!("{other:?}"))),
        }
    }
}

/// What the inputs of products with bf16 matrices, and of [`attention`](crate::attention()), count as. On a device
/// products are of what they are given, and this says which type that is ([`hidden_dtype`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActivationPrecision {
    /// f32: the matrix is widened. The slowest, for comparing with recorded numbers.
    F32,
    /// The sum of two bf16 terms where the processor multiplies bf16 (AVX512-BF16, AMX): within 2^-16 of each
    /// product's size. f32 elsewhere.
    #[default]
    Split,
    /// bf16 in products of more than 8 rows where the processor multiplies bf16: within 2^-8 of each product's
    /// size, at nearly twice the speed; so is attention of several queries on AMX. Keys and values are kept in bf16
    /// ([`kv_dtype`]). On a device rows are bf16 between operations. This is how the original runs.
    Bf16,
}

impl ActivationPrecision {
    /// `f32`, `split` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Split => "split",
            Self::Bf16 => "bf16",
        }
    }
}

/// The type that keys and values for [`attention`](crate::attention()) are best kept in: bf16 where activations are, which
/// halves what a long context takes and reads.
pub fn kv_dtype(activations: ActivationPrecision) -> DType {
    match activations {
        ActivationPrecision::Bf16 => DType::BF16,
        ActivationPrecision::F32 | ActivationPrecision::Split => DType::F32,
    }
}

/// The type that rows of a network have between operations: f32 on the CPU; on another device bf16 where activations are,
/// which halves what operations read and write.
pub fn hidden_dtype(activations: ActivationPrecision, device: &Device) -> DType {
    match metal::runs_on(device) {
        true => kv_dtype(activations),
        false => DType::F32,
    }
}

/// A `(R, K)` matrix of `F32`, `F16` or `BF16` values. Cloning shares the bytes.
#[derive(Clone)]
pub struct DenseWeight {
    bytes: Bytes,
    dtype: FloatType,
    #[cfg_attr(
        not(target_arch = "x86_64"),
        expect(dead_code, reason = "read where bf16 is multiplied as stored")
    )]
    activations: ActivationPrecision,
    rows: usize,
    cols: usize,
}

impl DenseWeight {
    pub(crate) fn new(bytes: Bytes, dtype: FloatType, rows: usize, cols: usize) -> Self {
        assert_eq!(bytes.len(), rows * cols * dtype.size(), "the header was checked against the shape");
        Self { bytes, dtype, activations: ActivationPrecision::default(), rows, cols }
    }

    /// A matrix of f32 values in memory, row by row.
    ///
    /// # Panics
    /// When `values` is not a whole number of rows of `cols`.
    pub fn from_f32(values: &[f32], cols: usize) -> Self {
        assert!(cols > 0 && values.len().is_multiple_of(cols), "whole rows");
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::new(Bytes::from_vec(bytes), FloatType::F32, values.len() / cols, cols)
    }

    /// A matrix of values in memory, row by row, each rounded to `dtype`.
    ///
    /// # Panics
    /// When `values` is not a whole number of rows of `cols`.
    pub fn rounded(values: &[f32], cols: usize, dtype: FloatType) -> Self {
        assert!(cols > 0 && values.len().is_multiple_of(cols), "whole rows");
        let mut bytes = Vec::with_capacity(values.len() * dtype.size());
        values.iter().for_each(|v| push(&mut bytes, *v, dtype));
        Self::new(Bytes::from_vec(bytes), dtype, values.len() / cols, cols)
    }

    /// The same matrix, multiplied with inputs that count as `activations`. Matters to bf16 matrices only.
    pub fn with_activation_precision(self, activations: ActivationPrecision) -> Self {
        Self { activations, ..self }
    }

    /// `x` f32 `(n, K)` times the transpose of the matrix: `(n, R)`, on all threads, summed in f32. A bf16 matrix
    /// is multiplied as it is stored where the processor can ([`ActivationPrecision`]); other values are widened a few
    /// rows at a time.
    ///
    /// # Panics
    /// When `x` is not `n` rows of `K`.
    pub fn matmul(&self, x: &[f32], n: usize) -> Vec<f32> {
        matmul(x, n, Matrix::Rows(self), Addends::default())
    }

    /// The values as they are stored, row by row.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Rows `R`.
    pub fn n_rows(&self) -> usize {
        self.rows
    }

    /// The type the values are stored in.
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }

    /// One row widened to f32.
    ///
    /// # Panics
    /// When `row` or the length of `out` does not fit.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.cols, "a place for every value of the row");
        self.read_part(row, 0, out);
    }

    /// Values of one row from `first` on, widened to f32.
    ///
    /// # Panics
    /// When they are not all in the row.
    pub fn read_part(&self, row: usize, first: usize, out: &mut [f32]) {
        assert!(first <= self.cols && out.len() <= self.cols - first, "within one row");
        let (start, size) = (row * self.cols + first, self.dtype.size());
        self.dtype.widen(&self.bytes[start * size..(start + out.len()) * size], out);
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

    #[cfg(target_arch = "x86_64")]
    fn bf16(&self) -> Option<(&[[u8; 2]], ActivationPrecision)> {
        (self.dtype == FloatType::BF16).then(|| (self.bytes.as_chunks().0, self.activations))
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

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
