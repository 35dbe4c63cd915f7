//! Frames as tensors, which the VAE reads and writes.

use candle_core::{Device, Tensor};
use lance_mm_image::{RgbImage, Size, from_vae_pixels, to_vae_pixels};
use lance_mm_tensor::require_finite;

use crate::error::Result;

/// Frames of one size as f32 `(3, T, H, W)` in [-1, 1].
///
/// # Errors
/// No frames, frames of different sizes.
pub fn frames_to_tensor(frames: &[RgbImage]) -> Result<Tensor> {
    let values = to_vae_pixels(frames)?;
    let (width, height) = frames[0].dimensions();
    Ok(Tensor::from_vec(values, (3, frames.len(), height as usize, width as usize), &Device::Cpu)?)
}

/// Frames of f32 `(3, T, H, W)`: clamped to [-1, 1], levels rounded half to even.
///
/// # Errors
/// A tensor of another shape or dtype; [`Error::NotFinite`](crate::Error::NotFinite).
pub fn tensor_to_frames(pixels: &Tensor) -> Result<Vec<RgbImage>> {
    let (channels, _, h, w) = pixels.dims4()?;
    if channels != 3 {
        let found = format!("{:?}", pixels.dims());
        return Err(lance_mm_tensor::Error::input("pixels", "(3, T, H, W)", found).into());
    }
    require_finite("pixels", pixels)?;
    let values: Vec<f32> = pixels.flatten_all()?.to_vec1()?;
    Ok(from_vae_pixels(&values, Size { width: w as u32, height: h as u32 })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_way_there_and_back() {
        let frames: Vec<_> =
            (0..3).map(|i| RgbImage::from_fn(5, 4, |x, y| [x as u8, y as u8, i].into())).collect();
        let tensor = frames_to_tensor(&frames).unwrap();
        assert_eq!(tensor.dims(), [3, 3, 4, 5]);
        assert_eq!(tensor_to_frames(&tensor).unwrap(), frames);
        // Any strides.
        let turned = tensor.transpose(2, 3).unwrap();
        assert_eq!(tensor_to_frames(&turned).unwrap()[2].get_pixel(3, 4).0, [4, 3, 2]);
        let gray = Tensor::zeros((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(tensor_to_frames(&gray).is_err());
        for bad in [f32::NAN, f32::INFINITY] {
            let pixels = Tensor::full(bad, (3, 1, 2, 2), &Device::Cpu).unwrap();
            assert!(matches!(tensor_to_frames(&pixels), Err(crate::Error::NotFinite { .. })));
        }
        assert!(frames_to_tensor(&[]).is_err());
    }
}
