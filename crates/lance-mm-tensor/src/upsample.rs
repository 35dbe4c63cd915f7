//! Upsampling of frames by repeated values.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::cpu_values::Values;
use crate::error::{Error, Result};
use crate::kernels::{metal, zeros};

/// Upsamples f32 `(H, W, C)` in space and time by repeated values, and returns frame `frame` of `frames`: f32
/// `(H·side, W·side, n_out)`. Every channel is repeated until a pixel has the values of `frames` frames of `side` by
/// `side` pixels with `n_out` channels, in the order channel, frame, row, column.
///
/// Reference: Wan 2.2, `DupUp3D` of `vae2_2.py`.
///
/// # Errors
/// `C` that does not divide `n_out · frames · side²`, a frame past the last, another dtype.
pub fn upsample_repeat(x: &Tensor, n_out: usize, frames: usize, frame: usize, side: usize) -> Result<Tensor> {
    let (h, w, c) = x.dims3()?;
    let values = n_out * frames * side * side;
    if c == 0 || !values.is_multiple_of(c) || frame >= frames {
        let expected = format!("channels that divide {values}, one of {frames} frames");
        return Err(Error::input("frame to upsample", expected, format!("{:?}, frame {frame}", x.dims())));
    }
    let copies = values / c;
    if metal::runs_on(x.device()) {
        // (H, W, C, copies) = (H, W, n_out, F, S, S) -> (H, S, W, S, n_out)
        let all = x.unsqueeze(3)?.broadcast_as((h, w, c, copies))?;
        let frame = all.reshape(vec![h, w, n_out, frames, side, side])?.narrow(3, frame, 1)?.squeeze(3)?;
        return Ok(frame.permute(vec![0, 3, 1, 4, 2])?.reshape((h * side, w * side, n_out))?);
    }
    let x = x.contiguous()?;
    let x = Values::of(&x)?;
    let channel = |y: usize, x: usize, r: usize| (((r * frames + frame) * side + y) * side + x) / copies;
    // The input channel of each output value of one pixel.
    let channels: Vec<usize> =
        (0..side * side * n_out).map(|i| channel(i / n_out / side, i / n_out % side, i % n_out)).collect();
    let mut out = zeros(h * w * side * side * n_out);
    out.par_chunks_mut((w * side * n_out).max(1)).enumerate().for_each(|(row, out)| {
        let pixels =
            x[row / side * w * c..].chunks_exact(c).flat_map(|pixel| std::iter::repeat_n(pixel, side));
        let channels = channels[row % side * side * n_out..][..side * n_out].chunks_exact(n_out).cycle();
        for ((out, pixel), channels) in out.chunks_exact_mut(n_out).zip(pixels).zip(channels) {
            for (out, channel) in out.iter_mut().zip(channels) {
                *out = pixel[*channel];
            }
        }
    });
    Ok(Tensor::from_vec(out, (h * side, w * side, n_out), &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_channel_frame_row_and_column() {
        let (h, w) = (2, 3);
        for (c, n_out, frames, side) in [(4, 4, 1, 2), (4, 2, 1, 2), (2, 4, 2, 2), (3, 6, 1, 1), (8, 1, 2, 2)]
        {
            let x =
                Tensor::arange(0f32, (h * w * c) as f32, &Device::Cpu).unwrap().reshape((h, w, c)).unwrap();
            let copies = n_out * frames * side * side / c;
            for frame in 0..frames {
                let y = upsample_repeat(&x, n_out, frames, frame, side).unwrap();
                assert_eq!(y.dims(), [h * side, w * side, n_out]);
                let y = y.to_vec3::<f32>().unwrap();
                for (i, row) in y.iter().enumerate() {
                    for (j, pixel) in row.iter().enumerate() {
                        for (r, value) in pixel.iter().enumerate() {
                            let at = ((r * frames + frame) * side + i % side) * side + j % side;
                            let source = (i / side * w + j / side) * c + at / copies;
                            assert_eq!(*value, source as f32, "{c} {n_out} {frames} {side}: {i} {j} {r}");
                        }
                    }
                }
            }
        }
        let x = Tensor::zeros((1, 1, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(upsample_repeat(&x, 4, 1, 0, 1).is_err() && upsample_repeat(&x, 3, 1, 1, 1).is_err());
    }
}
