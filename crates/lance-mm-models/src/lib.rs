//! The networks of Lance. No files, pixels, tokens or prompts: weights come from a
//! [`Weights`], inputs are tensors and lists of numbers.
//!
//! [`Vit`] turns patches of images into tokens for the language model. [`Sequence`] lays segments of text
//! and images out as tokens with positions, attention blocks and experts: integers only, no tensors.
//! [`Llm`] runs such a sequence over a [`Cache`]; [`LatentLayers`] lead from latents to its tokens and from tokens
//! to velocities. [`Vae`] turns images and videos into latents and back. Architecture: ByteDance's Lance
//! (arXiv:2605.18678), a mixture of transformers in the shape of Qwen2.5-VL, with the VAE of Wan 2.2.
//!
//! ```no_run
//! use lance_mm_models::{Config, Cursor, Experts, Grid, Llm, Segment, Sequence, Vit};
//! use lance_mm_tensor::Weights;
//! # use candle_core::{DType, Device, Tensor};
//! let config = Config::from_json(&std::fs::read("Lance-3B-bf16/config.json")?)?;
//! let weights = Weights::open_in("Lance-3B-bf16".as_ref(), "model")?;
//! let llm = Llm::load(&config, &weights, Experts::Und)?;
//! let vit = Vit::load(&config.vision, &Weights::open_in("Lance-3B-bf16".as_ref(), "vit")?)?;
//!
//! let patches = Tensor::zeros((48 * 48, 1176), DType::F32, &Device::Cpu)?;
//! let grid = Grid { t: 1, h: 48, w: 48 };
//! let features = vit.forward(&patches, &[grid])?;
//! let segments = [Segment::Text(vec![1, 2, 3]), Segment::Vit(grid.merged(2)), Segment::Text(vec![4])];
//! let sequence = Sequence::new(&segments, &config.layout(), Cursor::default());
//! let mut cache = llm.cache();
//! let hidden = llm.prefill(&llm.embed(&sequence, &[features])?, &sequence, &mut cache)?;
//! let logits = llm.logits(&hidden)?; // (1, vocabulary)
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod cost;
pub mod latent;
mod llm;
mod monitor;
mod sequence;
pub mod vae;
mod vit;

use lance_mm_tensor::{Error, Result, Weights};

pub use config::{Config, VitConfig};
pub use latent::{LatentLayers, NoiseBlock};
pub use llm::{Cache, Experts, LinearInput, Llm, NextToken, is_generation};
pub use monitor::Probe;
pub use sequence::{Cursor, Expert, Grid, Mode, Segment, Sequence, SequenceLayout, Span, SpecialIds};
pub use vae::{Posterior, Vae, VaeConfig};
pub use vit::{Vit, VitLayout};

#[cfg(test)]
mod testing;

/// Names and shapes of the tensors that `load` reads: what it misses in an empty file. For tools that write
/// checkpoints.
///
/// # Errors
/// An error of `load` other than missing tensors.
///
/// ```
/// # use lance_mm_models::{Config, Experts, Llm, required};
/// # fn names(config: &Config) -> lance_mm_tensor::Result<Vec<(String, Vec<usize>)>> {
/// required(|weights| Llm::load(config, weights, Experts::Und).map(drop))
/// # }
/// ```
pub fn required(load: impl Fn(&Weights) -> Result<()>) -> Result<Vec<(String, Vec<usize>)>> {
    let empty = Weights::open::<std::path::PathBuf>(&[])?;
    match empty.load_all(&[], load) {
        Ok(()) => Ok(Vec::new()),
        Err(Error::Weights(problems)) => {
            Ok(problems.list.into_iter().filter_map(|p| Some((p.tensor, p.missing?))).collect())
        }
        Err(error) => Err(error),
    }
}
