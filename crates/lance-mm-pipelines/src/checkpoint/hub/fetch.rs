//! One file of a repository into the cache: resumed, tried again, verified.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::cache::{RepoCache, is_etag, size};
use super::client::{Answer, Client, Failure, hub, quoted};
use super::event::{Observer, PullEvent};
use super::hash::ContentHash;
use crate::error::Error;
use crate::staged::FolderLock;

/// Failures in a row that end a download.
const ATTEMPTS: u32 = 3;
/// Bytes that a connection must bring so that its failure begins a new row: less would let a hub that stalls after
/// every piece hold the program for hours.
const PROGRESS: u64 = 8 << 20;
/// Bytes of a file that is no safetensors file. Tokenizers have 11 MB.
const MAX_SMALL: u64 = 256 << 20;
/// Time for which another process may hold a file without a byte of progress. It may be hashing.
const MAX_WAIT: Duration = Duration::from_secs(600);

/// A file to fetch and what the hub says of it.
pub(super) struct Fetch<'a> {
    client: &'a Client,
    cache: &'a RepoCache,
    commit: &'a str,
    file: &'a str,
    url: String,
    size: u64,
    etag: String,
    hash: Option<ContentHash>,
    found: Found,
}

/// Where a file's content is already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Snapshot,
    Blob,
    Nowhere,
}

impl<'a> Fetch<'a> {
    /// Asks the hub for size and hash, and looks for the content in the cache.
    pub(super) fn new(
        client: &'a Client,
        cache: &'a RepoCache,
        commit: &'a str,
        (file, url): (&'a str, String),
        observer: &mut Observer<'_>,
    ) -> Result<Self, Error> {
        let told = |answer: &Answer| {
            answer.of_hub("x-linked-size").is_some() && answer.of_hub("x-linked-etag").is_some()
        };
        let asked = client.try_again(|| {
            let answer = client.get(&url, Some("bytes=0-0"), told)?;
            match answer.response.status().as_u16() {
                _ if told(&answer) => Ok(answer),
                // An empty file has no first byte.
                200 | 206 | 416 => Ok(answer),
                status => Err(Failure::Status(status)),
            }
        });
        let answer = asked.map_err(|failure| hub(&url, failure))?;
        let etag = etag(&answer).map_err(|found| hub(&url, found))?;
        if let Some(found) =
            answer.of_hub("x-repo-commit").filter(|found| !found.eq_ignore_ascii_case(commit))
        {
            return Err(hub(&url, format!("expected commit {commit}, found {}", quoted(found))));
        }
        let Some(size) = whole_size(&answer) else {
            return Err(hub(&url, "expected the file's size, found none"));
        };
        if size > MAX_SMALL && !file.ends_with(".safetensors") {
            return Err(hub(&url, format!("expected at most {MAX_SMALL} bytes, found {size}")));
        }
        let hash = ContentHash::parse(&etag);
        let mut fetch = Self { client, cache, commit, file, url, size, etag, hash, found: Found::Nowhere };
        fetch.found = fetch.find(observer)?;
        Ok(fetch)
    }

    /// Whether nothing has to be downloaded.
    pub(super) fn is_cached(&self) -> bool {
        self.found != Found::Nowhere
    }

    /// Bytes that an earlier try has not brought.
    pub(super) fn left(&self) -> u64 {
        let partial = self.cache.partial(&self.etag);
        self.size.saturating_sub(size(&partial).filter(|found| *found <= self.size).unwrap_or(0))
    }

    /// Reads the content in the cache, wherever it is, and compares it with the hub's hash.
    fn find(&self, observer: &mut Observer<'_>) -> Result<Found, Error> {
        let (path, blob) = (self.cache.snapshot(self.commit).join(self.file), self.cache.blob(&self.etag));
        let mut damaged = false;
        let mut is_whole = |path: &Path| -> Result<bool, Error> {
            let whole = size(path) == Some(self.size) && self.compare(path, observer)?.is_ok();
            damaged |= !whole && size(path).is_some();
            Ok(whole)
        };
        let found = if is_whole(&path)? {
            Found::Snapshot
        } else if is_same(&path, &blob) {
            Found::Nowhere
        } else if is_whole(&blob)? {
            Found::Blob
        } else {
            Found::Nowhere
        };
        if damaged {
            observer(PullEvent::Damaged { file: self.file });
        }
        Ok(found)
    }

    /// Fetches the file unless it is there.
    pub(super) fn run(&self, observer: &mut Observer<'_>) -> Result<(), Error> {
        let mut found = self.found;
        if found == Found::Snapshot {
            return Ok(());
        }
        self.cache.create()?;
        let (_lock, waited) = self.lock(observer)?;
        if waited {
            found = self.find(observer)?;
        }
        if found == Found::Nowhere {
            self.download(observer)?;
        }
        if found != Found::Snapshot {
            self.cache.link(self.commit, self.file, &self.etag)?;
        }
        if found == Found::Nowhere {
            observer(PullEvent::Done { file: self.file, size: self.size });
        }
        Ok(())
    }

    /// Locks the content, and says whether another process had it. A file system without locks goes without.
    fn lock(&self, observer: &mut Observer<'_>) -> Result<(Option<FolderLock>, bool), Error> {
        let partial = self.cache.partial(&self.etag);
        let (mut since, mut before, mut waited) = (Instant::now(), size(&partial), false);
        loop {
            match self.cache.lock(&self.etag) {
                Ok(None) => {}
                Ok(lock) => return Ok((lock, waited)),
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::Unsupported => {
                    return Ok((None, waited));
                }
                Err(error) => return Err(error),
            }
            if !waited {
                observer(PullEvent::Waiting { file: self.file });
            }
            waited = true;
            sleep(Duration::from_millis(200));
            let now = size(&partial);
            if now != before {
                (since, before) = (Instant::now(), now);
            }
            if since.elapsed() > MAX_WAIT {
                return Err(hub(&self.url, "another process is downloading it and makes no progress"));
            }
        }
    }

    /// Downloads the content, verifies it and gives it its name.
    fn download(&self, observer: &mut Observer<'_>) -> Result<(), Error> {
        let (partial, blob) = (self.cache.partial(&self.etag), self.cache.blob(&self.etag));
        let io = |source| Error::Io { path: partial.clone(), source };
        let mut old = self.open(&partial).map_err(io)?.1;
        loop {
            let file = self.receive(&partial, observer)?;
            let Err(found) = self.compare(&partial, observer)? else {
                file.sync_all().map_err(io)?;
                drop(file);
                let renamed = fs::rename(&partial, &blob).and_then(|()| self.cache.flush_blobs());
                return renamed.map_err(|source| Error::Io { path: blob.clone(), source });
            };
            fs::remove_file(&partial).map_err(io)?;
            // A power cut may have spoilt what an earlier process brought.
            if std::mem::take(&mut old) == 0 {
                return Err(hub(&self.url, format!("{found}; rerun")));
            }
        }
    }

    /// Receives what is missing of the content, continuing where an attempt ended.
    fn receive(&self, partial: &Path, observer: &mut Observer<'_>) -> Result<File, Error> {
        let mut failures = 0;
        loop {
            let (mut file, before) =
                self.open(partial).map_err(|source| Error::Io { path: partial.to_owned(), source })?;
            let failure = match self.attempt(&mut file, before, observer) {
                Ok(()) if size(partial) == Some(self.size) => return Ok(file),
                Ok(()) => Failure::Broken("the connection ended early".to_owned()),
                Err(Failure::Disk(source)) => return Err(Error::Io { path: partial.to_owned(), source }),
                Err(failure) => failure,
            };
            let now = size(partial).unwrap_or(0);
            failures = if now >= before.saturating_add(PROGRESS) { 1 } else { failures + 1 };
            if failures == ATTEMPTS || !failure.may_pass() {
                let resume = format!("{now} of {} bytes are in the cache: rerun to resume", self.size);
                return Err(hub(&self.url, format!("{failure}; {resume}")));
            }
            self.client.pause(failures);
        }
    }

    /// Opens the partial file, and returns its length. Anything but a regular file with one name is replaced: a link
    /// would lead elsewhere.
    fn open(&self, partial: &Path) -> io::Result<(File, u64)> {
        match fs::symlink_metadata(partial) {
            Ok(meta) if meta.is_file() && meta.len() <= self.size && !is_shared(&meta) => {
                return Ok((File::options().read(true).write(true).open(partial)?, meta.len()));
            }
            Ok(_) => fs::remove_file(partial)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok((File::options().read(true).write(true).create_new(true).open(partial)?, 0))
    }

    /// One connection. The file has `start` bytes already.
    fn attempt(&self, file: &mut File, mut start: u64, observer: &mut Observer<'_>) -> Result<(), Failure> {
        if start == self.size {
            return Ok(());
        }
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let mut answer = self.client.get(&self.url, range.as_deref(), |_| false)?;
        match (answer.response.status().as_u16(), answer.range()) {
            // The whole file, whatever was asked for.
            (200, _) => start = 0,
            (206, Some((first, total))) if first == start && total.is_none_or(|total| total == self.size) => {
            }
            (206, None) if start == 0 => {}
            (206 | 416, found) => {
                file.set_len(0).map_err(Failure::Disk)?;
                let found = found.map_or("none".to_owned(), |(first, total)| format!("{first} of {total:?}"));
                let expected = format!("expected the bytes from {start} of {}, found {found}", self.size);
                return Err(Failure::Broken(expected));
            }
            (status, _) => return Err(Failure::Status(status)),
        }
        let left = self.size - start;
        let length = answer.length();
        if let Some(length) = length.filter(|length| *length > left) {
            return Err(Failure::Unusable(format!("expected {left} bytes, the hub announces {length}")));
        }
        file.set_len(start).map_err(Failure::Disk)?;
        file.seek(SeekFrom::Start(start)).map_err(Failure::Disk)?;
        observer(PullEvent::Begin { file: self.file, size: self.size, resumed: start });
        answer.copy(left, |bytes| {
            file.write_all(bytes).map_err(Failure::Disk)?;
            observer(PullEvent::Received(bytes.len() as u64));
            Ok(())
        })?;
        // Without a length, only the end of the connection says that this was all.
        if length.is_none() && answer.copy(1, |_| Ok(())).is_ok_and(|more| more > 0) {
            file.set_len(0).map_err(Failure::Disk)?;
            return Err(Failure::Unusable(format!("expected {} bytes, received more", self.size)));
        }
        Ok(())
    }

    /// Compares a file with the hub's hash, where the ETag is one; the difference.
    fn compare(&self, path: &Path, observer: &mut Observer<'_>) -> Result<Result<(), String>, Error> {
        let Some(hash) = &self.hash else { return Ok(Ok(())) };
        observer(PullEvent::Verifying { file: self.file });
        hash.check(path).map_err(|source| Error::Io { path: path.to_owned(), source })
    }
}

/// The ETag of the content: of the hub's own answers if it states one, in large file storage or else.
fn etag(answer: &Answer) -> Result<String, String> {
    let stated =
        answer.of_hub("x-linked-etag").or_else(|| answer.of_hub("etag")).or_else(|| answer.header("etag"));
    let stated = stated.ok_or("expected an ETag, found none")?;
    let etag = stated.strip_prefix("W/").unwrap_or(stated).trim_matches('"');
    if is_etag(etag) {
        Ok(etag.to_owned())
    } else {
        Err(format!("expected a hash as ETag, found {}", quoted(stated)))
    }
}

/// Size of the whole file, from an answer with its first byte or from the hub's redirect.
fn whole_size(answer: &Answer) -> Option<u64> {
    let linked = answer.of_hub("x-linked-size").and_then(|size| size.parse().ok());
    linked.or_else(|| match answer.response.status().as_u16() {
        200 => answer.length(),
        _ => answer.range()?.1,
    })
}

/// Whether two paths lead to one file.
fn is_same(a: &Path, b: &Path) -> bool {
    matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

#[cfg(unix)]
fn is_shared(meta: &fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::nlink(meta) > 1
}

#[cfg(not(unix))]
fn is_shared(_: &fs::Metadata) -> bool {
    false
}
