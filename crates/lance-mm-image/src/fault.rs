//! Reasons why an image cannot be decoded, before they have the name of a file.

use crate::error::Error;
use crate::format::Format;

/// Why a decoder refuses an image.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Data that breaks the rules of its format, or ends too early.
    Damaged(String),
    /// A part of the format that is not implemented.
    Unsupported(String),
    /// More than the limits allow; the message says expected and found.
    TooLarge {
        /// Most pixels or frames allowed.
        limit: u64,
        /// Expected and found.
        message: String,
    },
    /// An image that is whole but cannot be used.
    Unusable(String),
}

impl Fault {
    /// Damage, described by a decoder.
    pub(crate) fn damaged(message: impl ToString) -> Self {
        Self::Damaged(message.to_string())
    }

    /// A missing feature, described by what was found.
    pub(crate) fn unsupported(message: impl ToString) -> Self {
        Self::Unsupported(message.to_string())
    }

    /// Data that ends before the image does.
    pub(crate) fn ends_early() -> Self {
        Self::damaged("the data ends too early")
    }

    /// The error of a file of this name and format.
    pub(crate) fn named(self, name: &str, format: Format) -> Error {
        let name = name.to_owned();
        match self {
            Self::Damaged(detail) => {
                Error::Image { name, message: format!("damaged or truncated {format}: {detail}") }
            }
            Self::Unsupported(detail) => {
                Error::Image { name, message: format!("unsupported {format}: {detail}") }
            }
            Self::TooLarge { limit, message } => Error::TooLarge { name, limit, message },
            Self::Unusable(message) => Error::Image { name, message },
        }
    }
}
