//! The error of this crate.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of a quantization. Finished parts stay in the work folder, so that the same call resumes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A checkpoint or image that could not be read or run.
    #[error(transparent)]
    Pipeline(lance_mm_pipelines::Error),
    /// A dataset that cannot be used.
    #[error(transparent)]
    Dataset(lance_mm_eval::Error),
    /// Weights or an operation on them.
    #[error(transparent)]
    Tensor(lance_mm_tensor::Error),
    /// A file or folder that could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file that is not what it should be, or could not be written whole.
    #[error("{name}: {message}")]
    File {
        /// The file, with a line or an item of it.
        name: String,
        /// Expected and found.
        message: String,
    },
    /// An option out of range, or that contradicts another.
    #[error("option {name}: expected {expected}, found {found}")]
    Option {
        /// The field of [`QuantizeOptions`](crate::QuantizeOptions).
        name: &'static str,
        /// Legal values.
        expected: String,
        /// The value.
        found: String,
    },
    /// A dataset that is missing or too small.
    #[error("calibration: {0}")]
    Calibration(String),
    /// A source that is quantized already.
    #[error(
        "{source_name}: expected a checkpoint that is not quantized, found {tensor}; quantizing twice is not offered"
    )]
    Quantized {
        /// The source.
        source_name: String,
        /// A tensor that only quantized checkpoints have.
        tensor: String,
    },
    /// An output folder that is in the way.
    #[error("{}: expected a folder that does not exist yet, found {found}", path.display())]
    OutputExists {
        /// The folder.
        path: PathBuf,
        /// Kind of the folder.
        found: &'static str,
    },
    /// A work folder of another call.
    #[error("{}: left by a run with other settings or inputs; remove it, or run that command again", path.display())]
    OtherRun {
        /// The work folder.
        path: PathBuf,
    },
    /// Another run that is at work on the same output.
    #[error("{}: another run is at work on this output; wait for it, or choose another folder", path.display())]
    Busy {
        /// The work folder, which the other run has locked.
        path: PathBuf,
    },
    /// [`QuantizeOptions::stop`](crate::QuantizeOptions::stop) was set.
    #[error("stopped")]
    Stopped,
}

impl From<lance_mm_tensor::Error> for Error {
    fn from(error: lance_mm_tensor::Error) -> Self {
        match error {
            lance_mm_tensor::Error::Stopped => Self::Stopped,
            error => Self::Tensor(error),
        }
    }
}

impl From<lance_mm_pipelines::Error> for Error {
    fn from(error: lance_mm_pipelines::Error) -> Self {
        match error {
            lance_mm_pipelines::Error::Tensor(error) => error.into(),
            error => Self::Pipeline(error),
        }
    }
}

impl From<lance_mm_eval::Error> for Error {
    fn from(error: lance_mm_eval::Error) -> Self {
        match error {
            lance_mm_eval::Error::Pipeline(error) => error.into(),
            error => Self::Dataset(error),
        }
    }
}

impl From<lance_mm_image::Error> for Error {
    fn from(error: lance_mm_image::Error) -> Self {
        Self::Pipeline(error.into())
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.into())
    }
}

impl Error {
    /// The error of a file or folder, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// The error of what a file holds.
    pub(crate) fn file(name: impl Display, message: impl Display) -> Self {
        Self::File { name: name.to_string(), message: message.to_string() }
    }

    /// The error of what the file at `path` holds, for `map_err`.
    pub(crate) fn at<E: Display>(path: &Path) -> impl FnOnce(E) -> Self {
        let name = path.display().to_string();
        move |error| Self::file(name, error)
    }

    pub(crate) fn option(name: &'static str, expected: impl Display, found: impl Display) -> Self {
        Self::Option { name, expected: expected.to_string(), found: found.to_string() }
    }
}

/// The error of a matrix or its inputs.
pub(crate) fn setting(name: &str, expected: impl ToString, found: impl ToString) -> lance_mm_tensor::Error {
    lance_mm_tensor::Error::Setting {
        name: name.into(),
        expected: expected.to_string(),
        found: found.to_string(),
    }
}
