//! Linear layers and embeddings over weights of either form.

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;

use crate::affine::{AffineParts, AffineWeight};
use crate::bytes::Bytes;
use crate::cpu_values::Values;
use crate::dense::DenseWeight;
use crate::device::hidden_dtype;
use crate::dtype::FloatType;
use crate::error::{Error, Result};
use crate::kernels::metal::{self, DeviceWeight};
use crate::kernels::{Addends, Layer, Matrix, Rows, gated, matmul, matmul_each};
use crate::mx_formats::MxWeight;
use crate::scheme::{QuantMode, Scheme};
use crate::swiglu::swiglu;
use crate::weights::{View, Weights};

/// A weight matrix `(R, K)` in the form its file holds.
#[derive(Clone)]
#[non_exhaustive]
pub enum Weight {
    /// `F32`, `F16` or `BF16` values.
    Dense(DenseWeight),
    /// MLX's affine format.
    Affine(AffineWeight),
    /// One of MLX's floating modes.
    Mx(MxWeight),
    /// One of these in buffers of a device.
    Device(DeviceWeight),
}

impl Weight {
    /// Loads the matrix of the module at `weights`, onto their device: dense when the file has no `scales` beside
    /// it.
    ///
    /// On the CPU no value is read: scales or biases that are not finite are an error of the first product or lookup
    /// that reads them.
    ///
    /// # Errors
    /// Tensors that are missing or misshapen, or contradict the configuration (inside [`Weights::load_all`] none of
    /// these: a matrix without rows); as [`to_device`](Self::to_device).
    pub fn load(weights: &Weights, rows: usize, cols: usize) -> Result<Self> {
        let placeholder = || Ok(Self::Dense(DenseWeight::from_f32(&[], 1)));
        weights.or_placeholder(Self::find(weights, rows, cols), placeholder)?.to_device(weights.device())
    }

    fn find(weights: &Weights, rows: usize, cols: usize) -> Result<Self> {
        if weights.has("scales") {
            return Self::find_quantized(weights, rows, cols);
        }
        if let Err(what) = weights.quantization().check_dense(weights.path()) {
            weights.report("weight", what)?;
        }
        weights.dense("weight", &[rows, cols], rows, cols).map(Self::Dense)
    }

    /// The same weight where products with tensors of `device` need it: left as it is for the CPU, else copied into
    /// buffers of the device.
    ///
    /// # Errors
    /// Scales or biases that are not finite, a form the device has no kernel for, memory that it lacks.
    pub fn to_device(self, device: &Device) -> Result<Self> {
        match metal::runs_on(device) && self.n_rows() > 0 {
            true => DeviceWeight::new(self, device).map(Self::Device),
            false => Ok(self),
        }
    }

    fn find_quantized(weights: &Weights, rows: usize, cols: usize) -> Result<Self> {
        let last = |name: &str| weights.info(name).and_then(|t| t.shape.last().copied()).unwrap_or(0);
        let (words, groups, has_biases) = (last("weight"), last("scales"), weights.has("biases"));
        let scheme = weights.quantization().scheme(weights.path(), cols, words, groups, has_biases);
        let scheme = scheme.map_err(|what| weights.problem("weight", what))?;
        let words = weights.view("weight", &[rows, scheme.words(cols)]);
        let groups = [rows, cols / scheme.group_size()];
        let (words, scales) = match (words, weights.view("scales", &groups)) {
            (Err(Error::Weights(mut words)), Err(Error::Weights(scales))) => {
                words.list.extend(scales.list);
                return Err(Error::Weights(words));
            }
            (words, scales) => (words?, scales?),
        };
        if words.dtype != Dtype::U32 {
            let what = format!("expected packed U32 words, found {:?}", words.dtype);
            return Err(weights.problem("weight", what));
        }
        if scheme.mode() != QuantMode::Affine {
            return Self::float_mode(weights, words.bytes, scales, scheme, rows, cols);
        }
        let biases = weights.view("biases", &groups)?;
        let dtype = FloatType::of(scales.dtype).filter(|_| scales.dtype == biases.dtype);
        let Some(dtype) = dtype else {
            let found = format!("{:?} and {:?}", scales.dtype, biases.dtype);
            let what = format!("expected scales and biases both F32, F16 or BF16, found {found}");
            return Err(weights.problem("scales", what));
        };
        let parts = AffineParts { words: words.bytes, scales: scales.bytes, biases: biases.bytes, dtype };
        let weight = AffineWeight::new(&module(weights), parts, scheme, rows, cols);
        Ok(Self::Affine(weight.with_products(weights.products())))
    }

    fn float_mode(
        weights: &Weights,
        words: Bytes,
        scales: View,
        scheme: Scheme,
        rows: usize,
        cols: usize,
    ) -> Result<Self> {
        for (part, what) in [("biases", "biases"), ("global_scale", "a global scale")] {
            if weights.has(part) {
                return Err(weights.problem(part, format!("expected no {what} in mode {}", scheme.mode())));
            }
        }
        if scales.dtype != Dtype::U8 {
            return Err(weights.problem("scales", format!("expected U8, found {:?}", scales.dtype)));
        }
        let name = module(weights);
        Ok(Self::Mx(MxWeight::new(&name, words, scales.bytes, scheme, rows, cols)))
    }

    fn rows(&self) -> &dyn Rows {
        match self {
            Self::Dense(w) => w,
            Self::Affine(w) => w,
            Self::Mx(w) => w,
            Self::Device(w) => w.host().rows(),
        }
    }

    /// Rows `R`.
    pub fn n_rows(&self) -> usize {
        self.rows().n_rows()
    }

    /// Columns `K`.
    pub fn n_cols(&self) -> usize {
        self.rows().n_cols()
    }

    /// What it is stored in: what a product with one row reads.
    pub fn stored(&self) -> Vec<&[u8]> {
        match self {
            Self::Dense(w) => vec![w.bytes()],
            Self::Affine(w) => vec![w.word_bytes(), w.scale_bytes(), w.bias_bytes()],
            Self::Mx(w) => w.stored().to_vec(),
            Self::Device(w) => w.host().stored(),
        }
    }

    /// Bytes it is stored in.
    pub fn bytes(&self) -> usize {
        self.stored().iter().map(|part| part.len()).sum()
    }

    /// One row widened to f32.
    ///
    /// # Panics
    /// When `row` or the length of `out` does not fit.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        self.rows().read_row(row, out);
    }

    /// `x · Wᵀ`: f32 `(.., K)` to f32 `(.., R)`; on a device f16 to f16 and bf16 to bf16 too, summed in f32.
    ///
    /// # Errors
    /// `x` of another width or dtype, or on a device without a kernel for this weight; scales or biases that are
    /// not finite.
    pub fn matmul(&self, x: &Tensor) -> Result<Tensor> {
        self.product(x, None, None)
    }

    /// As [`matmul`](Self::matmul), with a bias `(R)` and rows `(.., R)` added.
    fn product(&self, x: &Tensor, bias: Option<&Tensor>, rows: Option<&Tensor>) -> Result<Tensor> {
        self.check_input(x)?;
        if let Self::Device(w) = self {
            let y = w.matmul(&x.contiguous()?, bias)?;
            return rows.map_or(Ok(y.clone()), |rows| Ok((rows + y)?));
        }
        let (x, rows) = (x.contiguous()?, rows.map(Tensor::contiguous).transpose()?);
        let x = Values::of(&x)?;
        let bias = self.bias(bias)?;
        let rows = rows.as_ref().map(Values::of).transpose()?;
        let add = Addends { bias: bias.as_deref(), rows: rows.as_deref() };
        x.replaced(matmul(&x, self.count(&x), self.matrix()?, add), self.n_rows())
    }

    /// A bias, which has a value for each row.
    fn bias<'b>(&self, bias: Option<&'b Tensor>) -> Result<Option<Values<'b>>> {
        let values = bias.map(Values::of).transpose()?;
        match values.as_ref().is_none_or(|values| values.len() == self.n_rows()) {
            true => Ok(values),
            false => {
                let found = format!("{:?}", bias.map(Tensor::dims));
                Err(Error::input("bias", format!("{} values", self.n_rows()), found))
            }
        }
    }

    /// Rows of x.
    fn count(&self, x: &[f32]) -> usize {
        x.len() / self.n_cols().max(1)
    }

    /// What products on the CPU read.
    fn matrix(&self) -> Result<Matrix<'_>> {
        match self {
            Self::Affine(w) => {
                w.check()?;
                if let Some(w) = w.integer() {
                    return Ok(Matrix::Affine(w));
                }
            }
            Self::Mx(w) => w.check()?,
            Self::Dense(_) | Self::Device(_) => {}
        }
        Ok(Matrix::Rows(self.rows()))
    }

    fn check_input(&self, x: &Tensor) -> Result<()> {
        let (fits, types) = match self {
            Self::Device(_) => (FloatType::try_from(x.dtype()).is_ok(), "f32, f16 or bf16"),
            _ => (x.dtype() == DType::F32, "f32"),
        };
        if x.dims().last() != Some(&self.n_cols()) || !fits {
            let expected = format!("{types} rows of {}", self.n_cols());
            return Err(Error::input("linear input", expected, format!("{:?} {:?}", x.dtype(), x.dims())));
        }
        Ok(())
    }
}

/// A module's files and name, for errors.
fn module(weights: &Weights) -> String {
    format!("{}: {}", weights.files(), weights.path())
}

/// `y = x · Wᵀ + b`.
#[derive(Clone)]
pub struct Linear {
    weight: Weight,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer of `weight` and, if given, an f32 bias `(R)`.
    pub fn new(weight: Weight, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Loads a layer without bias: `weight` `(n_out, n_in)`, dense or quantized as the file has it.
    ///
    /// # Errors
    /// As [`Weight::load`].
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

    /// The same layer for tensors of `device`; see [`Weight::to_device`].
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

    /// `(.., K)` to `(.., R)` of the same type: f32, on a device f16 and bf16 too.
    ///
    /// # Errors
    /// As [`Weight::matmul`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.weight.product(x, self.bias.as_ref(), None)
    }

    /// `residual` `(.., R)` plus the layer's output for `(.., K)` of the same type.
    ///
    /// # Errors
    /// As [`Weight::matmul`]; a residual of another shape or type.
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
        self.weight.product(x, self.bias.as_ref(), Some(residual))
    }

    /// The outputs of some layers for the same `(.., K)`. On the CPU a row or two are rounded once for all of
    /// them.
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

    /// `silu(gate(x)) · up(x)` for `(.., K)`: `(.., R)` of the same type (Shazeer 2020, "GLU variants improve Transformer").
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
        let mut y = with_layers([gate, up], x, |x, n, [gate, up]| [gated(x, n, gate, up)])?;
        Ok(y.remove(0))
    }
}

/// Outputs of layers on the CPU, each as wide as the layer it stands with.
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

/// A table of which rows are looked up; only those are widened.
#[derive(Clone)]
pub struct Embedding {
    weight: Weight,
    device: Device,
    /// The type of looked-up rows.
    rows: DType,
}

impl Embedding {
    /// Loads a table `(n_rows, n_cols)`.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load(weights: &Weights, n_rows: usize, n_cols: usize) -> Result<Self> {
        Ok(Self {
            weight: Weight::load(weights, n_rows, n_cols)?,
            device: weights.device().clone(),
            rows: hidden_dtype(weights.activation_precision(), weights.device()),
        })
    }

    /// The table.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// The type that looked-up rows have: f32, on a device what [`hidden_dtype`] says of the file's activations.
    pub fn dtype(&self) -> DType {
        self.rows
    }

    /// Rows `ids`, `(T, K)` of [`dtype`](Self::dtype).
    ///
    /// # Errors
    /// An id past the end of the table; a row whose scales or biases are not finite.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let (rows, cols) = (self.weight.n_rows(), self.weight.n_cols());
        if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= rows)) {
            return Err(Error::input("token id", format!("an id below {rows}"), id));
        }
        if let Weight::Device(w) = &self.weight {
            return w.rows(ids, FloatType::try_from(self.rows)?);
        }
        let mut out = vec![0.0; ids.len() * cols];
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(cols)) {
            let row = *id as usize;
            match &self.weight {
                Weight::Affine(w) => w.check_row(row)?,
                Weight::Mx(w) => w.check_row(row)?,
                Weight::Dense(_) | Weight::Device(_) => {}
            }
            self.weight.read_row(row, out);
        }
        Ok(Tensor::from_vec(out, (ids.len(), cols), &self.device)?)
    }
}

#[cfg(test)]
mod tests;
