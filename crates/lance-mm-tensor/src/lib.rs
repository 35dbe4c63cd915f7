//! Operations of lance-mm on [candle](candle_core) tensors. This crate knows nothing of Lance: no checkpoint
//! key, no token id.
//!
//! Start from [`Weights`], which maps safetensors files and hands out tensors by name and shape;
//! [`Linear`], [`Embedding`] and [`RmsNorm`] load themselves from it and read a weight in the form the
//! file holds: dense (`F32`, `F16`, `BF16`) or quantized in MLX's formats ([`AffineWeight`], [`MxWeight`]).
//! [`Rotary`] makes multimodal rotary tables, [`attention`](attention()) runs blocks of queries against ranges of
//! keys. [`Conv`] and [`PixelNorm`] work on video frames, channels last. [`in_thread_pool`] runs a whole pass without
//! waking threads for each operation, [`StopFlag`] ends one early.
//!
//! Shapes in this documentation: `T` tokens or patches, `S` keys, `H` heads, `G` key/value heads, `D` head width,
//! `K` input features, `R` output features (rows of a weight); of frames, `H` rows, `W` columns, `C` channels.
//!
//! Activations are f32. On a device hidden states may be f16 or bf16 too, and an operation returns the dtype it is
//! given; sums, norms, softmax and rotary tables are f32 in any case. [`hidden_dtype`] gives the dtype to use.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use lance_mm_tensor::{AffineWeight, Linear, Scheme};
//!
//! // Quantize a (2, 32) matrix to 4 bits in groups of 32, and multiply by it.
//! let w: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
//! let linear = Linear::from(AffineWeight::quantize_f32("w", &w, 32, Scheme::affine(4, 32)?)?);
//! let x = Tensor::ones((1, 32), candle_core::DType::F32, &Device::Cpu)?;
//! assert_eq!(linear.forward(&x)?.dims(), [1, 2]);
//! # Ok::<(), lance_mm_tensor::Error>(())
//! ```

mod affine;
mod attention;
mod attention_block;
mod bytes;
mod conv;
mod conv_window;
mod cpu_values;
mod dense;
mod device;
mod device_weight;
mod dtype;
mod embedding;
mod error;
mod finite;
mod kernels;
mod linear;
pub mod metadata;
mod mx_formats;
mod norm;
mod pixel_norm;
mod precision;
mod quantization;
pub mod roofline;
mod rope;
mod scheme;
mod stop_flag;
mod swiglu;
#[doc(hidden)]
pub mod testing;
mod thread_pool;
mod upsample;
mod weight;
mod weights;

pub use affine::{AffineWeight, pack_codes, quantize_group};
pub use attention::{attention, attention_each};
pub use attention_block::Block;
pub use conv::Conv;
pub use conv_window::Window;
pub use cpu_values::read_values;
pub use dense::DenseWeight;
pub use device::{DeviceChoice, device_name, download, hidden_dtype, upload, with_autorelease_pool};
pub use device_weight::DeviceWeight;
pub use dtype::FloatType;
pub use embedding::Embedding;
pub use error::{Error, Problem, Problems, Result};
pub use finite::{first_not_finite, require_finite};
pub use kernels::{MatRef, Real, add_matmul, metal};
pub use linear::Linear;
pub use mx_formats::MxWeight;
pub use norm::RmsNorm;
pub use pixel_norm::PixelNorm;
pub use precision::{ActivationPrecision, kv_dtype};
pub use quantization::Quantization;
pub use rope::{Rotary, RotaryTable};
pub use scheme::{QuantMode, Scheme};
pub use stop_flag::StopFlag;
pub use swiglu::swiglu;
pub use thread_pool::in_thread_pool;
pub use upsample::upsample_repeat;
pub use weight::Weight;
pub use weights::{TensorInfo, Weights};
