//! Inputs of the language model during generation, to calibrate its GEN expert.

use candle_core::Tensor;

use super::{Event, GenerateOptions, Piece, Request, pieces};
use crate::error::Result;
use crate::model::Lance;
use crate::prompt::GenerationPrompt;

/// Some steps of a generation.
pub struct Trace {
    /// The task, laid out by [`Plan::new`](super::Plan::new).
    pub pieces: Vec<Piece>,
    /// The passes of the steps, in order.
    pub passes: Vec<Pass>,
}

/// One pass of a step over its whole sequence.
pub struct Pass {
    /// Whether it includes the caption: [`Plan::whole`](super::Plan::whole) has its sequence.
    pub captioned: bool,
    /// Input of the first layer, f32 `(T, D)`.
    pub x: Tensor,
}

impl Lance {
    /// Runs the steps of a generation and keeps the language model's inputs in the passes of some of them, counted
    /// from 0. Nothing is decoded.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn trace(
        &self,
        prompt: &str,
        request: &Request<'_>,
        options: &GenerateOptions,
        steps: &[usize],
    ) -> Result<Trace> {
        let grid = self.check_request(prompt, request, options)?;
        let encoded = self.encode_source(request, options, &mut |_| {})?;
        let plan = self.plan(prompt, request.task(), &encoded, grid, options)?;
        let mut taken = Vec::new();
        self.denoise(&plan, request.task(), &encoded, options, &mut |event| {
            if let Event::Step(step) = event
                && steps.contains(&step.step.index)
            {
                taken.push((step.x.clone(), step.times.to_vec(), step.v_uncond.is_some()));
            }
        })?;
        let mut passes = Vec::new();
        for (latents, times, guided) in taken {
            let noise = self.latent_layers()?.embed(&latents, grid, &times)?;
            let mut features = self.source_features(&encoded, grid)?;
            features.push(noise);
            for captioned in [true, false].into_iter().take(1 + usize::from(guided)) {
                let x = self.llm_with_gen()?.embed(&plan.whole(captioned), &features)?;
                passes.push(Pass { captioned, x });
            }
        }
        let prompt = GenerationPrompt::new(self.tokenizer(), request.task(), prompt, options.special_tokens)?;
        Ok(Trace { pieces: pieces(prompt, encoded.vit_grid(), grid), passes })
    }
}
