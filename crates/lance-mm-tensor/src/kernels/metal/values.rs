//! Conversion of test values to bytes of a dtype, and back.

use half::{bf16, f16};

use crate::dtype::FloatType;

/// Encodes values in a dtype.
pub(crate) fn encode(values: &[f32], float: FloatType) -> Vec<u8> {
    match float {
        FloatType::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        FloatType::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        FloatType::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
    }
}

/// Decodes values of a dtype.
pub(crate) fn decode(bytes: &[u8], float: FloatType) -> Vec<f32> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match float {
        FloatType::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        FloatType::F16 => pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        FloatType::BF16 => pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
    }
}

/// Rounds values to a dtype.
pub(crate) fn rounded(values: &[f32], float: FloatType) -> Vec<f32> {
    decode(&encode(values, float), float)
}

/// Largest error of rounding a value to a dtype that can hold it.
pub(crate) fn rounding(value: f64, float: FloatType) -> f64 {
    match float {
        FloatType::F32 => value.abs() * 2f64.powi(-24),
        // Values below 2^-14 are multiples of 2^-24.
        FloatType::F16 => (value.abs() * 2f64.powi(-11)).max(2f64.powi(-25)),
        FloatType::BF16 => value.abs() * 2f64.powi(-8),
    }
}
