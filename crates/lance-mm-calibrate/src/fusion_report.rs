//! The report of a scale that modules share, a part of `quantization_report.json`.

use lance_mm_quant::{Family, LanceMlxSearch, Search};
use serde::{Deserialize, Serialize};

use crate::names::FusionGroup;

/// A fusion group whose scale was searched.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FusionReport {
    /// The group.
    #[serde(rename = "pair")]
    pub group: FusionGroup,
    /// The modules whose channels are divided.
    pub producers: Vec<String>,
    /// The family of the best candidate.
    pub family: Family,
    /// Its `α`.
    pub alpha: f64,
    /// Loss of the identity on the activations to fit to; none for the published search, which does not try it.
    pub identity: Option<f64>,
    /// Loss of the best candidate on the activations to fit to.
    pub best: f64,
    /// Loss of the identity on held-out activations.
    #[serde(rename = "held_back_identity")]
    pub held_out_identity: Option<f64>,
    /// Loss of the best candidate on held-out activations.
    #[serde(rename = "held_back_best")]
    pub held_out_best: Option<f64>,
    /// Whether the scale is in the file.
    pub accepted: bool,
}

impl FusionReport {
    pub(crate) fn searched(group: FusionGroup, producers: Vec<String>, search: &Search) -> Self {
        Self {
            group,
            producers,
            family: search.best.family,
            alpha: search.best.alpha,
            identity: search.losses.first().copied(),
            best: search.losses.iter().copied().fold(f64::INFINITY, f64::min),
            held_out_identity: Some(search.held_out_identity),
            held_out_best: Some(search.held_out_best),
            accepted: search.accepted,
        }
    }

    pub(crate) fn lance_mlx(group: FusionGroup, producers: Vec<String>, search: &LanceMlxSearch) -> Self {
        Self {
            group,
            producers,
            family: Family::ActWeight,
            alpha: search.alpha,
            identity: None,
            best: search.losses.iter().copied().fold(f64::INFINITY, f64::min),
            held_out_identity: None,
            held_out_best: None,
            accepted: true,
        }
    }
}
