//! Cost of quantization: a candidate checkpoint against its reference, in answers, logits and layers.
//!
//! [`parity()`] is the first thing to run: the same answers are teacher-forced in both models and their logits are
//! compared at every token ([`logits`]), then each answers on its own ([`text`]). [`layers()`] says which
//! linear layer loses how much, [`oracle`] puts answers of several models side by side, [`perplexity()`]
//! reads a text. Questions come from a [`Dataset`]. [`generation()`] compares images that two models generate from the same
//! noise; [`frequency`] and [`similarity`] measure images. All numbers are f64
//! over f32 logits, all answers greedy; nothing here says whether a number is good.
//!
//! ```no_run
//! use lance_mm_pipelines::Lance;
//! use lance_mm_eval::{Dataset, ParityOptions, parity};
//!
//! let reference = Lance::from_pretrained("Lance-3B-bf16")?;
//! let candidate = Lance::from_pretrained("Lance-3B-AWQ-INT4")?;
//! let data = Dataset::read("questions.jsonl".as_ref())?;
//! let report = parity(&reference, &candidate, &data, &ParityOptions::default(), &mut |_, _| {})?;
//! if let Some(logits) = &report.all.logits {
//!     println!("{} nats over {} tokens", logits.kl.mean, logits.positions);
//! }
//! # Ok::<(), lance_mm_eval::Error>(())
//! ```

pub mod bench;
mod data_info;
pub mod dataset;
mod distribution;
mod error;
mod finite;
pub mod frequency;
pub mod generation;
pub mod layers;
pub mod logits;
pub mod memory;
mod model;
pub mod oracle;
pub mod parity;
mod perplexity;
mod relative;
pub mod similarity;
#[cfg(test)]
mod testing;
pub mod text;

pub use data_info::DataInfo;
pub use dataset::{Dataset, ImageSource, Media, Sample};
pub use distribution::Distribution;
pub use error::{Error, Result};
pub use generation::{GenerationOptions, GenerationReport, generation};
pub use layers::{LayerOptions, LayerReport, layers};
pub use logits::{LogitReport, Position};
pub use model::ModelInfo;
pub use oracle::{CaseAnswer, OracleReport};
pub use parity::{Continuation, ParityOptions, ParityReport, parity};
pub use perplexity::{PerplexityOptions, PerplexityReport, perplexity};
pub use relative::{Decibels, Relative};

/// Told before the first sample and after each: samples done, samples in all.
pub type SampleProgress<'a> = dyn FnMut(usize, usize) + 'a;

/// Fewer samples than this are called a small sample.
pub const SMALL_SAMPLE: usize = 32;

/// The example of the README, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
