//! PNG encoding, with text chunks that can hold a prompt and its settings.

use std::io::Write;

use ::image::RgbImage;
use ::png::{BitDepth, ColorType, Encoder, EncodingError};

use crate::Size;
use crate::error::{Error, Result};
use crate::resize::frame_size;

/// Encodes an image as PNG. `texts` are pairs of keyword (1 to 79 Latin-1 characters) and text, stored in `iTXt`
/// chunks.
///
/// # Errors
/// An image without pixels, a keyword that PNG does not allow.
pub fn encode_png(image: &RgbImage, texts: &[(&str, &str)]) -> Result<Vec<u8>> {
    encode(&[image], None, texts)
}

/// Encodes frames of one size as an animated PNG of `fps` frames per second that loops forever.
///
/// # Errors
/// No frames, frames of different sizes, a rate of 0, and as [`encode_png`].
pub fn encode_png_animation(frames: &[RgbImage], fps: u16, texts: &[(&str, &str)]) -> Result<Vec<u8>> {
    check_fps(fps)?;
    encode(&frames.iter().collect::<Vec<_>>(), Some(fps), texts)
}

/// Refuses 0 frames per second.
pub(crate) fn check_fps(fps: u16) -> Result<()> {
    if fps == 0 {
        return Err(Error::option("fps", "at least 1", fps));
    }
    Ok(())
}

fn encode(frames: &[&RgbImage], fps: Option<u16>, texts: &[(&str, &str)]) -> Result<Vec<u8>> {
    let size = frame_size(frames)?;
    let mut bytes = Vec::new();
    write(&mut bytes, frames, size, fps, texts).map_err(|error| Error::of_size("PNG", size, error))?;
    Ok(bytes)
}

fn write(
    out: impl Write,
    frames: &[&RgbImage],
    size: Size,
    fps: Option<u16>,
    texts: &[(&str, &str)],
) -> std::result::Result<(), EncodingError> {
    let mut encoder = Encoder::new(out, size.width, size.height);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    if let Some(fps) = fps {
        encoder.set_animated(frames.len() as u32, 0)?;
        encoder.set_frame_delay(1, fps)?;
    }
    for (keyword, text) in texts {
        encoder.add_itxt_chunk((*keyword).to_owned(), (*text).to_owned())?;
    }
    let mut writer = encoder.write_header()?;
    for frame in frames {
        writer.write_image_data(frame.as_raw())?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::{LoadOptions, decode};

    fn image(level: u8) -> RgbImage {
        RgbImage::from_fn(5, 3, |x, y| ::image::Rgb([x as u8, y as u8, level]))
    }

    #[test]
    fn pixels_and_texts_come_back() {
        let prompt = "Ein Fuchs, 一只狐狸";
        let bytes = encode_png(&image(9), &[("prompt", prompt), ("seed", "42")]).unwrap();
        assert_eq!(decode(&bytes, "x", &LoadOptions::default()).unwrap(), image(9));
        let reader = ::png::Decoder::new(Cursor::new(&bytes)).read_info().unwrap();
        let texts = &reader.info().utf8_text;
        assert_eq!((texts[0].keyword.as_str(), texts[0].get_text().unwrap().as_str()), ("prompt", prompt));
        assert_eq!(texts[1].get_text().unwrap(), "42");
    }

    #[test]
    fn an_animation_has_all_frames() {
        let frames: Vec<_> = (0..3).map(image).collect();
        let bytes = encode_png_animation(&frames, 12, &[]).unwrap();
        let mut reader = ::png::Decoder::new(Cursor::new(&bytes)).read_info().unwrap();
        assert_eq!(reader.info().animation_control.unwrap().num_frames, 3);
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        for frame in &frames {
            reader.next_frame(&mut pixels).unwrap();
            assert_eq!(&pixels, frame.as_raw());
            assert_eq!(reader.info().frame_control.unwrap().delay_den, 12);
        }
    }

    #[test]
    fn errors_name_the_size() {
        assert!(encode_png(&RgbImage::new(0, 3), &[]).unwrap_err().to_string().starts_with("PNG of 0x3"));
        assert!(encode_png(&image(0), &[(&"k".repeat(80), "")]).is_err());
        assert!(encode_png_animation(&[], 12, &[]).is_err());
        assert!(encode_png_animation(&[image(0), RgbImage::new(1, 1)], 12, &[]).is_err());
    }
}
