//! Shortcuts around the layers that change a clip's size: averages and copies, without weights.
//!
//! Both see a value's place in its neighbourhood as part of its channel: channel, then frame, row and column.

use candle_core::Tensor;
use lance_mm_tensor::{Error, Result, upsample_repeat};

use super::causal_cache::CausalCache;

/// Averages of neighbours: half the sides and, in time, the first frame and every second one after it.
#[derive(Clone, Copy, Debug)]
pub struct Average {
    /// Channels of the result.
    pub n_out: usize,
    /// Frames that become one: 1 or 2. The first frame of a clip is averaged with zeros.
    pub frames: usize,
    /// Rows and columns that become one.
    pub side: usize,
}

impl Average {
    /// The frame f32 `(H, W, C)` to `(H/side, W/side, n_out)`, if it completes its group of frames.
    ///
    /// # Errors
    /// Sides that are no multiples, a neighbourhood that does not divide among the channels of the result.
    pub fn forward(&self, x: &Tensor, cache: &mut CausalCache) -> Result<Option<Tensor>> {
        let (h, w, c) = x.dims3()?;
        let Self { n_out, frames, side } = *self;
        let values = c * frames * side * side;
        if !h.is_multiple_of(side) || !w.is_multiple_of(side) || !values.is_multiple_of(n_out) {
            let expected = format!("sides of a multiple of {side}, {values} values for {n_out} channels");
            return Err(Error::input("averaged frame", expected, format!("{:?}", x.dims())));
        }
        let group = match frames {
            1 => x.unsqueeze(0)?,
            _ => {
                let past = cache.claim();
                if std::mem::replace(&mut past.started, true) && past.frames.is_empty() {
                    past.push(x, 1);
                    return Ok(None);
                }
                let before = past.frames.pop().map_or_else(|| x.zeros_like(), Ok)?;
                Tensor::stack(&[before, x.clone()], 0)?
            }
        };
        // (F, H, S, W, S, C) -> (H, W, C, F, S, S)
        let neighbours = group
            .reshape(vec![frames, h / side, side, w / side, side, c])?
            .permute(vec![1, 3, 5, 0, 2, 4])?
            .reshape((h / side, w / side, n_out, values / n_out))?;
        Ok(Some(neighbours.mean(3)?))
    }
}

/// Copies: twice the sides and, in time, two frames for each but the first.
#[derive(Clone, Copy, Debug)]
pub struct Repeat {
    /// Channels of the result.
    pub n_out: usize,
    /// Frames made of one: 1 or 2. Of the first frame of a clip only the last is kept.
    pub frames: usize,
    /// Rows and columns made of one.
    pub side: usize,
}

impl Repeat {
    /// The frame f32 `(H, W, C)` to frames `(H·side, W·side, n_out)`.
    ///
    /// # Errors
    /// Channels that do not divide the values of the result.
    pub fn forward(&self, x: &Tensor, cache: &mut CausalCache) -> Result<Vec<Tensor>> {
        let Self { n_out, frames, side } = *self;
        let first = match frames {
            1 => 0,
            _ if std::mem::replace(&mut cache.claim().started, true) => 0,
            _ => frames - 1,
        };
        (first..frames).map(|frame| upsample_repeat(x, n_out, frames, frame, side)).collect()
    }
}
