//! Writes a checkpoint in one of two layouts.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::file_tensor::FileTensor;
use crate::parts::{Parts, VAE_PTH};
use crate::progress::Progress;
use crate::safetensors_file::write_tensors;
use crate::{names, pth, vae};

/// A layout to write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TargetLayout {
    /// The published MLX layout: norms of the language model in F32, the rest in BF16. The matrices of a quantized
    /// source stay as they are.
    #[default]
    MlxBf16,
    /// The original release, all in F32: `OUT/Lance_3B` or `OUT/Lance_3B_Video`, beside it the vision encoder (in the
    /// model file for video) and `Wan2.2_VAE.pth`.
    Upstream,
}

impl TargetLayout {
    /// Writes `parts` into the empty folder `dir`.
    pub(crate) fn write(self, parts: &Parts, dir: &Path, progress: &mut Progress<'_>) -> Result<()> {
        match self {
            Self::MlxBf16 => mlx(parts, dir, progress)?,
            Self::Upstream => upstream(parts, dir, progress)?,
        }
        write_json(&dir.join("conversion_report.json"), &self.report(parts))
    }

    /// The path to open to read what was written into `dir`.
    pub(crate) fn written(self, parts: &Parts, dir: &Path) -> PathBuf {
        match (self, parts.has_model()) {
            (Self::MlxBf16, _) => dir.to_owned(),
            (Self::Upstream, true) => dir.join(variant(parts)),
            (Self::Upstream, false) => dir.join(VAE_PTH),
        }
    }

    /// `conversion_report.json`. It names no path of this machine.
    fn report(self, parts: &Parts) -> Value {
        json!({
            "source_layout": parts.layout.map_or_else(|| json!("vae"), |layout| json!(layout)),
            "variant": parts.has_model().then(|| variant(parts).to_lowercase()),
            "dtype": match self {
                Self::MlxBf16 if parts.is_quantized() => "unchanged",
                Self::MlxBf16 => "bf16",
                Self::Upstream => "f32",
            },
            "tensors": {"llm": parts.llm.len(), "vit": parts.vit.len(), "vae": parts.vae.len()},
            "computed": parts.computed,
            "unmapped": parts.unmapped,
        })
    }
}

/// The folder of the original release for a model.
fn variant(parts: &Parts) -> &'static str {
    if parts.video { "Lance_3B_Video" } else { "Lance_3B" }
}

fn mlx(parts: &Parts, dir: &Path, progress: &mut Progress<'_>) -> Result<()> {
    let dtype = |tensor: &FileTensor, norms: Dtype| {
        if parts.is_quantized() {
            tensor.dtype
        } else if tensor.name.contains("norm") {
            norms
        } else {
            Dtype::BF16
        }
    };
    let write = |name: &str, tensors: &[FileTensor], norms: Dtype, progress: &mut Progress<'_>| {
        write_tensors(&dir.join(name), "mlx", tensors.to_vec(), |tensor| dtype(tensor, norms), progress)
    };
    if let Some(config) = &parts.config {
        write("model.safetensors", &parts.llm, Dtype::F32, progress)?;
        write("vit.safetensors", &parts.vit, Dtype::BF16, progress)?;
        write_json(&dir.join("config.json"), config)?;
        copy(parts, dir)?;
    }
    if !parts.vae.is_empty() {
        write("vae.safetensors", &parts.vae, Dtype::BF16, progress)?;
    }
    Ok(())
}

fn upstream(parts: &Parts, root: &Path, progress: &mut Progress<'_>) -> Result<()> {
    if parts.is_quantized() {
        return Err(Error::file(root, "quantized weights stay in the MLX layout"));
    }
    if let Some(config) = &parts.config {
        let dir = new_dir(root, variant(parts))?;
        let renamed = |tensor: &FileTensor, name: String| tensor.clone().renamed(name);
        let mut model: Vec<_> = parts.llm.iter().map(|t| renamed(t, names::to_upstream(&t.name))).collect();
        if parts.video {
            model.extend(parts.vit.iter().map(|t| renamed(t, format!("vit_model.{}", t.name))));
        } else {
            let dir = new_dir(root, "Qwen2.5-VL-ViT")?;
            let vit = parts.vit.clone();
            write_tensors(&dir.join("vit.safetensors"), "pt", vit, |_| Dtype::F32, progress)?;
            write_json(&dir.join("config.json"), &config["vision_config"])?;
        }
        write_tensors(&dir.join("model.safetensors"), "pt", model, |_| Dtype::F32, progress)?;
        write_json(&dir.join("llm_config.json"), config)?;
        copy(parts, &dir)?;
    }
    if !parts.vae.is_empty() {
        pth::write(&root.join(VAE_PTH), "Wan2.2_VAE", vae::to_upstream(parts.vae.clone()), progress)?;
    }
    Ok(())
}

fn new_dir(root: &Path, name: &str) -> Result<PathBuf> {
    let dir = root.join(name);
    fs::create_dir(&dir).map_err(Error::io(&dir))?;
    Ok(dir)
}

fn copy(parts: &Parts, dir: &Path) -> Result<()> {
    for path in &parts.copied {
        let name = path.file_name().expect("copied files are found by name");
        // Not `fs::copy`: a file that may only be read would be one that cannot be flushed.
        let copy = |mut file| io::copy(&mut File::open(path)?, &mut file);
        File::create_new(dir.join(name)).and_then(copy).map_err(Error::io(path))?;
    }
    Ok(())
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    fs::write(path, format!("{value:#}\n")).map_err(Error::io(path))
}
