//! Folders in the layouts that are written.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use safetensors::Dtype;
use serde_json::Value;

use super::checkpoint::{Checkpoint, VAE_PTH};
use super::{names, pth, report, vae};
use crate::safetensors_file::write_located;

/// A layout that is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Target {
    /// The published MLX layout: norms of the language model in F32, the rest in BF16.
    MlxBf16,
    /// The original release: DST/Lance_3B or DST/Lance_3B_Video, beside it the vision transformer (in the
    /// model file for video) and Wan2.2_VAE.pth, all in F32.
    Upstream,
}

impl Target {
    /// The type of values that are no norms, for the report.
    pub(super) fn dtype(self) -> &'static str {
        match self {
            Self::MlxBf16 => "bf16",
            Self::Upstream => "f32",
        }
    }

    /// Writes `checkpoint` into the empty folder `dir`.
    pub(super) fn write(self, checkpoint: &Checkpoint, dir: &Path) -> Result<()> {
        match self {
            Self::MlxBf16 => mlx(checkpoint, dir)?,
            Self::Upstream => upstream(checkpoint, dir)?,
        }
        json(&dir.join("conversion_report.json"), &report::report(checkpoint, self))
    }

    /// What to open to read what was written into `dir`.
    pub(super) fn written(self, checkpoint: &Checkpoint, dir: &Path) -> PathBuf {
        match (self, checkpoint.has_model()) {
            (Self::MlxBf16, _) => dir.to_owned(),
            (Self::Upstream, true) => dir.join(variant(checkpoint)),
            (Self::Upstream, false) => dir.join(VAE_PTH),
        }
    }
}

/// The folder of the original release that a model belongs into.
pub(super) fn variant(checkpoint: &Checkpoint) -> &'static str {
    if checkpoint.video { "Lance_3B_Video" } else { "Lance_3B" }
}

fn mlx(checkpoint: &Checkpoint, dir: &Path) -> Result<()> {
    if let Some(config) = &checkpoint.config {
        let norms_in_f32 = |name: &str| if name.contains("norm") { Dtype::F32 } else { Dtype::BF16 };
        let model = dir.join("model.safetensors");
        write_located(model, "mlx", checkpoint.llm.clone(), |t| norms_in_f32(&t.name))?;
        write_located(dir.join("vit.safetensors"), "mlx", checkpoint.vit.clone(), |_| Dtype::BF16)?;
        json(&dir.join("config.json"), config)?;
        copy(checkpoint, dir)?;
    }
    if !checkpoint.vae.is_empty() {
        write_located(dir.join("vae.safetensors"), "mlx", checkpoint.vae.clone(), |_| Dtype::BF16)?;
    }
    Ok(())
}

fn upstream(checkpoint: &Checkpoint, root: &Path) -> Result<()> {
    if let Some(config) = &checkpoint.config {
        let dir = root.join(variant(checkpoint));
        fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
        let mut model: Vec<_> =
            checkpoint.llm.iter().map(|t| t.clone().renamed(names::to_upstream(&t.name))).collect();
        if checkpoint.video {
            model.extend(checkpoint.vit.iter().map(|t| t.clone().renamed(format!("vit_model.{}", t.name))));
        } else {
            let dir = root.join("Qwen2.5-VL-ViT");
            fs::create_dir(&dir).with_context(|| dir.display().to_string())?;
            write_located(dir.join("vit.safetensors"), "pt", checkpoint.vit.clone(), |_| Dtype::F32)?;
            json(&dir.join("config.json"), &config["vision_config"])?;
        }
        write_located(dir.join("model.safetensors"), "pt", model, |_| Dtype::F32)?;
        json(&dir.join("llm_config.json"), config)?;
        copy(checkpoint, &dir)?;
    }
    if !checkpoint.vae.is_empty() {
        pth::write(&root.join(VAE_PTH), "Wan2.2_VAE", vae::to_upstream(checkpoint.vae.clone()))?;
    }
    Ok(())
}

fn copy(checkpoint: &Checkpoint, dir: &Path) -> Result<()> {
    for path in &checkpoint.copied {
        let name = path.file_name().context("a file has a name")?;
        fs::copy(path, dir.join(name)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, serde_json::to_string_pretty(value)? + "\n").with_context(|| path.display().to_string())
}
