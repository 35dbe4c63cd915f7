//! The error of the tasks.

use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong between a file and an answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Weights or an operation on them.
    #[error(transparent)]
    Tensor(#[from] lance_mm_tensor::Error),
    /// A file that could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// A folder or file that is no checkpoint we read.
    #[error("{name}: {message}")]
    Checkpoint {
        /// The folder, or what stands for it.
        name: String,
        /// Expected and found.
        message: String,
    },
    /// Pixels, or a file of them.
    #[error(transparent)]
    Image(#[from] lance_mm_image::Error),
    /// A tokenizer that cannot be read, or that lacks a token.
    #[error("{name}: {message}")]
    Tokenizer {
        /// The file or folder.
        name: String,
        /// Expected and found.
        message: String,
    },
    /// A prompt that cannot be laid out.
    #[error("prompt: {0}")]
    Prompt(String),
    /// An option out of range.
    #[error("option {name}: expected {expected}, found {found}")]
    Option {
        /// The option.
        name: &'static str,
        /// What is legal.
        expected: String,
        /// What was given.
        found: String,
    },
    /// Logits that no token can be chosen from.
    #[error("logits: {0}")]
    Logits(String),
    /// Latents that are no picture.
    #[error("latents: {0}")]
    Latents(String),
    /// Generation was asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Self::Tensor(error.into())
    }
}

impl Error {
    pub(crate) fn option(name: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Option { name, expected: expected.to_string(), found: found.to_string() }
    }
}
