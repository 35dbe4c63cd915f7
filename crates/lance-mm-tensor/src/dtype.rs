//! Floating-point dtypes of stored weights.

use candle_core::DType;
use half::{bf16, f16};
use safetensors::Dtype;

use crate::error::{Error, Result};

/// Floating-point dtypes of stored weights, scales and biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    BF16,
}

impl FloatType {
    /// Converts a safetensors dtype; `None` for dtypes that are not read.
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

    /// Appends `value`, rounded to this type, little endian.
    pub(crate) fn push(self, value: f32, out: &mut Vec<u8>) {
        match self {
            Self::F32 => out.extend_from_slice(&value.to_le_bytes()),
            Self::F16 => out.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
            Self::BF16 => out.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
        }
    }

    /// Widens the value at `index`.
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
