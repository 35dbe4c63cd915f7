//! The scale search of lance-mlx, which made the published checkpoint; to compare with.
//!
//! Source: xocialize/lance-mlx, `quant/awq.py`. Differences from [`search`](crate::search()): synthetic
//! inputs with the channels' mean magnitudes as their spread, no identity among the candidates, a rounding
//! that is not MLX's, an unweighted sum over the consumers.

use lance_mm_tensor::{Result, Scheme};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use serde::Serialize;

use crate::block::output_energy;
use crate::matrix::{CHUNK, RowSource, setting};

/// Smallest mean, weight maximum, scale and step.
const FLOOR: f32 = 1e-5;

/// Result of the search.
#[derive(Clone, Debug, Serialize)]
pub struct LanceMlxSearch {
    /// `α` of the smallest loss.
    pub alpha: f64,
    /// Loss at `α` = 0, 0.05, .. 1.
    pub losses: Vec<f64>,
    /// The scale at `alpha`, one factor for each channel.
    #[serde(skip)]
    pub scale: Vec<f32>,
}

/// Mean magnitude of every channel of a group: mean over the consumers of `sum |x| / rows`, floored.
pub fn activation_mean(consumers: &[(&[f32], usize)]) -> Vec<f32> {
    let n = consumers.len() as f32;
    let channels = consumers.first().map_or(0, |(sums, _)| sums.len());
    let mean = |k: usize| consumers.iter().map(|(sums, rows)| sums[k] / *rows as f32).sum::<f32>() / n;
    (0..channels).map(|k| mean(k).max(FLOOR)).collect()
}

/// Synthetic inputs `(512, cols)` before scaling: independent standard normal values, not those of MLX's generator.
pub fn synthetic_inputs(cols: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(0xC0DE);
    let mut unit = || (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0;
    let mut normal = || (-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos();
    (0..512 * cols).map(|_| normal() as f32).collect()
}

/// The scales at `α` = 0, 0.05, .. 1, one factor for each channel. Every consumer has a column for each mean.
pub fn lance_mlx_scales(weights: &[&dyn RowSource], mean_abs: &[f32]) -> Vec<Vec<f32>> {
    let m = weight_maxima(weights, mean_abs.len());
    alphas().map(|alpha| scale(mean_abs, &m, alpha)).collect()
}

fn alphas() -> impl Iterator<Item = f64> {
    (0..=20).map(|i| f64::from(i) / 20.0)
}

/// Searches the scale of a norm's consumers. `mean_abs` is [`activation_mean`], `z` standard normal rows.
///
/// # Errors
/// No consumer; another width than the means; columns that are not whole groups; values not finite.
pub fn lance_mlx_search(
    weights: &[&dyn RowSource],
    mean_abs: &[f32],
    z: &[f32],
    scheme: Scheme,
) -> Result<LanceMlxSearch> {
    let cols = mean_abs.len();
    let group = scheme.group_size();
    if weights.is_empty() || cols == 0 || !cols.is_multiple_of(group) || !z.len().is_multiple_of(cols) {
        let found = format!("{} of {cols} channels, {} normal values", weights.len(), z.len());
        return Err(setting(
            "lance-mlx search",
            format!("consumers with channels in groups of {group}"),
            found,
        ));
    }
    if let Some(weight) = weights.iter().find(|w| w.n_cols() != cols) {
        return Err(setting("lance-mlx search", format!("{cols} columns"), weight.n_cols()));
    }
    let mut x = z.to_vec();
    for row in x.chunks_exact_mut(cols) {
        row.iter_mut().zip(mean_abs).for_each(|(x, a)| *x *= a);
    }
    let scales = lance_mlx_scales(weights, mean_abs);
    let mut losses = vec![0.0; scales.len()];
    for weight in weights {
        let found = consumer_losses(*weight, &x, &scales, scheme);
        losses.iter_mut().zip(found).for_each(|(sum, loss)| *sum += loss);
    }
    if losses.iter().any(|loss| !loss.is_finite()) {
        return Err(setting("lance-mlx search", "finite weights and means", "some that are not"));
    }
    let best = (1..losses.len()).fold(0, |best, i| if losses[i] < losses[best] { i } else { best });
    let alpha = alphas().nth(best).unwrap_or(0.0);
    Ok(LanceMlxSearch { alpha, losses, scale: scales[best].clone() })
}

/// Mean over the consumers of the largest magnitude in a column.
fn weight_maxima(weights: &[&dyn RowSource], cols: usize) -> Vec<f32> {
    let mut sum = vec![0.0; cols];
    for weight in weights {
        let mut row = vec![0.0; cols];
        let mut peak = vec![FLOOR; cols];
        for r in 0..weight.n_rows() {
            weight.read_row(r, &mut row);
            peak.iter_mut().zip(&row).for_each(|(p, v)| *p = v.abs().max(*p));
        }
        sum.iter_mut().zip(peak).for_each(|(s, p)| *s += p);
    }
    sum.iter().map(|s| s / weights.len() as f32).collect()
}

/// `a^α / m^(1−α)`, floored, its ends as far above as below 1.
fn scale(a: &[f32], m: &[f32], alpha: f64) -> Vec<f32> {
    let raw = |(a, m): (&f32, &f32)| {
        (f64::from(*a).powf(alpha) / f64::from(*m).powf(1.0 - alpha)).max(f64::from(FLOOR))
    };
    let s: Vec<f64> = a.iter().zip(m).map(raw).collect();
    let (lo, hi) = s.iter().fold((f64::INFINITY, 0.0f64), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
    s.iter().map(|v| (v / (hi * lo).sqrt()) as f32).collect()
}

/// `mean((X·Wᵀ − (X/s)·fq(W·s)ᵀ)²)` for each scale.
fn consumer_losses(weight: &dyn RowSource, x: &[f32], scales: &[Vec<f32>], scheme: Scheme) -> Vec<f64> {
    let (rows, cols) = (weight.n_rows(), weight.n_cols());
    let chunks: Vec<Vec<f64>> = (0..rows.div_ceil(CHUNK))
        .into_par_iter()
        .map(|i| {
            let w = weight.read_rows(i * CHUNK, CHUNK.min(rows - i * CHUNK));
            scales.iter().map(|s| output_energy(x, &error(&w, s, scheme), cols)).collect()
        })
        .collect();
    let count = (x.len() / cols * rows) as f64;
    (0..scales.len()).map(|i| chunks.iter().map(|errors| errors[i]).sum::<f64>() / count).collect()
}

fn error(w: &[f32], s: &[f32], scheme: Scheme) -> Vec<f32> {
    let mut out = w.to_vec();
    for row in out.chunks_exact_mut(s.len()) {
        row.iter_mut().zip(s).for_each(|(v, s)| *v *= s);
        row.chunks_exact_mut(scheme.group_size()).for_each(|group| fake_quantize(group, scheme.bits()));
    }
    for (row, w) in out.chunks_exact_mut(s.len()).zip(w.chunks_exact(s.len())) {
        row.iter_mut().zip(s).zip(w).for_each(|((v, s), w)| *v = w - *v / s);
    }
    out
}

/// The recipe's own rounding: an integer zero point that is not clamped, a step of at least 1e-5.
fn fake_quantize(group: &mut [f32], bits: usize) {
    let n = ((1u32 << bits) - 1) as f32;
    let (lo, hi) =
        group.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
    let step = ((hi - lo) / n).max(FLOOR);
    let zero = (-lo / step).round_ties_even();
    for v in group {
        *v = ((*v / step + zero).round_ties_even().clamp(0.0, n) - zero) * step;
    }
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;

    use super::*;
    use crate::matrix::Matrix;

    #[test]
    fn losses_equal_the_naive_reference() {
        let (rows, cols, scheme) = (5, 64, Scheme::affine(4, 32).unwrap());
        let w = Matrix::new("w", seeded(rows * cols, 1), cols).unwrap();
        let z = seeded(7 * cols, 2);
        let a: Vec<f32> = seeded(cols, 3).iter().map(|v| v.abs() + 0.1).collect();
        let found = lance_mlx_search(&[&w], &a, &z, scheme).unwrap();
        for (i, loss) in found.losses.iter().enumerate() {
            let m: Vec<f32> = (0..cols)
                .map(|k| (0..rows).map(|r| w.values()[r * cols + k].abs()).fold(0.0, f32::max))
                .collect();
            let s = scale(&a, &m, i as f64 / 20.0);
            let mut expected = 0.0;
            for r in 0..rows {
                let row: Vec<f32> = (0..cols).map(|k| w.values()[r * cols + k] * s[k]).collect();
                let mut rounded = row.clone();
                rounded.chunks_exact_mut(32).for_each(|g| fake_quantize(g, 4));
                for z in z.chunks_exact(cols) {
                    let off: f64 =
                        (0..cols).map(|k| f64::from(z[k] * a[k] / s[k] * (row[k] - rounded[k]))).sum();
                    expected += off * off / (7 * rows) as f64;
                }
            }
            assert!((loss / expected - 1.0).abs() < 1e-4, "{i}: {loss} {expected}");
        }
        assert_eq!(found.losses.len(), 21);
    }

    #[test]
    fn means_are_floored_and_synthetic_inputs_are_normal() {
        assert_eq!(activation_mean(&[(&[4.0, 0.0], 2), (&[8.0, 0.0], 2)]), [3.0, 1e-5]);
        let z = synthetic_inputs(64);
        assert_eq!(z, synthetic_inputs(64));
        let mean = z.iter().map(|v| f64::from(*v)).sum::<f64>() / z.len() as f64;
        let square = z.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / z.len() as f64;
        assert!(mean.abs() < 0.02 && (square - 1.0).abs() < 0.03, "{mean} {square}");
    }
}
