//! BMP of every header and compression that Pillow reads: palettes, bit fields, run lengths.

use crate::bytes::{array, u16_le, u32_le};
use crate::decoded::Decoded;
use crate::fault::Fault;
use crate::limits::Budget;
use crate::rgb::{Colours, Layout, Palette, on_white, unpack};
use crate::size::Size;

const FILE_HEADER: usize = 14;
const RAW: u32 = 0;
const RLE8: u32 = 1;
const RLE4: u32 = 2;
const BIT_FIELDS: u32 = 3;
const ALPHA_BIT_FIELDS: u32 = 6;

/// Header of the pixels.
struct Header {
    len: usize,
    size: Size,
    top_down: bool,
    bits: usize,
    compression: u32,
    /// Entries of the palette.
    colours: usize,
    /// Bytes of an entry.
    entry: usize,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let at = FILE_HEADER;
        let len = u32_le(bytes, at)? as usize;
        let header = match len {
            12 => {
                let (width, height) = (u16_le(bytes, at + 4)?, u16_le(bytes, at + 6)?);
                let bits = usize::from(u16_le(bytes, at + 10)?);
                let size = Size { width: width.into(), height: height.into() };
                Header { len, size, top_down: false, bits, compression: RAW, colours: 0, entry: 3 }
            }
            40 | 52 | 56 | 64 | 108 | 124 => {
                let width = i32::from_le_bytes(array(bytes, at + 4)?);
                let height = i32::from_le_bytes(array(bytes, at + 8)?);
                let size = Size { width: width.max(0).cast_unsigned(), height: height.unsigned_abs() };
                let bits = usize::from(u16_le(bytes, at + 14)?);
                let (compression, colours) = (u32_le(bytes, at + 16)?, u32_le(bytes, at + 32)? as usize);
                Header { len, size, top_down: height < 0, bits, compression, colours, entry: 4 }
            }
            len => return Err(Fault::unsupported(format!("header of {len} bytes"))),
        };
        match header.bits {
            1 | 2 | 4 | 8 | 16 | 24 | 32 => Ok(header),
            bits => Err(Fault::unsupported(format!("{bits} bits a pixel"))),
        }
    }

    /// The palette of an indexed image.
    fn palette(&self, bytes: &[u8]) -> Palette {
        let at = FILE_HEADER + self.len;
        let count = if self.colours == 0 { 1 << self.bits } else { self.colours.min(256) };
        let entries = bytes.get(at..).unwrap_or_default().chunks_exact(self.entry).take(count);
        Palette::new(entries.map(|entry| [entry[2], entry[1], entry[0]]))
    }

    /// Where the pixels begin.
    fn pixels<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], Fault> {
        let mut at = u32_le(bytes, 10)? as usize;
        let after_header = FILE_HEADER + self.len;
        let palette = if self.colours == 0 { 1usize << self.bits.min(8) } else { self.colours };
        let is_indexed = self.bits <= 8;
        if at == 0 {
            let masks = if self.compression == BIT_FIELDS && self.len == 40 { 12 } else { 0 };
            at = after_header + masks + if is_indexed { self.entry * palette } else { 0 };
        } else if at == after_header && is_indexed {
            // Some writers forget the palette.
            at = at.saturating_add(palette.saturating_mul(4));
        }
        bytes.get(at..).ok_or_else(Fault::ends_early)
    }
}

/// Decodes the pixels.
pub(crate) fn decode(bytes: &[u8], budget: &Budget<'_>) -> Result<Decoded, Fault> {
    let header = Header::read(bytes)?;
    // Run lengths make any number of pixels of nothing.
    let is_rle = matches!(header.compression, RLE8 | RLE4);
    budget.check(header.size, if is_rle { 4 } else { 3 })?;
    let palette = header.palette(bytes);
    let layout = Layout::opaque(Colours::Palette(&palette));
    let data = header.pixels(bytes)?;
    let (width, bits) = (header.size.width as usize, header.bits);
    let mut pixels = vec![0; header.size.area() as usize * 3];
    let row_len = width * 3;
    let height = header.size.height as usize;
    let place = |y: usize| (if header.top_down { y } else { height - 1 - y }) * row_len;

    if is_rle {
        if bits != 8 && bits != 4 {
            return Err(Fault::unsupported(format!("run lengths of {bits} bits a pixel")));
        }
        let indices = run_lengths(data, width, height, header.compression == RLE4)?;
        for (y, row) in indices.chunks_exact(width).enumerate() {
            layout.write(row, &mut pixels[place(y)..][..row_len]);
        }
        return Ok(Decoded { size: header.size, pixels, orientation: None });
    }
    let masks = match header.compression {
        RAW => Masks::default_of(bits),
        BIT_FIELDS | ALPHA_BIT_FIELDS if bits >= 16 => Masks::read(bytes, &header)?,
        other => return Err(Fault::unsupported(format!("compression {other} of {bits} bits a pixel"))),
    };
    let stride = (width * bits).div_ceil(32) * 4;
    if data.len() < stride * (height - 1) + (width * bits).div_ceil(8) {
        return Err(Fault::ends_early());
    }
    let masks = masks.seen(data, stride, width, bits);
    for (y, row) in data.chunks(stride).take(height).enumerate() {
        let out = &mut pixels[place(y)..][..row_len];
        match bits {
            8 => layout.write(&row[..width], out),
            1 | 2 | 4 => layout.write(&unpack(row, bits, false).take(width).collect::<Vec<_>>(), out),
            bits => {
                for (out, pixel) in out.chunks_exact_mut(3).zip(row.chunks_exact(bits / 8)) {
                    out.copy_from_slice(&masks.rgb(little_endian(pixel)));
                }
            }
        }
    }
    Ok(Decoded { size: header.size, pixels, orientation: None })
}

fn little_endian(pixel: &[u8]) -> u32 {
    pixel.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// Bits of red, green, blue and alpha in a pixel.
#[derive(Clone, Copy)]
struct Masks {
    colours: [u32; 3],
    alpha: u32,
}

impl Masks {
    fn default_of(bits: usize) -> Self {
        let colours = if bits == 16 { [0x7c00, 0x3e0, 0x1f] } else { [0xff_0000, 0xff00, 0xff] };
        Masks { colours, alpha: 0 }
    }

    fn read(bytes: &[u8], header: &Header) -> Result<Self, Fault> {
        let mask = |i: usize| u32_le(bytes, FILE_HEADER + 40 + 4 * i);
        let colours = [mask(0)?, mask(1)?, mask(2)?];
        let has_alpha = header.len >= 56 || header.compression == ALPHA_BIT_FIELDS;
        let alpha = if has_alpha { mask(3)? } else { 0 };
        if colours == [0; 3] && alpha == 0 {
            // Pillow reads blue, green, red, alpha.
            return Ok(Masks { alpha: 0xff00_0000, ..Self::default_of(32) });
        }
        Ok(Masks { colours, alpha })
    }

    /// The masks that are looked at. Pillow ignores the alpha of 16 bits, where it is mostly left 0; what Pillow does
    /// not open at all is treated alike if its alpha is 0 everywhere.
    fn seen(self, data: &[u8], stride: usize, width: usize, bits: usize) -> Self {
        let known = [
            ([0xff_0000, 0xff00, 0xff], 0xff00_0000),
            ([0xff, 0xff00, 0xff_0000], 0xff00_0000),
            ([0xff00_0000, 0xff_0000, 0xff00], 0xff),
            ([0xff00_0000, 0xff00, 0xff], 0xff_0000),
        ];
        if self.alpha == 0 || (bits == 32 && known.contains(&(self.colours, self.alpha))) {
            return self;
        }
        let opaque = Masks { alpha: 0, ..self };
        if bits == 16 && [[0xf800, 0x7e0, 0x1f], [0x7c00, 0x3e0, 0x1f]].contains(&self.colours) {
            return opaque;
        }
        let mut pixels = data.chunks(stride).flat_map(|row| row.chunks_exact(bits / 8).take(width));
        if pixels.any(|pixel| little_endian(pixel) & self.alpha != 0) { self } else { opaque }
    }

    fn rgb(self, pixel: u32) -> [u8; 3] {
        let colour = self.colours.map(|mask| field(pixel, mask));
        if self.alpha == 0 {
            return colour;
        }
        let alpha = field(pixel, self.alpha);
        colour.map(|value| on_white(value, alpha))
    }
}

/// The value of a bit field from 0 to 255, rounded down as Pillow does.
fn field(pixel: u32, mask: u32) -> u8 {
    if mask == 0 {
        return 0;
    }
    let shift = mask.trailing_zeros();
    let (value, most) = (u64::from((pixel & mask) >> shift), u64::from(mask >> shift));
    (value * 255 / most) as u8
}

/// Indices of an image of run lengths; what is left out is 0. Pixels beyond the end of a row are dropped.
fn run_lengths(data: &[u8], width: usize, height: usize, four_bits: bool) -> Result<Vec<u8>, Fault> {
    let len = width * height;
    let mut out: Vec<u8> = Vec::with_capacity(len);
    let nibbles = |byte: u8| [byte >> 4, byte & 15];
    let (mut at, mut x) = (0, 0);
    while out.len() < len {
        let [count, value] = array(data, at)?;
        at += 2;
        match (count, value) {
            (0, 0) => {
                out.resize(out.len().next_multiple_of(width), 0);
                x = 0;
            }
            (0, 1) => break,
            (0, 2) => {
                let [right, up] = array(data, at)?;
                at += 2;
                out.resize((out.len() + usize::from(right) + usize::from(up) * width).min(len), 0);
                x = out.len() % width;
            }
            (0, n) => {
                let n = usize::from(n);
                let bytes = if four_bits { n.div_ceil(2) } else { n };
                let run = data.get(at..at + bytes).ok_or_else(Fault::ends_early)?;
                // Runs end at an even place.
                at = (at + bytes).next_multiple_of(2);
                if four_bits {
                    out.extend(run.iter().flat_map(|byte| nibbles(*byte)).take(n));
                } else {
                    out.extend(run);
                }
                x += n;
            }
            (n, value) => {
                let n = usize::from(n).min(width.saturating_sub(x));
                let pair = if four_bits { nibbles(value) } else { [value; 2] };
                out.extend(pair.iter().cycle().take(n));
                x += n;
            }
        }
    }
    out.resize(len, 0);
    Ok(out)
}
