//! Runs the program of this workspace.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};

/// Runs `lance-mm` with arguments, in the folder `dir`.
pub(crate) fn run(dir: &Path, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<ExitStatus> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(dir).args(["run", "--quiet", "--package", "lance-mm-cli", "--manifest-path"]);
    command.arg(manifest).arg("--").args(args);
    command.status().context("cannot run cargo")
}
