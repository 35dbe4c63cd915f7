//! The stride, padding and upsampling of a convolution.

/// Where filters lie on a frame. The default: on every pixel, without a border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Pixels from one filter position to the next.
    pub stride: usize,
    /// Rows of zeros above and columns of zeros to the left.
    pub pad_before: usize,
    /// Rows of zeros below and columns of zeros to the right.
    pub pad_after: usize,
    /// Rows and columns that each pixel counts as: 2 is a frame doubled by repeating its pixels.
    pub upsample: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { stride: 1, pad_before: 0, pad_after: 0, upsample: 1 }
    }
}
