//! `cargo xtask fixtures check` on the fixtures of the repository, and on ones that were tampered with.
#![allow(clippy::unwrap_used, reason = "a fixture that cannot be read fails the test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn check(dirs: &[&Path], options: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["fixtures", "check"])
        .args(dirs)
        .args(options)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    (output, text)
}

/// Passed and failed, from the last line.
fn counts(text: &str) -> (usize, usize) {
    let words: Vec<&str> = text.lines().last().unwrap().split([' ', ',']).filter(|w| !w.is_empty()).collect();
    (words[0].parse().unwrap(), words[2].parse().unwrap())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            assert!(fs::copy(&path, &target).unwrap() > 0);
        }
    }
}

#[test]
fn everything_recorded_in_the_repository_is_reproduced() {
    let [understanding, quant, generation, vae] =
        ["understanding", "quant", "generation", "vae"].map(|name| fixtures().join(name));
    let (output, text) = check(&[&understanding, &quant, &generation, &vae], &[]);
    let (passed, failed) = counts(&text);
    assert!(output.status.success() && failed == 0, "{text}");
    assert!(passed > 400, "{passed} lines");
    for stage in [
        "vit.patch_embed",
        "vit.out",
        "position_ids",
        "llm.layer2",
        "cache.2.v",
        "step_logits",
        "answer.ids",
        "t_30_3.5",
        "ode.ab2_12_3.5",
        "cfg.channel_s4.0_min0.5",
        "resample.upsample3d_1_2_2.y",
        "enc.mid_attn",
        "dec.up3",
        "pixels_out_u8",
        "uncond_position_ids",
        "attention_mask",
        "vae_in0_latent",
        "cache_cond.1.v",
        "v_uncond",
        "x_steps",
        "frames_u8",
        "full.latent",
        "latent_pos_embed_rows",
    ] {
        assert!(text.lines().any(|line| line.contains(stage) && line.ends_with("ok")), "no line of {stage}");
    }
}

#[test]
fn a_changed_number_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("quant");
    copy(&fixtures().join("quant"), &folder);
    let path = folder.join("modules.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    fs::write(&path, bytes).unwrap();
    let (output, text) = check(&[&folder], &["--skip", "manifest"]);
    assert_eq!((output.status.code(), counts(&text).1 > 0), (Some(1), true), "{text}");
    // The hashes in the manifest notice it too.
    let (_, text) = check(&[&folder], &["--skip", "modules"]);
    assert!(counts(&text).1 == 1 && text.contains("modules.safetensors"), "{text}");
}

#[test]
fn what_is_unknown_or_damaged_fails_unless_it_is_skipped() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("odd.json"), r#"{"request": {"task": "t2x"}}"#).unwrap();
    fs::copy(fixtures().join("quant/modules.json"), dir.path().join("cut.json")).unwrap();
    let whole = fs::read(fixtures().join("quant/modules.safetensors")).unwrap();
    fs::write(dir.path().join("cut.safetensors"), &whole[..whole.len() / 2]).unwrap();
    let (output, text) = check(&[dir.path()], &[]);
    assert_eq!((output.status.code(), counts(&text)), (Some(1), (0, 2)), "{text}");
    assert!(text.contains("unknown case of task \"t2x\"") && text.contains("cut.safetensors"), "{text}");
    let (output, text) = check(&[dir.path()], &["--skip", "odd", "--skip", "c*"]);
    assert!(output.status.success() && text.ends_with("0 passed, 0 failed, 2 skipped\n"), "{text}");
}
