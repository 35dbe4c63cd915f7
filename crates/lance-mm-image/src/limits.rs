//! Limits of reading and decoding: bytes of a file, pixels, frames, and memory for each byte of the file.
//!
//! Every decoder asks [`Budget::check`] after it has read the header and before it allocates pixels, and
//! [`read_to_limit`] is the only loop that reads a file or stream.

use std::io::Read;

use crate::error::{Error, Result};
use crate::fault::Fault;
use crate::format::Format;
use crate::size::Size;

/// Orientation and limits of decoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Apply the EXIF orientation. Upstream does not: photos of phones, which are often stored rotated, reach the
    /// model on their side.
    pub auto_orient: bool,
    /// Most pixels of an image, or of a frame. The header is checked before memory is allocated.
    pub max_pixels: u64,
    /// Most pixels of all frames of a clip that are held at once, three bytes each.
    pub max_clip_pixels: u64,
}

impl Default for LoadOptions {
    /// EXIF orientation ignored, as upstream; 179 million pixels, the limit of Pillow; 69 frames of 4096 x 2160 pixels
    /// for a clip, as many as the model sees.
    fn default() -> Self {
        LoadOptions { auto_orient: false, max_pixels: 179_000_000, max_clip_pixels: 69 * 4096 * 2160 }
    }
}

/// Most bytes of an image in a file, whose length is known.
pub(crate) const MAX_FILE_BYTES: u64 = 512 << 20;

/// Most bytes of an image from a pipe, which may have no end.
pub(crate) const MAX_STREAM_BYTES: u64 = 128 << 20;

/// Memory that decoding may take however short the file is: 53 million pixels of a plain RGB image, a page of A4 at
/// 600 dots per inch.
const FREE_MEMORY: u64 = 160 << 20;

/// Memory beyond that for each byte of the file. Photographs need 5 to 30; a bomb needs thousands.
const MEMORY_PER_BYTE: u64 = 100;

/// Most bytes that are inflated of a text chunk, which may hold EXIF or XMP data.
pub(crate) const MAX_METADATA_BYTES: u64 = 1 << 20;

/// Limits for one file of a known length.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget<'a> {
    pub(crate) options: &'a LoadOptions,
    pub(crate) format: Format,
    /// Bytes of the file.
    pub(crate) len: usize,
}

impl Budget<'_> {
    /// Refuses an image without pixels, with more than are allowed at all, or with more than are plausible in a file of
    /// this length. `memory` is how many bytes a pixel takes while it is decoded.
    pub(crate) fn check(&self, size: Size, memory: u64) -> std::result::Result<(), Fault> {
        let (format, limit) = (self.format, self.options.max_pixels);
        let found = size.area();
        if found == 0 {
            return Err(Fault::Unusable(format!("expected sides above 0, found a {format} of {size}")));
        }
        if found > limit {
            let message = format!("expected at most {limit} pixels, found {found} ({format} of {size})");
            return Err(Fault::TooLarge { limit, message });
        }
        let limit = self.memory() / memory.max(1);
        if found > limit {
            let len = self.len;
            let message = format!(
                "expected at most {limit} pixels in {len} bytes, found {found} ({format} of {size}): save it as an \
                 ordinary PNG or JPEG of fewer pixels"
            );
            return Err(Fault::TooLarge { limit, message });
        }
        Ok(())
    }

    /// Refuses more frames than are held at once.
    pub(crate) fn check_frames(&self, size: Size, frames: usize) -> std::result::Result<(), Fault> {
        let limit = self.options.max_clip_pixels.min(self.memory() / 3);
        let found = size.area().saturating_mul(frames as u64);
        if found <= limit {
            return Ok(());
        }
        let (format, len) = (self.format, self.len);
        let message = format!(
            "expected at most {limit} pixels in all frames of a {format} of {len} bytes, found {found} ({frames} \
             sampled frames of {size})"
        );
        Err(Fault::TooLarge { limit, message })
    }

    /// Refuses frames that take too long to decode, though few of them are held.
    pub(crate) fn check_work(&self, pixels: u64) -> std::result::Result<(), Fault> {
        let limit = self.options.max_clip_pixels.max((self.len as u64).saturating_mul(MEMORY_PER_BYTE));
        if pixels <= limit {
            return Ok(());
        }
        let message = format!("expected at most {limit} pixels in all frames, found {pixels}");
        Err(Fault::TooLarge { limit, message })
    }

    /// Most bytes that decoding may take.
    pub(crate) fn memory(&self) -> u64 {
        (self.len as u64).saturating_mul(MEMORY_PER_BYTE).max(FREE_MEMORY)
    }
}

/// Appends the rest of the input, up to `limit` bytes in all; `name` is its name in errors.
pub(crate) fn read_to_limit(input: impl Read, bytes: &mut Vec<u8>, limit: u64, name: &str) -> Result<()> {
    let room = (limit + 1).saturating_sub(bytes.len() as u64);
    input.take(room).read_to_end(bytes).map_err(|source| Error::Io { path: name.into(), source })?;
    if bytes.len() as u64 > limit {
        let message = format!("expected an image of at most {} MB, found more", limit >> 20);
        return Err(Error::TooLarge { name: name.to_owned(), limit, message });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(width: u32, height: u32, len: usize, memory: u64) -> Option<String> {
        let budget = Budget { options: &LoadOptions::default(), format: Format::Png, len };
        match budget.check(Size { width, height }, memory) {
            Err(Fault::TooLarge { message, .. } | Fault::Unusable(message)) => Some(message),
            found => {
                found.unwrap();
                None
            }
        }
    }

    #[test]
    fn pixels_need_bytes() {
        // A blank page of A4 at 600 dots per inch, and photographs of phones.
        assert_eq!(check(4960, 7016, 3000, 4), None);
        assert_eq!(check(4000, 3000, 3_000_000, 9), None);
        assert_eq!(check(12_000, 9000, 15_000_000, 9), None);
        let bomb = check(13_000, 13_000, 64, 3).unwrap();
        assert!(
            bomb.starts_with("expected at most 55924053 pixels in 64 bytes, found 169000000 ("),
            "{bomb}"
        );
        let large = check(60_000, 60_000, 1 << 30, 3).unwrap();
        assert_eq!(large, "expected at most 179000000 pixels, found 3600000000 (PNG of 60000x60000)");
        assert_eq!(check(0, 5, 64, 3).unwrap(), "expected sides above 0, found a PNG of 0x5");
    }

    #[test]
    fn a_stream_without_end_is_refused_at_the_limit() {
        let mut bytes = vec![1; 10];
        read_to_limit(&[2; 90][..], &mut bytes, 100, "x").unwrap();
        assert_eq!(bytes.len(), 100);
        let error = read_to_limit(std::io::repeat(0), &mut vec![1; 10], 1 << 20, "x").unwrap_err();
        assert_eq!(error.to_string(), "x: expected an image of at most 1 MB, found more");
    }
}
