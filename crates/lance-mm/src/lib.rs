//! Lance, ByteDance's unified multimodal model (arXiv:2605.18678), in Rust on candle. Nothing to do with
//! LanceDB.
//!
//! This crate only puts the layers together; each can be used alone:
//!
//! | module | crate | what |
//! |---|---|---|
//! | the root | `lance-mm-pipelines` | tasks: start from [`Understanding`] to ask, [`Generation`] to draw |
//! | [`mod@image`], [`video`] | `lance-mm-image` | pixels: decoding, resizing, patches, frames |
//! | [`models`] | `lance-mm-models` | the networks |
//! | [`quant`] | `lance-mm-quant` | arithmetic of quantization: scales, rounding, error feedback |
//! | [`tensor`] | `lance-mm-tensor` | weights, quantized matrices, attention |
//!
//! ```
//! use lance_mm::{Options, Understanding, image};
//! # use lance_mm::{Checkpoint, CheckpointBytes};
//! # let files = CheckpointBytes { name: "nano", config: lance_mm_nano::CONFIG, generation_config: lance_mm_nano::GENERATION_CONFIG,
//! #     tokenizer: lance_mm_nano::TOKENIZER, model: lance_mm_nano::MODEL, vit: lance_mm_nano::VIT };
//! # let folder = Checkpoint::in_memory(&files)?;
//! # let bytes = lance_mm_nano::DEMOS[2].png;
//! # stringify! {
//! let lance = Understanding::from_pretrained("Lance-3B-AWQ-INT4")?;
//! # };
//! # let lance = Understanding::new(folder)?;
//! let picture = image::decode(bytes, "plate.png", &image::LoadOptions::default())?;
//! let answer = lance.generate(&picture, "What is the license plate number of the car?", &Options::default())?;
//! assert_eq!(answer.text, "BX62 BFY");
//! # Ok::<(), lance_mm::Error>(())
//! ```
//!
//! A name in `from_pretrained` is a folder. Models of the Hugging Face hub are fetched by the program: the last line of
//! `lance-mm pull ORG/NAME` is the folder, `lance-mm pull --offline ORG/NAME` prints it later.
//!
//! By default networks run on the CPU, and inputs of products with bf16 matrices count as two bf16 terms
//! ([`ActivationPrecision::Split`](tensor::ActivationPrecision::Split)): nearly exact. The program takes a Mac's GPU where there is one,
//! and bf16, which is faster:
//!
//! ```no_run
//! use lance_mm::tensor::{ActivationPrecision, DeviceChoice};
//! use lance_mm::{Checkpoint, Understanding};
//!
//! let checkpoint = Checkpoint::open("Lance-3B-AWQ-INT4")?;
//! let device = DeviceChoice::Auto.open()?;
//! let lance = Understanding::new(checkpoint.with_device(&device).with_activations(ActivationPrecision::Bf16))?;
//! # Ok::<(), lance_mm::Error>(())
//! ```

/// Tensors, devices and types in what this crate takes and gives.
pub use candle_core as candle;
pub use lance_mm_image as image;
pub use lance_mm_image::video;
pub use lance_mm_models as models;
pub use lance_mm_pipelines::*;
pub use lance_mm_quant as quant;
pub use lance_mm_tensor as tensor;

/// The examples of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
