//! The precision in which matrix products read activations and weights.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;

use crate::error::{Error, Result};

/// What the inputs of products with bf16 matrices, and of [`attention`](crate::attention()), count as. On a device
/// products are of what they are given, and this says which type that is ([`hidden_dtype`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActivationPrecision {
    /// f32: the matrix is widened. The slowest, for comparing with recorded numbers.
    F32,
    /// The sum of two bf16 terms where the processor multiplies bf16 (AVX512-BF16, AMX): within 2^-16 of each
    /// product's size. f32 elsewhere.
    Split,
    /// bf16 in products of more than 8 rows where the processor multiplies bf16: within 2^-8 of each product's
    /// size, at nearly twice the speed; so is attention of several queries on AMX. Keys and values are kept in bf16
    /// ([`kv_dtype`]). On a device rows are bf16 between operations. This is how the original runs, and the default of
    /// library and program.
    #[default]
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

impl fmt::Display for ActivationPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ActivationPrecision {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known =
            [Self::Bf16, Self::Split, Self::F32].into_iter().find(|precision| precision.name() == name);
        known.ok_or_else(|| Error::setting("activations", "bf16, split or f32", name))
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

/// What products with an affine matrix are computed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Products {
    /// Codes and activations rounded to whole numbers.
    #[default]
    Integer,
    /// Values and activations in f32.
    F32,
    /// Values rounded as `mx.dequantize` does, activations in f32.
    MlxRounded,
}
