//! Alternating least squares: the best scale and bias for codes, then the best codes for scale and bias.

use crate::block::nearest;
use crate::clip::Fit;
use crate::group_gram::{GroupGram, dot};
use crate::matrix::round_bf16;

/// Improves a fit in at most `rounds` rounds; the result is never worse.
pub(crate) fn refit(start: Fit, weights: &[f32], gram: &GroupGram, bits: usize, rounds: usize) -> Fit {
    let group = weights.len();
    let n = ((1u32 << bits) - 1) as f32;
    let wide: Vec<f64> = weights.iter().map(|w| f64::from(*w)).collect();
    let (mut q, mut hq, mut hw) = (vec![0.0; group], vec![0.0; group], vec![0.0; group]);
    let mut d = vec![0.0; group];
    gram.multiply(&wide, &mut hw);
    let total: f64 = gram.ones().iter().sum();
    let weight_total: f64 = hw.iter().sum();
    let mut codes = start.codes.clone();
    let mut best = start;
    for _ in 0..rounds {
        q.iter_mut().zip(&codes).for_each(|(q, code)| *q = f64::from(*code));
        gram.multiply(&q, &mut hq);
        let normal = Normal { qq: dot(&q, &hq), q1: dot(&q, gram.ones()), one: total };
        let Some((scale, bias)) = normal.solve(dot(&q, &hw), weight_total) else { break };
        let (scale, bias) = (round_bf16(scale as f32), round_bf16(bias as f32));
        if scale == 0.0 || !scale.is_finite() || !bias.is_finite() {
            break;
        }
        let before = codes.clone();
        for (code, w) in codes.iter_mut().zip(weights) {
            *code = nearest((w - bias) / scale, n) as u8;
        }
        let fit = Fit::measure(&codes, scale, bias, weights, gram, &mut d);
        if fit.error < best.error {
            best = fit;
        }
        if codes == before {
            break;
        }
    }
    best
}

/// The normal equations of scale and bias: `qᵀHq`, `qᵀH1`, `1ᵀH1`.
pub(crate) struct Normal {
    pub(crate) qq: f64,
    pub(crate) q1: f64,
    pub(crate) one: f64,
}

impl Normal {
    /// Scale and bias for the right-hand side `(qᵀHw, 1ᵀHw)`, unless the codes are as good as constant.
    pub(crate) fn solve(&self, q: f64, one: f64) -> Option<(f64, f64)> {
        let det = self.qq * self.one - self.q1 * self.q1;
        let is_regular = det > 1e-12 * self.qq * self.one;
        is_regular.then(|| ((q * self.one - one * self.q1) / det, (one * self.qq - q * self.q1) / det))
    }
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;

    use super::*;
    use crate::activations::Activations;
    use crate::clip::clip;

    #[test]
    fn values_on_a_grid_are_found_exactly() {
        // 0.5·q − 1.25 with a start that stretched the scale.
        let codes: Vec<u8> = (0..32).map(|i| (i * 5 % 8) as u8).collect();
        let weights: Vec<f32> = codes.iter().map(|q| 0.5 * f32::from(*q) - 1.25).collect();
        let gram = GroupGram::identity(32);
        let mut d = [0.0; 32];
        let start = Fit::measure(&codes, 0.4, -1.0, &weights, &gram, &mut d);
        let fit = refit(start, &weights, &gram, 3, 3);
        assert_eq!((fit.scale, fit.bias, fit.error), (0.5, -1.25, 0.0));
        assert_eq!(fit.codes, codes);
    }

    #[test]
    fn a_refit_is_never_worse() {
        let rows = Activations::new("x", seeded(20 * 64, 1), &seeded(64, 2), 64).unwrap();
        let gram = &GroupGram::of_groups(&rows, 64)[0];
        for bits in [2, 3, 4, 8] {
            for seed in 0..20 {
                let weights = seeded(64, seed);
                let (start, _) = clip(&weights, gram, bits, 10);
                let before = start.error;
                assert!(refit(start, &weights, gram, bits, 3).error <= before);
            }
        }
    }

    #[test]
    fn constant_codes_are_left_alone() {
        let weights = [0.25; 32];
        let gram = GroupGram::identity(32);
        let (start, _) = clip(&weights, &gram, 4, 10);
        let fit = refit(start, &weights, &gram, 4, 3);
        assert_eq!((fit.error, fit.bias), (0.0, 0.25));
    }
}
