//! Pillow's bicubic resize, bit for bit.
//!
//! Two passes, horizontal then vertical, each rounded to 8 bits, with weights in fixed point. Libraries that
//! compute "bicubic" in floats, with another `a` or in one pass differ by a level here and there, and Lance
//! was trained on these pixels. Ported from Pillow `src/libImaging/Resample.c`.
//!
//! Pillow skips a pass that does not change the size. Here it runs, with the same result: its weights are one
//! and zeros.

use ::image::RgbImage;
use rayon::prelude::*;

use crate::{Crop, Size};

/// Fractional bits of a weight: 32 bits less 8 of the pixel and 2 for overshoot.
const PRECISION: u32 = 22;

/// Half the kernel's width at full size.
const SUPPORT: f64 = 2.0;

/// Resizes the part `crop` of `image` to `size`, bit equal to Pillow's bicubic filter.
///
/// Pixels outside the crop have no influence, as if the crop had been copied first. (It is not: memory beside
/// the source is one band of the new width and the result.) Enlarging is allowed.
///
/// # Panics
///
/// When the crop is empty or reaches outside the image.
pub fn resample(image: &RgbImage, crop: Crop, size: Size) -> RgbImage {
    resample_part(image, crop, size, Crop::whole(size))
}

/// Computes the part `keep` of the result of [`resample`] only.
pub(crate) fn resample_part(image: &RgbImage, crop: Crop, size: Size, keep: Crop) -> RgbImage {
    assert!(crop.size.area() > 0, "an empty crop has no pixels to resize: {crop:?}");
    assert!(
        crop.top + crop.size.height <= image.height() && crop.left + crop.size.width <= image.width(),
        "{crop:?} reaches outside an image of {}",
        Size::of(image)
    );
    let columns = axis_taps(crop.size.width, size.width, keep.left, keep.size.width);
    let rows = axis_taps(crop.size.height, size.height, keep.top, keep.size.height);

    // Source rows that any kept row of the result reads.
    let first = rows.first().map_or(0, |taps| taps.first);
    let end = rows.last().map_or(0, |taps| taps.first + taps.weights.len());
    let source = Source { image, top: crop.top as usize + first, left: crop.left as usize };
    let band = horizontal(&source, &columns, end - first);
    let pixels = vertical(&band, &rows, first, columns.len() * 3);
    RgbImage::from_raw(keep.size.width, keep.size.height, pixels)
        .expect("both passes fill the size they were given")
}

/// Source pixels of one output sample: `weights.len()` of them from `first` on.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Taps of the output samples `start .. start + count` when `n_in` samples become `n_out`.
fn axis_taps(n_in: u32, n_out: u32, start: u32, count: u32) -> Vec<Taps> {
    let scale = f64::from(n_in) / f64::from(n_out);
    (start..start + count).map(|i| taps((f64::from(i) + 0.5) * scale, scale.max(1.0), n_in)).collect()
}

/// Taps of the output sample centred at `centre`; the kernel is `stretch` times as wide as at full size.
fn taps(centre: f64, stretch: f64, n_in: u32) -> Taps {
    let support = SUPPORT * stretch;
    // Both ends truncate, as a C cast does.
    let first = (centre - support + 0.5).max(0.0).trunc();
    let end = (centre + support + 0.5).min(f64::from(n_in)).trunc();
    let inverse = 1.0 / stretch;

    let weight = |k: usize| cubic((k as f64 + first - centre + 0.5) * inverse);
    let weights: Vec<f64> = (0..(end - first) as usize).map(weight).collect();
    let sum: f64 = weights.iter().sum();
    Taps { first: first as usize, weights: weights.iter().map(|w| fixed_point(w / sum)).collect() }
}

/// Keys' cubic kernel with a = -0.5.
fn cubic(t: f64) -> f64 {
    const A: f64 = -0.5;
    let t = t.abs();
    if t < 1.0 {
        ((A + 2.0) * t - (A + 3.0)) * t * t + 1.0
    } else if t < 2.0 {
        (((t - 5.0) * t + 8.0) * t - 4.0) * A
    } else {
        0.0
    }
}

/// Rounds half away from zero to `PRECISION` fractional bits.
fn fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1 << PRECISION);
    (scaled + 0.5_f64.copysign(scaled)).trunc() as i32
}

/// A sum starts at one half, so that the shift in [`to_u8`] rounds.
const HALF: i32 = 1 << (PRECISION - 1);

/// The sum of weights times pixels as a pixel; the kernel overshoots, so it is clamped.
fn to_u8(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// The rows of an image from `top` on, from column `left` on.
struct Source<'a> {
    image: &'a RgbImage,
    top: usize,
    left: usize,
}

impl Source<'_> {
    fn row(&self, y: usize) -> &[u8] {
        let width = self.image.width() as usize * 3;
        let row = &self.image.as_raw()[(self.top + y) * width..][..width];
        &row[self.left * 3..]
    }
}

/// `n_rows` rows of the source, resized in width.
fn horizontal(source: &Source<'_>, columns: &[Taps], n_rows: usize) -> Vec<u8> {
    let mut band = vec![0; n_rows * columns.len() * 3];
    band.par_chunks_exact_mut((columns.len() * 3).max(1)).enumerate().for_each(|(y, out)| {
        let row = source.row(y);
        for (out, taps) in out.chunks_exact_mut(3).zip(columns) {
            let pixels = &row[taps.first * 3..][..taps.weights.len() * 3];
            out.copy_from_slice(&weigh(pixels, &taps.weights).map(to_u8));
        }
    });
    band
}

/// One output pixel of the horizontal pass, before rounding.
fn weigh(pixels: &[u8], weights: &[i32]) -> [i32; 3] {
    let mut sums = [HALF; 3];
    for (pixel, weight) in pixels.chunks_exact(3).zip(weights) {
        for c in 0..3 {
            sums[c] += weight * i32::from(pixel[c]);
        }
    }
    sums
}

/// The band, whose first row is source row `first`, resized in height.
fn vertical(band: &[u8], rows: &[Taps], first: usize, row_len: usize) -> Vec<u8> {
    let mut pixels = vec![0; rows.len() * row_len];
    pixels.par_chunks_exact_mut(row_len.max(1)).zip(rows).for_each_init(
        || vec![HALF; row_len],
        |sums, (out, taps)| {
            sums.fill(HALF);
            let source = band[(taps.first - first) * row_len..].chunks_exact(row_len);
            for (row, weight) in source.zip(&taps.weights) {
                for (sum, pixel) in sums.iter_mut().zip(row) {
                    *sum += weight * i32::from(*pixel);
                }
            }
            for (out, sum) in out.iter_mut().zip(sums.iter()) {
                *out = to_u8(*sum);
            }
        },
    );
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image without structure a resize could hide behind: floor(h * golden ratio) of a running number.
    fn noise(height: u32, width: u32) -> RgbImage {
        let pixels = (0..height * width * 3).map(|i| (i.wrapping_mul(2_654_435_769) >> 24) as u8);
        RgbImage::from_raw(width, height, pixels.collect()).unwrap()
    }

    fn whole(image: &RgbImage) -> Crop {
        Crop::whole(Size::of(image))
    }

    /// Height first.
    fn hw((height, width): (u32, u32)) -> Size {
        Size { width, height }
    }

    /// The definition in floats: every source sample weighted by the stretched kernel, per axis.
    fn naive(samples: &[f64], n_out: usize) -> Vec<f64> {
        let scale = samples.len() as f64 / n_out as f64;
        let stretch = scale.max(1.0);
        let kernel = |t: f64| match t.abs() {
            t if t < 1.0 => 1.5 * t.powi(3) - 2.5 * t.powi(2) + 1.0,
            t if t < 2.0 => -0.5 * t.powi(3) + 2.5 * t.powi(2) - 4.0 * t + 2.0,
            _ => 0.0,
        };
        let output = |i: usize| {
            let centre = (i as f64 + 0.5) * scale;
            let weights: Vec<f64> =
                (0..samples.len()).map(|x| kernel((x as f64 + 0.5 - centre) / stretch)).collect();
            let sum: f64 = weights.iter().zip(samples).map(|(w, s)| w * s).sum();
            (sum / weights.iter().sum::<f64>()).round().clamp(0.0, 255.0)
        };
        (0..n_out).map(output).collect()
    }

    fn naive_image(image: &RgbImage, Size { width, height }: Size) -> RgbImage {
        let mut out = RgbImage::new(width, height);
        for c in 0..3 {
            let rows: Vec<Vec<f64>> = image
                .rows()
                .map(|row| naive(&row.map(|p| f64::from(p.0[c])).collect::<Vec<_>>(), width as usize))
                .collect();
            for x in 0..width {
                let column: Vec<f64> = rows.iter().map(|row| row[x as usize]).collect();
                for (y, value) in naive(&column, height as usize).into_iter().enumerate() {
                    out.get_pixel_mut(x, y as u32).0[c] = value as u8;
                }
            }
        }
        out
    }

    #[test]
    fn close_to_the_definition() {
        let cases = [
            ((1, 1), (5, 4)),
            ((7, 9), (16, 3)),
            ((40, 31), (11, 13)),
            ((3, 200), (3, 20)),
            ((64, 5), (2, 50)),
        ];
        for (from, to) in cases {
            let (image, to) = (noise(from.0, from.1), hw(to));
            let found = resample(&image, whole(&image), to);
            for (a, b) in found.iter().zip(naive_image(&image, to).iter()) {
                assert!(a.abs_diff(*b) <= 1, "{from:?} -> {to:?}: {a} against {b}");
            }
        }
    }

    #[test]
    fn equal_to_pillow() {
        // Pillow 13.0.0, a 720x1280 gradient whose crop 719x1280 becomes 512x912; the model keeps 504x896.
        let source = RgbImage::from_fn(1280, 720, |x, y| {
            ::image::Rgb([(7 * x + 13 * y) as u8, (x * x / 50 + 3 * y) as u8, (x ^ y) as u8])
        });
        let crop = Crop::whole(hw((719, 1280)));
        let keep = Crop::centred(hw((504, 896)), hw((512, 912)));
        let out = resample_part(&source, crop, hw((512, 912)), keep);
        let first = [[155, 19, 12], [165, 20, 10], [175, 20, 9], [184, 22, 17], [194, 22, 22], [204, 23, 21]];
        let last =
            [[143, 241, 35], [153, 72, 35], [163, 122, 37], [173, 207, 37], [183, 165, 46], [192, 66, 57]];
        for x in 0..6 {
            assert_eq!(out.get_pixel(x, 0).0, first[x as usize], "first row, column {x}");
            assert_eq!(out.get_pixel(888 + x, 503).0, last[x as usize], "last row, column {}", 888 + x);
        }
    }

    #[test]
    fn same_size_changes_nothing() {
        let image = noise(13, 17);
        assert_eq!(resample(&image, whole(&image), hw((13, 17))), image);
    }

    #[test]
    fn crop_equals_copying_first() {
        let image = noise(30, 40);
        let crop = Crop { top: 5, left: 7, size: hw((19, 23)) };
        let copy = ::image::imageops::crop_imm(&image, 7, 5, 23, 19).to_image();
        assert_eq!(resample(&image, crop, hw((11, 50))), resample(&copy, whole(&copy), hw((11, 50))));
    }

    #[test]
    fn part_equals_cutting_afterwards() {
        let image = noise(50, 33);
        let keep = Crop { top: 3, left: 2, size: hw((14, 9)) };
        let all = resample(&image, whole(&image), hw((20, 15)));
        let expected = ::image::imageops::crop_imm(&all, 2, 3, 9, 14).to_image();
        assert_eq!(resample_part(&image, whole(&image), hw((20, 15)), keep), expected);
    }

    #[test]
    fn flat_stays_flat() {
        for level in [0, 1, 127, 254, 255] {
            let image = RgbImage::from_pixel(37, 21, ::image::Rgb([level; 3]));
            assert!(
                resample(&image, whole(&image), hw((64, 5))).iter().all(|v| *v == level),
                "level {level}"
            );
        }
    }

    #[test]
    fn empty_results_are_empty() {
        let image = noise(4, 4);
        assert_eq!(resample(&image, whole(&image), hw((0, 3))).dimensions(), (3, 0));
        assert_eq!(resample(&image, whole(&image), hw((3, 0))).dimensions(), (0, 3));
    }
}
