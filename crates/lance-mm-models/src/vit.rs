//! The vision transformer of Qwen2.5-VL: patches of pictures to rows for the language model.
//!
//! Reference: bytedance/Lance, `modeling_qwen2_5_vl.py`, class `Qwen2_5_VisionTransformerPretrainedModel`.

mod block;
mod window;

use candle_core::{DType, Device, Tensor};
use lance_mm_tensor::{
    DenseWeight, Error, Linear, Result, RmsNorm, StopFlag, Weights, hidden_dtype, in_thread_pool,
    require_finite, upload,
};

use crate::config::VitConfig;
use crate::monitor::{Monitor, Probe};
use crate::sequence::Grid;
use block::VitBlock;
pub use window::VitLayout;

/// Norms of the vision transformer have this fixed.
const EPS: f32 = 1e-6;
/// Patches run at once; longer videos go in runs of frame pairs, which never see each other here.
const MAX_PATCHES: usize = 16 * 1024;

/// The vision transformer.
#[derive(Clone)]
pub struct Vit {
    config: VitConfig,
    patch_embed: Linear,
    blocks: Vec<VitBlock>,
    ln_q: RmsNorm,
    mlp_0: Linear,
    mlp_2: Linear,
    device: Device,
    /// The type of rows between operations.
    rows: DType,
}

impl Vit {
    /// Loads every tensor under `weights`: the file `vit.safetensors` of the published layout.
    ///
    /// # Errors
    /// All missing, misshapen or unknown tensors at once.
    pub fn load(config: &VitConfig, weights: &Weights) -> Result<Self> {
        weights.load_all(&["patch_embed.", "blocks.", "merger."], |weights| Self::read(config, weights))
    }

    fn read(config: &VitConfig, weights: &Weights) -> Result<Self> {
        let d = config.hidden_size;
        let merged = d * config.spatial_merge_size * config.spatial_merge_size;
        let blocks = weights.pp("blocks");
        let merger = weights.pp("merger");
        Ok(Self {
            patch_embed: patch_embed(config, &weights.pp("patch_embed").pp("proj"))?,
            blocks: (0..config.depth)
                .map(|i| VitBlock::load(config, &blocks.pp(i)))
                .collect::<Result<_>>()?,
            ln_q: RmsNorm::load(&merger.pp("ln_q"), d, EPS)?,
            mlp_0: Linear::load_biased(&merger.pp("mlp").pp(0), merged, merged)?,
            mlp_2: Linear::load_biased(&merger.pp("mlp").pp(2), merged, config.out_hidden_size)?,
            device: weights.device().clone(),
            rows: hidden_dtype(weights.activation_precision(), weights.device()),
            config: config.clone(),
        })
    }

    /// Configuration the network was built from.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Linear layers that run on every patch.
    pub(crate) fn patch_linears(&self) -> impl Iterator<Item = &Linear> {
        std::iter::once(&self.patch_embed).chain(self.blocks.iter().flat_map(VitBlock::linears))
    }

    /// Linear layers that run on every merge group.
    pub(crate) fn group_linears(&self) -> [&Linear; 2] {
        [&self.mlp_0, &self.mlp_2]
    }

    /// `patches` f32 `(N, 1176)` in merge-group order, one grid of patches a picture or video, to f32
    /// `(N/4, out_hidden_size)` in the same order, on the device the network was loaded onto.
    ///
    /// # Errors
    /// Patches of another width or number than the grids say, odd or empty grids.
    pub fn forward(&self, patches: &Tensor, grids: &[Grid]) -> Result<Tensor> {
        self.forward_until(patches, grids, None)
    }

    /// [`forward`](Self::forward) that `stop` ends between blocks.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Stopped`].
    pub fn forward_with_stop(&self, patches: &Tensor, grids: &[Grid], stop: &StopFlag) -> Result<Tensor> {
        self.forward_until(patches, grids, Some(stop))
    }

    fn forward_until(&self, patches: &Tensor, grids: &[Grid], stop: Option<&StopFlag>) -> Result<Tensor> {
        self.check(patches, grids)?;
        let mut parts = Vec::new();
        let mut row = 0;
        for run in runs(grids) {
            let n = run.iter().map(Grid::count).sum();
            let patches = patches.narrow(0, row, n)?;
            parts.push(in_thread_pool(|| self.run(&patches, &run, &mut Monitor::until(stop)))?);
            row += n;
        }
        let features = Tensor::cat(&parts, 0)?;
        require_finite("vision encoder: features", &features)?;
        Ok(features)
    }

    /// As [`forward`](Self::forward), in one run, showing `patch_embed`, `blocks.{i}.norm1`,
    /// `blocks.{i}.attn`, `blocks.{i}.mlp`, `blocks.{i}` and `merger` to `probe`. All but the first are in
    /// window order ([`VitLayout::window_index`]), and of the type that [`hidden_dtype`] says of the weights.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and what the probe returns.
    pub fn forward_probed(&self, patches: &Tensor, grids: &[Grid], probe: &mut Probe<'_>) -> Result<Tensor> {
        self.check(patches, grids)?;
        self.run(patches, grids, &mut Monitor::probed(probe))
    }

    fn run(&self, patches: &Tensor, grids: &[Grid], monitor: &mut Monitor<'_>) -> Result<Tensor> {
        monitor.check()?;
        let layout = VitLayout::new(&self.config, grids);
        let device = &self.device;
        let x = self.patch_embed.forward(&upload(patches, device)?)?.to_dtype(self.rows)?;
        monitor.show(format_args!("patch_embed"), &x)?;
        let n = x.dim(0)?;
        let unit = self.config.spatial_merge_size * self.config.spatial_merge_size;
        let d = self.config.hidden_size;
        let order = Tensor::new(layout.window_index.as_slice(), device)?;
        // Groups of four patches move together: (N, D) -> (N/4, 4·D) -> (N, D).
        let mut x = x.reshape((n / unit, unit * d))?.index_select(&order, 0)?.reshape((n, d))?;
        let table = layout.rotary_table(&self.config, device)?;
        let (windows, frames) = (layout.windows(), layout.frames());
        for (i, block) in self.blocks.iter().enumerate() {
            monitor.check()?;
            let full = self.config.fullatt_block_indexes.contains(&i);
            x = block.forward(&x, &table, if full { &frames } else { &windows }, i, monitor)?;
        }
        let groups = self.ln_q.forward(&x)?.reshape((n / unit, unit * d))?;
        let y = self.mlp_2.forward(&self.mlp_0.forward(&groups)?.gelu_erf()?)?;
        monitor.show(format_args!("merger"), &y)?;
        let back = Tensor::new(layout.inverse_index().as_slice(), device)?;
        Ok(y.index_select(&back, 0)?.to_dtype(DType::F32)?)
    }

    fn check(&self, patches: &Tensor, grids: &[Grid]) -> Result<()> {
        let m = self.config.spatial_merge_size;
        for grid in grids {
            if grid.count() == 0 || !grid.h.is_multiple_of(m) || !grid.w.is_multiple_of(m) {
                return Err(Error::input(
                    "patch grid",
                    format!("t, h, w above 0, h and w multiples of {m}"),
                    grid,
                ));
            }
        }
        let expected = (grids.iter().map(Grid::count).sum::<usize>(), self.config.patch_width());
        if grids.is_empty() || patches.dims2().ok() != Some(expected) {
            return Err(Error::input(
                "patches",
                format!("{expected:?} for the grids"),
                format!("{:?}", patches.dims()),
            ));
        }
        Ok(())
    }
}

/// Grids cut so that no run holds more than [`MAX_PATCHES`], if a frame pair allows.
fn runs(grids: &[Grid]) -> Vec<Vec<Grid>> {
    let mut runs: Vec<Vec<Grid>> = Vec::new();
    let mut free = 0;
    for grid in grids {
        let pair = grid.h * grid.w;
        let mut left = grid.t;
        while left > 0 {
            if runs.is_empty() || free < pair {
                runs.push(Vec::new());
                free = MAX_PATCHES;
            }
            let t = (free / pair).clamp(1, left);
            if let Some(run) = runs.last_mut() {
                run.push(Grid { t, ..*grid });
            }
            free = free.saturating_sub(t * pair);
            left -= t;
        }
    }
    runs
}

/// The patch embedding, a plain matrix product over a patch's values. Files keep the convolution's shape
/// `(out, channel, frame, row, column)`; ones written back by mlx-vlm have the channel last.
fn patch_embed(config: &VitConfig, weights: &Weights) -> Result<Linear> {
    let (c, t, p) = (config.in_channels, config.temporal_patch_size, config.patch_size);
    let (rows, cols) = (config.hidden_size, config.patch_width());
    let channels_last = [rows, t, p, p, c];
    if weights.info("weight").is_none_or(|info| info.shape != channels_last) {
        let weight = weights.matrix("weight", &[rows, c, t, p, p])?;
        return Linear::from(weight).to_device(weights.device());
    }
    let stored = weights.matrix("weight", &channels_last)?;
    if stored.n_rows() != rows {
        // A placeholder of `load_all`.
        return Ok(Linear::from(stored));
    }
    let (mut row, mut values) = (vec![0.0; cols], Vec::with_capacity(rows * cols));
    for r in 0..rows {
        stored.read_row(r, &mut row);
        values.extend((0..cols).map(|i| row[(i % (cols / c)) * c + i / (cols / c)]));
    }
    Linear::from(DenseWeight::from_f32(&values, cols)).to_device(weights.device())
}

#[cfg(test)]
mod tests;
