//! Attention of the pixels of one frame.

use candle_core::Tensor;
use lance_mm_tensor::{ActivationPrecision, Block, Conv, PixelNorm, Result, Weights, attention};

use super::POINT;

/// Every pixel of a frame sees every other one of it: one head, added to the input.
#[derive(Clone)]
pub struct FrameAttention {
    norm: PixelNorm,
    to_qkv: Conv,
    proj: Conv,
}

impl FrameAttention {
    /// A block of these layers: `to_qkv` makes `3·C` channels, queries first, then keys, then values.
    pub fn new(norm: PixelNorm, to_qkv: Conv, proj: Conv) -> Self {
        Self { norm, to_qkv, proj }
    }

    pub(super) fn load(weights: &Weights, width: usize) -> Result<Self> {
        Ok(Self::new(
            PixelNorm::load(&weights.pp("norm"), width)?,
            Conv::load(weights, "to_qkv_", (width, 3 * width), &[1, 1], POINT)?,
            Conv::load(weights, "proj_", (width, width), &[1, 1], POINT)?,
        ))
    }

    /// The frame f32 `(H, W, C)` to the same shape.
    ///
    /// # Errors
    /// A frame of another width.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (h, w, c) = x.dims3()?;
        let n = h * w;
        // (H, W, 3·C) -> 3 · (1, N, C)
        let qkv = self.to_qkv.forward(&self.norm.forward(x)?, &[])?.reshape((1, n, 3 * c))?;
        let [q, k, v] = [0, 1, 2].map(|i| qkv.narrow(2, i * c, c)?.contiguous());
        let y = attention(&q?, &k?, &v?, &[Block::full(0..n, 0..n)], ActivationPrecision::F32)?
            .reshape((h, w, c))?;
        Ok((x + self.proj.forward(&y, &[])?)?)
    }
}
