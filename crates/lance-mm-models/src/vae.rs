//! The VAE of Wan 2.2: pictures and videos to latents of 48 channels, a sixteenth of the size and a quarter of
//! the frames, and back.
//!
//! Reference: bytedance/Lance, `modeling/vae/wan/vae2_2.py`, classes `WanVAE_` and `Wan2_2_VAE`.
//!
//! Every convolution in time looks back only, so clips are run frame by frame: layers remember the frames that
//! they need again in [`CausalCache`], which gives the numbers of the whole clip at once. A clip's first frame, and
//! so every picture, has zeros before it; their share of the arithmetic, two thirds, is left out.
//!
//! It computes on the device it was loaded onto; what it gives back is where what it was given is.
//!
//! Start from [`Vae`]. The parts without state of their own are public to be compared one by one.

mod attention;
mod causal_cache;
mod config;
mod decoder;
mod encoder;
mod latent;
mod middle;
mod patch;
mod resample;
mod residual;
mod shortcut;

use candle_core::{DType, Device, Tensor};
use lance_mm_tensor::{
    Error, Result, StopFlag, Weights, Window, download, require_finite, upload, with_autorelease_pool,
};

pub use attention::FrameAttention;
pub use causal_cache::CausalCache;
pub use config::VaeConfig;
pub use patch::{patchify, unpatchify};
pub use resample::{Downsample, Upsample};
pub use shortcut::{Average, Repeat};

use crate::monitor::{Monitor, Probe};
use decoder::{Decoder, DecoderCache};
use encoder::Encoder;

/// Filters over three frames and three by three pixels.
const CAUSAL: [usize; 3] = [3, 3, 3];
/// A border of one pixel: results are of the frame's size.
const SAME: Window = Window { stride: 1, pad_before: 1, pad_after: 1, upsample: 1 };
/// Single pixels.
const POINT: Window = Window { stride: 1, pad_before: 0, pad_after: 0, upsample: 1 };

/// Pixels a latent is high and wide.
pub const SIDE: usize = 16;
/// Frames of a latent after the first, which is one frame.
pub const FRAMES: usize = 4;

/// The VAE.
#[derive(Clone)]
pub struct Vae {
    config: VaeConfig,
    encoder: Encoder,
    decoder: Decoder,
    budget: usize,
    device: Device,
}

/// Bytes that the last stages of [`decode`](Vae::decode) hold at once, unless told otherwise.
pub const BUDGET: usize = 1 << 30;

/// Distributions of a clip's latents: normal, f32 `(48, t, h, w)` each.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// Means, normalised: what the language model works on.
    pub mean: Tensor,
    /// Logarithms of the variances of raw latents. They are not normalised, and neither does the original
    /// divide by the scale when it samples.
    pub log_var: Tensor,
}

impl Posterior {
    /// `mean + noise · exp(log_var / 2)`, with `noise` standard normal and of the mean's shape.
    ///
    /// # Errors
    /// Noise of another shape; [`Error::NotFinite`].
    pub fn sample(&self, noise: &Tensor) -> Result<Tensor> {
        let latents = (&self.mean + (noise * (&self.log_var / 2.0)?.exp()?)?)?;
        require_finite("VAE: sampled latents", &latents)?;
        Ok(latents)
    }
}

impl Vae {
    /// Loads every tensor under `weights`: the file `vae.safetensors` of the published layout.
    ///
    /// # Errors
    /// All missing, misshapen or unknown tensors at once.
    pub fn load(config: &VaeConfig, weights: &Weights) -> Result<Self> {
        weights.load_all(&["encoder.", "decoder.", "conv1.", "conv2."], |weights| {
            Ok(Self {
                config: *config,
                encoder: Encoder::load(config, weights)?,
                decoder: Decoder::load(config, weights)?,
                budget: BUDGET,
                device: weights.device().clone(),
            })
        })
    }

    /// Configuration the network was built from.
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// The same, decoding in about so many bytes besides the weights: the last stages, whose frames are by far
    /// the largest, are run in slabs of rows that overlap by what their convolutions reach to. The numbers are
    /// the same to the bit; small slabs cost time, at most twice as much. What a video's convolutions remember
    /// between frames comes on top.
    #[must_use]
    pub fn with_budget(self, bytes: usize) -> Self {
        Self { budget: bytes, ..self }
    }

    /// Means of the latents, normalised, f32 `(48, t, H/16, W/16)`, of frames f32 `(3, T, H, W)` in `[-1, 1]`.
    ///
    /// The first frame makes one latent, each four after it another; up to three left over are ignored.
    ///
    /// # Errors
    /// No frames, sides that are no multiples of 16; [`Error::NotFinite`] for weights or frames with such values.
    pub fn encode(&self, frames: &Tensor) -> Result<Tensor> {
        Ok(self.posterior(frames)?.mean)
    }

    /// [`encode`](Self::encode) that `stop` ends between residual blocks.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); [`Error::Stopped`].
    pub fn encode_with_stop(&self, frames: &Tensor, stop: &StopFlag) -> Result<Tensor> {
        Ok(self.posterior_with_stop(frames, stop)?.mean)
    }

    /// As [`encode`](Self::encode), with the variances.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn posterior(&self, frames: &Tensor) -> Result<Posterior> {
        self.run_encoder(frames, &mut Monitor::default())
    }

    /// [`posterior`](Self::posterior) that `stop` ends between residual blocks.
    ///
    /// # Errors
    /// As [`encode`](Self::encode); [`Error::Stopped`].
    pub fn posterior_with_stop(&self, frames: &Tensor, stop: &StopFlag) -> Result<Posterior> {
        self.run_encoder(frames, &mut Monitor::until(Some(stop)))
    }

    /// As [`posterior`](Self::posterior), showing `encoder.conv1`, `encoder.downsamples.{0..3}`,
    /// `encoder.middle.{0..2}`, `encoder.head` and `conv1` of each frame, `(H, W, C)`, to `probe`.
    ///
    /// # Errors
    /// As [`encode`](Self::encode), and what the probe returns.
    pub fn posterior_probed(&self, frames: &Tensor, probe: &mut Probe<'_>) -> Result<Posterior> {
        self.run_encoder(frames, &mut Monitor::probed(probe))
    }

    fn run_encoder(&self, frames: &Tensor, monitor: &mut Monitor<'_>) -> Result<Posterior> {
        let whole = |n: usize| n > 0 && n.is_multiple_of(SIDE);
        let n = match *frames.dims() {
            [3, t, h, w] if t > 0 && whole(h) && whole(w) && frames.dtype() == DType::F32 => {
                (t - 1) / FRAMES * FRAMES + 1
            }
            _ => {
                let expected = format!("f32 (3, T, H, W), T above 0, H and W multiples of {SIDE}");
                let found = format!("{:?} {:?}", frames.dtype(), frames.dims());
                return Err(Error::input("frames", expected, found));
            }
        };
        let mut cache = vec![CausalCache::default(); Encoder::n_causal()];
        let mut moments = Vec::with_capacity(n / FRAMES + 1);
        for i in 0..n {
            moments.extend(with_autorelease_pool(|| {
                let x = patchify(&upload(&frames.narrow(1, i, 1)?.squeeze(1)?, &self.device)?)?;
                self.encoder.step(&x, &mut cache, i + 1 == n, monitor)
            })?);
        }
        // (t, h, w, 96) -> 2 · (48, t, h, w)
        let moments = Tensor::stack(&moments, 0)?;
        require_finite("VAE: encoded latents", &moments)?;
        let half = |i: usize| moments.narrow(3, i * latent::CHANNELS, latent::CHANNELS);
        let mean = latent::normalise(&half(0)?)?;
        let first = |x: &Tensor| x.permute((3, 0, 1, 2))?.contiguous()?.to_device(frames.device());
        Ok(Posterior { mean: first(&mean)?, log_var: first(&half(1)?)? })
    }

    /// Frames f32 `(3, 4·(t-1) + 1, 16·h, 16·w)` in `[-1, 1]` of normalised latents f32 `(48, t, h, w)`.
    ///
    /// # Errors
    /// Latents of another shape or type; [`Error::NotFinite`] for latents or weights with such values.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        self.run_decoder(latents, &mut Monitor::default())
    }

    /// [`decode`](Self::decode) that `stop` ends between residual blocks.
    ///
    /// # Errors
    /// As [`decode`](Self::decode); [`Error::Stopped`].
    pub fn decode_with_stop(&self, latents: &Tensor, stop: &StopFlag) -> Result<Tensor> {
        self.run_decoder(latents, &mut Monitor::until(Some(stop)))
    }

    /// As [`decode`](Self::decode), showing `latents` (raw), `conv2`, `decoder.conv1`, `decoder.middle.{0..2}`,
    /// `decoder.upsamples.{0..3}` and `decoder.head` of each frame, `(H, W, C)`, to `probe`, and `pixels`, the
    /// frame `(3, H, W)` before it is held to `[-1, 1]`. The last two `upsamples` are shown of frames that are
    /// not made in slabs.
    ///
    /// # Errors
    /// As [`decode`](Self::decode), and what the probe returns.
    pub fn decode_probed(&self, latents: &Tensor, probe: &mut Probe<'_>) -> Result<Tensor> {
        self.run_decoder(latents, &mut Monitor::probed(probe))
    }

    fn run_decoder(&self, latents: &Tensor, monitor: &mut Monitor<'_>) -> Result<Tensor> {
        let n = match *latents.dims() {
            [latent::CHANNELS, t, h, w] if t * h * w > 0 && latents.dtype() == DType::F32 => t,
            _ => {
                let expected = format!("f32 ({}, t, h, w), none of them 0", latent::CHANNELS);
                let found = format!("{:?} {:?}", latents.dtype(), latents.dims());
                return Err(Error::input("latents", expected, found));
            }
        };
        require_finite("VAE: latents to decode", latents)?;
        let raw = latent::denormalise(&latents.permute((1, 2, 3, 0))?.to_device(&self.device)?)?;
        let (mut memory, slab) = (DecoderCache::default(), self.decoder.slab(latents.dim(3)?, self.budget));
        let mut frames = Vec::with_capacity((n - 1) * FRAMES + 1);
        for i in 0..n {
            with_autorelease_pool(|| -> Result<()> {
                let mut patches = Vec::with_capacity(FRAMES);
                let x = raw.get(i)?;
                monitor.show(format_args!("latents"), &x)?;
                self.decoder.step(&x, &mut memory, (slab, i + 1 == n), monitor, &mut |x| {
                    patches.push(x.clone());
                    Ok(())
                })?;
                for x in &patches {
                    let x = unpatchify(x)?;
                    monitor.show(format_args!("pixels"), &x)?;
                    // Before they are held to [-1, 1], which makes -1 of NaN: a black image.
                    let x = download(&x, latents.device())?;
                    require_finite(format_args!("VAE: pixels of frame {}", frames.len()), &x)?;
                    frames.push(x.clamp(-1f32, 1f32)?);
                }
                Ok(())
            })?;
        }
        Ok(Tensor::stack(&frames, 1)?)
    }
}

#[cfg(test)]
mod tests;
