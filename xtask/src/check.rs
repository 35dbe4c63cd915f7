//! `cargo xtask check`: what CI runs.

mod cross;
mod dependencies;
mod links;
mod package;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

struct Step {
    name: &'static str,
    args: &'static [&'static str],
    env: Option<(&'static str, &'static str)>,
}

const TESTS: Step = Step { name: "tests", args: &["test", "--workspace"], env: None };

const REST: [Step; 3] = [
    Step { name: "formatting", args: &["fmt", "--all", "--check"], env: None },
    Step {
        name: "clippy",
        args: &["clippy", "--workspace", "--all-targets", "--quiet", "--", "--deny", "warnings"],
        env: None,
    },
    Step {
        name: "docs",
        args: &["doc", "--workspace", "--no-deps", "--quiet"],
        env: Some(("RUSTDOCFLAGS", "--deny warnings")),
    },
];

/// Run what CI runs: tests, formatting, clippy and docs with warnings denied, links, the guide, dependencies.
#[derive(clap::Args)]
pub(crate) struct Check {
    /// Leave the tests out.
    #[arg(long)]
    no_tests: bool,
    /// Instead, check types and lints for Apple Silicon, with a toolchain that Debian's packages give
    /// (150 MB below the target folder, unpacked once).
    #[arg(long, conflicts_with = "no_tests")]
    darwin: bool,
    /// Instead, check types and lints for Windows, with the same toolchain.
    #[arg(long, conflicts_with_all = ["no_tests", "darwin"])]
    windows: bool,
    /// Instead, package every crate that is published, and check what the packages hold. With `--verify` they are built
    /// too, each from its packages alone.
    #[arg(long, conflicts_with_all = ["no_tests", "darwin", "windows"])]
    package: bool,
    /// Build the packages.
    #[arg(long, requires = "package")]
    verify: bool,
}

impl Check {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        if self.darwin {
            cross::run(&cross::DARWIN)
        } else if self.windows {
            cross::run(&cross::WINDOWS)
        } else if self.package {
            package::run(self.verify)
        } else {
            run(self.no_tests)
        }
    }
}

/// Builds the guide where mdBook is installed.
fn guide(root: &Path) -> Result<bool> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let target = std::path::absolute(target)?.join("guide");
    match Command::new("mdbook")
        .arg("build")
        .arg(root.join("docs/guide"))
        .arg("--dest-dir")
        .arg(target)
        .status()
    {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("guide: SKIPPED, not built: mdbook is not installed (cargo install mdbook --locked)");
            Ok(true)
        }
        status => {
            let ok = status.context("cannot run mdbook")?.success();
            println!("guide: {}", if ok { "ok" } else { "FAILED" });
            Ok(ok)
        }
    }
}

/// Runs every step, also after one that failed, and says which did.
fn run(no_tests: bool) -> Result<ExitCode> {
    let steps = (!no_tests).then_some(&TESTS).into_iter().chain(&REST);
    let mut failed = Vec::new();
    for step in steps {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(step.args).envs(step.env);
        let status = command.status().with_context(|| format!("cannot run cargo for {}", step.name))?;
        println!("{}: {}", step.name, if status.success() { "ok" } else { "FAILED" });
        if !status.success() {
            failed.push(step.name);
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    if !links::run(&root)? {
        failed.push("links");
    }
    if !guide(&root)? {
        failed.push("guide");
    }
    if !dependencies::run(&root)? {
        failed.push("dependencies");
    }
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
