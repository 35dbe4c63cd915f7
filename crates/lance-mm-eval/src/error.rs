//! The error of measurements.

use std::path::Path;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Errors of a measurement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model, a file or an option that the tasks refuse.
    #[error(transparent)]
    Pipeline(#[from] lance_mm_pipelines::Error),
    /// Input that cannot be measured: a sample of a data set, a text, logits, a pair of models.
    #[error("{name}: {message}")]
    Data {
        /// The file and line, the sample, or the kind of input.
        name: String,
        /// Expected and found.
        message: String,
    },
    /// An error of one sample of a data set, or of one of two models.
    #[error("{place}: {source}")]
    Sample {
        /// File and line, or `reference` or `candidate`.
        place: String,
        /// The error.
        source: Box<Error>,
    },
}

impl From<lance_mm_tensor::Error> for Error {
    fn from(error: lance_mm_tensor::Error) -> Self {
        Self::Pipeline(error.into())
    }
}

impl From<lance_mm_image::Error> for Error {
    fn from(error: lance_mm_image::Error) -> Self {
        Self::Pipeline(error.into())
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Pipeline(error.into())
    }
}

impl Error {
    pub(crate) fn data(name: impl Into<String>, message: impl ToString) -> Self {
        Self::Data { name: name.into(), message: message.to_string() }
    }

    /// The same of one of two models.
    pub(crate) fn of_model(self, model: &str) -> Self {
        match self {
            Self::Pipeline(lance_mm_pipelines::Error::Interrupted) => self,
            error => Self::Sample { place: model.to_owned(), source: Box::new(error) },
        }
    }

    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Pipeline(lance_mm_pipelines::Error::Io { path: path.to_owned(), source })
    }

    pub(crate) fn option(name: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        let (expected, found) = (expected.to_string(), found.to_string());
        Self::Pipeline(lance_mm_pipelines::Error::Option { name, expected, found })
    }
}
