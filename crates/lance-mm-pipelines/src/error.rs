//! The error of the tasks.

use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Error of loading a checkpoint or running a task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Weights or an operation on them.
    #[error(transparent)]
    Tensor(lance_mm_tensor::Error),
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
    /// A model of the hub that its local cache does not have, or has only a part of.
    #[error("{name}: {message}")]
    NotCached {
        /// `org/name` or `org/name@revision`.
        name: String,
        /// Missing files, and the command that downloads them.
        message: String,
    },
    /// A repository or file that the hub did not give, or that arrived damaged.
    #[error("{name}: {message}")]
    Hub {
        /// The repository or address.
        name: String,
        /// The reason.
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
    /// More tokens than the model has positions for.
    #[error("prompt: expected at most {limit} tokens, found {tokens}")]
    PromptTooLong {
        /// Tokens found.
        tokens: usize,
        /// Most tokens that are possible.
        limit: usize,
    },
    /// A special token that is written out in text, where it is not [taken as plain
    /// text](crate::prompt::SpecialTokens).
    #[error("prompt: expected plain text in the {place}, found the special token {token}")]
    SpecialToken {
        /// `question`, `system message`, `answer` or `prompt`.
        place: &'static str,
        /// The token.
        token: String,
    },
    /// A task for which the checkpoint lacks a network, or is not suited.
    #[error("{name}: {message}")]
    UnsupportedByModel {
        /// The checkpoint.
        name: String,
        /// Expected and found.
        message: String,
    },
    /// An option out of range.
    #[error("option {name}: expected {expected}, found {found}")]
    Option {
        /// The option.
        name: &'static str,
        /// Legal values.
        expected: String,
        /// Value found.
        found: String,
    },
    /// Logits that no token can be chosen from.
    #[error("logits: {0}")]
    Logits(String),
    /// A value that is NaN or infinite, where an output would be made of it: damaged weights, or numbers that
    /// overflowed.
    #[error("{place}: expected finite numbers, found {found}")]
    NotFinite {
        /// Network or stage, and the place in it.
        place: String,
        /// The value.
        found: f32,
    },
    /// The stop flag was set, or a callback asked to stop.
    #[error("interrupted")]
    Interrupted,
}

impl From<lance_mm_tensor::Error> for Error {
    fn from(error: lance_mm_tensor::Error) -> Self {
        match error {
            lance_mm_tensor::Error::Stopped => Self::Interrupted,
            lance_mm_tensor::Error::NotFinite { place, found } => Self::NotFinite { place, found },
            error => Self::Tensor(error),
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        lance_mm_tensor::Error::from(error).into()
    }
}

impl Error {
    pub(crate) fn option(name: &'static str, expected: impl ToString, found: impl ToString) -> Self {
        Self::Option { name, expected: expected.to_string(), found: found.to_string() }
    }
}
