//! The blocks at the smallest size, the same in the encoder and the decoder.

use candle_core::Tensor;
use lance_mm_tensor::{Result, Weights};

use super::attention::FrameAttention;
use super::causal_cache::CausalCache;
use super::residual::Residual;
use crate::monitor::Monitor;

#[derive(Clone)]
pub(super) struct Middle {
    first: Residual,
    attention: FrameAttention,
    second: Residual,
}

impl Middle {
    pub(super) fn load(weights: &Weights, width: usize) -> Result<Self> {
        Ok(Self {
            first: Residual::load(&weights.pp(0), width, width)?,
            attention: FrameAttention::load(&weights.pp(1), width)?,
            second: Residual::load(&weights.pp(2), width, width)?,
        })
    }

    /// The frame f32 `(H, W, C)` to the same shape.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        cache: &mut CausalCache,
        name: &str,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor> {
        monitor.check()?;
        let x = self.first.forward(x, cache)?;
        monitor.show(format_args!("{name}.0"), &x)?;
        monitor.check()?;
        let x = self.attention.forward(&x)?;
        monitor.show(format_args!("{name}.1"), &x)?;
        monitor.check()?;
        let x = self.second.forward(&x, cache)?;
        monitor.show(format_args!("{name}.2"), &x)?;
        Ok(x)
    }
}
