//! `cargo xtask split SRC DST`: a checkpoint in the MLX layout, dense or quantized, without what only
//! generation needs. Nothing of what it keeps is changed.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use lance_mm_models::is_generation;
use lance_mm_pipelines::checkpoint::{CheckpointFiles, CheckpointLayout};
use serde_json::{Value, json};

use crate::safetensors_file::{open, write_located};

/// Files that are copied as they are, when present.
pub(crate) const COPIED: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json"];

/// Writes the UND expert and the vision transformer of the checkpoint `src` to `dst`.
///
/// # Errors
/// A checkpoint that cannot be read, or a `dst` that exists or cannot be written.
pub fn run(src: &Path, dst: &Path) -> Result<ExitCode> {
    let kept = crate::folder::write(dst, |dir| write(src, dir))?;
    println!("{}: {kept} tensors of the UND expert", dst.display());
    Ok(ExitCode::SUCCESS)
}

fn write(src: &Path, dst: &Path) -> Result<usize> {
    let files = CheckpointFiles::find(src)?;
    let model = files.require_model()?;
    let text = files.read_config()?;
    let name = || src.join("config.json").display().to_string();
    let mut config: Value = serde_json::from_slice(&text).with_context(name)?;
    CheckpointLayout::recognise(Some(&config), &model.open()?.tensors())
        .map_err(anyhow::Error::msg)
        .and_then(|layout| Ok(layout.require_loadable(&model.path.display().to_string())?))?;
    mark_und_only(&mut config);
    let mut tensors = open(model)?;
    tensors.retain(|tensor| !is_generation(&tensor.name));
    let kept = write_located(dst.join("model.safetensors"), "mlx", tensors, |tensor| tensor.dtype)?;
    if let Some(vit) = &files.vit {
        write_located(dst.join("vit.safetensors"), "mlx", open(vit)?, |tensor| tensor.dtype)?;
    }
    for file in COPIED.iter().filter(|file| src.join(file).exists()) {
        fs::copy(src.join(file), dst.join(file)).with_context(|| (*file).to_owned())?;
    }
    fs::write(dst.join("config.json"), serde_json::to_string_pretty(&config)? + "\n")?;
    Ok(kept)
}

/// Makes a configuration say that its checkpoint holds the UND expert only.
pub(crate) fn mark_und_only(config: &mut Value) {
    if !config["lance_mm"].is_object() {
        config["lance_mm"] = json!({});
    }
    config["lance_mm"]["experts"] = json!(["und"]);
}
