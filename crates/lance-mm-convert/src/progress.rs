//! Progress of a conversion.

use lance_mm_tensor::StopFlag;

use crate::error::{Error, Result};
use crate::file_tensor::FileTensor;

/// A tensor that was written.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Written<'a> {
    /// Its name in the file.
    pub tensor: &'a str,
    /// Bytes of the source that are done.
    pub done: u64,
    /// Bytes of the source in all.
    pub total: u64,
}

/// Bytes that are done of a total, the flag that stops, and the observer.
pub(crate) struct Progress<'a> {
    stop: &'a StopFlag,
    observer: &'a mut dyn FnMut(Written<'_>),
    done: u64,
    total: u64,
    /// Tensors with values that are not finite.
    pub(crate) not_finite: Vec<String>,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(total: u64, stop: &'a StopFlag, observer: &'a mut dyn FnMut(Written<'_>)) -> Self {
        Self { stop, observer, done: 0, total, not_finite: Vec::new() }
    }

    /// To be called after a tensor was written, whose values were all `finite` or not.
    pub(crate) fn wrote(&mut self, tensor: &FileTensor, finite: bool) -> Result<()> {
        if !finite {
            self.not_finite.push(tensor.name.clone());
        }
        self.done += tensor.bytes();
        (self.observer)(Written { tensor: &tensor.name, done: self.done, total: self.total });
        self.stop.check().map_err(Error::from)
    }
}
