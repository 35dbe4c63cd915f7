//! `cargo xtask convert SRC DST`: checkpoints between the layout of the original release and MLX's.
//!
//! `checkpoint` opens either as the parts of the MLX layout, without reading a value; `write` writes
//! them in one of the two, tensor by tensor. Memory is that of a piece of a tensor, or of one convolution of
//! the VAE, however large the model is.

#![allow(clippy::print_stdout, reason = "a command line program")]

mod check;
mod checkpoint;
pub mod folder;
mod located;
mod names;
mod pth;
mod report;
pub mod safetensors_file;
pub mod split;
mod vae;
mod verify;
mod write;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use lance_mm_pipelines::checkpoint::CheckpointLayout;

use checkpoint::Checkpoint;
use write::Target;

/// Convert a checkpoint between the layout of the original release and MLX's.
///
/// SRC is a folder of the original release (Lance_3B, Lance_3B_Video), of a third party's F32 export, or in
/// the dense MLX layout; a folder with nothing but a VAE, or its .pth, is converted alone. Shards are read.
/// Every tensor is checked against the configuration before anything is written, and DST appears only when
/// all of it is there.
#[derive(Args)]
pub struct Convert {
    /// Checkpoint folder.
    src: PathBuf,
    /// Folder to write.
    dst: PathBuf,
    /// CheckpointLayout to write.
    #[arg(long, value_enum, default_value = "mlx-bf16")]
    to: Target,
    /// Keep the UND expert and the vision transformer only.
    #[arg(long)]
    und_only: bool,
    /// Convert DST back, into a temporary folder beside it, and compare every tensor with SRC. A difference
    /// fails the command; DST stays.
    #[arg(long)]
    verify: bool,
}

impl Convert {
    /// Converts.
    ///
    /// # Errors
    /// A source that cannot be converted, or a `dst` that exists or cannot be written.
    pub fn run(&self) -> Result<ExitCode> {
        let checkpoint = Checkpoint::open(&self.src, self.und_only)?;
        crate::folder::write(&self.dst, |dir| self.to.write(&checkpoint, dir))?;
        for line in report::lines(&checkpoint, &self.dst) {
            println!("{line}");
        }
        Ok(if !self.verify || self.verified(&checkpoint)? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn verified(&self, first: &Checkpoint) -> Result<bool> {
        let there = Checkpoint::open(&self.to.written(first, &self.dst), false)?;
        let to = match (first.layout, self.to) {
            (Some(CheckpointLayout::Mlx), _) | (None, Target::Upstream) => Target::MlxBf16,
            _ => Target::Upstream,
        };
        crate::folder::temporary(&self.dst, "back", |dir| {
            to.write(&there, dir)?;
            let back = Checkpoint::open(&to.written(&there, dir), false)?;
            let mut passed = first.unmapped.is_empty();
            for (part, counts) in
                verify::compare(first, &back)?.iter().filter(|(_, counts)| !counts.is_empty())
            {
                println!("{}", counts.line(part));
                passed &= counts.passed();
            }
            Ok(passed)
        })
    }
}

#[cfg(test)]
mod tests;
