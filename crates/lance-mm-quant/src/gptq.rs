//! Rounding with error feedback: columns compensate for the errors of the columns to their left.

use lance_mm_tensor::{MatRef, Scheme, add_matmul, quantize_group};

use crate::block::{Block, nearest};
use crate::clip::clipped;
use crate::hessian_factor::Factor;
use crate::matrix::round_bf16;
use crate::refit::Normal;

/// Choice of scale and bias of a group, when its turn comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// Plain quantization of the group, feedback of earlier groups included.
    Plain,
    /// Search over clipped ranges and refits of scale and bias, each time rounding the group with feedback; the error
    /// that is left for later groups decides.
    Searched,
}

/// Ranges tried by [`Choice::Searched`]: down to 0.35 of the group's.
const RANGES: usize = 14;
/// Refits tried by [`Choice::Searched`].
const REFITS: usize = 3;

/// Quantizes rows `w` of the width of `factor`.
pub(crate) fn gptq(w: &[f32], factor: &Factor, scheme: Scheme, choice: Choice) -> Block {
    let (cols, group) = (factor.n_cols(), scheme.group_size());
    let rows = w.len() / cols;
    let mut block = Block::zeros(w.len(), scheme);
    // Weights minus quantized values, of the columns done so far.
    let mut error = vec![0.0; w.len()];
    let mut target = vec![0.0; rows * group];
    for (j, start) in (0..cols).step_by(group).enumerate() {
        target.fill(0.0);
        let done = MatRef::new(&error, rows, start, cols);
        add_matmul(&mut target, group, 1.0, done, factor.above(start, group));
        let rounder = Rounder::new(factor, start, scheme);
        for (target, w) in target.chunks_exact_mut(group).zip(w.chunks_exact(cols)) {
            rounder.compensate(target, &w[start..start + group]);
        }
        for (r, target) in target.chunks_exact(group).enumerate() {
            let trial = match choice {
                Choice::Plain => rounder.plain(target),
                Choice::Searched => rounder.searched(target),
            };
            let at = r * cols + start;
            block.codes[at..at + group].copy_from_slice(&trial.codes);
            let g = r * (cols / group) + j;
            (block.scales[g], block.biases[g]) = (trial.scale, trial.bias);
            block.n_clipped += usize::from(trial.step > 0);
            for (i, code) in trial.codes.iter().enumerate() {
                error[at + i] = w[at + i] - (trial.scale * f32::from(*code) + trial.bias);
            }
        }
    }
    block
}

/// A group rounded with feedback.
#[derive(Clone)]
struct Trial {
    codes: Vec<u8>,
    scale: f32,
    bias: f32,
    step: usize,
    error: f64,
}

/// Rounds one group of columns.
struct Rounder<'a> {
    factor: &'a Factor,
    start: usize,
    group: usize,
    bits: usize,
    /// `Uᵀ·1` of the group.
    ones: Vec<f32>,
}

impl<'a> Rounder<'a> {
    fn new(factor: &'a Factor, start: usize, scheme: Scheme) -> Self {
        let mut rounder =
            Self { factor, start, group: scheme.group_size(), bits: scheme.bits(), ones: Vec::new() };
        rounder.ones = rounder.transposed(&vec![1.0; rounder.group]);
        rounder
    }

    /// Row `i` of `U` within the group, from the diagonal on.
    fn row(&self, i: usize) -> &[f32] {
        &self.factor.row(self.start + i)[..self.group - i]
    }

    fn diagonal(&self) -> &[f32] {
        &self.factor.diagonal()[self.start..self.start + self.group]
    }

    /// `Uᵀ·v`.
    fn transposed(&self, v: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.group];
        for (i, v) in v.iter().enumerate() {
            out[i..].iter_mut().zip(self.row(i)).for_each(|(o, u)| *o += v * u);
        }
        out
    }

    /// The values of this group that would compensate for all feedback of earlier groups: `w + U⁻ᵀ·feedback`.
    fn compensate(&self, feedback: &mut [f32], w: &[f32]) {
        for i in 0..self.group {
            let (done, left) = feedback.split_at_mut(i + 1);
            left.iter_mut().zip(&self.row(i)[1..]).for_each(|(l, u)| *l -= done[i] * u);
        }
        feedback.iter_mut().zip(w).for_each(|(f, w)| *f += w);
    }

    /// Rounds left to right with the given scale and bias, both bf16 values.
    fn round(&self, target: &[f32], scale: f32, bias: f32, step: usize) -> Trial {
        let n = ((1u32 << self.bits) - 1) as f32;
        let mut left = target.to_vec();
        let mut codes = vec![0; self.group];
        let mut total = 0.0;
        for i in 0..self.group {
            let code = nearest((left[i] - bias) / scale, n);
            codes[i] = code as u8;
            let value = scale * code + bias;
            let miss = left[i] - value;
            total += f64::from(self.diagonal()[i]) * f64::from(miss) * f64::from(miss);
            let error = target[i] - value;
            left[i + 1..].iter_mut().zip(&self.row(i)[1..]).for_each(|(l, u)| *l += error * u);
        }
        Trial { codes, scale, bias, step, error: total }
    }

    fn plain(&self, target: &[f32]) -> Trial {
        let mut codes = vec![0; self.group];
        let (scale, bias) = quantize_group(target, self.bits, &mut codes);
        self.round(target, round_bf16(scale), round_bf16(bias), 0)
    }

    fn searched(&self, target: &[f32]) -> Trial {
        let mut codes = vec![0; self.group];
        let mut best: Option<Trial> = None;
        for step in 0..RANGES {
            let (scale, bias) = clipped(target, self.bits, step, &mut codes);
            let trial = self.round(target, round_bf16(scale), round_bf16(bias), step);
            if best.as_ref().is_none_or(|best| trial.error < best.error) {
                best = Some(trial);
            }
        }
        let mut best = best.expect("at least one range was tried");
        let reached = self.transposed(target);
        let mut codes = best.codes.clone();
        for _ in 0..REFITS {
            let Some((scale, bias)) = self.refit(&codes, &reached) else { break };
            let trial = self.round(target, scale, bias, best.step);
            let is_same = trial.codes == codes;
            codes.clone_from(&trial.codes);
            if trial.error < best.error {
                best = trial;
            }
            if is_same {
                break;
            }
        }
        best
    }

    /// Scale and bias with the smallest error for given codes after compensation by later groups.
    fn refit(&self, codes: &[u8], reached: &[f32]) -> Option<(f32, f32)> {
        let q: Vec<f32> = codes.iter().map(|code| f32::from(*code)).collect();
        let q = self.transposed(&q);
        let sum = |a: &[f32], b: &[f32]| -> f64 {
            let weighted = a.iter().zip(b).zip(self.diagonal());
            weighted.map(|((a, b), d)| f64::from(*a) * f64::from(*b) * f64::from(*d)).sum()
        };
        let normal = Normal { qq: sum(&q, &q), q1: sum(&q, &self.ones), one: sum(&self.ones, &self.ones) };
        let (scale, _) = normal.solve(sum(&q, reached), sum(&self.ones, reached))?;
        let scale = round_bf16(scale as f32);
        // The best bias for the scale as bf16 stores it.
        let bias = (sum(&self.ones, reached) - f64::from(scale) * normal.q1) / normal.one;
        let bias = round_bf16(bias as f32);
        (scale != 0.0 && scale.is_finite() && bias.is_finite()).then_some((scale, bias))
    }
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;

    use super::*;
    use crate::activations::Activations;
    use crate::testing::correlated;

    /// Column by column with the inverse Hessian's factor, as the paper has it.
    fn naive(w: &[f32], rows: &Activations, scheme: Scheme) -> Vec<f32> {
        let k = rows.n_cols();
        let mut h = rows.gram();
        let mean = (0..k).map(|i| h[i * k + i]).sum::<f64>() / k as f64;
        (0..k).for_each(|i| h[i * k + i] += 0.01 * mean);
        let inverse = invert(h, k);
        // Upper factor of the inverse: inverse = Lᵀ·.. by plain Cholesky of it, transposed.
        let mut u = vec![0.0; k * k];
        for i in 0..k {
            for j in i..k {
                let sum: f64 = (0..i).map(|l| u[l * k + i] * u[l * k + j]).sum();
                let rest = inverse[i * k + j] - sum;
                u[i * k + j] = if i == j { rest.sqrt() } else { rest / u[i * k + i] };
            }
        }
        let mut out = vec![0.0; w.len()];
        let n = ((1u32 << scheme.bits()) - 1) as f32;
        for (w, out) in w.chunks_exact(k).zip(out.chunks_exact_mut(k)) {
            let mut w: Vec<f64> = w.iter().map(|v| f64::from(*v)).collect();
            let (mut scale, mut bias) = (0.0, 0.0);
            for c in 0..k {
                if c.is_multiple_of(scheme.group_size()) {
                    let group: Vec<f32> = w[c..c + scheme.group_size()].iter().map(|v| *v as f32).collect();
                    (scale, bias) = quantize_group(&group, scheme.bits(), &mut vec![0; group.len()]);
                    (scale, bias) = (round_bf16(scale), round_bf16(bias));
                }
                let code = ((w[c] as f32 - bias) / scale).round_ties_even().clamp(0.0, n);
                out[c] = scale * code + bias;
                let error = (w[c] - f64::from(out[c])) / u[c * k + c];
                (c + 1..k).for_each(|j| w[j] -= error * u[c * k + j]);
            }
        }
        out
    }

    fn invert(mut a: Vec<f64>, k: usize) -> Vec<f64> {
        let mut b = vec![0.0; k * k];
        (0..k).for_each(|i| b[i * k + i] = 1.0);
        for i in 0..k {
            let pivot = a[i * k + i];
            (0..k).for_each(|j| (a[i * k + j], b[i * k + j]) = (a[i * k + j] / pivot, b[i * k + j] / pivot));
            for r in (0..k).filter(|r| *r != i) {
                let factor = a[r * k + i];
                for j in 0..k {
                    a[r * k + j] -= factor * a[i * k + j];
                    b[r * k + j] -= factor * b[i * k + j];
                }
            }
        }
        b
    }

    #[test]
    fn feedback_equals_the_published_algorithm() {
        for (n, k, bits, group) in [(200, 96, 4, 32), (20, 128, 3, 64), (50, 32, 2, 32)] {
            let rows = correlated(n, 5, k, 3);
            let scheme = Scheme::affine(bits, group).unwrap();
            let w = seeded(3 * k, 4);
            let factor = Factor::new("x", &rows, 0.01).unwrap();
            let block = gptq(&w, &factor, scheme, Choice::Plain);
            let mut found = vec![0.0; w.len()];
            block.read(scheme, &mut found);
            let expected = naive(&w, &rows, scheme);
            let differ = found.iter().zip(&expected).filter(|(a, b)| (**a - **b).abs() > 1e-6).count();
            assert!(differ * 50 <= found.len(), "{n} {k} {bits}: {differ} of {} differ", found.len());
        }
    }

    #[test]
    fn the_error_of_a_group_is_what_its_rounder_says() {
        let rows = correlated(60, 5, 32, 1);
        let factor = Factor::new("x", &rows, 0.01).unwrap();
        let scheme = Scheme::affine(3, 32).unwrap();
        let w = seeded(32, 2);
        let trial = Rounder::new(&factor, 0, scheme).searched(&w);
        let d: Vec<f64> = w
            .iter()
            .zip(&trial.codes)
            .map(|(w, q)| f64::from(trial.scale * f32::from(*q) + trial.bias - w))
            .collect();
        let gram = rows.gram();
        let mut expected = factor.damping() * d.iter().map(|d| d * d).sum::<f64>();
        for i in 0..32 {
            for j in 0..32 {
                expected += d[i] * d[j] * gram[i * 32 + j];
            }
        }
        assert!((trial.error / expected - 1.0).abs() < 1e-4, "{} {expected}", trial.error);
        let plain = Rounder::new(&factor, 0, scheme).plain(&w);
        assert!(trial.error <= plain.error);
    }
}
