//! Columns that share a factor.

/// Columns of a consumer that share a scale factor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tie {
    of_column: Vec<usize>,
    n_free: usize,
}

impl Tie {
    /// No sharing: a factor for every column.
    pub fn none(cols: usize) -> Self {
        Self { of_column: (0..cols).collect(), n_free: cols }
    }

    /// The columns of o: query head `h` reads key/value head `h / (n_heads / n_kv_heads)`.
    ///
    /// # Panics
    /// When the heads do not share evenly.
    pub fn heads(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        assert!(n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads), "query heads in equal parts");
        let shared = n_heads / n_kv_heads;
        let of = |column: usize| column / head_dim / shared * head_dim + column % head_dim;
        Self { of_column: (0..n_heads * head_dim).map(of).collect(), n_free: n_kv_heads * head_dim }
    }

    /// `times` copies of `n` channels side by side: the input of the ViT's merger is four patches.
    pub fn repeated(n: usize, times: usize) -> Self {
        Self { of_column: (0..n * times).map(|column| column % n).collect(), n_free: n }
    }

    /// Columns of the consumer.
    pub fn n_columns(&self) -> usize {
        self.of_column.len()
    }

    /// Factors that can be chosen, channels of the producer.
    pub fn n_free(&self) -> usize {
        self.n_free
    }

    /// The factor of every column.
    ///
    /// # Panics
    /// When there is not one value for each free factor.
    pub fn expand(&self, free: &[f32]) -> Vec<f32> {
        assert_eq!(free.len(), self.n_free, "one value for each free factor");
        self.of_column.iter().map(|i| free[*i]).collect()
    }

    /// Joins the values of the columns that share a factor.
    pub(crate) fn reduce(&self, columns: &[f64], join: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        let mut out: Vec<Option<f64>> = vec![None; self.n_free];
        for (value, i) in columns.iter().zip(&self.of_column) {
            out[*i] = Some(out[*i].map_or(*value, |old| join(old, *value)));
        }
        out.into_iter().map(|v| v.unwrap_or(0.0)).collect()
    }

    /// Columns that share each factor.
    pub(crate) fn share(&self) -> usize {
        self.n_columns() / self.n_free.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_heads_share_the_channels_of_their_value_head() {
        let tie = Tie::heads(4, 2, 3);
        assert_eq!((tie.n_columns(), tie.n_free(), tie.share()), (12, 6, 2));
        let t: Vec<f32> = (0..6).map(|i| i as f32).collect();
        assert_eq!(tie.expand(&t), [0., 1., 2., 0., 1., 2., 3., 4., 5., 3., 4., 5.]);
        let columns: Vec<f64> = (0..12).map(f64::from).collect();
        assert_eq!(tie.reduce(&columns, f64::max), [3., 4., 5., 9., 10., 11.]);
        assert_eq!(Tie::repeated(2, 3).expand(&[1.0, 2.0]), [1., 2., 1., 2., 1., 2.]);
        assert_eq!(Tie::none(2).expand(&[3.0, 4.0]), [3.0, 4.0]);
    }
}
