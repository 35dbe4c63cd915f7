//! Quantized rows of a matrix, and their error.

use lance_mm_tensor::{MatRef, Scheme, add_matmul, quantize_group};

use crate::matrix::round_bf16;

/// Quantized rows: a code for each value, a scale and a bias, both rounded to bf16, for each group.
#[derive(Clone)]
pub(crate) struct Block {
    pub(crate) codes: Vec<u8>,
    pub(crate) scales: Vec<f32>,
    pub(crate) biases: Vec<f32>,
    /// Groups whose range was clipped.
    pub(crate) n_clipped: usize,
}

impl Block {
    /// A block of `n` zeros.
    pub(crate) fn zeros(n: usize, scheme: Scheme) -> Self {
        let groups = n / scheme.group_size();
        Self { codes: vec![0; n], scales: vec![0.0; groups], biases: vec![0.0; groups], n_clipped: 0 }
    }

    /// Plain rounding, as `mx.quantize` does it: codes from the unrounded scale and bias.
    pub(crate) fn plain(values: &[f32], scheme: Scheme) -> Self {
        let mut block = Self::zeros(values.len(), scheme);
        let group = scheme.group_size();
        for (j, values) in values.chunks_exact(group).enumerate() {
            let codes = &mut block.codes[j * group..(j + 1) * group];
            let (scale, bias) = quantize_group(values, scheme.bits(), codes);
            (block.scales[j], block.biases[j]) = (round_bf16(scale), round_bf16(bias));
        }
        block
    }

    /// Writes `scale · code + bias` over `out`.
    pub(crate) fn read(&self, scheme: Scheme, out: &mut [f32]) {
        let group = scheme.group_size();
        let parts = self.scales.iter().zip(&self.biases).zip(self.codes.chunks_exact(group));
        for (((scale, bias), codes), out) in parts.zip(out.chunks_exact_mut(group)) {
            for (o, code) in out.iter_mut().zip(codes) {
                *o = scale * f32::from(*code) + bias;
            }
        }
    }

    /// Values minus the dequantized block.
    pub(crate) fn error(&self, values: &[f32], scheme: Scheme) -> Vec<f32> {
        let mut error = vec![0.0; values.len()];
        self.read(scheme, &mut error);
        error.iter_mut().zip(values).for_each(|(e, v)| *e = v - *e);
        error
    }
}

/// The integer in `0..=n` nearest to `x`, half to even.
pub(crate) fn nearest(x: f32, n: f32) -> f32 {
    // n is an integer, so clamping first changes nothing; adding 1.5 · 2^23 rounds the fraction away.
    const WHOLE: f32 = 12_582_912.0;
    x.clamp(0.0, n) + WHOLE - WHOLE
}

/// `‖X·Dᵀ‖²` of rows `d` and inputs `x`, both of width `cols`; squares are summed in f64.
pub(crate) fn output_energy(x: &[f32], d: &[f32], cols: usize) -> f64 {
    let (n, rows) = (x.len() / cols, d.len() / cols);
    let mut y = vec![0.0; rows * n];
    add_matmul(&mut y, n, 1.0, MatRef::new(d, rows, cols, cols), MatRef::new(x, n, cols, cols).t());
    energy(&y)
}

/// `Σ v²` in f64, in eight chains that are added in order.
pub(crate) fn energy(values: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (eights, tail) = values.as_chunks::<8>();
    for eight in eights {
        for i in 0..8 {
            sums[i] += f64::from(eight[i]) * f64::from(eight[i]);
        }
    }
    sums.iter().sum::<f64>() + tail.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()
}

/// `error / size`, and 0 if both are.
pub(crate) fn relative(error: f64, size: f64) -> f64 {
    if size > 0.0 { error / size } else { error }
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;
    use lance_mm_tensor::{AffineWeight, FloatType};

    use super::*;

    #[test]
    fn plain_rounding_is_that_of_the_format() {
        for bits in [2, 3, 4, 5, 6, 8] {
            let scheme = Scheme::affine(bits, 32).unwrap();
            let values = seeded(3 * 96, 5);
            let whole = AffineWeight::quantize("w", &values, 96, scheme, FloatType::BF16).unwrap();
            let block = Block::plain(&values, scheme);
            let mut found = vec![0.0; values.len()];
            block.read(scheme, &mut found);
            let mut expected = [0.0; 96];
            for (row, found) in found.chunks_exact(96).enumerate() {
                whole.read_row(row, &mut expected);
                assert_eq!(found, expected, "{bits}");
            }
            assert_eq!(block.error(&values, scheme)[7], values[7] - found[7]);
        }
    }

    #[test]
    fn nearest_is_half_to_even_within_the_range() {
        for x in [-3.0, -0.5, 0.0, 0.5, 0.50001, 1.5, 2.5, 6.9, 7.5, 1e30, f32::INFINITY] {
            assert_eq!(nearest(x, 7.0), x.round_ties_even().clamp(0.0, 7.0), "{x}");
        }
    }

    #[test]
    fn energy_equals_the_naive_sum() {
        let (x, d, cols) = (seeded(5 * 37, 1), seeded(3 * 37, 2), 37);
        let mut expected = 0.0;
        for x in x.chunks_exact(cols) {
            for d in d.chunks_exact(cols) {
                expected += x.iter().zip(d).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>().powi(2);
            }
        }
        assert!((output_energy(&x, &d, cols) / expected - 1.0).abs() < 1e-5);
    }
}
