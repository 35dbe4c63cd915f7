//! `lance-mm convert`.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{command, lance_mm, run};

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
    assert!(taken.error().ends_with("back: expected a folder that does not exist yet"));
}

/// Where no file may become larger than a limit, in blocks of 512 or 1,024 bytes, writing more fails as on a full
/// disk, in the middle of a file.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_no_half_folder() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("root");
    let convert = |limit: &str| {
        let script = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$@\"");
        let program = command();
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &script, "sh"]).arg(program.get_program()).arg("convert");
        run(shell.args([&fixture(), &out]).args(["--to", "upstream"]))
    };
    for limit in ["0", "300"] {
        let run = convert(limit);
        let error = run.error();
        assert!(error.contains(".root.partial/") && error.contains("File too large"), "{limit}: {error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{limit}");
    }
    assert_eq!(convert("unlimited").code, 0);
    assert!(out.join("Lance_3B").is_dir());
}
