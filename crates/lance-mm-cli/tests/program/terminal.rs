//! Streams of the program: what came from outside commands no terminal, and standard output that takes nothing is an
//! error.

use std::fs;
use std::io::Read;
use std::process::Stdio;

use crate::generation;
use crate::support::{Files, command, lance_mm, run, with_input};

/// A title, colours of C0 and C1, an override of the direction, a separator of lines.
const HOSTILE: &str = "\u{1b}]0;OWNED\u{7}\u{1b}[31mRED\u{9b}1m\u{202e}\u{2028}\u{7f}";

fn is_safe(text: &str) -> bool {
    !text.contains(|c: char| c.is_control() && c != '\n')
        && !text.contains(['\u{202e}', '\u{2028}', '\u{2066}'])
}

/// With a file, a tensor and a text of the configuration whose names are hostile.
fn hostile_model() -> Files {
    let files = Files::nano();
    files.write(&format!("nano/{HOSTILE}.txt"), b"");
    let config = fs::read_to_string(files.path("nano/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["rope_scaling"] = serde_json::json!({"type": HOSTILE, "mrope_section": [1, 2, 3]});
    files.write("bad.json", &serde_json::to_vec(&config).unwrap());
    let name = format!("layers.0.{HOSTILE}");
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![0], &[]).unwrap();
    let bytes = safetensors::serialize([(name, view)], None).unwrap();
    files.write("odd.safetensors", &bytes);
    files
}

#[test]
#[cfg(unix)]
fn nothing_from_outside_commands_a_terminal() {
    let files = hostile_model();
    let (nano, plate, odd) = (files.arg("nano"), files.demo(2), files.arg("odd.safetensors"));
    let (image, data) = (format!("{HOSTILE}.png"), files.write(&format!("{HOSTILE}.jsonl"), b"3"));
    let row = serde_json::json!({"image": format!("gone{image}"), "question": "What?"});
    let row = files.write("row.jsonl", row.to_string().as_bytes());
    let png = files.arg(&image);
    fs::create_dir(files.path("broken")).unwrap();
    for name in ["model.safetensors", "vit.safetensors", "tokenizer.json"] {
        fs::copy(files.path("nano").join(name), files.path("broken").join(name)).unwrap();
    }
    fs::copy(files.path("bad.json"), files.path("broken/config.json")).unwrap();
    fs::copy(&plate, &png).unwrap();
    let broken = files.arg("broken");
    let commands: [&[&str]; 21] = [
        &["ask", &image, "What?"],
        &["ask", "--each", &image, "What?"],
        &["ask", &png, &png, "-n", "1"],
        &["ask", "-m", HOSTILE, &plate, "What?"],
        &["ask", "-m", &broken, &plate, "What?"],
        &["ask", "--json", &png, HOSTILE, "-n", "1", "--stats"],
        &["ask", "--resize", HOSTILE, &plate, "What?"],
        &["ask", HOSTILE],
        &["ask", &plate, "What?", HOSTILE, "--fps", HOSTILE],
        &[HOSTILE],
        &["inspect", &nano],
        &["inspect", "--json", &nano],
        &["inspect", &odd],
        &["inspect", "--json", &odd],
        &["inspect", HOSTILE],
        &["pull", HOSTILE],
        &["eval", "parity", "nano", "nano", "--data", &data],
        &["eval", "parity", "nano", "nano", "--data", &row],
        &["generate", HOSTILE, "-m", HOSTILE, "-o", HOSTILE, "--size", HOSTILE],
        &["convert", HOSTILE, HOSTILE],
        &["--log", "trace", "ask", "-m", &broken, &plate, "What?"],
    ];
    for args in commands {
        let found = lance_mm(args);
        assert!(is_safe(&found.stdout) && is_safe(&found.stderr), "{args:?}: {found:?}");
        let told = [&found.stdout, &found.stderr].iter().any(|text| text.contains("RED"));
        // clap leaves escape sequences out of what it quotes.
        assert!(told || found.code == 2, "{args:?}: {found:?}");
    }
    let chat = with_input(["chat", &plate], format!("/{HOSTILE}\n/image {HOSTILE}\n").as_bytes());
    assert!(is_safe(&chat.stderr) && chat.stderr.contains("RED"), "{}", chat.stderr);
}

#[test]
fn a_line_of_an_error_can_be_read() {
    let files = Files::nano();
    let long = "x".repeat(100_000);
    let config = fs::read_to_string(files.path("nano/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config["rope_scaling"] = serde_json::json!({"type": long, "mrope_section": [1, 2, 3]});
    files.write("nano/config.json", &serde_json::to_vec(&config).unwrap());
    let (nano, plate) = (files.arg("nano"), files.demo(2));
    // The library shortens values of a configuration, and the program whatever is long.
    for (args, mark) in [
        (["ask", "-m", &nano, &plate, "What?"], "xxx.."),
        (["ask", &plate, "What?", "--fps", &long], " characters left out] "),
    ] {
        let found = lance_mm(args);
        assert!(found.code != 0 && found.stderr.lines().all(|line| line.len() <= 4000), "{args:?}");
        assert!(found.stderr.contains(mark), "{}", found.stderr);
    }
    let each = lance_mm(["ask", "--each", &long, "What?"]);
    let line: serde_json::Value = serde_json::from_str(&each.stdout).unwrap();
    assert!(line["error"].as_str().unwrap().len() <= 4000);
}

#[test]
fn standard_output_that_takes_nothing_is_an_error() {
    let files = Files::nano();
    let (plate, nano) = (files.demo(2), files.arg("nano"));
    let ask = ["ask", "-q", "-n", "2", &plate, "What?"];
    let commands: [&[&str]; 10] = [
        &ask,
        &[&ask[..], &["--json"]].concat(),
        &[&ask[..], &["--each"]].concat(),
        &["chat", "-q", "-n", "2", &plate],
        &["inspect", &nano],
        &["inspect", "--json", &nano],
        &["completions", "bash"],
        &["--version"],
        &["--help"],
        &["ask", "-h"],
    ];
    for args in commands {
        let mut child = command();
        child.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        drop(child.stdout.take());
        // The program may have ended already.
        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), b"What?\n");
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.starts_with("error: standard output: "), "{args:?}: {stderr}");
        if cfg!(target_os = "linux") && args[0] != "chat" {
            let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let found = run(command().args(args).stdout(full));
            assert!(found.error().starts_with("standard output: No space left"), "{args:?}");
        }
    }
}

#[test]
fn paths_are_printed_as_they_are() {
    let files = generation::model();
    let (model, out) = (files.arg("model"), files.arg("a\u{9b}\tb.png"));
    let found =
        lance_mm(["generate", "A fox", "-m", &model, "-o", &out, "--size", "32x32", "--steps", "1", "-q"]);
    assert_eq!((found.code, found.stdout), (0, format!("{out}\n")), "{}", found.stderr);
}
