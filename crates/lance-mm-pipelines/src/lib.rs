//! Tasks of Lance, from pixels and text to answers.
//!
//! Start from [`Understanding`]: load a checkpoint, [`generate`](Understanding::generate) an answer about a
//! picture, or take the steps one by one: [`lance_mm_image`] prepares pixels, [`Tokenizer`] and
//! [`prompt`] text, [`Understanding::answer`] streams, [`Look`] asks many questions about one picture,
//! [`Chat`] goes on over several turns. [`Generation`] draws pictures and videos; [`mod@generate`] has its parts.

pub mod checkpoint;
mod decode;
mod denoise;
mod error;
pub mod generate;
mod guidance;
mod noise;
mod pixels;
pub mod prompt;
mod sampling;
mod schedule;
mod solver;
#[cfg(test)]
mod testing;
mod tokenizer;
mod understand;
mod warm;

pub use checkpoint::{Checkpoint, CheckpointBytes, inspect};
pub use decode::{Decoding, Finish, Sink, SinkOf};
pub use denoise::{Denoised, Prefix};
pub use error::{Error, Result};
pub use generate::{Generation, GenerationOptions, Request};
pub use guidance::{Guidance, Renorm};
pub use noise::noise;
pub use pixels::{frames_to_tensor, tensor_to_frames};
pub use sampling::{Sampler, Sampling};
pub use schedule::{Schedule, Step};
pub use solver::{Method, Solver};
pub use tokenizer::{Scan, StopStrings, TextStream, Tokenizer};
pub use understand::{Answer, BlockAttention, Chat, Look, Options, Part, Understanding, Visual};
