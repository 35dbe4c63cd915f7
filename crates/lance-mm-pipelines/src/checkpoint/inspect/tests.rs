use std::collections::HashMap;
use std::fs;
use std::ops::Range;

use lance_mm_models::Config;
use lance_mm_tensor::{Quantization, Scheme, TensorInfo};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value, json};

use super::*;

/// A tensor to be: name, element type, shape.
type Spec = (String, Dtype, Vec<usize>);

struct Size {
    hidden: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    mlp: usize,
    vocab: usize,
    positions: usize,
}

const LANCE_3B: Size =
    Size { hidden: 2048, layers: 36, heads: 16, kv_heads: 2, mlp: 11008, vocab: 151_936, positions: 4096 };
const TOY: Size = Size { hidden: 32, layers: 2, heads: 4, kv_heads: 2, mlp: 64, vocab: 40, positions: 4 };

fn config(size: &Size) -> Value {
    let half = size.hidden / size.heads / 2;
    json!({
        "hidden_size": size.hidden, "num_hidden_layers": size.layers, "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads, "intermediate_size": size.mlp, "vocab_size": size.vocab,
        "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [half - 2, 1, 1]},
        "max_position_embeddings": 128_000, "max_latent_size": size.positions.isqrt(),
        "tie_word_embeddings": false, "vision_start_token_id": 37,
        "vision_end_token_id": 38, "video_token_id": 39,
        "vision_config": {
            "depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 20,
            "out_hidden_size": size.hidden, "patch_size": 14, "temporal_patch_size": 2,
            "spatial_merge_size": 2, "window_size": 112, "fullatt_block_indexes": [0], "in_chans": 3,
            "tokens_per_second": 2
        }
    })
}

/// The model file of the published layout; matrices in groups of `scheme`, if given.
fn model(size: &Size, scheme: Option<Scheme>) -> Vec<Spec> {
    let mut specs = Vec::new();
    let (d, kv, head) = (size.hidden, size.hidden / size.heads * size.kv_heads, size.hidden / size.heads);
    let matrix = |path: String, rows: usize, cols: usize, specs: &mut Vec<Spec>| match scheme {
        None => specs.push((format!("{path}.weight"), Dtype::BF16, vec![rows, cols])),
        Some(s) => {
            specs.push((format!("{path}.weight"), Dtype::U32, vec![rows, cols * s.bits() / 32]));
            specs.push((format!("{path}.scales"), Dtype::BF16, vec![rows, cols / s.group_size()]));
            specs.push((format!("{path}.biases"), Dtype::BF16, vec![rows, cols / s.group_size()]));
        }
    };
    let vector = |name: String, dtype: Dtype, n: usize| (name, dtype, vec![n]);
    for x in ["", "_moe_gen"] {
        specs.push(vector(format!("norm{x}.weight"), Dtype::F32, d));
        for i in 0..size.layers {
            let l = format!("layers.{i}");
            specs.push(vector(format!("{l}.input_layernorm{x}.weight"), Dtype::F32, d));
            specs.push(vector(format!("{l}.post_attention_layernorm{x}.weight"), Dtype::F32, d));
            for (name, rows) in [("q", d), ("k", kv), ("v", kv)] {
                matrix(format!("{l}.self_attn.{name}_proj{x}"), rows, d, &mut specs);
                specs.push(vector(format!("{l}.self_attn.{name}_proj{x}.bias"), Dtype::BF16, rows));
            }
            matrix(format!("{l}.self_attn.o_proj{x}"), d, d, &mut specs);
            specs.push(vector(format!("{l}.self_attn.q_norm{x}.weight"), Dtype::F32, head));
            specs.push(vector(format!("{l}.self_attn.k_norm{x}.weight"), Dtype::F32, head));
            matrix(format!("{l}.mlp{x}.gate_proj"), size.mlp, d, &mut specs);
            matrix(format!("{l}.mlp{x}.up_proj"), size.mlp, d, &mut specs);
            matrix(format!("{l}.mlp{x}.down_proj"), d, size.mlp, &mut specs);
        }
    }
    matrix("embed_tokens".into(), size.vocab, d, &mut specs);
    matrix("lm_head".into(), size.vocab, d, &mut specs);
    specs.push(("latent_pos_embed.pos_embed".into(), Dtype::BF16, vec![size.positions, d]));
    for (path, rows, cols) in [
        ("vae_in_proj.vae2llm", d, 48),
        ("llm2vae", 48, d),
        ("time_embedder.proj_in", d, 256),
        ("time_embedder.proj_out", d, d),
    ] {
        specs.push((format!("{path}.weight"), Dtype::BF16, vec![rows, cols]));
        specs.push(vector(format!("{path}.bias"), Dtype::BF16, rows));
    }
    specs
}

fn vit(d: usize, mlp: usize, out: usize) -> Vec<Spec> {
    let mut specs = vec![
        ("patch_embed.proj.weight".to_owned(), Dtype::BF16, vec![d, 3, 2, 14, 14]),
        ("merger.ln_q.weight".to_owned(), Dtype::BF16, vec![d]),
    ];
    let mut linear = |path: &str, rows: usize, cols: usize| {
        specs.push((format!("{path}.weight"), Dtype::BF16, vec![rows, cols]));
        specs.push((format!("{path}.bias"), Dtype::BF16, vec![rows]));
    };
    linear("blocks.0.attn.qkv", 3 * d, d);
    linear("blocks.0.attn.proj", d, d);
    linear("blocks.0.mlp.gate_proj", mlp, d);
    linear("blocks.0.mlp.up_proj", mlp, d);
    linear("blocks.0.mlp.down_proj", d, mlp);
    linear("merger.mlp.0", 4 * d, 4 * d);
    linear("merger.mlp.2", out, 4 * d);
    specs.push(("blocks.0.norm1.weight".into(), Dtype::BF16, vec![d]));
    specs.push(("blocks.0.norm2.weight".into(), Dtype::BF16, vec![d]));
    specs
}

fn bytes(dtype: Dtype, shape: &[usize]) -> usize {
    shape.iter().product::<usize>() * dtype.bitsize() / 8
}

fn infos(specs: &[Spec]) -> Vec<TensorInfo> {
    let info = |(name, dtype, shape): &Spec| TensorInfo {
        name: name.clone(),
        dtype: *dtype,
        shape: shape.clone(),
        bytes: bytes(*dtype, shape),
    };
    specs.iter().map(info).collect()
}

fn read(size: &Size) -> Config {
    Config::from_json(config(size).to_string().as_bytes()).unwrap()
}

fn write(path: &Path, specs: &[Spec]) {
    let data: HashMap<&str, Vec<u8>> =
        specs.iter().map(|(name, dtype, shape)| (name.as_str(), vec![0; bytes(*dtype, shape)])).collect();
    let view = |(name, dtype, shape): &Spec| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), &data[name.as_str()]).unwrap())
    };
    serialize_to_file(specs.iter().map(view), None, path).unwrap();
}

/// A checkpoint of zeros, without a tokenizer.
fn folder(config: &Value, model: &[Spec]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    write(&dir.path().join("model.safetensors"), model);
    write(&dir.path().join("vit.safetensors"), &vit(16, 20, 32));
    dir
}

fn shallow(path: &Path) -> InspectReport {
    inspect(path, InspectOptions::default()).unwrap()
}

/// The problems other than the absence of a tokenizer.
fn problems(report: &InspectReport) -> Vec<&str> {
    let problems = report.problems.iter().map(String::as_str);
    problems.filter(|p| !p.contains("expected tokenizer.json")).collect()
}

fn component(report: &InspectReport, component: Component) -> &ComponentSummary {
    report.components.iter().find(|c| c.component == component).unwrap()
}

/// Numbers of the published files, which their sizes confirm to the byte.
#[test]
fn the_published_sizes_come_out() {
    let config = read(&LANCE_3B);
    let cases = [
        (None, 1021, 12_371_046_496, 16.0003),
        (Some(Scheme::affine(4, 128).unwrap()), 2033, 3_306_811_488, 4.277),
        (Some(Scheme::affine(8, 64).unwrap()), 2033, 6_585_364_576, 8.5175),
    ];
    for (scheme, tensors, bytes, bits) in cases {
        let quantization = match scheme {
            None => Quantization::default(),
            Some(s) => {
                let object = json!({"quantization": {"bits": s.bits(), "group_size": s.group_size()}});
                Quantization::from_config(&object).unwrap()
            }
        };
        let infos = infos(&model(&LANCE_3B, scheme));
        let modules = quantized::modules(Source::Model, &infos, Some(&config), &quantization);
        let items = items(Source::Model, &infos, &modules);
        let total: Count = items.iter().map(|item| item.count).sum();
        assert_eq!(total, Count { tensors, parameters: 6_185_205_808, bytes }, "{scheme:?}");
        assert!(
            (total.bits_per_weight().unwrap() - bits).abs() < 6e-4,
            "{scheme:?}: {:?}",
            total.bits_per_weight()
        );

        let norms: Count = items.iter().filter(|i| i.component == Component::Norms).map(|i| i.count).sum();
        assert_eq!((norms.tensors, norms.parameters), (290, 317_440));
        let summary = quantized::summary(&infos, &modules, &quantization);
        let Some(scheme) = scheme else {
            assert_eq!(summary, None);
            continue;
        };
        let summary = summary.unwrap();
        assert_eq!((summary.schemes.len(), summary.schemes[0].modules), (1, 506));
        assert_eq!(summary.packed.parameters, 6_171_394_048);
        let stored = scheme.bits() as f64 + 32.0 / scheme.group_size() as f64;
        assert_eq!(summary.packed.bits_per_weight(), Some(stored));
        let dense = ["llm2vae", "time_embedder.proj_in", "time_embedder.proj_out", "vae_in_proj.vae2llm"];
        assert_eq!((summary.dense, summary.unclear), (dense.map(str::to_owned).to_vec(), vec![]));
        if scheme.bits() == 4 {
            let memory = memory(&config, &items);
            assert_eq!(memory.und_bytes + memory.embed_tokens_bytes, 1_805_402_112);
            assert_eq!(memory.embed_tokens_bytes, 151_936 * 2048 / 32 * 17);
            assert_eq!(memory.kv_bytes_per_1000_tokens, 36_864_000);
        }
    }
}

#[test]
fn a_dense_folder_is_counted() {
    let dir = folder(&config(&TOY), &model(&TOY, None));
    let report = shallow(dir.path());
    assert_eq!(problems(&report), [""; 0]);
    assert_eq!((report.layout, report.experts), (Some(CheckpointLayout::Mlx), Some(ExpertsFound::UndAndGen)));
    assert_eq!(report.quantization, None);
    // A layer: q and o 32·32, k and v 16·32, three of 64·32; biases 32 + 16 + 16.
    let linears = 2 * (2 * 1024 + 2 * 512 + 3 * 2048 + 64);
    for expert in [Component::UndLinears, Component::GenLinears] {
        let expected = Count { tensors: 2 * 10, parameters: linears, bytes: 2 * linears };
        assert_eq!(component(&report, expert).count, expected);
        assert_eq!(component(&report, expert).dtypes, ["BF16"]);
    }
    // Both experts: the final norm, and in a layer two of 32 and two of 8.
    let norms = 2 * (32 + 2 * (64 + 16));
    assert_eq!(
        component(&report, Component::Norms).count,
        Count { tensors: 18, parameters: norms, bytes: 4 * norms }
    );
    assert_eq!(component(&report, Component::Latent).count.parameters, 4 * 32 + 1568 + 1584 + 8224 + 1056);
    let memory = report.memory.unwrap();
    assert_eq!(memory.und_bytes, 2 * linears + 2 * norms + 2 * 40 * 32);
    assert_eq!(
        (memory.embed_tokens_bytes, memory.kv_bytes_per_1000_tokens),
        (2560, 2 * 2 * 2 * 8 * 2 * 1000)
    );
    assert_eq!(memory.vit_bytes, component(&report, Component::Vit).count.bytes);
    assert!(report.components.iter().all(|part| part.fingerprint.is_none()), "nothing but headers was read");
    assert_eq!(report.latent_frames, Some(1));
    assert_eq!(
        report.files.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(),
        ["config.json", "model.safetensors", "vit.safetensors"]
    );
}

#[test]
fn a_quantized_folder_counts_the_weights_it_stands_for() {
    let mut settings = config(&TOY);
    settings["quantization"] = json!({"bits": 4, "group_size": 32, "lm_head": {"bits": 8, "group_size": 32}});
    let mut specs = model(&TOY, Some(Scheme::affine(4, 32).unwrap()));
    let head = specs.iter_mut().find(|(name, ..)| name == "lm_head.weight").unwrap();
    head.2 = vec![40, 8];
    let dir = folder(&settings, &specs);
    let report = shallow(dir.path());
    assert_eq!(problems(&report), [""; 0]);
    assert_eq!(report.layout, Some(CheckpointLayout::MlxQuantized));
    let dense = shallow(folder(&config(&TOY), &model(&TOY, None)).path());
    assert_eq!(report.model.unwrap().parameters, dense.model.unwrap().parameters);
    let head = &component(&report, Component::LmHead).count;
    assert_eq!(*head, Count { tensors: 3, parameters: 40 * 32, bytes: 40 * (32 + 2 + 2) });
    let quantization = report.quantization.unwrap();
    let bits: Vec<(usize, usize)> = quantization.schemes.iter().map(|s| (s.scheme.bits, s.modules)).collect();
    assert_eq!(bits, [(4, 2 * 14 + 1), (8, 1)]);
    assert_eq!(quantization.schemes[1].count.bits_per_weight(), Some(9.0));

    let json = serde_json::to_value(shallow(dir.path())).unwrap();
    assert_eq!((&json["layout"], &json["experts"]), (&json!("mlx-quantized"), &json!("und+gen")));
    assert_eq!(json["quantization"]["schemes"][0]["count"]["bits_per_weight"], 5.0);
}

#[test]
fn damage_is_reported_with_what_could_be_read() {
    let mut specs = model(&TOY, None);
    specs.retain(|(name, ..)| !name.contains(".q_norm."));
    specs.push(("lm_head.extra".into(), Dtype::BF16, vec![3]));
    specs.push(("adapter.weight".into(), Dtype::BF16, vec![2, 2]));
    let mut settings = config(&TOY);
    settings["tie_word_embeddings"] = true.into();
    let dir = folder(&settings, &specs);
    let report = shallow(dir.path());
    let found = problems(&report).join("\n");
    assert!(found.contains("layers.{0..1}.self_attn.q_norm.weight: missing, expected [8] (2)"), "{found}");
    assert!(report.notes.iter().any(|n| n.ends_with("known to have: adapter.weight")), "{:?}", report.notes);
    assert!(report.notes.iter().any(|n| n.contains("tie_word_embeddings")), "{:?}", report.notes);

    // Cut short: the other parts are still counted, and both lengths are named.
    let path = dir.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let report = shallow(dir.path());
    let expected = format!("truncated: expected {} bytes, found {}", whole.len(), whole.len() - 1);
    assert!(problems(&report)[0].ends_with(&expected), "{:?}", report.problems);
    assert!(report.model.is_none() && report.config.is_some() && report.total.tensors > 0);

    fs::write(&path, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    let report = shallow(dir.path());
    let found = problems(&report);
    assert!(
        found.len() == 1 && found[0].contains("model.safetensors: expected the file itself"),
        "{found:?}"
    );

    fs::write(dir.path().join("config.json"), "{").unwrap();
    fs::remove_file(dir.path().join("vit.safetensors")).unwrap();
    fs::write(&path, whole).unwrap();
    let report = shallow(dir.path());
    let found = problems(&report).join("\n");
    assert!(found.contains("config.json: EOF") && found.contains("images are not possible"), "{found}");
    assert!(report.model.is_some() && report.memory.is_none());
}

#[test]
fn shapes_beyond_reason_are_no_panic() {
    let mut settings = config(&TOY);
    settings["quantization"] = json!({"bits": 4, "group_size": 32});
    let huge = 1 << 60;
    let dir = folder(
        &settings,
        &[
            ("layers.0.self_attn.q_proj.weight".into(), Dtype::U32, vec![0, huge]),
            ("layers.0.self_attn.q_proj.scales".into(), Dtype::BF16, vec![0, 1]),
            ("layers.0.self_attn.v_proj.weight".into(), Dtype::U32, vec![huge, 0]),
            ("layers.0.self_attn.v_proj.scales".into(), Dtype::BF16, vec![]),
            ("weird.weight".into(), Dtype::U32, vec![0, huge]),
            ("weird.scales".into(), Dtype::BF16, vec![]),
        ],
    );
    for deep in [false, true] {
        let report = inspect(dir.path(), InspectOptions { deep }).unwrap();
        assert_eq!(report.quantization.as_ref().unwrap().unclear.len(), 3);
        assert!(!problems(&report).is_empty());
    }
}

#[test]
fn a_deep_look_names_tensor_and_row() {
    let dir = folder(&config(&TOY), &model(&TOY, None));
    let clean = inspect(dir.path(), InspectOptions { deep: true }).unwrap();
    assert!(problems(&clean).is_empty() && clean.components.iter().all(|c| c.fingerprint.is_some()));

    let path = dir.path().join("model.safetensors");
    overwrite(&path, "lm_head.weight", 2 * (32 * 7 + 3)..2 * (32 * 7 + 4), &[0xc0, 0x7f]);
    overwrite(&path, "norm.weight", 8..12, &f32::INFINITY.to_le_bytes());
    assert!(problems(&shallow(dir.path())).is_empty());
    let report = inspect(dir.path(), InspectOptions { deep: true }).unwrap();
    let mut found = problems(&report);
    found.sort_unstable();
    assert!(found.len() == 2 && found[0].ends_with("lm_head.weight: not finite in row 7"), "{found:?}");
    assert!(found[1].ends_with(": norm.weight: not finite in element 2"), "{found:?}");
    for (part, same) in [(Component::LmHead, false), (Component::UndLinears, true), (Component::Vit, true)] {
        let equal = component(&report, part).fingerprint == component(&clean, part).fingerprint;
        assert_eq!(equal, same, "{part:?}");
    }
}

#[test]
fn a_fingerprint_is_of_names_shapes_and_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let fingerprint = || fingerprint_of(&Weights::open(&[&path]).unwrap()).unwrap();
    let of = |name: &str, shape: &[usize]| {
        write(&path, &[(name.to_owned(), Dtype::BF16, shape.to_vec())]);
        fingerprint()
    };
    let first = of("a", &[6, 4]);
    assert_eq!(first, of("a", &[6, 4]));
    assert!(first != of("b", &[6, 4]) && first != of("a", &[4, 6]));
    of("a", &[6, 4]);
    overwrite(&path, "a", 47..48, &[0x55]);
    assert_ne!(first, fingerprint());
}

/// Replaces bytes of a tensor in a file.
fn overwrite(path: &Path, name: &str, range: Range<usize>, with: &[u8]) {
    let mut file = fs::read(path).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&file).unwrap();
    let start = header + 8 + metadata.info(name).unwrap().data_offsets.0;
    file[start + range.start..start + range.end].copy_from_slice(with);
    fs::write(path, file).unwrap();
}

#[test]
fn positions_for_several_frames_are_counted() {
    let videos = Size { positions: 3 * 4, ..TOY };
    let dir = folder(&config(&TOY), &model(&videos, None));
    assert_eq!(shallow(dir.path()).latent_frames, Some(3));
}

fn deep(path: &Path) -> InspectReport {
    inspect(path, InspectOptions { deep: true }).unwrap()
}

#[test]
fn fingerprints_do_not_depend_on_prefixes() {
    let dir = tempfile::tempdir().unwrap();
    let bundled: Vec<Spec> = vit(16, 20, 32)
        .into_iter()
        .map(|(name, dtype, shape)| (format!("vit_model.{name}"), dtype, shape))
        .collect();
    write(&dir.path().join("vit.safetensors"), &vit(16, 20, 32));
    write(&dir.path().join("model.safetensors"), &bundled);
    let [alone, inside] = ["vit.safetensors", "model.safetensors"].map(|name| deep(&dir.path().join(name)));
    assert_eq!(alone.problems, [""; 0]);
    assert_eq!(component(&alone, Component::Vit), component(&inside, Component::Vit));
    assert!(inside.problems[0].contains("no known layout"), "{:?}", inside.problems);
    let both = deep(dir.path());
    assert_eq!(component(&both, Component::Vit), component(&alone, Component::Vit));
    assert!(both.notes[0].contains("a ViT of its own"), "{:?}", both.notes);
}

#[test]
fn shards_are_read_and_a_missing_one_is_named() {
    let dir = folder(&config(&TOY), &model(&TOY, None));
    let specs = model(&TOY, None);
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let (first, second) = specs.split_at(30);
    write(&dir.path().join(names[0]), first);
    write(&dir.path().join(names[1]), second);
    let map: HashMap<&str, &str> = (first.iter().map(|s| (s.0.as_str(), names[0])))
        .chain(second.iter().map(|s| (s.0.as_str(), names[1])))
        .collect();
    let index = dir.path().join("model.safetensors.index.json");
    fs::write(&index, json!({"weight_map": map}).to_string()).unwrap();
    let report = shallow(dir.path());
    assert_eq!((problems(&report), report.model.unwrap().tensors), (vec![], specs.len()));

    fs::remove_file(dir.path().join(names[1])).unwrap();
    let report = shallow(dir.path());
    assert!(problems(&report)[0].contains(names[1]), "{:?}", report.problems);
    assert_eq!(report.model.unwrap().tensors, 30);
}

#[test]
fn layouts_that_are_not_read_are_still_counted() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("llm_config.json"), config(&TOY).to_string()).unwrap();
    let path = "language_model.model.layers.0.self_attn.q_proj";
    write(
        &dir.path().join("awq_state_dict.safetensors"),
        &[
            (format!("{path}.qweight"), Dtype::U8, vec![32, 16]),
            (format!("{path}.scales"), Dtype::BF16, vec![32, 1]),
            (format!("{path}.zeros"), Dtype::U8, vec![32, 1]),
        ],
    );
    let report = shallow(dir.path());
    assert_eq!(report.layout, Some(CheckpointLayout::PerChannelInt4));
    let expected = Count { tensors: 3, parameters: 1024, bytes: 512 + 64 + 32 };
    assert_eq!(component(&report, Component::UndLinears).count, expected);
    let refusals =
        problems(&report).iter().filter(|p| p.contains("per-channel INT4 of another author")).count();
    assert_eq!(refusals, 1);
}
