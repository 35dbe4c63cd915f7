//! Arithmetic of weight quantization: matrices and recorded inputs in, packed weights out. No files, no model runs and
//! no names of a network; `lance-mm-calibrate` records the inputs of a Lance checkpoint and calls this crate.
//!
//! Start from [`quantize_linear`], which rounds a [matrix](Matrix) in every way that a [`RoundingOptions`] allows and keeps the
//! one with the smallest output error on held-out [activations](Activations): plain; clipped ranges with refitted
//! scales; error feedback (GPTQ, arXiv:2210.17323); error feedback followed by coordinate descent on codes, scales and
//! biases of the whole row. Around it:
//!
//! - [`search`](search()) finds a scale for the channels between a producer and its consumers (AWQ, arXiv:2306.00978);
//! - [`Compensated`] fits a weight to its inputs in the model quantized so far, so that it compensates for the errors of
//!   earlier layers;
//! - [`allocate`](allocate()) divides a budget of bytes among matrices.
//!
//! All results are the same on any number of threads.
//!
//! ```
//! use lance_mm_quant::{Activations, Inputs, Matrix, RoundingOptions, quantize_linear};
//! use lance_mm_tensor::Scheme;
//!
//! let values = |n: usize, a: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * a).sin()).collect() };
//! let weight = Matrix::new("w", values(8 * 64, 0.37), 64)?;
//! let activations = Activations::new("x", values(50 * 64, 1.31), &values(20 * 64, 1.73), 64)?;
//! let inputs = Inputs::new("x", activations);
//! let result = quantize_linear("w", &weight, Some(&inputs), Scheme::affine(4, 32)?, &RoundingOptions::default())?;
//! assert!(result.trial().held_out <= result.trials[0].held_out);
//! assert_eq!(result.weight.words().len(), 8 * 64 * 4 / 32);
//! # Ok::<(), lance_mm_tensor::Error>(())
//! ```

mod activations;
mod allocate;
mod block;
mod clip;
mod compensate;
mod descent;
mod gptq;
mod group_gram;
mod hessian_factor;
mod inputs;
mod lance_mlx;
mod linear;
mod matrix;
mod or_nan;
mod refit;
mod report;
mod rounding_options;
mod scale_search;
#[doc(hidden)]
pub mod testing;
mod tie;

pub use activations::Activations;
pub use allocate::{Choice, Item, allocate, stored_bytes, widths};
pub use compensate::{Compensated, Drift};
pub use inputs::Inputs;
pub use lance_mlx::{LanceMlxSearch, activation_mean, lance_mlx_scales, lance_mlx_search, synthetic_inputs};
pub use linear::{GroupFits, QuantizedMatrix, Trial, fit_groups, quantize_by, quantize_linear, width_errors};
pub use matrix::{Matrix, RowSource, Scaled};
pub use report::RoundingReport;
pub use rounding_options::{RoundingMethod, RoundingOptions};
pub use scale_search::{Candidate, Channels, Consumer, Family, Search, candidates, losses, search};
pub use tie::Tie;
