//! `cargo xtask split SRC DST`: a checkpoint without what only generation needs.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use safetensors::SafeTensors;
use serde_json::{Value, json};

/// Files that are copied as they are, when present.
const COPIED: [&str; 6] = [
    "vit.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
];

pub(crate) fn run(src: &Path, dst: &Path) -> Result<ExitCode> {
    let kept = crate::folder::write(dst, |dir| write(src, dir))?;
    println!("{}: {kept} tensors of the UND expert", dst.display());
    Ok(ExitCode::SUCCESS)
}

fn write(src: &Path, dst: &Path) -> Result<usize> {
    let path = src.join("model.safetensors");
    let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
    let file = SafeTensors::deserialize(&bytes).with_context(|| path.display().to_string())?;
    let mut kept: Vec<_> = file.tensors().into_iter().filter(|(name, _)| is_understanding(name)).collect();
    kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    let n = kept.len();
    safetensors::serialize_to_file(kept, None::<HashMap<String, String>>, &dst.join("model.safetensors"))?;
    for file in COPIED.iter().filter(|file| src.join(file).exists()) {
        fs::copy(src.join(file), dst.join(file)).with_context(|| (*file).to_owned())?;
    }
    let path = src.join("config.json");
    let text = fs::read(&path).with_context(|| path.display().to_string())?;
    let mut config: Value = serde_json::from_slice(&text).with_context(|| path.display().to_string())?;
    config["lance_mm"]["experts"] = json!(["und"]);
    fs::write(dst.join("config.json"), serde_json::to_string_pretty(&config)? + "\n")?;
    Ok(n)
}

/// Everything but the GEN expert and the latent layers.
fn is_understanding(name: &str) -> bool {
    let latent = ["vae_in_proj.", "llm2vae.", "time_embedder.", "latent_pos_embed."];
    !name.contains("_moe_gen") && !latent.iter().any(|prefix| name.starts_with(prefix))
}
