//! Kinds of files, detected from their first bytes.

use std::fmt;

use ::image::{ImageFormat, guess_format};

use crate::error::{Error, Result};

/// Bytes of a file that suffice to detect its kind.
pub(super) const START: u64 = 256;

/// Kind of a file, detected from its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// An image of this format, which [`decode`](super::decode) reads.
    Image(&'static str),
    /// An image of this format, which is not supported.
    UnsupportedImage(&'static str),
    /// A PDF document, whose pages have to be rendered first.
    Pdf,
    /// A video in this container.
    Video(&'static str),
    /// No bytes at all.
    Empty,
    /// Anything else.
    Unknown,
}

impl FileKind {
    /// The kind of a file that starts with these bytes; 256 suffice.
    pub fn of(start: &[u8]) -> Self {
        if let Some(kind) = iso_media(start) {
            return kind;
        }
        match start {
            [] => Self::Empty,
            [b'%', b'P', b'D', b'F', b'-', ..] => Self::Pdf,
            [0x1a, 0x45, 0xdf, 0xa3, ..] => Self::Video("Matroska or WebM"),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', b' ', ..] => Self::Video("AVI"),
            _ => match guess_format(start) {
                Ok(format) if format.reading_enabled() => Self::Image(name(format)),
                Ok(format) => Self::UnsupportedImage(name(format)),
                Err(_) => Self::Unknown,
            },
        }
    }

    /// Advice how to get an image from it, for the end of an error.
    pub(crate) fn remedy(self) -> &'static str {
        match self {
            Self::UnsupportedImage(_) => ": convert it to JPEG or PNG first",
            Self::Pdf => ": render its pages to images first",
            Self::Image(_) | Self::Video(_) | Self::Empty | Self::Unknown => "",
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(format) => write!(f, "{format} image"),
            Self::UnsupportedImage(format) => f.write_str(format),
            Self::Pdf => f.write_str("PDF"),
            Self::Video(container) => write!(f, "{container} (video)"),
            Self::Empty => f.write_str("no data"),
            Self::Unknown => f.write_str("an unknown format"),
        }
    }
}

/// The format of an image that can be decoded; `name` is the file's name in errors.
///
/// # Errors
///
/// [`Error::UnsupportedFormat`] for everything else.
pub(super) fn check(start: &[u8], name: &str) -> Result<ImageFormat> {
    match (FileKind::of(start), guess_format(start)) {
        (FileKind::Image(_), Ok(format)) => Ok(format),
        (kind, _) => Err(Error::UnsupportedFormat { name: name.to_owned(), kind }),
    }
}

/// The format as people write it.
pub(super) fn name(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Png => "PNG",
        ImageFormat::Jpeg => "JPEG",
        ImageFormat::Gif => "GIF",
        ImageFormat::WebP => "WebP",
        ImageFormat::Bmp => "BMP",
        ImageFormat::Tiff => "TIFF",
        ImageFormat::Pnm => "PNM",
        ImageFormat::Ico => "ICO",
        ImageFormat::Dds => "DDS",
        ImageFormat::Hdr => "Radiance HDR",
        ImageFormat::OpenExr => "OpenEXR",
        ImageFormat::Qoi => "QOI",
        ImageFormat::Farbfeld => "farbfeld",
        _ => "image",
    }
}

/// Images and videos in the ISO base media format (ISO/IEC 14496-12), by the brands of their first box.
fn iso_media(start: &[u8]) -> Option<FileKind> {
    let (length, rest) = start.split_first_chunk()?;
    let content = rest.strip_prefix(b"ftyp")?;
    let end = u32::from_be_bytes(*length).saturating_sub(8) as usize;
    let content = content.get(..end).unwrap_or(content);
    // The major brand, its version, then the brands it is compatible with.
    let (major, others) = content.split_first_chunk::<4>()?;
    let is_avif = |brand: &[u8]| matches!(brand, b"avif" | b"avis");
    Some(match major {
        major if is_avif(major) => FileKind::UnsupportedImage("AVIF"),
        b"mif1" | b"msf1" if others.chunks_exact(4).skip(1).any(is_avif) => {
            FileKind::UnsupportedImage("AVIF")
        }
        b"mif1" | b"msf1" => FileKind::UnsupportedImage("HEIC"),
        b"heic" | b"heix" | b"heim" | b"heis" => FileKind::UnsupportedImage("HEIC"),
        b"hevc" | b"hevx" | b"hevm" | b"hevs" => FileKind::UnsupportedImage("HEIC"),
        _ => FileKind::Video("MP4 or QuickTime"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first box of a file in the ISO base media format.
    fn ftyp(major: &str, others: &[&str]) -> Vec<u8> {
        let length = 16 + 4 * others.len() as u32;
        [&length.to_be_bytes()[..], b"ftyp", major.as_bytes(), &[0; 4], others.concat().as_bytes()].concat()
    }

    #[test]
    fn errors_name_the_kind_and_a_remedy() {
        let expected = "expected PNG, JPEG, GIF, WebP, BMP, TIFF or PNM";
        let heic = format!("{expected}, found HEIC: convert it to JPEG or PNG first");
        let avif = format!("{expected}, found AVIF: convert it to JPEG or PNG first");
        let pdf = format!("{expected}, found PDF: render its pages to images first");
        let video = |container| format!("{expected}, found {container} (video)");
        let mut cases = vec![
            (ftyp("mif1", &["mif1", "avif", "miaf"]), avif.clone()),
            (ftyp("mif1", &["mif1", "heic"]), heic.clone()),
            (b"%PDF-1.7\n%".to_vec(), pdf),
            (b"\x1a\x45\xdf\xa3\x9f\x42\x86".to_vec(), video("Matroska or WebM")),
            (b"RIFF\x10\x20\x30\0AVI LIST".to_vec(), video("AVI")),
            (vec![], format!("{expected}, found no data")),
            (b"RIFF\x10\x20\x30\0WAVE".to_vec(), format!("{expected}, found an unknown format")),
        ];
        cases.extend(["avif", "avis"].map(|brand| (ftyp(brand, &["mif1"]), avif.clone())));
        let brands = ["heic", "heix", "heim", "heis", "hevc", "hevx", "hevm", "hevs", "mif1", "msf1"];
        cases.extend(brands.map(|brand| (ftyp(brand, &[]), heic.clone())));
        let brands = ["isom", "mp42", "qt  ", "3gp4", "M4V "];
        cases.extend(brands.map(|brand| (ftyp(brand, &["mp41"]), video("MP4 or QuickTime"))));
        // A box of 256 bytes begins like an icon.
        cases.push((ftyp("isom", &["mp41"; 60]), video("MP4 or QuickTime")));
        for (bytes, message) in cases {
            let error = check(&bytes, "x").unwrap_err().to_string();
            assert_eq!(error, format!("x: {message}"), "{bytes:?}");
        }
    }

    #[test]
    fn brands_come_from_the_first_box_only() {
        // Bytes after the box are no brand.
        let file = [&ftyp("mif1", &["heic"])[..], b"avif"].concat();
        assert_eq!(FileKind::of(&file), FileKind::UnsupportedImage("HEIC"));
        for n in 0..file.len() {
            FileKind::of(&file[..n]);
        }
        // Wrong lengths.
        for length in [0, 1, 7, 9, u32::MAX] {
            FileKind::of(&[&length.to_be_bytes()[..], b"ftypheic"].concat());
        }
    }
}
