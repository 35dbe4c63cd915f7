//! Layers that change a clip's size: half or twice the sides, and fewer or more frames.

use candle_core::Tensor;
use lance_mm_tensor::{Conv, Error, Result, Weights, Window};

use super::causal_cache::CausalCache;

/// Filters lie on every other pixel; what reaches past the frame does so to the right and below.
const HALF: Window = Window { stride: 2, pad_before: 0, pad_after: 1, upsample: 1 };
/// Pixels are repeated in rows and columns first.
const DOUBLE: Window = Window { stride: 1, pad_before: 1, pad_after: 1, upsample: 2 };

/// Half the sides and, with a convolution in time, the first frame and every second one after it.
#[derive(Clone)]
pub struct Downsample {
    resample: Conv,
    time_conv: Option<Conv>,
}

impl Downsample {
    /// How `resample` is to lie on its frame.
    pub const WINDOW: Window = HALF;

    /// A layer of these convolutions; `time_conv` has three frames and single pixels under its filters.
    pub fn new(resample: Conv, time_conv: Option<Conv>) -> Self {
        Self { resample, time_conv }
    }

    pub(super) fn load(weights: &Weights, width: usize, in_time: bool) -> Result<Self> {
        let resample = Conv::load(weights, "resample_", (width, width), &[3, 3], HALF)?;
        let time_conv = || time_conv(weights, width, width);
        Ok(Self::new(resample, in_time.then(time_conv).transpose()?))
    }

    /// The frame f32 `(H, W, C)` to `(H/2, W/2, C)`. In time, the first frame passes; then one in two frames
    /// has a result, made from it and the two before.
    ///
    /// # Errors
    /// A frame of another width or size than those before.
    pub fn forward(&self, x: &Tensor, cache: &mut CausalCache) -> Result<Option<Tensor>> {
        let x = self.resample.forward(x, &[])?;
        let Some(time_conv) = &self.time_conv else { return Ok(Some(x)) };
        let past = cache.claim();
        if past.started && past.frames.len() < 2 {
            past.push(&x, 2);
            return Ok(None);
        }
        let y = if std::mem::replace(&mut past.started, true) {
            time_conv.forward(&x, &past.frames)?
        } else {
            x.clone()
        };
        past.push(&x, 1);
        Ok(Some(y))
    }
}

/// Twice the sides and, with a convolution in time, two frames for each but the first.
#[derive(Clone)]
pub struct Upsample {
    resample: Conv,
    time_conv: Option<Conv>,
}

impl Upsample {
    /// How `resample` is to lie on its frame.
    pub const WINDOW: Window = DOUBLE;

    /// A layer of these convolutions; `time_conv` has three frames and single pixels under its filters and
    /// makes twice the channels, the earlier frame's first.
    pub fn new(resample: Conv, time_conv: Option<Conv>) -> Self {
        Self { resample, time_conv }
    }

    pub(super) fn load(weights: &Weights, width: usize, in_time: bool) -> Result<Self> {
        let resample = Conv::load(weights, "resample_", (width, width), &[3, 3], DOUBLE)?;
        let time_conv = || time_conv(weights, width, 2 * width);
        Ok(Self::new(resample, in_time.then(time_conv).transpose()?))
    }

    /// The frame f32 `(H, W, C)` to one or two of `(2·H, 2·W, C)`. The first frame is no part of any later
    /// sum: the second one's convolution in time begins with zeros.
    ///
    /// # Errors
    /// A frame of another width or size than those before.
    pub fn forward(&self, x: &Tensor, cache: &mut CausalCache) -> Result<Vec<Tensor>> {
        self.in_time(x, cache)?.iter().map(|x| self.resample.forward(x, &[])).collect()
    }

    /// As [`forward`](Self::forward), each frame added to one of `starts`.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); another number of frames to add to.
    pub fn forward_residual(
        &self,
        starts: &[Tensor],
        x: &Tensor,
        cache: &mut CausalCache,
    ) -> Result<Vec<Tensor>> {
        let frames = self.in_time(x, cache)?;
        if frames.len() != starts.len() {
            return Err(Error::input("frames to add to", frames.len(), starts.len()));
        }
        let frames = starts.iter().zip(&frames);
        frames.map(|(start, x)| self.resample.forward_residual(start, x, &[])).collect()
    }

    /// The frames that become larger.
    fn in_time(&self, x: &Tensor, cache: &mut CausalCache) -> Result<Vec<Tensor>> {
        let Some(time_conv) = &self.time_conv else { return Ok(vec![x.clone()]) };
        let past = cache.claim();
        if !std::mem::replace(&mut past.started, true) {
            return Ok(vec![x.clone()]);
        }
        let pair = time_conv.forward(x, &past.frames)?;
        past.push(x, 2);
        let width = pair.dim(2)? / 2;
        Ok(vec![pair.narrow(2, 0, width)?, pair.narrow(2, width, width)?])
    }
}

fn time_conv(weights: &Weights, n_in: usize, n_out: usize) -> Result<Conv> {
    Conv::load(&weights.pp("time_conv"), "", (n_in, n_out), &[3, 1, 1], Window::default())
}
