//! Values of tensors that are compared: NaN and infinity are an error, not a number of a report.

use candle_core::Tensor;
use lance_mm_tensor::{Error as TensorError, first_not_finite};

use crate::error::Result;

/// All values of a tensor, in f32.
///
/// # Errors
/// A value that is not finite, under `place`: the model and the tensor.
pub(crate) fn values(tensor: &Tensor, place: impl FnOnce() -> String) -> Result<Vec<f32>> {
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    check(&values, place)?;
    Ok(values)
}

/// Refuses values that are not finite, under `place`.
pub(crate) fn check(values: &[f32], place: impl FnOnce() -> String) -> Result<()> {
    match first_not_finite(values) {
        None => Ok(()),
        Some(i) => Err(TensorError::NotFinite { place: place(), found: values[i] }.into()),
    }
}
