//! From raw latents to frames of patches.

use candle_core::Tensor;
use lance_mm_tensor::{Conv, PixelNorm, Result, Weights};

use super::config::VaeConfig;
use super::latent;
use super::middle::Middle;
use super::patch::PATCH;
use super::resample::Upsample;
use super::residual::Residual;
use super::shortcut::Repeat;
use super::tails::{CausalConv, Tails};
use super::{CAUSAL, POINT, SAME};
use crate::Probe;

/// Per stage: width as a multiple of the last, whether it doubles the sides, whether it doubles the frames.
const STAGES: [(usize, bool, bool); 4] =
    [(4, true, true), (4, true, true), (2, true, false), (1, false, false)];
/// Residual blocks of a stage.
const BLOCKS: usize = 3;

#[derive(Clone)]
pub(super) struct Decoder {
    /// The top-level `conv2`.
    from_latents: Conv,
    conv1: CausalConv,
    middle: Middle,
    upsamples: Vec<Stage>,
    head_norm: PixelNorm,
    head_conv: CausalConv,
}

#[derive(Clone)]
struct Stage {
    blocks: Vec<Residual>,
    upsample: Option<(Upsample, Repeat)>,
}

impl Decoder {
    pub(super) fn load(config: &VaeConfig, weights: &Weights) -> Result<Self> {
        let decoder = weights.pp("decoder");
        let (d, n_in) = (config.decoder_width, latent::CHANNELS);
        let first = STAGES[0].0 * d;
        let mut upsamples = Vec::with_capacity(STAGES.len());
        let mut width = first;
        for (i, (factor, in_space, in_time)) in STAGES.into_iter().enumerate() {
            let weights = decoder.pp("upsamples").pp(i).pp("upsamples");
            let n_out = factor * d;
            let block = |j: usize| Residual::load(&weights.pp(j), if j == 0 { width } else { n_out }, n_out);
            let upsample = || -> Result<_> {
                let repeat = Repeat { n_out, frames: 1 + usize::from(in_time), side: 2 };
                Ok((Upsample::load(&weights.pp(BLOCKS), n_out, in_time)?, repeat))
            };
            upsamples.push(Stage {
                blocks: (0..BLOCKS).map(block).collect::<Result<_>>()?,
                upsample: in_space.then(upsample).transpose()?,
            });
            width = n_out;
        }
        let head = decoder.pp("head");
        let conv1 = Conv::load(&decoder.pp("conv1"), "", (n_in, first), &CAUSAL, SAME)?;
        let n_out = 3 * PATCH * PATCH;
        let head_conv = Conv::load(&head.pp("layer_2"), "", (width, n_out), &CAUSAL, SAME)?;
        Ok(Self {
            from_latents: Conv::load(&weights.pp("conv2"), "", (n_in, n_in), &[1, 1, 1], POINT)?,
            conv1: CausalConv(conv1),
            middle: Middle::load(&decoder.pp("middle"), first)?,
            upsamples,
            head_norm: PixelNorm::load(&head.pp("layer_0"), width)?,
            head_conv: CausalConv(head_conv),
        })
    }

    /// The next raw latent of a clip, f32 `(h, w, 48)`, to frames of patches `(8·h, 8·w, 12)`, one for the
    /// first latent and four for every other, given to `sink` in order. `tails` has
    /// [`n_tails`](Self::n_tails) values.
    ///
    /// Each frame goes through the rest of the network before the next is made, so memory is that of one.
    pub(super) fn step(
        &self,
        x: &Tensor,
        tails: &mut [Tails],
        last: bool,
        probe: &mut Probe<'_>,
        sink: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let [start, stages @ ..] = tails else { panic!("one state for each stage, and two more") };
        start.begin(last);
        let x = self.from_latents.forward(x, &[])?;
        probe(format_args!("conv2"), &x)?;
        let x = self.conv1.forward(&x, start)?;
        probe(format_args!("decoder.conv1"), &x)?;
        let x = self.middle.forward(&x, start, "decoder.middle", probe)?;
        self.stage(0, x, stages, last, probe, sink)
    }

    /// Runs a frame through stage `index` and each result through what follows.
    fn stage(
        &self,
        index: usize,
        x: Tensor,
        tails: &mut [Tails],
        last: bool,
        probe: &mut Probe<'_>,
        sink: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let (own, rest) = tails.split_first_mut().expect("one state for each stage, and one for the head");
        own.begin(last);
        let Some(stage) = self.upsamples.get(index) else {
            let x = self.head_conv.forward(&self.head_norm.forward_silu(&x)?, own)?;
            probe(format_args!("decoder.head"), &x)?;
            return sink(&x);
        };
        let frames = stage.forward(x, own)?;
        let n = frames.len();
        for (i, x) in frames.into_iter().enumerate() {
            probe(format_args!("decoder.upsamples.{index}"), &x)?;
            self.stage(index + 1, x, rest, last && i + 1 == n, probe, sink)?;
        }
        Ok(())
    }

    /// States that [`step`](Self::step) wants.
    pub(super) fn n_tails() -> usize {
        STAGES.len() + 2
    }
}

impl Stage {
    fn forward(&self, x: Tensor, tails: &mut Tails) -> Result<Vec<Tensor>> {
        let shortcut = match &self.upsample {
            Some((_, repeat)) => Some(repeat.forward(&x, tails)?),
            None => None,
        };
        let mut x = x;
        for block in &self.blocks {
            x = block.forward(&x, tails)?;
        }
        let (Some((upsample, _)), Some(shortcut)) = (&self.upsample, shortcut) else { return Ok(vec![x]) };
        let frames = upsample.forward(&x, tails)?;
        frames.into_iter().zip(shortcut).map(|(x, shortcut)| Ok((x + shortcut)?)).collect()
    }
}
