//! The stride, padding and upsampling of a convolution.

/// Stride, zero padding and nearest-neighbour upsampling of a convolution, the same for rows and columns. The default:
/// stride 1, no padding, no upsampling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Pixels between neighbouring filter positions.
    pub stride: usize,
    /// Rows of zero padding above, and columns to the left.
    pub pad_before: usize,
    /// Rows of zero padding below, and columns to the right.
    pub pad_after: usize,
    /// Factor of nearest-neighbour upsampling before the convolution; 1 is none.
    pub upsample: usize,
}

impl Default for Window {
    fn default() -> Self {
        Self { stride: 1, pad_before: 0, pad_after: 0, upsample: 1 }
    }
}
