//! The conversion: open, check, write, verify.

use std::path::Path;

use lance_mm_pipelines::checkpoint::CheckpointLayout;
use lance_mm_tensor::StopFlag;

use crate::error::{Error, Result};
use crate::file_tensor::FileTensor;
use crate::folder;
use crate::parts::Parts;
use crate::report::ConvertReport;
use crate::verify::{self, RoundTrip};
use crate::write::TargetLayout;

/// Choices of a conversion.
#[derive(Clone, Debug, Default)]
pub struct ConvertOptions {
    /// Layout to write.
    pub to: TargetLayout,
    /// Keep the UND expert and the vision encoder only: all that questions need, about half of the bytes.
    pub und_only: bool,
    /// Convert the result back, into a temporary folder beside it, and compare every tensor with the source.
    pub verify: bool,
    /// Ends the conversion with [`Error::Stopped`] between two tensors.
    pub stop: StopFlag,
}

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

/// Converts the checkpoint `source` into the new folder `out`.
///
/// `source` is a folder of the original release (`Lance_3B`, `Lance_3B_Video`), of a third party's F32 export, or in
/// the dense MLX layout, in one file or in shards. A folder with nothing but a VAE, or its `.pth`, is converted alone.
/// Of a quantized checkpoint, which is never turned back into a dense one, only [`ConvertOptions::und_only`] makes a
/// copy.
///
/// Every tensor is checked against the configuration before anything is written. Everything is written into a hidden
/// sibling of `out`, which is renamed when all of it is on the disk. `observer` is called after each tensor, with
/// [`ConvertOptions::verify`] also for those on the way back.
///
/// # Errors
/// A source that cannot be read, is of another layout, or whose tensors do not fit its configuration; `out` exists; a
/// full disk; the stop flag. A round trip that differs is no error: see [`ConvertReport::passed`].
pub fn convert(
    source: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &ConvertOptions,
    observer: &mut dyn FnMut(Written<'_>),
) -> Result<ConvertReport> {
    let out = out.as_ref();
    let parts = Parts::open(source.as_ref(), options.und_only)?;
    let mut progress = Progress::new(&parts, &options.stop, observer);
    folder::write(out, |dir| options.to.write(&parts, dir, &mut progress))?;
    let mut report = ConvertReport::new(&parts);
    if options.verify {
        report.round_trip = round_trip(&parts, out, options, observer)?;
    }
    Ok(report)
}

/// Converts `out` back and compares.
fn round_trip(
    first: &Parts,
    out: &Path,
    options: &ConvertOptions,
    observer: &mut dyn FnMut(Written<'_>),
) -> Result<Vec<RoundTrip>> {
    let quantized = first.is_quantized();
    let there = Parts::open(&options.to.written(first, out), quantized)?;
    let to = match (first.layout, options.to) {
        (Some(CheckpointLayout::Mlx | CheckpointLayout::MlxQuantized), _)
        | (None, TargetLayout::Upstream) => TargetLayout::MlxBf16,
        _ => TargetLayout::Upstream,
    };
    folder::temporary(out, "back", |dir| {
        to.write(&there, dir, &mut Progress::new(&there, &options.stop, observer))?;
        let back = Parts::open(&to.written(&there, dir), quantized)?;
        verify::compare(first, &back, &options.stop)
    })
}

/// Bytes that are done, the flag that stops and whom to tell.
pub(crate) struct Progress<'a> {
    stop: &'a StopFlag,
    observer: &'a mut dyn FnMut(Written<'_>),
    done: u64,
    total: u64,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(parts: &Parts, stop: &'a StopFlag, observer: &'a mut dyn FnMut(Written<'_>)) -> Self {
        Self { stop, observer, done: 0, total: parts.tensors().map(FileTensor::bytes).sum() }
    }

    /// To be called after a tensor was written.
    pub(crate) fn wrote(&mut self, tensor: &FileTensor) -> Result<()> {
        self.done += tensor.bytes();
        (self.observer)(Written { tensor: &tensor.name, done: self.done, total: self.total });
        self.stop.check().map_err(Error::from)
    }
}
