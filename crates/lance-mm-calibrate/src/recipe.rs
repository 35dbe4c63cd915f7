//! The method of quantization.

use serde::Serialize;

/// Method of quantization. Reports have its name in kebab case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recipe {
    /// Plain rounding to nearest; no calibration.
    Rtn,
    /// The recipe of the published checkpoint (xocialize/lance-mlx), with the input activations of the dataset.
    LanceMlx,
    /// Scale search, clipping, refit and error feedback on recorded input activations; embedding and head in more
    /// bits.
    #[default]
    Awq,
    /// [`Awq`](Self::Awq) with bits and group size of every matrix by its sensitivity, within
    /// [`bits_per_weight`](crate::QuantizeOptions::bits_per_weight).
    AwqMixed,
}

impl Recipe {
    /// Whether weights are fitted to recorded input activations, which takes a dataset.
    pub fn is_calibrated(self) -> bool {
        self != Self::Rtn
    }
}
