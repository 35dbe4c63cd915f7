//! The result of a decoder of one format.

use crate::size::Size;

/// Pixels of a decoded file.
pub(crate) struct Decoded {
    pub(crate) size: Size,
    /// RGB, rows from the top.
    pub(crate) pixels: Vec<u8>,
    /// EXIF orientation.
    pub(crate) orientation: Option<u8>,
}
