//! Values that are not finite, found before they end in an output.

use std::fmt::Display;

use candle_core::{DType, Tensor};

use crate::cpu_values::read_values;
use crate::error::{Error, Result};

/// Values that are looked at together: as many as fill registers, several times.
const TOGETHER: usize = 64;

/// Index of the first value that is NaN or infinite.
pub fn first_not_finite(values: &[f32]) -> Option<usize> {
    let any = |chunk: &[f32]| chunk.iter().fold(false, |any, value| any | !value.is_finite());
    let start = values.chunks(TOGETHER).position(any)? * TOGETHER;
    Some(start + values[start..].iter().position(|value| !value.is_finite())?)
}

/// Checks that all values are finite: in place on the CPU, by one sum on a device.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lance_mm_tensor::{Error, require_finite};
///
/// require_finite("latents", &Tensor::new(&[1f32, -2.0], &Device::Cpu)?)?;
/// let error = require_finite("latents", &Tensor::new(&[1f32, f32::NAN], &Device::Cpu)?).unwrap_err();
/// assert_eq!(error.to_string(), "latents: expected finite numbers, found NaN");
/// # Ok::<(), Error>(())
/// ```
///
/// # Errors
/// [`Error::NotFinite`] with the first such value; on a device NaN for any.
pub fn require_finite(place: impl Display, x: &Tensor) -> Result<()> {
    let found = if x.device().is_cpu() && x.dtype() == DType::F32 {
        read_values(x, |values| first_not_finite(values).map(|i| values[i]))?
    } else {
        // Zero, unless a value is NaN or infinite.
        let sum = (x * 0.0)?.sum_all()?.to_dtype(DType::F32)?.to_scalar::<f32>()?;
        Some(sum).filter(|sum| !sum.is_finite())
    };
    match found {
        Some(found) => Err(Error::NotFinite { place: place.to_string(), found }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn the_first_bad_value_is_found_wherever_it_is() {
        let mut values = vec![f32::MAX; 300];
        assert_eq!(first_not_finite(&values), None);
        for (at, bad) in [(299, f32::NAN), (130, f32::INFINITY), (63, f32::NEG_INFINITY), (0, f32::NAN)] {
            values[at] = bad;
            assert_eq!(first_not_finite(&values), Some(at));
            let tensor = Tensor::from_slice(&values, (10, 30), &Device::Cpu).unwrap();
            for tensor in [tensor.clone(), tensor.t().unwrap(), tensor.to_dtype(DType::BF16).unwrap()] {
                assert!(matches!(require_finite("x", &tensor), Err(Error::NotFinite { .. })));
            }
        }
        assert!(require_finite("x", &Tensor::zeros(0, DType::F32, &Device::Cpu).unwrap()).is_ok());
    }
}
