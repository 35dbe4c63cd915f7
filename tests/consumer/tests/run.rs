//! Runs the program, which does every layer's work with the crates' public API alone.

use std::fs;
use std::path::Path;
use std::process::Command;

#[test]
fn a_program_of_public_api_quantizes_asks_and_decodes() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let dir = tempfile::tempdir().unwrap();
    let questions = dir.path().join("questions.jsonl");
    let question = |demo: &lance_mm_nano::Demo| {
        let image = repository.join("crates/lance-mm-nano/assets").join(demo.file);
        serde_json::json!({ "image": image, "question": demo.question, "answer": demo.answer }).to_string()
    };
    let lines: Vec<String> = lance_mm_nano::DEMOS.iter().map(question).collect();
    fs::write(&questions, lines.join("\n")).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_lance-mm-consumer"))
        .args([&repository, &questions, &dir.path().join("out")])
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
