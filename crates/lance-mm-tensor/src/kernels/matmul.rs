//! Matmuls of activations with weights of any form: which kernel runs.

#[cfg(target_arch = "x86_64")]
use super::bf16;
use super::operands::{Addends, Layer, Matrix, added};
use super::pointwise::swiglu;
use super::{affine_cpu, rows_cpu};

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
