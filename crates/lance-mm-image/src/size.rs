//! Width and height of an image.

use std::fmt;

use ::image::RgbImage;

/// Width and height in pixels; `1280x720` when printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Size {
    /// Columns of pixels.
    pub width: u32,
    /// Rows of pixels.
    pub height: u32,
}

/// 768x768, the default of Lance for generated images.
impl Default for Size {
    fn default() -> Self {
        Size { width: 768, height: 768 }
    }
}

impl Size {
    /// The size of an image.
    pub fn of(image: &RgbImage) -> Self {
        let (width, height) = image.dimensions();
        Size { width, height }
    }

    /// Number of pixels.
    pub fn area(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }

    /// Width over height.
    pub(crate) fn ratio(self) -> f64 {
        f64::from(self.width) / f64::from(self.height)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}
