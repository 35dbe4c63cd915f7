//! Reading and copying files of the source and of the work folder.

use std::path::Path;

use crate::error::{Error, Result};

/// Name of the report in a checkpoint's folder.
pub(crate) const REPORT: &str = "quantization_report.json";

/// Copies a file; errors name the new one.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(drop).map_err(Error::io(to))
}

/// Reads a file; errors name it.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(Error::io(path))
}
