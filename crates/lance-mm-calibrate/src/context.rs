//! Inputs that all stages share, and files of the source.

use std::collections::HashMap;

use lance_mm_models::{Experts, Llm};
use lance_mm_pipelines::Checkpoint;
use lance_mm_tensor::{StopFlag, Weights};

use crate::error::Result;
use crate::options::RecipeSteps;
use crate::stored_tensors::in_memory;
use crate::work_folder::WorkFolder;

/// Inputs of all stages: how to open the source, and what is done to it.
#[derive(Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) open: &'a dyn Fn() -> Result<Checkpoint>,
    pub(crate) steps: &'a RecipeSteps,
    pub(crate) work: &'a WorkFolder,
    /// Experts that the calibration set runs on.
    pub(crate) experts: Experts,
    pub(crate) stop: &'a StopFlag,
}

impl Context<'_> {
    /// The language model of the source, some tensors replaced.
    pub(crate) fn llm(&self, replaced: &Weights) -> Result<Llm> {
        let source = (self.open)()?;
        Ok(Llm::load(source.config(), &source.model().overlaid(replaced), self.experts)?)
    }

    /// The language model of the source.
    pub(crate) fn original(&self) -> Result<Llm> {
        self.llm(&in_memory(&HashMap::new())?)
    }
}
