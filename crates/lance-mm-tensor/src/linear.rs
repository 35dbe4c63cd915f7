//! Linear layers and embeddings over weights of either form.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Shape, Tensor};
use safetensors::Dtype;

use crate::affine::{AffineParts, AffineWeight};
use crate::dense::{DenseWeight, FloatType};
use crate::error::{Error, Result};
use crate::float_mode::FloatModeWeight;
use crate::kernels::metal::{self, DeviceWeight};
use crate::kernels::{Rows, affine_matmul, matmul};
use crate::quantization::{Mode, Scheme};
use crate::weights::{Bytes, View, Weights};

/// A weight matrix `(R, K)` in the form its file holds.
#[derive(Clone)]
#[non_exhaustive]
pub enum Weight {
    /// `F32`, `F16` or `BF16` values.
    Dense(DenseWeight),
    /// MLX's affine format.
    Affine(AffineWeight),
    /// One of MLX's floating modes.
    FloatMode(FloatModeWeight),
    /// One of these in buffers of a device.
    Device(DeviceWeight),
}

impl Weight {
    /// Loads the matrix of the module at `weights`, onto their device: dense when the file has no `scales` beside
    /// it.
    ///
    /// What is missing or contradictory is noted in `weights`; see [`Weights::check`]. On the CPU no value is read:
    /// scales or biases that are not finite are an error of the first product or lookup that reads them.
    ///
    /// # Errors
    /// As [`to_device`](Self::to_device).
    pub fn load(weights: &Weights, rows: usize, cols: usize) -> Result<Self> {
        Self::find(weights, rows, cols).to_device(weights.device())
    }

    fn find(weights: &Weights, rows: usize, cols: usize) -> Self {
        let weight = if weights.has("scales") {
            Self::find_quantized(weights, rows, cols)
        } else {
            if let Err(what) = weights.quantization().check_dense(weights.path()) {
                weights.note("weight", what);
            }
            weights.dense("weight", &[rows, cols], rows, cols).map(Self::Dense)
        };
        weight.unwrap_or_else(|| Self::Dense(DenseWeight::from_f32(&[], 1)))
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

    fn find_quantized(weights: &Weights, rows: usize, cols: usize) -> Option<Self> {
        let last = |name: &str| weights.info(name).and_then(|t| t.shape.last().copied()).unwrap_or(0);
        let has_biases = weights.has("biases");
        let scheme = match weights.quantization().scheme(
            weights.path(),
            cols,
            last("weight"),
            last("scales"),
            has_biases,
        ) {
            Ok(scheme) => scheme,
            Err(what) => {
                weights.note("weight", what);
                return None;
            }
        };
        let words = weights.view("weight", &[rows, scheme.words(cols)]);
        let groups = [rows, cols / scheme.group_size()];
        let scales = weights.view("scales", &groups);
        let (Some(words), Some(scales)) = (words, scales) else { return None };
        if words.dtype != Dtype::U32 {
            weights.note("weight", format!("expected packed U32 words, found {:?}", words.dtype));
            return None;
        }
        if scheme.mode() != Mode::Affine {
            return Self::float_mode(weights, words.bytes, scales, scheme, rows, cols);
        }
        let biases = weights.view("biases", &groups)?;
        let dtype = FloatType::of(scales.dtype).filter(|_| scales.dtype == biases.dtype);
        let Some(dtype) = dtype else {
            let found = format!("{:?} and {:?}", scales.dtype, biases.dtype);
            weights
                .note("scales", format!("expected scales and biases both F32, F16 or BF16, found {found}"));
            return None;
        };
        let parts = AffineParts { words: words.bytes, scales: scales.bytes, biases: biases.bytes, dtype };
        let name = format!("{}: {}", weights.files(), weights.path());
        let weight = AffineWeight::new(&name, parts, scheme, rows, cols);
        Some(Self::Affine(weight.with_products(weights.products())))
    }

    fn float_mode(
        weights: &Weights,
        words: Bytes,
        scales: View,
        scheme: Scheme,
        rows: usize,
        cols: usize,
    ) -> Option<Self> {
        for (part, what) in [("biases", "biases"), ("global_scale", "a global scale")] {
            if weights.has(part) {
                weights.note(part, format!("expected no {what} in mode {}", scheme.mode()));
                return None;
            }
        }
        if scales.dtype != Dtype::U8 {
            weights.note("scales", format!("expected U8, found {:?}", scales.dtype));
            return None;
        }
        Some(Self::FloatMode(FloatModeWeight::new(words, scales.bytes, scheme, rows, cols)))
    }

    fn rows(&self) -> &dyn Rows {
        match self {
            Self::Dense(w) => w,
            Self::Affine(w) => w,
            Self::FloatMode(w) => w,
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

    /// Bytes it is stored in: what a product with one row reads.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(w) => self.n_rows() * self.n_cols() * w.dtype().size(),
            Self::Affine(w) => w.word_bytes().len() + w.scale_bytes().len() + w.bias_bytes().len(),
            Self::FloatMode(w) => w.bytes(),
            Self::Device(w) => w.host().bytes(),
        }
    }

    /// One row widened to f32.
    ///
    /// # Panics
    /// When `row` or the length of `out` does not fit.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        self.rows().read_row(row, out);
    }

    /// `x · Wᵀ`: f32 `(.., K)` to f32 `(.., R)`.
    ///
    /// # Errors
    /// `x` of another width or dtype, or on a device without a kernel for this weight; scales or biases that are
    /// not finite.
    pub fn matmul(&self, x: &Tensor) -> Result<Tensor> {
        self.check_input(x)?;
        match self {
            Self::Device(w) => return w.matmul(&x.contiguous()?, None),
            Self::Affine(w) => w.check()?,
            Self::Dense(_) | Self::FloatMode(_) => {}
        }
        Ok(x.contiguous()?.apply_op1_no_bwd(self)?)
    }

    fn check_input(&self, x: &Tensor) -> Result<()> {
        if x.dims().last() != Some(&self.n_cols()) || x.dtype() != DType::F32 {
            let expected = format!("f32 rows of {}", self.n_cols());
            return Err(Error::input("linear input", expected, format!("{:?} {:?}", x.dtype(), x.dims())));
        }
        Ok(())
    }
}

/// A weight is itself the operation that is applied to activations.
impl CustomOp1 for Weight {
    fn name(&self) -> &'static str {
        match self {
            Self::Dense(_) => "dense-matmul",
            Self::Affine(_) => "affine-matmul",
            Self::FloatMode(_) => "float-mode-matmul",
            Self::Device(_) => "device-matmul",
        }
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.on_cpu(storage, layout, None)
    }
}

/// With a bias `(R)`.
impl CustomOp2 for Weight {
    fn name(&self) -> &'static str {
        CustomOp1::name(self)
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((start, end)) = bias_layout.contiguous_offsets().filter(|(a, b)| b - a == self.n_rows())
        else {
            candle_core::bail!("{} wants a bias of {} neighbours", CustomOp1::name(self), self.n_rows())
        };
        self.on_cpu(x, x_layout, Some(&bias.as_slice::<f32>()?[start..end]))
    }
}

impl Weight {
    fn on_cpu(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        bias: Option<&[f32]>,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("{} wants contiguous rows", CustomOp1::name(self))
        };
        let x = &x.as_slice::<f32>()?[start..end];
        let mut dims = layout.dims().to_vec();
        let Some(last) = dims.last_mut() else { candle_core::bail!("{} wants rows", CustomOp1::name(self)) };
        *last = self.n_rows();
        let n = dims[..dims.len() - 1].iter().product();
        let integer = match self {
            Self::Affine(w) => w.integer(),
            Self::Dense(_) | Self::FloatMode(_) | Self::Device(_) => None,
        };
        let y = integer.map_or_else(|| matmul(x, n, self.rows(), bias), |w| affine_matmul(x, n, &w, bias));
        Ok((CpuStorage::F32(y), Shape::from(dims)))
    }
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
            weights.note("bias", "expected none");
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

    /// f32 `(.., K)` to f32 `(.., R)`.
    ///
    /// # Errors
    /// As [`Weight::matmul`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Weight::Device(w) = &self.weight {
            self.weight.check_input(x)?;
            return w.matmul(&x.contiguous()?, self.bias.as_ref());
        }
        let Some(bias) = &self.bias else { return self.weight.matmul(x) };
        self.weight.check_input(x)?;
        if let Weight::Affine(w) = &self.weight {
            w.check()?;
        }
        Ok(x.contiguous()?.apply_op2_no_bwd(bias, &self.weight)?)
    }
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
}

impl Embedding {
    /// Loads a table `(n_rows, n_cols)`.
    ///
    /// # Errors
    /// As [`Weight::load`].
    pub fn load(weights: &Weights, n_rows: usize, n_cols: usize) -> Result<Self> {
        Ok(Self { weight: Weight::load(weights, n_rows, n_cols)?, device: weights.device().clone() })
    }

    /// The table.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Rows `ids`, f32 `(T, K)`.
    ///
    /// # Errors
    /// An id past the end of the table; a row whose scales or biases are not finite.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let (rows, cols) = (self.weight.n_rows(), self.weight.n_cols());
        if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= rows)) {
            return Err(Error::input("token id", format!("an id below {rows}"), id));
        }
        if let Weight::Device(w) = &self.weight {
            return w.rows(ids);
        }
        let mut out = vec![0.0; ids.len() * cols];
        for (id, out) in ids.iter().zip(out.chunks_exact_mut(cols)) {
            let row = *id as usize;
            if let Weight::Affine(w) = &self.weight {
                w.check_row(row)?;
            }
            self.weight.read_row(row, out);
        }
        Ok(Tensor::from_vec(out, (ids.len(), cols), &self.device)?)
    }
}

#[cfg(test)]
mod tests;
