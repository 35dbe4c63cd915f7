//! Writing a folder whole or not at all.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

/// Lets `fill` write into a temporary sibling of `dst` and renames it when all is there.
pub(crate) fn write<T>(dst: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if dst.exists() {
        bail!("{}: expected a folder that does not exist yet", dst.display());
    }
    let name = dst.file_name().with_context(|| format!("{}: no name to write to", dst.display()))?;
    let temporary = dst.with_file_name(format!(".{}.partial", name.to_string_lossy()));
    if temporary.exists() {
        fs::remove_dir_all(&temporary).with_context(|| temporary.display().to_string())?;
    }
    fs::create_dir_all(&temporary).with_context(|| temporary.display().to_string())?;
    let filled = fill(&temporary).inspect_err(|_| {
        // The error that stopped the writing says more than one about the clean-up.
        let _ = fs::remove_dir_all(&temporary);
    })?;
    fs::rename(&temporary, dst).with_context(|| dst.display().to_string())?;
    Ok(filled)
}
