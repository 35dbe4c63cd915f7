//! Pixels as the VAE reads and writes them.

use std::borrow::Borrow;

use ::image::RgbImage;
use candle_core::{Device, Tensor};

use super::resize::check_frames;
use super::{bucket, crop, resample};
use crate::error::{Error, Result};

/// Crops frames to the ratio of the bucket of `base` that is nearest to the first, and resizes them to that
/// bucket: its sides are multiples of 16, and the whole crop is kept.
///
/// # Errors
/// No frames, frames without pixels or of different sizes.
pub fn resize_to_bucket<F: Borrow<RgbImage>>(frames: &[F], base: u32) -> Result<Vec<RgbImage>> {
    let (width, height) = check_frames(frames)?.dimensions();
    if width == 0 || height == 0 {
        let name = format!("picture of {width}x{height} pixels");
        return Err(Error::Image { name, message: "expected sides above 0".to_owned() });
    }
    let size = bucket(height, width, base);
    let crop = crop(height, width, size);
    Ok(frames.iter().map(|frame| resample(frame.borrow(), crop, size)).collect())
}

/// Frames of one size as f32 `(3, T, H, W)` in [-1, 1].
///
/// # Errors
/// No frames, frames of different sizes.
pub fn to_signed(frames: &[RgbImage]) -> Result<Tensor> {
    let (width, height) = check_frames(frames)?.dimensions();
    let table: Vec<f32> = (0..256).map(|level| (level as f32 / 255.0 - 0.5) / 0.5).collect();
    let mut values = Vec::with_capacity(frames.len() * 3 * (width * height) as usize);
    for channel in 0..3 {
        for frame in frames {
            values.extend(frame.pixels().map(|pixel| table[usize::from(pixel.0[channel])]));
        }
    }
    Ok(Tensor::from_vec(values, (3, frames.len(), height as usize, width as usize), &Device::Cpu)?)
}

/// Frames of f32 `(3, T, H, W)`: clamped to [-1, 1], levels rounded half to even.
///
/// # Errors
/// A tensor of another shape or dtype.
pub fn from_signed(pixels: &Tensor) -> Result<Vec<RgbImage>> {
    let (channels, t, h, w) = pixels.dims4()?;
    if channels != 3 {
        let found = format!("{:?}", pixels.dims());
        return Err(lance_mm_tensor::Error::input("pixels", "(3, T, H, W)", found).into());
    }
    // (3, T, H, W) -> (T, H, W, 3)
    let values: Vec<f32> = pixels.permute((1, 2, 3, 0))?.contiguous()?.flatten_all()?.to_vec1()?;
    let level = |v: &f32| ((v.clamp(-1.0, 1.0) * 0.5 + 0.5) * 255.0).round_ties_even() as u8;
    let frames = values.chunks_exact((3 * h * w).max(1)).take(t);
    frames.map(|frame| super::from_raw(h as u32, w as u32, frame.iter().map(level).collect())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_survive_the_way_there_and_back() {
        let frames: Vec<_> = (0..3u8)
            .map(|i| RgbImage::from_fn(16, 32, |x, y| ::image::Rgb([(x * 16) as u8, (y * 8) as u8, 100 + i])))
            .collect();
        let signed = to_signed(&frames).unwrap();
        assert_eq!(signed.dims(), [3, 3, 32, 16]);
        let value = |c: usize, t: usize, y: usize, x: usize| {
            signed.get(c).unwrap().get(t).unwrap().get(y).unwrap().get(x).unwrap().to_scalar::<f32>().unwrap()
        };
        assert_eq!((value(0, 0, 0, 0), value(1, 2, 1, 0)), (-1.0, (8.0 / 255.0 - 0.5) / 0.5));
        assert_eq!(from_signed(&signed).unwrap(), frames);
    }

    #[test]
    fn values_beyond_the_range_are_clamped_and_ties_go_to_even() {
        let values = [-9.0f32, 9.0, 0.0, 1.0 / 255.0, f32::NAN, 3.0 / 255.0];
        let tensor = Tensor::from_slice(&values, (3, 1, 1, 2), &Device::Cpu).unwrap();
        // 127.5 is nearer to the even 128, and so is 128.5; NaN has no level and is black.
        assert_eq!(from_signed(&tensor).unwrap()[0].as_raw(), &[0, 128, 0, 255, 128, 129]);
        assert!(
            from_signed(&Tensor::zeros((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap())
                .is_err()
        );
    }

    #[test]
    fn the_bucket_keeps_sides_that_are_no_multiples_of_28() {
        let frames = [RgbImage::new(97, 61), RgbImage::new(97, 61)];
        let out = resize_to_bucket(&frames, 64).unwrap();
        assert_eq!((out.len(), out[0].dimensions()), (2, (80, 48)));
        assert!(resize_to_bucket(&[RgbImage::new(0, 1)], 64).is_err());
        assert!(resize_to_bucket::<RgbImage>(&[], 64).is_err());
    }
}
