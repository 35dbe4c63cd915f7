//! Errors of a checkpoint folder that is not right: one line that names the thing.

use std::fs;
use std::path::Path;

use lance_mm::{AskOptions, Content, DecodeOptions, Lance, image};
use lance_mm_eval::dataset::Sample;
use lance_mm_eval::{Dataset, ParityOptions, parity};
use serde_json::json;

/// The bundled checkpoint as a folder.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("config.json", lance_mm_nano::CONFIG),
        ("generation_config.json", lance_mm_nano::GENERATION_CONFIG),
        ("tokenizer.json", lance_mm_nano::TOKENIZER),
        ("model.safetensors", lance_mm_nano::MODEL),
        ("vit.safetensors", lance_mm_nano::VIT),
    ] {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// The checkpoint that the bundled one is a quantization of, copied.
fn dense() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(crate::support::fixtures("nano-bf16")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
    }
    dir
}

/// Changes `config.json` at a JSON pointer.
fn edit(dir: &Path, pointer: &str, value: serde_json::Value) {
    let path = dir.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    match config.pointer_mut(pointer) {
        Some(place) => *place = value,
        None => config[&pointer[1..]] = value,
    }
    fs::write(path, config.to_string()).unwrap();
}

fn error(dir: &Path) -> String {
    let loaded = Lance::from_pretrained(dir).and_then(|lance| lance.vit().map(drop));
    let text = loaded.expect_err("a folder that cannot be loaded").to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text
}

#[test]
fn a_folder_answers_as_the_bundled_model_does() {
    let dir = folder();
    let lance = Lance::from_pretrained(dir.path()).unwrap();
    for demo in &lance_mm_nano::DEMOS {
        let picture = image::decode(demo.png, demo.file, &image::LoadOptions::default()).unwrap();
        assert_eq!(lance.ask(&picture, demo.question, &AskOptions::default()).unwrap().text, demo.answer);
    }
}

#[test]
fn the_bundled_model_is_close_to_what_it_was_made_from() {
    let sample =
        |demo: &lance_mm_nano::Demo| Sample::of_image(demo.file, demo.png, demo.question, demo.answer);
    let data = Dataset { name: "demos".into(), samples: lance_mm_nano::DEMOS.iter().map(sample).collect() };
    let load = |path: &Path| Lance::from_pretrained(path).unwrap();
    let (reference, candidate) = (load(dense().path()), load(folder().path()));
    let report = parity(&reference, &candidate, &data, &ParityOptions::default(), &mut |_, _| {}).unwrap();
    assert_eq!(report.all.agreement.unwrap().exact, 1.0);
    // Plain rounding to 4 bits is at 0.1 on pictures like these, the recipe at 0.0002.
    let kl = report.all.logits.unwrap().kl.mean;
    assert!(kl > 0.0 && kl < 0.002, "KL {kl}");
}

#[test]
fn text_needs_no_vision_transformer() {
    let dir = folder();
    fs::remove_file(dir.path().join("vit.safetensors")).unwrap();
    let lance = Lance::from_pretrained(dir.path()).unwrap();
    let decode = DecodeOptions { max_new_tokens: 1, ..DecodeOptions::default() };
    let options = AskOptions { decode, ..AskOptions::default() };
    assert!(lance.answer(&[Content::Text("Hello")], &options).is_ok());
    let picture = image::RgbImage::new(8, 8);
    let text = lance.ask(&picture, "What?", &options).unwrap_err().to_string();
    assert!(text.contains("expected vit.safetensors, which images need, found none"), "{text}");
}

#[test]
fn files_that_are_cut_short_or_missing() {
    let dir = folder();
    let path = dir.path().join("model.safetensors");
    let whole = lance_mm_nano::MODEL;
    for len in [0, 7, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        let text = error(dir.path());
        assert!(text.contains("model.safetensors"), "{text}");
        assert!(len == 0 || text.contains(&len.to_string()), "{text}");
    }
    fs::remove_file(&path).unwrap();
    assert!(error(dir.path()).contains("expected model.safetensors"));
    let dir = folder();
    fs::remove_file(dir.path().join("tokenizer.json")).unwrap();
    assert!(error(dir.path()).contains("expected tokenizer.json"));
    let dir = folder();
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(error(dir.path()).contains("config.json"));
    assert!(error(Path::new("/nowhere/at/all")).contains("found nothing at this path"));
}

#[test]
fn shapes_and_settings_that_do_not_fit() {
    let cases = [
        ("/intermediate_size", json!(641), "mlp.up_proj.weight: expected [641, 256], found [640, 256]"),
        ("/num_hidden_layers", json!(5), "layers.4.input_layernorm.weight: missing, expected [256]"),
        ("/num_hidden_layers", json!(3), "layers.3.input_layernorm.weight: no part of the model"),
        ("/num_hidden_layers", json!(1u64 << 50), "num_hidden_layers: expected a number from 1 to 1024"),
        ("/vocab_size", json!(511), "video_token_id: expected an id below vocab_size 511, found 511"),
        ("/video_token_id", json!(510), "<|video_pad|> is 511, but config.json says video_token_id 510"),
        ("/vision_config/depth", json!(5), "blocks.4.norm1.weight: missing"),
        ("/quantization", json!({"bits": 4, "group_size": 128, "mode": "nf4"}), "expected affine, mxfp4"),
        ("/quantization", json!({"bits": 7, "group_size": 128}), "bits 2, 3, 4, 5, 6 or 8"),
        (
            "/quantization",
            json!({"bits": 4, "group_size": 128, "lm_head": {"bits": 8}}),
            "config says quantized",
        ),
        ("/quantization_config", json!({"quant_method": "gptq"}), "found \"gptq\""),
        ("/lance_nano/vit_resolution", json!(-3), "lance_nano.vit_resolution: expected 28 to 4096, found -3"),
    ];
    for (pointer, value, expected) in cases {
        let dir = dense();
        edit(dir.path(), pointer, value);
        let text = error(dir.path());
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn stop_ids_come_from_the_generation_config() {
    let dir = folder();
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": 100000}"#).unwrap();
    assert!(error(dir.path()).contains("eos_token_id: expected ids below 512, found 100000"));
    fs::write(dir.path().join("generation_config.json"), "{").unwrap();
    assert!(error(dir.path()).contains("generation_config.json"));
    fs::remove_file(dir.path().join("generation_config.json")).unwrap();
    assert!(Lance::from_pretrained(dir.path()).is_ok());
}

#[test]
fn sharded_files_are_read_as_one() {
    let dir = folder();
    let model = safetensors::SafeTensors::deserialize(lance_mm_nano::MODEL).unwrap();
    let (first, second): (Vec<_>, Vec<_>) =
        model.tensors().into_iter().partition(|(name, _)| name.len() % 2 == 0);
    let mut map = serde_json::Map::new();
    for (file, part) in
        [("model-00001-of-00002.safetensors", first), ("model-00002-of-00002.safetensors", second)]
    {
        map.extend(part.iter().map(|(name, _)| (name.clone(), json!(file))));
        safetensors::serialize_to_file(part, None, &dir.path().join(file)).unwrap();
    }
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("model.safetensors.index.json"), json!({"weight_map": map}).to_string())
        .unwrap();
    let lance = Lance::from_pretrained(dir.path()).unwrap();
    let demo = &lance_mm_nano::DEMOS[2];
    let picture = image::decode(demo.png, demo.file, &image::LoadOptions::default()).unwrap();
    assert_eq!(lance.ask(&picture, demo.question, &AskOptions::default()).unwrap().text, demo.answer);
    fs::remove_file(dir.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert!(error(dir.path()).contains("model-00002-of-00002.safetensors"));
}
