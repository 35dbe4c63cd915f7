//! Matmuls of activations with weights of any form: chooses the kernel.

#[cfg(target_arch = "x86_64")]
use super::bf16;
use super::operands::{Addends, Layer, Matrix, added};
use super::pointwise::swiglu;
use super::{affine_cpu, rows_cpu};

/// `x · wᵀ` of `(n, K)` and `(R, K)`, plus bias and residual: `(n, R)`, summed in f32.
///
/// # Panics
/// When `x` is not `n` tokens of `K`, or a bias or residual has another size.
pub(crate) fn matmul(x: &[f32], n: usize, w: Matrix<'_>, add: Addends<'_>) -> Vec<f32> {
    check(x, n, Layer { weight: w, bias: add.bias });
    assert!(add.residual.is_none_or(|all| all.len() == n * w.dims()[0]), "a value for each output");
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

/// `x · wᵀ` of `(n, K)` with several weights, plus their biases: `(n, R)` each. Up to eight tokens are quantized once, and
/// all weights are read in one pass.
///
/// # Panics
/// As [`matmul`].
pub(crate) fn matmul_each<const N: usize>(x: &[f32], n: usize, layers: [Layer<'_>; N]) -> [Vec<f32>; N] {
    layers.iter().for_each(|layer| check(x, n, *layer));
    let y = affine_cpu::matmul_each(x, n, layers);
    y.unwrap_or_else(|| {
        layers.map(|Layer { weight, bias }| matmul(x, n, weight, Addends { bias, residual: None }))
    })
}

/// SwiGLU, `silu(x · gateᵀ + b) · (x · upᵀ + c)`, of weights of one shape: `(n, R)`.
///
/// # Panics
/// As [`matmul`], and when the weights have different shapes.
pub(crate) fn matmul_swiglu(x: &[f32], n: usize, gate: Layer<'_>, up: Layer<'_>) -> Vec<f32> {
    assert_eq!(gate.weight.dims(), up.weight.dims(), "weights of one shape");
    check(x, n, gate);
    check(x, n, up);
    let biases = [gate.bias, up.bias];
    let at_once = match (gate.weight, up.weight) {
        (Matrix::Affine(gate), Matrix::Affine(up)) => affine_cpu::matmul_swiglu(x, n, &gate, &up, biases),
        #[cfg(target_arch = "x86_64")]
        (Matrix::Rows(gate), Matrix::Rows(up)) => bf16::matmul_swiglu(x, n, gate, up, biases),
        _ => None,
    };
    at_once.unwrap_or_else(|| {
        let [mut gate, up] = matmul_each(x, n, [gate, up]);
        swiglu(&mut gate, &up);
        gate
    })
}

/// # Panics
/// When `x` is not `n` tokens of `K`, or the bias does not have `R` values.
fn check(x: &[f32], n: usize, layer: Layer<'_>) {
    let [rows, cols] = layer.weight.dims();
    assert_eq!(x.len(), n * cols, "x is n tokens of K");
    assert!(layer.bias.is_none_or(|bias| bias.len() == rows), "a bias for each row of the weight");
}
