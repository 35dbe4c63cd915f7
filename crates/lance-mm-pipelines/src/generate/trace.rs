//! What the language model reads while it draws, to record the inputs of its GEN expert.

use std::ops::ControlFlow;

use candle_core::Tensor;

use super::{Event, Generation, GenerationOptions, Piece, Request, pieces};
use crate::error::Result;
use crate::prompt::GenerationPrompt;

/// Some steps of a drawing.
pub struct Trace {
    /// The task, laid out by [`Plan::new`](super::Plan::new).
    pub pieces: Vec<Piece>,
    /// The passes of the steps, in order.
    pub passes: Vec<Pass>,
}

/// One pass of a step over everything it sees.
pub struct Pass {
    /// Whether the caption is in it: [`Plan::whole`](super::Plan::whole) has its sequence.
    pub captioned: bool,
    /// Rows f32 `(T, D)` that go into the first layer.
    pub x: Tensor,
}

impl Generation {
    /// Runs the steps of a drawing and keeps what the language model reads in the passes of some of them,
    /// counted from 0. Nothing is decoded.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn trace(
        &self,
        prompt: &str,
        request: &Request<'_>,
        options: &GenerationOptions,
        steps: &[usize],
    ) -> Result<Trace> {
        let grid = self.check(prompt, request, options)?;
        let encoded = self.encode(request, options, &mut |_| ControlFlow::Continue(()))?;
        let plan = self.plan(prompt, request.task(), &encoded, grid, options.unconditional)?;
        let mut taken = Vec::new();
        self.denoise(&plan, request.task(), &encoded, options, &mut |event| {
            if let Event::Step(step) = event
                && steps.contains(&step.step.index)
            {
                taken.push((step.x.clone(), step.times.to_vec(), step.v_uncond.is_some()));
            }
            ControlFlow::Continue(())
        })?;
        let mut passes = Vec::new();
        for (latents, times, guided) in taken {
            let noise = self.latents.embed(&latents, grid, &times)?;
            let mut features = self.source_rows(&encoded, grid)?;
            features.push(noise);
            for captioned in [true, false].into_iter().take(1 + usize::from(guided)) {
                let x = self.llm.embed(&plan.whole(captioned), &features)?;
                passes.push(Pass { captioned, x });
            }
        }
        let seen = encoded.features.as_ref().map(|(_, grid)| *grid);
        let prompt = GenerationPrompt::new(self.tokenizer(), request.task(), prompt)?;
        Ok(Trace { pieces: pieces(prompt, seen, grid), passes })
    }
}
