//! TIFF and BigTIFF: the first image, in strips or tiles, chunky or planar.
//!
//! Files that Pillow opens have the pixels that Pillow gives them, but for gray of 16 bits, which keeps its high byte.

mod ccitt;
mod compression;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use self::compression::Compression;
use crate::decoded::Decoded;
use crate::exif;
use crate::fault::Fault;
use crate::jpeg;
use crate::limits::Budget;
use crate::rgb::{Alpha, Colours, Layout, Palette, high_bytes, unpack};
use crate::size::Size;
use crate::tiff_directory::Directory;

mod tag {
    pub(super) const WIDTH: u16 = 256;
    pub(super) const HEIGHT: u16 = 257;
    pub(super) const BITS: u16 = 258;
    pub(super) const COMPRESSION: u16 = 259;
    pub(super) const PHOTOMETRIC: u16 = 262;
    pub(super) const FILL_ORDER: u16 = 266;
    pub(super) const STRIP_OFFSETS: u16 = 273;
    pub(super) const ORIENTATION: u16 = 274;
    pub(super) const SAMPLES: u16 = 277;
    pub(super) const ROWS_PER_STRIP: u16 = 278;
    pub(super) const STRIP_COUNTS: u16 = 279;
    pub(super) const PLANAR: u16 = 284;
    pub(super) const T4_OPTIONS: u16 = 292;
    pub(super) const PREDICTOR: u16 = 317;
    pub(super) const COLOUR_MAP: u16 = 320;
    pub(super) const TILE_WIDTH: u16 = 322;
    pub(super) const TILE_HEIGHT: u16 = 323;
    pub(super) const TILE_OFFSETS: u16 = 324;
    pub(super) const TILE_COUNTS: u16 = 325;
    pub(super) const EXTRA_SAMPLES: u16 = 338;
    pub(super) const SAMPLE_FORMAT: u16 = 339;
    pub(super) const JPEG_TABLES: u16 = 347;
    pub(super) const XMP: u16 = 700;
}

/// Most samples of a pixel, as in Pillow.
const MAX_SAMPLES: u64 = 6;

/// Whether a file has more pages than the one that is decoded.
pub(crate) fn has_pages(bytes: &[u8]) -> bool {
    Directory::read(bytes).is_ok_and(|directory| directory.has_next())
}

/// Decodes the first page.
pub(crate) fn decode(bytes: &[u8], budget: &Budget<'_>) -> Result<Decoded, Fault> {
    let directory = Directory::read(bytes)?;
    let page = Page::read(&directory, budget)?;
    let xmp = || directory.data(tag::XMP).and_then(exif::xmp_orientation);
    let orientation =
        directory.uint(tag::ORIENTATION).and_then(|value| u8::try_from(value).ok()).or_else(xmp);
    let mut pixels = vec![0; page.size.area() as usize * 3];
    for chunk in page.chunks() {
        if page.compression == Compression::Jpeg {
            page.write_jpeg(bytes, &chunk, &mut pixels)?;
        } else {
            page.write_samples(bytes, &chunk, &mut pixels)?;
        }
    }
    Ok(Decoded { size: page.size, pixels, orientation })
}

/// How an image is stored.
struct Page<'a> {
    directory: &'a Directory<'a>,
    size: Size,
    compression: Compression,
    photometric: u64,
    bits: usize,
    samples: usize,
    is_planar: bool,
    reversed_bits: bool,
    predictor: bool,
    alpha: Alpha,
    palette: Palette,
    /// Width and height of a strip or tile.
    chunk: (usize, usize),
    is_tiled: bool,
}

/// A strip or tile: its number, and the part of the image that it covers.
struct Chunk {
    number: usize,
    left: usize,
    top: usize,
    width: usize,
    height: usize,
}

impl<'a> Page<'a> {
    fn read(directory: &'a Directory<'a>, budget: &Budget<'_>) -> Result<Self, Fault> {
        let side = |tag, name| {
            let side = directory.first(tag).and_then(|side| u32::try_from(side).ok());
            side.ok_or_else(|| Fault::damaged(format!("expected a {name}, found none")))
        };
        let size = Size { width: side(tag::WIDTH, "width")?, height: side(tag::HEIGHT, "height")? };
        budget.check(size, 3)?;
        let first = |tag, default| directory.first(tag).unwrap_or(default);
        let compression = Compression::of(first(tag::COMPRESSION, 1), first(tag::T4_OPTIONS, 0))?;
        let photometric = first(tag::PHOTOMETRIC, 0);
        let is_jpeg = compression == Compression::Jpeg;
        let samples = first(tag::SAMPLES, if is_jpeg && matches!(photometric, 2 | 6) { 3 } else { 1 });
        if !(1..=MAX_SAMPLES).contains(&samples) {
            return Err(Fault::unsupported(format!("{samples} samples a pixel")));
        }
        let samples = samples as usize;
        let bits = depth(directory, samples)?;
        let colours = match photometric {
            0 | 1 | 3 => 1,
            2 => 3,
            5 => 4,
            6 if is_jpeg => 3,
            6 => return Err(Fault::unsupported("YCbCr samples that are not JPEG")),
            8..=10 => return Err(Fault::unsupported("Lab colours")),
            32803 => return Err(Fault::unsupported("raw samples of a camera")),
            other => return Err(Fault::unsupported(format!("colours of kind {other}"))),
        };
        if samples < colours {
            return Err(Fault::damaged(format!("expected {colours} samples a pixel, found {samples}")));
        }
        let is_tiled = directory.count(tag::TILE_OFFSETS) > 0 && directory.count(tag::STRIP_OFFSETS) == 0;
        let chunk = if is_tiled {
            (side(tag::TILE_WIDTH, "tile width")? as usize, side(tag::TILE_HEIGHT, "tile height")? as usize)
        } else {
            let rows = first(tag::ROWS_PER_STRIP, u64::MAX).min(u64::from(size.height));
            (size.width as usize, rows as usize)
        };
        let page = Page {
            directory,
            size,
            compression,
            photometric,
            bits,
            samples,
            is_planar: first(tag::PLANAR, 1) == 2 && samples > 1,
            reversed_bits: first(tag::FILL_ORDER, 1) == 2,
            predictor: predictor(first(tag::PREDICTOR, 1), compression, bits)?,
            alpha: alpha(directory, photometric, samples, colours),
            palette: palette(directory, photometric, bits)?,
            chunk,
            is_tiled,
        };
        page.check_chunks()?;
        Ok(page)
    }

    /// Refuses tiles that take much more memory or time than the image.
    fn check_chunks(&self) -> Result<(), Fault> {
        const FREE: u64 = 16 << 20;
        let (width, height) = (self.chunk.0 as u64, self.chunk.1 as u64);
        if width == 0 || height == 0 {
            return Err(Fault::damaged(format!("expected tiles with sides above 0, found {width}x{height}")));
        }
        let across = u64::from(self.size.width).div_ceil(width);
        let down = u64::from(self.size.height).div_ceil(height);
        let all = width.saturating_mul(height).saturating_mul(across).saturating_mul(down);
        if all > FREE.saturating_add(4 * self.size.area()) {
            return Err(Fault::unsupported(format!(
                "tiles of {width}x{height} in an image of {}",
                self.size
            )));
        }
        Ok(())
    }

    /// All strips or tiles of a plane, in order.
    fn chunks(&self) -> impl Iterator<Item = Chunk> {
        let (width, height) = (self.size.width as usize, self.size.height as usize);
        let (chunk_width, chunk_height) = self.chunk;
        let across = width.div_ceil(chunk_width);
        (0..across * height.div_ceil(chunk_height)).map(move |number| {
            let (left, top) = (number % across * chunk_width, number / across * chunk_height);
            Chunk {
                number,
                left,
                top,
                width: chunk_width.min(width - left),
                height: chunk_height.min(height - top),
            }
        })
    }

    /// Number of chunks of a plane.
    fn chunks_of_plane(&self) -> usize {
        let across = (self.size.width as usize).div_ceil(self.chunk.0);
        across * (self.size.height as usize).div_ceil(self.chunk.1)
    }

    /// Bytes of a chunk in the file. `len` bytes are enough where they are not compressed.
    fn data<'b>(&self, bytes: &'b [u8], number: usize, len: usize) -> Result<Cow<'b, [u8]>, Fault> {
        let (offsets, counts) = if self.is_tiled {
            (tag::TILE_OFFSETS, tag::TILE_COUNTS)
        } else {
            (tag::STRIP_OFFSETS, tag::STRIP_COUNTS)
        };
        let place = |tag| self.directory.uint_at(tag, number).and_then(|value| usize::try_from(value).ok());
        let rest = place(offsets).and_then(|offset| bytes.get(offset..)).ok_or_else(Fault::ends_early)?;
        let count = match (self.compression, place(counts)) {
            (Compression::None, _) => len,
            // Some writers leave the count out.
            (_, None | Some(0)) => rest.len(),
            (_, Some(count)) if count > rest.len() => return Err(Fault::ends_early()),
            (_, Some(count)) => count,
        };
        let data = &rest[..count.min(rest.len())];
        if self.reversed_bits && self.compression != Compression::Jpeg {
            return Ok(data.iter().map(|byte| byte.reverse_bits()).collect());
        }
        Ok(data.into())
    }

    /// Converts the samples of a chunk to RGB.
    fn write_samples(&self, bytes: &[u8], chunk: &Chunk, pixels: &mut [u8]) -> Result<(), Fault> {
        let in_row = if self.is_planar { 1 } else { self.samples };
        let row_len = (self.chunk.0 * in_row * self.bits).div_ceil(8);
        // Tiles are whole, strips end with the image.
        let rows = if self.is_tiled { self.chunk.1 } else { chunk.height };
        let planes = if self.is_planar { self.samples } else { 1 };
        let planes = (0..planes)
            .map(|plane| {
                let number = chunk.number + plane * self.chunks_of_plane();
                let data = self.data(bytes, number, rows * row_len)?;
                let mut data = self.compression.decode(&data, self.chunk.0 * in_row, rows, row_len)?;
                if self.predictor {
                    for row in data.chunks_exact_mut(row_len) {
                        sum(row, in_row, self.bits, self.directory.big_endian());
                    }
                }
                Ok(data)
            })
            .collect::<Result<Vec<_>, Fault>>()?;
        let layout = self.layout();
        let mut samples = vec![0; chunk.width * self.samples];
        for y in 0..chunk.height {
            for (plane, data) in planes.iter().enumerate() {
                let row = self.bytes_of(&data[y * row_len..][..row_len]);
                let step = if self.is_planar { self.samples } else { 1 };
                let places = samples[plane..].iter_mut().step_by(step);
                places.zip(&*row).for_each(|(place, sample)| *place = *sample);
            }
            layout.write(&samples, self.row(chunk, y, pixels));
        }
        Ok(())
    }

    /// Samples of 8 bits.
    fn bytes_of<'b>(&self, row: &'b [u8]) -> Cow<'b, [u8]> {
        let is_index = self.photometric == 3;
        let mut samples: Cow<'b, [u8]> = match self.bits {
            8 => row.into(),
            16 => {
                let mut row = row.to_vec();
                high_bytes(&mut row, self.directory.big_endian());
                row.into()
            }
            // The high 8 of 12 bits.
            12 => row
                .chunks(3)
                .flat_map(|pair| match *pair {
                    [a, b, c] => [a, (b & 15) << 4 | c >> 4],
                    [a, ..] => [a, 0],
                    [] => [0, 0],
                })
                .collect::<Vec<_>>()
                .into(),
            bits => unpack(row, bits, !is_index).collect::<Vec<_>>().into(),
        };
        if self.photometric == 0 {
            samples.to_mut().iter_mut().for_each(|sample| *sample = !*sample);
        }
        samples
    }

    fn layout(&self) -> Layout<'_> {
        let colours = match self.photometric {
            0 | 1 => Colours::Gray,
            3 => Colours::Palette(&self.palette),
            5 => Colours::Cmyk,
            _ => Colours::Rgb,
        };
        Layout { colours, alpha: self.alpha, samples: self.samples }
    }

    /// RGB of a row of a chunk.
    fn row<'b>(&self, chunk: &Chunk, y: usize, pixels: &'b mut [u8]) -> &'b mut [u8] {
        let at = (chunk.top + y) * self.size.width as usize + chunk.left;
        &mut pixels[at * 3..][..chunk.width * 3]
    }

    /// Decodes a chunk that is a JPEG without the tables that all share.
    fn write_jpeg(&self, bytes: &[u8], chunk: &Chunk, pixels: &mut [u8]) -> Result<(), Fault> {
        let is_known = match self.photometric {
            0 | 1 => self.samples == 1,
            2 | 6 => self.samples == 3 && !self.is_planar,
            _ => false,
        };
        if !is_known || self.bits != 8 {
            return Err(Fault::unsupported("JPEG samples of this kind"));
        }
        let data = self.data(bytes, chunk.number, 0)?;
        let tables = self.directory.data(tag::JPEG_TABLES).unwrap_or_default();
        let stream = jpeg_stream(tables, &data, self.photometric);
        let found = jpeg::File::read(&stream)?.frame.size;
        if u64::from(found.width) * u64::from(found.height) > 2 * (self.chunk.0 * self.chunk.1) as u64 {
            return Err(Fault::damaged(format!("found a JPEG of {found} for a part of the image")));
        }
        let (size, samples) = jpeg::pixels(&stream)?;
        let (width, height) = (size.width as usize, size.height as usize);
        if width < chunk.width || height < chunk.height {
            return Err(Fault::damaged(format!("found a JPEG of {size} for a larger part of the image")));
        }
        for (y, row) in samples.chunks_exact(width * 3).take(chunk.height).enumerate() {
            let out = self.row(chunk, y, pixels);
            out.copy_from_slice(&row[..out.len()]);
            if self.photometric == 0 {
                out.iter_mut().for_each(|value| *value = !*value);
            }
        }
        Ok(())
    }
}

/// A JPEG with its tables, and with the segment that says whether it is YCbCr.
fn jpeg_stream(tables: &[u8], data: &[u8], photometric: u64) -> Vec<u8> {
    const START: &[u8] = b"\xff\xd8";
    const END: &[u8] = b"\xff\xd9";
    let transform = u8::from(photometric == 6);
    let tables = tables.strip_prefix(START).unwrap_or(tables);
    let tables = tables.strip_suffix(END).unwrap_or(tables);
    let data = data.strip_prefix(START).unwrap_or(data);
    [START, b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0", &[transform], tables, data].concat()
}

/// Bits of a sample, the same for all.
fn depth(directory: &Directory<'_>, samples: usize) -> Result<usize, Fault> {
    let bits = directory.first(tag::BITS).unwrap_or(1);
    let others = (1..samples.min(directory.count(tag::BITS))).filter_map(|i| directory.uint_at(tag::BITS, i));
    if let Some(other) = others.into_iter().find(|other| *other != bits) {
        return Err(Fault::unsupported(format!("samples of {bits} and {other} bits")));
    }
    let format = directory.first(tag::SAMPLE_FORMAT).unwrap_or(1);
    match (bits, format) {
        (1 | 2 | 4 | 8 | 16, 1 | 4) | (12, 1) | (8, 2) => Ok(bits as usize),
        (_, 3) => Err(Fault::unsupported(format!("floating point samples of {bits} bits"))),
        (_, 2) => Err(Fault::unsupported(format!("signed samples of {bits} bits"))),
        _ => Err(Fault::unsupported(format!("samples of {bits} bits"))),
    }
}

/// Whether samples are differences to the pixel on their left.
fn predictor(number: u64, compression: Compression, bits: usize) -> Result<bool, Fault> {
    let has_one = matches!(compression, Compression::Lzw | Compression::Deflate);
    match number {
        2 if has_one && (bits == 8 || bits == 16) => Ok(true),
        2 if has_one => Err(Fault::unsupported(format!("differences of {bits} bits"))),
        3 if has_one => Err(Fault::unsupported("differences of floating point samples")),
        _ => Ok(false),
    }
}

/// Meaning of the sample after the colours. Pillow drops the alpha of gray.
fn alpha(directory: &Directory<'_>, photometric: u64, samples: usize, colours: usize) -> Alpha {
    if samples <= colours || !matches!(photometric, 2 | 3) {
        return Alpha::Ignored;
    }
    match directory.first(tag::EXTRA_SAMPLES) {
        // Corel Draw writes 999.
        Some(2 | 999) => Alpha::Straight,
        Some(1) => Alpha::Associated,
        None if photometric == 2 => Alpha::Straight,
        _ => Alpha::Ignored,
    }
}

/// Colours of an indexed image: all reds, all greens, all blues, of 16 bits.
fn palette(directory: &Directory<'_>, photometric: u64, bits: usize) -> Result<Palette, Fault> {
    if photometric != 3 {
        return Ok(Palette::new([]));
    }
    if bits > 8 {
        return Err(Fault::unsupported(format!("a palette of {bits} bits")));
    }
    let n = directory.count(tag::COLOUR_MAP) / 3;
    if n == 0 {
        return Err(Fault::damaged("expected a palette, found none"));
    }
    let high = |i| directory.uint_at(tag::COLOUR_MAP, i).map_or(0, |value| (value >> 8) as u8);
    Ok(Palette::new((0..n.min(256)).map(|i| [high(i), high(n + i), high(2 * n + i)])))
}

/// Adds to each sample the one on its left.
fn sum(row: &mut [u8], samples: usize, bits: usize, big_endian: bool) {
    if bits == 8 {
        for i in samples..row.len() {
            row[i] = row[i].wrapping_add(row[i - samples]);
        }
        return;
    }
    let read = |pair: [u8; 2]| if big_endian { u16::from_be_bytes(pair) } else { u16::from_le_bytes(pair) };
    let pairs = row.as_chunks_mut::<2>().0;
    for i in samples..pairs.len() {
        let value = read(pairs[i]).wrapping_add(read(pairs[i - samples]));
        pairs[i] = if big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
    }
}
