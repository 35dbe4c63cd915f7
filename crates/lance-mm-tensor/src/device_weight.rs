//! Weights on a device.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::affine::AffineWeight;
use crate::dense::DenseWeight;
use crate::dtype::FloatType;
use crate::error::{Error, Result};
use crate::kernels::Rows;
use crate::kernels::metal::{
    AffineShape, DenseShape, KernelPlan, affine_matmul, affine_rows, apply, dense_matmul, dense_rows,
};

/// A weight copied to a device as it is stored, and the one in memory that it was copied from, which still gives the
/// shape and single rows. Cloning shares the buffers.
#[derive(Clone)]
pub struct DeviceWeight {
    host: Arc<dyn Rows>,
    form: Form,
    /// Words, scales and biases of an affine matrix, the values of a dense one: as bytes, whatever their dtype.
    parts: Vec<Tensor>,
}

#[derive(Clone, Copy)]
enum Form {
    Affine(AffineShape),
    Dense(DenseShape),
}

impl DeviceWeight {
    /// Copies an affine matrix to a device.
    ///
    /// # Errors
    /// Scales or biases that are not finite; a matrix too large for kernels, or read as `mx.dequantize` reads it.
    pub(crate) fn affine(w: AffineWeight, device: &Device) -> Result<Self> {
        if w.is_rounded() {
            let found = "those of dequantized weights";
            return Err(Error::setting("matmuls on a device", "matmuls in f32", found));
        }
        w.check()?;
        let form = Form::Affine(AffineShape::new(w.scheme(), w.n_rows(), w.n_cols(), w.dtype()));
        Self::upload(Arc::new(w), form, device)
    }

    /// Copies a dense matrix to a device.
    ///
    /// # Errors
    /// A matrix too large for kernels.
    pub(crate) fn dense(w: DenseWeight, device: &Device) -> Result<Self> {
        let form = Form::Dense(DenseShape { rows: w.n_rows(), cols: w.n_cols(), float: w.dtype() });
        Self::upload(Arc::new(w), form, device)
    }

    fn upload(host: Arc<dyn Rows>, form: Form, device: &Device) -> Result<Self> {
        let (rows, cols) = (host.n_rows(), host.n_cols());
        // Kernels count values in 32 bits.
        if rows.checked_mul(cols).is_none_or(|n| u32::try_from(n).is_err()) {
            let found = format!("{rows} x {cols}");
            return Err(Error::setting("matrix on a device", "fewer than 2^32 values", found));
        }
        let upload = |bytes: &[u8]| Tensor::from_slice(bytes, bytes.len(), device);
        let parts = host.stored().into_iter().map(upload).collect::<candle_core::Result<_>>()?;
        Ok(Self { host, form, parts })
    }

    /// The weight in memory.
    pub(crate) fn host(&self) -> &dyn Rows {
        &*self.host
    }

    /// `x · Wᵀ`, plus `bias` f32 `(R)` if given: `(.., K)`, contiguous, to `(.., R)` of the same dtype.
    pub(crate) fn matmul(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let n = x.elem_count() / self.host.n_cols();
        let float = FloatType::try_from(x.dtype())?;
        let plan = match &self.form {
            Form::Affine(w) => affine_matmul(w, n, float, bias.is_some()),
            Form::Dense(w) => dense_matmul(w, n, float, bias.is_some()),
        };
        let mut shape = x.dims().to_vec();
        shape.pop();
        shape.push(self.host.n_rows());
        self.run(&plan, [Some(x), bias], &shape)
    }

    /// Looks up rows `ids`, all below `R`: `(n, K)` of dtype `out`.
    pub(crate) fn rows(&self, ids: &[u32], out: FloatType) -> Result<Tensor> {
        let plan = match &self.form {
            Form::Affine(w) => affine_rows(w, ids.len(), out),
            Form::Dense(w) => dense_rows(w, ids.len(), out),
        };
        let (shape, device) = ([ids.len(), self.host.n_cols()], self.parts[0].device());
        // Metal has no empty buffers.
        if ids.is_empty() {
            return Ok(Tensor::zeros(&shape, out.into(), device)?);
        }
        self.run(&plan, [Some(&Tensor::new(ids, device)?), None], &shape)
    }

    fn run(&self, plan: &KernelPlan, others: [Option<&Tensor>; 2], shape: &[usize]) -> Result<Tensor> {
        let (len, float) = plan.output();
        if len == 0 {
            return Ok(Tensor::zeros(shape, float.into(), self.parts[0].device())?);
        }
        let inputs: Vec<&Tensor> = self.parts.iter().chain(others.into_iter().flatten()).collect();
        apply(plan, &inputs, shape)
    }
}
