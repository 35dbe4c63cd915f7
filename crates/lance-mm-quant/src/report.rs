//! What a quantization did, for `quantization_report.json`.

use serde::{Deserialize, Deserializer, Serialize};

use crate::compensate::Drift;
use crate::linear::{Method, Quantized, Trial};
use crate::names::Pair;
use crate::search::{Family, Search};
use crate::seed::SeedSearch;

/// A fusion pair.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PairReport {
    /// Which.
    pub pair: Pair,
    /// The modules whose channels are divided.
    pub producers: Vec<String>,
    /// The family of the best candidate.
    pub family: Family,
    /// Its `α`.
    pub alpha: f64,
    /// Loss of the identity on the search rows; none for the published search, which does not try it.
    pub identity: Option<f64>,
    /// Loss of the best candidate on the search rows.
    #[serde(deserialize_with = "or_nan")]
    pub best: f64,
    /// Loss of the identity on the rows held back.
    pub held_back_identity: Option<f64>,
    /// Loss of the best candidate on the rows held back.
    pub held_back_best: Option<f64>,
    /// Whether the scale is in the file.
    pub accepted: bool,
}

impl PairReport {
    pub(crate) fn searched(pair: Pair, producers: Vec<String>, search: &Search) -> Self {
        Self {
            pair,
            producers,
            family: search.best.family,
            alpha: search.best.alpha,
            identity: search.losses.first().copied(),
            best: search.losses.iter().copied().fold(f64::INFINITY, f64::min),
            held_back_identity: Some(search.held_back_identity),
            held_back_best: Some(search.held_back_best),
            accepted: search.accepted,
        }
    }

    pub(crate) fn seed(pair: Pair, producers: Vec<String>, search: &SeedSearch) -> Self {
        Self {
            pair,
            producers,
            family: Family::ActWeight,
            alpha: search.alpha,
            identity: None,
            best: search.losses.iter().copied().fold(f64::INFINITY, f64::min),
            held_back_identity: None,
            held_back_best: None,
            accepted: true,
        }
    }
}

/// A quantized linear layer. Errors are relative output errors on the rows held back; without inputs those
/// of the weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LinearReport {
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
    /// Error of what is in the file.
    #[serde(rename = "final", deserialize_with = "or_nan")]
    pub final_error: f64,
    /// Signal to noise of the scaled weights in dB.
    #[serde(deserialize_with = "or_nan")]
    pub snr_db: f64,
    /// Share of groups whose range was clipped.
    #[serde(deserialize_with = "or_nan")]
    pub clipped: f64,
    /// How it was rounded.
    pub method: Method,
    /// What earlier layers had changed of its outputs, of a weight that was fitted to that.
    pub drift: Option<Drift>,
    /// All that was tried.
    pub trials: Vec<Trial>,
}

impl LinearReport {
    /// Of a layer whose plain error is known; `None`: it was not scaled.
    pub fn new(name: String, quantized: &Quantized, plain: Option<f64>) -> Self {
        let (scheme, chosen) = (quantized.weight.scheme(), quantized.trial());
        let scaled = quantized.trials[0].held_back;
        Self {
            name,
            bits: scheme.bits(),
            group_size: scheme.group_size(),
            plain: plain.unwrap_or(scaled),
            scaled,
            final_error: chosen.held_back,
            snr_db: chosen.snr_db,
            clipped: chosen.clipped,
            method: chosen.method,
            drift: None,
            trials: quantized.trials.clone(),
        }
    }
}

/// A number of a report; JSON has `null` for one that is not finite.
pub(crate) fn or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}
