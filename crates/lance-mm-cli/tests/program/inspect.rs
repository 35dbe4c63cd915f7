//! `lance-mm inspect`.

use std::fs;

use serde_json::Value;

use crate::generation::model;
use crate::support::{Files, lance_mm};

#[test]
fn a_checkpoint_is_shown_in_a_table() {
    let files = Files::nano();
    let run = lance_mm(["inspect", &files.arg("nano")]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    for expected in [
        "MLX layout, quantized",
        "affine of 4 bits in groups of 128: 30 matrices, 4.25 bits per weight",
        "4 layers of width 256",
        "UND layers",
        "vision encoder",
        "16.00",
        "1000 tokens",
    ] {
        assert!(run.stdout.contains(expected), "{expected}: {}", run.stdout);
    }
    assert!(!run.stdout.contains('\x1b') && run.stdout.lines().all(|line| line.trim_end() == line));
    let file = lance_mm(["inspect", &files.arg("nano/vit.safetensors")]);
    assert!(file.code == 0 && file.stdout.contains("1 403 264"), "{}", file.stdout);
}

#[test]
fn json_is_the_librarys_report() {
    let files = Files::nano();
    let run = lance_mm(["inspect", "--json", "--deep", &files.arg("nano")]);
    let json: Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!(
        (run.code, &json["layout"], &json["problems"]),
        (0, &Value::from("mlx-quantized"), &Value::Array(Vec::new()))
    );
    let parts = json["components"].as_array().unwrap();
    assert!(parts.iter().all(|part| part["fingerprint"].as_str().is_some_and(|text| text.len() == 16)));
}

#[test]
fn problems_are_listed_and_told_by_the_code() {
    let files = Files::nano();
    let nano = files.arg("nano");
    files.write("nano/model.safetensors", &lance_mm_nano::MODEL[..1_000_000]);
    let run = lance_mm(["inspect", &nano]);
    assert!(
        run.error().starts_with(&format!("{nano}: ")) && run.error().contains("problem"),
        "{}",
        run.stderr
    );
    assert!(
        run.stdout.contains("\nproblems\n") && run.stdout.contains("model.safetensors"),
        "{}",
        run.stdout
    );
    let bundled = "nano: expected a folder or a file, found the model in this program; its files are \
                   crates/lance-mm-nano/assets";
    for (path, expected) in [("gone", "gone"), ("foo/bar", "run: lance-mm pull foo/bar"), ("nano", bundled)] {
        let run = lance_mm(["inspect", path]);
        assert!(run.stdout.is_empty() && run.error().contains(expected), "{}", run.stderr);
    }
}

#[test]
fn what_ask_and_generate_refuse_is_a_problem() {
    let rename = |files: &Files, file: &str, name: &str| {
        let bytes = fs::read(files.path(file)).unwrap();
        let at = bytes.windows(name.len()).position(|bytes| bytes == name.as_bytes()).unwrap();
        let mut renamed = bytes;
        renamed[at] = b'X';
        files.write(file, &renamed);
    };
    type Case<'a> = (&'a str, &'a dyn Fn(&Files));
    let cases: [Case<'_>; 5] = [
        ("", &|_| {}),
        ("generation_config.json: eos_token_id: expected ids below", &|files| {
            files.write("model/generation_config.json", b"{\"eos_token_id\": 9999999}");
        }),
        ("generation_config.json: expected ident", &|files| {
            files.write("model/generation_config.json", b"no json");
        }),
        ("llm2vae.weight", &|files| rename(files, "model/model.safetensors", "llm2vae.weight")),
        ("decoder.head.layer_0.gamma", &|files| {
            rename(files, "model/vae.safetensors", "decoder.head.layer_0.gamma");
        }),
    ];
    for (expected, damage) in cases {
        let files = model();
        damage(&files);
        let run = lance_mm(["inspect", "--json", &files.arg("model")]);
        let report: Value = serde_json::from_str(&run.stdout).unwrap();
        let problems = report["problems"].as_array().unwrap();
        let told = problems.iter().any(|problem| problem.as_str().unwrap().contains(expected));
        let wrong = !expected.is_empty();
        assert_eq!((told, run.code), (wrong, i32::from(wrong)), "{expected}: {report:#}");
    }
}
