//! What convolutions in time remember between the frames of a clip.

use candle_core::Tensor;
use lance_mm_tensor::{Conv, Result};

/// The frames that layers need again later. Layers claim their place in the order in which they run, which is
/// the same for every frame.
#[derive(Clone, Default)]
pub struct Tails {
    tails: Vec<Tail>,
    next: usize,
    last: bool,
}

/// What one layer remembers.
#[derive(Clone, Default)]
pub(super) struct Tail {
    /// Oldest first.
    pub(super) frames: Vec<Tensor>,
    /// Whether the layer has seen the first frame of the clip.
    pub(super) started: bool,
    last: bool,
}

impl Tails {
    /// Begins the next frame of the clip. What layers remember of the `last` one is nothing.
    pub fn begin(&mut self, last: bool) {
        (self.next, self.last) = (0, last);
    }

    /// The tail of the layer that runs now.
    pub(super) fn claim(&mut self) -> &mut Tail {
        if self.next == self.tails.len() {
            self.tails.push(Tail::default());
        }
        let tail = &mut self.tails[self.next];
        (self.next, tail.last) = (self.next + 1, self.last);
        tail
    }
}

impl Tail {
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
    pub(super) fn forward(&self, x: &Tensor, tails: &mut Tails) -> Result<Tensor> {
        self.with_past(x, tails, |past| self.0.forward(x, past))
    }

    /// `start` plus the result's frame.
    pub(super) fn forward_residual(&self, start: &Tensor, x: &Tensor, tails: &mut Tails) -> Result<Tensor> {
        self.with_past(x, tails, |past| self.0.forward_residual(start, x, past))
    }

    /// Runs on the frames before `x`, then remembers it.
    fn with_past(
        &self,
        x: &Tensor,
        tails: &mut Tails,
        run: impl FnOnce(&[Tensor]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let tail = tails.claim();
        let y = run(&tail.frames)?;
        tail.push(x, self.0.taps() - 1);
        Ok(y)
    }
}
