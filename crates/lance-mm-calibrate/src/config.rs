//! `config.json` of the new folder.

use std::collections::BTreeMap;

use lance_mm_tensor::TensorInfo;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::options::GenExpert;
use crate::report::Report;

/// The file's name.
pub(crate) const NAME: &str = "config.json";

/// The source's configuration with the quantization: the scheme of most modules at the top and an entry for each that
/// deviates. Where any deviates, or stays dense although it could be packed, dense modules have the entry `false`. A
/// uniform file has no entries, as the published one.
pub(crate) fn quantized(
    source: &[u8],
    tensors: &[TensorInfo],
    vit_mlp: Option<usize>,
    gen_expert: &GenExpert,
    report: &Report,
) -> Result<Vec<u8>> {
    let mut config: Value = serde_json::from_slice(source).map_err(|error| Error::file(NAME, error))?;
    let packed = report.schemes();
    let default = most_common(packed.values())
        .ok_or_else(|| Error::file(NAME, "expected a module that is quantized, found none"))?;
    let mut quantization = Map::new();
    quantization.insert("group_size".into(), default.1.into());
    quantization.insert("bits".into(), default.0.into());
    quantization.insert("mode".into(), "affine".into());
    let dense = dense(tensors);
    let could_be_packed = |info: &&TensorInfo| is_packable(module(info)) && info.shape[1].is_multiple_of(32);
    if packed.values().any(|scheme| *scheme != default) || dense.iter().any(could_be_packed) {
        for (module, (bits, group_size)) in packed.iter().filter(|(_, scheme)| **scheme != default) {
            quantization.insert(module.clone(), json!({ "bits": bits, "group_size": group_size }));
        }
        for info in dense {
            quantization.insert(module(info).to_owned(), false.into());
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
    if gen_expert.is_dropped() {
        config["lance_mm"]["experts"] = json!(["und"]);
    }
    config["lance_mm"]["quantized_by"] = report.summary();
    Ok(format!("{config:#}\n").into_bytes())
}

/// Checks that the source's configuration is an object, and so is each part that [`quantized`] writes into.
pub(crate) fn check(source: &[u8]) -> Result<()> {
    let config: Value = serde_json::from_slice(source).map_err(|error| Error::file(NAME, error))?;
    let object = |name: &str, value: &Value| {
        let found = match value {
            Value::Object(_) | Value::Null => return Ok(()),
            Value::Array(_) => "a list",
            Value::String(_) => "a string",
            Value::Number(_) => "a number",
            Value::Bool(_) => "a boolean",
        };
        Err(Error::file(NAME, format!("{name}: expected an object, found {found}")))
    };
    object("the file", &config)?;
    ["lance_mm", "vision_config"].into_iter().try_for_each(|key| object(key, &config[key]))
}

/// The most common scheme; of equally common ones the smallest.
fn most_common<'a>(schemes: impl Iterator<Item = &'a (usize, usize)>) -> Option<(usize, usize)> {
    let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    schemes.for_each(|scheme| *counts.entry(*scheme).or_default() += 1);
    counts.into_iter().rev().max_by_key(|(_, n)| *n).map(|(scheme, _)| scheme)
}

/// Weights of linear layers and embeddings that are not packed.
fn dense(tensors: &[TensorInfo]) -> Vec<&TensorInfo> {
    let matrix = |info: &&TensorInfo| {
        let is_weight = info.name.ends_with(".weight") && info.shape.len() == 2;
        is_weight && info.dtype != safetensors::Dtype::U32
    };
    tensors.iter().filter(matrix).collect()
}

fn module(weight: &TensorInfo) -> &str {
    weight.name.strip_suffix(".weight").unwrap_or(&weight.name)
}

/// Whether a module is one of those that are packed wherever their columns are whole groups.
fn is_packable(module: &str) -> bool {
    module.starts_with("layers.") || ["embed_tokens", "lm_head"].contains(&module)
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::recipe::Recipe;
    use crate::work_folder::WorkFolder;

    /// The settings for a layer of these matrices: name, columns, and bits if it is packed.
    fn settings(matrices: &[(&str, usize, Option<u64>)]) -> Value {
        let dir = tempfile::tempdir().unwrap();
        let work = WorkFolder::open(&dir.path().join("out"), &json!({})).unwrap().unwrap();
        let linear = |(name, _, bits): &(&str, usize, Option<u64>)| {
            let zero = json!({
                "name": name, "bits": bits, "group_size": 32, "plain": 0, "scaled": 0, "final": 0, "snr_db": 0,
                "clipped": 0, "method": "plain", "drift": null, "trials": [],
            });
            bits.map(|_| zero)
        };
        let linears: Vec<Value> = matrices.iter().filter_map(linear).collect();
        for (part, linears) in [("embed", vec![]), ("head", vec![]), ("layer_000", linears)] {
            work.write_json(&format!("{part}.json"), &json!({ "linears": linears })).unwrap();
        }
        let report = Report::gather(&work, Recipe::AwqMixed, &json!({}), None, 1).unwrap();
        let tensor = |(name, cols, bits): &(&str, usize, Option<u64>)| TensorInfo {
            name: format!("{name}.weight"),
            dtype: if bits.is_some() { Dtype::U32 } else { Dtype::BF16 },
            shape: vec![8, *cols],
            bytes: 0,
        };
        let tensors: Vec<TensorInfo> = matrices.iter().map(tensor).collect();
        let config = quantized(b"{}", &tensors, None, &GenExpert::Fit, &report).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["quantization"], config["quantization_config"]);
        config["quantization"].clone()
    }

    #[test]
    fn lists_for_objects_are_refused() {
        check(br#"{"lance_mm": {}, "vision_config": null}"#).unwrap();
        for (config, expected) in [
            ("[]", "the file: expected an object, found a list"),
            (r#"{"lance_mm": [null]}"#, "lance_mm: expected an object, found a list"),
            (r#"{"vision_config": "a"}"#, "vision_config: expected an object, found a string"),
        ] {
            let error = check(config.as_bytes()).unwrap_err().to_string();
            assert!(error.ends_with(expected), "{error}");
        }
    }

    #[test]
    fn entries_only_where_modules_differ() {
        let (q, o, time) =
            ("layers.0.self_attn.q_proj", "layers.0.self_attn.o_proj", "time_embedder.proj_in");
        let uniform = json!({ "bits": 4, "group_size": 32, "mode": "affine" });
        // Never packed, or of a width that cannot be.
        assert_eq!(settings(&[(q, 64, Some(4)), (time, 64, None), (o, 48, None)]), uniform);
        let dense = json!({ "bits": 4, "group_size": 32, "mode": "affine", o: false, time: false });
        assert_eq!(settings(&[(q, 64, Some(4)), (time, 64, None), (o, 64, None)]), dense);
        let mixed = json!({
            "bits": 4, "group_size": 32, "mode": "affine", q: { "bits": 8, "group_size": 32 }, time: false
        });
        assert_eq!(settings(&[(q, 64, Some(8)), (o, 64, Some(4)), (time, 64, None)]), mixed);
    }
}
