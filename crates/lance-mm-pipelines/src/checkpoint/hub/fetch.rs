//! One file of a repository into the cache: resumed, tried again, verified. The transfer is hf-hub's.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use hf_hub::CacheRepo;
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiError, ApiRepo};
use sha2::{Digest, Sha256};

use super::pull::{Observer, PullEvent, hub, refusal, status};
use crate::error::{Error, Result};

/// Failures in a row, without a byte between them, that end a download.
const ATTEMPTS: u32 = 3;

/// A file to fetch and what the hub says of it.
pub(super) struct Fetch<'a> {
    repo: &'a ApiRepo,
    cache: &'a CacheRepo,
    file: &'a str,
    size: u64,
    etag: String,
    commit: String,
}

impl<'a> Fetch<'a> {
    /// Asks the hub for size and hash.
    pub(super) fn new(api: &Api, repo: &'a ApiRepo, cache: &'a CacheRepo, file: &'a str) -> Result<Self> {
        let metadata = api.metadata(&repo.url(file)).map_err(|error| hub(repo.url(file), refusal(&error)))?;
        let (etag, commit) = (metadata.etag().to_owned(), metadata.commit_hash().to_owned());
        if !is_name(&etag) || !is_name(&commit) {
            let message = format!("expected a hash and a commit, found {etag:?} and {commit:?}");
            return Err(hub(repo.url(file), message));
        }
        Ok(Self { repo, cache, file, size: metadata.size() as u64, etag, commit })
    }

    /// Whether the content is in the cache.
    pub(super) fn is_cached(&self) -> bool {
        size(&self.blob()) == Some(self.size) || size(&self.pointer()) == Some(self.size)
    }

    /// Bytes that an earlier try has not brought.
    pub(super) fn left(&self) -> u64 {
        self.size.saturating_sub(size(&self.part()).unwrap_or(0))
    }

    /// Fetches the file unless it is there, and returns its path in the cache.
    pub(super) fn run(&self, observer: &mut Observer<'_>) -> Result<PathBuf> {
        let pointer = self.pointer();
        if size(&pointer) == Some(self.size) {
            return Ok(pointer);
        }
        // A pointer to content that is gone or of another length would keep hf-hub from making a new one.
        let _ = fs::remove_file(&pointer);
        if size(&self.blob()) == Some(self.size) {
            self.point()?;
            return Ok(pointer);
        }
        let path = self.download(observer)?;
        if let Err(error) = self.verify(&path, observer) {
            let _ = fs::remove_file(self.blob());
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(path)
    }

    /// Downloads, going on where an attempt ended.
    fn download(&self, observer: &mut Observer<'_>) -> Result<PathBuf> {
        let mut failures = 0;
        let mut before = self.resumable();
        loop {
            let reporter = Reporter { file: self.file, observer, size: self.size, resuming: false };
            let error = match self.repo.download_with_progress(self.file, reporter) {
                Ok(path) => return Ok(path),
                Err(error) => error,
            };
            let now = size(&self.part()).unwrap_or(0);
            failures = if now > before { 1 } else { failures + 1 };
            before = now;
            if failures == ATTEMPTS || !passes(&error) {
                let resume = format!("{now} of {} bytes are in the cache: rerun to resume", self.size);
                return Err(hub(self.repo.url(self.file), format!("{}; {resume}", refusal(&error))));
            }
            sleep(Duration::from_millis(500) * failures);
        }
    }

    /// Bytes to go on from. A partial file that is no shorter than the whole is no part of it.
    fn resumable(&self) -> u64 {
        let part = self.part();
        match size(&part) {
            Some(found) if found >= self.size => {
                let _ = fs::remove_file(part);
                0
            }
            found => found.unwrap_or(0),
        }
    }

    /// Compares length and, where the hub tells it (for large files), the SHA-256.
    fn verify(&self, path: &Path, observer: &mut Observer<'_>) -> Result<()> {
        let url = self.repo.url(self.file);
        let found = size(path).unwrap_or(0);
        if found != self.size {
            return Err(hub(url, format!("expected {} bytes, received {found}; rerun", self.size)));
        }
        if self.etag.len() == 64 && self.etag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            observer(PullEvent::Verifying { file: self.file });
            let found = sha256(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
            if found != self.etag.to_ascii_lowercase() {
                return Err(hub(url, format!("expected SHA-256 {}, received {found}; rerun", self.etag)));
            }
        }
        observer(PullEvent::Done { file: self.file, size: self.size });
        Ok(())
    }

    /// Names content that an earlier commit brought.
    fn point(&self) -> Result<()> {
        let (blob, pointer) = (self.blob(), self.pointer());
        let make = || {
            fs::create_dir_all(self.cache.pointer_path(&self.commit))?;
            fs::hard_link(&blob, &pointer).or_else(|_| fs::copy(&blob, &pointer).map(|_| ()))
        };
        make().map_err(|source| Error::Io { path: pointer.clone(), source })
    }

    /// Lets the revision that was asked for mean the commit of this file from now on.
    pub(super) fn refer(&self) -> Result<()> {
        let folder = self.cache.pointer_path(&self.commit);
        let refer = self.cache.create_ref(&self.commit);
        refer.map_err(|error| hub(folder.display(), format!("a reference to it: {error}")))
    }

    fn blob(&self) -> PathBuf {
        self.cache.blob_path(&self.etag)
    }

    fn pointer(&self) -> PathBuf {
        self.cache.pointer_path(&self.commit).join(self.file)
    }

    /// Where hf-hub keeps what it has of a file.
    fn part(&self) -> PathBuf {
        self.blob().with_extension("part")
    }
}

/// These become paths below the cache. (A weak hash is `W/` and a hash.)
fn is_name(text: &str) -> bool {
    text.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains(['\\', ':']))
}

fn size(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|meta| meta.len())
}

/// Whether another attempt may go better.
fn passes(error: &ApiError) -> bool {
    match status(error) {
        Some(status) => status == 429 || status >= 500,
        None => !matches!(
            error,
            ApiError::LockAcquisition(_) | ApiError::InvalidHeader(_) | ApiError::MissingHeader(_)
        ),
    }
}

fn sha256(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    }))
}

/// The observer as hf-hub calls it.
struct Reporter<'o, 'a> {
    file: &'a str,
    observer: &'o mut Observer<'a>,
    size: u64,
    /// The next update is of bytes that an earlier try brought.
    resuming: bool,
}

impl Progress for Reporter<'_, '_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.size, self.resuming) = (size as u64, true);
    }

    fn update(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        let begin = PullEvent::Begin { file: self.file, size: self.size, resumed: bytes };
        let event = if std::mem::take(&mut self.resuming) { begin } else { PullEvent::Received(bytes) };
        (self.observer)(event);
    }

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_stay_below_the_cache() {
        assert!(["0a1b", "W/0a1b"].into_iter().all(is_name));
        assert!(!["", "/a", "..", "a/../b", "C:a", "a\\b"].into_iter().any(is_name));
    }
}
