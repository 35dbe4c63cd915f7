//! The cache's layout on the disk, as Hugging Face's own programs write it: contents in `blobs` by hash, `snapshots` of
//! commits that link to them, `refs` from branches to commits.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::RepoName;
use crate::error::{Error, Result};
use crate::staged::{self, FolderLock};

/// Folder of one repository.
pub(super) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache: &Path, name: &RepoName) -> Self {
        let folder = name.folder_in(cache);
        let locks = cache.join(".locks").join(folder.file_name().unwrap_or_default());
        Self { folder, locks }
    }

    /// Content by its ETag, which [`is_etag`] accepts.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The part of a content that has arrived.
    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Locks a content among processes, those of `huggingface_hub` included; `None` while another has it.
    pub(super) fn lock(&self, etag: &str) -> Result<Option<FolderLock>> {
        let path = self.locks.join(format!("{etag}.lock"));
        let lock = fs::create_dir_all(&self.locks).and_then(|()| FolderLock::at(&path));
        lock.map_err(|source| Error::Io { path, source })
    }

    /// Creates the folder of contents.
    pub(super) fn create(&self) -> Result<()> {
        let path = self.folder.join("blobs");
        fs::create_dir_all(&path).map_err(|source| Error::Io { path, source })
    }

    /// Flushes the folder of contents to the disk.
    pub(super) fn flush_blobs(&self) -> io::Result<()> {
        staged::flush_folder(&self.folder.join("blobs"))
    }

    /// Lets the file of a commit be the content: by a link, else by a second name, else by a copy.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let folder = self.snapshot(commit);
        let (blob, path) = (self.blob(etag), folder.join(file));
        let make = || {
            fs::create_dir_all(&folder)?;
            let link = |hidden: &Path| {
                let linked = symlink(&Path::new("../../blobs").join(etag), hidden);
                linked.or_else(|_| fs::hard_link(&blob, hidden))
            };
            match tempfile::Builder::new().prefix(".link.").rand_bytes(12).make_in(&folder, link) {
                Ok(hidden) => hidden.into_temp_path().persist(&path).map_err(|error| error.error)?,
                Err(_) => {
                    let mut copy = staged::StagedFile::create(&path)?;
                    io::copy(&mut File::open(&blob)?, &mut copy)?;
                    copy.commit()?;
                }
            }
            staged::flush_folder(&folder)
        };
        make().map_err(|source| Error::Io { path: path.clone(), source })
    }

    pub(super) fn has_reference(&self, revision: &str) -> bool {
        self.folder.join("refs").join(revision).exists()
    }

    /// Lets a branch or tag mean a commit from now on.
    pub(super) fn refer(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        if fs::read(&path).is_ok_and(|found| found == commit.as_bytes()) {
            return Ok(());
        }
        let folder = path.parent().unwrap_or(&self.folder);
        let write = fs::create_dir_all(folder).and_then(|()| staged::write(&path, commit.as_bytes()));
        write.map_err(|source| Error::Io { path, source })
    }
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    // Windows allows links to administrators and developers only.
    Err(io::ErrorKind::Unsupported.into())
}

/// Length of a regular file, links followed.
pub(super) fn size(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|meta| meta.len())
}

/// Whether `text` is a commit: 40 hexadecimal digits, or 64.
pub(super) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether an ETag can be a file's name.
pub(super) fn is_etag(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=128).contains(&text.len()) && !text.starts_with('.') && text.chars().all(legal)
}

/// Whether a name of the hub's list can be a file's name on every system.
pub(super) fn is_file_name(text: &str) -> bool {
    let illegal = |c: char| c.is_control() || "/\\:*?\"<>|".contains(c);
    (1..=200).contains(&text.len())
        && !text.starts_with('.')
        && !text.ends_with(['.', ' '])
        && !text.contains(illegal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_stay_below_the_cache() {
        assert!(["0a1b", "d41d8cd98f00b204-3", "a.b"].into_iter().all(is_etag));
        assert!(
            !["", "..", ".a", "a/b", "W/0a1b", "C:a", "a\\b", "a\0", "a\n", &"a".repeat(129)]
                .into_iter()
                .any(is_etag)
        );
        assert!(is_commit(&"0a".repeat(20)) && is_commit(&"0A".repeat(32)));
        assert!(!["main", "../../..", "", &"0a".repeat(21), &"zz".repeat(20)].into_iter().any(is_commit));
        assert!(
            ["config.json", "model-00001-of-00002.safetensors", "\u{e9} (1).json"]
                .into_iter()
                .all(is_file_name)
        );
        let long = "a".repeat(201);
        for name in [
            "",
            "..",
            "a/b",
            "/etc/passwd",
            "a\\b",
            "..\\a",
            "C:a",
            "a\0b",
            "a\x1b[2J",
            "a\n",
            ".hidden",
            "a.",
            &long,
        ] {
            assert!(!is_file_name(name), "{name:?}");
        }
    }

    #[test]
    fn links_replace_what_is_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), &RepoName::parse("a/b").unwrap());
        cache.create().unwrap();
        fs::write(cache.blob("0a"), "content").unwrap();
        let file = cache.snapshot("c").join("x.json");
        cache.link("c", "x.json", "0a").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"content");
        fs::remove_file(&file).unwrap();
        fs::write(&file, "damaged").unwrap();
        cache.link("c", "x.json", "0a").unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"content");
        assert_eq!(fs::read_dir(cache.snapshot("c")).unwrap().count(), 1);
        cache.refer("refs/pr/1", "c").unwrap();
        assert_eq!(fs::read(dir.path().join("models--a--b/refs/refs/pr/1")).unwrap(), b"c");
        let lock = cache.lock("0a").unwrap();
        assert!(lock.is_some() && cache.lock("0a").unwrap().is_none());
    }
}
