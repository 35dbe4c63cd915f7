//! Writing a folder, or some files of one, whole or not at all.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Lets `fill` write into a temporary sibling of `dst` and renames it when all is there, on the disk too.
pub fn write<T>(dst: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if dst.exists() {
        bail!("{}: expected a folder that does not exist yet", dst.display());
    }
    let partial = sibling(dst, "partial")?;
    let flushed = |filled| flush(&partial).map(|()| filled);
    let filled = fill(&partial).and_then(flushed).inspect_err(|_| {
        // The error that stopped the writing says more than one about the clean-up.
        let _ = fs::remove_dir_all(&partial);
    })?;
    fs::rename(&partial, dst).with_context(|| dst.display().to_string())?;
    Ok(filled)
}

/// Flushes a folder and every file below it to the disk.
fn flush(folder: &Path) -> Result<()> {
    let named = || folder.display().to_string();
    for entry in fs::read_dir(folder).with_context(named)? {
        let path = entry.with_context(named)?.path();
        if path.is_dir() {
            flush(&path)?;
        } else {
            flush_one(&path)?;
        }
    }
    flush_one(folder)
}

fn flush_one(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).with_context(|| path.display().to_string())
}

/// Replaces files of `dir`. None is touched before all of the new ones lie beside them.
pub fn replace(dir: &Path, files: &[(&str, Vec<u8>)]) -> Result<()> {
    let partial = |name: &str| dir.join(format!(".{name}.partial"));
    let written = files.iter().try_for_each(|(name, bytes)| {
        let path = partial(name);
        fs::write(&path, bytes).with_context(|| path.display().to_string())?;
        flush_one(&path)
    });
    let renamed = written.and_then(|()| {
        files.iter().try_for_each(|(name, _)| {
            fs::rename(partial(name), dir.join(name)).with_context(|| dir.join(name).display().to_string())
        })
    });
    renamed.inspect_err(|_| {
        for (name, _) in files {
            // As above; those that have been renamed are not there.
            let _ = fs::remove_file(partial(name));
        }
    })
}

/// Lends `run` an empty folder beside `dst`, which is removed afterwards.
pub fn temporary<T>(dst: &Path, what: &str, run: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
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
        assert!(error.to_string().ends_with(".none/b.partial"), "{error:#}");
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
            fs::create_dir(folder.join("inner"))?;
            Ok(fs::write(folder.join("inner/x"), "x")?)
        };
        write(&dst, fill).unwrap();
        assert_eq!((names(dir.path()), names(&dst.join("inner"))), (vec!["dst".into()], vec!["x".into()]));
    }
}
