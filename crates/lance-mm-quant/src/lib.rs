//! Quantizes the weights of Lance models by what their inputs are: arithmetic on weights and a table of
//! names. No files, no pictures, no runs of a model; whoever records the inputs calls this crate.
//!
//! Start from [`quantize_layer`], which takes the [weights](LayerWeights) of a layer and the recorded
//! [inputs](SiteRows) of its linear layers and returns packed weights, changed norms and a report;
//! [`quantize_head`] does the same for the output head and [`quantize_linear`] for a single matrix, also
//! without inputs. A [`Recipe`] says which steps are taken:
//!
//! 1. [`search`](search()) finds a scale for the channels between a producer and its consumers (AWQ,
//!    arXiv:2306.00978), [`ExpertWeights::fuse`] moves it into both;
//! 2. [`LayerQuantizer`] fits weights to what they read in the model quantized so far, so that later layers
//!    make good what earlier ones got wrong;
//! 3. every linear layer is rounded in several ways: plainly, with clipped ranges and refitted scales, with
//!    error feedback (GPTQ, arXiv:2210.17323), with feedback followed by descent on codes, scales and biases
//!    of the whole row;
//! 4. rows of samples that no search has seen decide which way is kept.
//!
//! [`allocate`](allocate()) divides a budget of bytes among matrices. All results are the same on any number
//! of threads.
//!
//! ```
//! use lance_mm_quant::{Inputs, Matrix, Recipe, Rows, quantize_linear};
//! use lance_mm_tensor::Scheme;
//!
//! let values = |n: usize, a: f32| -> Vec<f32> { (0..n).map(|i| (i as f32 * a).sin()).collect() };
//! let weight = Matrix::new("w", values(8 * 64, 0.37), 64)?;
//! let rows = Rows::new("x", values(50 * 64, 1.31), &values(20 * 64, 1.73), 64)?;
//! let inputs = Inputs::new("x", rows);
//! let result = quantize_linear("w", &weight, Some(&inputs), Scheme::affine(4, 32)?, &Recipe::default())?;
//! assert!(result.trial().held_back <= result.trials[0].held_back);
//! assert_eq!(result.weight.words().len(), 8 * 64 * 4 / 32);
//! # Ok::<(), lance_mm_tensor::Error>(())
//! ```

mod allocate;
mod block;
mod clip;
mod compensate;
mod descent;
mod factor;
mod fuse;
mod gptq;
mod gram;
mod head;
mod inputs;
mod layer;
mod linear;
mod matrix;
mod names;
mod recipe;
mod refit;
mod report;
mod rows;
mod search;
mod seed;
#[cfg(test)]
mod testing;
mod tie;

pub use allocate::{Choice, Item, allocate, stored_bytes, widths};
pub use compensate::{Compensated, Drift};
pub use fuse::{ExpertWeights, Heads};
pub use head::{HeadResult, HeadRows, measure_head, quantize_head};
pub use inputs::Inputs;
pub use layer::{
    ExpertResult, Form, LayerQuantizer, LayerResult, LayerWeights, LinearResult, SiteRows, measure_layer,
    quantize_layer,
};
pub use linear::{
    GroupFits, Method, Quantized, Trial, fit_groups, quantize_by, quantize_linear, width_errors,
};
pub use matrix::{Matrix, Scaled, Source};
pub use names::{Expert, Pair, Proj, Site};
pub use recipe::{Recipe, Scaling};
pub use report::{LinearReport, PairReport};
pub use rows::Rows;
pub use search::{Candidate, Channels, Consumer, Family, Search, candidates, losses, search};
pub use seed::{SeedSearch, activation_mean, draw, seed_scales, seed_search};
pub use tie::Tie;
