//! Linear layers over weights of any form.

use candle_core::{Device, Tensor};

use crate::affine::AffineWeight;
use crate::cpu_values::Values;
use crate::dense::DenseWeight;
use crate::error::{Error, Result};
use crate::kernels::{Layer, matmul_each, matmul_swiglu};
use crate::swiglu::swiglu;
use crate::weight::Weight;
use crate::weights::Weights;

/// `y = x · Wᵀ + b`.
#[derive(Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// Makes a layer of `weight` and, if given, an f32 bias `(R)`.
    pub fn new(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Loads a layer without bias: `weight` `(n_out, n_in)`, dense or quantized as in the file.
    ///
    /// # Errors
    /// As [`Weight::load`]; a bias in the file.
    pub fn load(weights: &Weights, n_in: usize, n_out: usize) -> Result<Self> {
        if weights.has("bias") {
            weights.report("bias", "expected none")?;
        }
        Ok(Self::new(Weight::load(weights, n_out, n_in)?, None))
    }

    /// Loads a layer with `bias` `(n_out)`.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load_biased(weights: &Weights, n_in: usize, n_out: usize) -> Result<Self> {
        let bias = weights.tensor("bias", &[n_out])?;
        Ok(Self::new(Weight::load(weights, n_out, n_in)?, Some(bias)))
    }

    /// Copies the layer to `device`; see [`Weight::to_device`].
    ///
    /// # Errors
    /// As [`Weight::to_device`].
    pub fn to_device(self, device: &Device) -> Result<Self> {
        let bias = self.bias.map(|bias| bias.to_device(device)).transpose()?;
        Ok(Self { weight: self.weight.to_device(device)?, bias })
    }

    /// The weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Maps `(.., K)` to `(.., R)` of the same dtype: f32, on a device f16 and bf16 too.
    ///
    /// # Errors
    /// As [`Weight::matmul`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.matmul_add(x, self.bias.as_ref(), None)
    }

    /// `residual + forward(x)` for `(.., R)` and `(.., K)` of the same dtype; the CPU adds while it writes the output.
    ///
    /// # Errors
    /// As [`Weight::matmul`]; a residual of another shape or dtype.
    pub fn forward_residual(&self, residual: &Tensor, x: &Tensor) -> Result<Tensor> {
        let fits = residual.dims().split_last().is_some_and(|(width, rows)| {
            *width == self.weight.n_rows() && x.dims().split_last().is_some_and(|(_, x)| x == rows)
        });
        if !fits || residual.dtype() != x.dtype() {
            let (rows, dtype) = (self.weight.n_rows(), x.dtype());
            let expected = format!("{dtype:?} rows of {rows}, as many as of {:?}", x.dims());
            let found = format!("{:?} {:?}", residual.dtype(), residual.dims());
            return Err(Error::input("residual", expected, found));
        }
        self.weight.matmul_add(x, self.bias.as_ref(), Some(residual))
    }

    /// Outputs of several layers for the same `(.., K)`. On the CPU, activations of up to eight tokens are quantized once
    /// for all of them.
    ///
    /// # Errors
    /// As [`Weight::matmul`].
    pub fn forward_each<const N: usize>(layers: [&Self; N], x: &Tensor) -> Result<[Tensor; N]> {
        let on_device = layers.iter().any(|layer| matches!(layer.weight, Weight::Device(_)));
        let y: Vec<Tensor> = if on_device {
            layers.iter().map(|layer| layer.forward(x)).collect::<Result<_>>()?
        } else {
            with_layers(layers, x, matmul_each)?
        };
        Ok(y.try_into().expect("a tensor for each layer"))
    }

    /// SwiGLU, `silu(gate(x)) · up(x)`, for `(.., K)`: `(.., R)` of the same dtype (Shazeer 2020, "GLU variants improve
    /// Transformer").
    ///
    /// # Errors
    /// As [`Weight::matmul`]; layers of different shapes.
    pub fn forward_swiglu(gate: &Self, up: &Self, x: &Tensor) -> Result<Tensor> {
        let shape = |layer: &Self| [layer.weight.n_rows(), layer.weight.n_cols()];
        if shape(gate) != shape(up) {
            return Err(Error::input("gate", format!("{:?}", shape(up)), format!("{:?}", shape(gate))));
        }
        if [gate, up].iter().any(|layer| matches!(layer.weight, Weight::Device(_))) {
            return swiglu(gate.forward(x)?, &up.forward(x)?);
        }
        let mut y = with_layers([gate, up], x, |x, n, [gate, up]| [matmul_swiglu(x, n, gate, up)])?;
        Ok(y.remove(0))
    }
}

/// Runs a kernel over several layers on the CPU; output `i` is as wide as layer `i`.
fn with_layers<const N: usize, const M: usize>(
    layers: [&Linear; N],
    x: &Tensor,
    run: impl FnOnce(&[f32], usize, [Layer<'_>; N]) -> [Vec<f32>; M],
) -> Result<Vec<Tensor>> {
    for layer in layers {
        layer.weight.check_input(x)?;
    }
    let x = x.contiguous()?;
    let x = Values::of(&x)?;
    let biases: Vec<Option<Values<'_>>> =
        layers.iter().map(|layer| layer.weight.bias(layer.bias.as_ref())).collect::<Result<_>>()?;
    let kernel_layers: Vec<Layer<'_>> = layers
        .iter()
        .zip(&biases)
        .map(|(layer, bias)| Ok(Layer { weight: layer.weight.matrix()?, bias: bias.as_deref() }))
        .collect::<Result<_>>()?;
    let Some(first) = layers.first() else { return Ok(Vec::new()) };
    let kernel_layers = kernel_layers.try_into().ok().expect("a layer for each");
    let y = run(&x, first.weight.count(&x), kernel_layers);
    y.into_iter().zip(layers).map(|(y, layer)| x.replaced(y, layer.weight.n_rows())).collect()
}

impl From<AffineWeight> for Linear {
    fn from(weight: AffineWeight) -> Self {
        Self::new(Weight::Affine(weight), None)
    }
}

impl From<DenseWeight> for Linear {
    fn from(weight: DenseWeight) -> Self {
        Self::new(Weight::Dense(weight), None)
    }
}

#[cfg(test)]
mod tests;
