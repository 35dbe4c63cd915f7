//! Tasks of Lance.

mod error;
pub mod image;
mod sampling;
mod tokenizer;
pub mod video;

pub use error::{Error, Result};
pub use sampling::{Sampler, Sampling};
pub use tokenizer::{Scan, StopStrings, TextStream, Tokenizer};
