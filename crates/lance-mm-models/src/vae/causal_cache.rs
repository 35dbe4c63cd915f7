//! Frames that convolutions in time keep between the frames of a clip.

use candle_core::Tensor;
use lance_mm_tensor::{Conv, Result};

/// The frames that layers need again later. Layers claim their place in the order in which they run, which is
/// the same for every frame.
#[derive(Clone, Default)]
pub struct CausalCache {
    layers: Vec<PastFrames>,
    next: usize,
    last: bool,
}

/// Frames that one layer keeps.
#[derive(Clone, Default)]
pub(super) struct PastFrames {
    /// Oldest first.
    pub(super) frames: Vec<Tensor>,
    /// Whether the layer has seen the first frame of the clip.
    pub(super) started: bool,
    last: bool,
}

impl CausalCache {
    /// Begins the next frame of the clip. Layers keep nothing of the `last` one.
    pub fn begin(&mut self, last: bool) {
        (self.next, self.last) = (0, last);
    }

    /// Frames of the layer that runs now.
    pub(super) fn claim(&mut self) -> &mut PastFrames {
        if self.next == self.layers.len() {
            self.layers.push(PastFrames::default());
        }
        let past = &mut self.layers[self.next];
        (self.next, past.last) = (self.next + 1, self.last);
        past
    }
}

impl PastFrames {
    /// Remembers a frame and forgets all but the `keep` newest; all, if the clip ends.
    pub(super) fn push(&mut self, x: &Tensor, keep: usize) {
        self.frames.push(x.clone());
        let keep = if self.last { 0 } else { keep };
        self.frames.drain(..self.frames.len().saturating_sub(keep));
    }
}

/// A convolution over its own frame and those before it, back to the first of the clip; zeros before that.
#[derive(Clone)]
pub(super) struct CausalConv(pub(super) Conv);

impl CausalConv {
    /// The frame f32 `(H, W, C)` to the result's frame.
    pub(super) fn forward(&self, x: &Tensor, cache: &mut CausalCache) -> Result<Tensor> {
        self.with_past(x, cache, |past| self.0.forward(x, past))
    }

    /// `start` plus the result's frame.
    pub(super) fn forward_residual(
        &self,
        start: &Tensor,
        x: &Tensor,
        cache: &mut CausalCache,
    ) -> Result<Tensor> {
        self.with_past(x, cache, |past| self.0.forward_residual(start, x, past))
    }

    /// Runs on the frames before `x`, then remembers it.
    fn with_past(
        &self,
        x: &Tensor,
        cache: &mut CausalCache,
        run: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let past = cache.claim();
        let y = run(&past.frames)?;
        past.push(x, self.0.taps() - 1);
        Ok(y)
    }
}
