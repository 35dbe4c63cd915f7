//! `lance-mm quantize`.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

#[cfg(unix)]
use crate::support::with_little_space;
use crate::support::{Files, NANO_BF16, command, lance_mm};

/// The six demo questions as a calibration file: few rows, so that a run is short.
fn calibration(files: &Files, dir: &Path) -> String {
    let lines: Vec<String> = lance_mm_nano::DEMOS
        .iter()
        .enumerate()
        .map(|(i, demo)| {
            serde_json::json!({ "image": files.demo(i), "question": demo.question, "answer": demo.answer })
                .to_string()
        })
        .collect();
    let path = dir.join("calib.jsonl");
    fs::write(&path, lines.join("\n")).unwrap();
    path.display().to_string()
}

fn bytes(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn answers(files: &Files, model: &Path) -> Vec<String> {
    let ask = |(i, demo): (usize, &lance_mm_nano::Demo)| {
        let run = lance_mm(["ask", "-q", "-m", &model.display().to_string(), &files.demo(i), demo.question]);
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.stdout.trim().to_owned()
    };
    lance_mm_nano::DEMOS.iter().enumerate().map(ask).collect()
}

#[test]
fn a_quantized_checkpoint_answers_as_the_original() {
    let files = Files::demos();
    let dir = tempfile::tempdir().unwrap();
    let calib = calibration(&files, dir.path());
    let out = dir.path().join("out");
    let target = out.display().to_string();
    let run = lance_mm(["quantize", "-q", NANO_BF16, &target, "--calib", &calib, "--uniform-bits"]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert!(
        run.stdout.contains("self_attn.q_proj") && run.stdout.contains("bits per weight"),
        "{}",
        run.stdout
    );
    let expected: Vec<&str> = lance_mm_nano::DEMOS.iter().map(|demo| demo.answer).collect();
    assert_eq!(answers(&files, &out), expected);
    let inspect = lance_mm(["inspect", &target]);
    assert_eq!(inspect.code, 0, "{}", inspect.stdout);
    // A uniform file states one setting and nothing else, so that other readers load it.
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization"], serde_json::json!({ "bits": 4, "group_size": 128, "mode": "affine" }));
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("quantization_report.json")).unwrap()).unwrap();
    let linears = report["parts"]["layer_000"]["linears"].as_array().unwrap();
    let page = fs::read_to_string(out.join("quantization_report.html")).unwrap();
    assert!(page.matches("<svg").count() >= 3 && page.contains("<td>layers.3.mlp.down_proj</td>"));
    assert!(!page.contains("http") && !page.contains("<script") && !page.contains("<link"));
    assert!(linears.iter().all(|linear| linear["final"].as_f64() < linear["plain"].as_f64()));
    let leftover = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(leftover, 2, "only the calibration file and the output are left");
}

/// Lines of a run without a terminal.
#[test]
fn a_run_says_how_far_it_is() {
    let files = Files::demos();
    let calib = calibration(&files, files.root());
    let quantize = |out: &str, more: &[&str]| {
        let out = files.arg(out);
        let args = ["quantize", NANO_BF16, &out, "--calib", &calib, "--calib-tokens", "128", "--gptq", "off"];
        let run = lance_mm(args.iter().chain(more));
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(run.stdout.starts_with('#') && !run.stdout.contains("layer 1 of 4"), "{}", run.stdout);
        run.stderr
    };
    let parts = ["embedding", "layer 1 of 4", "layer 2 of 4, about", "layer 4 of 4, about", "head"];
    let whole = [
        &["reading the checkpoint", "samples: 6 of 6"],
        &parts[..],
        &["writing the checkpoint", "out: written"],
    ];
    in_order(&quantize("out", &["--bits", "3"]), &whole.concat());
    let measured = ["answers of the unchanged model", "measuring the embedding", "measuring layer 1 of 4"];
    let mixed = quantize("mixed", &["--recipe", "awq-mixed", "--without", "clip,refit"]);
    in_order(&mixed, &[&measured[..], &["measuring layer 4 of 4", "measuring the head"], &parts].concat());
    assert_eq!(quantize("quiet", &["-q"]), "");
}

/// Lines with these texts come one after the other.
fn in_order(lines: &str, expected: &[&str]) {
    let mut rest = lines.lines();
    for text in expected {
        assert!(rest.any(|line| line.contains(text)), "no {text} in its place in {lines}");
    }
}

#[test]
fn a_budget_is_divided_among_the_matrices() {
    let files = Files::demos();
    let dir = tempfile::tempdir().unwrap();
    let calib = calibration(&files, dir.path());
    let quantize = |out: &Path, bits: &str| {
        let out = out.display().to_string();
        let mixed = ["--recipe", "awq-mixed", "--bits-per-weight", bits, "--calib", &calib];
        let quick = ["--calib-tokens", "256", "--gptq", "off", "--without", "clip,refit"];
        lance_mm(["quantize", "-q", NANO_BF16, &out].into_iter().chain(mixed).chain(quick))
    };
    let out = dir.path().join("out");
    let run = quantize(&out, "3.6");
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(out.join(name)).unwrap()).unwrap()
    };
    // The widths of the report are those of the configuration and of the file.
    let (config, report) = (read("config.json"), read("quantization_report.json"));
    let (config, widths) = (&config["quantization"], report["widths"].as_array().unwrap());
    assert_eq!(widths.len(), 30, "embedding, head and 28 linear layers");
    let mut found = std::collections::HashSet::new();
    for width in widths {
        let entry = &config[width["name"].as_str().unwrap()];
        let of = |key: &str| if entry[key].is_null() { &config[key] } else { &entry[key] };
        match &width["bits"] {
            serde_json::Value::Null => assert_eq!(entry, false, "{width}"),
            bits => assert_eq!((of("bits"), of("group_size")), (bits, &width["group_size"]), "{width}"),
        }
        found.insert((width["bits"].to_string(), width["group_size"].to_string()));
    }
    assert!(found.len() > 1, "{found:?}");
    let inspect = lance_mm(["inspect", "--json", &out.display().to_string()]);
    assert_eq!(inspect.code, 0, "{}", inspect.stdout);
    let inspect: serde_json::Value = serde_json::from_str(&inspect.stdout).unwrap();
    let bits = inspect["model"]["bits_per_weight"].as_f64().unwrap();
    assert!(bits > 3.4 && bits <= 3.6, "{bits}");
    // The least is named, and can be had.
    let small = dir.path().join("small");
    let error = quantize(&small, "1.5").error().to_owned();
    let least = error.strip_prefix("--bits-per-weight: expected ").and_then(|rest| rest.split(' ').next());
    let least = least.unwrap_or_else(|| panic!("{error}")).to_owned();
    fs::remove_dir_all(dir.path().join(".small.work")).unwrap();
    assert_eq!(quantize(&small, &least).code, 0);
}

/// Kills a run at ten moments, going on each time; the last call finishes it.
fn killed_and_whole(more: &[&str]) {
    let files = Files::demos();
    let dir = tempfile::tempdir().unwrap();
    let calib = calibration(&files, dir.path());
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let args = |out: &Path| -> Vec<String> {
        let out = out.display().to_string();
        let args = ["quantize", "-q", NANO_BF16, &out, "--calib", &calib, "--calib-tokens", "128"];
        args.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    };
    let start = Instant::now();
    assert_eq!(lance_mm(args(&whole)).code, 0);
    let time = start.elapsed();
    for moment in 1..=10u32 {
        if cut.exists() {
            break;
        }
        let mut child =
            command().args(args(&cut)).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(time.mul_f64(f64::from(moment) * 0.05).max(Duration::from_millis(5)));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let last = lance_mm(args(&cut));
    assert_eq!((last.code, last.stderr.as_str()), (0, ""));
    assert!(bytes(&whole) == bytes(&cut), "the bytes differ");
}

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_bytes() {
    killed_and_whole(&[]);
}

#[test]
fn a_run_with_a_budget_that_is_killed_goes_on_to_the_same_bytes() {
    let budget = ["--recipe", "awq-mixed", "--bits-per-weight", "4.1", "--sensitivity", "linear"];
    killed_and_whole(&[budget.as_slice(), &["--gptq", "off", "--without", "clip,refit"]].concat());
}

/// Requests for pictures of a drawing model, one an edit.
fn drawings(files: &Files) -> String {
    files.write("source.png", lance_mm_nano::DEMOS[0].png);
    let caption = |text| serde_json::json!({ "prompt": text, "size": "32x48", "steps": 3 });
    let edit = serde_json::json!({
        "prompt": "Winter", "image": "source.png", "resolution": "image_256res", "steps": 2,
    });
    let lines = [caption("A red fox"), edit, caption("A blue fox"), caption("The sea"), caption("A house")];
    files.write("drawings.jsonl", lines.map(|line| line.to_string()).join("\n").as_bytes());
    files.arg("drawings.jsonl")
}

#[test]
fn the_generating_expert_is_fitted_to_what_it_reads_while_drawing() {
    let demos = Files::demos();
    let files = super::generation::model();
    let calib = calibration(&demos, files.root());
    let (model, drawings) = (files.arg("model"), drawings(&files));
    let quantize = |out: &str, gen_: &[&str]| {
        let out = files.arg(out);
        let args = ["quantize", "-q"].into_iter().chain(gen_.iter().copied());
        let run = lance_mm(args.chain([
            &model,
            &out,
            "--calib",
            &calib,
            "--group-size",
            "32",
            "--calib-tokens",
            "256",
        ]));
        assert_eq!((run.code, run.stderr.as_str()), (0, ""));
        let report = fs::read(Path::new(&out).join("quantization_report.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&report).unwrap()
    };
    let report = quantize("fitted", &["--gen-calib", &drawings]);
    let linears = report["parts"]["layer_001"]["linears"].as_array().unwrap();
    assert_eq!(linears.len(), 14);
    for linear in linears {
        assert!(linear["drift"]["before"].as_f64() > Some(0.0), "{linear}");
        assert!(linear["final"].as_f64() < linear["plain"].as_f64(), "{linear}");
    }
    let pairs = report["parts"]["layer_001"]["pairs"].as_array().unwrap();
    assert!(pairs.iter().any(|pair| pair["producers"][0] == "layers.1.mlp_moe_gen.up_proj"), "{pairs:?}");
    // What it draws is nearer to the original than what an expert that is fitted to its weights draws.
    quantize("blind", &["--gen=fit"]);
    let error = |out: &str| -> f64 {
        let (out, json) = (files.arg(out), files.arg("eval.json"));
        let eval = ["eval", "generation", "-q", &model, &out, "--prompt", "A green fox", "--size", "48x48"];
        let run = lance_mm(eval.into_iter().chain(["--steps", "4", "--json", &json]));
        assert_eq!(run.code, 0, "{}", run.stderr);
        let json: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
        json["report"]["prompts"][0]["candidate"]["latents"]["relative_error"].as_f64().unwrap()
    };
    let (fitted, blind) = (error("fitted"), error("blind"));
    assert!(fitted < 0.9 * blind, "{fitted} {blind}");
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_half_file() {
    let files = Files::demos();
    let dir = tempfile::tempdir().unwrap();
    let calib = calibration(&files, dir.path());
    let (whole, full) = (dir.path().join("whole"), dir.path().join("full"));
    let args = |out: &Path| {
        let out = out.display().to_string();
        ["quantize", "-q", NANO_BF16, &out, "--calib", &calib, "--calib-tokens", "64", "--without", "descent"]
            .map(str::to_owned)
    };
    // In the plan, in the recorded inputs or a layer, in the model file or the vision transformer.
    for (blocks, names) in [(0, "plan.json"), (200, ".safetensors"), (2000, ".safetensors")] {
        let run = with_little_space(blocks, args(&full));
        let error = run.error();
        assert!(error.contains(names) && error.contains("File too large"), "{blocks}: {error}");
        assert_eq!(run.stdout, "", "{blocks}");
        assert!(!full.exists() && !dir.path().join(".full.partial").exists(), "{blocks}");
        for (name, _) in bytes(&dir.path().join(".full.work")) {
            let is_whole = name == "lock" || name.ends_with(".json") || name.ends_with(".safetensors");
            assert!(is_whole && !name.starts_with('.'), "{blocks}: {name} is left");
        }
    }
    assert_eq!(lance_mm(args(&full)).code, 0);
    assert_eq!(lance_mm(args(&whole)).code, 0);
    assert!(bytes(&whole) == bytes(&full), "the bytes differ");
}

/// The nano model in bf16, the MLPs of its vision transformer cut to `width`.
fn cut_vit(dir: &Path, width: usize) {
    let nano = Path::new(NANO_BF16);
    let mut config: serde_json::Value =
        serde_json::from_slice(&fs::read(nano.join("config.json")).unwrap()).unwrap();
    let full = config["vision_config"]["intermediate_size"].as_u64().unwrap() as usize;
    config["vision_config"]["intermediate_size"] = width.into();
    fs::create_dir(dir).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    for name in ["generation_config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(nano.join(name), dir.join(name)).unwrap();
    }
    let vit = fs::read(nano.join("vit.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&vit).unwrap();
    let cut = |name: &str, view: &safetensors::tensor::TensorView<'_>| -> (Vec<usize>, Vec<u8>) {
        let (mut shape, data) = (view.shape().to_vec(), view.data());
        let row = data.len() / shape[0];
        if !name.contains(".mlp.") || !name.starts_with("blocks.") {
            return (shape, data.to_vec());
        }
        if shape[0] == full {
            shape[0] = width;
            return (shape, data[..row * width].to_vec());
        }
        if shape.get(1) == Some(&full) {
            shape[1] = width;
            return (shape, data.chunks(row).flat_map(|r| r[..row / full * width].to_vec()).collect());
        }
        (shape, data.to_vec())
    };
    let cuts: Vec<_> =
        file.tensors().iter().map(|(name, view)| (name.clone(), view.dtype(), cut(name, view))).collect();
    let views = cuts.iter().map(|(name, dtype, (shape, data))| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("vit.safetensors")).unwrap();
}

#[test]
fn an_mlp_of_the_vision_transformer_is_padded_to_whole_groups() {
    let files = Files::demos();
    let dir = tempfile::tempdir().unwrap();
    let (cut, out) = (dir.path().join("cut"), dir.path().join("out"));
    cut_vit(&cut, 340);
    let of = |path: &Path| path.display().to_string();
    // The language model at 8 bits, so that what differs is the vision transformer.
    let run = lance_mm([
        "quantize",
        "-q",
        &of(&cut),
        &of(&out),
        "--recipe",
        "rtn",
        "--bits",
        "8",
        "--vit-bits",
        "8",
    ]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let inspect = lance_mm(["inspect", &of(&out)]);
    assert_eq!(inspect.code, 0, "{}", inspect.stdout);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["vision_config"]["intermediate_size"], 384);
    let vit = fs::read(out.join("vit.safetensors")).unwrap();
    let vit = safetensors::SafeTensors::deserialize(&vit).unwrap();
    assert_eq!(vit.tensor("blocks.0.mlp.down_proj.weight").unwrap().shape(), [128, 96]);
    assert_eq!(vit.tensor("blocks.0.mlp.up_proj.bias").unwrap().shape(), [384]);
    assert_eq!(answers(&files, &out), answers(&files, &cut));
}

/// Changes the last byte of a file: of its last tensor, if it holds some.
fn touch(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_result_is_not_taken_for_that_of_another_model() {
    let files = Files::nano_bf16();
    let args = ["quantize", &files.arg("nano"), &files.arg("out"), "--recipe", "rtn"];
    assert_eq!(lance_mm(args).code, 0);
    let before = bytes(&files.path("out"));
    for name in ["model.safetensors", "vit.safetensors", "config.json", "generation_config.json"] {
        let path = files.path("nano").join(name);
        let original = fs::read(&path).unwrap();
        if name.ends_with(".json") {
            fs::write(&path, [&original[..], b" "].concat()).unwrap();
        } else {
            touch(&path);
        }
        let run = lance_mm(args.into_iter().chain(["-q"]));
        assert!(
            run.error().ends_with("found the result of other settings or inputs"),
            "{name}: {}",
            run.stderr
        );
        fs::write(&path, original).unwrap();
    }
    let run = lance_mm(args);
    assert!(run.stderr.contains("out: finished by an earlier run"), "{}", run.stderr);
    assert!(bytes(&files.path("out")) == before, "the bytes differ");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_does_not_go_on_with_other_inputs() {
    let files = Files::nano_bf16();
    let calib = calibration(&files, files.root());
    let (model, out) = (files.arg("nano"), files.arg("out"));
    let args =
        ["quantize", "-q", &model, &out, "--calib", &calib, "--calib-tokens", "64", "--without", "descent"]
            .map(str::to_owned);
    assert!(with_little_space(200, &args).error().contains(".out.work"));
    let weights = files.path("nano/model.safetensors");
    let picture = files.path(lance_mm_nano::DEMOS[3].file);
    let answer = |text: &str| text.replacen("\"answer\":\"", "\"answer\":\"Not ", 1).into_bytes();
    for path in [&weights, &picture, Path::new(&calib)] {
        let original = fs::read(path).unwrap();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            fs::write(path, answer(std::str::from_utf8(&original).unwrap())).unwrap();
        } else {
            touch(path);
        }
        let run = lance_mm(&args);
        assert!(run.error().contains("left by a run with other settings or inputs"), "{}", run.stderr);
        fs::write(path, original).unwrap();
    }
    let run = lance_mm(&args);
    assert_eq!(run.code, 0, "{}", run.stderr);
}

/// Names of the files in a folder.
fn names(dir: &Path) -> Vec<String> {
    bytes(dir).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn an_expert_that_is_kept_is_named_in_the_configuration() {
    let files = super::generation::model();
    let config = |out: &str, gen_: &str| {
        let plain = ["--recipe", "rtn", "--group-size", "32", "--gen", gen_];
        let run = lance_mm([&["quantize", "-q", &files.arg("model"), &files.arg(out)], &plain[..]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let config = fs::read(files.path(out).join("config.json")).unwrap();
        serde_json::from_slice::<serde_json::Value>(&config).unwrap()["quantization"].clone()
    };
    let uniform = serde_json::json!({ "bits": 4, "group_size": 32, "mode": "affine" });
    assert_eq!(config("fit", "fit"), uniform);
    let kept = config("keep", "keep");
    assert_eq!(kept["layers.0.mlp_moe_gen.down_proj"], false, "{kept}");
    assert_eq!((&kept["bits"], &kept["layers.0.mlp.down_proj"]), (&4.into(), &serde_json::Value::Null));
    let inspect = lance_mm(["inspect", &files.arg("keep")]);
    assert_eq!(inspect.code, 0, "{}", inspect.stdout);
}

#[test]
fn a_source_with_the_original_releases_configuration_is_quantized() {
    let files = Files::nano_bf16();
    let path = files.path("nano/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["tie_word_embeddings"] = true.into();
    fs::remove_file(path).unwrap();
    files.write("nano/llm_config.json", config.to_string().as_bytes());
    let (model, out) = (files.arg("nano"), files.path("out"));
    let run = lance_mm(["quantize", "-q", &model, &files.arg("out"), "--recipe", "rtn", "--bits", "8"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["quantization"]["bits"], &config["tie_word_embeddings"]), (&8.into(), &false.into()));
    assert!(!out.join("llm_config.json").exists());
    assert_eq!(answers(&files, &out), answers(&files, &files.path("nano")));
}

#[test]
fn a_tokenizer_one_level_above_the_source_is_taken_along() {
    let files = Files::nano_bf16();
    fs::rename(files.path("nano/tokenizer.json"), files.path("tokenizer.json")).unwrap();
    // Elsewhere: beside the source the new folder would find that tokenizer above itself too.
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let run = lance_mm(["quantize", "-q", &files.arg("nano"), &out.display().to_string(), "--recipe", "rtn"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert_eq!(
        fs::read(out.join("tokenizer.json")).unwrap(),
        fs::read(files.path("tokenizer.json")).unwrap()
    );
    answers(&files, &out);
}

/// Puts a part of a checkpoint into two files and the index that lists them.
fn shard(dir: &Path, stem: &str) {
    let path = dir.join(format!("{stem}.safetensors"));
    let whole = fs::read(&path).unwrap();
    fs::remove_file(path).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&whole).unwrap().tensors();
    let mut map = serde_json::Map::new();
    for (i, half) in tensors.chunks(tensors.len().div_ceil(2)).enumerate() {
        let name = format!("{stem}-0000{}-of-00002.safetensors", i + 1);
        map.extend(half.iter().map(|(tensor, _)| (tensor.clone(), name.clone().into())));
        let views = half.iter().map(|(tensor, view)| (tensor, view));
        safetensors::serialize_to_file(views, None, &dir.join(name)).unwrap();
    }
    let index = serde_json::json!({ "weight_map": map });
    fs::write(dir.join(format!("{stem}.safetensors.index.json")), index.to_string()).unwrap();
}

#[test]
fn shards_of_every_part_become_one_file() {
    let files = super::generation::model();
    let quantize = |out: &str| {
        let plain = ["--recipe", "rtn", "--group-size", "32"];
        let run = lance_mm([&["quantize", "-q", &files.arg("model"), &files.arg(out)], &plain[..]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let parts = ["model", "vit", "vae"].map(|stem| {
            let bytes = fs::read(files.path(&format!("{out}/{stem}.safetensors"))).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let tensor = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
                (name, view.dtype(), view.shape().to_vec(), view.data().to_vec())
            };
            let mut tensors: Vec<_> = file.tensors().into_iter().map(tensor).collect();
            tensors.sort_by(|a, b| a.0.cmp(&b.0));
            tensors
        });
        (names(&files.path(out)), parts)
    };
    let whole = quantize("whole");
    ["model", "vit", "vae"].iter().for_each(|stem| shard(&files.path("model"), stem));
    assert!(quantize("shards") == whole, "other files or tensors");
}

#[test]
fn a_vae_that_cannot_be_read_is_left_out_with_its_expert_only() {
    let files = super::generation::model();
    files.write("model/vae.safetensors", b"version https://git-lfs.github.com/spec/v1\n");
    let plain =
        ["quantize", "-q", &files.arg("model"), &files.arg("out"), "--recipe", "rtn", "--group-size", "32"];
    let run = lance_mm(plain);
    assert!(
        run.error().contains("vae.safetensors: expected weights, found a Git LFS pointer"),
        "{}",
        run.stderr
    );
    let run = lance_mm([&plain[..], &["--gen", "drop"]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(!files.path("out/vae.safetensors").exists());
}

#[test]
fn what_cannot_be_quantized_is_refused() {
    let files = Files::demos();
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out").display().to_string();
    let run = lance_mm(["quantize", "-q", NANO_BF16, &out, "--recipe", "rtn"]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let same = lance_mm(["quantize", "-q", NANO_BF16, &out, "--recipe", "rtn"]);
    assert_eq!((same.code, same.stdout.as_str()), (0, ""), "finished before: {}", same.stderr);
    let again = lance_mm(["quantize", "-q", NANO_BF16, &out, "--recipe", "rtn", "--bits", "8"]);
    assert!(again.error().contains("expected a folder that does not exist yet"), "{}", again.stderr);
    let other = dir.path().join("other").display().to_string();
    let twice = lance_mm(["quantize", "-q", &out, &other, "--recipe", "rtn"]);
    assert!(twice.error().contains("quantizing twice is not offered"), "{}", twice.stderr);
    let bits = lance_mm(["quantize", "-q", NANO_BF16, &other, "--bits", "7"]);
    assert!(bits.error().contains("bits 2, 3, 4, 5, 6 or 8"), "{}", bits.stderr);
    let vit = lance_mm(["quantize", "-q", NANO_BF16, &other, "--vit-bits", "5"]);
    assert!(vit.error().contains("--vit-bits: expected 8 or 4, found 5"), "{}", vit.stderr);
    for (gen_, expected) in [
        (&["--gen", "all"][..], "[possible values: fit, keep, drop]"),
        (&["--gen", "calibrate"], "--gen calibrate: expected --gen-calib FILE instead"),
        (&["--gen", "keep", "--gen-calib", "a.jsonl"], "cannot be used with"),
        (&["--recipe", "vqa-int4"], "--recipe vqa-int4: expected awq, found its former name"),
        (&["--recipe", "vqa-mixed"], "--recipe vqa-mixed: expected awq-mixed, found its former name"),
        (&["--recipe", "seed"], "--recipe seed: expected lance-mlx, found its former name"),
    ] {
        let gen_ = lance_mm(["quantize", "-q", NANO_BF16, &other].iter().chain(gen_));
        assert_eq!(gen_.code, 2);
        assert!(gen_.stderr.contains(expected), "{}", gen_.stderr);
    }
    let former = lance_mm(["quantize", NANO_BF16, &other, "--size-like-seed"]);
    assert_eq!(former.error(), "--size-like-seed: expected --uniform-bits, found its former name");
    // Scripts give the former name of --calib-tokens.
    let rows = lance_mm(["quantize", "-q", NANO_BF16, &other, "--recipe", "rtn", "--rows", "64"]);
    assert!(rows.error().starts_with("--calib-tokens: expected with a calibrated recipe"), "{}", rows.stderr);
    let mixed = ["--recipe", "awq-mixed", "--bits-per-weight", "16"];
    let budget = lance_mm([&["quantize", "-q", NANO_BF16, &other], &mixed[..]].concat());
    assert!(budget.error().contains("below the 16 of bf16, found 16"), "{}", budget.stderr);
    let (mixed, ours, fitted) = ("--recipe awq-mixed", "--recipe awq or awq-mixed", "a calibrated recipe");
    for (recipe, option, value, expected) in [
        ("rtn", "--gptq", "auto", ours),
        ("lance-mlx", "--gptq", "off", ours),
        ("rtn", "--without", "clip", ours),
        ("lance-mlx", "--without", "scaling,v-o", ours),
        ("awq", "--bits-per-weight", "4", mixed),
        ("lance-mlx", "--sensitivity", "layer", mixed),
        ("rtn", "--gen-calib", "a.jsonl", fitted),
        ("rtn", "--calib", "bundled", fitted),
        ("rtn", "--calib-tokens", "1024", fitted),
        ("rtn", "--seed", "0", fitted),
    ] {
        let unheard = lance_mm(["quantize", "-q", NANO_BF16, &other, "--recipe", recipe, option, value]);
        let expected = format!("{option}: expected with {expected} only, found --recipe {recipe}");
        assert_eq!(unheard.error(), expected);
    }
    let missing = lance_mm(["quantize", "-q", NANO_BF16, &other, "--calib", "nowhere.jsonl"]);
    assert!(missing.error().contains("nowhere.jsonl"), "{}", missing.stderr);
    let none = lance_mm(["quantize", "-q", NANO_BF16, &other]);
    assert!(none.error().contains("--calib: expected a file of questions about images"), "{}", none.stderr);
    let bundled = lance_mm(["quantize", "-q", "nano", &other, "--recipe", "rtn"]);
    assert!(bundled.error().ends_with("tests/fixtures/nano-bf16 in the repository)"), "{}", bundled.stderr);
    let few = dir.path().join("few.jsonl");
    let line = serde_json::json!({ "image": files.demo(0), "question": "What?" }).to_string();
    fs::write(&few, line).unwrap();
    let few = lance_mm(["quantize", "-q", NANO_BF16, &other, "--calib", &few.display().to_string()]);
    assert!(few.error().contains("expected 4 samples or more"), "{}", few.stderr);
    assert!(!Path::new(&other).exists());
}
