//! WebP: pixels of the first image, and its orientation.

use std::io::Cursor;

use ::image::codecs::webp::WebPDecoder;
use ::image::{ColorType, ImageDecoder, ImageError};

use crate::decoded::Decoded;
use crate::exif::{self, Orientation};
use crate::fault::Fault;
use crate::limits::Budget;
use crate::rgb::{Colours, Layout};
use crate::size::Size;

/// Bytes that a pixel takes: the decoder's planes and both results.
const MEMORY: u64 = 8;

/// Decodes the image, or the first frame of an animation.
pub(crate) fn decode(bytes: &[u8], budget: &Budget<'_>) -> Result<Decoded, Fault> {
    let decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(fault)?;
    let (width, height) = decoder.dimensions();
    let size = Size { width, height };
    budget.check(size, MEMORY)?;
    let layout = match decoder.color_type() {
        ColorType::Rgb8 => Layout::opaque(Colours::Rgb),
        ColorType::Rgba8 => Layout::with_alpha(Colours::Rgb),
        other => return Err(Fault::unsupported(format!("colour type {other:?}"))),
    };
    let mut samples = vec![0; size.area() as usize * layout.samples];
    decoder.read_image(&mut samples).map_err(fault)?;
    let pixels = if layout.samples == 3 { samples } else { layout.rgb(&samples).flatten().collect() };
    Ok(Decoded { size, pixels, orientation: orientation(bytes) })
}

fn fault(error: ImageError) -> Fault {
    match error {
        ImageError::Unsupported(error) => Fault::unsupported(error),
        error => Fault::damaged(
            std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string),
        ),
    }
}

/// Orientation of the `EXIF` or `XMP ` chunk (WebP Container Specification).
fn orientation(bytes: &[u8]) -> Option<Orientation> {
    let mut rest = bytes.strip_prefix(b"RIFF")?.get(4..)?.strip_prefix(b"WEBP")?;
    let (mut exif, mut xmp) = (None, None);
    while let Some((kind, length, after)) = header(rest) {
        let data = &after[..length.min(after.len())];
        match kind {
            b"EXIF" => exif = Some(data),
            b"XMP " => xmp = Some(data),
            _ => {}
        }
        // Chunks of odd length are padded.
        rest = after.get(length.saturating_add(length & 1)..).unwrap_or_default();
    }
    exif::of(exif, xmp)
}

/// Kind and length of the next chunk, and what follows.
fn header(bytes: &[u8]) -> Option<(&[u8; 4], usize, &[u8])> {
    let (kind, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    Some((kind, u32::from_le_bytes(*length) as usize, rest))
}
