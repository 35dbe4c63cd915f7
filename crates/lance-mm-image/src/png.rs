//! PNG: pixels of the first image, and where its orientation is.
//!
//! Only chunks that make pixels reach the decoder. Colour profiles, texts and unknown chunks, which may inflate to any
//! size, are left out; a missing last chunk is added.

use std::io::{Cursor, Read};

use ::png::{BitDepth, ColorType, Decoder, Transformations};

use crate::decoded::Decoded;
use crate::exif::{self, Orientation};
use crate::fault::Fault;
use crate::limits::{Budget, MAX_METADATA_BYTES};
use crate::rgb::{Alpha, Colours, Layout, Palette, high_bytes, unpack};
use crate::size::Size;

const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
const END: [u8; 12] = *b"\0\0\0\0IEND\xae\x42\x60\x82";

/// Decodes the image of the `IDAT` chunks.
pub(crate) fn decode(bytes: &[u8], budget: &Budget<'_>) -> Result<Decoded, Fault> {
    let header = Header::read(bytes)?;
    budget.check(header.size, header.memory())?;
    let orientation = metadata(bytes);
    let mut decoder = Decoder::new(Cursor::new(pixel_chunks(bytes)?));
    decoder.set_transformations(match header.colour {
        Colour::PALETTE => Transformations::IDENTITY,
        _ => Transformations::EXPAND,
    });
    decoder.set_limits(::png::Limits { bytes: usize::try_from(budget.memory()).unwrap_or(usize::MAX) });
    let mut reader = decoder.read_info().map_err(fault)?;
    let palette = palette(reader.info())?;
    let (colour, depth) = reader.output_color_type();
    let layout = match colour {
        ColorType::Grayscale => Layout::opaque(Colours::Gray),
        // Pillow opens 16 bits as RGBA, which goes onto white, and drops the alpha of 8 bits.
        ColorType::GrayscaleAlpha if depth == BitDepth::Sixteen => Layout::with_alpha(Colours::Gray),
        ColorType::GrayscaleAlpha => Layout { alpha: Alpha::Ignored, ..Layout::with_alpha(Colours::Gray) },
        ColorType::Rgb => Layout::opaque(Colours::Rgb),
        ColorType::Rgba => Layout::with_alpha(Colours::Rgb),
        ColorType::Indexed => Layout::opaque(Colours::Palette(&palette)),
    };
    let samples = |row: &[u8]| match depth {
        BitDepth::Eight => row.to_vec(),
        BitDepth::Sixteen => {
            let mut row = row.to_vec();
            high_bytes(&mut row, true);
            row
        }
        // Gray is expanded already.
        depth => unpack(row, depth as usize, false).collect(),
    };
    let row_len = header.size.width as usize * 3;
    let mut pixels = vec![0; header.size.area() as usize * 3];
    if header.interlaced {
        let len = reader.output_buffer_size().ok_or_else(|| Fault::damaged("too large"))?;
        let mut all = vec![0; len];
        let info = reader.next_frame(&mut all).map_err(fault)?;
        for (row, out) in all.chunks_exact(info.line_size.max(1)).zip(pixels.chunks_exact_mut(row_len)) {
            layout.write(&samples(row), out);
        }
    } else {
        for out in pixels.chunks_exact_mut(row_len) {
            let row = reader.next_row().map_err(fault)?.ok_or_else(Fault::ends_early)?;
            layout.write(&samples(row.data()), out);
        }
    }
    Ok(Decoded { size: header.size, pixels, orientation })
}

/// An error of the decoder.
fn fault(error: ::png::DecodingError) -> Fault {
    match error {
        ::png::DecodingError::IoError(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
            Fault::ends_early()
        }
        error => Fault::damaged(error),
    }
}

/// Colour types of the header.
struct Colour;

impl Colour {
    const GRAY: u8 = 0;
    const PALETTE: u8 = 3;
}

/// The header, which is read here because nothing may be allocated before it is checked.
struct Header {
    size: Size,
    colour: u8,
    depth: u8,
    interlaced: bool,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let Some(Chunk { kind: b"IHDR", data, .. }) = Chunks::of(bytes).next() else {
            return Err(Fault::damaged("expected a header, found none"));
        };
        let [a, b, c, d, e, f, g, h, depth, colour, _, _, interlace, ..] = *data else {
            return Err(Fault::ends_early());
        };
        let size = Size { width: u32::from_be_bytes([a, b, c, d]), height: u32::from_be_bytes([e, f, g, h]) };
        Ok(Header { size, colour, depth, interlaced: interlace != 0 })
    }

    /// Bytes that a pixel takes: RGB, and all samples where the rows do not come in order.
    fn memory(&self) -> u64 {
        let samples = if self.colour == Colour::PALETTE || self.colour == Colour::GRAY { 1 } else { 4 };
        let wide = u64::from(self.depth > 8) + 1;
        3 + u64::from(self.interlaced) * samples * wide
    }
}

/// A palette with transparent entries on white; unused for other colour types.
fn palette(info: &::png::Info<'_>) -> Result<Palette, Fault> {
    let colours = info.palette.as_deref().unwrap_or_default();
    if info.color_type == ColorType::Indexed && colours.is_empty() {
        return Err(Fault::damaged("expected a palette, found none"));
    }
    let mut palette = Palette::new(colours.as_chunks::<3>().0.iter().copied());
    let alphas = info.trns.as_deref().unwrap_or_default();
    (0..=255).zip(alphas).for_each(|(index, alpha)| palette.set_alpha(index, *alpha));
    Ok(palette)
}

/// One chunk of a PNG.
struct Chunk<'a> {
    kind: &'a [u8; 4],
    data: &'a [u8],
    /// Length, kind, data and checksum, as far as the file goes.
    whole: &'a [u8],
    /// Whether the file goes on to its end.
    is_complete: bool,
}

/// Chunks after the signature. A chunk that the file cuts off is the last.
struct Chunks<'a>(&'a [u8]);

impl<'a> Chunks<'a> {
    fn of(bytes: &'a [u8]) -> Self {
        Chunks(bytes.strip_prefix(SIGNATURE).unwrap_or_default())
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Chunk<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let data = &rest[..length.min(rest.len())];
        let end = length.saturating_add(12).min(self.0.len());
        let (whole, rest) = self.0.split_at(end);
        self.0 = rest;
        Some(Chunk { kind, data, whole, is_complete: end == length.saturating_add(12) })
    }
}

/// The file without chunks that make no pixels, with a last chunk.
fn pixel_chunks(bytes: &[u8]) -> Result<Vec<u8>, Fault> {
    let mut out = SIGNATURE.to_vec();
    let mut has_data = false;
    let palette = bytes.get(25) == Some(&Colour::PALETTE);
    for chunk in Chunks::of(bytes) {
        let is_used = match chunk.kind {
            b"IHDR" | b"PLTE" => !has_data,
            // Upstream ignores the transparent colour of other types.
            b"tRNS" => !has_data && palette,
            b"IDAT" => true,
            b"IEND" => break,
            _ => false,
        };
        has_data |= chunk.kind == b"IDAT";
        if is_used && !chunk.is_complete {
            return Err(Fault::ends_early());
        }
        if is_used {
            out.extend(chunk.whole);
        }
    }
    out.extend(END);
    Ok(out)
}

/// Orientation from `eXIf`, which may follow the pixels, or from texts that hold EXIF or XMP data.
fn metadata(bytes: &[u8]) -> Option<Orientation> {
    let (mut exif, mut profile, mut xmp) = (None, None, None);
    for chunk in Chunks::of(bytes) {
        match chunk.kind {
            b"eXIf" => exif = Some(chunk.data),
            b"zTXt" | b"tEXt" if chunk.data.starts_with(b"Raw profile type exif\0") => {
                profile = hexadecimal(&text(chunk.data, chunk.kind == b"zTXt"));
            }
            b"iTXt" if chunk.data.starts_with(b"XML:com.adobe.xmp\0") => {
                xmp = international_text(chunk.data);
            }
            b"IEND" => break,
            _ => {}
        }
    }
    exif::of(exif.or(profile.as_deref()), xmp.as_deref())
}

/// Text of a `tEXt` or `zTXt` chunk after its keyword.
fn text(data: &[u8], compressed: bool) -> Vec<u8> {
    let start = data.iter().position(|byte| *byte == 0).map_or(data.len(), |end| end + 1);
    match &data[start..] {
        // The compression method comes first.
        [_, rest @ ..] if compressed => inflated(rest),
        rest => rest.to_vec(),
    }
}

/// Text of an `iTXt` chunk: keyword, flag, method, language, translated keyword, text.
fn international_text(data: &[u8]) -> Option<Vec<u8>> {
    let mut fields = data.splitn(2, |byte| *byte == 0);
    let [flag, _, rest @ ..] = fields.nth(1)? else { return None };
    let text = rest.splitn(3, |byte| *byte == 0).nth(2)?;
    Some(if *flag == 1 { inflated(text) } else { text.to_vec() })
}

/// The start of compressed data, as much of it as is whole.
fn inflated(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // A text that does not inflate has no orientation.
    let _ = flate2::read::ZlibDecoder::new(data).take(MAX_METADATA_BYTES).read_to_end(&mut out);
    out
}

/// Bytes of ImageMagick's profiles: an empty line, a name, a length, hexadecimal lines.
fn hexadecimal(text: &[u8]) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.split(|byte| *byte == b'\n').skip(3).flatten().copied().filter(u8::is_ascii_graphic).collect();
    let pairs = digits.as_chunks::<2>().0.iter();
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}
