//! `config.json` of the new folder.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use lance_mm::tensor::TensorInfo;
use serde_json::{Map, Value, json};

use super::Gen;
use super::report::Report;

/// The source's configuration with what readers need: the setting of most modules at the top, an entry for
/// each that deviates; in a file where any deviates, `false` for each that stays dense. A uniform file has no
/// entries, so that lance-mlx reads it.
pub(super) fn quantized(
    source: &[u8],
    tensors: &[TensorInfo],
    vit_mlp: Option<usize>,
    gen_: Gen,
    report: &Report,
) -> Result<Vec<u8>> {
    let mut config: Value = serde_json::from_slice(source).context("config.json")?;
    let packed = report.schemes();
    let default = most_common(packed.values()).context("expected a module that is quantized, found none")?;
    let mut quantization = Map::new();
    quantization.insert("group_size".into(), default.1.into());
    quantization.insert("bits".into(), default.0.into());
    quantization.insert("mode".into(), "affine".into());
    if packed.values().any(|scheme| *scheme != default) {
        for (module, (bits, group_size)) in packed.iter().filter(|(_, scheme)| **scheme != default) {
            quantization.insert(module.clone(), json!({ "bits": bits, "group_size": group_size }));
        }
        for module in dense(tensors) {
            quantization.insert(module, false.into());
        }
    }
    config["quantization"] = Value::Object(quantization.clone());
    config["quantization_config"] = Value::Object(quantization);
    // The original release says true, and stores a head that differs from the embedding.
    if config["tie_word_embeddings"] == true && tensors.iter().any(|t| t.name == "lm_head.weight") {
        config["tie_word_embeddings"] = false.into();
    }
    if let Some(width) = vit_mlp {
        config["vision_config"]["intermediate_size"] = width.into();
    }
    if gen_ == Gen::Drop {
        config["lance_mm"]["experts"] = json!(["und"]);
    }
    config["lance_mm"]["quantized_by"] = report.summary();
    Ok((serde_json::to_string_pretty(&config)? + "\n").into_bytes())
}

/// Of equally common ones the smallest.
fn most_common<'a>(schemes: impl Iterator<Item = &'a (u64, u64)>) -> Option<(u64, u64)> {
    let mut counts: BTreeMap<(u64, u64), usize> = BTreeMap::new();
    schemes.for_each(|scheme| *counts.entry(*scheme).or_default() += 1);
    counts.into_iter().rev().max_by_key(|(_, n)| *n).map(|(scheme, _)| scheme)
}

/// Linear layers and embeddings that are not packed.
fn dense(tensors: &[TensorInfo]) -> Vec<String> {
    let matrix = |info: &&TensorInfo| {
        let is_weight = info.name.ends_with(".weight") && info.shape.len() == 2;
        is_weight && info.dtype != safetensors::Dtype::U32
    };
    tensors.iter().filter(matrix).filter_map(|t| t.name.strip_suffix(".weight").map(str::to_owned)).collect()
}
