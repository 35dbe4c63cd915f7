//! The error of one group of weights, weighted by its inputs.

use rayon::prelude::*;

use crate::activations::Activations;

/// `H` of one group: an error `d` of its values costs `dᵀ H d`.
#[derive(Clone, Debug)]
pub(crate) struct GroupGram {
    /// `(g, g)`, symmetric; `None` stands for the identity.
    h: Option<Vec<f64>>,
    /// `H · 1`.
    ones: Vec<f64>,
}

impl GroupGram {
    /// `H = I`, for weights without recorded inputs.
    pub(crate) fn identity(group: usize) -> Self {
        Self { h: None, ones: vec![1.0; group] }
    }

    /// `H_j = X_jᵀX_j / n + 0.01 · mean(diag) · I` of every group of channels, over the search set.
    pub(crate) fn of_groups(inputs: &Activations, group: usize) -> Vec<Self> {
        let groups: Vec<usize> = (0..inputs.n_cols() / group).collect();
        groups.into_par_iter().map(|j| Self::new(inputs.gram_of(j * group..(j + 1) * group), group)).collect()
    }

    fn new(mut h: Vec<f64>, group: usize) -> Self {
        let mean = h.iter().step_by(group + 1).sum::<f64>() / group as f64;
        if mean <= 0.0 {
            return Self::identity(group);
        }
        h.iter_mut().step_by(group + 1).for_each(|v| *v += 0.01 * mean);
        let ones = h.chunks_exact(group).map(|row| row.iter().sum()).collect();
        Self { h: Some(h), ones }
    }

    /// `H · 1`.
    pub(crate) fn ones(&self) -> &[f64] {
        &self.ones
    }

    /// `H · v` into `out`.
    pub(crate) fn multiply(&self, v: &[f64], out: &mut [f64]) {
        match &self.h {
            None => out.copy_from_slice(v),
            Some(h) => {
                for (o, row) in out.iter_mut().zip(h.chunks_exact(v.len())) {
                    *o = dot(row, v);
                }
            }
        }
    }

    /// `dᵀ H d`.
    pub(crate) fn error(&self, d: &[f64]) -> f64 {
        match &self.h {
            None => dot(d, d),
            // Half of the symmetric matrix is enough.
            Some(h) => (0..d.len())
                .map(|i| {
                    let row = &h[i * d.len()..];
                    d[i] * (row[i] * d[i] + 2.0 * dot(&row[..i], &d[..i]))
                })
                .sum(),
        }
    }
}

/// Dot product, summed in eight chains that are added in order.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    let ((a, a_tail), (b, b_tail)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    for (a, b) in a.iter().zip(b) {
        for i in 0..8 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f64>() + a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;

    use super::*;

    #[test]
    fn errors_equal_the_naive_reference() {
        let (n, k, group) = (9, 64, 32);
        let rows = Activations::new("x", seeded(n * k, 1), &seeded(k, 2), k).unwrap();
        let d: Vec<f64> = seeded(group, 3).iter().map(|v| f64::from(*v)).collect();
        for (j, gram) in GroupGram::of_groups(&rows, group).iter().enumerate() {
            let x = |r: usize, c: usize| f64::from(rows.search()[r * k + j * group + c]);
            let output: f64 = (0..n).map(|r| (0..group).map(|c| x(r, c) * d[c]).sum::<f64>().powi(2)).sum();
            let diagonal: f64 = (0..n).map(|r| (0..group).map(|c| x(r, c).powi(2)).sum::<f64>()).sum();
            let expected = output / n as f64 + 0.01 * diagonal / (n * group) as f64 * dot(&d, &d);
            assert!((gram.error(&d) / expected - 1.0).abs() < 1e-12);
            let mut product = vec![0.0; group];
            gram.multiply(&d, &mut product);
            assert!((dot(&product, &d) / expected - 1.0).abs() < 1e-12);
            gram.multiply(&vec![1.0; group], &mut product);
            assert!(product.iter().zip(gram.ones()).all(|(a, b)| (a - b).abs() < 1e-12));
        }
        assert_eq!(GroupGram::identity(32).error(&d), dot(&d, &d));
    }

    #[test]
    fn channels_without_input_count_equally() {
        let rows = Activations::new("x", vec![0.0; 64], &[0.0; 32], 32).unwrap();
        assert!(GroupGram::of_groups(&rows, 32)[0].h.is_none());
    }
}
