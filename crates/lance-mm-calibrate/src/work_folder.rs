//! The folder in which a run keeps finished parts, so that the next one resumes.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{fs, io};

use lance_mm_pipelines::staged::{FolderLock, StagedFile, StagedFolder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::files::{REPORT, read};

/// The file that tells the work folder from others, written first.
const PLAN: &str = "plan.json";
/// The file by which one run at a time holds the folder.
const LOCK: &str = "lock";

/// A hidden sibling of the output folder, locked while this value lives. Files are written under another name and
/// renamed: what has its name is whole.
pub(crate) struct WorkFolder {
    path: PathBuf,
    /// `None` once the folder is removed.
    lock: Option<FolderLock>,
}

impl WorkFolder {
    /// Opens or makes the work folder of `out`; `None` when `out` exists, made by this very plan.
    ///
    /// # Errors
    /// Another run that holds the folder; a folder, file or link of this name that no run has made, which stays as it is;
    /// an `out` or a work folder of another plan.
    pub(crate) fn open(out: &Path, plan: &Value) -> Result<Option<Self>> {
        let path = out.with_file_name(format!(".{}.work", file_name(out)?.to_string_lossy()));
        let mut work = Self::locked(path)?;
        let stored = work.read_json::<Value>(PLAN)?;
        if fs::symlink_metadata(out).is_ok() {
            let report = out.join(REPORT);
            let report: Option<Value> =
                fs::read(report).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if report.as_ref().is_none_or(|report| report["plan"] != *plan) {
                work.remove_own(stored.as_ref(), plan)?;
                let found = if report.is_some() { "the result of other settings or inputs" } else { "one" };
                return Err(Error::OutputExists { path: out.to_owned(), found });
            }
            // An earlier run got this far; it may have been stopped before its clean-up.
            work.remove_own(stored.as_ref(), plan)?;
            return Ok(None);
        }
        match stored {
            Some(stored) if stored == *plan => work.remove_unfinished()?,
            Some(_) => return Err(Error::OtherRun { path: work.path }),
            None => work.write_json(PLAN, plan)?,
        }
        Ok(Some(work))
    }

    /// Makes or finds the folder and locks it.
    fn locked(path: PathBuf) -> Result<Self> {
        // A run that ends removes the folder between two steps of this one, which then begins again.
        for _ in 0..100 {
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                fs::create_dir_all(parent).map_err(Error::io(parent))?;
            }
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::require_own(&path)?,
                made => made.map_err(Error::io(&path))?,
            }
            match FolderLock::at(&path.join(LOCK)) {
                Ok(Some(lock)) => return Ok(Self { path, lock: Some(lock) }),
                Ok(None) => return Err(Error::Busy { path }),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::io(&path)(error)),
            }
        }
        Err(Error::Busy { path })
    }

    /// Refuses what has the folder's name and was not made by a run.
    fn require_own(path: &Path) -> Result<()> {
        let foreign = |found| Err(Error::OutputExists { path: path.to_owned(), found });
        match fs::symlink_metadata(path) {
            Ok(found) if !found.is_dir() => return foreign("a file or link"),
            // Gone again.
            Err(_) => return Ok(()),
            Ok(_) => {}
        }
        let names: Vec<_> = fs::read_dir(path)
            .map_err(Error::io(path))?
            .filter_map(|entry| Some(entry.ok()?.file_name()))
            // A plan that is being written.
            .filter(|name| name != LOCK && !name.to_string_lossy().starts_with(".plan.json."))
            .collect();
        if names.is_empty() || names.iter().any(|name| name == PLAN) {
            return Ok(());
        }
        foreign("a folder that no quantization has made")
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
        let staged = StagedFile::create(&path).map_err(Error::io(&path))?;
        fill(staged.path())?;
        staged.commit().map_err(Error::io(&path))
    }

    /// Lets `fill` write the output folder `out` in this one, and renames it.
    pub(crate) fn write_folder(&self, out: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let staged = StagedFolder::create_in(&self.path, out).map_err(Error::io(out))?;
        fill(staged.path())?;
        staged.commit().map_err(Error::io(out))
    }

    /// Removes hidden files and folders that an ended run has left half written.
    fn remove_unfinished(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let entry = entry.map_err(Error::io(&self.path))?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io(&self.path))?);
                if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                    .map_err(Error::io(&path))?;
            }
        }
        Ok(())
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

    /// Removes the folder if it is of this plan, or has nothing but the lock.
    fn remove_own(&mut self, stored: Option<&Value>, plan: &Value) -> Result<()> {
        let names = fs::read_dir(&self.path).map_err(Error::io(&self.path))?;
        let is_empty = names.flatten().all(|entry| entry.file_name() == LOCK);
        if stored == Some(plan) || is_empty { self.remove() } else { Ok(()) }
    }

    /// Removes the folder and lets the next run have its name.
    pub(crate) fn remove(&mut self) -> Result<()> {
        let gone = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        };
        for entry in fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let entry = entry.map_err(Error::io(&self.path))?;
            let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io(&self.path))?);
            if entry.file_name() != LOCK {
                let removed = if kind.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(Error::io(&path))?;
            }
        }
        // Windows does not remove a file that is locked.
        if cfg!(windows) {
            self.lock = None;
        }
        gone(fs::remove_file(self.file(LOCK))).map_err(Error::io(&self.path))?;
        self.lock = None;
        match fs::remove_dir(&self.path) {
            // Another run waits in it, and finds this one's result.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            removed => gone(removed).map_err(Error::io(&self.path)),
        }
    }
}

/// The name of the folder that is written.
pub(crate) fn file_name(out: &Path) -> Result<&OsStr> {
    out.file_name().ok_or_else(|| Error::file(out.display(), "expected a path that ends in a name"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_run_at_a_time_has_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let (out, plan) = (dir.path().join("sub/out"), json!({"bits": 4}));
        let mut work = WorkFolder::open(&out, &plan).unwrap().unwrap();
        assert!(matches!(WorkFolder::open(&out, &plan), Err(Error::Busy { .. })));
        drop(work);
        // What a run that was killed left half written is removed, and what it finished stays.
        work = WorkFolder::open(&out, &plan).unwrap().unwrap();
        work.write_json("part.json", &1).unwrap();
        fs::create_dir(work.file(".out.half")).unwrap();
        fs::write(work.file(".out.half/model.safetensors"), "half").unwrap();
        drop(work);
        assert!(matches!(WorkFolder::open(&out, &json!({"bits": 3})), Err(Error::OtherRun { .. })));
        work = WorkFolder::open(&out, &plan).unwrap().unwrap();
        assert!(work.has("part.json") && !work.file(".out.half").exists());
        work.write_folder(&out, |dir| {
            fs::write(dir.join(REPORT), json!({ "plan": &plan }).to_string()).map_err(Error::io(dir))
        })
        .unwrap();
        work.remove().unwrap();
        assert!(WorkFolder::open(&out, &plan).unwrap().is_none());
        assert!(matches!(WorkFolder::open(&out, &json!({})), Err(Error::OutputExists { .. })));
        assert_eq!(fs::read_dir(dir.path().join("sub")).unwrap().count(), 1);
    }

    #[test]
    fn nothing_foreign_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (out, work) = (dir.path().join("out"), dir.path().join(".out.work"));
        fs::create_dir(&work).unwrap();
        fs::write(work.join("diary.txt"), "precious").unwrap();
        assert!(matches!(WorkFolder::open(&out, &json!({})), Err(Error::OutputExists { .. })));
        assert_eq!(fs::read_dir(&work).unwrap().count(), 1);
        fs::rename(work.join("diary.txt"), work.join(".diary")).unwrap();
        assert!(matches!(WorkFolder::open(&out, &json!({})), Err(Error::OutputExists { .. })));
        // Beside a finished result, a folder of another plan stays.
        fs::write(work.join(PLAN), "{}").unwrap();
        fs::create_dir(&out).unwrap();
        let plan = json!({"bits": 4});
        fs::write(out.join(REPORT), json!({ "plan": &plan }).to_string()).unwrap();
        assert!(WorkFolder::open(&out, &plan).unwrap().is_none());
        assert!(work.join(".diary").exists());
        fs::remove_dir_all(&out).unwrap();
        #[cfg(unix)]
        {
            let other = dir.path().join("other");
            std::os::unix::fs::symlink(&work, dir.path().join(".other.work")).unwrap();
            assert!(matches!(WorkFolder::open(&other, &json!({})), Err(Error::OutputExists { .. })));
        }
    }
}
