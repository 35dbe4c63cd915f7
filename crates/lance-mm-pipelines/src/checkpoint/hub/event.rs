//! Progress of a download.

use super::RepoName;

/// Progress of [`pull`](super::pull).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullEvent<'a> {
    /// `HF_HUB_OFFLINE` is set: the cache is taken and nothing is asked of the hub.
    Offline,
    /// The repository has no vision encoder: questions about images will not be possible.
    NoVisionEncoder,
    /// The repository has no tokenizer; that of the repository `from` is taken.
    NoTokenizer {
        /// `org/name`.
        from: &'a str,
    },
    /// A file in the cache has another content than the hub states; it is fetched again.
    Damaged {
        /// Name of the file.
        file: &'a str,
    },
    /// Files of `repo` that the cache lacks; 0 files where it has all.
    Missing {
        /// The repository.
        repo: &'a RepoName,
        /// Number of files.
        files: usize,
        /// Bytes to download.
        bytes: u64,
    },
    /// Another process downloads the file, and is waited for.
    Waiting {
        /// Name of the file.
        file: &'a str,
    },
    /// Download of a file begins, or continues with another connection.
    Begin {
        /// Name of the file.
        file: &'a str,
        /// Bytes of the whole file.
        size: u64,
        /// Bytes that an earlier try brought.
        resumed: u64,
    },
    /// Bytes of the file that arrived since the last event.
    Received(u64),
    /// The file is compared with the hub's hash.
    Verifying {
        /// Name of the file.
        file: &'a str,
    },
    /// The file is in the cache.
    Done {
        /// Name of the file.
        file: &'a str,
        /// Bytes.
        size: u64,
    },
}

pub(super) type Observer<'a> = dyn FnMut(PullEvent<'_>) + 'a;
