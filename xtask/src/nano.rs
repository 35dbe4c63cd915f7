//! `cargo xtask nano`: the bundled model, made from its bf16 original.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;
use lance_mm_pipelines::staged::{self, StagedFolder};

/// Quantize tests/fixtures/nano-bf16 into the model that lance-mm-nano bundles.
///
/// Prints the command, a `lance-mm quantize` that anyone can run. The same bytes come out on any number of
/// threads; a processor that sums in another order rounds a few weights to another code.
#[derive(Args)]
pub(crate) struct Nano {
    /// Compare with the bundled files instead of replacing them; a difference fails the command.
    #[arg(long)]
    verify: bool,
}

/// Options of `lance-mm quantize` after the two folders.
const OPTIONS: [&str; 5] = ["--calib", "bundled", "--calib-tokens", "12000", "--uniform-bits"];
/// The files of the bundled model that quantizing makes; the others are those of the original.
const MADE: [&str; 2] = ["config.json", "model.safetensors"];

impl Nano {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let assets = root.join("crates/lance-mm-nano/assets");
        // Removed at the end, never committed.
        let folder = StagedFolder::create(&root.join("target/nano/made"))?;
        let out = folder.path().join("nano");
        quantize(&root, &out)?;
        let mut changed = Vec::new();
        for name in MADE {
            let (made, bundled) = (out.join(name), assets.join(name));
            let bytes = fs::read(&made).with_context(|| made.display().to_string())?;
            let equal = fs::read(&bundled).is_ok_and(|old| old == bytes);
            println!("{name}: {}", if equal { "the bundled bytes" } else { "other bytes" });
            if !equal {
                changed.push((bundled, bytes));
            }
        }
        if self.verify {
            return Ok(if changed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        for (path, bytes) in changed {
            staged::write(&path, &bytes).with_context(|| path.display().to_string())?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn quantize(root: &Path, out: &Path) -> Result<()> {
    println!("lance-mm quantize tests/fixtures/nano-bf16 OUT {}", OPTIONS.join(" "));
    let paths = [Path::new("quantize"), Path::new("tests/fixtures/nano-bf16"), out].map(Path::as_os_str);
    let status = crate::program::run(root, paths.into_iter().chain(OPTIONS.map(OsStr::new)))?;
    if !status.success() {
        bail!("lance-mm quantize: {status}");
    }
    Ok(())
}
