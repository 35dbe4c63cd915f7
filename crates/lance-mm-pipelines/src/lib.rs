//! Tasks of Lance, from pixels and text to answers, images and videos.
//!
//! Start from [`Lance`]: it loads a checkpoint, answers questions ([`ask`](Lance::ask)) and generates images and
//! videos ([`generate_image`](Lance::generate_image)). [`ImageContext`] puts many questions to one image, [`Chat`]
//! goes on over several turns; both are owned values. [`prompt`], [`Tokenizer`], [`mod@generate`] and [`checkpoint`]
//! have the parts.

mod ask;
pub mod checkpoint;
mod decode;
mod denoise;
mod error;
pub mod generate;
mod guidance;
mod model;
mod noise;
mod pixels;
mod plan;
pub mod prompt;
mod sampling;
mod schedule;
mod solver;
pub mod staged;
#[cfg(test)]
mod testing;
mod tokenizer;
mod warmup;

pub use ask::{Answer, AskOptions, BlockAttention, Chat, Content, ImageContext, ImageFeatures};
pub use checkpoint::{Checkpoint, CheckpointBytes, hub, inspect};
pub use decode::{DecodeOptions, FinishReason};
pub use denoise::{Denoised, Prefix};
pub use error::{Error, Result};
pub use generate::{GenerateOptions, Request, Size};
pub use guidance::{Guidance, Renorm};
pub use model::Lance;
pub use noise::noise;
pub use pixels::{frames_to_tensor, tensor_to_frames};
pub use sampling::{Sampler, Sampling};
pub use schedule::{InferenceStep, Schedule};
pub use solver::{Solver, SolverKind};
pub use tokenizer::{Scan, StopStrings, TextStream, Tokenizer};
