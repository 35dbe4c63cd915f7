//! Which weights a task touches: pages of the mapped files that this process has read, as Linux counts them.
//!
//! Every group of weights has a file of its own. Around a page that is read Linux maps its neighbours in the system's
//! file cache, but none of another file: a file of which no page is added was not read, whatever is mapped at once.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use lance_mm::generate::{Resolution, Size};
use lance_mm::image::RgbImage;
use lance_mm::models::{Config, Experts, LatentLayers, Llm, Vae, VaeConfig, Vit, is_generation, required};
use lance_mm::tensor::testing::seeded;
use lance_mm::{AskOptions, Content, DecodeOptions, GenerateOptions, Lance, Request};

use crate::support::fixtures;

/// Groups of weights, and the part whose shards they are.
const GROUPS: [(&str, &str); 7] = [
    ("embedding", "model"),
    ("und", "model"),
    ("head", "model"),
    ("gen", "model"),
    ("vit", "vit"),
    ("encoder", "vae"),
    ("decoder", "vae"),
];

fn group(part: &str, name: &str) -> &'static str {
    match part {
        "vit" => "vit",
        "vae" if name.starts_with("encoder.") || name.starts_with("conv1.") => "encoder",
        "vae" => "decoder",
        _ if is_generation(name) => "gen",
        _ if name.contains("embed_tokens") => "embedding",
        _ if name.starts_with("lm_head") => "head",
        _ => "und",
    }
}

/// A checkpoint with random weights, whose every group takes more than five megabytes.
fn checkpoint() -> tempfile::TempDir {
    let (dir, from) = (tempfile::tempdir().unwrap(), fixtures("generation/ckpt/mlx"));
    fs::copy(from.join("tokenizer.json"), dir.path().join("tokenizer.json")).unwrap();
    let mut json: serde_json::Value =
        serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    for (pointer, value) in [
        ("/hidden_size", 512),
        ("/intermediate_size", 768),
        ("/vocab_size", 8192),
        ("/vision_config/hidden_size", 256),
        ("/vision_config/intermediate_size", 768),
        ("/vision_config/out_hidden_size", 512),
        ("/max_latent_size", 24),
    ] {
        *json.pointer_mut(pointer).unwrap() = value.into();
    }
    json["rope_scaling"]["mrope_section"] = serde_json::json!([16, 24, 24]);
    let text = json.to_string();
    fs::write(dir.path().join("config.json"), &text).unwrap();
    let config = Config::from_json(text.as_bytes()).unwrap();

    let vae = VaeConfig { encoder_width: 24, decoder_width: 20 };
    let mut model = required(|weights| Llm::load(&config, weights, Experts::Both).map(drop)).unwrap();
    model.extend(required(|weights| LatentLayers::load(&config, weights).map(drop)).unwrap());
    let vit = required(|weights| Vit::load(&config.vision, weights).map(drop)).unwrap();
    let vae = required(|weights| Vae::load(&vae, weights).map(drop)).unwrap();
    for (part, tensors) in [("model", model), ("vit", vit), ("vae", vae)] {
        write(dir.path(), part, tensors);
    }
    dir
}

/// Writes a part of a checkpoint, a shard for every group.
fn write(dir: &Path, part: &str, tensors: Vec<(String, Vec<usize>)>) {
    let mut shards: HashMap<&str, HashMap<String, Tensor>> = HashMap::new();
    let mut index = serde_json::Map::new();
    for (i, (name, shape)) in tensors.into_iter().enumerate() {
        let fan_in = shape[1..].iter().product::<usize>() as f64;
        let values = seeded(shape.iter().product(), i as u64);
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        // Vectors are read when networks are built. They lie first in a file, apart from the matrices.
        let tensor = match tensor.rank() {
            1 => tensor.affine(0.1, 1.0).unwrap(),
            _ => (tensor / fan_in.sqrt()).unwrap().to_dtype(DType::BF16).unwrap(),
        };
        let group = group(part, &name);
        index.insert(name.clone(), format!("{group}.safetensors").into());
        shards.entry(group).or_default().insert(name, tensor);
    }
    for (group, tensors) in shards {
        candle_core::safetensors::save(&tensors, dir.join(format!("{group}.safetensors"))).unwrap();
    }
    let index = serde_json::json!({ "weight_map": index }).to_string();
    fs::write(dir.join(format!("{part}.safetensors.index.json")), index).unwrap();
}

/// Pages of the files that are mapped into this process now, in bytes, by group.
fn resident(dir: &Path) -> BTreeMap<&'static str, u64> {
    let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
    let mut bytes: BTreeMap<_, _> = GROUPS.iter().map(|(group, _)| (*group, 0)).collect();
    let mut file: Option<&'static str> = None;
    for line in smaps.lines() {
        if let Some(path) = line.find('/').map(|at| PathBuf::from(&line[at..])) {
            let group = |(group, _): &&(&str, _)| path == dir.join(format!("{group}.safetensors"));
            file = GROUPS.iter().find(group).map(|(group, _)| *group);
        } else if let (Some(group), Some(size)) = (file, line.strip_prefix("Rss:")) {
            let kilobytes: u64 = size.trim().strip_suffix("kB").unwrap().trim().parse().unwrap();
            *bytes.get_mut(group).unwrap() += 1024 * kilobytes;
            file = None;
        }
    }
    bytes
}

/// Groups that `work` reads besides the embedding, of which rows are looked up.
#[track_caller]
fn read_by<T>(dir: &Path, load: impl Fn(&Path) -> T, work: impl Fn(&T)) -> Vec<&'static str> {
    let loaded = load(dir);
    let before = resident(dir);
    work(&loaded);
    let after = resident(dir);
    let read = |(group, _): &(&'static str, &str)| {
        let size = fs::metadata(dir.join(format!("{group}.safetensors"))).unwrap().len();
        let (before, after) = (before[group], after[group]);
        // Linux may map two megabytes around a header and the vectors behind it.
        assert!(before < size / 2, "{group}: loading maps {before} bytes of {size}");
        if *group == "embedding" {
            assert!(before < after && after < size / 2, "{before}, then {after} bytes of {size}");
            return None;
        }
        // The system may take pages back, but adds none that nobody reads.
        assert!(after <= before || after > size / 10 * 9, "{group}: {before}, then {after} bytes of {size}");
        (after > before).then_some(*group)
    };
    GROUPS.iter().filter_map(read).collect()
}

#[test]
fn a_task_reads_the_weights_that_it_needs() {
    let checkpoint = checkpoint();
    let dir = checkpoint.path().canonicalize().unwrap();
    let image = RgbImage::from_fn(90, 70, |x, y| [x as u8 * 2, y as u8 * 3, (x * y) as u8].into());

    let decode = DecodeOptions { max_new_tokens: 2, ..DecodeOptions::default() };
    let options = AskOptions { decode, ..AskOptions::default() };
    let load = |dir: &Path| Lance::from_pretrained(dir).unwrap();
    let text = [Content::Text("What?")];
    let read = read_by(&dir, load, |lance| {
        lance.answer(&text, &options).unwrap();
    });
    assert_eq!(read, ["und", "head"], "a question");
    let read = read_by(&dir, load, |lance| {
        lance.ask(&image, "What?", &options).unwrap();
    });
    assert_eq!(read, ["und", "head", "vit"], "a question about a picture");

    let options = GenerateOptions { steps: 1, ..GenerateOptions::default() };
    let resolution = Resolution { vae: 64, vit: 56 };
    for (request, expected) in [
        (Request::TextToImage { size: Size { width: 48, height: 32 } }, &["und", "gen", "decoder"][..]),
        (
            Request::ImageToVideo { image: &image, frames: 1, resolution },
            &["und", "gen", "encoder", "decoder"],
        ),
        (Request::EditImage { image: &image, resolution }, &["und", "gen", "vit", "encoder", "decoder"]),
    ] {
        let load = |dir: &Path| Lance::from_pretrained(dir).unwrap();
        let read = read_by(&dir, load, |lance| {
            lance.generate("A fox", &request, &options, |_| {}).unwrap();
        });
        assert_eq!(read, expected, "{}", request.task());
    }
}
