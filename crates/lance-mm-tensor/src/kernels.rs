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
#[cfg(all(test, target_os = "linux", not(miri)))]
mod guarded;
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
mod vector;

pub(crate) use affine_cpu::Affine;
pub(crate) use attention::{Attention, Heads, Kept, Single, attend_singly};
pub(crate) use conv_cpu::{Frames, Geometry, add_conv};
pub use gemm::{MatRef, Real, add_matmul};
pub(crate) use norm_cpu::{pixel_norm, rms_norm};
use pointwise::add_to;
pub(crate) use pointwise::swiglu;
pub(crate) use rope_cpu::{Angles, turn};

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
    fn bf16(&self) -> Option<(&[[u8; 2]], crate::precision::ActivationPrecision)> {
        None
    }
}

/// A weight `(R, K)` in the form that products read.
#[derive(Clone, Copy)]
pub(crate) enum Matrix<'a> {
    Rows(&'a dyn Rows),
    Affine(Affine<'a>),
}

impl Matrix<'_> {
    fn dims(&self) -> [usize; 2] {
        match self {
            Self::Rows(w) => [w.n_rows(), w.n_cols()],
            Self::Affine(w) => [w.rows, w.cols],
        }
    }
}

/// What is added to products.
#[derive(Clone, Copy, Default)]
pub(crate) struct Addends<'a> {
    /// To every row: `(R)`.
    pub(crate) bias: Option<&'a [f32]>,
    /// `(n, R)`.
    pub(crate) rows: Option<&'a [f32]>,
}

/// A layer: weight and bias `(R)`.
#[derive(Clone, Copy)]
pub(crate) struct Layer<'a> {
    pub(crate) weight: Matrix<'a>,
    pub(crate) bias: Option<&'a [f32]>,
}

/// `x` `(n, K)` times the transpose of `w` `(R, K)`, plus what is to be added: `(n, R)`, summed in f32.
///
/// # Panics
/// When `x` is not `n` rows of `K`, or what is added of another size.
pub(crate) fn matmul(x: &[f32], n: usize, w: Matrix<'_>, add: Addends<'_>) -> Vec<f32> {
    check(x, n, Layer { weight: w, bias: add.bias });
    assert!(add.rows.is_none_or(|all| all.len() == n * w.dims()[0]), "a value for each output");
    match w {
        Matrix::Affine(w) => affine_cpu::matmul(x, n, &w, add),
        Matrix::Rows(w) => {
            #[cfg(target_arch = "x86_64")]
            if let Some(w) = bf16::Bf16Matrix::of(w) {
                return w.matmul(x, n, add);
            }
            added(rows_cpu::matmul(x, n, w), add)
        }
    }
}

/// `x` `(n, K)` times the transposes of some weights, their biases added: `(n, R)` each. A few rows are rounded once,
/// and read all weights in one go.
///
/// # Panics
/// As [`matmul`].
pub(crate) fn matmul_each<const N: usize>(x: &[f32], n: usize, layers: [Layer<'_>; N]) -> [Vec<f32>; N] {
    layers.iter().for_each(|layer| check(x, n, *layer));
    let y = affine_cpu::matmul_each(x, n, layers);
    y.unwrap_or_else(|| {
        layers.map(|Layer { weight, bias }| matmul(x, n, weight, Addends { bias, rows: None }))
    })
}

/// `silu(x · gateᵀ + b) · (x · upᵀ + c)` of weights of one shape: `(n, R)`.
///
/// # Panics
/// As [`matmul`], and when the weights have different shapes.
pub(crate) fn gated(x: &[f32], n: usize, gate: Layer<'_>, up: Layer<'_>) -> Vec<f32> {
    assert_eq!(gate.weight.dims(), up.weight.dims(), "weights of one shape");
    check(x, n, gate);
    check(x, n, up);
    let biases = [gate.bias, up.bias];
    let at_once = match (gate.weight, up.weight) {
        (Matrix::Affine(gate), Matrix::Affine(up)) => affine_cpu::gated(x, n, &gate, &up, biases),
        #[cfg(target_arch = "x86_64")]
        (Matrix::Rows(gate), Matrix::Rows(up)) => bf16::gated(x, n, gate, up, biases),
        _ => None,
    };
    at_once.unwrap_or_else(|| {
        let [mut gate, up] = matmul_each(x, n, [gate, up]);
        swiglu(&mut gate, &up);
        gate
    })
}

/// # Panics
/// When `x` is not `n` rows of `K`, or the bias not of `R`.
fn check(x: &[f32], n: usize, layer: Layer<'_>) {
    let [rows, cols] = layer.weight.dims();
    assert_eq!(x.len(), n * cols, "x is n rows of K");
    assert!(layer.bias.is_none_or(|bias| bias.len() == rows), "a bias for each row of the weight");
}

/// Products with what is to be added.
fn added(mut y: Vec<f32>, add: Addends<'_>) -> Vec<f32> {
    for values in [add.bias, add.rows].into_iter().flatten() {
        add_to(&mut y, values);
    }
    y
}
