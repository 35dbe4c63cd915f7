//! The report of a quantized matrix, a part of `quantization_report.json`.

use serde::{Deserialize, Serialize};

use crate::compensate::Drift;
use crate::linear::{QuantizedMatrix, Trial};
use crate::or_nan::or_nan;
use crate::rounding_options::RoundingMethod;

/// Choices and errors of a quantized linear layer. Errors are relative, of outputs on held-out activations, or of the
/// weights where no inputs were recorded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RoundingReport {
    /// The module.
    pub name: String,
    /// Bits per code.
    pub bits: usize,
    /// Values that share a scale.
    pub group_size: usize,
    /// Error of plain rounding of the weights as they were.
    #[serde(deserialize_with = "or_nan")]
    pub plain: f64,
    /// Error of plain rounding of the scaled weights.
    #[serde(deserialize_with = "or_nan")]
    pub scaled: f64,
    /// Error of the quantized weights.
    #[serde(rename = "final", deserialize_with = "or_nan")]
    pub final_error: f64,
    /// Signal to noise of the scaled weights in dB.
    #[serde(deserialize_with = "or_nan")]
    pub snr_db: f64,
    /// Share of groups whose range was clipped.
    #[serde(deserialize_with = "or_nan")]
    pub clipped: f64,
    /// The chosen method.
    pub method: RoundingMethod,
    /// Drift of its inputs by earlier layers, if the weight compensates for it.
    pub drift: Option<Drift>,
    /// All trials.
    pub trials: Vec<Trial>,
}

impl RoundingReport {
    /// Reports a quantized matrix. `plain` is the error before scaling; `None`: it was not scaled.
    pub fn new(name: String, quantized: &QuantizedMatrix, plain: Option<f64>) -> Self {
        let (scheme, chosen) = (quantized.weight.scheme(), quantized.trial());
        let scaled = quantized.trials[0].held_out;
        Self {
            name,
            bits: scheme.bits(),
            group_size: scheme.group_size(),
            plain: plain.unwrap_or(scaled),
            scaled,
            final_error: chosen.held_out,
            snr_db: chosen.snr_db,
            clipped: chosen.clipped,
            method: chosen.method,
            drift: None,
            trials: quantized.trials.clone(),
        }
    }
}
