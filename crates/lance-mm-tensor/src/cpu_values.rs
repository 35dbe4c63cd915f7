//! Borrowed f32 values of tensors on the CPU.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Device, Storage, StorageRef, Tensor};

use crate::device::{download, with_autorelease_pool};
use crate::error::{Error, Result};

/// Calls `read` with the f32 values of `tensor`, in order: borrowed if it is contiguous on the CPU, else copied.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use lance_mm_tensor::read_values;
///
/// let tensor = Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
/// assert_eq!(read_values(&tensor, |values| values.iter().sum::<f32>())?, 10.0);
/// # Ok::<(), lance_mm_tensor::Error>(())
/// ```
///
/// # Errors
/// A tensor of another dtype.
pub fn read_values<T>(tensor: &Tensor, read: impl FnOnce(&[f32]) -> T) -> Result<T> {
    match Values::of(tensor) {
        Ok(values) => Ok(read(&values)),
        Err(_) => {
            Ok(read(&with_autorelease_pool(|| download(tensor, &Device::Cpu)?.flatten_all()?.to_vec1())?))
        }
    }
}

/// The borrowed f32 values of a contiguous tensor on the CPU.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
    dims: &'a [usize],
}

impl<'a> Values<'a> {
    /// Borrows the values of `tensor`.
    ///
    /// # Errors
    /// A tensor on a device, of another dtype, or not contiguous.
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

    /// Makes a tensor of the same shape but for the last axis, which is `width`.
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
