//! Latents as tokens of the language model, and tokens back as velocities.
//!
//! Reference: bytedance/Lance, `vae2llm`, `TimestepEmbedder`, `PositionEmbedding` and `llm2vae` of its
//! generation path.

use std::ops::Add as _;

use candle_core::{DType, Device, Tensor};
use lance_mm_tensor::{Error, Linear, Result, StopFlag, Weight, Weights, download, require_finite};

use crate::config::Config;
use crate::llm::{Cache, Llm};
use crate::monitor::Monitor;
use crate::sequence::{Grid, Sequence};

/// Values of a latent: channels of the VAE.
pub const CHANNELS: usize = 48;

/// Values of the sinusoid that the time embedder reads.
const SINUSOID: usize = 256;

/// Layers from latents to tokens of the GEN expert and back.
///
/// The token of latent x at time t and place i is `vae2llm(x) + time_embedder(t) + latent_pos_embed[i]`; the
/// velocity of a token is `llm2vae` of it after the final norm. All of this is f32, whatever type the language model's tokens
/// have: a latent goes through tens of steps.
#[derive(Clone)]
pub struct LatentLayers {
    vae2llm: Linear,
    proj_in: Linear,
    proj_out: Linear,
    llm2vae: Linear,
    /// `(T·S², D)`, left in the file.
    pos_embed: Weight,
    side: usize,
    device: Device,
}

/// Latents of a noise block at one moment of denoising.
#[derive(Clone, Copy)]
pub struct NoiseBlock<'a> {
    /// The latents, f32 `(N, 48)`.
    pub latents: &'a Tensor,
    /// Grid of the latents.
    pub grid: Grid,
    /// Time of each latent frame, in [0, 1].
    pub times: &'a [f32],
    /// The block as a sequence of its own, which begins where the cache ends.
    pub sequence: &'a Sequence,
}

impl LatentLayers {
    /// Loads the layers from `weights`: the file `model.safetensors` of the published layout.
    ///
    /// # Errors
    /// All missing or misshapen tensors at once; a position table that is not a whole number of frames.
    pub fn load(config: &Config, weights: &Weights) -> Result<Self> {
        let prefixes = ["vae_in_proj.", "time_embedder.", "llm2vae.", "latent_pos_embed."];
        weights.load_all(&prefixes, |weights| Self::read(config, weights))
    }

    fn read(config: &Config, weights: &Weights) -> Result<Self> {
        let (d, side) = (config.hidden_size, config.max_latent_size);
        let time = weights.pp("time_embedder");
        let positions = weights.pp("latent_pos_embed");
        let rows = positions.info("pos_embed").and_then(|t| t.shape.first().copied());
        let frame = side * side;
        // Without a table, what is asked for is one of a single frame.
        let rows = rows.filter(|rows| *rows > 0).unwrap_or(frame);
        if !rows.is_multiple_of(frame) {
            let what = format!("expected a multiple of {side}x{side} rows, found {rows}");
            positions.report("pos_embed", what)?;
        }
        Ok(Self {
            vae2llm: Linear::load_biased(&weights.pp("vae_in_proj").pp("vae2llm"), CHANNELS, d)?,
            proj_in: Linear::load_biased(&time.pp("proj_in"), SINUSOID, d)?,
            proj_out: Linear::load_biased(&time.pp("proj_out"), d, d)?,
            llm2vae: Linear::load_biased(&weights.pp("llm2vae"), d, CHANNELS)?,
            pos_embed: Weight::Dense(positions.matrix("pos_embed", &[rows, d])?),
            side,
            device: weights.device().clone(),
        })
    }

    /// Rows of the position table that the latents of a block take, in order of time, row, column. A column
    /// past the table's side goes on in the next line, as in the original: its widest presets need that.
    ///
    /// # Errors
    /// A block that reaches past the table: too many frames for this checkpoint.
    pub fn positions(&self, grid: Grid) -> Result<Vec<usize>> {
        let (side, rows) = (self.side, self.pos_embed.n_rows());
        let of = |i: usize| {
            let (f, r, c) = (i / (grid.h * grid.w), i / grid.w % grid.h, i % grid.w);
            (f * side + r) * side + c
        };
        let positions: Vec<usize> = (0..grid.count()).map(of).collect();
        match positions.iter().max() {
            Some(last) if *last >= rows => {
                let frames = rows / (side * side);
                let expected = format!(
                    "at most {frames} latent frames of {side}x{side}, which this checkpoint has positions for"
                );
                Err(Error::input("latent grid", expected, grid))
            }
            _ => Ok(positions),
        }
    }

    /// Embedding of time `t` that is added to every latent of it, f32 `(n, D)` for n times in [0, 1]. Clean latents have
    /// time 0.
    ///
    /// # Errors
    /// An error of candle.
    pub fn time_embedder(&self, times: &[f32]) -> Result<Tensor> {
        let values: Vec<f32> = times.iter().flat_map(|t| time_sinusoid(*t)).collect();
        let x = Tensor::from_vec(values, (times.len(), SINUSOID), &self.device)?;
        self.proj_out.forward(&self.proj_in.forward(&x)?.silu()?)
    }

    /// Input tokens f32 `(N, D)` of the latents f32 `(N, 48)` of a block, frame f at time `times[f]`, on the device the
    /// layers were loaded onto.
    ///
    /// # Errors
    /// Latents or times that do not match the grid; a block past the position table.
    pub fn embed(&self, latents: &Tensor, grid: Grid, times: &[f32]) -> Result<Tensor> {
        let n = grid.count();
        if latents.dims2().ok() != Some((n, CHANNELS)) || times.len() != grid.t {
            let expected = format!("[{n}, {CHANNELS}] and {} times", grid.t);
            return Err(Error::input("latents", expected, format!("{:?}, {}", latents.dims(), times.len())));
        }
        let d = self.pos_embed.n_cols();
        let mut places = vec![0.0; n * d];
        for (row, out) in self.positions(grid)?.into_iter().zip(places.chunks_exact_mut(d)) {
            self.pos_embed.read_row(row, out);
        }
        let places = Tensor::from_vec(places, (grid.t, grid.h * grid.w, d), &self.device)?;
        // (t, D) -> (t, 1, D): one time for all latents of a frame.
        let moments = self.time_embedder(times)?.unsqueeze(1)?;
        let x = self.vae2llm.forward(&latents.to_device(&self.device)?)?.reshape(places.shape())?;
        Ok(x.broadcast_add(&moments)?.add(&places)?.reshape((n, d))?)
    }

    /// Velocities f32 `(N, 48)` of a noise block, which attends to the cache and itself, on the device of its
    /// latents. The cache is left as it was.
    ///
    /// # Errors
    /// As [`embed`](Self::embed) and [`Llm::forward`]; a sequence that is not one block.
    pub fn velocity(&self, llm: &Llm, block: &NoiseBlock<'_>, cache: &mut Cache) -> Result<Tensor> {
        self.velocity_until(llm, block, cache, None)
    }

    /// [`velocity`](Self::velocity) that `stop` ends between layers.
    ///
    /// # Errors
    /// As [`velocity`](Self::velocity); [`Error::Stopped`].
    pub fn velocity_with_stop(
        &self,
        llm: &Llm,
        block: &NoiseBlock<'_>,
        cache: &mut Cache,
        stop: &StopFlag,
    ) -> Result<Tensor> {
        self.velocity_until(llm, block, cache, Some(stop))
    }

    fn velocity_until(
        &self,
        llm: &Llm,
        block: &NoiseBlock<'_>,
        cache: &mut Cache,
        stop: Option<&StopFlag>,
    ) -> Result<Tensor> {
        let NoiseBlock { latents, grid, times, sequence } = *block;
        let x = llm.embed(sequence, &[self.embed(latents, grid, times)?])?;
        let before = cache.len();
        let hidden = llm.run(&x, sequence, cache, &mut Monitor::until(stop));
        cache.truncate(before)?;
        let normed = llm.norm(&hidden?, sequence)?;
        let rows = &sequence.visual()[0];
        let velocity = self.velocity_of(&normed.narrow(0, rows.start, rows.len())?)?;
        let velocity = download(&velocity, latents.device())?;
        require_finite("velocity of the latents", &velocity)?;
        Ok(velocity)
    }

    /// Velocities f32 `(N, 48)` of the hidden states `(N, D)` of latents after the final norm.
    ///
    /// # Errors
    /// Hidden states of another width.
    pub fn velocity_of(&self, normed: &Tensor) -> Result<Tensor> {
        self.llm2vae.forward(&normed.contiguous()?.to_dtype(DType::F32)?)
    }
}

/// Input of the time embedder: cosines, then sines, of t·10000^(−j/128).
pub fn time_sinusoid(t: f32) -> [f32; SINUSOID] {
    let half = SINUSOID / 2;
    let angle = |j: usize| t * (-(1e4_f64.ln()) * j as f64 / half as f64).exp() as f32;
    std::array::from_fn(|i| if i < half { angle(i).cos() } else { angle(i - half).sin() })
}

/// A row of the table of latent positions as the original computes it, f32 (`width`): sines and cosines of
/// the frame in the first third of the channels, of the row and of the column in the others. `side` is
/// `max_latent_size`. Checkpoints store it rounded to bf16, and what is stored is what is used.
pub fn position_row(index: usize, side: usize, width: usize) -> Vec<f32> {
    let third = width / 3 / 2 * 2;
    let (frame, row, column) = (index / (side * side), index / side % side, index % side);
    let sinusoid = |position: usize, width: usize| {
        let half = width / 2;
        let angle = move |i: usize| position as f64 * 1e4_f64.powf(-(i as f64) / half as f64);
        (0..half).map(move |i| angle(i).sin()).chain((0..half).map(move |i| angle(i).cos()))
    };
    let parts = [(frame, third), (row, third), (column, width - 2 * third)];
    parts.into_iter().flat_map(|(position, width)| sinusoid(position, width)).map(|v| v as f32).collect()
}

#[cfg(test)]
mod tests;
