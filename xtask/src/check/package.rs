//! `cargo xtask check --package`: the packages that would be published.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// Largest package that crates.io accepts.
const MAX_BYTES: u64 = 10_000_000;
/// Files of every package.
const FILES: [&str; 4] = ["Cargo.toml", "LICENSE-APACHE", "LICENSE-MIT", "README.md"];

/// Packages all crates that are published, in the order of their dependencies, which cargo takes from each other's packages.
/// With `verify` each is built from them.
pub(super) fn run(verify: bool) -> Result<ExitCode> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version", "1"])?;
    let metadata: Value = serde_json::from_str(&metadata).context("cargo metadata")?;
    let packages: Vec<&Value> =
        metadata["packages"].as_array().into_iter().flatten().filter(|p| p["publish"].is_null()).collect();
    let target =
        metadata["target_directory"].as_str().context("cargo metadata: expected a target directory")?;
    let names: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut command = Command::new(program());
    command.args(["package", "--quiet", "--allow-dirty", "--locked"]);
    command.args(names.iter().flat_map(|name| ["--package", name]));
    if !verify {
        command.arg("--no-verify");
    }
    let mut ok = command.status().context("cannot run cargo package")?.success();
    for package in packages {
        let (name, version) = (text(package, "name")?, text(package, "version")?);
        let path = PathBuf::from(target).join("package").join(format!("{name}-{version}.crate"));
        let bytes = fs::metadata(&path).with_context(|| path.display().to_string())?.len();
        let list = cargo(&["package", "--list", "--allow-dirty", "--package", name])?;
        let files: BTreeSet<&str> = list.lines().collect();
        let missing: Vec<&str> = FILES.into_iter().filter(|file| !files.contains(file)).collect();
        println!("{name}: {} files, {bytes} bytes", files.len());
        if !missing.is_empty() {
            println!("  expected {}, found none", missing.join(", "));
        }
        if bytes > MAX_BYTES {
            println!("  expected at most {MAX_BYTES} bytes");
        }
        ok &= missing.is_empty() && bytes <= MAX_BYTES;
    }
    println!("package: {}", if ok { "ok" } else { "FAILED" });
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text<'a>(package: &'a Value, key: &str) -> Result<&'a str> {
    package[key].as_str().with_context(|| format!("cargo metadata: expected {key}"))
}

fn program() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Standard output of cargo.
fn cargo(args: &[&str]) -> Result<String> {
    let output = Command::new(program()).args(args).output().context("cannot run cargo")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "cargo {}: {errors}", args.join(" "));
    String::from_utf8(output.stdout).context("cargo")
}
