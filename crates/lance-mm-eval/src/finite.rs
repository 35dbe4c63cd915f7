//! Values of tensors that are compared: NaN and infinity are an error, not a number of a report.

use candle_core::Tensor;

use crate::error::{Error, Result};

/// All values of a tensor, in f32.
///
/// # Errors
/// A value that is not finite, under `name`: the model and the tensor.
pub(crate) fn values(tensor: &Tensor, name: impl FnOnce() -> String) -> Result<Vec<f32>> {
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    check(&values, name)?;
    Ok(values)
}

/// Refuses values that are not finite, under `name`.
pub(crate) fn check(values: &[f32], name: impl FnOnce() -> String) -> Result<()> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(i) => Err(Error::data(name(), format!("expected finite values, found {} at {i}", values[i]))),
    }
}
