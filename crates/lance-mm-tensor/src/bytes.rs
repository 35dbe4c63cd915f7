//! The bytes of a tensor: a range of a mapped file, of static data or of a vector.

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Bytes of a tensor: a range of a mapped file, of static data or of a vector. Cloning shares them.
#[derive(Clone)]
pub(crate) struct Bytes {
    source: Arc<Source>,
    range: Range<usize>,
}

enum Source {
    Map(Mmap),
    Static(&'static [u8]),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a file for reading.
    #[expect(unsafe_code, reason = "the one memory map of the workspace")]
    pub(crate) fn map(path: &Path) -> Result<Self> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(Error::File {
                file: path.display().to_string(),
                message: "expected a file, found a folder".into(),
            });
        }
        if meta.len() == 0 {
            return Err(Error::File {
                file: path.display().to_string(),
                message: "the file is empty".into(),
            });
        }
        // SAFETY: the map is read-only and private to this process, and every access goes through a bounds
        // checked slice of it. What remains is another process that cuts or rewrites the file meanwhile:
        // values may then change or the process may be ended by a signal, as with any program that maps
        // weights; checkpoints are replaced by rename, never rewritten in place.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        let len = map.len();
        Ok(Self { source: Arc::new(Source::Map(map)), range: 0..len })
    }

    pub(crate) fn from_static(bytes: &'static [u8]) -> Self {
        Self { source: Arc::new(Source::Static(bytes)), range: 0..bytes.len() }
    }

    pub(crate) fn from_vec(bytes: Vec<u8>) -> Self {
        Self { range: 0..bytes.len(), source: Arc::new(Source::Owned(bytes)) }
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        let start = self.range.start + range.start;
        assert!(
            range.start <= range.end && start + range.len() <= self.range.end,
            "a slice within its bytes"
        );
        Self { source: self.source.clone(), range: start..start + range.len() }
    }

    /// Drops the mapped pages of a file from this process; reading maps them again. Does nothing to bytes in memory, and
    /// nothing on systems other than Unix.
    #[cfg_attr(unix, expect(unsafe_code, reason = "advice that may change what is mapped"))]
    pub(crate) fn release(&self) -> std::io::Result<()> {
        #[cfg(unix)]
        if let Source::Map(map) = &*self.source {
            let (start, len) = (self.range.start, self.range.len());
            // SAFETY: the range lies within the map. The map is read-only and its file the only thing behind
            // it, so that there is nothing to lose: a later read, of a slice that lives on too, finds the
            // file's bytes again.
            unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) }?;
        }
        Ok(())
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &*self.source {
            Source::Map(map) => map,
            Source::Static(bytes) => bytes,
            Source::Owned(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}
