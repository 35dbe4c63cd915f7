//! Fine detail of images: power in high frequencies.

use std::sync::Arc;

use lance_mm_image::RgbImage;
use rustfft::num_complex::Complex;
use rustfft::{Fft, FftPlanner};
use serde::Serialize;

/// Rings of [`Frequency::radial_profile`].
pub const RINGS: usize = 32;

/// Radial frequency above which power counts as high, cycles a pixel.
const HIGH: f64 = 0.125;

/// Ring centres that the slope is fitted to, cycles a pixel.
const SLOPE: std::ops::RangeInclusive<f64> = 0.05..=0.45;

/// Detail of one image.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Frequency {
    /// Sum of magnitudes of the mean of the channels outside the square of half-width min(H, W) / 8 around
    /// zero frequency, as lance-mlx's notes measure it. It grows with contrast: compare with
    /// [`contrast`](Self::contrast) beside it.
    pub hf_lance_mlx: f64,
    /// Share of the power of the luma above 1/8 cycle a pixel, under a Hann window: free of size and
    /// contrast. 0 for an image of one colour.
    pub hf_ratio: f64,
    /// `log10` of the mean power in rings of width 1/64 cycle a pixel; `None` for a ring without samples.
    pub radial_profile: [Option<f64>; RINGS],
    /// Least squares line of the profile over ring centres from 0.05 to 0.45.
    pub slope: Option<f64>,
    /// Standard deviation of the mean of the channels, in levels of 0 to 255.
    pub contrast: f64,
}

impl Frequency {
    /// Measures an image.
    pub fn of(image: &RgbImage) -> Self {
        let (h, w) = (image.height() as usize, image.width() as usize);
        let gray: Vec<f64> =
            image.pixels().map(|p| p.0.iter().map(|v| f64::from(*v)).sum::<f64>() / 3.0).collect();
        let luma = luma(image);
        let power = Power::new(&luma, h, w);
        let radial_profile = power.radial_profile();
        Self {
            hf_lance_mlx: hf_lance_mlx(&gray, h, w),
            hf_ratio: power.high_ratio(),
            slope: slope(&radial_profile),
            radial_profile,
            contrast: deviation(&gray),
        }
    }
}

/// Luma in 0 to 1, mean removed, under a symmetric Hann window on both axes.
fn luma(image: &RgbImage) -> Vec<f64> {
    let weigh =
        |p: &[u8; 3]| (0.299 * f64::from(p[0]) + 0.587 * f64::from(p[1]) + 0.114 * f64::from(p[2])) / 255.0;
    let mut luma: Vec<f64> = image.pixels().map(|p| weigh(&p.0)).collect();
    let mean = luma.iter().sum::<f64>() / luma.len().max(1) as f64;
    let (rows, cols) = (hann(image.height() as usize), hann(image.width() as usize));
    for (row, by_row) in luma.chunks_exact_mut(cols.len().max(1)).zip(&rows) {
        for (v, by_col) in row.iter_mut().zip(&cols) {
            *v = (*v - mean) * by_row * by_col;
        }
    }
    luma
}

fn hann(n: usize) -> Vec<f64> {
    let step = std::f64::consts::TAU / n.saturating_sub(1).max(1) as f64;
    (0..n).map(|i| if n == 1 { 1.0 } else { 0.5 - 0.5 * (step * i as f64).cos() }).collect()
}

fn hf_lance_mlx(gray: &[f64], h: usize, w: usize) -> f64 {
    let r = h.min(w) / 8;
    // Rows H/2 − r to H/2 + r − 1 of the shifted transform are frequencies −r to r − 1.
    let inside = |i: usize, n: usize| {
        let shifted = (i + n / 2) % n;
        (n / 2 - r..n / 2 + r).contains(&shifted)
    };
    let spectrum = transform(gray, h, w);
    let outside = spectrum.iter().enumerate().filter(|(i, _)| !(inside(i / w, h) && inside(i % w, w)));
    outside.map(|(_, v)| v.norm()).sum()
}

/// Power of a transform without its constant part, each with its radial frequency.
struct Power(Vec<(f64, f64)>);

impl Power {
    fn new(values: &[f64], h: usize, w: usize) -> Self {
        let frequency = |i: usize, n: usize| {
            let signed = if i < n.div_ceil(2) { i as f64 } else { i as f64 - n as f64 };
            signed / n as f64
        };
        let spectrum = transform(values, h, w);
        let of =
            |(i, v): (usize, &Complex<f64>)| (frequency(i / w, h).hypot(frequency(i % w, w)), v.norm_sqr());
        Self(spectrum.iter().enumerate().skip(1).map(of).collect())
    }

    fn high_ratio(&self) -> f64 {
        let sum = |least: f64| self.0.iter().filter(|(rho, _)| *rho > least).map(|(_, p)| p).sum::<f64>();
        let all = sum(0.0);
        // One level of one pixel has 1e-5; what is left of an image of one colour is rounding.
        if all > 1e-20 { sum(HIGH) / all } else { 0.0 }
    }

    fn radial_profile(&self) -> [Option<f64>; RINGS] {
        let mut rings = [(0usize, 0.0); RINGS];
        for (rho, power) in &self.0 {
            if let Some((n, sum)) = rings.get_mut((rho * 2.0 * RINGS as f64) as usize) {
                (*n, *sum) = (*n + 1, *sum + power);
            }
        }
        rings.map(|(n, sum)| (n > 0).then(|| (sum / n as f64 + 1e-20).log10()))
    }
}

fn slope(profile: &[Option<f64>; RINGS]) -> Option<f64> {
    let centre = |i: usize| (i as f64 + 0.5) / (2 * RINGS) as f64;
    let points: Vec<(f64, f64)> = profile
        .iter()
        .enumerate()
        .filter_map(|(i, value)| Some((centre(i), (*value)?)))
        .filter(|(x, _)| SLOPE.contains(x))
        .collect();
    let n = points.len() as f64;
    let (mx, my) = (points.iter().map(|p| p.0).sum::<f64>() / n, points.iter().map(|p| p.1).sum::<f64>() / n);
    let xx: f64 = points.iter().map(|(x, _)| (x - mx).powi(2)).sum();
    let xy: f64 = points.iter().map(|(x, y)| (x - mx) * (y - my)).sum();
    (xx > 0.0).then(|| xy / xx)
}

fn deviation(values: &[f64]) -> f64 {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// The transform of `h` rows of `w` values, rows first, zero frequency in front.
fn transform(values: &[f64], h: usize, w: usize) -> Vec<Complex<f64>> {
    let mut planner = FftPlanner::new();
    let mut rows: Vec<Complex<f64>> = values.iter().map(|v| Complex::new(*v, 0.0)).collect();
    run(&planner.plan_fft_forward(w), &mut rows);
    let mut columns = transposed(&rows, h, w);
    run(&planner.plan_fft_forward(h), &mut columns);
    transposed(&columns, w, h)
}

fn run(fft: &Arc<dyn Fft<f64>>, rows: &mut [Complex<f64>]) {
    if !rows.is_empty() {
        fft.process(rows);
    }
}

fn transposed(values: &[Complex<f64>], h: usize, w: usize) -> Vec<Complex<f64>> {
    (0..w).flat_map(|x| (0..h).map(move |y| values[y * w + x])).collect()
}

#[cfg(test)]
mod tests {
    use lance_mm_image::Rgb;

    use super::*;

    /// 128 plus cosines `(cycles across, amplitude)`, before rounding to levels.
    fn waves(n: usize, waves: &[(usize, f64)]) -> Vec<f64> {
        let value = |x: usize| {
            let turn = std::f64::consts::TAU * x as f64 / n as f64;
            128.0 + waves.iter().map(|(k, a)| a * (turn * *k as f64).cos()).sum::<f64>()
        };
        (0..n * n).map(|i| value(i % n)).collect()
    }

    #[test]
    fn the_square_lets_the_slow_wave_through_and_counts_the_fast_one() {
        let n = 64;
        // A cosine of amplitude a gives two values of a·n²/2. r = 8: ±7 cycles are inside, ±9 outside;
        // of ±8 the negative is inside, since the square is half open.
        for (waves_of, expected) in [
            (&[(7, 40.0)][..], 0.0),
            (&[(9, 30.0)], 30.0),
            (&[(7, 40.0), (9, 30.0)], 30.0),
            (&[(8, 30.0)], 15.0),
        ] {
            let found = hf_lance_mlx(&waves(n, waves_of), n, n) / (n * n) as f64;
            assert!((found - expected).abs() < 1e-5, "{waves_of:?}: {found}");
        }
    }

    fn image(n: u32, contrast: f64) -> RgbImage {
        RgbImage::from_fn(n, n, |x, y| {
            let wave = |x: u32, k: f64| (std::f64::consts::TAU * f64::from(x) * k / f64::from(n)).cos();
            let value = 128.0 + contrast * (wave(x, 3.0) + wave(y, 20.0));
            Rgb([value.round() as u8; 3])
        })
    }

    #[test]
    fn contrast_changes_the_sum_but_not_the_share() {
        let (full, half) = (Frequency::of(&image(64, 60.0)), Frequency::of(&image(64, 30.0)));
        assert!((half.hf_lance_mlx / full.hf_lance_mlx - 0.5).abs() < 0.05, "{half:?}");
        assert!((half.hf_ratio / full.hf_ratio - 1.0).abs() < 0.01, "{half:?}");
        assert!((half.contrast / full.contrast - 0.5).abs() < 0.02);
        assert!((full.hf_ratio - 0.5).abs() < 0.05, "half of the power is in the fast wave");
    }

    #[test]
    fn any_size_gives_numbers() {
        for (w, h) in [(1, 1), (1, 9), (7, 3), (16, 5)] {
            let flat = Frequency::of(&RgbImage::from_pixel(w, h, Rgb([9, 8, 7])));
            assert!(
                flat.hf_ratio == 0.0 && flat.hf_lance_mlx.is_finite() && flat.contrast < 1e-12,
                "{w}x{h}"
            );
            assert!(flat.slope.is_none_or(f64::is_finite));
        }
        assert_eq!(Frequency::of(&RgbImage::new(0, 0)).hf_ratio, 0.0);
    }
}
