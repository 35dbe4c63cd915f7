//! `lance-mm convert`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::lance_mm;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/understanding/ckpt/mlx")
}

#[test]
fn there_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let (upstream, back) = (dir.path().join("upstream"), dir.path().join("back"));
    let run = lance_mm([
        "convert".as_ref(),
        fixture().as_os_str(),
        upstream.as_os_str(),
        "--to".as_ref(),
        "upstream".as_ref(),
    ]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert!(
        run.stdout
            .starts_with(&format!("{}: from MLX layout, dense\n  llm: 97 tensors of ", upstream.display())),
        "{}",
        run.stdout
    );
    let run = lance_mm([
        "convert".as_ref(),
        upstream.join("Lance_3B").as_os_str(),
        back.as_os_str(),
        "--verify".as_ref(),
    ]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert!(run.stdout.contains("\nverify llm: "), "{}", run.stdout);
    // The fixture's own files have another writer's header.
    let copy = dir.path().join("copy");
    let run = lance_mm(["convert".as_ref(), fixture().as_os_str(), copy.as_os_str(), "--quiet".as_ref()]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    for file in ["model.safetensors", "vit.safetensors"] {
        assert!(fs::read(back.join(file)).unwrap() == fs::read(copy.join(file)).unwrap(), "{file}");
    }
    let taken = lance_mm(["convert".as_ref(), fixture().as_os_str(), back.as_os_str()]);
    assert!(taken.error().ends_with("back: expected an empty folder or nothing"));
}

#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_half_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (fixture(), dir.path().join("root"));
    let args =
        ["convert".as_ref(), source.as_os_str(), out.as_os_str(), "--to".as_ref(), "upstream".as_ref()];
    for blocks in [0, 300] {
        let run = crate::support::with_little_space(blocks, args);
        let error = run.error();
        assert!(error.contains("/.root.") && error.contains("File too large"), "{blocks}: {error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{blocks}");
    }
    assert_eq!(lance_mm(args).code, 0);
    assert!(out.join("Lance_3B").is_dir());
}
