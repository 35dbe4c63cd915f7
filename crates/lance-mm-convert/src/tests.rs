use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lance_mm_pipelines::checkpoint::WeightsFile;
use safetensors::Dtype;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::file_tensor::FileTensor;
use crate::safetensors_file::{TensorEntry, open, write};

/// A checkpoint in the MLX layout that the original's own converter made.
fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/understanding/ckpt/mlx")
}

fn convert(src: &Path, dst: &Path, to: TargetLayout) -> Result<ConvertReport> {
    crate::convert(src, dst, &ConvertOptions { to, ..ConvertOptions::default() }, &mut |_| {})
}

/// Writes tensors as they are.
fn write_as_is(path: &Path, tensors: &[FileTensor]) {
    let entry = |t: &FileTensor| TensorEntry { name: t.name.clone(), dtype: t.dtype, shape: t.shape.clone() };
    let entries: Vec<TensorEntry> = tensors.iter().map(entry).collect();
    write(path, "pt", &entries, |i, out| tensors[i].write_as(tensors[i].dtype, path, out).map(drop)).unwrap();
}

fn error(src: &Path) -> String {
    let dst = src.with_file_name("refused");
    let error = convert(src, &dst, TargetLayout::MlxBf16).unwrap_err();
    let left = fs::read_dir(dst.parent().unwrap())
        .unwrap()
        .any(|entry| entry.unwrap().file_name().to_string_lossy().contains("refused"));
    assert!(!left, "{error}");
    format!("{error}")
}

fn tensors(path: &Path) -> Vec<FileTensor> {
    let sharded = path.extension().is_some_and(|extension| extension == "json");
    open(&WeightsFile { path: path.to_owned(), sharded }).unwrap()
}

/// Type, shape and bytes by name.
fn contents(path: &Path) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let content = |t: FileTensor| {
        let bytes = t.chunks().flat_map(Result::unwrap).collect();
        (t.name, (t.dtype, t.shape, bytes))
    };
    tensors(path).into_iter().map(content).collect()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The fixture in the layout of the original release: ROOT/Lance_3B and ROOT/Qwen2.5-VL-ViT.
fn upstream() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    convert(&fixture(), &dir.path().join("root"), TargetLayout::Upstream).unwrap();
    dir
}

/// Rewrites a model file.
fn change(path: &Path, change: impl FnOnce(&mut Vec<FileTensor>)) {
    let mut all = tensors(path);
    change(&mut all);
    let copy = path.with_extension("new");
    write_as_is(&copy, &all);
    fs::rename(copy, path).unwrap();
}

/// Writes the tensors of a file as shards with an index beside it.
fn shard(path: &Path, stem: &str) {
    let mut map = serde_json::Map::new();
    for (i, some) in tensors(path).chunks(50).enumerate() {
        let shard = format!("{stem}-0000{i}.safetensors");
        map.extend(some.iter().map(|t| (t.name.clone(), json!(shard))));
        write_as_is(&path.with_file_name(shard), some);
    }
    let index = path.with_file_name(format!("{stem}.safetensors.index.json"));
    fs::write(index, json!({"weight_map": map}).to_string()).unwrap();
}

#[test]
fn a_checkpoint_goes_to_upstream_and_back_unchanged() {
    let dir = upstream();
    let lance = dir.path().join("root/Lance_3B");
    let model = contents(&lance.join("model.safetensors"));
    assert!(model.values().all(|(dtype, ..)| *dtype == Dtype::F32));
    assert!(model.contains_key("language_model.model.layers.0.self_attn.q_proj_moe_gen.weight"));
    let mlx = dir.path().join("mlx");
    convert(&lance, &mlx, TargetLayout::MlxBf16).unwrap();
    for file in ["model.safetensors", "vit.safetensors"] {
        assert!(contents(&mlx.join(file)) == contents(&fixture().join(file)), "{file}");
    }
    assert_eq!(read(&mlx.join("config.json")), read(&fixture().join("config.json")));
    assert!(mlx.join("tokenizer.json").exists());
    let report = read(&mlx.join("conversion_report.json"));
    assert_eq!(report["tensors"], json!({"llm": 97, "vit": 54, "vae": 0}));
    assert_eq!((&report["source_layout"], &report["variant"]), (&json!("upstream"), &json!("lance_3b")));
    assert!(!report.to_string().contains(dir.path().to_str().unwrap()));
}

#[test]
fn verify_says_what_differs() {
    let dir = upstream();
    let lance = dir.path().join("root/Lance_3B");
    let options = ConvertOptions { verify: true, ..ConvertOptions::default() };
    let verify = |dst: &str| crate::convert(&lance, dir.path().join(dst), &options, &mut |_| {}).unwrap();
    let report = verify("a");
    assert!(report.passed(), "{report}");
    assert!(report.to_string().ends_with("\nverify vit: 54 of 54 tensors byte-equal"), "{report}");
    // One third is not a number that BF16 holds.
    let path = lance.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&(1f32 / 3.0).to_le_bytes());
    fs::write(&path, bytes).unwrap();
    assert!(!verify("b").passed());
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a", "b", "root"]);
    assert!(dir.path().join("b/model.safetensors").exists());
}

#[test]
fn other_spellings_are_accepted() {
    let dir = upstream();
    let lance = dir.path().join("root/Lance_3B");
    let vit = tensors(&dir.path().join("root/Qwen2.5-VL-ViT/vit.safetensors"));
    // A third party's names of the time embedder, a table that is computed, and something of nobody's; a
    // vision transformer in the model file, which wins over the one beside it.
    change(&lance.join("model.safetensors"), |all| {
        for tensor in all.iter_mut() {
            tensor.name = tensor.name.replace("mlp.0.", "fc1.").replace("mlp.2.", "fc2.");
        }
        all.push(all[0].clone().renamed("language_model.model.layers.0.self_attn.rotary_emb.inv_freq"));
        all.push(all[0].clone().renamed("ema_decay"));
        all.extend(vit.iter().map(|t| {
            let last = t.name == "patch_embed.proj.weight";
            let t = if last { t.clone().permuted(&[0, 2, 3, 4, 1]) } else { t.clone() };
            let name = format!("vit_model.{}", t.name);
            t.renamed(name)
        }));
    });
    change(&dir.path().join("root/Qwen2.5-VL-ViT/vit.safetensors"), |all| {
        for tensor in all {
            tensor.name =
                tensor.name.replace("norm1", "normX").replace("norm2", "norm1").replace("normX", "norm2");
        }
    });
    let mlx = dir.path().join("mlx");
    convert(&lance, &mlx, TargetLayout::MlxBf16).unwrap();
    for file in ["model.safetensors", "vit.safetensors"] {
        assert!(contents(&mlx.join(file)) == contents(&fixture().join(file)), "{file}");
    }
    let report = read(&mlx.join("conversion_report.json"));
    assert_eq!(report["source_layout"], "mlx-f32");
    assert_eq!(report["unmapped"], json!(["ema_decay"]));
    assert_eq!(report["computed"].as_array().unwrap().len(), 1);
}

#[test]
fn shards_and_the_smoothed_weights_are_read() {
    let dir = upstream();
    let lance = dir.path().join("root/Lance_3B");
    let (model, ema) = (lance.join("model.safetensors"), lance.join("ema.safetensors"));
    let mlx = dir.path().join("mlx");
    let expected = contents(&fixture().join("model.safetensors"));
    fs::rename(&model, &ema).unwrap();
    convert(&lance, &mlx, TargetLayout::MlxBf16).unwrap();
    assert!(contents(&mlx.join("model.safetensors")) == expected);

    shard(&ema, "model");
    fs::remove_file(&ema).unwrap();
    fs::remove_dir_all(&mlx).unwrap();
    convert(&lance, &mlx, TargetLayout::MlxBf16).unwrap();
    assert!(contents(&mlx.join("model.safetensors")) == expected);
}

#[test]
fn the_head_in_the_file_overrules_a_config_that_ties() {
    let dir = upstream();
    let lance = dir.path().join("root/Lance_3B");
    let path = lance.join("llm_config.json");
    let mut config = read(&path);
    config["tie_word_embeddings"] = json!(true);
    fs::write(&path, config.to_string()).unwrap();
    convert(&lance, &dir.path().join("mlx"), TargetLayout::MlxBf16).unwrap();
    assert_eq!(read(&dir.path().join("mlx/config.json"))["tie_word_embeddings"], false);
}

#[test]
fn the_und_expert_alone() {
    let dir = upstream();
    let dst = dir.path().join("mlx");
    let options = ConvertOptions { und_only: true, verify: true, ..ConvertOptions::default() };
    let report = crate::convert(dir.path().join("root/Lance_3B"), &dst, &options, &mut |_| {}).unwrap();
    assert!(report.passed(), "{report}");
    let (und, all) =
        (contents(&dst.join("model.safetensors")), contents(&fixture().join("model.safetensors")));
    assert_eq!(und.len(), 45);
    assert!(und.iter().all(|(name, content)| all[name] == *content));
    assert_eq!(read(&dst.join("config.json"))["lance_mm"]["experts"], json!(["und"]));
}

#[test]
fn the_und_expert_of_a_quantized_checkpoint_keeps_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    fs::create_dir(&src).unwrap();
    let quantized = fixture().join("../../../quant/ckpt/mlx-mixed");
    for file in [
        quantized.join("config.json"),
        quantized.join("model.safetensors"),
        fixture().join("vit.safetensors"),
    ] {
        fs::copy(&file, src.join(file.file_name().unwrap())).unwrap();
    }
    let options = ConvertOptions { und_only: true, verify: true, ..ConvertOptions::default() };
    let report = crate::convert(&src, &dst, &options, &mut |_| {}).unwrap();
    assert!(report.passed() && !dir.path().join(".dst.back").exists(), "{report}");
    for file in ["model.safetensors", "vit.safetensors"] {
        let (kept, all) = (contents(&dst.join(file)), contents(&src.join(file)));
        assert!(!kept.is_empty() && kept.iter().all(|(name, content)| all[name] == *content), "{file}");
    }
    let options = ConvertOptions { to: TargetLayout::Upstream, ..options };
    let error = crate::convert(&src, dir.path().join("x"), &options, &mut |_| {}).unwrap_err();
    assert!(error.to_string().contains("quantized weights stay in the MLX layout"), "{error}");
}

#[test]
fn shards_become_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let (src, dst) = (dir.path().join("src"), dir.path().join("dst"));
    fs::create_dir(&src).unwrap();
    for file in ["config.json", "model.safetensors", "vit.safetensors", "tokenizer.json"] {
        fs::copy(fixture().join(file), src.join(file)).unwrap();
    }
    for stem in ["model", "vit"] {
        let path = src.join(format!("{stem}.safetensors"));
        shard(&path, stem);
        fs::remove_file(path).unwrap();
    }
    convert(&src, &dst, TargetLayout::MlxBf16).unwrap();
    for file in ["model.safetensors", "vit.safetensors"] {
        assert!(contents(&dst.join(file)) == contents(&fixture().join(file)), "{file}");
    }
    assert!(dst.join("tokenizer.json").exists());
}

#[test]
fn a_conversion_is_told_and_can_be_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("dst");
    let options = ConvertOptions::default();
    let mut last = None;
    crate::convert(fixture(), &dst, &options, &mut |written| last = Some((written.done, written.total)))
        .unwrap();
    assert!(last.is_some_and(|(done, total)| done == total && total > 0), "{last:?}");
    fs::remove_dir_all(&dst).unwrap();
    let mut seen = 0;
    let stopped = crate::convert(fixture(), &dst, &options, &mut |_| {
        seen += 1;
        if seen == 3 {
            options.stop.stop();
        }
    });
    assert!(matches!(stopped, Err(Error::Stopped)) && seen == 3, "{seen}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn what_cannot_be_converted_is_named_and_nothing_is_left() {
    let dir = upstream();
    let root = dir.path().join("root");
    let lance = root.join("Lance_3B");
    let model = lance.join("model.safetensors");
    let text = error(&root);
    assert!(text.contains("a checkpoint below it: point at ") && text.ends_with("Lance_3B"), "{text}");

    let whole = fs::read(&model).unwrap();
    change(&model, |all| {
        all.retain(|t| t.name != "language_model.lm_head.weight");
        let norm = all.iter().position(|t| t.name == "language_model.model.norm.weight").unwrap();
        all[norm] = all[norm].clone().renamed("language_model.model.norm_of_mine.weight");
    });
    let text = error(&lance);
    assert!(text.contains("lm_head.weight: missing"), "{text}");
    assert!(text.contains("norm.weight: missing, expected [64]"), "{text}");
    assert!(text.contains("norm_of_mine.weight: no part of the model"), "{text}");

    fs::write(&model, &whole[..whole.len() - 1]).unwrap();
    assert!(error(&lance).contains("truncated"));
    fs::write(&model, &whole).unwrap();
    fs::rename(root.join("Qwen2.5-VL-ViT"), root.join("elsewhere")).unwrap();
    assert!(error(&lance).contains("expected a vision encoder"));

    let taken = dir.path().join("taken");
    fs::create_dir(&taken).unwrap();
    fs::write(taken.join("theirs"), "").unwrap();
    let text = convert(&fixture(), &taken, TargetLayout::Upstream).unwrap_err().to_string();
    assert!(text.ends_with("taken: expected an empty folder or nothing"), "{text}");
    let quantized = fixture().join("../../../quant/ckpt/mlx-mixed");
    let text = convert(&quantized, &dir.path().join("x"), TargetLayout::Upstream).unwrap_err().to_string();
    assert!(text.contains("quantized weights are not turned back"), "{text}");
}

#[test]
fn integers_are_no_weights() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "vit.safetensors", "tokenizer.json"] {
        fs::copy(fixture().join(file), dir.path().join(file)).unwrap();
    }
    let path = dir.path().join("model.safetensors");
    let all = tensors(&path);
    let entry = |t: &FileTensor| {
        let dtype = if t.name == "norm.weight" { Dtype::I32 } else { t.dtype };
        TensorEntry { name: t.name.clone(), dtype, shape: t.shape.clone() }
    };
    let entries: Vec<TensorEntry> = all.iter().map(entry).collect();
    let copy = dir.path().join("copy");
    write(&copy, "mlx", &entries, |i, out| all[i].write_as(all[i].dtype, &copy, out).map(drop)).unwrap();
    fs::rename(copy, path).unwrap();
    let text = convert(dir.path(), &dir.path().join("x"), TargetLayout::MlxBf16).unwrap_err().to_string();
    assert!(text.contains("norm.weight: expected F32, F16 or BF16, found I32"), "{text}");
}

#[test]
fn a_source_that_changes_meanwhile_is_an_error() {
    let dir = upstream();
    let (lance, dst) = (dir.path().join("root/Lance_3B"), dir.path().join("dst"));
    let path = lance.join("model.safetensors");
    let mut touched = false;
    let changed = crate::convert(&lance, &dst, &ConvertOptions::default(), &mut |_| {
        if !std::mem::replace(&mut touched, true) {
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
    });
    let text = changed.unwrap_err().to_string();
    assert!(text.contains("Lance_3B/model.safetensors: changed while it was read"), "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Sets the last value of the F32 file `path`; the name of its tensor is returned.
fn set_last(path: &Path, value: f32) -> String {
    let mut bytes = fs::read(path).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&value.to_le_bytes());
    fs::write(path, bytes).unwrap();
    tensors(path).pop().unwrap().name
}

#[test]
fn a_value_that_the_type_does_not_hold_is_refused_and_one_that_is_not_finite_is_told() {
    let dir = upstream();
    let lance = dir.path().join("root/Lance_3B");
    // The vision encoder is written in BF16 throughout.
    let path = dir.path().join("root/Qwen2.5-VL-ViT/vit.safetensors");
    let name = set_last(&path, f32::MAX);
    let text = error(&lance);
    assert!(text.ends_with(&format!("{name}: 3.4028235e38 is beyond the largest number of BF16")), "{text}");
    set_last(&path, f32::NAN);
    let report = convert(&lance, &dir.path().join("dst"), TargetLayout::MlxBf16).unwrap();
    assert_eq!(report.not_finite, [name]);
    assert!(report.to_string().contains("with values that are not finite, as in the source: "), "{report}");
}

#[test]
fn published_files_say_that_they_are_in_the_mlx_format() {
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("dst");
    convert(&fixture(), &dst, TargetLayout::MlxBf16).unwrap();
    for file in ["model.safetensors", "vit.safetensors"] {
        let bytes = fs::read(dst.join(file)).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header.metadata().as_ref().unwrap()["format"], "mlx", "{file}");
    }
}

#[test]
fn a_configuration_with_values_of_other_types_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let src = dir.path().join("src");
    fs::create_dir(&src).unwrap();
    for file in ["model.safetensors", "vit.safetensors"] {
        fs::copy(fixture().join(file), src.join(file)).unwrap();
    }
    let config = read(&fixture().join("config.json"));
    let refused = |config: Value| {
        fs::write(src.join("config.json"), config.to_string()).unwrap();
        let text = error(&src);
        assert!(text.contains("config.json: "), "{text}");
    };
    for wrong in [json!(["und"]), json!("x"), json!(-1), json!(null)] {
        for key in ["hidden_size", "vision_config", "lance_mm", "max_latent_size", "tie_word_embeddings"] {
            let mut config = config.clone();
            config[key] = wrong.clone();
            refused(config);
        }
        refused(wrong);
    }
    // A list of its values in order, as which any structure may be written.
    refused(Value::Array(config.as_object().unwrap().values().cloned().collect()));
}
