//! Writes a folder, or some files of one, whole or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Lets `fill` write into the hidden folder `.DST.partial` beside `dst` and renames it when all of it is on the disk.
/// After an error nothing is left.
///
/// # Errors
/// `dst` exists or cannot be written; an error of `fill`.
pub fn write<T, E: From<Error>>(
    dst: &Path,
    fill: impl FnOnce(&Path) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    if dst.exists() {
        return Err(Error::file(dst, "expected a folder that does not exist yet").into());
    }
    let partial = sibling(dst, "partial")?;
    let flushed = |filled| Ok(flush(&partial).map(|()| filled)?);
    let filled = fill(&partial).and_then(flushed).inspect_err(|_| {
        // The error that stopped the writing says more than one about the clean-up.
        let _ = fs::remove_dir_all(&partial);
    })?;
    fs::rename(&partial, dst).map_err(Error::io(dst))?;
    Ok(filled)
}

/// Flushes a folder and every file below it to the disk.
fn flush(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.is_dir() {
            flush(&path)?;
        } else {
            flush_one(&path)?;
        }
    }
    // A folder cannot be opened as a file on Windows, which keeps its own journal of renames.
    if cfg!(unix) { flush_one(folder) } else { Ok(()) }
}

fn flush_one(path: &Path) -> Result<()> {
    // Windows flushes only files that may be written.
    File::options()
        .read(true)
        .write(path.is_file())
        .open(path)
        .and_then(|file| file.sync_all())
        .map_err(Error::io(path))
}

/// Replaces files of `dir`. None is touched before all of the new ones are beside them.
///
/// # Errors
/// Files that cannot be written.
pub fn replace(dir: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    let partial = |name: &str| dir.join(format!(".{name}.partial"));
    let written = files.iter().try_for_each(|(name, bytes)| {
        let path = partial(name);
        fs::write(&path, bytes).map_err(Error::io(&path))?;
        flush_one(&path)
    });
    let renamed = written.and_then(|()| {
        files.iter().try_for_each(|(name, _)| {
            fs::rename(partial(name), dir.join(name)).map_err(Error::io(&dir.join(name)))
        })
    });
    renamed.inspect_err(|_| {
        for (name, _) in files {
            // As above; those that have been renamed no longer exist.
            let _ = fs::remove_file(partial(name));
        }
    })
}

/// Lends `run` the empty folder `.DST.WHAT` beside `dst`, which is removed afterwards.
///
/// # Errors
/// A folder that cannot be made or removed; an error of `run`.
pub fn temporary<T, E: From<Error>>(
    dst: &Path,
    what: &str,
    run: impl FnOnce(&Path) -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let folder = sibling(dst, what)?;
    let result = run(&folder);
    let removed = fs::remove_dir_all(&folder).map_err(Error::io(&folder));
    let value = result?;
    Ok(removed.map(|()| value)?)
}

/// An empty folder `.DST.WHAT` beside `dst`; what an interrupted run left there is removed.
fn sibling(dst: &Path, what: &str) -> Result<PathBuf> {
    let name = dst.file_name().ok_or_else(|| Error::file(dst, "expected a path that ends with a name"))?;
    let folder = dst.with_file_name(format!(".{}.{what}", name.to_string_lossy()));
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(Error::io(&folder))?;
    }
    fs::create_dir_all(&folder).map_err(Error::io(&folder))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<String> = fs::read_dir(dir).unwrap().map(name).collect();
        names.sort();
        names
    }

    #[test]
    fn files_are_replaced_when_all_are_there() {
        let dir = tempfile::tempdir().unwrap();
        let old = dir.path().join("a");
        fs::write(&old, "old").unwrap();
        let new = |name| (name, b"new".to_vec());
        let error = replace(dir.path(), &[new("a"), new("none/b")]).unwrap_err();
        assert!(error.to_string().contains(".none/b.partial: "), "{error}");
        assert_eq!((names(dir.path()), fs::read(&old).unwrap()), (vec!["a".into()], b"old".to_vec()));
        replace(dir.path(), &[new("a"), new("b")]).unwrap();
        let both = vec!["a".into(), "b".into()];
        assert_eq!((names(dir.path()), fs::read(&old).unwrap()), (both, b"new".to_vec()));
    }

    #[test]
    fn folders_within_are_written_too() {
        let dir = tempfile::tempdir().unwrap();
        let dst = dir.path().join("dst");
        let fill = |folder: &Path| -> Result<()> {
            fs::create_dir(folder.join("inner")).unwrap();
            fs::write(folder.join("inner/x"), "x").unwrap();
            Ok(())
        };
        write(&dst, fill).unwrap();
        assert_eq!((names(dir.path()), names(&dst.join("inner"))), (vec!["dst".into()], vec!["x".into()]));
    }
}
