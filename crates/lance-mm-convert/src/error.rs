//! The error of a conversion.

use std::io;
use std::path::{Path, PathBuf};

use lance_mm_tensor::Problems;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Failure of a conversion.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A source that is no checkpoint, or whose files cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] lance_mm_pipelines::Error),
    /// A file that could not be read or written: a full disk, a missing permission.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// A file or folder that is not what it should be.
    #[error("{}: {message}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// Expected and found.
        message: String,
    },
    /// Tensors that are not those of the configuration, by file.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Tensors(Vec<Problems>),
    /// The [`StopFlag`](lance_mm_tensor::StopFlag) of the options was set. Nothing is left of the output.
    #[error("stopped")]
    Stopped,
}

impl Error {
    pub(crate) fn file(path: &Path, message: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), message: message.into() }
    }

    /// Adds the file to an error of the system.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        |source| Self::Io { path: path.to_owned(), source }
    }
}

/// Errors of tensors concern a checkpoint.
impl From<lance_mm_tensor::Error> for Error {
    fn from(error: lance_mm_tensor::Error) -> Self {
        match error {
            lance_mm_tensor::Error::Stopped => Self::Stopped,
            error => Self::Checkpoint(error.into()),
        }
    }
}
