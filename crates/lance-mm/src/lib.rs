//! Lance, ByteDance's unified multimodal model (arXiv:2605.18678), in Rust on candle. Nothing to do with
//! LanceDB.
//!
//! Start from [`Lance`]: it answers questions about images, videos and text, and generates images and videos.
//!
//! ```
//! use lance_mm::{AskOptions, Lance, image};
//!
//! # use lance_mm::{Checkpoint, CheckpointBytes};
//! # let bytes = CheckpointBytes { name: "nano", config: lance_mm_nano::CONFIG, tokenizer: lance_mm_nano::TOKENIZER,
//! #     generation_config: lance_mm_nano::GENERATION_CONFIG, model: lance_mm_nano::MODEL, vit: lance_mm_nano::VIT };
//! # stringify! {
//! let lance = Lance::from_pretrained("Lance-3B-AWQ-INT4")?;
//! # };
//! # let lance = Lance::new(Checkpoint::in_memory(&bytes)?)?;
//! # let bytes = lance_mm_nano::DEMOS[2].png;
//! let plate = image::decode(bytes, "plate.png", &image::LoadOptions::default())?;
//! let answer = lance.ask(&plate, "What is the license plate number of the car?", &AskOptions::default())?;
//! assert_eq!(answer.text, "BX62 BFY");
//! # Ok::<(), lance_mm::Error>(())
//! ```
//!
//! This crate only re-exports; each layer is a crate of its own:
//!
//! | here | crate | content |
//! |---|---|---|
//! | the root, [`prompt`], [`mod@generate`], [`checkpoint`], [`inspect`] | `lance-mm-pipelines` | tasks, sessions, tokenizer, prompts, checkpoints |
//! | [`mod@image`], [`video`] | `lance-mm-image` | pixels: decoding, resizing, patches, clips |
//! | [`models`] | `lance-mm-models` | the networks |
//! | [`tensor`] | `lance-mm-tensor` | mapped weights, quantized matrices, attention |
//!
//! Quantizing a checkpoint is `lance-mm-calibrate`, measuring one `lance-mm-eval`, changing its layout
//! `lance-mm-convert`.
//!
//! Networks run on the CPU unless told otherwise ([`ActivationPrecision`](tensor::ActivationPrecision) says in which precision):
//!
//! ```no_run
//! use lance_mm::tensor::{ActivationPrecision, DeviceChoice};
//! use lance_mm::{Checkpoint, Lance};
//!
//! let checkpoint = Checkpoint::open("Lance-3B-AWQ-INT4")?;
//! let device = DeviceChoice::Auto.open()?;
//! let lance = Lance::new(checkpoint.with_device(&device).with_activations(ActivationPrecision::Split))?;
//! # Ok::<(), lance_mm::Error>(())
//! ```

/// Tensors, devices and dtypes in the API of this crate.
pub use candle_core as candle;
pub use lance_mm_image as image;
pub use lance_mm_image::video;
pub use lance_mm_models as models;
pub use lance_mm_pipelines::{
    Answer, AskOptions, BlockAttention, Chat, Checkpoint, CheckpointBytes, Content, DecodeOptions, Denoised,
    Error, FinishReason, GenerateOptions, Guidance, ImageContext, ImageFeatures, InferenceStep, Lance,
    Prefix, Renorm, Request, Result, Sampler, Sampling, Scan, Schedule, Size, Solver, SolverKind,
    StopStrings, TextStream, Tokenizer, checkpoint, frames_to_tensor, generate, hub, inspect, noise, prompt,
    staged, tensor_to_frames,
};
pub use lance_mm_tensor as tensor;
pub use lance_mm_tensor::StopFlag;

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
