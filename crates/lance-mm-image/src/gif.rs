//! Animated GIF: all frames as a viewer shows them, on white.

use std::io::Cursor;
use std::time::Duration;

use ::image::codecs::gif::GifDecoder;
use ::image::{AnimationDecoder, ColorType, Frame as Decoded, ImageDecoder, ImageFormat, RgbImage};

use crate::encoded::Encoded;
use crate::error::Result;
use crate::rgb::{self, Alpha};
use crate::{LoadOptions, Size};

/// Delays up to this count as [`DEFAULT_DELAY`], as in browsers.
const LEAST_DELAY: Duration = Duration::from_millis(10);
const DEFAULT_DELAY: Duration = Duration::from_millis(100);

/// One image of an animation.
pub(crate) struct Frame {
    pub(crate) image: RgbImage,
    /// Time until the next frame.
    pub(crate) delay: Duration,
}

/// Whether the bytes are a GIF of more than one frame. Only block lengths are read, no pixels decoded.
pub(crate) fn is_animated(bytes: &[u8]) -> bool {
    second_frame(bytes).is_some()
}

/// Offset of the second image descriptor.
fn second_frame(bytes: &[u8]) -> Option<usize> {
    const EXTENSION: u8 = 0x21;
    const IMAGE: u8 = 0x2c;
    if !bytes.starts_with(b"GIF8") {
        return None;
    }
    let mut at = 13 + color_table_len(*bytes.get(10)?);
    let mut n_frames = 0;
    loop {
        match *bytes.get(at)? {
            EXTENSION => at = after_sub_blocks(bytes, at + 2)?,
            IMAGE if n_frames == 1 => return Some(at),
            IMAGE => {
                n_frames += 1;
                // The descriptor, its colour table, the code size.
                let data = at + 10 + color_table_len(*bytes.get(at + 9)?) + 1;
                at = after_sub_blocks(bytes, data)?;
            }
            _ => return None,
        }
    }
}

/// Bytes of the colour table that flags announce.
fn color_table_len(flags: u8) -> usize {
    if flags & 0x80 == 0 { 0 } else { 3 << ((flags & 7) + 1) }
}

/// The end of a chain of blocks that each begin with their length; length 0 ends it.
fn after_sub_blocks(bytes: &[u8], mut at: usize) -> Option<usize> {
    loop {
        let len = usize::from(*bytes.get(at)?);
        at += 1 + len;
        if len == 0 {
            return Some(at);
        }
    }
}

/// Decodes all frames; together they may have [`LoadOptions::max_clip_pixels`] pixels.
pub(crate) fn frames(bytes: &[u8], name: &str, options: &LoadOptions) -> Result<Vec<Frame>> {
    let file = Encoded::detect(bytes, name, options)?;
    if file.format != ImageFormat::Gif {
        return Err(file.error(format!("expected a GIF, found {}", file.format_name())));
    }
    let mut decoder = GifDecoder::new(Cursor::new(file.bytes)).map_err(|e| file.decoding(&e))?;
    decoder.set_limits(file.limits()).map_err(|e| file.decoding(&e))?;
    let (width, height) = decoder.dimensions();
    let size = Size { width, height };
    file.check_size(size)?;

    let max_frames = (options.max_clip_pixels / size.area()) as usize;
    let mut frames = Vec::new();
    let mut decoded = decoder.into_frames();
    // The limit comes first: asking for a frame decodes it.
    while frames.len() < max_frames {
        match decoded.next() {
            Some(frame) => frames.push(on_white(frame.map_err(|e| file.decoding(&e))?)),
            None => return Ok(frames),
        }
    }
    match decoded.next() {
        None => Ok(frames),
        Some(_) => {
            let limit = options.max_clip_pixels;
            let found = format!("a GIF of more than {max_frames} frames of {size}");
            Err(file
                .too_large(limit, format!("expected at most {limit} pixels in all frames, found {found}")))
        }
    }
}

fn on_white(frame: Decoded) -> Frame {
    let delay = match Duration::from(frame.delay()) {
        delay if delay <= LEAST_DELAY => DEFAULT_DELAY,
        delay => delay,
    };
    let (width, height) = frame.buffer().dimensions();
    let pixels = rgb::from_samples(frame.into_buffer().into_raw(), ColorType::Rgba8, Alpha::OnWhite);
    let image = RgbImage::from_raw(width, height, pixels).expect("one RGB pixel per RGBA pixel");
    Frame { image, delay }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::video::Clip;

    const RED: [u8; 3] = [255, 0, 0];
    const BLUE: [u8; 3] = [0, 0, 255];
    const WHITE: [u8; 3] = [255; 3];

    /// One frame of [`gif`]: a rectangle (left, top, width, height) of one palette entry.
    struct Part {
        place: (u8, u8, u8, u8),
        entry: u8,
        disposal: u8,
        centiseconds: u8,
    }

    fn part(place: (u8, u8, u8, u8), entry: u8, disposal: u8, centiseconds: u8) -> Part {
        Part { place, entry, disposal, centiseconds }
    }

    /// A GIF of 4x2 pixels with the palette red, blue, black, transparent.
    fn gif(parts: &[Part]) -> Vec<u8> {
        let mut bytes = [&b"GIF89a\x04\0\x02\0\x81\0\0"[..], &RED, &BLUE, &[0; 6]].concat();
        for Part { place: (left, top, width, height), entry, disposal, centiseconds } in parts {
            bytes.extend([0x21, 0xf9, 4, disposal << 2 | 1, *centiseconds, 0, 3, 0]);
            bytes.extend([0x2c, *left, 0, *top, 0, *width, 0, *height, 0, 0, 2]);
            bytes.extend(lzw(*entry, usize::from(*width) * usize::from(*height)));
        }
        bytes.push(0x3b);
        bytes
    }

    /// `n` pixels of one entry, uncompressed: a clear code before each keeps codes at 3 bits.
    fn lzw(entry: u8, n: usize) -> Vec<u8> {
        const CLEAR: u8 = 4;
        const END: u8 = 5;
        let codes = (0..n).flat_map(|_| [CLEAR, entry]).chain([END]);
        let bits: Vec<u8> = codes.flat_map(|code| (0..3).map(move |i| code >> i & 1)).collect();
        let data: Vec<u8> =
            bits.chunks(8).map(|b| b.iter().rev().fold(0, |byte, bit| byte << 1 | bit)).collect();
        [&[data.len() as u8], &data[..], &[0]].concat()
    }

    fn all(bytes: &[u8]) -> Vec<Frame> {
        frames(bytes, "x", &LoadOptions::default()).unwrap()
    }

    /// Left and right pixel of the first row.
    fn ends(frame: &Frame) -> [[u8; 3]; 2] {
        [0, 3].map(|x| frame.image.get_pixel(x, 0).0)
    }

    #[test]
    fn frames_are_composited_by_their_disposal() {
        const KEEP: u8 = 1;
        const BACKGROUND: u8 = 2;
        const PREVIOUS: u8 = 3;
        let nothing = || part((0, 0, 1, 1), 3, KEEP, 10);
        let right = |disposal| part((2, 0, 2, 2), 1, disposal, 10);
        let cases = [(KEEP, [RED, BLUE]), (BACKGROUND, [RED, WHITE]), (PREVIOUS, [RED, RED])];
        for (disposal, after) in cases {
            let frames = all(&gif(&[part((0, 0, 4, 2), 0, KEEP, 10), right(disposal), nothing()]));
            let found: Vec<_> = frames.iter().map(ends).collect();
            assert_eq!(found, [[RED, RED], [RED, BLUE], after], "disposal {disposal}");
        }
    }

    #[test]
    fn uncovered_pixels_are_white() {
        let bytes = gif(&[part((2, 0, 2, 1), 1, 0, 10)]);
        let frames = all(&bytes);
        assert_eq!(ends(&frames[0]), [WHITE, BLUE]);
        assert_eq!(frames[0].image.get_pixel(3, 1).0, WHITE);
        assert_eq!(crate::decode(&bytes, "x", &LoadOptions::default()).unwrap(), frames[0].image);
    }

    #[test]
    fn rate_is_that_of_the_average_delay() {
        let rate = |delays: &[u8]| {
            let parts: Vec<_> = delays.iter().map(|d| part((0, 0, 4, 2), 0, 0, *d)).collect();
            Clip::from_gif(&gif(&parts), "x", &LoadOptions::default()).unwrap().fps
        };
        assert_eq!(rate(&[5, 5, 5]), 20.0);
        assert_eq!(rate(&[2, 8]), 20.0);
        assert_eq!(rate(&[0, 1, 0, 1]), 10.0);
    }

    #[test]
    fn animated_means_two_frames() {
        let full = |entry| part((0, 0, 4, 2), entry, 0, 10);
        assert!(!is_animated(&gif(&[])));
        assert!(!is_animated(&gif(&[full(0)])));
        let bytes = gif(&[full(0), full(1)]);
        assert!(is_animated(&bytes));
        for n in 0..bytes.len() {
            is_animated(&bytes[..n]);
        }
        assert!(!is_animated(b"") && !is_animated(b"\x89PNG") && !is_animated(b"GIF89a"));
    }

    #[test]
    fn pixels_of_all_frames_are_limited() {
        let bytes = gif(&[part((0, 0, 1, 1), 0, 0, 10), part((0, 0, 1, 1), 1, 0, 10)]);
        let limited = |max_pixels, max_clip_pixels| {
            frames(&bytes, "x", &LoadOptions { max_pixels, max_clip_pixels, ..LoadOptions::default() })
        };
        assert_eq!(limited(8, 16).unwrap().len(), 2);
        for (of_frame, of_clip, message) in [
            (8, 15, "x: expected at most 15 pixels in all frames, found a GIF of more than 1 frames of 4x2"),
            (7, 16, "x: expected at most 7 pixels, found 8 (GIF of 4x2)"),
        ] {
            assert_eq!(limited(of_frame, of_clip).map(|_| ()).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn refuses() {
        let options = LoadOptions::default();
        let whole = gif(&[part((0, 0, 4, 2), 0, 0, 10), part((0, 0, 4, 2), 1, 0, 10)]);
        for bytes in
            [&whole[..whole.len() - 6], &b"GIF89a"[..], &gif(&[])[..], &b"P6 1 1 255\n123"[..], &b""[..]]
        {
            let error = Clip::from_gif(bytes, "x", &options).unwrap_err();
            assert!(!error.to_string().is_empty(), "{error}");
        }
    }
}
