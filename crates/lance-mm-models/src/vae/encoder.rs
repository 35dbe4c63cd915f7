//! From frames of patches to raw latents.

use candle_core::Tensor;
use lance_mm_tensor::{Conv, PixelNorm, Result, Weights};

use super::causal_cache::{CausalCache, CausalConv};
use super::config::VaeConfig;
use super::latent;
use super::middle::Middle;
use super::patch::PATCH;
use super::resample::Downsample;
use super::residual::Residual;
use super::shortcut::Average;
use super::{CAUSAL, POINT, SAME};
use crate::monitor::Monitor;

/// Per stage: width as a multiple of the first, whether it halves the sides, whether it halves the frames.
const STAGES: [(usize, bool, bool); 4] =
    [(1, true, false), (2, true, true), (4, true, true), (4, false, false)];
/// Residual blocks of a stage.
const BLOCKS: usize = 2;

#[derive(Clone)]
pub(super) struct Encoder {
    conv1: CausalConv,
    downsamples: Vec<Stage>,
    middle: Middle,
    head_norm: PixelNorm,
    head_conv: CausalConv,
    /// The top-level `conv1`: means and logarithms of variances.
    to_moments: Conv,
}

#[derive(Clone)]
struct Stage {
    blocks: Vec<Residual>,
    downsample: Option<Downsample>,
    shortcut: Average,
}

impl Encoder {
    pub(super) fn load(config: &VaeConfig, weights: &Weights) -> Result<Self> {
        let encoder = weights.pp("encoder");
        let d = config.encoder_width;
        let mut downsamples = Vec::with_capacity(STAGES.len());
        let mut width = d;
        for (i, (factor, in_space, in_time)) in STAGES.into_iter().enumerate() {
            let weights = encoder.pp("downsamples").pp(i).pp("downsamples");
            let n_out = factor * d;
            let block = |j: usize| Residual::load(&weights.pp(j), if j == 0 { width } else { n_out }, n_out);
            let downsample = || Downsample::load(&weights.pp(BLOCKS), n_out, in_time);
            downsamples.push(Stage {
                blocks: (0..BLOCKS).map(block).collect::<Result<_>>()?,
                downsample: in_space.then(downsample).transpose()?,
                shortcut: Average {
                    n_out,
                    frames: 1 + usize::from(in_time),
                    side: 1 + usize::from(in_space),
                },
            });
            width = n_out;
        }
        let (head, n_out) = (encoder.pp("head"), 2 * latent::CHANNELS);
        let conv1 = Conv::load(&encoder.pp("conv1"), "", (3 * PATCH * PATCH, d), &CAUSAL, SAME)?;
        let head_conv = Conv::load(&head.pp("layer_2"), "", (width, n_out), &CAUSAL, SAME)?;
        Ok(Self {
            conv1: CausalConv(conv1),
            downsamples,
            middle: Middle::load(&encoder.pp("middle"), width)?,
            head_norm: PixelNorm::load(&head.pp("layer_0"), width)?,
            head_conv: CausalConv(head_conv),
            to_moments: Conv::load(&weights.pp("conv1"), "", (n_out, n_out), &[1, 1, 1], POINT)?,
        })
    }

    /// The next frame of a clip, f32 `(H/2, W/2, 12)`, to raw moments `(H/16, W/16, 96)`: those of the first
    /// frame and of every fourth one after it. `cache` has [`n_causal`](Self::n_causal) values.
    pub(super) fn step(
        &self,
        x: &Tensor,
        cache: &mut [CausalCache],
        last: bool,
        monitor: &mut Monitor<'_>,
    ) -> Result<Option<Tensor>> {
        let (stages, rest) = cache.split_at_mut(STAGES.len());
        let [start, end] = rest else { panic!("one state for each stage, and two more") };
        start.begin(last);
        let mut x = self.conv1.forward(x, start)?;
        monitor.show(format_args!("encoder.conv1"), &x)?;
        for (i, (stage, cache)) in self.downsamples.iter().zip(stages).enumerate() {
            cache.begin(last);
            let Some(y) = stage.forward(&x, cache, monitor)? else { return Ok(None) };
            monitor.show(format_args!("encoder.downsamples.{i}"), &y)?;
            x = y;
        }
        end.begin(last);
        let x = self.middle.forward(&x, end, "encoder.middle", monitor)?;
        let x = self.head_conv.forward(&self.head_norm.forward_silu(&x)?, end)?;
        monitor.show(format_args!("encoder.head"), &x)?;
        let x = self.to_moments.forward(&x, &[])?;
        monitor.show(format_args!("conv1"), &x)?;
        Ok(Some(x))
    }

    /// States that [`step`](Self::step) wants.
    pub(super) fn n_causal() -> usize {
        STAGES.len() + 2
    }
}

impl Stage {
    fn forward(&self, x: &Tensor, cache: &mut CausalCache, monitor: &Monitor<'_>) -> Result<Option<Tensor>> {
        let shortcut = self.shortcut.forward(x, cache)?;
        let mut x = x.clone();
        for block in &self.blocks {
            monitor.check()?;
            x = block.forward(&x, cache)?;
        }
        let y = match &self.downsample {
            Some(downsample) => downsample.forward(&x, cache)?,
            None => Some(x),
        };
        // Both have a result for the same frames.
        y.zip(shortcut).map(|(y, shortcut)| Ok((y + shortcut)?)).transpose()
    }
}
