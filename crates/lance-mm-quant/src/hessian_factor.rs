//! A triangular factor of the Hessian: how later columns compensate for the error of a column.
//!
//! With `H = XᵀX / n + λ·I = U·D·Uᵀ`, `U` unit upper triangular, the error `d` of a row of weights costs
//! `dᵀHd = Σ_k D_k (d_k + Σ_{i<k} d_i U_ik)²`. Rounding columns left to right, each towards its value plus
//! the feedback `Σ_{i<k} d_i U_ik`, minimises the terms one after another. That is GPTQ (arXiv:2210.17323),
//! in the form of QuIP (arXiv:2307.13304), which needs no inverse.

use std::ops::{Div, Mul, Neg, Sub};

use lance_mm_tensor::{MatRef, Real, Result, add_matmul};
use rayon::prelude::*;

use crate::activations::Activations;
use crate::matrix::setting;

/// Widest Hessian that is factored in f64; above it f32 halves the memory (0.5 GB for 11008 columns).
const WIDE: usize = 4096;
/// Columns that are eliminated at once.
const BLOCK: usize = 128;

/// `U` and `D` of the damped Hessian of an input.
pub(crate) struct Factor {
    /// Unit upper triangular `(K, K)`; values below the diagonal are not used.
    unit: Vec<f32>,
    diagonal: Vec<f32>,
    /// `λ`.
    damping: f64,
}

impl Factor {
    /// Factors `XᵀX / n + λ·I` over the search set, `λ` = `damping` times the mean of the diagonal. Activations
    /// that are all zero leave `H = I`.
    ///
    /// # Errors
    /// A Hessian that rounding made indefinite; `name` is the input's.
    pub(crate) fn new(name: &str, rows: &Activations, damping: f64) -> Result<Self> {
        let n = rows.n_cols();
        if n <= WIDE {
            Self::of(name, hessian::<f64>(rows), n, n, damping)
        } else {
            Self::of(name, hessian::<f32>(rows), n, n, damping)
        }
    }

    /// Factors `XXᵀ / n + λ·I` over the search set, with the same `λ`. It is smaller for fewer tokens than channels, and
    /// enough, since `Xᵀ·(XXᵀ / n + λ·I)⁻¹ = (XᵀX / n + λ·I)⁻¹·Xᵀ`.
    ///
    /// # Errors
    /// The same as of [`new`](Self::new).
    pub(crate) fn of_tokens(name: &str, rows: &Activations, damping: f64) -> Result<Self> {
        let (x, n, k) = (rows.search(), rows.n_search(), rows.n_cols());
        let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
        let x = MatRef::new(&wide, n, k, k);
        let mut gram = vec![0.0; n * n];
        add_matmul(&mut gram, n, 1.0 / n as f64, x, x.t());
        Self::of(name, gram, n, k, damping)
    }

    /// Factors `h`, `(n, n)` with the trace of a Hessian of `k` channels.
    fn of<T: Field>(name: &str, mut h: Vec<T>, n: usize, k: usize, damping: f64) -> Result<Self> {
        let mean = h.iter().step_by(n + 1).map(|v| (*v).into()).sum::<f64>() / k as f64;
        let damping = if mean > 0.0 { damping * mean } else { 1.0 };
        for v in h.iter_mut().step_by(n + 1) {
            *v = T::of((*v).into() + damping);
        }
        factor(&mut h, n).map_err(|column| {
            setting(name, "inputs with a positive definite Hessian", format!("a zero pivot at {column}"))
        })?;
        let roots: Vec<T> = h.iter().step_by(n + 1).copied().collect();
        let unit = h
            .par_chunks(n)
            .flat_map_iter(|row| {
                row.iter().zip(&roots).map(|(v, root)| ((*v).into() / (*root).into()) as f32)
            })
            .collect();
        let diagonal = roots.iter().map(|root| ((*root).into() * (*root).into()) as f32).collect();
        Ok(Self { unit, diagonal, damping })
    }

    /// Width `K`.
    pub(crate) fn n_cols(&self) -> usize {
        self.diagonal.len()
    }

    /// Row `i` of `U` from its diagonal on.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        let k = self.n_cols();
        &self.unit[i * k + i..(i + 1) * k]
    }

    /// `D`.
    pub(crate) fn diagonal(&self) -> &[f32] {
        &self.diagonal
    }

    /// `λ`.
    pub(crate) fn damping(&self) -> f64 {
        self.damping
    }

    /// Columns `start..start + n` of the rows above `start` of `U`.
    pub(crate) fn above(&self, start: usize, n: usize) -> MatRef<'_, f32> {
        MatRef::new(&self.unit[start..], start, n, self.n_cols())
    }

    /// Replaces rows `b` by the `y` with `y·H = b`.
    pub(crate) fn solve(&self, b: &mut [f32]) {
        let (k, u) = (self.n_cols(), &self.unit);
        let m = b.len() / k;
        let blocks: Vec<(usize, usize)> =
            (0..k).step_by(BLOCK).map(|start| (start, (start + BLOCK).min(k))).collect();
        // z·Uᵀ = b from the last column to the first, then z / D.
        let mut z = vec![0.0; b.len()];
        for (start, end) in blocks.iter().copied().rev() {
            if end < k {
                let right = MatRef::new(&u[start * k + end..], end - start, k - end, k).t();
                add_matmul(&mut b[start..], k, -1.0, MatRef::new(&z[end..], m, k - end, k), right);
            }
            for (z, b) in z.chunks_exact_mut(k).zip(b.chunks_exact(k)) {
                for j in (start..end).rev() {
                    let done: f32 = (j + 1..end).map(|l| z[l] * u[j * k + l]).sum();
                    z[j] = b[j] - done;
                }
            }
        }
        z.chunks_exact_mut(k).for_each(|z| z.iter_mut().zip(&self.diagonal).for_each(|(z, d)| *z /= d));
        // y·U = z from the first column to the last.
        for (start, end) in blocks {
            if start > 0 {
                let above = self.above(start, end - start);
                add_matmul(&mut z[start..], k, -1.0, MatRef::new(b, m, start, k), above);
            }
            for (z, y) in z.chunks_exact_mut(k).zip(b.chunks_exact_mut(k)) {
                for j in start..end {
                    y[j] = z[j];
                    (j + 1..end).for_each(|l| z[l] -= y[j] * u[j * k + l]);
                }
            }
        }
    }

    /// `(K, K)` rows whose Gram matrix is `H`: the transpose of `U·√D`.
    pub(crate) fn root(&self) -> Vec<f32> {
        let k = self.n_cols();
        let mut root = vec![0.0; k * k];
        root.par_chunks_mut(k).enumerate().for_each(|(j, out)| {
            let scale = self.diagonal[j].sqrt();
            (0..=j).for_each(|i| out[i] = self.unit[i * k + j] * scale);
        });
        root
    }
}

/// Arithmetic of the factorization.
trait Field:
    Real + Into<f64> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    fn of(value: f64) -> Self;
}

impl Field for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
}

impl Field for f64 {
    fn of(value: f64) -> Self {
        value
    }
}

/// The upper triangle of `XᵀX / n`, in whole blocks, each summed in f64.
fn hessian<T: Field>(rows: &Activations) -> Vec<T> {
    let (x, n, k) = (rows.search(), rows.n_search(), rows.n_cols());
    let wide: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let mut h = vec![T::of(0.0); k * k];
    h.par_chunks_mut(BLOCK * k).enumerate().for_each(|(i, stripe)| {
        let (first, m) = (i * BLOCK, stripe.len() / k);
        let width = k - first;
        let mut sums = vec![0.0f64; m * width];
        let left = MatRef::new(&wide[first..], n, m, k).t();
        add_matmul(&mut sums, width, 1.0 / n as f64, left, MatRef::new(&wide[first..], n, width, k));
        for (out, sums) in stripe.chunks_exact_mut(k).zip(sums.chunks_exact(width)) {
            out[first..].iter_mut().zip(sums).for_each(|(o, v)| *o = T::of(*v));
        }
    });
    h
}

/// Upper triangular `R` with `R·Rᵀ = H`, over the upper triangle of `H`, from the last column to the first.
/// Fails with the column whose pivot is not positive.
fn factor<T: Field>(h: &mut [T], k: usize) -> std::result::Result<(), usize> {
    let mut end = k;
    while end > 0 {
        let start = (end - 1) / BLOCK * BLOCK;
        let n = end - start;
        let corner = corner(h, k, start, n)?;
        // Columns start..end of the rows above, as rows of their own: x·Rᵀ = h for each.
        let mut panel = vec![T::of(0.0); start * n];
        panel.par_chunks_mut(n.max(1)).zip(h.par_chunks_mut(k)).for_each(|(x, row)| {
            x.copy_from_slice(&row[start..end]);
            solve(x, &corner, n);
            row[start..end].copy_from_slice(x);
        });
        h[..start * k].par_chunks_mut(BLOCK * k).enumerate().for_each(|(i, stripe)| {
            let (first, m) = (i * BLOCK, stripe.len() / k);
            let left = MatRef::new(&panel[first * n..], m, n, n);
            let right = MatRef::new(&panel[first * n..], start - first, n, n).t();
            add_matmul(&mut stripe[first..], k, -T::ONE, left, right);
        });
        end = start;
    }
    Ok(())
}

/// Factors the diagonal block at `start` in place and returns a copy of it.
fn corner<T: Field>(h: &mut [T], k: usize, start: usize, n: usize) -> std::result::Result<Vec<T>, usize> {
    let mut r = vec![T::of(0.0); n * n];
    for (i, row) in r.chunks_exact_mut(n).enumerate() {
        row[i..].copy_from_slice(&h[(start + i) * k + start + i..(start + i) * k + start + n]);
    }
    for j in (0..n).rev() {
        let pivot: f64 = r[j * n + j].into();
        // A pivot that is not a number is not positive either.
        if pivot.is_nan() || pivot <= 0.0 {
            return Err(start + j);
        }
        let root = T::of(pivot.sqrt());
        r[j * n + j] = root;
        let column: Vec<T> = (0..j).map(|i| r[i * n + j] / root).collect();
        for i in 0..j {
            r[i * n + j] = column[i];
            for l in i..j {
                r[i * n + l] = r[i * n + l] - column[i] * column[l];
            }
        }
    }
    for (i, row) in r.chunks_exact(n).enumerate() {
        h[(start + i) * k + start + i..(start + i) * k + start + n].copy_from_slice(&row[i..]);
    }
    Ok(r)
}

/// Solves `x·Rᵀ = h` for one row, `R` upper triangular.
fn solve<T: Field>(x: &mut [T], r: &[T], n: usize) {
    for j in (0..n).rev() {
        let mut sum = x[j];
        for l in j + 1..n {
            sum = sum - x[l] * r[j * n + l];
        }
        x[j] = sum / r[j * n + j];
    }
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;

    use super::*;

    fn rows(n: usize, k: usize) -> Activations {
        Activations::new("x", seeded(n * k, 1), &seeded(k, 2), k).unwrap()
    }

    /// `U·D·Uᵀ` and the Hessian it should be.
    fn compare(rows: &Activations, factor: &Factor, tolerance: f64) {
        let k = rows.n_cols();
        let gram = rows.gram();
        for i in 0..k {
            for j in [i, (i * 7 + 3) % k, k - 1] {
                let (lo, hi) = (i.min(j), i.max(j));
                let of = |row: usize, column: usize| f64::from(factor.row(row)[column - row]);
                let product: f64 =
                    (hi..k).map(|l| of(lo, l) * of(hi, l) * f64::from(factor.diagonal()[l])).sum();
                let expected = gram[i * k + j] + if i == j { factor.damping() } else { 0.0 };
                assert!((product - expected).abs() < tolerance, "{i} {j}: {product} {expected}");
            }
        }
    }

    #[test]
    fn the_factor_multiplies_to_the_hessian() {
        for (n, k) in [(5, 1), (40, 33), (10, 128), (300, 300), (7, 257)] {
            let rows = rows(n, k);
            let factor = Factor::new("x", &rows, 0.01).unwrap();
            compare(&rows, &factor, 1e-6);
            let single = Factor::of("x", hessian::<f32>(&rows), k, k, 0.01).unwrap();
            compare(&rows, &single, 1e-5);
        }
    }

    #[test]
    fn the_root_has_the_hessian_as_its_gram_matrix() {
        let rows = rows(20, 130);
        let factor = Factor::new("x", &rows, 0.01).unwrap();
        let (root, gram) = (factor.root(), rows.gram());
        for (i, j) in [(0, 0), (3, 129), (128, 5), (129, 129)] {
            let sum: f64 =
                (0..130).map(|l| f64::from(root[l * 130 + i]) * f64::from(root[l * 130 + j])).sum();
            let expected = gram[i * 130 + j] + if i == j { factor.damping() } else { 0.0 };
            assert!((sum - expected).abs() < 1e-5);
        }
    }

    #[test]
    fn a_solution_times_the_hessian_is_the_right_hand_side() {
        for (n, k) in [(5, 1), (40, 33), (10, 128), (400, 300)] {
            let rows = rows(n, k);
            let factor = Factor::new("x", &rows, 0.1).unwrap();
            let b = seeded(3 * k, 7);
            let mut y = b.clone();
            factor.solve(&mut y);
            let gram = rows.gram();
            for (r, j) in [(0, 0), (1, k / 2), (2, k - 1)] {
                let y = &y[r * k..(r + 1) * k];
                let sum: f64 = (0..k).map(|i| f64::from(y[i]) * gram[i * k + j]).sum();
                let found = sum + factor.damping() * f64::from(y[j]);
                assert!((found - f64::from(b[r * k + j])).abs() < 1e-4, "{n} {k} {r} {j}: {found}");
            }
        }
    }

    #[test]
    fn rows_of_zeros_leave_the_identity() {
        let rows = Activations::new("x", vec![0.0; 40], &[0.0; 20], 20).unwrap();
        let factor = Factor::new("x", &rows, 0.01).unwrap();
        assert!(factor.diagonal().iter().all(|d| *d == 1.0));
        assert!(factor.row(3)[1..].iter().all(|u| *u == 0.0));
    }
}
