//! PSNR and SSIM of two images.

use lance_mm_image::RgbImage;
use serde::Serialize;

use super::Decibels;

/// Side of the window that structure is compared in, and its spread.
const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;

/// An image against a reference of its size.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Similarity {
    /// Peak signal to noise ratio over all channels, `10 log10(255² / mean squared difference)`; infinite when
    /// both are equal.
    pub psnr: Decibels,
    /// Structural similarity of the luma (Wang et al. 2004): Gaussian window of 11 by 11 with σ 1.5, cut to the
    /// image where that is smaller, K1 0.01, K2 0.03; mean over all places where the window fits. 1 when both
    /// are equal.
    pub ssim: f64,
}

impl Similarity {
    /// Compares two images; `None` when their sizes differ or they have no pixels.
    pub fn of(reference: &RgbImage, image: &RgbImage) -> Option<Self> {
        if reference.dimensions() != image.dimensions() || reference.as_raw().is_empty() {
            return None;
        }
        let pairs = reference.as_raw().iter().zip(image.as_raw());
        let squares: f64 = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
        let mse = squares / reference.as_raw().len() as f64;
        let (w, h) = (reference.width() as usize, reference.height() as usize);
        Some(Self {
            psnr: Decibels(10.0 * (255.0 * 255.0 / mse).log10()),
            ssim: ssim(&luma(reference), &luma(image), h, w),
        })
    }
}

fn luma(image: &RgbImage) -> Vec<f64> {
    let weigh = |p: &[u8; 3]| 0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2]);
    image.pixels().map(|p| weigh(&p.0)).collect()
}

fn ssim(a: &[f64], b: &[f64], h: usize, w: usize) -> f64 {
    let (c1, c2) = ((0.01 * 255.0f64).powi(2), (0.03 * 255.0f64).powi(2));
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).collect::<Vec<_>>();
    let blurred =
        [a.to_vec(), b.to_vec(), product(a, a), product(b, b), product(a, b)].map(|v| blur(&v, h, w));
    let [mean_a, mean_b, aa, bb, ab] = &blurred;
    let of = |i: usize| {
        let (ma, mb) = (mean_a[i], mean_b[i]);
        let (va, vb, cov) = (aa[i] - ma * ma, bb[i] - mb * mb, ab[i] - ma * mb);
        (2.0 * ma * mb + c1) * (2.0 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    };
    (0..mean_a.len()).map(of).sum::<f64>() / mean_a.len() as f64
}

/// The weighted mean around every place where the window fits.
fn blur(values: &[f64], h: usize, w: usize) -> Vec<f64> {
    let (rows, cols) = (gauss(h), gauss(w));
    let across: Vec<f64> = values
        .chunks_exact(w)
        .flat_map(|row| row.windows(cols.len()).map(|part| dot(part.iter(), &cols)).collect::<Vec<_>>())
        .collect();
    let width = w + 1 - cols.len();
    (0..=h - rows.len())
        .flat_map(|y| (0..width).map(move |x| (y, x)))
        .map(|(y, x)| dot(across[y * width + x..].iter().step_by(width), &rows))
        .collect()
}

fn dot<'a>(values: impl Iterator<Item = &'a f64>, weights: &[f64]) -> f64 {
    values.zip(weights).map(|(v, k)| v * k).sum()
}

/// Weights of the window, as many as fit into `n`; they add up to 1.
fn gauss(n: usize) -> Vec<f64> {
    let n = n.min(WINDOW);
    let centre = (n - 1) as f64 / 2.0;
    let weights: Vec<f64> = (0..n).map(|i| (-((i as f64 - centre) / SIGMA).powi(2) / 2.0).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|k| k / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(w: u32, h: u32, value: impl Fn(u32, u32) -> f64) -> RgbImage {
        RgbImage::from_fn(w, h, |x, y| lance_mm_image::Rgb([value(x, y).round().clamp(0.0, 255.0) as u8; 3]))
    }

    #[test]
    fn equal_images_are_alike_without_limit() {
        for (w, h) in [(1, 1), (5, 40), (16, 16)] {
            let a = image(w, h, |x, y| f64::from(x * 7 + y * 3 % 50));
            let found = Similarity::of(&a, &a).unwrap();
            assert_eq!((found.psnr.0, (found.ssim - 1.0).abs() < 1e-12), (f64::INFINITY, true), "{w}x{h}");
        }
        assert!(Similarity::of(&RgbImage::new(2, 3), &RgbImage::new(3, 2)).is_none());
        assert!(Similarity::of(&RgbImage::new(0, 3), &RgbImage::new(0, 3)).is_none());
    }

    #[test]
    fn a_shift_in_brightness_costs_psnr_and_little_structure() {
        let wave = |x: u32| 128.0 + 50.0 * (f64::from(x) * 0.9).sin();
        let (a, b) = (image(32, 24, |x, _| wave(x)), image(32, 24, |x, _| wave(x) + 10.0));
        let found = Similarity::of(&a, &b).unwrap();
        assert!((found.psnr.0 - 10.0 * (65025.0f64 / 100.0).log10()).abs() < 1e-9, "{found:?}");
        assert!(found.ssim > 0.97, "{found:?}");
        // The same error without structure: contrast gone.
        let flat = Similarity::of(&a, &image(32, 24, |_, _| 128.0)).unwrap();
        assert!(flat.ssim < 0.1, "{flat:?}");
    }

    #[test]
    fn a_single_window_is_the_formula() {
        let (a, b) =
            (image(1, 2, |_, y| [10.0, 30.0][y as usize]), image(1, 2, |_, y| [20.0, 20.0][y as usize]));
        // Means 20 and 20, variances 100 and 0, covariance 0.
        let expected = 58.5225 / (100.0 + 58.5225);
        assert!((Similarity::of(&a, &b).unwrap().ssim - expected).abs() < 1e-9);
    }
}
