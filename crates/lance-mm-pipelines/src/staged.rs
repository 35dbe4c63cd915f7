//! Output files and folders that appear under their names whole or not at all.
//!
//! Each is written under a hidden name beside its own that nobody can foretell, made with `create_new`, flushed to the
//! disk with its folder, and renamed. Nothing that exists is written through or removed, links included. A process that
//! is killed leaves the hidden file or folder; [`abandon`] removes them for a handler of signals.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tempfile::{Builder, NamedTempFile, TempDir};

/// Hidden files and folders of this process that are not committed yet.
struct Unfinished {
    paths: BTreeSet<PathBuf>,
    abandoned: bool,
}

static UNFINISHED: Mutex<Unfinished> = Mutex::new(Unfinished { paths: BTreeSet::new(), abandoned: false });

/// Locks the list. After [`abandon`] nothing is created or renamed any more.
fn unfinished() -> io::Result<MutexGuard<'static, Unfinished>> {
    let list = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    if list.abandoned {
        return Err(io::Error::new(io::ErrorKind::Interrupted, "the process is ending"));
    }
    Ok(list)
}

fn forget(path: &Path) {
    UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).paths.remove(path);
}

/// Removes every output of this process that is not committed, and refuses new ones: for a handler of signals that is
/// about to end the process.
pub fn abandon() {
    let mut list = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    list.abandoned = true;
    for path in std::mem::take(&mut list.paths) {
        // The process ends; there is nobody to tell.
        let _ = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
}

/// A file that is written beside its final path. Dropped without [`StagedFile::commit`], it is removed.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    file: NamedTempFile,
}

impl StagedFile {
    /// Creates the hidden file beside `path`. It keeps the extension of `path`, from which encoders take the format.
    ///
    /// # Errors
    /// A path without a file name or that is a folder; a folder that cannot be written to.
    pub fn create(path: &Path) -> io::Result<Self> {
        if path.is_dir() {
            return Err(io::Error::new(
                io::ErrorKind::IsADirectory,
                "expected a file or nothing, found a folder",
            ));
        }
        let extension = path.extension().map(|extension| {
            let mut suffix = OsString::from(".");
            suffix.push(extension);
            suffix
        });
        let prefix = hidden(path)?;
        let mut builder = Builder::new();
        builder.prefix(&prefix).suffix(extension.as_deref().unwrap_or_default()).rand_bytes(12);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let mut list = unfinished()?;
        let file = builder.tempfile_in(folder_of(path))?;
        list.paths.insert(file.path().to_owned());
        Ok(Self { path: path.to_owned(), file })
    }

    /// Path of the hidden file, for writers that open files by name.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Flushes the file to the disk and renames it to its final path, where a file or a link is replaced.
    ///
    /// # Errors
    /// A disk that is full; a folder in the way.
    pub fn commit(self) -> io::Result<()> {
        let hidden = self.file.path().to_owned();
        // A writer that works by name may have put another file there.
        flush(&hidden)?;
        let mut list = unfinished()?;
        fs::rename(&hidden, &self.path)?;
        list.paths.remove(&hidden);
        drop(list);
        // Nothing has the hidden name any more; dropping the value removes nothing.
        flush_folder(folder_of(&self.path))
    }
}

impl Write for StagedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        forget(self.file.path());
    }
}

/// Writes `bytes` as the file `path`, which is replaced as a whole.
///
/// # Errors
/// As [`StagedFile::create`] and [`StagedFile::commit`].
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = StagedFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

/// A folder that is filled beside its final path. Dropped without [`StagedFolder::commit`], it is removed.
#[derive(Debug)]
pub struct StagedFolder {
    path: PathBuf,
    folder: TempDir,
}

impl StagedFolder {
    /// Creates the hidden folder beside `path`, and the folders above it.
    ///
    /// # Errors
    /// `path` has no name, or is anything but an empty folder; a folder that cannot be written to.
    pub fn create(path: &Path) -> io::Result<Self> {
        free(path)?;
        let parent = folder_of(path);
        fs::create_dir_all(parent)?;
        Self::create_in(parent, path)
    }

    /// Creates the hidden folder in `parent`, which must be on the disk of `path`.
    ///
    /// # Errors
    /// As [`StagedFolder::create`].
    pub fn create_in(parent: &Path, path: &Path) -> io::Result<Self> {
        free(path)?;
        let prefix = hidden(path)?;
        let mut builder = Builder::new();
        builder.prefix(&prefix).rand_bytes(12);
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let mut list = unfinished()?;
        let folder = builder.tempdir_in(parent)?;
        list.paths.insert(folder.path().to_owned());
        Ok(Self { path: path.to_owned(), folder })
    }

    /// The hidden folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Flushes all files and folders in it to the disk and renames it to its final path.
    ///
    /// # Errors
    /// A disk that is full; anything but an empty folder at the final path, which stays as it is.
    pub fn commit(self) -> io::Result<()> {
        let hidden = self.folder.path().to_owned();
        flush_all(&hidden)?;
        let mut list = unfinished()?;
        free(&self.path)?;
        if self.path.is_dir() {
            // Windows does not rename onto a folder, not even onto an empty one.
            fs::remove_dir(&self.path)?;
        }
        fs::rename(&hidden, &self.path)?;
        list.paths.remove(&hidden);
        drop(list);
        flush_folder(folder_of(&self.path))
    }
}

impl Drop for StagedFolder {
    fn drop(&mut self) {
        forget(self.folder.path());
    }
}

/// An exclusive lock of a folder among processes, by its file `lock` or by another. The system releases it when the process ends,
/// however it ends.
#[derive(Debug)]
pub struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Locks `folder`, which exists; `None` while another process, or another value of this one, holds the lock.
    ///
    /// # Errors
    /// A lock file that cannot be opened, is a link, or was removed meanwhile (`NotFound`); a file system without locks.
    pub fn acquire(folder: &Path) -> io::Result<Option<Self>> {
        Self::at(&folder.join("lock"))
    }

    /// Locks by the file `path`, which is created and stays.
    ///
    /// # Errors
    /// As [`FolderLock::acquire`].
    pub fn at(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::options().read(true).write(true).create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(path)?.is_file() {
                    let found = "expected a regular file as lock, found something else";
                    return Err(io::Error::new(io::ErrorKind::InvalidInput, found));
                }
                File::options().read(true).write(true).open(path)?
            }
            opened => opened?,
        };
        match file.try_lock() {
            Ok(()) => {
                require_same(&file, path)?;
                Ok(Some(Self { _file: file }))
            }
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Checks that the file that was locked still has its name: its owner may have removed it in between.
#[cfg(unix)]
fn require_same(file: &File, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;

    let (locked, named) = (file.metadata()?, fs::symlink_metadata(path)?);
    if (locked.dev(), locked.ino()) == (named.dev(), named.ino()) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::NotFound, "the lock file was removed"))
}

/// Windows does not remove a file that is open.
#[cfg(not(unix))]
fn require_same(_: &File, _: &Path) -> io::Result<()> {
    Ok(())
}

/// Checks that a folder can be put at `path`.
fn free(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(found) if found.is_dir() => match fs::read_dir(path)?.next() {
            None => Ok(()),
            Some(_) => {
                Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, "expected an empty folder or nothing"))
            }
        },
        Ok(_) => {
            Err(io::Error::new(io::ErrorKind::AlreadyExists, "expected a folder or nothing, found a file"))
        }
    }
}

/// The beginning of the hidden name of `path`: `.NAME.`.
fn hidden(path: &Path) -> io::Result<OsString> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "expected a path that ends with a name")
    })?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    // File names of 255 bytes are the longest that most file systems take; random characters and extension follow.
    if hidden.len() > 200 { Ok(OsString::from(".output.")) } else { Ok(hidden) }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn flush_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            flush_all(&entry.path())?;
        } else if kind.is_file() {
            flush(&entry.path())?;
        }
    }
    flush_folder(folder)
}

fn flush(file: &Path) -> io::Result<()> {
    // Windows flushes only files that are open for writing.
    File::options().read(true).write(true).open(file)?.sync_all()
}

pub(crate) fn flush_folder(folder: &Path) -> io::Result<()> {
    // Windows cannot open a folder as a file; its file systems keep a journal of renames.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_whole_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let mut file = StagedFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        assert_eq!(file.path().extension().unwrap(), "png");
        assert!(!path.exists());
        drop(file);
        assert!(names(dir.path()).is_empty());
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(dir.path()), ["a.png"]);
        assert!(write(dir.path(), b"a folder").is_err());
        assert!(write(&dir.path().join("none/a.png"), b"no folder").is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_replaced_and_not_written_through() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("other"));
        fs::write(&other, "kept").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"kept");
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        // As `fs::write` makes files, and not readable by the owner alone as temporary files are.
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&other));
    }

    #[test]
    fn a_folder_is_whole_or_absent_and_nothing_foreign_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x/out");
        let folder = StagedFolder::create(&path).unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/a"), "a").unwrap();
        folder.commit().unwrap();
        assert_eq!(fs::read(path.join("sub/a")).unwrap(), b"a");
        assert!(StagedFolder::create(&path).is_err());
        // Another process may be first.
        let second = dir.path().join("second");
        let folder = StagedFolder::create(&second).unwrap();
        fs::create_dir(&second).unwrap();
        fs::write(second.join("foreign"), "kept").unwrap();
        assert!(folder.commit().is_err());
        assert_eq!(names(&second), ["foreign"]);
        assert_eq!(names(dir.path()), ["second", "x"]);
        fs::remove_file(second.join("foreign")).unwrap();
        StagedFolder::create(&second).unwrap().commit().unwrap();
    }

    #[test]
    fn a_lock_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::acquire(dir.path()).unwrap().unwrap();
        assert!(FolderLock::acquire(dir.path()).unwrap().is_none());
        drop(lock);
        assert!(FolderLock::acquire(dir.path()).unwrap().is_some());
    }
}
