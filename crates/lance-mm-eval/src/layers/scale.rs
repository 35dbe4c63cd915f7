//! Scales that a quantizer moved from one layer into the next.

use candle_core::Tensor;
use lance_mm_tensor::{RmsNorm, Weight};

use crate::error::Result;

/// Scale of a candidate's input columns whose inverse is in the norm before them: the reference's norm weight
/// over the candidate's.
pub(super) fn of_norms(reference: &RmsNorm, candidate: &RmsNorm) -> Result<Vec<f32>> {
    let weight = |norm: &RmsNorm| -> Result<Vec<f32>> { Ok(norm.weight().to_vec1()?) };
    Ok(weight(reference)?.iter().zip(weight(candidate)?).map(|(r, c)| legal(r / c)).collect())
}

/// Factors of a candidate's output rows that give the reference's, its columns divided by `input_scale`
/// before: the scale between two linear layers is stored nowhere. By least squares of each row
/// on the reference's, in which rounding errors of many columns cancel; one in `K` of the error's energy is
/// lost to the fit. Equal weights give exactly 1. (Columns of the consumer tell less: one of small weights
/// may be rounded away as a whole.)
pub(super) fn of_rows(reference: &Weight, candidate: &Weight, input_scale: &[f32]) -> Vec<f32> {
    let (mut r, mut c) = (vec![0.0; reference.n_cols()], vec![0.0; reference.n_cols()]);
    let mut of = |row: usize| {
        reference.read_row(row, &mut r);
        candidate.read_row(row, &mut c);
        c.iter_mut().zip(input_scale).for_each(|(c, s)| *c /= s);
        let dot =
            |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        legal((dot(&r, &r) / dot(&c, &r)) as f32)
    };
    (0..reference.n_rows()).map(&mut of).collect()
}

/// Scales of key/value channels as those of the attention output, whose query heads share them.
pub(super) fn for_all_heads(scale: &[f32], n_heads: usize, n_kv_heads: usize) -> Vec<f32> {
    let width = scale.len() / n_kv_heads;
    (0..n_heads).flat_map(|head| &scale[head * n_kv_heads / n_heads * width..][..width]).copied().collect()
}

/// Rows over a scale of their columns.
pub(super) fn divided(x: &Tensor, scale: &[f32]) -> Result<Tensor> {
    Ok(x.broadcast_div(&Tensor::new(scale, x.device())?)?)
}

/// Rows times a scale of their columns.
pub(super) fn multiplied(x: &Tensor, scale: &[f32]) -> Result<Tensor> {
    Ok(x.broadcast_mul(&Tensor::new(scale, x.device())?)?)
}

/// A scale that can be divided by; 1 where there is nothing to tell it from.
fn legal(scale: f32) -> f32 {
    if scale.is_finite() && scale > 0.0 { scale } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use lance_mm_tensor::DenseWeight;
    use lance_mm_tensor::testing::seeded;

    use super::*;

    fn weight(values: &[f32], cols: usize) -> Weight {
        Weight::Dense(DenseWeight::from_f32(values, cols))
    }

    #[test]
    fn scales_are_found_again() {
        let w = seeded(8 * 64, 3);
        let scale = [1.0, 0.5, 2.0, 4.0, 1.0, 0.125, 16.0, 1.0];
        let inputs: Vec<f32> = (0..64).map(|i| [1.0, 4.0][i % 2]).collect();
        let scaled: Vec<f32> =
            w.iter().enumerate().map(|(i, v)| v * inputs[i % 64] / scale[i / 64]).collect();
        assert_eq!(of_rows(&weight(&w, 64), &weight(&w, 64), &[1.0; 64]), [1.0; 8]);
        assert_eq!(of_rows(&weight(&w, 64), &weight(&scaled, 64), &inputs), scale);
        assert_eq!(of_rows(&weight(&[0.0; 4], 2), &weight(&[0.0; 4], 2), &[1.0; 2]), [1.0; 2]);

        let norm = |w: &[f32]| RmsNorm::new(Tensor::new(w, &Device::Cpu).unwrap(), 1e-6);
        let found = of_norms(&norm(&[1.0, 3.0, 0.0]), &norm(&[2.0, 1.0, 0.0])).unwrap();
        assert_eq!(found, [0.5, 3.0, 1.0]);
        assert_eq!(for_all_heads(&[1., 2., 3., 4.], 4, 2), [1., 2., 1., 2., 3., 4., 3., 4.]);
    }
}
