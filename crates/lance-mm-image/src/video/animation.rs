//! Encoding of frames as animated GIF, PNG or WebP.

use ::image::codecs::gif::{GifEncoder, Repeat};
use ::image::codecs::webp::WebPEncoder;
use ::image::{Delay, DynamicImage, ExtendedColorType, Frame, ImageError, RgbImage};

use crate::Size;
use crate::encode_png_animation;
use crate::error::{Error, Result, not_empty};
use crate::resize::frame_size;
use crate::write_png::check_fps;

/// Speed of choosing a GIF's 256 colours, from 1 (slowest, best) to 30.
const GIF_SPEED: i32 = 10;

/// Format of an animation; all loop forever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Animation {
    /// 256 colours per frame; delays are hundredths of a second, so 12 frames per second become 12.5.
    Gif,
    /// Lossless, large.
    Png,
    /// Lossless, smaller.
    WebP,
}

impl Animation {
    /// Encodes frames of one size at `fps` frames per second. Only PNG keeps `texts`, see
    /// [`encode_png`](crate::encode_png).
    ///
    /// # Errors
    /// No frames, frames of different sizes, without pixels or too large for the format, a rate of 0.
    pub fn encode(self, frames: &[RgbImage], fps: u16, texts: &[(&str, &str)]) -> Result<Vec<u8>> {
        check_fps(fps)?;
        let size = not_empty(frame_size(frames)?, "frame")?;
        let bad = |error: ImageError| Error::of_size(&format!("{self:?}"), size, error);
        match self {
            Self::Png => encode_png_animation(frames, fps, texts),
            Self::Gif => gif(frames, fps).map_err(bad),
            Self::WebP => webp(frames, size, fps).map_err(bad),
        }
    }
}

fn gif(frames: &[RgbImage], fps: u16) -> std::result::Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, GIF_SPEED);
    encoder.set_repeat(Repeat::Infinite)?;
    for frame in frames {
        let image = DynamicImage::ImageRgb8(frame.clone()).into_rgba8();
        let delay = Delay::from_numer_denom_ms(1000, u32::from(fps));
        encoder.encode_frame(Frame::from_parts(image, 0, 0, delay))?;
    }
    drop(encoder);
    Ok(bytes)
}

/// The container of an animation around still images (WebP Container Specification, "Animation").
fn webp(
    frames: &[RgbImage],
    Size { width, height }: Size,
    fps: u16,
) -> std::result::Result<Vec<u8>, ImageError> {
    /// Flags of `VP8X`: it is animated.
    const ANIMATED: u8 = 0x02;
    /// Flags of `ANMF`: the frame replaces what was there.
    const NO_BLENDING: u8 = 0x02;
    let mut body = b"WEBP".to_vec();
    let canvas = [u24(width - 1), u24(height - 1)].concat();
    chunk(&mut body, b"VP8X", &[&[ANIMATED, 0, 0, 0], canvas.as_slice()].concat());
    // Background and number of repetitions: none and for ever.
    chunk(&mut body, b"ANIM", &[0; 6]);
    let time = |i: usize| (i as f64 * 1000.0 / f64::from(fps)).round() as u32;
    for (i, frame) in frames.iter().enumerate() {
        let mut still = Vec::new();
        WebPEncoder::new_lossless(&mut still).encode(frame, width, height, ExtendedColorType::Rgb8)?;
        let mut data = [u24(0), u24(0)].concat();
        data.extend(&canvas);
        data.extend(u24(time(i + 1) - time(i)));
        data.push(NO_BLENDING);
        // The image's own chunk follows `RIFF`, the length and `WEBP`.
        data.extend(&still[12..]);
        chunk(&mut body, b"ANMF", &data);
    }
    let mut bytes = Vec::with_capacity(body.len() + 8);
    chunk(&mut bytes, b"RIFF", &body);
    Ok(bytes)
}

fn u24(value: u32) -> [u8; 3] {
    let [a, b, c, _] = value.to_le_bytes();
    [a, b, c]
}

fn chunk(out: &mut Vec<u8>, name: &[u8; 4], data: &[u8]) {
    out.extend(name);
    out.extend((data.len() as u32).to_le_bytes());
    out.extend(data);
    if data.len() % 2 == 1 {
        out.push(0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use ::image::AnimationDecoder;
    use ::image::codecs::webp::WebPDecoder;

    use super::*;
    use crate::LoadOptions;
    use crate::video::Clip;

    fn frames() -> Vec<RgbImage> {
        (0..4u8)
            .map(|i| RgbImage::from_fn(17, 9, |x, y| ::image::Rgb([x as u8 * 10, y as u8 * 20, 60 * i])))
            .collect()
    }

    #[test]
    fn a_webp_gives_every_frame_back() {
        let bytes = Animation::WebP.encode(&frames(), 12, &[]).unwrap();
        let decoder = WebPDecoder::new(Cursor::new(&bytes)).unwrap();
        assert!(decoder.has_animation());
        let found = decoder.into_frames().collect_frames().unwrap();
        assert_eq!(found.len(), 4);
        let time: u32 = found.iter().map(|frame| frame.delay().numer_denom_ms().0).sum();
        assert_eq!(time, 333);
        for (found, expected) in found.into_iter().zip(frames()) {
            assert_eq!(DynamicImage::ImageRgba8(found.into_buffer()).into_rgb8(), expected);
        }
    }

    #[test]
    fn a_gif_is_near() {
        let frames: Vec<_> = frames().into_iter().cycle().take(9).collect();
        let bytes = Animation::Gif.encode(&frames, 12, &[]).unwrap();
        let clip = Clip::from_gif(&bytes, "x.gif", None, &LoadOptions::default()).unwrap();
        assert_eq!(clip.frames.len(), 9);
        for (found, expected) in clip.frames.iter().zip(frames) {
            let worst = found.as_raw().iter().zip(expected.as_raw()).map(|(f, e)| f.abs_diff(*e)).max();
            assert!(worst.unwrap() <= 40, "{worst:?}");
        }
    }

    #[test]
    fn frames_must_fit_together() {
        for format in [Animation::Gif, Animation::Png, Animation::WebP] {
            assert!(format.encode(&[], 12, &[]).is_err());
            assert!(format.encode(&[RgbImage::new(0, 2)], 12, &[]).is_err());
            assert!(format.encode(&frames(), 0, &[]).is_err());
            assert!(format.encode(&[RgbImage::new(2, 2), RgbImage::new(3, 2)], 12, &[]).is_err());
        }
        let wide = RgbImage::new(16_400, 1);
        let error = Animation::WebP.encode(&[wide], 12, &[]).unwrap_err().to_string();
        assert!(error.starts_with("WebP of 16400x1 pixels: "), "{error}");
    }
}
