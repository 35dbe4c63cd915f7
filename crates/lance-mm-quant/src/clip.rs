//! A narrower range for a group: the largest weights are clipped where that lowers the error of the rest.

use lance_mm_tensor::quantize_group;

use crate::group_gram::GroupGram;
use crate::matrix::round_bf16;

/// One quantized group.
#[derive(Clone, Debug)]
pub(crate) struct Fit {
    pub(crate) codes: Vec<u8>,
    /// A bf16 value.
    pub(crate) scale: f32,
    /// A bf16 value.
    pub(crate) bias: f32,
    /// `dᵀ H d` of the values it stands for minus the weights.
    pub(crate) error: f64,
}

impl Fit {
    /// Measures codes, scale and bias against the weights; `d` is room to work.
    pub(crate) fn measure(
        codes: &[u8],
        scale: f32,
        bias: f32,
        weights: &[f32],
        gram: &GroupGram,
        d: &mut [f64],
    ) -> Self {
        for ((d, code), w) in d.iter_mut().zip(codes).zip(weights) {
            *d = f64::from(scale * f32::from(*code) + bias) - f64::from(*w);
        }
        Self { codes: codes.to_vec(), scale, bias, error: gram.error(d) }
    }
}

/// Tries `steps` ranges, of which step `i` clamps the group to `1 − 0.05·i` of its range before plain quantization.
/// Returns the first with the smallest error, and its step.
pub(crate) fn clip(weights: &[f32], gram: &GroupGram, bits: usize, steps: usize) -> (Fit, usize) {
    let mut best = try_step(weights, gram, bits, 0);
    let mut at = 0;
    for step in 1..steps {
        let fit = try_step(weights, gram, bits, step);
        if fit.error < best.error {
            (best, at) = (fit, step);
        }
    }
    (best, at)
}

fn try_step(weights: &[f32], gram: &GroupGram, bits: usize, step: usize) -> Fit {
    let (mut codes, mut d) = (vec![0; weights.len()], vec![0.0; weights.len()]);
    let (scale, bias) = clipped(weights, bits, step, &mut codes);
    Fit::measure(&codes, round_bf16(scale), round_bf16(bias), weights, gram, &mut d)
}

/// Plain quantization of values clamped to `1 − 0.05·step` of their range.
pub(crate) fn clipped(values: &[f32], bits: usize, step: usize, codes: &mut [u8]) -> (f32, f32) {
    if step == 0 {
        return quantize_group(values, bits, codes);
    }
    let part = (1.0 - 0.05 * step as f64) as f32;
    let (lo, hi) =
        values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(lo, hi), v| (lo.min(*v), hi.max(*v)));
    // Values of one sign keep an order: the end near zero moves inwards too, never past the other.
    let (lo, hi) = (part * lo, part * hi);
    let clamped: Vec<f32> = values.iter().map(|v| v.max(lo).min(hi)).collect();
    quantize_group(&clamped, bits, codes)
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;

    use super::*;

    #[test]
    fn an_outlier_is_clipped_where_it_costs_the_others() {
        let mut weights = seeded(32, 1);
        weights[7] = 3.0;
        let (fit, step) = clip(&weights, &GroupGram::identity(32), 3, 10);
        let plain = try_step(&weights, &GroupGram::identity(32), 3, 0);
        assert!(step > 0 && fit.error < plain.error, "{step} {} {}", fit.error, plain.error);
    }

    #[test]
    fn equal_errors_keep_the_whole_range() {
        let (fit, step) = clip(&[0.0; 32], &GroupGram::identity(32), 4, 10);
        assert_eq!((fit.error, step), (0.0, 0));
        assert_eq!(fit.codes, [0; 32]);
    }

    #[test]
    fn every_step_is_the_range_it_says() {
        let weights: Vec<f32> = (0..32).map(|i| i as f32 - 20.0).collect();
        for step in 0..10 {
            let mut codes = [0; 32];
            let (scale, bias) = clipped(&weights, 8, step, &mut codes);
            let part = 1.0 - 0.05 * step as f32;
            assert!((bias + 20.0 * part).abs() < 1e-4, "{step}: {bias}");
            assert!((scale * 255.0 - 31.0 * part).abs() < 0.2, "{step}: {scale}");
        }
    }
}
