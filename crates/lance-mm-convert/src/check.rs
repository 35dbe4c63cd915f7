//! Compares the tensors of a checkpoint with those that its configuration describes.

use std::collections::{BTreeMap, HashSet};

use lance_mm_models::{Config, Experts, Llm, Vit, VitConfig, required};
use lance_mm_tensor::Problem;

use crate::error::Result;
use crate::file_tensor::{FileTensor, is_float};

/// Rows of the time embedder's input.
const FREQUENCIES: usize = 256;
/// Channels of a latent.
const CHANNELS: usize = 48;

/// Tensors of the language model that are missing, misshapen or unknown.
pub(crate) fn llm(config: &Config, tensors: &[FileTensor]) -> Result<Vec<Problem>> {
    let experts = if config.und_only { Experts::Und } else { Experts::Both };
    let mut expected: BTreeMap<_, _> =
        required(|weights| Llm::load(config, weights, experts).map(drop))?.into_iter().collect();
    if !config.und_only {
        expected.extend(latent(config, tensors));
    }
    Ok(compare(&expected, tensors))
}

/// Tensors of the vision encoder that are missing, misshapen or unknown.
pub(crate) fn vit(config: &VitConfig, tensors: &[FileTensor]) -> Result<Vec<Problem>> {
    let expected = required(|weights| Vit::load(config, weights).map(drop))?.into_iter().collect();
    Ok(compare(&expected, tensors))
}

/// Tensors that are no floats.
pub(crate) fn types(tensors: &[FileTensor]) -> impl Iterator<Item = Problem> {
    tensors.iter().filter(|t| !is_float(t.dtype)).map(|t| Problem {
        tensor: t.name.clone(),
        what: format!("expected F32, F16 or BF16, found {:?}", t.dtype),
        missing: None,
    })
}

/// The patch embedding as PyTorch has it: some files put the channels last.
pub(crate) fn channels_first(tensor: FileTensor, channels: usize) -> FileTensor {
    let last = tensor.name == "patch_embed.proj.weight"
        && tensor.shape.len() == 5
        && tensor.shape[1] != channels
        && tensor.shape[4] == channels;
    if last { tensor.permuted(&[0, 4, 1, 2, 3]) } else { tensor }
}

/// Slots in time of the position table: one in the model for images. `None` without such a table.
pub(crate) fn time_slots(config: &Config, tensors: &[FileTensor]) -> Option<usize> {
    let rows = *tensors.iter().find(|t| t.name == "latent_pos_embed.pos_embed")?.shape.first()?;
    Some(rows / config.max_latent_size.pow(2))
}

/// Tensors that only generation reads, layers aside.
fn latent(config: &Config, tensors: &[FileTensor]) -> [(String, Vec<usize>); 9] {
    let (hidden, slot) = (config.hidden_size, config.max_latent_size.pow(2));
    let slots = time_slots(config, tensors).unwrap_or(1).max(1);
    [
        ("latent_pos_embed.pos_embed", vec![slot * slots, hidden]),
        ("vae_in_proj.vae2llm.weight", vec![hidden, CHANNELS]),
        ("vae_in_proj.vae2llm.bias", vec![hidden]),
        ("llm2vae.weight", vec![CHANNELS, hidden]),
        ("llm2vae.bias", vec![CHANNELS]),
        ("time_embedder.proj_in.weight", vec![hidden, FREQUENCIES]),
        ("time_embedder.proj_in.bias", vec![hidden]),
        ("time_embedder.proj_out.weight", vec![hidden, hidden]),
        ("time_embedder.proj_out.bias", vec![hidden]),
    ]
    .map(|(name, shape)| (name.to_owned(), shape))
}

fn compare(expected: &BTreeMap<String, Vec<usize>>, tensors: &[FileTensor]) -> Vec<Problem> {
    let mut problems = Vec::new();
    let found: HashSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    for (name, shape) in expected.iter().filter(|(name, _)| !found.contains(name.as_str())) {
        let (what, missing) = (format!("missing, expected {shape:?}"), Some(shape.clone()));
        problems.push(Problem { tensor: name.clone(), what, missing });
    }
    let mut seen = HashSet::new();
    for tensor in tensors {
        let what = match expected.get(&tensor.name) {
            None => "no part of the model that the configuration describes".to_owned(),
            Some(shape) if *shape != tensor.shape => {
                format!("expected {shape:?}, found {:?}", tensor.shape)
            }
            Some(_) if !seen.insert(&tensor.name) => "two tensors of the file mean this one".to_owned(),
            Some(_) => continue,
        };
        problems.push(Problem { tensor: tensor.name.clone(), what, missing: None });
    }
    problems
}
