//! The conversion: open, check, write, verify.

use std::path::Path;

use lance_mm_pipelines::checkpoint::CheckpointLayout;
use lance_mm_pipelines::staged::StagedFolder;
use lance_mm_tensor::StopFlag;

use crate::error::{Error, Result};
use crate::parts::Parts;
use crate::progress::{Progress, Written};
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

/// Converts the checkpoint `source` into the new folder `out`.
///
/// `source` is a folder of the original release (`Lance_3B`, `Lance_3B_Video`), of a third party's F32 export, or in
/// the dense MLX layout, in one file or in shards. A folder with nothing but a VAE, or its `.pth`, is converted alone.
/// Of a quantized checkpoint, which is never turned back into a dense one, only [`ConvertOptions::und_only`] makes a
/// copy.
///
/// Every tensor is checked against the configuration before anything is written. Everything is written into a hidden
/// sibling of `out`, which is renamed when all of it is on the disk and the files of the source are still those that
/// were opened. `observer` is called after each tensor, with [`ConvertOptions::verify`] also for those on the way back.
///
/// # Errors
/// A source that cannot be read, is of another layout, changes meanwhile, or whose tensors do not fit its configuration;
/// a finite value that the written type does not hold; `out` is anything but an empty folder; a full disk; the stop
/// flag. A round trip that differs is no error: see [`ConvertReport::passed`].
pub fn convert(
    source: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: &ConvertOptions,
    observer: &mut dyn FnMut(Written<'_>),
) -> Result<ConvertReport> {
    let out = out.as_ref();
    let parts = Parts::open(source.as_ref(), options.und_only)?;
    let folder = StagedFolder::create(out).map_err(Error::io(out))?;
    let mut progress = Progress::new(parts.bytes(), &options.stop, observer);
    options.to.write(&parts, folder.path(), &mut progress)?;
    let mut report = ConvertReport::new(&parts, progress.not_finite);
    parts.check_unchanged()?;
    folder.commit().map_err(Error::io(out))?;
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
    // Beside `out`, which has no such entry, and never committed.
    let beside = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = StagedFolder::create_in(beside, &out.join("back")).map_err(Error::io(out))?;
    to.write(&there, folder.path(), &mut Progress::new(there.bytes(), &options.stop, observer))?;
    let back = Parts::open(&to.written(&there, folder.path()), quantized)?;
    verify::compare(first, &back, &options.stop)
}
