//! Values of tensors on the CPU, where they lie.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, Storage, StorageRef, Tensor};

use crate::error::{Error, Result};

/// The f32 values of a tensor, one after another.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    dims: &'a [usize],
}

impl<'a> Values<'a> {
    /// The values of `tensor`.
    ///
    /// # Errors
    /// A tensor on a device, of another type, or whose values lie in another order.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        match (&*storage, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => {
                Ok(Self { storage, range: start..end, dims: layout.dims() })
            }
            _ => {
                let found = format!("{:?} {layout:?} on {:?}", tensor.dtype(), tensor.device().location());
                Err(Error::input("tensor", "f32 values in order on the CPU", found))
            }
        }
    }

    /// A tensor of the same rows, `width` other values each.
    ///
    /// # Errors
    /// Another number of values.
    pub(crate) fn replaced(&self, values: Vec<f32>, width: usize) -> Result<Tensor> {
        let rows = &self.dims[..self.dims.len().saturating_sub(1)];
        Ok(Tensor::from_vec(values, [rows, &[width]].concat(), &Device::Cpu)?)
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => unreachable!("`of` looked"),
        }
    }
}
