//! The folder in which a run keeps what is finished, so that the next one can go on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::report;

/// A hidden sibling of the output folder. Files are written under another name and renamed: what has its
/// name is whole.
pub(crate) struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// Opens or makes the work folder of `out`; `None` when `out` is there, made by this very plan.
    pub(crate) fn open(out: &Path, plan: &Value) -> Result<Option<Self>> {
        let name = out.file_name().with_context(|| format!("{}: no name to write to", out.display()))?;
        let path = out.with_file_name(format!(".{}.work", name.to_string_lossy()));
        let work = Self { path };
        let stored = work.read_json("plan.json")?;
        if out.exists() {
            let report = out.join(report::FILE);
            let report: Option<Value> =
                fs::read(report).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if report.as_ref().is_none_or(|report| report["plan"] != *plan) {
                bail!(
                    "{}: expected a folder that does not exist yet, found {}",
                    out.display(),
                    if report.is_some() { "what other settings or inputs gave" } else { "one" }
                );
            }
            // An earlier run got this far; it may have been stopped before its clean-up.
            if work.path.exists() {
                work.remove()?;
            }
            return Ok(None);
        }
        match stored {
            Some(stored) if stored == *plan => {}
            Some(_) => bail!(
                "{}: left by a run with other settings or inputs; remove it, or run that command again",
                work.path.display()
            ),
            None => {
                fs::create_dir_all(&work.path).with_context(|| work.path.display().to_string())?;
                work.write("plan.json", plan.to_string().as_bytes())?;
            }
        }
        Ok(Some(work))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.file(name).is_file()
    }

    /// Writes a file whole.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write_with(name, |path| Ok(fs::write(path, bytes)?))
    }

    /// Lets `fill` write a file under another name, and renames it.
    pub(crate) fn write_with(&self, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let path = self.file(name);
        let partial = self.file(&format!("{name}.partial"));
        fill(&partial).with_context(|| partial.display().to_string()).inspect_err(|_| {
            // A disk that is full has better use for the space.
            let _ = fs::remove_file(&partial);
        })?;
        fs::rename(&partial, &path).with_context(|| path.display().to_string())
    }

    pub(crate) fn read_json(&self, name: &str) -> Result<Option<Value>> {
        let path = self.file(name);
        match path.is_file() {
            false => Ok(None),
            true => {
                let value = serde_json::from_slice(&crate::quantize::read(&path)?);
                Ok(Some(value.with_context(|| path.display().to_string())?))
            }
        }
    }

    /// Removes a file that is of no use any more.
    pub(crate) fn forget(&self, name: &str) -> Result<()> {
        let path = self.file(name);
        match path.exists() {
            true => fs::remove_file(&path).with_context(|| path.display().to_string()),
            false => Ok(()),
        }
    }

    pub(crate) fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.path).with_context(|| self.path.display().to_string())
    }
}
