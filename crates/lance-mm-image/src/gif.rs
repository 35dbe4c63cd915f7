//! GIF: the first frame, and the frames of an animation as a viewer shows them, on white.
//!
//! Frames are counted before any is decoded. Each is then drawn into the rectangle it has, so that a thousand frames
//! of one pixel take no longer than they should, and only those that are wanted are kept.

use std::io::Cursor;
use std::time::Duration;

use ::gif::{ColorOutput, DecodeOptions, Decoder, DecodingError, DisposalMethod, MemoryLimit};
use ::image::RgbImage;

use crate::decoded::Decoded;
use crate::fault::Fault;
use crate::limits::Budget;
use crate::rgb::{Colours, Layout, Palette};
use crate::size::Size;

/// Delays up to this count as [`DEFAULT_DELAY`], as in browsers.
const LEAST_DELAY: Duration = Duration::from_millis(10);
const DEFAULT_DELAY: Duration = Duration::from_millis(100);

/// Bytes that a pixel takes: its index and RGB.
const MEMORY: u64 = 4;

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

/// Decodes the first frame as Pillow shows it.
pub(crate) fn decode(bytes: &[u8], budget: &Budget<'_>) -> Result<Decoded, Fault> {
    let mut reader = reader(bytes, budget, false)?;
    let global = reader.global_palette().map(palette);
    let screen = Size { width: reader.width().into(), height: reader.height().into() };
    let frame = reader.next_frame_info().map_err(fault)?.ok_or_else(|| Fault::damaged("found no frame"))?;
    let (place, transparent) = (Place::of(frame), frame.transparent);
    // Pillow widens the screen to the frame.
    let size = Size { width: screen.width.max(place.right()), height: screen.height.max(place.bottom()) };
    let local = frame.palette.as_deref().map(palette);
    budget.check(size, MEMORY)?;
    let mut colours = local.or(global).ok_or_else(|| Fault::damaged("found no palette"))?;
    if let Some(index) = transparent {
        colours.set_alpha(index, 0);
    }
    let mut indices = vec![0; place.area()];
    reader.read_into_buffer(&mut indices).map_err(fault)?;
    // Around the frame is the first colour, or what is transparent.
    let mut canvas = Canvas::new(size, colours.colour(transparent.unwrap_or(0)));
    canvas.draw(&place, &indices, &colours, None);
    Ok(Decoded { size, pixels: canvas.pixels, orientation: None })
}

/// Size, number of frames and time of an animation.
pub(crate) struct Timing {
    pub(crate) frames: usize,
    pub(crate) fps: f64,
    size: Size,
    work: u64,
}

impl Timing {
    /// Reads them without decoding pixels.
    pub(crate) fn read(bytes: &[u8], budget: &Budget<'_>) -> Result<Self, Fault> {
        let mut reader = reader(bytes, budget, true)?;
        let size = Size { width: reader.width().into(), height: reader.height().into() };
        budget.check(size, MEMORY)?;
        let (mut frames, mut work, mut time) = (0, 0, Duration::ZERO);
        while let Some(frame) = reader.next_frame_info().map_err(fault)? {
            let place = Place::of(frame);
            budget.check(Size { width: place.width as u32, height: place.height as u32 }, MEMORY)?;
            (frames, work) = (frames + 1, work + place.area() as u64);
            time += match Duration::from_millis(10 * u64::from(frame.delay)) {
                delay if delay <= LEAST_DELAY => DEFAULT_DELAY,
                delay => delay,
            };
        }
        let fps = frames as f64 / time.as_secs_f64();
        Ok(Timing { frames, fps, size, work })
    }

    /// Decodes the frames of these numbers, which rise; a number may occur twice.
    pub(crate) fn frames(
        &self,
        bytes: &[u8],
        wanted: &[usize],
        budget: &Budget<'_>,
    ) -> Result<Vec<RgbImage>, Fault> {
        budget.check_frames(self.size, wanted.len())?;
        budget.check_work(self.work)?;
        let mut reader = reader(bytes, budget, false)?;
        let global = reader.global_palette().map(palette);
        let mut canvas = Canvas::new(self.size, [255; 3]);
        let mut kept = Vec::with_capacity(wanted.len());
        let mut wanted = wanted.iter().peekable();
        let mut indices = Vec::new();
        for number in 0.. {
            if wanted.peek().is_none() {
                break;
            }
            let Some(frame) = reader.next_frame_info().map_err(fault)? else { break };
            let (place, transparent, dispose) = (Place::of(frame), frame.transparent, frame.dispose);
            let local = frame.palette.as_deref().map(palette);
            let colours = local.as_ref().or(global.as_ref());
            let colours = colours.ok_or_else(|| Fault::damaged("found no palette"))?;
            indices.clear();
            indices.resize(place.area(), 0);
            reader.read_into_buffer(&mut indices).map_err(fault)?;
            let before = (dispose == DisposalMethod::Previous).then(|| canvas.part(&place));
            canvas.draw(&place, &indices, colours, transparent);
            while wanted.next_if_eq(&&number).is_some() {
                kept.push(canvas.image());
            }
            match (dispose, before) {
                (DisposalMethod::Background, _) => canvas.fill(&place, [255; 3]),
                (_, Some(before)) => canvas.restore(&place, &before),
                _ => {}
            }
        }
        Ok(kept)
    }
}

fn reader<'a>(
    bytes: &'a [u8],
    budget: &Budget<'_>,
    skips_pixels: bool,
) -> Result<Decoder<Cursor<&'a [u8]>>, Fault> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    options.skip_frame_decoding(skips_pixels);
    options.allow_unknown_blocks(true);
    let limit = std::num::NonZeroU64::new(budget.memory()).map_or(MemoryLimit::Unlimited, MemoryLimit::Bytes);
    options.set_memory_limit(limit);
    options.read_info(Cursor::new(bytes)).map_err(fault)
}

fn fault(error: DecodingError) -> Fault {
    Fault::damaged(error)
}

fn palette(colours: &[u8]) -> Palette {
    Palette::new(colours.as_chunks::<3>().0.iter().copied())
}

/// Where a frame is on the screen; it may reach over its sides.
struct Place {
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

impl Place {
    fn of(frame: &::gif::Frame<'_>) -> Self {
        let [left, top, width, height] = [frame.left, frame.top, frame.width, frame.height].map(usize::from);
        Place { left, top, width, height }
    }

    fn area(&self) -> usize {
        self.width * self.height
    }

    fn right(&self) -> u32 {
        (self.left + self.width) as u32
    }

    fn bottom(&self) -> u32 {
        (self.top + self.height) as u32
    }
}

/// Pixels that a viewer shows.
struct Canvas {
    size: Size,
    pixels: Vec<u8>,
}

impl Canvas {
    fn new(size: Size, colour: [u8; 3]) -> Self {
        Canvas { size, pixels: colour.repeat(size.area() as usize) }
    }

    /// The bytes of a frame's rows, as far as they are on the screen.
    fn rows(&mut self, place: &Place) -> impl Iterator<Item = &mut [u8]> {
        let (width, height) = (self.size.width as usize, self.size.height as usize);
        let (left, right) = (place.left.min(width), (place.left + place.width).min(width));
        let (top, bottom) = (place.top.min(height), (place.top + place.height).min(height));
        let rows = &mut self.pixels[top * width * 3..bottom * width * 3];
        rows.chunks_exact_mut((width * 3).max(1)).map(move |row| &mut row[left * 3..right * 3])
    }

    /// Draws a frame; a transparent index leaves what is there.
    fn draw(&mut self, place: &Place, indices: &[u8], palette: &Palette, transparent: Option<u8>) {
        let indices = indices.chunks_exact(place.width.max(1));
        for (row, indices) in self.rows(place).zip(indices) {
            match transparent {
                None => Layout::opaque(Colours::Palette(palette)).write(indices, row),
                Some(transparent) => {
                    for (pixel, index) in row.chunks_exact_mut(3).zip(indices) {
                        if *index != transparent {
                            pixel.copy_from_slice(&palette.colour(*index));
                        }
                    }
                }
            }
        }
    }

    fn fill(&mut self, place: &Place, colour: [u8; 3]) {
        self.rows(place).flat_map(|row| row.as_chunks_mut().0).for_each(|pixel| *pixel = colour);
    }

    /// The pixels of a frame's rectangle.
    fn part(&mut self, place: &Place) -> Vec<u8> {
        self.rows(place).flat_map(|row| row.iter().copied()).collect()
    }

    fn restore(&mut self, place: &Place, part: &[u8]) {
        let mut rest = part;
        for row in self.rows(place) {
            let (start, end) = rest.split_at(row.len());
            row.copy_from_slice(start);
            rest = end;
        }
    }

    fn image(&self) -> RgbImage {
        RgbImage::from_raw(self.size.width, self.size.height, self.pixels.clone())
            .expect("three bytes for each pixel")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Format;
    use crate::video::{Clip, SAMPLED_FPS};
    use crate::{Error, LoadOptions, VideoProblem};

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

    fn limited(bytes: &[u8], options: &LoadOptions) -> Result<Vec<RgbImage>, Fault> {
        let budget = Budget { options, format: Format::Gif, len: bytes.len() };
        let timing = Timing::read(bytes, &budget)?;
        timing.frames(bytes, &(0..timing.frames).collect::<Vec<_>>(), &budget)
    }

    fn all(bytes: &[u8]) -> Vec<RgbImage> {
        limited(bytes, &LoadOptions::default()).unwrap()
    }

    /// Left and right pixel of the first row.
    fn ends(frame: &RgbImage) -> [[u8; 3]; 2] {
        [0, 3].map(|x| frame.get_pixel(x, 0).0)
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
        assert_eq!(frames[0].get_pixel(3, 1).0, WHITE);
        assert_eq!(crate::decode(&bytes, "x", &LoadOptions::default()).unwrap(), frames[0]);
    }

    #[test]
    fn rate_is_that_of_the_average_delay() {
        let rate = |delays: &[u8]| {
            let parts: Vec<_> = delays.iter().map(|d| part((0, 0, 4, 2), 0, 0, *d)).collect();
            let (bytes, options) = (gif(&parts), LoadOptions::default());
            let budget = Budget { options: &options, format: Format::Gif, len: bytes.len() };
            Timing::read(&bytes, &budget).unwrap().fps
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
        let bytes = gif(&[part((0, 0, 4, 2), 0, 0, 10), part((0, 0, 1, 1), 1, 0, 10)]);
        let limited = |max_pixels, max_clip_pixels| {
            limited(&bytes, &LoadOptions { max_pixels, max_clip_pixels, ..LoadOptions::default() })
        };
        assert_eq!(limited(8, 16).unwrap().len(), 2);
        for (of_frame, of_clip, expected) in [
            (8, 15, "expected at most 15 pixels in all frames of a GIF of 77 bytes, found 16 (2 sampled"),
            (7, 16, "expected at most 7 pixels, found 8 (GIF of 4x2)"),
        ] {
            let Err(Fault::TooLarge { message, .. }) = limited(of_frame, of_clip) else { panic!() };
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn a_long_animation_keeps_the_frames_that_the_model_sees() {
        // 60 seconds of 800 x 600 pixels, of which a frame changes one.
        let mut bytes = b"GIF89a\x20\x03\x58\x02\x80\0\0\0\0\0\xff\xff\xff".to_vec();
        let frame = b"\x21\xf9\x04\x04\x05\0\0\0\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0";
        bytes.extend(frame.repeat(1200));
        bytes.push(0x3b);
        let clip = Clip::from_gif(&bytes, "x", None, &LoadOptions::default()).unwrap();
        assert_eq!((clip.frames.len(), clip.fps), (69, SAMPLED_FPS));
        assert_eq!(clip.sampled().unwrap().len(), 69);
        let error = Clip::from_gif(&bytes, "x", Some(1e6), &LoadOptions::default()).unwrap_err();
        assert!(
            matches!(error, Error::Video { ref name, problem: VideoProblem::TooShort { .. } } if name == "x"),
            "{error}"
        );
    }

    #[test]
    fn refuses() {
        let options = LoadOptions::default();
        let whole = gif(&[part((0, 0, 4, 2), 0, 0, 10), part((0, 0, 4, 2), 1, 0, 10)]);
        for bytes in
            [&whole[..whole.len() - 6], &b"GIF89a"[..], &gif(&[])[..], &b"P6 1 1 255\n123"[..], &b""[..]]
        {
            let error = Clip::from_gif(bytes, "x", None, &options).unwrap_err();
            assert!(error.to_string().starts_with("x: "), "{error}");
        }
    }
}
