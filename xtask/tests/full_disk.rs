//! `cargo xtask convert` on a disk that is full: no half folder, and the next run finishes.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a folder that cannot be read fails the test")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Converts where no file may become larger than `limit`, in blocks of 512 or 1,024 bytes: writing more fails as
/// on a full disk, in the middle of a file.
fn convert(src: &Path, dst: &Path, limit: &str) -> Output {
    let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$@\"");
    Command::new("sh")
        .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_xtask"), "convert"])
        .args([src, dst])
        .args(["--to", "upstream"])
        .output()
        .unwrap()
}

#[test]
fn a_full_disk_leaves_no_half_folder() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/understanding/ckpt/mlx");
    let dir = tempfile::tempdir().unwrap();
    let dst = dir.path().join("root");
    for limit in ["0", "300"] {
        let output = convert(&src, &dst, limit);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.lines().count() == 1, "{limit}: {error}");
        assert!(error.contains(".root.partial/") && error.contains("File too large"), "{limit}: {error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{limit}");
    }
    let output = convert(&src, &dst, "unlimited");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(dst.join("Lance_3B").is_dir());
}
