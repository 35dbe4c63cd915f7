//! Quantizes a Lance checkpoint: sequences it over questions to record the input activations of its linear layers, searches
//! scales and bits with `lance-mm-quant`, and writes a checkpoint in the MLX layout.
//!
//! [`quantize`](quantize()) does all of it; [`QuantizeOptions`] says how, [`Report`] what came of it. Without calibration:
//!
//! ```
//! use lance_mm_calibrate::{QuantizeOptions, Recipe, quantize};
//!
//! # let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/nano-bf16");
//! # if !std::path::Path::new(source).exists() { return Ok(()); }
//! # let folder = std::env::temp_dir().join(format!("lance-mm-calibrate-{}", std::process::id()));
//! # let out = folder.join("out");
//! # std::fs::create_dir_all(&folder).expect("a temporary folder");
//! let options = QuantizeOptions { recipe: Recipe::Rtn, bits: 8, ..QuantizeOptions::default() };
//! let report = quantize(source, None, &out, &options, &mut |_| {})?;
//! assert!(report.linears().iter().all(|linear| linear.bits == 8));
//! # std::fs::remove_dir_all(&folder).expect("a temporary folder");
//! # Ok::<(), lance_mm_calibrate::Error>(())
//! ```
//!
//! With it, `dataset` is a [`Dataset`](lance_mm_eval::Dataset) of questions about images; see the crate's README and its
//! example `quantize`.

mod answer_divergence;
mod bit_allocation;
mod calibration_sequence;
mod calibration_set;
mod capture;
mod checkpoint_writer;
mod config;
mod context;
mod error;
mod expert_weights;
mod files;
mod fusion_report;
mod generation_requests;
mod input_files;
mod layer_quantizer;
mod model_parts;
mod module_schemes;
mod names;
mod options;
mod output_head;
mod progress;
mod quantize;
mod recipe;
mod report;
mod stored_tensors;
#[cfg(test)]
mod testing;
mod vision_encoder;
mod work_folder;

pub use error::{Error, Result};
pub use expert_weights::{ExpertWeights, Heads};
pub use fusion_report::FusionReport;
pub use generation_requests::GenerationRequests;
pub use layer_quantizer::{
    ExpertResult, LayerActivations, LayerQuantizer, LayerResult, LayerWeights, LinearResult, LinearWeight,
    measure_layer, quantize_layer,
};
pub use names::{FusionGroup, Proj};
pub use options::{GenExpert, QuantizeOptions, RecipeSteps, Scaling, Sensitivity};
pub use output_head::{HeadActivations, HeadResult, measure_head, quantize_head};
pub use progress::{Observer, Progress};
pub use quantize::quantize;
pub use recipe::Recipe;
pub use report::Report;

#[cfg(test)]
mod tests;

/// The example of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
