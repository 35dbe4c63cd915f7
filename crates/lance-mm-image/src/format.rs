//! Kinds of files, detected from their first bytes.

use std::fmt;

use ::image::{ImageFormat, guess_format};

/// Bytes of a file that suffice to detect its kind.
pub(crate) const START: u64 = 1024;

/// A format that is decoded, as people write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Png,
    Jpeg,
    Gif,
    WebP,
    Bmp,
    Tiff,
    Pnm,
}

impl Format {
    /// The format of a file that starts with these bytes.
    pub(crate) fn of(start: &[u8]) -> Option<Self> {
        Some(match start {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Self::Png,
            [0xff, 0xd8, 0xff, ..] => Self::Jpeg,
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Self::Gif,
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Self::WebP,
            [b'B', b'M', ..] => Self::Bmp,
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Self::Tiff,
            [b'P', b'1'..=b'7', next, ..] if next.is_ascii_whitespace() || *next == b'#' => Self::Pnm,
            _ => return None,
        })
    }

    /// The format as people write it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Png => "PNG",
            Self::Jpeg => "JPEG",
            Self::Gif => "GIF",
            Self::WebP => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Pnm => "PNM",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Kind of a file, detected from its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileKind {
    /// An image of this format, which [`decode`](crate::decode) reads.
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
    /// The kind of a file that starts with these bytes; 1024 suffice.
    pub fn of(start: &[u8]) -> Self {
        if let Some(format) = Format::of(start) {
            return Self::Image(format.name());
        }
        if let Some(kind) = iso_media(start).or_else(|| container(start).map(Self::Video)) {
            return kind;
        }
        match start {
            [] => Self::Empty,
            [b'%', b'P', b'D', b'F', b'-', ..] => Self::Pdf,
            [0xff, 0x0a, ..] | [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] => Self::UnsupportedImage("JPEG XL"),
            [0, 0, 0, 12, b'j', b'P', b' ', b' ', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => {
                Self::UnsupportedImage("JPEG 2000")
            }
            [b'8', b'B', b'P', b'S', ..] => Self::UnsupportedImage("Photoshop document"),
            _ => match guess_format(start) {
                Ok(format) => Self::UnsupportedImage(unsupported(format)),
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

/// A format that is known but not decoded.
fn unsupported(format: ImageFormat) -> &'static str {
    match format {
        ImageFormat::Ico => "ICO",
        ImageFormat::Dds => "DDS",
        ImageFormat::Hdr => "Radiance HDR",
        ImageFormat::OpenExr => "OpenEXR",
        ImageFormat::Qoi => "QOI",
        ImageFormat::Farbfeld => "farbfeld",
        ImageFormat::Avif => "AVIF",
        _ => "another image format",
    }
}

/// Containers of videos that are not ISO media. A list or script of ffmpeg is none of them.
fn container(start: &[u8]) -> Option<&'static str> {
    /// Bytes of a transport packet, with and without the time stamp of Blu-ray discs.
    const PACKETS: [(usize, usize); 2] = [(188, 0), (192, 4)];
    match start {
        [0x1a, 0x45, 0xdf, 0xa3, ..] => return Some("Matroska or WebM"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', b' ', ..] => return Some("AVI"),
        [0, 0, 1, 0xba | 0xb3, ..] => return Some("MPEG"),
        [b'F', b'L', b'V', 1, ..] => return Some("Flash video"),
        [b'O', b'g', b'g', b'S', 0, ..] => return Some("Ogg"),
        [0x30, 0x26, 0xb2, 0x75, 0x8e, 0x66, 0xcf, 0x11, ..] => return Some("Windows Media"),
        _ => {}
    }
    let is_transport = |(packet, first): (usize, usize)| {
        let syncs = start.iter().skip(first).step_by(packet).take(4);
        start.len() > first + 3 * packet && syncs.clone().all(|sync| *sync == 0x47)
    };
    PACKETS.into_iter().any(is_transport).then_some("MPEG transport stream")
}

/// Images and videos in the ISO base media format (ISO/IEC 14496-12), by the brands of their first box.
fn iso_media(start: &[u8]) -> Option<FileKind> {
    let (length, rest) = start.split_first_chunk()?;
    // QuickTime files of old begin with other boxes.
    if matches!(rest.first_chunk(), Some(b"moov" | b"mdat" | b"wide" | b"free" | b"skip")) {
        return Some(FileKind::Video("MP4 or QuickTime"));
    }
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
            (b"\0\0\x01\xba\x44".to_vec(), video("MPEG")),
            (b"\0\0\0\x08wide\0\0\0\0mdat".to_vec(), video("MP4 or QuickTime")),
            ([&[0x47][..], &[0; 187]].concat().repeat(5), video("MPEG transport stream")),
            ([&[0x47][..], &[0; 187]].concat(), format!("{expected}, found an unknown format")),
            (b"ffconcat version 1.0\nfile a\n".to_vec(), format!("{expected}, found an unknown format")),
            (b"#EXTM3U\n".to_vec(), format!("{expected}, found an unknown format")),
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
            let error = crate::decode(&bytes, "x", &crate::LoadOptions::default()).unwrap_err().to_string();
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
