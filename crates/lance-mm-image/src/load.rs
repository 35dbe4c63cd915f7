//! Reading of files and decoding to RGB.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::Path;

use ::image::metadata::Orientation;
use ::image::{DynamicImage, RgbImage};

use crate::error::{Error, Result, not_empty};
use crate::fault::Fault;
use crate::format::{self, FileKind, Format};
use crate::limits::{self, Budget, LoadOptions};
use crate::size::Size;
use crate::{bmp, gif, guard, jpeg, png, pnm, tiff, webp};

/// Reads and decodes a PNG, JPEG, GIF, WebP, BMP, TIFF or PNM file, see [`decode`].
///
/// # Errors
///
/// As [`read_file`] and [`decode`].
pub fn load(path: &Path, options: &LoadOptions) -> Result<RgbImage> {
    decode(&read_file(path)?, &path.display().to_string(), options)
}

/// Reads the bytes of an image file, for [`decode`]: a file of at most 512 MB, or a pipe that ends after at most 128 MB.
///
/// # Errors
///
/// [`Error::Io`] for a file that cannot be read, or that is a folder, a socket or a device like `/dev/zero`, which
/// is not opened; [`Error::UnsupportedFormat`] for another format or no data, which is not read to its end;
/// [`Error::TooLarge`] for more bytes.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    let (file, limit) = open(path)?;
    read_image(file, &path.display().to_string(), limit)
}

/// Reads the bytes of an image from a stream, for [`decode`], at most 128 MB; `name` is its name in errors.
///
/// The format is checked before the rest is read: a large stream of another kind takes no memory.
///
/// # Errors
///
/// [`Error::Io`] for input that cannot be read, [`Error::UnsupportedFormat`] for another format or no data,
/// [`Error::TooLarge`] for more bytes.
pub fn read(input: impl Read, name: &str) -> Result<Vec<u8>> {
    read_image(input, name, limits::MAX_STREAM_BYTES)
}

/// The first bytes of a file, which suffice for [`FileKind::of`].
///
/// # Errors
///
/// [`Error::Io`] as [`read_file`].
pub fn read_start(path: &Path) -> Result<Vec<u8>> {
    let mut start = Vec::new();
    let read = open(path)?.0.take(format::START).read_to_end(&mut start);
    read.map_err(|source| Error::Io { path: path.to_owned(), source })?;
    Ok(start)
}

fn read_image(mut input: impl Read, name: &str, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let start = input.by_ref().take(format::START).read_to_end(&mut bytes);
    start.map_err(|source| Error::Io { path: name.into(), source })?;
    check(&bytes, name)?;
    limits::read_to_limit(input, &mut bytes, limit, name)?;
    Ok(bytes)
}

/// Opens a file or pipe, with the most bytes that may be read of it. Its kind is looked at before it is opened: a
/// device may have effects or no end.
fn open(path: &Path) -> Result<(File, u64)> {
    let failed = |source| Error::Io { path: path.to_owned(), source };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if let Some(kind) = endless(&metadata) {
        return Err(failed(io::Error::other(format!("expected a file, found {kind}"))));
    }
    let limit = if metadata.is_file() { limits::MAX_FILE_BYTES } else { limits::MAX_STREAM_BYTES };
    Ok((File::open(path).map_err(failed)?, limit))
}

/// Kind of a file that is neither a regular file nor a pipe.
#[cfg(unix)]
fn endless(metadata: &Metadata) -> Option<&'static str> {
    use std::os::unix::fs::FileTypeExt;

    let kind = metadata.file_type();
    Some(match kind {
        kind if kind.is_file() || kind.is_fifo() => return None,
        kind if kind.is_dir() => "a folder",
        kind if kind.is_socket() => "a socket",
        _ => "a device",
    })
}

/// Kind of a file that is no regular file.
#[cfg(not(unix))]
fn endless(metadata: &Metadata) -> Option<&'static str> {
    metadata.is_dir().then_some("a folder")
}

/// The format of an image that can be decoded; `name` is the file's name in errors.
fn check(start: &[u8], name: &str) -> Result<Format> {
    let unsupported = || Error::UnsupportedFormat { name: name.to_owned(), kind: FileKind::of(start) };
    Format::of(start).ok_or_else(unsupported)
}

/// Decodes an image to 8-bit RGB; `name` is its name in errors ("standard input", a path).
///
/// The format is recognised by content. Transparency is blended with white, except that the alpha of 8-bit gray
/// images and a PNG colour key are ignored. 16-bit samples keep their high byte. Only the first frame of an animation
/// and the first page of a TIFF are decoded, see [`multi_frame`](crate::multi_frame()). Colour profiles are
/// ignored.
///
/// # Errors
///
/// [`Error::UnsupportedFormat`] for an unknown format or no data, [`Error::TooLarge`] for more than
/// [`max_pixels`](LoadOptions::max_pixels) pixels or more than are plausible in so few bytes, [`Error::Image`] for
/// damaged or truncated data, an image without pixels, or samples that are not implemented. A decoder that panics is
/// such an error too, and prints nothing.
pub fn decode(bytes: &[u8], name: &str, options: &LoadOptions) -> Result<RgbImage> {
    let format = check(bytes, name)?;
    let decoder = match format {
        Format::Png => png::decode,
        Format::Jpeg => jpeg::decode,
        Format::Gif => gif::decode,
        Format::WebP => webp::decode,
        Format::Bmp => bmp::decode,
        Format::Tiff => tiff::decode,
        Format::Pnm => pnm::decode,
    };
    let decoded = with_budget(bytes, format, name, options, |budget| decoder(bytes, budget))?;
    let image = from_raw(decoded.size, decoded.pixels)?;
    let orientation = decoded.orientation.filter(|_| options.auto_orient).and_then(Orientation::from_exif);
    Ok(rotated(image, orientation.unwrap_or(Orientation::NoTransforms)))
}

/// Decodes frames of a GIF: those whose numbers `select` makes of their count and rate.
pub(crate) fn gif_frames(
    bytes: &[u8],
    name: &str,
    options: &LoadOptions,
    select: impl FnOnce(usize, f64) -> Result<Vec<usize>>,
) -> Result<Vec<RgbImage>> {
    let format = check(bytes, name)?;
    if format != Format::Gif {
        let message = format!("expected a GIF, found {format}");
        return Err(Fault::Unusable(message).named(name, format));
    }
    let timing = with_budget(bytes, format, name, options, |budget| gif::Timing::read(bytes, budget))?;
    let wanted = select(timing.frames, timing.fps)?;
    with_budget(bytes, format, name, options, |budget| timing.frames(bytes, &wanted, budget))
}

/// Runs a decoder under the limits for one file.
fn with_budget<T>(
    bytes: &[u8],
    format: Format,
    name: &str,
    options: &LoadOptions,
    decode: impl FnOnce(&Budget<'_>) -> std::result::Result<T, Fault>,
) -> Result<T> {
    let budget = Budget { options, format, len: bytes.len() };
    guard::catch(|| decode(&budget)).map_err(|fault| fault.named(name, format))
}

/// An image from its pixels `(H, W, 3)`: rows from the top, red, green, blue.
///
/// # Errors
///
/// [`Error::Image`] for sides of zero, or a number of bytes other than `height * width * 3`.
pub fn from_raw(size: Size, pixels: Vec<u8>) -> Result<RgbImage> {
    let expected = not_empty(size, "raw image")?.area().saturating_mul(3);
    let found = pixels.len();
    match RgbImage::from_raw(size.width, size.height, pixels) {
        Some(image) if found as u64 == expected => Ok(image),
        _ => {
            Err(Error::of_size("raw image", size, format!("expected {expected} bytes of RGB, found {found}")))
        }
    }
}

fn rotated(image: RgbImage, orientation: Orientation) -> RgbImage {
    if orientation == Orientation::NoTransforms {
        return image;
    }
    let mut image = DynamicImage::ImageRgb8(image);
    image.apply_orientation(orientation);
    image.into_rgb8()
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use ::image::codecs::webp::WebPEncoder;
    use ::image::{ImageFormat, Rgba, RgbaImage};

    use super::*;
    use crate::FileKind;

    fn small() -> RgbImage {
        RgbImage::from_fn(13, 9, |x, y| ::image::Rgb([(x * 19) as u8, (y * 28) as u8, ((x ^ y) * 16) as u8]))
    }

    fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    /// A PNG chunk with its checksum.
    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        let body = [&kind[..], data].concat();
        let crc = !body.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |c, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg()))
        });
        [&(data.len() as u32).to_be_bytes()[..], &body, &crc.to_be_bytes()].concat()
    }

    /// A PNG with a chunk added after its header.
    fn with_chunk(png: &[u8], kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        const HEADER: usize = 33;
        [&png[..HEADER], &chunk(kind, data), &png[HEADER..]].concat()
    }

    /// A PNG that has a header only.
    fn png_of_size(width: u32, height: u32) -> Vec<u8> {
        let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
        [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header), &chunk(b"IDAT", &[])].concat()
    }

    fn decode_default(bytes: &[u8]) -> Result<RgbImage> {
        decode(bytes, "x", &LoadOptions::default())
    }

    fn message(bytes: &[u8]) -> String {
        decode_default(bytes).unwrap_err().to_string()
    }

    #[test]
    fn lossless_formats_give_the_same_pixels() {
        use ImageFormat::{Bmp, Png, Pnm, Tiff, WebP};
        for format in [Bmp, Png, Pnm, Tiff, WebP] {
            assert_eq!(decode_default(&encode(small(), format)).unwrap(), small(), "{format:?}");
        }
        let wide = DynamicImage::from(small()).into_rgb16();
        assert_eq!(decode_default(&encode(wide, Png)).unwrap(), small());
    }

    #[test]
    fn transparency_becomes_white() {
        let image = RgbaImage::from_fn(5, 4, |x, _| Rgba([10, 20, 30, [0, 255][x as usize % 2]]));
        for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Gif] {
            let found = decode_default(&encode(image.clone(), format)).unwrap();
            assert_eq!(found.get_pixel(0, 1).0, [255; 3], "{format:?}");
            assert_eq!(found.get_pixel(1, 1).0, [10, 20, 30], "{format:?}");
        }
    }

    #[test]
    fn colour_key_is_ignored() {
        let png = encode(RgbImage::from_pixel(3, 2, ::image::Rgb([7, 8, 9])), ImageFormat::Png);
        let keyed = with_chunk(&png, b"tRNS", &[0, 7, 0, 8, 0, 9]);
        assert_eq!(decode_default(&keyed).unwrap().get_pixel(0, 0).0, [7, 8, 9]);
    }

    #[test]
    fn exif_orientation_on_demand() {
        // Rows of a 3x2 image a b c / d e f after rotation, by orientation.
        let rotated =
            ["abc/def", "cba/fed", "fed/cba", "def/abc", "ad/be/cf", "da/eb/fc", "fc/eb/da", "cf/be/ad"];
        let image = RgbImage::from_fn(3, 2, |x, y| ::image::Rgb([b'a' + (x + 3 * y) as u8; 3]));
        let letters = |image: &RgbImage| {
            image
                .rows()
                .map(|row| row.map(|p| char::from(p.0[0])).collect())
                .collect::<Vec<String>>()
                .join("/")
        };
        let png = encode(image, ImageFormat::Png);
        for (orientation, expected) in (1..).zip(rotated) {
            let exif =
                [&b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..], &[orientation, 0, 0, 0], &[0; 4]];
            let file = with_chunk(&png, b"eXIf", &exif.concat());
            let options = LoadOptions { auto_orient: true, ..LoadOptions::default() };
            assert_eq!(
                letters(&decode(&file, "x", &options).unwrap()),
                expected,
                "orientation {orientation}"
            );
            assert_eq!(letters(&decode_default(&file).unwrap()), rotated[0]);
        }
        let broken = with_chunk(&png, b"eXIf", b"nonsense");
        let options = LoadOptions { auto_orient: true, ..LoadOptions::default() };
        assert_eq!(letters(&decode(&broken, "x", &options).unwrap()), rotated[0]);
    }

    #[test]
    fn size_is_checked_before_anything_is_decoded() {
        assert_eq!(
            message(&png_of_size(60_000, 60_000)),
            "x: expected at most 179000000 pixels, found 3600000000 (PNG of 60000x60000)"
        );
        let options = LoadOptions { max_pixels: 116, ..LoadOptions::default() };
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::Tiff] {
            let bytes = encode(small(), format);
            let error = decode(&bytes, "x", &options).unwrap_err().to_string();
            assert!(error.starts_with("x: expected at most 116 pixels, found 117 ("), "{error}");
            assert!(decode(&bytes, "x", &LoadOptions { max_pixels: 117, ..options }).is_ok(), "{format:?}");
        }
    }

    #[test]
    fn other_files_are_refused() {
        let expected = "expected PNG, JPEG, GIF, WebP, BMP, TIFF or PNM";
        assert_eq!(message(b""), format!("x: {expected}, found no data"));
        assert_eq!(message(b"just some text"), format!("x: {expected}, found an unknown format"));
        assert_eq!(
            message(b"\0\0\x01\0icon"),
            format!("x: {expected}, found ICO: convert it to JPEG or PNG first")
        );
        assert!(message(&png_of_size(0, 5)).contains("PNG"), "{}", message(&png_of_size(0, 5)));
        assert!(message(b"P6 0 5 255\n").contains("PNM"), "{}", message(b"P6 0 5 255\n"));
        assert!(message(&png_of_size(3, 3)).starts_with("x: damaged or truncated PNG"));

        let dir = std::env::temp_dir();
        assert!(matches!(load(&dir, &LoadOptions::default()), Err(Error::Io { path, .. }) if path == dir));
    }

    #[test]
    fn the_rest_is_read_only_of_an_image() {
        let png = encode(small(), ImageFormat::Png);
        assert_eq!(read(&png[..], "x").unwrap(), png);
        let long = encode(RgbImage::from_pixel(80, 70, ::image::Rgb([9; 3])), ImageFormat::Bmp);
        assert_eq!(read(&long[..], "x").unwrap(), long);

        let mut endless = std::io::repeat(b'x');
        let error = read(b"%PDF-1.7".chain(&mut endless), "x").unwrap_err().to_string();
        assert!(error.contains("found PDF"), "{error}");
        assert!(matches!(
            read(std::io::empty(), "x"),
            Err(Error::UnsupportedFormat { kind: FileKind::Empty, .. })
        ));
    }

    #[test]
    fn truncated_files_are_refused() {
        use ImageFormat::{Bmp, Gif, Jpeg, Png, Pnm, Tiff, WebP};
        for format in [Bmp, Gif, Jpeg, Png, Pnm, Tiff, WebP] {
            let bytes = encode(small(), format);
            let whole = decode_default(&bytes).unwrap();
            assert!(decode_default(&bytes[..bytes.len() / 2]).is_err(), "{format:?}");
            for n in 0..bytes.len() {
                // The last bytes may be no part of the image.
                let image = decode_default(&bytes[..n]);
                assert!(image.is_err() || image.is_ok_and(|i| i == whole), "{format:?}, {n} bytes");
            }
        }
    }

    #[test]
    fn damage_never_panics() {
        use ImageFormat::{Bmp, Gif, Jpeg, Png, Pnm, Tiff};
        let options = LoadOptions { max_pixels: 100_000, ..LoadOptions::default() };
        let mut files = [Bmp, Gif, Jpeg, Png, Pnm, Tiff].map(|format| encode(small(), format)).to_vec();
        let mut webp = Vec::new();
        small().write_with_encoder(WebPEncoder::new_lossless(&mut webp)).unwrap();
        files.push(webp);
        for file in files {
            for i in 0..file.len() {
                for damage in [0, 0x7f, 0xff, !file[i]] {
                    let mut file = file.clone();
                    file[i] = damage;
                    let _ = decode(&file, "x", &options);
                }
            }
        }
    }

    #[test]
    fn raw_pixels() {
        let size = |width, height| Size { width, height };
        let image = from_raw(size(1, 2), vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!((image.height(), image.width(), image.get_pixel(0, 1).0), (2, 1, [4, 5, 6]));
        let error = from_raw(size(1, 2), vec![0; 8]).unwrap_err().to_string();
        assert_eq!(error, "raw image of 1x2 pixels: expected 6 bytes of RGB, found 8");
        assert!(from_raw(size(1, 0), vec![]).is_err());
        assert!(from_raw(size(u32::MAX, u32::MAX), vec![]).is_err());
    }
}
