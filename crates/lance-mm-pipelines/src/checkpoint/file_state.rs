//! Length and time of a file, which tell that another program has written to it.

use std::fs::Metadata;
use std::time::SystemTime;

/// Length and time of a file, which another program that writes to it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileState {
    /// Bytes.
    pub length: u64,
    modified: Option<SystemTime>,
}

impl FileState {
    /// The state of a file now.
    pub fn of(metadata: &Metadata) -> Self {
        // Without a time on this file system, the length alone.
        Self { length: metadata.len(), modified: metadata.modified().ok() }
    }
}
