//! The program `lance-mm`, driven as a user drives it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod ask;
mod bench;
mod broken;
mod chat;
mod convert;
mod eval;
mod generation;
mod hub;
mod inspect;
#[cfg(target_os = "linux")]
mod power_cut;
mod quantize;
mod support;
mod terminal;

use support::{Files, lance_mm};

#[test]
fn help_and_version_are_results() {
    let version = lance_mm(["--version"]);
    assert_eq!(
        (version.code, version.stdout.as_str()),
        (0, concat!("lance-mm ", env!("CARGO_PKG_VERSION"), "\n"))
    );
    for command in [
        "",
        "ask",
        "chat",
        "inspect",
        "pull",
        "completions",
        "convert",
        "eval",
        "bench",
        "generate",
        "edit",
        "video",
        "edit-video",
    ] {
        let help = lance_mm(command.split_whitespace().chain(["--help"]));
        assert_eq!((help.code, help.stderr.as_str()), (0, ""), "{command}");
        assert!(help.stdout.contains("Examples:\n  lance-mm "), "{command}");
    }
}

#[test]
fn arguments_that_make_no_sense_are_told_with_code_2() {
    let files = Files::demos();
    let plate = files.demo(2);
    let cases: [&[&str]; 20] = [
        &["foo"],
        &["ask"],
        &["ask", &plate],
        &["ask", "What?"],
        &["ask", "--text", &plate, "What?"],
        &["ask", "--text", "--caption", "What?"],
        &["ask", "-", "-", "What?"],
        &["ask", &plate, "What?", "--fps", "3"],
        &["ask", "--text", "What?", "--fps", "3"],
        &["chat", &plate, "--fps", "3"],
        &["ask", &plate, "What?", "--max-new-tokens", "many"],
        &["ask", &plate, "What?", "--foo"],
        &["chat"],
        &["chat", "-"],
        &["pull"],
        &["eval"],
        &["eval", "parity", "nano", "nano"],
        &["eval", "oracle"],
        &["eval", "layers", "nano", "nano", "--data", "x", "--max", "0"],
        &["completions", "foo"],
    ];
    for args in cases {
        let run = lance_mm(args);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{args:?}: {}", run.stderr);
        assert!(run.stderr.contains("--help"), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn completions_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = lance_mm(["completions", shell]);
        assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{shell}");
        assert!(run.stdout.contains("max-new-tokens"), "{shell}");
    }
}
