//! A program outside the workspace builds on the public crates alone and does every layer's work.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn a_program_outside_the_workspace_quantizes_asks_and_decodes() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    // A copy, whose lock file is the workspace's: the same versions, built once for both.
    fs::create_dir(path("src")).unwrap();
    let manifest = fs::read_to_string(repository.join("tests/consumer/Cargo.toml")).unwrap();
    let crates = format!("{}/crates/", repository.display());
    fs::write(path("Cargo.toml"), manifest.replace("../../crates/", &crates)).unwrap();
    fs::copy(repository.join("tests/consumer/src/main.rs"), path("src/main.rs")).unwrap();
    fs::copy(repository.join("Cargo.lock"), path("Cargo.lock")).unwrap();
    let question = |demo: &lance_mm_nano::Demo| {
        let image = repository.join("crates/lance-mm-nano/assets").join(demo.file);
        serde_json::json!({ "image": image, "question": demo.question, "answer": demo.answer }).to_string()
    };
    let questions: Vec<String> = lance_mm_nano::DEMOS.iter().map(question).collect();
    fs::write(path("questions.jsonl"), questions.join("\n")).unwrap();

    // The folder of this test's executable: target/debug/deps.
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_owned();
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--offline", "--manifest-path"])
        .arg(path("Cargo.toml"))
        .arg("--target-dir")
        .arg(target)
        .arg("--")
        .args([repository, &path("questions.jsonl"), &path("out")])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("quantized 30 matrices"), "{text}");
    assert_eq!(lines[1..3], ["answer BX62 BFY", "decoded BX62 BFY"]);
    assert!(lines[3].starts_with("vision encoder ["), "{text}");
    assert_eq!(lines[4], "VAE [3, 1, 32, 48]");
}
