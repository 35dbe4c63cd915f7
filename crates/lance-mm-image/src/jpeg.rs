//! JPEG: pixels, orientation, and detection of damage.
//!
//! The decoder fills with gray what it cannot read. That suits a viewer, but a model would describe the gray: here the
//! codes are checked first, it runs in its strict mode, on a stream that has been reduced to the segments that make
//! pixels, and a file without its end is refused.

mod scan;

use zune_jpeg::errors::DecodeErrors;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use crate::decoded::Decoded;
use crate::exif::{self, Orientation};
use crate::fault::Fault;
use crate::limits::Budget;
use crate::rgb::{Colours, Layout};
use crate::size::Size;

/// Start of image.
const START: u8 = 0xd8;
/// End of image, the last marker of a file.
const END: u8 = 0xd9;
/// Start of a scan: its header, then entropy-coded data.
const SCAN: u8 = 0xda;
/// Frame header of a progressive image.
const PROGRESSIVE: u8 = 0xc2;

/// Decodes the first image of a file.
pub(crate) fn decode(bytes: &[u8], budget: &Budget<'_>) -> Result<Decoded, Fault> {
    let file = File::read(bytes)?;
    budget.check(file.frame.size, file.frame.memory())?;
    let end = end(bytes).ok_or_else(|| Fault::Unusable("truncated JPEG, found no end marker".to_owned()))?;
    let stream = [&file.headers, &bytes[file.scan..end]].concat();
    let (size, pixels) = pixels(&stream)?;
    if size != file.frame.size {
        return Err(Fault::damaged(format!("expected an image of {}, found {size}", file.frame.size)));
    }
    Ok(Decoded { size, pixels, orientation: file.orientation })
}

/// Decodes a stream whose size was checked; damage is an error.
pub(crate) fn pixels(stream: &[u8]) -> Result<(Size, Vec<u8>), Fault> {
    scan::check(stream)?;
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_max_scans(1000);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(stream), options);
    decoder.decode_headers().map_err(|e| fault(&e))?;
    let gray = matches!(decoder.input_colorspace(), Some(ColorSpace::Luma));
    let colours = if gray { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(colours));
    let samples = decoder.decode().map_err(|e| fault(&e))?;
    let (width, height) = decoder.dimensions().ok_or_else(Fault::ends_early)?;
    let size = Size { width: width as u32, height: height as u32 };
    let pixels = if gray { Layout::opaque(Colours::Gray).rgb(&samples).flatten().collect() } else { samples };
    if pixels.len() as u64 != size.area() * 3 {
        return Err(Fault::damaged(format!("expected {size} pixels, found {} bytes", pixels.len())));
    }
    Ok((size, pixels))
}

fn fault(error: &DecodeErrors) -> Fault {
    match error {
        DecodeErrors::Unsupported(kind) => Fault::unsupported(format!("{kind:?}")),
        error => Fault::damaged(error.to_string().replace('\n', " ")),
    }
}

/// Frame header: how the image is coded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    pub(crate) size: Size,
    marker: u8,
    components: u8,
}

impl Frame {
    fn read(marker: u8, data: &[u8]) -> Result<Self, Fault> {
        let [precision, h0, h1, w0, w1, components, ..] = *data else { return Err(Fault::ends_early()) };
        let kind = match marker {
            0xc0..=0xc2 if precision == 8 => {
                let (width, height) = (u16::from_be_bytes([w0, w1]), u16::from_be_bytes([h0, h1]));
                let size = Size { width: width.into(), height: height.into() };
                return Ok(Frame { size, marker, components });
            }
            0xc0..=0xc2 => return Err(Fault::unsupported(format!("{precision} bits a sample"))),
            0xc3 | 0xc7 | 0xcb | 0xcf => "lossless coding",
            0xc9 | 0xca | 0xcd | 0xce => "arithmetic coding",
            _ => "hierarchical coding",
        };
        Err(Fault::unsupported(kind))
    }

    /// Bytes that a pixel takes; progressive images keep two for each coefficient.
    fn memory(self) -> u64 {
        let coefficients = if self.marker == PROGRESSIVE { 2 * u64::from(self.components) } else { 0 };
        coefficients + if self.components == 1 { 4 } else { 3 }
    }
}

/// Segments of a file before its first scan.
pub(crate) struct File {
    pub(crate) frame: Frame,
    orientation: Option<Orientation>,
    /// Those that make pixels, after the start of the image.
    headers: Vec<u8>,
    /// Where the scan begins, at its marker.
    scan: usize,
}

impl File {
    pub(crate) fn read(bytes: &[u8]) -> Result<Self, Fault> {
        let (mut frame, mut adobe) = (None, false);
        let (mut exif, mut xmp) = (None, None);
        let mut jfif = false;
        let mut headers = vec![0xff, START];
        let mut rest = bytes;
        while let Some((marker, after)) = next_marker(rest) {
            let at = bytes.len() - after.len() - 2;
            if matches!(marker, 0x01 | 0xd0..=START) {
                rest = after;
                continue;
            }
            if marker == END {
                break;
            }
            if marker == SCAN {
                let frame: (Frame, &[u8]) =
                    frame.ok_or_else(|| Fault::damaged("found a scan before a frame"))?;
                if !jfif && !adobe && is_rgb(frame.1) {
                    // Components called R, G and B are no YCbCr; Adobe's segment says so to the decoder.
                    headers.extend(b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0");
                }
                let orientation = exif::of(exif, xmp);
                return Ok(File { frame: frame.0, orientation, headers, scan: at });
            }
            let length = after.first_chunk().map(|l| usize::from(u16::from_be_bytes(*l)));
            let length = length.ok_or_else(Fault::ends_early)?;
            let data = after.get(2..length.max(2)).ok_or_else(Fault::ends_early)?;
            let is_used = match marker {
                // Huffman tables, quantization tables, restart interval, number of lines.
                0xc4 | 0xdb | 0xdd | 0xdc => true,
                0xc0..=0xcf if frame.is_some() => return Err(Fault::damaged("found a second frame")),
                0xc0..=0xcf => {
                    frame = Some((Frame::read(marker, data)?, data));
                    true
                }
                0xe0 => {
                    jfif |= data.starts_with(b"JFIF");
                    false
                }
                0xe1 => {
                    if data.starts_with(b"Exif\0\0") {
                        exif = exif.or(Some(data));
                    } else if data.starts_with(b"http://ns.adobe.com/xap/1.0/\0") {
                        xmp = xmp.or(Some(data));
                    }
                    false
                }
                0xee if data.starts_with(b"Adobe") => {
                    adobe = true;
                    true
                }
                _ => false,
            };
            if is_used {
                headers.extend(&bytes[at..at + 2 + length]);
            }
            rest = &after[length..];
        }
        Err(Fault::damaged("expected a scan, found none"))
    }
}

/// Whether the components of a frame are called R, G and B.
fn is_rgb(frame: &[u8]) -> bool {
    let components = frame.get(6..).unwrap_or_default();
    components.len() >= 9 && components.chunks_exact(3).map(|component| component[0]).eq(*b"RGB")
}

/// Where the image ends, after the end marker that follows its data, as opposed to that of an embedded preview.
fn end(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    while let Some((marker, after)) = next_marker(rest) {
        rest = match marker {
            END => return Some(bytes.len() - after.len()),
            // Start of image and markers without content.
            0x01 | 0xd0..=START => after,
            // Everything else has a length, which counts itself.
            _ => after.get(usize::from(u16::from_be_bytes(*after.first_chunk()?))..)?,
        };
    }
    None
}

/// The next marker and what follows it, past image data: there 0xff is always followed by 0 or a restart.
fn next_marker(mut bytes: &[u8]) -> Option<(u8, &[u8])> {
    loop {
        let start = bytes.iter().position(|b| *b == 0xff)?;
        bytes = &bytes[start + 1..];
        match bytes.split_first()? {
            (0x00 | 0xff | 0xd0..=0xd7, _) => {}
            (marker, after) => return Some((*marker, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_end_of_the_image_only() {
        let start = [0xff, 0xd8];
        let preview = [0xff, 0xe1, 0, 6, 0xff, 0xd8, 0xff, 0xd9];
        let scan = [0xff, 0xda, 0, 3, 9, 1, 2, 0xff, 0, 0xff, 0xd0, 3, 0xff, 0xff];
        let file = [&start[..], &preview, &scan, &[0xd9]].concat();
        assert_eq!(end(&file), Some(file.len()));
        for n in 0..file.len() {
            assert_eq!(end(&file[..n]), None, "the first {n} bytes");
        }
        // Some cameras append data of their own.
        assert_eq!(end(&[&file[..], &[1, 2, 3]].concat()), Some(file.len()));
    }
}
