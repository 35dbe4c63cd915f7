//! Precision of activations and weights in matmuls.

use std::fmt;
use std::str::FromStr;

use candle_core::DType;

use crate::error::{Error, Result};

/// Precision of activations in bf16 matmuls and in [`attention`](crate::attention()): `bf16` (fast), `split` (two bf16
/// terms, near exact) or `f32`.
///
/// On a device, operations compute with the dtype they are given; there this chooses the dtype of hidden states
/// ([`hidden_dtype`](crate::hidden_dtype)) and of the KV cache ([`kv_dtype`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ActivationPrecision {
    /// f32: bf16 weights are widened. The slowest; for comparison with recorded numbers.
    F32,
    /// The sum of two bf16 terms where the processor multiplies bf16 (AVX512-BF16, AMX): each product is within 2^-16 of
    /// its size. f32 elsewhere.
    Split,
    /// bf16 for more than 8 tokens where the processor multiplies bf16: each product is within 2^-8 of its size, at nearly
    /// twice the speed of [`Split`](Self::Split); so is attention of several queries on AMX. The KV cache is bf16, and so
    /// are hidden states on a device. The original runs in this precision; the default of library and
    /// program.
    #[default]
    Bf16,
}

impl ActivationPrecision {
    /// The name in options and reports: `f32`, `split` or `bf16`.
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

/// Dtype of the KV cache: bf16 with [`ActivationPrecision::Bf16`], which halves the memory of a long context, else f32.
pub fn kv_dtype(precision: ActivationPrecision) -> DType {
    match precision {
        ActivationPrecision::Bf16 => DType::BF16,
        ActivationPrecision::F32 | ActivationPrecision::Split => DType::F32,
    }
}

/// Arithmetic of matmuls with affine matrices on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum AffinePrecision {
    /// Integer codes times activations rounded to integers.
    #[default]
    Integer,
    /// Weights and activations in f32.
    F32,
    /// Weights rounded as `mx.dequantize` rounds them, activations in f32.
    MlxRounded,
}
