//! Pixels as a VAE reads and writes them: f32 in [-1, 1], one plane for each channel.

use ::image::RgbImage;

use crate::error::{Error, Result};
use crate::resize::frame_size;
use crate::{Size, from_raw};

/// Converts frames of one size to f32 `(3, T, H, W)` in [-1, 1], the input of a VAE.
///
/// # Errors
/// No frames, frames of different sizes.
pub fn to_vae_pixels(frames: &[RgbImage]) -> Result<Vec<f32>> {
    let Size { width, height } = frame_size(frames)?;
    let table: Vec<f32> = (0..256).map(|level| (level as f32 / 255.0 - 0.5) / 0.5).collect();
    let mut values = Vec::with_capacity(frames.len() * 3 * width as usize * height as usize);
    for channel in 0..3 {
        for frame in frames {
            values.extend(frame.pixels().map(|pixel| table[usize::from(pixel.0[channel])]));
        }
    }
    Ok(values)
}

/// Converts f32 `(3, T, H, W)`, the output of a VAE, to frames: clamped to [-1, 1], levels rounded half to even.
///
/// # Errors
/// Sides of zero, values that are not an integer number of frames.
pub fn from_vae_pixels(values: &[f32], size: Size) -> Result<Vec<RgbImage>> {
    let area = size.width as usize * size.height as usize;
    if area == 0 || !values.len().is_multiple_of(3 * area) {
        let message = format!("expected sides above 0 and whole frames, found {} values", values.len());
        return Err(Error::of_size("frames", size, message));
    }
    let level = |v: &f32| ((v.clamp(-1.0, 1.0) * 0.5 + 0.5) * 255.0).round_ties_even() as u8;
    let n_frames = values.len() / (3 * area);
    let frame = |t: usize| {
        let pixels = (0..area).flat_map(|i| [0, 1, 2].map(|c| level(&values[(c * n_frames + t) * area + i])));
        from_raw(size, pixels.collect())
    };
    (0..n_frames).map(frame).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_survive_the_way_there_and_back() {
        let frames: Vec<_> = (0..3u8)
            .map(|i| RgbImage::from_fn(16, 32, |x, y| ::image::Rgb([(x * 16) as u8, (y * 8) as u8, 100 + i])))
            .collect();
        let signed = to_vae_pixels(&frames).unwrap();
        assert_eq!(signed.len(), 3 * 3 * 32 * 16);
        let value = |c: usize, t: usize, y: usize, x: usize| signed[((c * 3 + t) * 32 + y) * 16 + x];
        assert_eq!((value(0, 0, 0, 0), value(1, 2, 1, 0)), (-1.0, (8.0 / 255.0 - 0.5) / 0.5));
        assert_eq!(value(2, 1, 31, 15), (101.0 / 255.0 - 0.5) / 0.5);
        assert_eq!(from_vae_pixels(&signed, Size { width: 16, height: 32 }).unwrap(), frames);
        assert!(to_vae_pixels(&[]).is_err());
    }

    #[test]
    fn values_beyond_the_range_are_clamped_and_ties_go_to_even() {
        let values = [-9.0, 9.0, 0.0, 1.0 / 255.0, f32::NAN, 3.0 / 255.0];
        // 127.5 is nearer to the even 128, and so is 128.5; NaN has no level and is black.
        assert_eq!(
            from_vae_pixels(&values, Size { width: 2, height: 1 }).unwrap()[0].as_raw(),
            &[0, 128, 0, 255, 128, 129]
        );
        for (width, height) in [(2, 0), (0, 1), (2, 2)] {
            assert!(from_vae_pixels(&values, Size { width, height }).is_err(), "{width}x{height}");
        }
    }
}
