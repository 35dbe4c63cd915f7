//! Quantizes a Lance checkpoint: runs it over questions to record the input activations of its linear layers, searches
//! scales and bits with `lance-mm-quant`, and writes a checkpoint in the MLX layout.
//!
//! Start from [`quantize`](quantize()).

mod capture;
mod config;
mod drawings;
mod judge;
mod layer;
mod options;
mod output;
mod progress;
mod quantize;
mod report;
mod run;
mod samples;
mod scheme;
mod stored;
mod vit;
mod widths;
mod workdir;

pub use drawings::Drawings;
pub use options::{GenExpert, QuantizeOptions, Recipe, Sensitivity};
pub use progress::{Observer, Progress};
pub use quantize::quantize;
pub use report::Report;
