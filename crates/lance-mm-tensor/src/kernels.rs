//! The only door to `unsafe` code: products of activations with weights that stay in their stored form.

mod affine_cpu;
mod conv_cpu;
mod gemm;
pub mod metal;
pub(crate) mod peak;
mod rows_cpu;
mod tile;

pub(crate) use affine_cpu::{Affine, affine_matmul};
pub(crate) use conv_cpu::{Frames, Geometry, add_conv};
pub use gemm::{MatRef, Real, add_product};
pub(crate) use rows_cpu::matmul;

/// A matrix whose rows can be read as f32, whatever form they are stored in.
pub(crate) trait Rows: Send + Sync {
    /// Rows `R`.
    fn n_rows(&self) -> usize;

    /// Columns `K`.
    fn n_cols(&self) -> usize;

    /// Writes row `row` into `out`, which has `n_cols` places.
    fn read_row(&self, row: usize, out: &mut [f32]);
}
