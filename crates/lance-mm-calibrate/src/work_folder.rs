//! The folder in which a run keeps finished parts, so that the next one resumes.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::quantize::read;
use crate::report;

/// A hidden sibling of the output folder. Files are written under another name and renamed: what has its
/// name is whole.
pub(crate) struct WorkFolder {
    path: PathBuf,
}

impl WorkFolder {
    /// Opens or makes the work folder of `out`; `None` when `out` exists, made by this very plan.
    pub(crate) fn open(out: &Path, plan: &Value) -> Result<Option<Self>> {
        let path = out.with_file_name(format!(".{}.work", file_name(out)?.to_string_lossy()));
        let work = Self { path };
        let stored = work.read_json::<Value>("plan.json")?;
        if out.exists() {
            let report = out.join(report::FILE);
            let report: Option<Value> =
                fs::read(report).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if report.as_ref().is_none_or(|report| report["plan"] != *plan) {
                let found = if report.is_some() { "the result of other settings or inputs" } else { "one" };
                return Err(Error::OutputExists { path: out.to_owned(), found });
            }
            // An earlier run got this far; it may have been stopped before its clean-up.
            if work.path.exists() {
                work.remove()?;
            }
            return Ok(None);
        }
        match stored {
            Some(stored) if stored == *plan => {}
            Some(_) => return Err(Error::OtherRun { path: work.path }),
            None => {
                fs::create_dir_all(&work.path).map_err(Error::io(&work.path))?;
                work.write_json("plan.json", plan)?;
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
    pub(crate) fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let bytes = serde_json::to_vec(value).map_err(|error| Error::file(name, error))?;
        self.write_with(name, |path| fs::write(path, bytes).map_err(Error::io(path)))
    }

    /// Lets `fill` write a file under another name, and renames it.
    pub(crate) fn write_with(&self, name: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let path = self.file(name);
        let partial = self.file(&format!("{name}.partial"));
        fill(&partial).inspect_err(|_| {
            // A disk that is full has better use for the space.
            let _ = fs::remove_file(&partial);
        })?;
        fs::rename(&partial, &path).map_err(Error::io(&path))
    }

    /// Reads a file, if it exists.
    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let path = self.file(name);
        if !path.is_file() {
            return Ok(None);
        }
        serde_json::from_slice(&read(&path)?).map(Some).map_err(Error::at(&path))
    }

    /// Reads a file that an earlier stage has written.
    pub(crate) fn require<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        self.read_json(name)?.ok_or_else(|| Error::file(self.file(name).display(), "missing"))
    }

    /// Removes a file that is of no use any more.
    pub(crate) fn forget(&self, name: &str) -> Result<()> {
        let path = self.file(name);
        if path.exists() { fs::remove_file(&path).map_err(Error::io(&path)) } else { Ok(()) }
    }

    pub(crate) fn remove(&self) -> Result<()> {
        fs::remove_dir_all(&self.path).map_err(Error::io(&self.path))
    }
}

/// The name of the folder that is written.
pub(crate) fn file_name(out: &Path) -> Result<&OsStr> {
    out.file_name().ok_or_else(|| Error::file(out.display(), "expected a path that ends in a name"))
}
