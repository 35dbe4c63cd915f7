//! Converts Lance checkpoints between the layout of the original release and MLX's, which `lance-mm` loads.
//!
//! Start from [`convert`](convert()). Tensors are read and written one after the other: memory is that of a piece of one,
//! or of one convolution of the VAE, however large the model is. The pickle of the original VAE is read by a machine
//! that knows the few opcodes of a state dict and runs nothing.
//!
//! ```no_run
//! use lance_mm_convert::{ConvertOptions, convert};
//!
//! let report = convert("Lance_3B", "Lance-3B-bf16", &ConvertOptions::default(), &mut |_| {})?;
//! println!("{report}");
//! # Ok::<(), lance_mm_convert::Error>(())
//! ```

mod check;
mod convert;
mod error;
mod file_tensor;
mod names;
mod parts;
mod progress;
mod pth;
mod report;
pub mod safetensors_file;
mod vae;
mod verify;
mod write;

pub use convert::{ConvertOptions, convert};
pub use error::{Error, Result};
pub use progress::Written;
pub use report::{ConvertReport, ConvertedPart};
pub use verify::RoundTrip;
pub use write::TargetLayout;

#[cfg(test)]
mod tests;
