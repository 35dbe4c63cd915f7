//! From raw latents to frames of patches.

use candle_core::Tensor;
use lance_mm_tensor::{Conv, PixelNorm, Result, Weights};

use super::causal_cache::{CausalCache, CausalConv};
use super::config::VaeConfig;
use super::latent;
use super::middle::Middle;
use super::patch::PATCH;
use super::resample::Upsample;
use super::residual::Residual;
use super::shortcut::Repeat;
use super::{CAUSAL, POINT, SAME};
use crate::monitor::Monitor;

/// Per stage: width as a multiple of the last, whether it doubles the sides, whether it doubles the frames.
const STAGES: [(usize, bool, bool); 4] =
    [(4, true, true), (4, true, true), (2, true, false), (1, false, false)];
/// Residual blocks of a stage.
const BLOCKS: usize = 3;
/// The stage from whose blocks on frames are made in slabs: what follows it is largest.
const SLABBED: usize = 2;
/// Rows above and below a slab, before they are doubled, that its convolutions reach to: one of the doubled
/// frame for each of the seven after the doubling, and one for that.
const HALO: usize = 4;
/// Frames of the slabbed stage's channels that are there at once: of the doubled size.
const AT_ONCE: usize = 3;

#[derive(Clone)]
pub(super) struct Decoder {
    /// The top-level `conv2`.
    from_latents: Conv,
    conv1: CausalConv,
    middle: Middle,
    upsamples: Vec<Stage>,
    head_norm: PixelNorm,
    head_conv: CausalConv,
    width: usize,
}

/// Frames that the decoder keeps between the latents of a clip.
#[derive(Default)]
pub(super) struct DecoderCache {
    start: CausalCache,
    stages: [CausalCache; SLABBED + 1],
    /// Of the last stage and the head, for each slab.
    slabs: Vec<[CausalCache; 2]>,
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
            width: d,
        })
    }

    /// Rows of the slabbed stage that are worked on at once, of frames of latents `w` wide, so that what follows
    /// holds about `budget` bytes.
    pub(super) fn slab(&self, w: usize, budget: usize) -> usize {
        let doubled = 8 * w;
        let row = 2 * doubled * STAGES[SLABBED].0 * self.width * AT_ONCE * size_of::<f32>();
        (budget / row.max(1)).max(2 * HALO)
    }

    /// The next raw latent of a clip, f32 `(h, w, 48)`, to frames of patches `(8·h, 8·w, 12)`, one for the
    /// first latent and four for every other, given to `sink` in order. `slab` is how many rows of the third
    /// stage are worked on at once, the same for all latents of a clip; it changes no number.
    ///
    /// Each frame goes through the rest of the network before the next is made, so memory is that of one.
    pub(super) fn step(
        &self,
        x: &Tensor,
        memory: &mut DecoderCache,
        (slab, last): (usize, bool),
        monitor: &mut Monitor<'_>,
        sink: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let start = &mut memory.start;
        start.begin(last);
        let x = self.from_latents.forward(x, &[])?;
        monitor.show(format_args!("conv2"), &x)?;
        let x = self.conv1.forward(&x, start)?;
        monitor.show(format_args!("decoder.conv1"), &x)?;
        let x = self.middle.forward(&x, start, "decoder.middle", monitor)?;
        let DecoderCache { stages, slabs, .. } = memory;
        self.stage(
            0,
            x,
            stages,
            &mut |x, own, last, monitor| {
                let x = self.slabs(x, own, slabs, (slab, last), monitor)?;
                monitor.show(format_args!("decoder.head"), &x)?;
                sink(&x)
            },
            last,
            monitor,
        )
    }

    /// Runs a frame through stage `index` and each result through what follows; `finish` takes what comes to
    /// the slabbed stage.
    fn stage(
        &self,
        index: usize,
        x: Tensor,
        cache: &mut [CausalCache],
        finish: &mut Finish<'_>,
        last: bool,
        monitor: &mut Monitor<'_>,
    ) -> Result<()> {
        let (own, rest) = cache.split_first_mut().expect("one state for each stage");
        own.begin(last);
        if index == SLABBED {
            return finish(x, own, last, monitor);
        }
        let frames = self.upsamples[index].forward(x, own, monitor)?;
        let n = frames.len();
        for (i, x) in frames.into_iter().enumerate() {
            monitor.show(format_args!("decoder.upsamples.{index}"), &x)?;
            self.stage(index + 1, x, rest, finish, last && i + 1 == n, monitor)?;
        }
        Ok(())
    }

    /// Runs a frame through the blocks of the slabbed stage, and slabs of it through everything else.
    fn slabs(
        &self,
        x: Tensor,
        own: &mut CausalCache,
        memory: &mut Vec<[CausalCache; 2]>,
        (slab, last): (usize, bool),
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor> {
        let stage = &self.upsamples[SLABBED];
        let y = stage.blocks(x.clone(), own, monitor)?;
        let rows = y.dim(0)?;
        memory.resize(rows.div_ceil(slab), Default::default());
        let mut parts = Vec::with_capacity(memory.len());
        for (i, cache) in memory.iter_mut().enumerate() {
            let (start, end) = (i * slab, rows.min((i + 1) * slab));
            let (above, below) = (start.min(HALO), (rows - end).min(HALO));
            let part = |x: &Tensor| x.narrow(0, start - above, above + end - start + below);
            let frames = stage.upsampled(&part(&y)?, &part(&x)?, own)?;
            let [z] = frames.try_into().expect("the stage doubles no frames");
            cache.iter_mut().for_each(|cache| cache.begin(last));
            let z = self.rest(z, cache, rows <= slab, monitor)?;
            parts.push(z.narrow(0, 2 * above, 2 * (end - start))?);
        }
        Ok(Tensor::cat(&parts, 0)?)
    }

    /// The last stage and the head. Intermediates are shown if they are of a `whole` frame.
    fn rest(
        &self,
        x: Tensor,
        [cache, head]: &mut [CausalCache; 2],
        whole: bool,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor> {
        if whole {
            monitor.show(format_args!("decoder.upsamples.{SLABBED}"), &x)?;
        }
        let x = self.upsamples[SLABBED + 1].blocks(x, cache, monitor)?;
        if whole {
            monitor.show(format_args!("decoder.upsamples.{}", SLABBED + 1), &x)?;
        }
        self.head_conv.forward(&self.head_norm.forward_silu(&x)?, head)
    }
}

/// Takes a frame that comes to the slabbed stage, with the stage's cache, and whether it is the clip's last.
type Finish<'a> = dyn FnMut(Tensor, &mut CausalCache, bool, &mut Monitor<'_>) -> Result<()> + 'a;

impl Stage {
    fn forward(&self, x: Tensor, cache: &mut CausalCache, monitor: &Monitor<'_>) -> Result<Vec<Tensor>> {
        let y = self.blocks(x.clone(), cache, monitor)?;
        self.upsampled(&y, &x, cache)
    }

    fn blocks(&self, mut x: Tensor, cache: &mut CausalCache, monitor: &Monitor<'_>) -> Result<Tensor> {
        for block in &self.blocks {
            monitor.check()?;
            x = block.forward(&x, cache)?;
        }
        Ok(x)
    }

    /// The result `y` of the blocks at twice the size, with copies of their input `x`.
    fn upsampled(&self, y: &Tensor, x: &Tensor, cache: &mut CausalCache) -> Result<Vec<Tensor>> {
        let Some((upsample, repeat)) = &self.upsample else { return Ok(vec![y.clone()]) };
        let copies = repeat.forward(x, cache)?;
        upsample.forward_residual(&copies, y, cache)
    }
}
