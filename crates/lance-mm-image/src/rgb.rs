//! Conversion of samples of any colour layout to RGB, as upstream's loader does it with Pillow.

/// 256 colours, already on white.
#[derive(Clone)]
pub(crate) struct Palette([[u8; 3]; 256]);

impl Palette {
    /// A palette of these colours. What a file leaves out is black, as in Pillow.
    pub(crate) fn new(colours: impl IntoIterator<Item = [u8; 3]>) -> Self {
        let mut palette = [[0; 3]; 256];
        palette.iter_mut().zip(colours).for_each(|(entry, colour)| *entry = colour);
        Palette(palette)
    }

    /// Blends an entry with white.
    pub(crate) fn set_alpha(&mut self, index: u8, alpha: u8) {
        let entry = &mut self.0[usize::from(index)];
        *entry = entry.map(|value| on_white(value, alpha));
    }

    /// The colour of an index.
    pub(crate) fn colour(&self, index: u8) -> [u8; 3] {
        self.0[usize::from(index)]
    }
}

/// Colours of the first samples of a pixel.
#[derive(Clone, Copy)]
pub(crate) enum Colours<'a> {
    /// One sample.
    Gray,
    /// Red, green, blue.
    Rgb,
    /// Cyan, magenta, yellow, black; 0 is no ink.
    Cmyk,
    /// An index.
    Palette(&'a Palette),
}

impl Colours<'_> {
    /// Samples of a colour.
    pub(crate) fn count(self) -> usize {
        match self {
            Self::Gray | Self::Palette(_) => 1,
            Self::Rgb => 3,
            Self::Cmyk => 4,
        }
    }
}

/// Meaning of the sample after the colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alpha {
    /// Every pixel is opaque.
    Ignored,
    /// The pixel is blended with white.
    Straight,
    /// Colours are multiplied by alpha already: they are divided by it, then blended with white.
    Associated,
}

/// Pixels of 8-bit samples.
#[derive(Clone, Copy)]
pub(crate) struct Layout<'a> {
    pub(crate) colours: Colours<'a>,
    pub(crate) alpha: Alpha,
    /// Samples of a pixel: colours, alpha and what is ignored.
    pub(crate) samples: usize,
}

impl<'a> Layout<'a> {
    /// Colours alone.
    pub(crate) fn opaque(colours: Colours<'a>) -> Self {
        Layout { colours, alpha: Alpha::Ignored, samples: colours.count() }
    }

    /// Colours and alpha.
    pub(crate) fn with_alpha(colours: Colours<'a>) -> Self {
        Layout { colours, alpha: Alpha::Straight, samples: colours.count() + 1 }
    }

    /// The RGB pixels of whole pixels of samples.
    pub(crate) fn rgb(self, samples: &[u8]) -> impl Iterator<Item = [u8; 3]> {
        let colours = self.colours.count();
        samples.chunks_exact(self.samples.max(1)).map(move |pixel| {
            let colour = match self.colours {
                Colours::Gray => [pixel[0]; 3],
                Colours::Rgb => [pixel[0], pixel[1], pixel[2]],
                Colours::Cmyk => of_cmyk([pixel[0], pixel[1], pixel[2], pixel[3]]),
                Colours::Palette(palette) => palette.colour(pixel[0]),
            };
            match self.alpha {
                Alpha::Ignored => colour,
                Alpha::Straight => colour.map(|value| on_white(value, pixel[colours])),
                Alpha::Associated => {
                    let alpha = pixel[colours];
                    colour.map(|value| on_white(divided(value, alpha), alpha))
                }
            }
        })
    }

    /// Writes the RGB pixels of a row.
    pub(crate) fn write(self, samples: &[u8], out: &mut [u8]) {
        if let (Colours::Rgb, Alpha::Ignored, 3) = (self.colours, self.alpha, self.samples) {
            let n = samples.len().min(out.len());
            out[..n].copy_from_slice(&samples[..n]);
            return;
        }
        for (out, pixel) in out.chunks_exact_mut(3).zip(self.rgb(samples)) {
            out.copy_from_slice(&pixel);
        }
    }
}

/// High bytes of 16-bit samples, in the same buffer.
pub(crate) fn high_bytes(samples: &mut Vec<u8>, big_endian: bool) {
    let n = samples.len() / 2;
    for i in 0..n {
        samples[i] = samples[2 * i + usize::from(!big_endian)];
    }
    samples.truncate(n);
}

/// Samples of 1, 2 or 4 bits, the first in the high bits. `scaled` ones span 0 to 255, others stay as they are.
pub(crate) fn unpack(row: &[u8], bits: usize, scaled: bool) -> impl Iterator<Item = u8> {
    let factor = if scaled { [255, 85, 0, 17][bits.clamp(1, 4) - 1] } else { 1 };
    let mask = (1u16 << bits) as u8 - 1;
    row.iter().flat_map(move |byte| {
        (0..8 / bits).map(move |i| (byte >> (8 - bits - i * bits) & mask).wrapping_mul(factor))
    })
}

/// One channel of a pixel with alpha over white, rounded as Pillow does.
pub(crate) fn on_white(value: u8, alpha: u8) -> u8 {
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    let scaled = value * alpha + 255 * (255 - alpha) + 128;
    ((scaled + (scaled >> 8)) >> 8) as u8
}

/// A channel that was multiplied by alpha, as Pillow divides it again.
fn divided(value: u8, alpha: u8) -> u8 {
    match alpha {
        0 => 0,
        alpha => (255 * u32::from(value) / u32::from(alpha)).min(255) as u8,
    }
}

/// Colours of ink, as Pillow converts them.
fn of_cmyk([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let paper = 255 - i32::from(k);
    [c, m, y].map(|ink| {
        let t = i32::from(ink) * paper + 128;
        (paper - ((t + (t >> 8)) >> 8)).max(0) as u8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rgb(layout: Layout<'_>, samples: &[u8]) -> Vec<[u8; 3]> {
        let found: Vec<_> = layout.rgb(samples).collect();
        let mut written = vec![0; found.len() * 3];
        layout.write(samples, &mut written);
        assert_eq!(written, found.concat());
        found
    }

    #[test]
    fn every_layout() {
        use Colours::{Cmyk, Gray, Rgb};
        let opaque = Layout::opaque;
        assert_eq!(rgb(opaque(Gray), &[7, 200]), [[7; 3], [200; 3]]);
        assert_eq!(rgb(opaque(Rgb), &[1, 2, 3, 4, 5, 6]), [[1, 2, 3], [4, 5, 6]]);
        assert_eq!(
            rgb(opaque(Cmyk), &[0, 0, 0, 0, 255, 0, 10, 5, 0, 0, 0, 255]),
            [[255; 3], [0, 250, 240], [0; 3]]
        );
        assert_eq!(
            rgb(Layout::with_alpha(Rgb), &[1, 2, 3, 255, 4, 5, 6, 0, 0, 100, 255, 128]),
            [[1, 2, 3], [255; 3], [127, 177, 255]]
        );
        let gray = Layout::with_alpha(Gray);
        assert_eq!(rgb(gray, &[7, 255, 200, 0]), [[7; 3], [255; 3]]);
        assert_eq!(rgb(Layout { alpha: Alpha::Ignored, ..gray }, &[7, 255, 200, 0]), [[7; 3], [200; 3]]);
        let associated = Layout { alpha: Alpha::Associated, samples: 5, ..Layout::with_alpha(Rgb) };
        // 50 / 100 is 127, on white with alpha 100: 127 * 100 / 255 + 155.
        assert_eq!(rgb(associated, &[50, 100, 200, 100, 9, 1, 2, 3, 0, 9]), [[205, 255, 255], [255; 3]]);
    }

    #[test]
    fn palettes() {
        let mut palette = Palette::new([[1, 2, 3], [4, 5, 6]]);
        palette.set_alpha(1, 0);
        let layout = Layout::opaque(Colours::Palette(&palette));
        assert_eq!(rgb(layout, &[0, 1, 2, 255]), [[1, 2, 3], [255; 3], [0; 3], [0; 3]]);
    }

    #[test]
    fn bits_and_high_bytes() {
        let unpacked = |bits, scaled| unpack(&[0b1101_0010], bits, scaled).collect::<Vec<_>>();
        assert_eq!(unpacked(1, true), [255, 255, 0, 255, 0, 0, 255, 0]);
        assert_eq!(unpacked(2, true), [255, 85, 0, 170]);
        assert_eq!(unpacked(4, true), [221, 34]);
        assert_eq!(unpacked(4, false), [13, 2]);
        for (big, expected) in [(true, [1, 3]), (false, [2, 4])] {
            let mut samples = vec![1, 2, 3, 4];
            high_bytes(&mut samples, big);
            assert_eq!(samples, expected);
        }
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
