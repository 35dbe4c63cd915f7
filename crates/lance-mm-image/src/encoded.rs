//! Encoded images of a known format: limits of decoding, and errors that name the image.

use std::error::Error as _;
use std::io::Cursor;

use ::image::{ColorType, ImageError, ImageFormat, ImageReader, Limits};

use crate::error::{Error, Result};
use crate::{LoadOptions, Size, format, jpeg, rgb};

/// Bytes of a known format with their name in errors.
pub(super) struct Encoded<'a> {
    pub(super) bytes: &'a [u8],
    name: &'a str,
    pub(super) format: ImageFormat,
    options: &'a LoadOptions,
}

impl<'a> Encoded<'a> {
    /// Recognises the format by content.
    pub(super) fn detect(bytes: &'a [u8], name: &'a str, options: &'a LoadOptions) -> Result<Self> {
        let format = format::check(bytes, name)?;
        Ok(Encoded { bytes, name, format, options })
    }

    /// A reader under the limits of the options.
    pub(super) fn reader(&self) -> ImageReader<Cursor<&'a [u8]>> {
        let mut reader = ImageReader::with_format(Cursor::new(self.bytes), self.format);
        reader.limits(self.limits());
        reader
    }

    /// Memory for a decoder: the largest pixel is 8 bytes, and decoders need some room of their own.
    pub(super) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        limits.max_alloc = Some(self.options.max_pixels.saturating_mul(8).saturating_add(64 << 20));
        limits
    }

    /// Refuses an image without pixels or with more than may be decoded.
    pub(super) fn check_size(&self, size: Size) -> Result<()> {
        let (format, limit) = (self.format_name(), self.options.max_pixels);
        match size.area() {
            0 => Err(self.error(format!("expected sides above 0, found a {format} of {size}"))),
            found if found > limit => {
                let message = format!("expected at most {limit} pixels, found {found} ({format} of {size})");
                Err(self.too_large(limit, message))
            }
            _ => Ok(()),
        }
    }

    /// Refuses truncation that the decoder would fill with gray.
    pub(super) fn check_end(&self) -> Result<()> {
        if self.format == ImageFormat::Jpeg && !jpeg::is_complete(self.bytes) {
            return Err(self.error("truncated JPEG, found no end marker".to_owned()));
        }
        Ok(())
    }

    /// Bytes of all pixels as the decoder writes them.
    pub(super) fn buffer_len(&self, size: Size, color: ColorType) -> Result<usize> {
        let bytes = size.area().checked_mul(u64::from(color.bytes_per_pixel()));
        bytes
            .and_then(|bytes| usize::try_from(bytes).ok())
            .ok_or_else(|| self.error(format!("{} of {size} exceeds the memory", self.format_name())))
    }

    /// Meaning of the alpha channel.
    ///
    /// A PNG of colour type RGB has no alpha of its own: the decoder makes one of a colour key.
    pub(super) fn alpha(&self) -> rgb::Alpha {
        const COLOR_TYPE: usize = 25;
        const RGB: u8 = 2;
        if self.format == ImageFormat::Png && self.bytes.get(COLOR_TYPE) == Some(&RGB) {
            rgb::Alpha::Ignore
        } else {
            rgb::Alpha::OnWhite
        }
    }

    /// The format as people write it.
    pub(super) fn format_name(&self) -> &'static str {
        format::name(self.format)
    }

    /// An error of an image with too many pixels.
    pub(super) fn too_large(&self, limit: u64, message: String) -> Error {
        Error::TooLarge { name: self.name.to_owned(), limit, message }
    }

    /// An error of this image.
    pub(super) fn error(&self, message: String) -> Error {
        Error::Image { name: self.name.to_owned(), message }
    }

    /// An error of the decoder.
    pub(super) fn decoding(&self, error: &ImageError) -> Error {
        let format = self.format_name();
        let detail = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        self.error(match error {
            ImageError::Unsupported(_) => format!("unsupported {format}: {detail}"),
            ImageError::Limits(_) => format!("{format} needs too much memory: {detail}"),
            _ => format!("damaged or truncated {format}: {detail}"),
        })
    }
}
