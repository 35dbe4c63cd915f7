//! Weight matrices of any form: loading, and matmuls with them.

use candle_core::{DType, Device, Tensor};
use safetensors::Dtype;

use crate::affine::{AffineParts, AffineWeight};
use crate::bytes::Bytes;
use crate::cpu_values::Values;
use crate::dense::DenseWeight;
use crate::device_weight::DeviceWeight;
use crate::dtype::FloatType;
use crate::error::{Error, Result};
use crate::kernels::metal::runs_on;
use crate::kernels::{Addends, Matrix, Rows, matmul};
use crate::mx_formats::MxWeight;
use crate::scheme::{QuantMode, Scheme};
use crate::weights::{View, Weights};

/// A weight matrix `(R, K)` in the form its file holds.
#[derive(Clone)]
#[non_exhaustive]
pub enum Weight {
    /// `F32`, `F16` or `BF16` values.
    Dense(DenseWeight),
    /// MLX's affine format.
    Affine(AffineWeight),
    /// MLX's formats mxfp4, mxfp8 and nvfp4.
    Mx(MxWeight),
    /// A copy of a dense or affine weight on a device.
    Device(DeviceWeight),
}

impl Weight {
    /// Loads the matrix of the module at `weights` onto their device: dense if the file has no `scales` beside it.
    ///
    /// On the CPU no value is read: scales or biases that are not finite are an error of the first matmul or lookup.
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

    /// Copies the weight to `device`; on the CPU it stays as it is.
    ///
    /// # Errors
    /// Scales or biases that are not finite, a format without kernels for the device, out of memory there.
    pub fn to_device(self, device: &Device) -> Result<Self> {
        if !runs_on(device) || self.n_rows() == 0 {
            return Ok(self);
        }
        match self {
            Self::Dense(w) => DeviceWeight::dense(w, device).map(Self::Device),
            Self::Affine(w) => DeviceWeight::affine(w, device).map(Self::Device),
            Self::Mx(w) => {
                let expected = "dense or affine weights, which alone have kernels";
                Err(Error::setting("weights on a device", expected, w.scheme().mode()))
            }
            Self::Device(_) => Ok(self),
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
        Ok(Self::Affine(weight.with_precision(weights.affine_precision())))
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
            Self::Device(w) => w.host(),
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

    /// The stored parts, which a matmul with one token reads once.
    pub fn stored(&self) -> Vec<&[u8]> {
        self.rows().stored()
    }

    /// Number of stored bytes.
    pub fn bytes(&self) -> usize {
        self.stored().iter().map(|part| part.len()).sum()
    }

    /// Dequantizes, or widens, one row to f32.
    ///
    /// # Panics
    /// When `row` or the length of `out` does not fit.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        self.rows().read_row(row, out);
    }

    /// `x · Wᵀ` of f32 `(.., K)`: f32 `(.., R)`; on a device f16 and bf16 too, to the same dtype. Sums are f32.
    ///
    /// # Errors
    /// `x` of another width or dtype; scales or biases that are not finite.
    pub fn matmul(&self, x: &Tensor) -> Result<Tensor> {
        self.matmul_add(x, None, None)
    }

    /// [`matmul`](Self::matmul) plus a bias `(R)` and a residual `(.., R)`.
    pub(crate) fn matmul_add(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.check_input(x)?;
        if let Self::Device(w) = self {
            let y = w.matmul(&x.contiguous()?, bias)?;
            return residual.map_or(Ok(y.clone()), |residual| Ok((residual + y)?));
        }
        let (x, residual) = (x.contiguous()?, residual.map(Tensor::contiguous).transpose()?);
        let x = Values::of(&x)?;
        let bias = self.bias(bias)?;
        let residual = residual.as_ref().map(Values::of).transpose()?;
        let add = Addends { bias: bias.as_deref(), residual: residual.as_deref() };
        x.replaced(matmul(&x, self.count(&x), self.matrix()?, add), self.n_rows())
    }

    /// Borrows a bias and checks its length.
    pub(crate) fn bias<'b>(&self, bias: Option<&'b Tensor>) -> Result<Option<Values<'b>>> {
        let values = bias.map(Values::of).transpose()?;
        if values.as_ref().is_none_or(|values| values.len() == self.n_rows()) {
            Ok(values)
        } else {
            let found = format!("{:?}", bias.map(Tensor::dims));
            Err(Error::input("bias", format!("{} values", self.n_rows()), found))
        }
    }

    /// Number of tokens in x.
    pub(crate) fn count(&self, x: &[f32]) -> usize {
        x.len() / self.n_cols().max(1)
    }

    /// The operand of matmuls on the CPU, checked for values that are not finite.
    pub(crate) fn matrix(&self) -> Result<Matrix<'_>> {
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

    pub(crate) fn check_input(&self, x: &Tensor) -> Result<()> {
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

/// Files and name of a module, for errors.
fn module(weights: &Weights) -> String {
    format!("{}: {}", weights.files(), weights.path())
}
