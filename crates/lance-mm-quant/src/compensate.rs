//! Compensation for errors of earlier layers: a weight that gives, on its inputs in the quantized model, the outputs
//! of the original weight on the original inputs.
//!
//! With original inputs `X`, inputs `Y` of the model quantized so far and `E = X − Y`, the weight
//! `W + W·EᵀY/n · (YᵀY/n + λ·I)⁻¹` minimises `‖X·Wᵀ − Y·Vᵀ‖²/n + λ·‖V − W‖²` over `V`. The
//! Hessian of the rounding that follows is that of `Y` (asymmetric calibration, as in GPTAQ, arXiv:2504.02692).

use std::borrow::Cow;
use std::sync::Arc;

use lance_mm_tensor::{MatRef, Result, add_matmul};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::activations::Activations;
use crate::block::{energy, relative};
use crate::hessian_factor::Factor;
use crate::inputs::Inputs;
use crate::matrix::{CHUNK, RowSource, Sampled, setting};
use crate::or_nan::or_nan;

/// Dampings that are tried, in means of the Hessian's diagonal.
const DAMPINGS: [f64; 4] = [0.001, 0.01, 0.1, 1.0];
/// Rows of a weight on which they are compared.
const ROWS: usize = 1024;
/// Largest error, as a share of the error without compensation, that is accepted.
const ACCEPT: f64 = 0.99;

/// Drift of a weight's outputs when earlier layers have changed its inputs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Drift {
    /// `‖X·Wᵀ − Y·Wᵀ‖² / ‖X·Wᵀ‖²` on held-out activations.
    #[serde(deserialize_with = "or_nan")]
    pub before: f64,
    /// Drift with the compensated weight.
    #[serde(deserialize_with = "or_nan")]
    pub after: f64,
    /// `λ` in means of the Hessian's diagonal; `None`: the weight stays as it is.
    pub damping: Option<f64>,
    /// Drift and rounding together: with the quantized weight.
    #[serde(deserialize_with = "or_nan")]
    pub rounded: f64,
}

/// A weight that compensates for the drift of its inputs, read by rows.
pub struct Compensated<'a> {
    weight: &'a dyn RowSource,
    original: &'a Activations,
    actual: &'a Inputs,
    /// `X − Y` of the search set.
    difference: Cow<'a, [f32]>,
    /// Factor of `YᵀY/n + λ·I`, or of `YYᵀ/n + λ·I` if that is smaller; `None`: the weight as it is.
    factor: Option<Arc<Factor>>,
    drift: Drift,
}

impl<'a> Compensated<'a> {
    /// Compensates `weight` for inputs that became `actual`, token by token those of `original`, with the damping that
    /// leaves the smallest error on held-out activations; keeps the weight if none lowers it enough.
    ///
    /// # Errors
    /// Tokens that do not correspond, a Hessian that rounding made indefinite.
    pub fn new(
        name: &str,
        weight: &'a dyn RowSource,
        original: &'a Activations,
        actual: &'a Inputs,
    ) -> Result<Self> {
        let rows = actual.activations();
        let shape = |rows: &Activations| (rows.n_search(), rows.n_held_out(), rows.n_cols());
        if shape(original) != shape(rows) || weight.n_cols() != rows.n_cols() {
            let expected = format!("{:?} tokens to search with, held out, and columns", shape(original));
            return Err(setting(name, expected, format!("{:?}", shape(rows))));
        }
        let difference: Vec<f32> = original.search().iter().zip(rows.search()).map(|(x, y)| x - y).collect();
        let some = Sampled::new(weight, ROWS);
        let before = output_error(&some, &some, original, rows);
        let mut drift = Drift { before, after: before, damping: None, rounded: before };
        let mut best = None;
        for damping in DAMPINGS {
            let factor = if rows.n_search() < rows.n_cols() {
                Arc::new(Factor::of_tokens(name, rows, damping)?)
            } else {
                actual.factor(damping)?
            };
            let candidate = Compensated {
                weight: &some,
                original,
                actual,
                difference: Cow::Borrowed(&difference),
                factor: Some(factor.clone()),
                drift: drift.clone(),
            };
            let error = output_error(&candidate, &some, original, rows);
            if error < drift.after && error < ACCEPT * drift.before {
                drift = Drift { after: error, damping: Some(damping), ..drift };
                best = Some(factor);
            }
        }
        Ok(Self { weight, original, actual, difference: Cow::Owned(difference), factor: best, drift })
    }

    /// The drift, with the error of the quantized weight `rounded` included.
    pub fn drift(&self, rounded: &dyn RowSource) -> Drift {
        let rounded = output_error(rounded, self.weight, self.original, self.actual.activations());
        Drift { rounded, ..self.drift.clone() }
    }
}

/// `‖X·Wᵀ − Y·Vᵀ‖² / ‖X·Wᵀ‖²` on held-out activations.
fn output_error(v: &dyn RowSource, w: &dyn RowSource, x: &Activations, y: &Activations) -> f64 {
    let cols = w.n_cols();
    let n = x.n_held_out();
    let sums: Vec<(f64, f64)> = (0..w.n_rows().div_ceil(CHUNK))
        .into_par_iter()
        .map(|i| {
            let m = CHUNK.min(w.n_rows() - i * CHUNK);
            let mut out = vec![0.0; m * n];
            let mut add = |factor: f32, weight: &[f32], rows: &Activations| {
                let rows = MatRef::new(rows.held_out(), n, cols, cols).t();
                add_matmul(&mut out, n, factor, MatRef::new(weight, m, cols, cols), rows);
                energy(&out)
            };
            let size = add(1.0, &w.read_rows(i * CHUNK, m), x);
            (add(-1.0, &v.read_rows(i * CHUNK, m), y), size)
        })
        .collect();
    let (error, size) = sums.iter().fold((0.0, 0.0), |sum, v| (sum.0 + v.0, sum.1 + v.1));
    relative(error, size)
}

impl RowSource for Compensated<'_> {
    fn n_rows(&self) -> usize {
        self.weight.n_rows()
    }

    fn n_cols(&self) -> usize {
        self.weight.n_cols()
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.read_rows(row, 1));
    }

    fn read_rows(&self, first: usize, n: usize) -> Vec<f32> {
        let mut w = self.weight.read_rows(first, n);
        let Some(factor) = &self.factor else { return w };
        let cols = self.n_cols();
        let actual = self.actual.activations().search();
        let samples = actual.len() / cols;
        let rows = |values| MatRef::new(values, samples, cols, cols);
        // W·Eᵀ, then times Y: never a matrix of K x K.
        let mut outputs = vec![0.0; n * samples];
        add_matmul(&mut outputs, samples, 1.0, MatRef::new(&w, n, cols, cols), rows(&self.difference).t());
        if factor.n_cols() != cols {
            factor.solve(&mut outputs);
        }
        let mut change = vec![0.0; n * cols];
        let outputs = MatRef::new(&outputs, n, samples, samples);
        add_matmul(&mut change, cols, 1.0 / samples as f32, outputs, rows(actual));
        if factor.n_cols() == cols {
            factor.solve(&mut change);
        }
        w.iter_mut().zip(change).for_each(|(w, by)| *w += by);
        w
    }
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;

    use super::*;
    use crate::matrix::Matrix;
    use crate::testing::correlated;

    /// `V` by Gaussian elimination on `V·(YᵀY/n + λ·I) = W·(XᵀY/n + λ·I)`, in f64.
    fn naive(w: &Matrix, x: &Activations, y: &Activations, damping: f64) -> Vec<f64> {
        let (k, n) = (w.n_cols(), x.n_search());
        let product = |a: &[f32], i: usize, b: &[f32], j: usize| -> f64 {
            (0..n).map(|r| f64::from(a[r * k + i]) * f64::from(b[r * k + j])).sum::<f64>() / n as f64
        };
        let mean = (0..k).map(|i| product(y.search(), i, y.search(), i)).sum::<f64>() / k as f64;
        let damped =
            |a: &[f32], i, j| product(a, i, y.search(), j) + if i == j { damping * mean } else { 0.0 };
        let mut h: Vec<f64> = (0..k * k).map(|at| damped(y.search(), at / k, at % k)).collect();
        // Columns of the transposed system: H·Vᵀ = (W·C)ᵀ, H symmetric.
        let rows = w.n_rows();
        let mut b: Vec<f64> = (0..k * rows)
            .map(|at| {
                let (j, r) = (at / rows, at % rows);
                (0..k).map(|i| f64::from(w.values()[r * k + i]) * damped(x.search(), i, j)).sum()
            })
            .collect();
        for i in 0..k {
            for r in (0..k).filter(|r| *r != i) {
                let by = h[r * k + i] / h[i * k + i];
                (0..k).for_each(|j| h[r * k + j] -= by * h[i * k + j]);
                (0..rows).for_each(|j| b[r * rows + j] -= by * b[i * rows + j]);
            }
        }
        (0..rows * k).map(|at| b[at % k * rows + at / k] / h[(at % k) * k + at % k]).collect()
    }

    /// Inputs that depend on the original ones: a part of a channel leaks into the next.
    fn changed(x: &Activations, by: f32) -> Activations {
        let k = x.n_cols();
        let change = |values: &[f32]| -> Vec<f32> {
            let value = |i: usize, v: &f32| v + by * values[i / k * k + (i % k + 1) % k];
            values.iter().enumerate().map(|(i, v)| value(i, v)).collect()
        };
        Activations::new("y", change(x.search()), &change(x.held_out()), k).unwrap()
    }

    #[test]
    fn the_weight_is_that_of_the_normal_equations() {
        for (n, k) in [(200, 36), (20, 150)] {
            let w = Matrix::new("w", seeded(5 * k, 1), k).unwrap();
            let x = correlated(n, 20, k, 3);
            let y = Inputs::new("y", changed(&x, 0.3));
            let found = Compensated::new("w", &w, &x, &y).unwrap();
            let expected = naive(&w, &x, y.activations(), found.drift.damping.unwrap());
            let found = found.read_rows(0, 5);
            for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
                assert!((f64::from(*found) - expected).abs() < 2e-3, "{n} {k} {i}: {found} {expected}");
            }
        }
    }

    #[test]
    fn the_held_out_error_decides() {
        let k = 64;
        let w = Matrix::new("w", seeded(200 * k, 1), k).unwrap();
        let x = correlated(300, 100, k, 3);
        let run = |y: Activations| {
            let y = Inputs::new("y", y);
            Compensated::new("w", &w, &x, &y).unwrap().drift
        };
        let leak = run(changed(&x, 0.3));
        assert!(leak.after < 0.2 * leak.before && leak.damping == Some(0.001), "{leak:?}");
        let same = run(x.clone());
        assert_eq!((same.before, same.after, same.damping), (0.0, 0.0, None));
        // Activations that are independent of the original ones: no fit helps.
        let noise = Activations::new("y", seeded(300 * k, 8), &seeded(100 * k, 9), k).unwrap();
        let noise = run(noise);
        assert!(noise.after <= noise.before, "{noise:?}");
    }

    #[test]
    fn tokens_that_do_not_correspond_are_refused() {
        let w = Matrix::new("w", seeded(64, 1), 64).unwrap();
        let (x, y) = (correlated(30, 10, 64, 3), Inputs::new("y", correlated(20, 10, 64, 3)));
        let error = Compensated::new("w", &w, &x, &y).err().unwrap().to_string();
        assert!(error.starts_with("w: expected (30, 10, 64)") && error.ends_with("(20, 10, 64)"), "{error}");
    }
}
