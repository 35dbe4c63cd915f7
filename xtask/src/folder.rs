//! Writing a folder whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Lets `fill` write into a temporary sibling of `dst` and renames it when all is there.
pub(crate) fn write<T>(dst: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if dst.exists() {
        bail!("{}: expected a folder that does not exist yet", dst.display());
    }
    let partial = sibling(dst, "partial")?;
    let filled = fill(&partial).inspect_err(|_| {
        // The error that stopped the writing says more than one about the clean-up.
        let _ = fs::remove_dir_all(&partial);
    })?;
    fs::rename(&partial, dst).with_context(|| dst.display().to_string())?;
    Ok(filled)
}

/// Lends `run` an empty folder beside `dst`, which is removed afterwards.
pub(crate) fn temporary<T>(dst: &Path, what: &str, run: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let folder = sibling(dst, what)?;
    let result = run(&folder);
    let removed = fs::remove_dir_all(&folder).with_context(|| folder.display().to_string());
    let value = result?;
    removed.map(|()| value)
}

/// An empty folder `.DST.WHAT` beside `dst`; what an interrupted run left there is removed.
fn sibling(dst: &Path, what: &str) -> Result<PathBuf> {
    let name = dst.file_name().with_context(|| format!("{}: no name to write to", dst.display()))?;
    let folder = dst.with_file_name(format!(".{}.{what}", name.to_string_lossy()));
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}
