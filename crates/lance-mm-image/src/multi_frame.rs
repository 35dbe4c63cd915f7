//! Detection of animations and TIFF pages. Lengths and offsets are read, no pixels decoded.

use crate::{gif, tiff};

/// Images of a file beyond the first, which is all that [`decode`](crate::decode) returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MultiFrame {
    /// More frames, of an animated GIF, WebP or PNG.
    Animation,
    /// More pages, of a TIFF.
    Pages,
}

/// Tells whether a file holds more images than the one that [`decode`](crate::decode) returns. No pixels are
/// decoded; damaged data gives `None`.
pub fn multi_frame(bytes: &[u8]) -> Option<MultiFrame> {
    let animated = gif::is_animated(bytes)
        || is_animated_webp(bytes).unwrap_or(false)
        || is_animated_png(bytes).unwrap_or(false);
    if animated {
        return Some(MultiFrame::Animation);
    }
    tiff::has_pages(bytes).then_some(MultiFrame::Pages)
}

/// The flag for animation of the extended header, which comes first (WebP Container Specification).
fn is_animated_webp(bytes: &[u8]) -> Option<bool> {
    const ANIMATED: u8 = 0x02;
    let chunk = bytes.strip_prefix(b"RIFF")?.get(4..)?.strip_prefix(b"WEBP")?;
    let data = chunk.strip_prefix(b"VP8X")?.get(4..)?;
    Some(data.first()? & ANIMATED != 0)
}

/// Whether an animation control chunk before the image data counts more than one frame.
fn is_animated_png(bytes: &[u8]) -> Option<bool> {
    let mut rest = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n")?;
    loop {
        let (length, after) = rest.split_first_chunk()?;
        let (kind, data) = after.split_first_chunk::<4>()?;
        match kind {
            b"acTL" => return Some(u32::from_be_bytes(*data.first_chunk()?) > 1),
            b"IDAT" => return Some(false),
            // The data, and four bytes of checksum.
            _ => rest = data.get(u32::from_be_bytes(*length) as usize..)?.get(4..)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use ::image::{ImageFormat, RgbImage};

    use super::*;
    use crate::video::Animation;

    fn still(format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        RgbImage::new(5, 3).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// No beginning of a file may panic.
    fn of_all(bytes: &[u8]) -> Option<MultiFrame> {
        for n in 0..bytes.len() {
            multi_frame(&bytes[..n]);
        }
        multi_frame(bytes)
    }

    #[test]
    fn animations_have_frames() {
        let frames = [RgbImage::new(5, 3), RgbImage::from_pixel(5, 3, ::image::Rgb([9; 3]))];
        for animation in [Animation::Gif, Animation::Png, Animation::WebP] {
            let bytes = animation.encode(&frames, 12, &[("prompt", "A fox")]).unwrap();
            assert_eq!(of_all(&bytes), Some(MultiFrame::Animation), "{animation:?}");
        }
        let one = Animation::Png.encode(&frames[..1], 12, &[]).unwrap();
        assert_eq!(of_all(&one), None);
    }

    #[test]
    fn stills_are_alone() {
        use ImageFormat::{Bmp, Gif, Jpeg, Png, Pnm, Tiff, WebP};
        for format in [Bmp, Gif, Jpeg, Png, Pnm, Tiff, WebP] {
            assert_eq!(of_all(&still(format)), None, "{format:?}");
        }
        // Extended header of a still image with a profile.
        assert_eq!(of_all(b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x20\0\0\0\x04\0\0\x02\0\0"), None);
        assert_eq!(of_all(b"no image"), None);
    }

    #[test]
    fn a_tiff_may_have_pages() {
        for (start, next) in [
            (&b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0\0\0\x05\0\0\0"[..], &b"\x1a\0\0\0"[..]),
            (b"MM\0*\0\0\0\x08\0\x01\x01\0\0\x03\0\0\0\x01\0\x05\0\0", b"\0\0\0\x1a"),
        ] {
            assert_eq!(of_all(&[start, next].concat()), Some(MultiFrame::Pages));
            assert_eq!(of_all(&[start, &[0; 4]].concat()), None);
        }
        // Wrong offsets.
        assert_eq!(multi_frame(b"II*\0\xff\xff\xff\xff\x01\0"), None);
        assert_eq!(multi_frame(b"II*\0\x08\0\0\0\xff\xff\x01\0"), None);
        assert_eq!(multi_frame(b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR\0\0"), None);
    }
}
