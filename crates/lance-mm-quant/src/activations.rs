//! Recorded input activations of a linear layer, and their statistics.

use lance_mm_tensor::{MatRef, Result, add_matmul};
use rayon::prelude::*;

use crate::matrix::{check_rows, setting};

/// Input activations `(n, K)`, a row for each token: the search set, which weights are fitted to, and the held-out set,
/// which decides between candidates.
///
/// Tokens of one sample resemble each other, so whole samples are held out.
#[derive(Clone, Debug)]
pub struct Activations {
    values: Vec<f32>,
    cols: usize,
    n_search: usize,
}

impl Activations {
    /// Joins the two sets. `name` names the input in errors.
    ///
    /// # Errors
    /// An empty set, a length that is no multiple of `cols`, values that are not finite.
    pub fn new(name: &str, mut search: Vec<f32>, held_out: &[f32], cols: usize) -> Result<Self> {
        check_rows(name, &search, cols)?;
        check_rows(&format!("{name}, held out"), held_out, cols)?;
        let n_search = search.len() / cols;
        search.extend_from_slice(held_out);
        Ok(Self { values: search, cols, n_search })
    }

    /// Divides tokens by the sample that each belongs to: every fourth sample (index mod 4 = 3) is held out.
    ///
    /// # Errors
    /// The same as of [`new`](Self::new); not one sample for each token.
    pub fn split(name: &str, values: &[f32], cols: usize, samples: &[usize]) -> Result<Self> {
        check_rows(name, values, cols)?;
        if samples.len() != values.len() / cols {
            let expected = format!("a sample for each of {} rows", values.len() / cols);
            return Err(setting(name, expected, samples.len()));
        }
        let (mut search, mut held_out) = (Vec::new(), Vec::new());
        for (row, sample) in values.chunks_exact(cols).zip(samples) {
            if sample % 4 == 3 { &mut held_out } else { &mut search }.extend_from_slice(row);
        }
        Self::new(name, search, &held_out, cols)
    }

    /// Takes at most `n` tokens, evenly spread over both sets.
    pub fn subsampled(&self, n: usize) -> Self {
        let total = self.n_search() + self.n_held_out();
        if total <= n {
            return self.clone();
        }
        let pick = |rows: &[f32]| -> Vec<f32> {
            let all = rows.len() / self.cols;
            let some = (all * n / total).max(1);
            (0..some).flat_map(|i| &rows[i * all / some * self.cols..][..self.cols]).copied().collect()
        };
        let mut values = pick(self.search());
        let n_search = values.len() / self.cols;
        values.extend(pick(self.held_out()));
        Self { values, cols: self.cols, n_search }
    }

    /// Columns `K`.
    pub fn n_cols(&self) -> usize {
        self.cols
    }

    /// Tokens of the search set.
    pub fn n_search(&self) -> usize {
        self.n_search
    }

    /// Tokens of the held-out set.
    pub fn n_held_out(&self) -> usize {
        self.values.len() / self.cols - self.n_search
    }

    /// Activations of the search set, token by token.
    pub fn search(&self) -> &[f32] {
        &self.values[..self.n_search * self.cols]
    }

    /// Activations of the held-out set, token by token.
    pub fn held_out(&self) -> &[f32] {
        &self.values[self.n_search * self.cols..]
    }

    /// Divides channel `k` by `s[k]`: the input of a consumer whose columns are multiplied by `s`.
    ///
    /// # Panics
    /// When there is not one divisor for each channel.
    pub fn divide(&mut self, s: &[f32]) {
        assert_eq!(s.len(), self.cols, "one divisor for each channel");
        for row in self.values.chunks_exact_mut(self.cols) {
            row.iter_mut().zip(s).for_each(|(v, s)| *v /= s);
        }
    }

    /// Root mean square of every channel over the search set.
    pub fn rms(&self) -> Vec<f64> {
        self.channel_means(|v| v * v).into_iter().map(f64::sqrt).collect()
    }

    /// Mean magnitude of every channel over the search set.
    pub fn mean_abs(&self) -> Vec<f64> {
        self.channel_means(f64::abs)
    }

    fn channel_means(&self, of: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut sums = vec![0.0; self.cols];
        for row in self.search().chunks_exact(self.cols) {
            sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += of(f64::from(*v)));
        }
        sums.iter().map(|sum| sum / self.n_search as f64).collect()
    }

    /// `XᵀX / n` of the search set, `(K, K)` in f64.
    pub fn gram(&self) -> Vec<f64> {
        gram(self.search(), self.cols, 0..self.cols)
    }

    /// `X_jᵀX_j / n` of a range of channels.
    pub(crate) fn gram_of(&self, channels: std::ops::Range<usize>) -> Vec<f64> {
        gram(self.search(), self.cols, channels)
    }
}

/// Rows of the Gram matrix that a thread makes at once.
const STRIPE: usize = 256;

/// Gram matrix, summed in f64 over the tokens in order; its stripes do not depend on each other.
fn gram(x: &[f32], cols: usize, channels: std::ops::Range<usize>) -> Vec<f64> {
    let (n, k) = (x.len() / cols, channels.len());
    let mut wide = Vec::with_capacity(n * k);
    for row in x.chunks_exact(cols) {
        wide.extend(row[channels.clone()].iter().map(|v| f64::from(*v)));
    }
    let mut out = vec![0.0; k * k];
    out.par_chunks_mut(STRIPE * k).enumerate().for_each(|(i, stripe)| {
        let (first, rows) = (i * STRIPE, stripe.len() / k);
        let left = MatRef::new(&wide[first..], n, rows, k).t();
        add_matmul(stripe, k, 1.0 / n as f64, left, MatRef::new(&wide, n, k, k));
    });
    out
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;

    use super::*;

    #[test]
    fn whole_samples_are_held_out() {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let rows = Activations::split("a", &values, 2, &[0, 3, 1, 3, 2, 7]).unwrap();
        assert_eq!(rows.search(), [0., 1., 4., 5., 8., 9.]);
        assert_eq!(rows.held_out(), [2., 3., 6., 7., 10., 11.]);
        assert_eq!((rows.n_search(), rows.n_held_out()), (3, 3));
        let error = Activations::split("a", &values, 2, &[0; 6]).unwrap_err().to_string();
        assert_eq!(error, "a, held out: expected rows of 2, found 0 values");
        let error = Activations::split("a", &values, 2, &[0; 5]).unwrap_err().to_string();
        assert_eq!(error, "a: expected a sample for each of 6 rows, found 5");
        let nan = [1.0, f32::INFINITY];
        let error = Activations::new("layers.2.mlp.gated", vec![1.0; 2], &nan, 2).unwrap_err().to_string();
        assert_eq!(error, "layers.2.mlp.gated, held out: not finite in row 0");
    }

    #[test]
    fn subsampled_tokens_are_spread_evenly() {
        let values: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let rows = Activations::new("a", values.clone(), &values[..4], 1).unwrap();
        let few = rows.subsampled(4);
        assert_eq!((few.search(), few.held_out()), ([0., 4., 8.].as_slice(), [0.].as_slice()));
        assert_eq!(rows.subsampled(16).search(), values);
    }

    #[test]
    fn statistics_equal_the_naive_reference() {
        let (n, k) = (7, 300);
        let mut rows = Activations::new("x", seeded(n * k, 1), &seeded(2 * k, 2), k).unwrap();
        let x = rows.search().to_vec();
        let column = |c: usize| x.iter().skip(c).step_by(k).map(|v| f64::from(*v));
        let (rms, mean, gram) = (rows.rms(), rows.mean_abs(), rows.gram());
        for c in 0..k {
            assert!((rms[c] - (column(c).map(|v| v * v).sum::<f64>() / n as f64).sqrt()).abs() < 1e-12);
            assert!((mean[c] - column(c).map(f64::abs).sum::<f64>() / n as f64).abs() < 1e-12);
            for d in [0, c, k - 1] {
                let expected = column(c).zip(column(d)).map(|(a, b)| a * b).sum::<f64>() / n as f64;
                assert!((gram[c * k + d] - expected).abs() < 1e-12);
            }
        }
        let part = rows.gram_of(32..96);
        assert!((part[64 + 5] - gram[33 * k + 37]).abs() < 1e-12);
        rows.divide(&vec![2.0; k]);
        assert_eq!(rows.search()[3], x[3] / 2.0);
    }
}
