//! Embedding tables.

use candle_core::{DType, Device, Tensor};

use crate::device::hidden_dtype;
use crate::dtype::FloatType;
use crate::error::{Error, Result};
use crate::weight::Weight;
use crate::weights::Weights;

/// An embedding table; only the rows that are looked up are dequantized.
#[derive(Clone)]
pub struct Embedding {
    weight: Weight,
    device: Device,
    /// Dtype of looked-up rows.
    dtype: DType,
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
            dtype: hidden_dtype(weights.activation_precision(), weights.device()),
        })
    }

    /// The table.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Dtype of looked-up rows: [`hidden_dtype`] of the weights' activation precision and device.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Looks up rows `ids`: `(T, K)` of [`dtype`](Self::dtype).
    ///
    /// # Errors
    /// An id past the end of the table; a row whose scales or biases are not finite.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let (rows, cols) = (self.weight.n_rows(), self.weight.n_cols());
        if let Some(id) = ids.iter().find(|id| usize::try_from(**id).map_or(true, |id| id >= rows)) {
            return Err(Error::input("token id", format!("an id below {rows}"), id));
        }
        if let Weight::Device(w) = &self.weight {
            return w.rows(ids, FloatType::try_from(self.dtype)?);
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
