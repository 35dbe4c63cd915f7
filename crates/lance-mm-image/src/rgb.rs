//! Conversion of samples of any colour type to RGB, as upstream's loader does it.

use ::image::ColorType;

/// Meaning of the alpha channel of a colour image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpha {
    /// The image is blended with white.
    OnWhite,
    /// Every pixel is opaque.
    Ignore,
}

/// Whether [`from_samples`] knows the colour type: integers of 8 or 16 bits.
pub(super) fn is_supported(color: ColorType) -> bool {
    is_wide(color) || color.bytes_per_pixel() == color.channel_count()
}

fn is_wide(color: ColorType) -> bool {
    use ColorType::{L16, La16, Rgb16, Rgba16};
    matches!(color, L16 | La16 | Rgb16 | Rgba16)
}

/// Converts whole pixels of a supported colour type, 16 bit samples in native byte order.
///
/// The alpha of a gray image is dropped in any case; upstream composites colour only.
pub(crate) fn from_samples(samples: Vec<u8>, color: ColorType, alpha: Alpha) -> Vec<u8> {
    let samples = if is_wide(color) { high_bytes(samples) } else { samples };
    match (color.channel_count(), alpha) {
        (1, _) => samples.iter().flat_map(|gray| [*gray; 3]).collect(),
        (2, _) => samples.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3]).collect(),
        (4, Alpha::OnWhite) => shrink::<4, 3>(samples, |[r, g, b, a]| [r, g, b].map(|v| on_white(v, a))),
        (4, Alpha::Ignore) => shrink::<4, 3>(samples, |[r, g, b, _]| [r, g, b]),
        _ => samples,
    }
}

fn high_bytes(samples: Vec<u8>) -> Vec<u8> {
    shrink::<2, 1>(samples, |sample| [(u16::from_ne_bytes(sample) >> 8) as u8])
}

/// One channel of a pixel with alpha over white, rounded as Pillow does.
fn on_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let scaled = value * alpha + 255 * (255 - alpha) + 128;
    ((scaled + (scaled >> 8)) >> 8) as u8
}

/// Maps every `FROM` bytes to `TO` in the same buffer, so that a large image is not held twice.
fn shrink<const FROM: usize, const TO: usize>(
    mut bytes: Vec<u8>,
    map: impl Fn([u8; FROM]) -> [u8; TO],
) -> Vec<u8> {
    const { assert!(TO <= FROM, "the result would overwrite bytes that are still to be read") };
    let n = bytes.len() / FROM;
    for i in 0..n {
        let pixel = std::array::from_fn(|k| bytes[i * FROM + k]);
        bytes[i * TO..][..TO].copy_from_slice(&map(pixel));
    }
    bytes.truncate(n * TO);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(samples: &[u16]) -> Vec<u8> {
        samples.iter().flat_map(|v| v.to_ne_bytes()).collect()
    }

    #[test]
    fn every_colour_type() {
        use Alpha::{Ignore, OnWhite};
        let cases = [
            (ColorType::L8, OnWhite, vec![7, 200], vec![7, 7, 7, 200, 200, 200]),
            (ColorType::La8, OnWhite, vec![7, 0, 200, 255], vec![7, 7, 7, 200, 200, 200]),
            (ColorType::Rgb8, OnWhite, vec![1, 2, 3, 4, 5, 6], vec![1, 2, 3, 4, 5, 6]),
            (ColorType::Rgba8, OnWhite, vec![1, 2, 3, 255, 4, 5, 6, 0], vec![1, 2, 3, 255, 255, 255]),
            (ColorType::Rgba8, OnWhite, vec![0, 100, 255, 128], vec![127, 177, 255]),
            (ColorType::Rgba8, Ignore, vec![1, 2, 3, 0], vec![1, 2, 3]),
            (ColorType::L16, OnWhite, wide(&[0x12ff, 0xff00]), vec![0x12, 0x12, 0x12, 255, 255, 255]),
            (ColorType::La16, OnWhite, wide(&[0x12ff, 0]), vec![0x12; 3]),
            (ColorType::Rgb16, OnWhite, wide(&[0x1234, 0xff, 0xffff]), vec![0x12, 0, 255]),
            (ColorType::Rgba16, OnWhite, wide(&[0, 0x64ff, 0xffff, 0x80ff]), vec![127, 177, 255]),
        ];
        for (color, alpha, samples, expected) in cases {
            assert!(is_supported(color), "{color:?}");
            assert_eq!(from_samples(samples, color, alpha), expected, "{color:?}, {alpha:?}");
        }
        assert!(!is_supported(ColorType::Rgb32F) && !is_supported(ColorType::Rgba32F));
    }

    #[test]
    fn on_white_is_the_rounded_mixture() {
        for value in 0..=255 {
            for alpha in 0..=255 {
                let exact =
                    (f64::from(value) * f64::from(alpha) + 255.0 * (255.0 - f64::from(alpha))) / 255.0;
                assert!((f64::from(on_white(value, alpha)) - exact).abs() <= 0.5, "{value} at {alpha}");
            }
        }
    }
}
