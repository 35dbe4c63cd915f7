//! The only door to `unsafe` code: products of activations with weights that stay in their stored form.

mod affine_cpu;
#[cfg(target_arch = "x86_64")]
mod amx;
mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod columns;
mod conv_cpu;
mod gemm;
pub mod metal;
mod norm_cpu;
pub(crate) mod peak;
mod pointwise;
mod rope_cpu;
mod rows_cpu;
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "functions compiled for instructions"))]
mod simd;
#[cfg(target_arch = "x86_64")]
mod stripes;
mod tile;

pub(crate) use affine_cpu::{Affine, affine_matmul};
pub(crate) use attention::{Attention, Heads};
pub(crate) use conv_cpu::{Frames, Geometry, add_conv};
pub use gemm::{MatRef, Real, add_product};
pub(crate) use norm_cpu::rms_norm;
use pointwise::add_bias;
pub(crate) use pointwise::swiglu;
pub(crate) use rope_cpu::turn;

/// A matrix whose rows can be read as f32, whatever form they are stored in.
pub(crate) trait Rows: Send + Sync {
    /// Rows `R`.
    fn n_rows(&self) -> usize;

    /// Columns `K`.
    fn n_cols(&self) -> usize;

    /// Writes row `row` into `out`, which has `n_cols` places.
    fn read_row(&self, row: usize, out: &mut [f32]);

    /// The values as they are stored, row by row, if they are bf16, and what they are multiplied with.
    #[cfg(target_arch = "x86_64")]
    fn bf16(&self) -> Option<(&[[u8; 2]], crate::Activations)> {
        None
    }
}

/// `x` `(n, K)` times the transpose of `w` `(R, K)`, plus `bias` `(R)` if there is one: `(n, R)`, summed in f32.
///
/// # Panics
/// When `x` is not `n` rows of `K`, or the bias not of `R`.
pub(crate) fn matmul(x: &[f32], n: usize, w: &dyn Rows, bias: Option<&[f32]>) -> Vec<f32> {
    assert_eq!(x.len(), n * w.n_cols(), "x is n rows of K");
    assert!(bias.is_none_or(|bias| bias.len() == w.n_rows()), "a bias for each row of the weight");
    #[cfg(target_arch = "x86_64")]
    if let Some((values, activations)) = w.bf16()
        && let Some(w) = bf16::Bf16Matrix::new(values, w.n_cols(), activations)
    {
        return w.matmul(x, n, bias);
    }
    biased(rows_cpu::matmul(x, n, w), bias)
}

/// Rows of products with the bias added.
fn biased(mut y: Vec<f32>, bias: Option<&[f32]>) -> Vec<f32> {
    if let Some(bias) = bias.filter(|_| !y.is_empty()) {
        add_bias(&mut y, bias);
    }
    y
}
