//! `lance-mm quantize`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Files, NANO_BF16, Run, command, lance_mm, run};

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
    let run = lance_mm(["quantize", "-q", NANO_BF16, &target, "--calib", &calib, "--size-like-seed"]);
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

#[test]
fn a_run_that_is_killed_goes_on_to_the_same_bytes() {
    let files = Files::demos();
    let dir = tempfile::tempdir().unwrap();
    let calib = calibration(&files, dir.path());
    let (whole, cut) = (dir.path().join("whole"), dir.path().join("cut"));
    let args = |out: &Path| {
        let out = out.display().to_string();
        ["quantize", "-q", NANO_BF16, &out, "--calib", &calib, "--rows", "128"].map(str::to_owned)
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

/// The program where no file may become larger than `blocks` of 512 or 1,024 bytes: writing more fails as on a
/// full disk, in the middle of a file.
#[cfg(unix)]
fn with_little_space(blocks: u32, args: &[String]) -> Run {
    let program = command();
    let mut shell = Command::new("sh");
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$@\"");
    shell.args(["-c", &script, "sh"]).arg(program.get_program()).args(args).stdin(Stdio::null());
    run(&mut shell)
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
        ["quantize", "-q", NANO_BF16, &out, "--calib", &calib, "--rows", "64", "--without", "descent"]
            .map(str::to_owned)
    };
    // In the plan, in the recorded inputs or a layer, in the model file or the vision transformer.
    for (blocks, names) in [(0, "plan.json"), (200, ".safetensors"), (2000, ".safetensors")] {
        let run = with_little_space(blocks, &args(&full));
        let error = run.error();
        assert!(error.contains(names) && error.contains("File too large"), "{blocks}: {error}");
        assert_eq!(run.stdout, "", "{blocks}");
        assert!(!full.exists() && !dir.path().join(".full.partial").exists(), "{blocks}");
        for (name, _) in bytes(&dir.path().join(".full.work")) {
            let is_whole = name.ends_with(".json") || name.ends_with(".safetensors");
            assert!(is_whole && !name.starts_with('.'), "{blocks}: {name} is left");
        }
    }
    assert_eq!(lance_mm(args(&full)).code, 0);
    assert_eq!(lance_mm(args(&whole)).code, 0);
    assert!(bytes(&whole) == bytes(&full), "the bytes differ");
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
    let vit = lance_mm(["quantize", "-q", NANO_BF16, &other, "--vit", "5"]);
    assert!(vit.error().contains("--vit: expected 8 or 4, found 5"), "{}", vit.stderr);
    let missing = lance_mm(["quantize", "-q", NANO_BF16, &other, "--calib", "nowhere.jsonl"]);
    assert!(missing.error().contains("nowhere.jsonl"), "{}", missing.stderr);
    let none = lance_mm(["quantize", "-q", NANO_BF16, &other]);
    assert!(none.error().contains("--calib: expected a file of questions"), "{}", none.stderr);
    let bundled = lance_mm(["quantize", "-q", "nano", &other, "--recipe", "rtn"]);
    assert!(bundled.error().ends_with("tests/fixtures/nano-bf16 in the repository)"), "{}", bundled.stderr);
    let few = dir.path().join("few.jsonl");
    let line = serde_json::json!({ "image": files.demo(0), "question": "What?" }).to_string();
    fs::write(&few, line).unwrap();
    let few = lance_mm(["quantize", "-q", NANO_BF16, &other, "--calib", &few.display().to_string()]);
    assert!(few.error().contains("expected 4 samples or more"), "{}", few.stderr);
    assert!(!Path::new(&other).exists());
}
