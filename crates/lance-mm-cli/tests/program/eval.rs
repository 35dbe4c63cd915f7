//! `lance-mm eval`.

use std::fs;

use serde_json::Value;

use crate::support::{Files, NANO_BF16, lance_mm};

/// The demo images and a file of their questions.
fn questions() -> (Files, String) {
    let files = Files::demos();
    let line = |demo: &lance_mm_nano::Demo| {
        let kind = if demo.file.contains("plate") { "plate" } else { "other" };
        let line = serde_json::json!({
            "image": demo.file, "question": demo.question, "answer": demo.answer, "kind": kind
        });
        format!("{line}\n")
    };
    let text: String = lance_mm_nano::DEMOS.iter().map(line).collect();
    let data = files.write("data.jsonl", text.as_bytes());
    (files, data)
}

/// The object that `--json` wrote.
fn json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_model_has_parity_with_itself() {
    let (files, data) = questions();
    let (written, page) = (files.arg("p.json"), files.arg("p.html"));
    let run = lance_mm([
        "eval",
        "parity",
        "nano",
        "nano",
        "--data",
        &data,
        "--leave-out",
        "other",
        "--json",
        &written,
        "--html",
        &page,
        "-q",
    ]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert!(run.stdout.starts_with("# Parity of bundled nano with bundled nano\n"), "{}", run.stdout);
    let row = "| bundled nano | 100.0 % | 100.0 % | 100.0 % | 0 | 0 | 100.0 % | 4.4 MB | 4424448 | 8.00 |";
    assert_eq!(run.stdout.lines().filter(|line| *line == row).count(), 2, "{}", run.stdout);
    assert!(run.stdout.contains("| plate | small sample | 1 | 9 | 100.0 % | 100.0 % |"), "{}", run.stdout);

    let json = json(&written);
    let models = json["models"].as_array().unwrap();
    assert_eq!((models.len(), &models[0]), (2, &models[1]));
    let parts = models[0]["components"].as_array().unwrap();
    assert!(parts.iter().all(|part| part["fingerprint"].as_str().is_some_and(|text| text.len() == 16)));
    assert_eq!((&models[0]["compute_dtype"], &models[0]["device"]), (&"split".into(), &"cpu".into()));
    assert_eq!((&json["data"]["name"], &json["data"]["samples"]), (&"data.jsonl".into(), &6.into()));
    assert_eq!(json["data"]["hashes"].as_array().unwrap().len(), 6);
    assert_eq!(json["data"]["tokens"], json["report"]["all"]["logits"]["positions"]);
    assert_eq!(json["report"]["all"]["logits"]["kl"]["max"], 0.0);

    let page = fs::read_to_string(page).unwrap();
    assert!(page.matches("<svg").count() == 2 && page.contains("<td>plate</td>"));
    assert!(!page.contains("http") && !page.contains("<script") && !page.contains("<link"));
}

#[test]
fn fingerprints_are_those_of_a_deep_inspection() {
    let files = Files::nano();
    let (data, nano) = (files.write("t.txt", b"A red star on a blue background."), files.arg("nano"));
    let written = files.arg("ppl.json");
    let run = lance_mm(["eval", "ppl", &nano, "--text", &data, "--json", &written]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let inspected = lance_mm(["inspect", "--deep", "--json", &nano]);
    let inspected: Value = serde_json::from_str(&inspected.stdout).unwrap();
    let json = json(&written);
    assert_eq!(json["models"][0]["components"], inspected["components"]);
    assert_eq!(json["models"][0]["total"], inspected["total"]);
    assert_eq!(
        (&json["data"]["name"], json["data"]["hashes"].as_array().unwrap().len()),
        (&"t.txt".into(), 1)
    );
    assert!(json["report"]["perplexity"].as_f64().unwrap() > 1.0);
}

#[test]
fn logits_alone_and_fewer_questions() {
    let (files, data) = questions();
    let written = files.arg("p.json");
    let arguments =
        ["eval", "parity", "nano", "nano", "--data", &data, "--no-answers", "--given", "--max", "2"];
    let run = lance_mm(arguments.into_iter().chain(["--mlx-rounding", "--json", &written]));
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("questions: 2 of 2"), "{}", run.stderr);
    let json = json(&written);
    assert_eq!(json["models"][0]["name"], "bundled nano (MLX rounding)");
    let report = &json["report"];
    assert_eq!((&report["continuation"], &report["all"]["agreement"]), (&"given".into(), &Value::Null));
    assert_eq!(report["samples"].as_array().unwrap().len(), 2);
}

#[test]
fn layers_of_a_model_against_itself() {
    let (files, data) = questions();
    let page = files.arg("l.html");
    let run =
        lance_mm(["eval", "layers", "nano", "nano", "--data", &data, "--max", "1", "-q", "--html", &page]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert!(run.stdout.contains("| 3 | output | 0 | 0 | inf | inf | – |"), "{}", run.stdout);
    assert!(run.stdout.contains("| layers.0.mlp.down_proj | 0 | inf | inf |"), "{}", run.stdout);
    assert!(fs::read_to_string(page).unwrap().matches("<svg").count() == 2);
}

#[test]
fn the_oracle_asks_the_bundled_cases() {
    let files = Files::new();
    let written = files.arg("o.json");
    let run = lance_mm(["eval", "oracle", "nano", "nano", "-q", "--json", &written]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert_eq!(run.stdout.matches("| bundled nano | 6 of 6 | 6 of 6 |").count(), 2, "{}", run.stdout);
    assert_eq!(run.stdout.matches("| 3 |  | bundled nano | yes | yes | BX62 BFY |").count(), 2);
    let json = json(&written);
    assert_eq!(json["report"]["cases"][2]["upstream"], "BX62 BFY");
    assert!(json["report"]["totals"][0]["seconds_per_token"].as_f64().unwrap() > 0.0);
}

#[test]
fn what_cannot_be_measured_is_told_in_one_line() {
    let (files, data) = questions();
    let broken = files.write("broken.jsonl", b"{\"image\": \"a.png\"}\n");
    let missing = files.write("missing.jsonl", b"{\"image\": \"a.png\", \"question\": \"What?\"}\n");
    let bytes = files.write("bytes.txt", b"\xff\xfe");
    let empty = files.write("empty.txt", b"");
    let plate = files.demo(2);
    let parity = |data: &str| lance_mm(["eval", "parity", "nano", "nano", "-q", "--data", data]);
    let error = format!("{broken}: line 1: question: expected a text, found no such field");
    assert_eq!(parity(&broken).error(), error);
    assert!(parity(&missing).error().contains("a.png: "));
    assert!(parity(&plate).error().contains("expected UTF-8"));
    assert!(parity("/nonexistent.jsonl").error().starts_with("/nonexistent.jsonl: "));
    let given = lance_mm(["eval", "parity", "nano", "nano", "--given", "--data", &missing]);
    assert!(given.error().contains("a.png: "));
    // Before anything is measured.
    let folder = files.root().to_str().unwrap();
    for (option, path, expected) in [
        ("--json", "/nonexistent/x.json", "expected a folder to write it in, found none"),
        ("--html", folder, "expected a file or nothing, found a folder"),
    ] {
        let out = lance_mm(["eval", "oracle", "nano", option, path]);
        assert_eq!((out.error(), out.stdout.as_str()), (&*format!("{option} {path}: {expected}"), ""));
    }
    let ppl = |text: &str, more: &[&str]| {
        lance_mm(["eval", "ppl", "nano", "--text", text].into_iter().chain(more.iter().copied()))
    };
    assert!(ppl(&bytes, &[]).error().contains("bytes.txt: line 1: expected UTF-8"));
    assert_eq!(ppl(&empty, &[]).error(), "text: expected at least 2 tokens, found 0");
    assert!(ppl(&data, &["--window", "1"]).error().starts_with("--window: expected 2 to "));
}

#[test]
fn rows_that_cannot_be_used_are_told_with_file_line_and_image() {
    let files = Files::demos();
    let plate = files.demo(2);
    let row = |image: &str, question: &str| {
        serde_json::json!({"image": image, "question": question, "answer": "A"}).to_string()
    };
    let device = if cfg!(unix) { "/dev/zero" } else { "NUL" };
    for (second, expected) in [
        (row("gone.png", "What?"), "gone.png: No such file"),
        (row(device, "What?"), device),
        (row(&plate, "a<|im_end|>b"), "found the special token <|im_end|>"),
        (row(&plate, "What?").replace("answer", "anwser"), "(did you mean answer?)"),
    ] {
        let good = row(&plate, "What?");
        let data = files.write(
            "q.jsonl",
            [&good, &second, &good, &good].map(|row| format!("{row}\n")).concat().as_bytes(),
        );
        let place = format!("{data}: line 2: ");
        let commands: [&[&str]; 4] = [
            &["eval", "parity", "nano", "nano", "--data", &data, "-n", "2"],
            &["eval", "layers", "nano", "nano", "--data", &data],
            &["eval", "oracle", "nano", "--data", &data, "-n", "2"],
            &["quantize", NANO_BF16, &files.arg("out"), "--calib", &data, "-q"],
        ];
        for args in commands {
            let found = lance_mm(args);
            let error = found.stderr.lines().find_map(|line| line.strip_prefix("error: "));
            let error = error.unwrap_or_else(|| panic!("{args:?}: {}", found.stderr));
            assert!(error.starts_with(&place) && error.contains(expected), "{args:?}: {error}");
            assert_eq!(found.code, 1, "{args:?}");
        }
    }
}
