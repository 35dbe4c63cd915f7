//! The loop that turns noise into latents.

use candle_core::Tensor;
use lance_mm_models::{Cache, LatentLayers, Llm, NoiseBlock};
use lance_mm_tensor::{StopFlag, require_finite, with_autorelease_pool};
use tracing::debug_span;

use crate::error::Result;
use crate::guidance::Guidance;
use crate::plan::{Plan, Unconditional};
use crate::schedule::{InferenceStep, Schedule};
use crate::solver::{Solver, SolverKind};

/// Keys and values of what comes before the noise block: constant over all steps.
pub struct Prefix {
    /// With the caption.
    pub conditional: Cache,
    /// Without; `None` when no step needs it.
    pub unconditional: Option<Cache>,
}

/// A step that was taken: tensors f32 `(N, 48)`, one row a latent of the noise block.
pub struct Denoised<'a> {
    /// The step.
    pub step: InferenceStep,
    /// Steps in all.
    pub of: usize,
    /// The time of every latent frame; frames that are clean have time 0.
    pub times: &'a [f32],
    /// The latents it began with.
    pub x: &'a Tensor,
    /// The velocity with the caption.
    pub v_cond: &'a Tensor,
    /// The velocity without, in steps that guidance applies to.
    pub v_uncond: Option<&'a Tensor>,
    /// The velocity that was followed.
    pub v: &'a Tensor,
    /// The latents it ended with.
    pub next: &'a Tensor,
}

impl Denoised<'_> {
    /// Latents if the velocity were followed to the end at once, f32 `(N, 48)`: a preview.
    ///
    /// # Errors
    /// Shapes or devices that candle refuses.
    pub fn estimate(&self) -> Result<Tensor> {
        Ok((self.x - (self.v * f64::from(self.step.t))?)?)
    }
}

/// Receives each step.
pub(crate) type OnStep<'a> = dyn FnMut(&Denoised<'_>) + 'a;

/// The loop over inference steps, and all that it needs besides its latents.
pub(crate) struct Denoiser<'a> {
    pub(crate) llm: &'a Llm,
    pub(crate) latents: &'a LatentLayers,
    pub(crate) plan: &'a Plan,
    pub(crate) prefix: Prefix,
    pub(crate) guidance: &'a Guidance,
    pub(crate) unconditional: Unconditional,
    /// Latent frames at the beginning that are clean and stay as they are.
    pub(crate) clean_frames: usize,
    pub(crate) stop_flag: &'a StopFlag,
}

/// Velocities at one place and time, f32 `(N, 48)`.
pub(crate) struct Velocities {
    cond: Tensor,
    uncond: Option<Tensor>,
    /// Velocity that the solver follows.
    pub(crate) v: Tensor,
}

impl Denoiser<'_> {
    /// Runs all steps from `x` f32 `(N, 48)`: the latents at time 0, likewise.
    pub(crate) fn run(
        &mut self,
        x: Tensor,
        schedule: &Schedule,
        solver: SolverKind,
        on_step: &mut OnStep<'_>,
    ) -> Result<Tensor> {
        let mut solver = Solver::new(solver);
        let of = schedule.steps().len();
        let mut x = x;
        for step in schedule.steps() {
            let _span = debug_span!("step", index = step.index, t = step.t).entered();
            let Velocities { cond, uncond, v } = with_autorelease_pool(|| self.velocities(&x, step))?;
            let next = self.keep_clean(&x, solver.step(&x, &v, step)?)?;
            require_finite(format_args!("latents after step {}", step.index), &next)?;
            let (v_cond, v_uncond, times) = (&cond, uncond.as_ref(), &self.times(step)[..]);
            on_step(&Denoised { step, of, times, x: &x, v_cond, v_uncond, v: &v, next: &next });
            x = next;
        }
        Ok(x)
    }

    /// The velocity at `x`, guided where guidance applies.
    pub(crate) fn velocities(&mut self, x: &Tensor, step: InferenceStep) -> Result<Velocities> {
        let (grid, times) = (self.plan.grid, self.times(step));
        let of = |sequence, cache: &mut Cache| {
            let block = NoiseBlock { latents: x, grid, times: &times, sequence };
            self.latents.velocity_with_stop(self.llm, &block, cache, self.stop_flag)
        };
        let cond = of(&self.plan.noise, &mut self.prefix.conditional)?;
        let uncond = match &mut self.prefix.unconditional {
            Some(cache) if self.guidance.applies(step.t) => Some(of(&self.plan.unconditional_noise, cache)?),
            _ => None,
        };
        let v = match &uncond {
            Some(uncond) => self.guided(&cond, uncond)?,
            None => cond.clone(),
        };
        Ok(Velocities { cond, uncond, v })
    }

    /// The time of every latent frame.
    fn times(&self, step: InferenceStep) -> Vec<f32> {
        (0..self.plan.grid.t).map(|f| if f < self.clean_frames { 0.0 } else { step.t }).collect()
    }

    /// Rows that stay as they are.
    fn clean_rows(&self) -> usize {
        self.clean_frames * self.plan.grid.h * self.plan.grid.w
    }

    fn guided(&self, cond: &Tensor, uncond: &Tensor) -> Result<Tensor> {
        let (clean, n) = (self.clean_rows(), cond.dim(0)?);
        if clean == 0 || clean == n || self.unconditional == Unconditional::Cached {
            return self.guidance.combine(cond, uncond);
        }
        let moving = |v: &Tensor| v.narrow(0, clean, n - clean);
        let guided = self.guidance.combine(&moving(cond)?, &moving(uncond)?)?;
        Ok(Tensor::cat(&[cond.narrow(0, 0, clean)?, guided], 0)?)
    }

    fn keep_clean(&self, x: &Tensor, next: Tensor) -> Result<Tensor> {
        let (clean, n) = (self.clean_rows(), next.dim(0)?);
        match clean {
            0 => Ok(next),
            _ if clean == n => Ok(x.clone()),
            _ => Ok(Tensor::cat(&[x.narrow(0, 0, clean)?, next.narrow(0, clean, n - clean)?], 0)?),
        }
    }
}
