//! Putting the new folder together.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use lance_mm::Checkpoint;
use lance_mm::quant::{Recipe, quantize_linear};
use lance_mm::tensor::{TensorInfo, Weight, Weights};
use safetensors::{Dtype, View};

use super::layer::{self, ENDS, Shared, Stored, layer_name};
use super::report::Report;
use super::scheme::Schemes;
use super::workdir::WorkDir;
use super::{Gen, config};
use crate::model::Extra;

/// Writes everything into a temporary sibling of `out` and renames it.
pub(super) fn write(
    out: &Path,
    source: &Checkpoint,
    extras: &[Extra],
    work: &WorkDir,
    schemes: &Schemes,
    gen_: Gen,
    report: &Report,
) -> Result<()> {
    let name = out.file_name().with_context(|| format!("{}: no name to write to", out.display()))?;
    let partial = out.with_file_name(format!(".{}.partial", name.to_string_lossy()));
    if partial.exists() {
        fs::remove_dir_all(&partial).with_context(|| partial.display().to_string())?;
    }
    fs::create_dir_all(&partial).with_context(|| partial.display().to_string())?;
    let result = fill(&partial, source, extras, work, schemes, gen_, report);
    if result.is_err() {
        // The error that stopped the writing says more than one about the clean-up.
        let _ = fs::remove_dir_all(&partial);
    }
    result?;
    fs::rename(&partial, out).with_context(|| out.display().to_string())
}

fn fill(
    dir: &Path,
    source: &Checkpoint,
    extras: &[Extra],
    work: &WorkDir,
    schemes: &Schemes,
    gen_: Gen,
    report: &Report,
) -> Result<()> {
    let made = made(source, work)?;
    let mut entries: Vec<(String, Entry<'_>)> = Vec::new();
    for tensor in source.model().tensors() {
        let dropped = gen_ == Gen::Drop && is_generation(&tensor.name);
        if !dropped && !made.contains_key(&tensor.name) {
            entries.push((tensor.name.clone(), Entry { weights: source.model(), info: tensor }));
        }
    }
    for weights in made_files(source, work)? {
        for tensor in weights.0.tensors() {
            entries.push((tensor.name.clone(), Entry { weights: &made[&tensor.name], info: tensor }));
        }
    }
    let names: Vec<TensorInfo> = entries.iter().map(|(_, entry)| entry.info.clone()).collect();
    let path = dir.join("model.safetensors");
    safetensors::serialize_to_file(entries, None::<HashMap<String, String>>, &path)
        .with_context(|| path.display().to_string())?;
    write_vit(dir, source, extras, schemes)?;
    for extra in
        extras.iter().filter(|extra| !["config.json", "vit.safetensors"].contains(&extra.name.as_str()))
    {
        if gen_ != Gen::Drop || extra.name != "vae.safetensors" {
            extra.write(&dir.join(&extra.name))?;
        }
    }
    let json = extras.iter().find(|extra| extra.name == "config.json").context("expected config.json")?;
    let config = config::quantized(&json.read()?, &names, schemes, gen_, report)?;
    fs::write(dir.join("config.json"), config)?;
    fs::write(dir.join("quantization_report.json"), report.json()?)?;
    Ok(())
}

/// A tensor of the new model file, read when it is written.
struct Entry<'a> {
    weights: &'a Weights,
    info: TensorInfo,
}

impl View for Entry<'_> {
    fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.info.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.weights.with_bytes(&self.info.name, <[u8]>::to_vec).unwrap_or_default())
    }

    fn data_len(&self) -> usize {
        self.info.bytes
    }
}

struct Made(Weights);

fn made_files(source: &Checkpoint, work: &WorkDir) -> Result<Vec<Made>> {
    let layers = (0..source.config().num_hidden_layers).map(layer_name);
    layers.chain([ENDS.to_owned()]).map(|name| Ok(Made(layer::open(work, &name)?))).collect()
}

/// Which finished part holds a tensor.
fn made(source: &Checkpoint, work: &WorkDir) -> Result<HashMap<String, Weights>> {
    let mut made = HashMap::new();
    for Made(weights) in made_files(source, work)? {
        for tensor in weights.tensors() {
            made.insert(tensor.name, weights.clone());
        }
    }
    Ok(made)
}

fn is_generation(name: &str) -> bool {
    let latent = ["vae_in_proj.", "llm2vae.", "time_embedder.", "latent_pos_embed."];
    name.contains("_moe_gen") || latent.iter().any(|prefix| name.starts_with(prefix))
}

/// The vision transformer: copied, or with packed matrices.
fn write_vit(dir: &Path, source: &Checkpoint, extras: &[Extra], schemes: &Schemes) -> Result<()> {
    let path = dir.join("vit.safetensors");
    let Some(vit) = source.vit() else { return Ok(()) };
    let mut tensors: HashMap<String, Stored> = HashMap::new();
    for tensor in vit.tensors() {
        let packs = tensor.name.strip_suffix(".weight").zip(match tensor.shape[..] {
            [rows, cols] => schemes.vit(cols).map(|scheme| (rows, cols, scheme)),
            _ => None,
        });
        match packs {
            Some((module, (rows, cols, scheme))) => {
                let weight = Weight::load(&vit.pp(module), rows, cols)?;
                let result = quantize_linear(module, &weight, None, scheme, &Recipe::default())?;
                layer::packed(module, &result.weight, &mut tensors);
            }
            None => {
                let bytes = vit.with_bytes(&tensor.name, <[u8]>::to_vec).unwrap_or_default();
                tensors.insert(tensor.name, Stored { dtype: tensor.dtype, shape: tensor.shape, bytes });
            }
        }
    }
    match extras.iter().find(|extra| extra.name == "vit.safetensors") {
        Some(extra) if tensors.values().all(|t| t.dtype != Dtype::U32) => extra.write(&path),
        _ => Ok(safetensors::serialize_to_file(tensors.iter().map(|(n, t)| (n, Shared(t))), None, &path)?),
    }
}
