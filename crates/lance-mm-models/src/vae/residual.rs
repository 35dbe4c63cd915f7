//! The residual block.

use candle_core::Tensor;
use lance_mm_tensor::{Conv, PixelNorm, Result, Weights};

use super::causal_cache::{CausalCache, CausalConv};
use super::{CAUSAL, POINT, SAME};

/// Two convolutions, each after a norm and SiLU, added to the input or, where the width changes, to a
/// convolution of single pixels of it.
#[derive(Clone)]
pub(super) struct Residual {
    norms: [PixelNorm; 2],
    convs: [CausalConv; 2],
    shortcut: Option<Conv>,
}

impl Residual {
    pub(super) fn load(weights: &Weights, n_in: usize, n_out: usize) -> Result<Self> {
        let residual = weights.pp("residual");
        let conv = |index: usize, n_in: usize| {
            let weights = residual.pp(format_args!("layer_{index}"));
            Conv::load(&weights, "", (n_in, n_out), &CAUSAL, SAME).map(CausalConv)
        };
        let shortcut = || Conv::load(&weights.pp("shortcut"), "", (n_in, n_out), &[1, 1, 1], POINT);
        Ok(Self {
            norms: [
                PixelNorm::load(&residual.pp("layer_0"), n_in)?,
                PixelNorm::load(&residual.pp("layer_3"), n_out)?,
            ],
            convs: [conv(2, n_in)?, conv(6, n_out)?],
            shortcut: (n_in != n_out).then(shortcut).transpose()?,
        })
    }

    /// The frame f32 `(H, W, C)` to f32 `(H, W, C')`.
    pub(super) fn forward(&self, x: &Tensor, cache: &mut CausalCache) -> Result<Tensor> {
        let y = self.convs[0].forward(&self.norms[0].forward_silu(x)?, cache)?;
        let y = self.norms[1].forward_silu(&y)?;
        match &self.shortcut {
            None => self.convs[1].forward_residual(x, &y, cache),
            Some(shortcut) => self.convs[1].forward_residual(&shortcut.forward(x, &[])?, &y, cache),
        }
    }
}
