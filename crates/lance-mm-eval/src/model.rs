//! Which model a report is about.

use lance_mm_tensor::device_name;
use serde::Serialize;

use lance_mm_pipelines::Checkpoint;
use lance_mm_pipelines::Generation;
use lance_mm_pipelines::Understanding;
use lance_mm_pipelines::inspect::{ComponentSummary, Count, components_of};

/// A model as it was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelInfo {
    /// What it was called.
    pub name: String,
    /// Its parts, with a fingerprint each.
    pub components: Vec<ComponentSummary>,
    /// Tensors, weights, bytes and bits per weight of all parts.
    pub total: Count,
    /// What inputs of products with bf16 matrices counted as: `f32`, `split` (two bf16 terms) or `bf16`.
    pub compute_dtype: &'static str,
    /// Where.
    pub device: &'static str,
}

impl ModelInfo {
    /// Reads every byte of the model's weights for the fingerprints.
    pub fn of(lance: &Understanding, name: &str) -> Self {
        Self::of_checkpoint(lance.checkpoint(), name)
    }

    /// As [`of`](Self::of), for a model that draws; its VAE is not read.
    pub fn of_generation(lance: &Generation, name: &str) -> Self {
        Self::of_checkpoint(lance.checkpoint(), name)
    }

    fn of_checkpoint(checkpoint: &Checkpoint, name: &str) -> Self {
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
