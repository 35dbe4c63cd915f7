//! `cargo xtask check --darwin`: types and lints of the whole workspace for Apple Silicon, from Linux.
//!
//! Rustup's toolchain cannot build for macOS without an SDK's standard library. Debian carries a compiler
//! and the matching source of the standard library (`rustc-web`, `rust-web-src`); cargo builds the library
//! from that (`-Z build-std`), which is all that type checking needs. The packages are unpacked beside the
//! build, not installed, and rustup's toolchain stays as it is.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

const TARGET: &str = "aarch64-apple-darwin";
const FEATURES: &str = "lance-mm-cli/metal,lance-mm-tests/metal,xtask/metal";
const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"];

/// Stands in for a C compiler. Some build scripts (`ring`) compile C for the target; a type check asks only
/// that the objects exist. `-E` answers the question which family of compilers this is.
const STUB_CC: &str = r#"#!/bin/sh
prev=
for a; do
  case $a in -E) echo '"clang"'; exit 0;; '-?') exit 1;; esac
  [ "$prev" = -o ] && : > "$a"
  prev=$a
done
exit 0
"#;

/// Checks types, then lints, of all targets of all members; says `SKIPPED` where the toolchain cannot be had.
pub(super) fn run() -> Result<ExitCode> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let target = std::path::absolute(target)?;
    let toolchain = match Toolchain::get(&target.join("darwin-toolchain")) {
        Ok(toolchain) => toolchain,
        Err(reason) => {
            println!("darwin: SKIPPED, nothing was checked: {reason:#}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    println!("darwin: {}", toolchain.version()?);
    let mut failed = false;
    for (name, program, first) in [("check", "cargo", "check"), ("clippy", "cargo-clippy", "clippy")] {
        let mut command = toolchain.command(program)?;
        command.arg(first).args(["-Z", "build-std", "--target", TARGET, "--workspace", "--all-targets"]);
        command.args(["--features", FEATURES]);
        command.arg("--quiet").env("CARGO_TARGET_DIR", target.join("darwin"));
        if first == "clippy" {
            command.args(["--", "--deny", "warnings"]);
        }
        let ok = command.status().with_context(|| format!("cannot run {program}"))?.success();
        println!("darwin {name}: {}", if ok { "ok" } else { "FAILED" });
        failed |= !ok;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

struct Toolchain {
    root: PathBuf,
}

impl Toolchain {
    /// The toolchain at `root`, unpacked there first if need be.
    fn get(root: &Path) -> Result<Self> {
        if !root.is_dir() {
            let part = root.with_extension("part");
            if part.exists() {
                fs::remove_dir_all(&part)?;
            }
            unpack(&part)?;
            fs::rename(&part, root)?;
        }
        Ok(Self { root: root.to_owned() })
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.root.join("usr/bin").join(name)
    }

    fn version(&self) -> Result<String> {
        let output = self.command("rustc")?.arg("--version").output().context("cannot run rustc")?;
        ensure!(output.status.success(), "rustc: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// A program of the toolchain, with rustup's settings out of its way.
    fn command(&self, program: &str) -> Result<Command> {
        let paths = [self.root.join("usr/bin")];
        let rest = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(paths.into_iter().chain(std::env::split_paths(&rest)))?;
        let usr = self.root.join("usr");
        let mut libraries = usr.join(format!("lib/{}-linux-gnu", std::env::consts::ARCH)).into_os_string();
        libraries.push(":");
        libraries.push(usr.join("lib"));
        let mut command = Command::new(self.bin(program));
        for name in ["RUSTUP_TOOLCHAIN", "RUSTFLAGS", "RUSTDOC", "RUSTC_WRAPPER"] {
            command.env_remove(name);
        }
        let settings: [(&str, OsString); 6] = [
            ("PATH", path),
            ("LD_LIBRARY_PATH", libraries),
            ("CARGO", self.bin("cargo").into()),
            ("RUSTC", self.bin("rustc").into()),
            // Lets a released compiler build the standard library.
            ("RUSTC_BOOTSTRAP", "1".into()),
            ("CC_aarch64_apple_darwin", self.root.join("cc").into()),
        ];
        command.envs(settings);
        Ok(command)
    }
}

/// Downloads the packages and what they need, and unpacks them below `root`.
fn unpack(root: &Path) -> Result<()> {
    let plan = output(
        Command::new("apt-get").args(["install", "--simulate", "--no-install-recommends"]).args(PACKAGES),
    )?;
    let names: Vec<&str> = plan
        .lines()
        .filter_map(|line| line.strip_prefix("Inst "))
        .filter_map(|line| line.split(' ').next())
        .collect();
    ensure!(!names.is_empty(), "expected packages to unpack, apt-get names none (are they installed?)");
    let packages = root.join("packages");
    fs::create_dir_all(&packages)?;
    output(Command::new("apt-get").arg("download").args(names).current_dir(&packages))?;
    for package in fs::read_dir(&packages)? {
        output(Command::new("dpkg").arg("-x").arg(package?.path()).arg(root))?;
    }
    fs::remove_dir_all(packages)?;
    let cc = root.join("cc");
    fs::write(&cc, STUB_CC)?;
    fs::set_permissions(&cc, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", errors.trim().lines().last().unwrap_or_default());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
