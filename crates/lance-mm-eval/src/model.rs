//! The model that a report is about.

use lance_mm_tensor::device_name;
use serde::Serialize;

use lance_mm_pipelines::Lance;
use lance_mm_pipelines::inspect::{ComponentSummary, Count, components_of};

/// A model as it was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelInfo {
    /// Name in reports.
    pub name: String,
    /// Its parts, with a fingerprint each.
    pub components: Vec<ComponentSummary>,
    /// Tensors, weights, bytes and bits per weight of all parts.
    pub total: Count,
    /// Precision of activations in bf16 matmuls: `f32`, `split` (two bf16 terms) or `bf16`.
    pub compute_dtype: &'static str,
    /// Where it ran: `cpu` or `metal`.
    pub device: &'static str,
}

impl ModelInfo {
    /// Reads every byte of the model's weights for the fingerprints.
    pub fn of(lance: &Lance, name: &str) -> Self {
        let checkpoint = lance.checkpoint();
        let components = components_of(checkpoint);
        Self {
            name: name.to_owned(),
            total: components.iter().map(|part| part.count).sum(),
            components,
            compute_dtype: checkpoint.model().activation_precision().name(),
            device: device_name(checkpoint.model().device()),
        }
    }
}
