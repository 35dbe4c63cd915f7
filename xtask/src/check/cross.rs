//! `cargo xtask check --darwin` and `--windows`: types and lints of the whole workspace for a system that this is not.
//!
//! Rustup's toolchain checks only for systems whose standard library it has. Debian carries a compiler
//! and the matching source of the standard library (`rustc-web`, `rust-web-src`); cargo builds the library
//! from that (`-Z build-std`), which is all that type checking needs. The packages are unpacked beside the
//! build, not installed, and rustup's toolchain stays as it is.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};

/// A system to check for.
pub(super) struct Target {
    /// Option of the command, and folder of the build.
    name: &'static str,
    triple: &'static str,
    features: &'static str,
}

/// Apple Silicon, with Metal.
pub(super) const DARWIN: Target = Target {
    name: "darwin",
    triple: "aarch64-apple-darwin",
    features: "lance-mm-cli/metal,lance-mm-tests/metal,xtask/metal",
};

/// Windows on x86-64.
pub(super) const WINDOWS: Target = Target { name: "windows", triple: "x86_64-pc-windows-msvc", features: "" };

const PACKAGES: [&str; 4] = ["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"];

/// Stands in for a C compiler and Microsoft's archiver. Some build scripts (`ring`) compile C for the target; a type
/// check asks only that the files exist. `-E` answers the question which family of compilers this is.
const STUB_CC: &str = r#"#!/bin/sh
prev=
for a; do
  case $a in -E) echo '"clang"'; exit 0;; '-?') exit 1;; -out:*) : > "${a#-out:}";; esac
  [ "$prev" = -o ] && : > "$a"
  prev=$a
done
exit 0
"#;

/// Checks types, then lints, of all targets of all members; says `SKIPPED` where the toolchain cannot be had.
pub(super) fn run(target: &Target) -> Result<ExitCode> {
    let Target { name: system, triple, features } = *target;
    let dir = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let dir = std::path::absolute(dir)?;
    let toolchain = match Toolchain::get(&dir.join("cross-toolchain")) {
        Ok(toolchain) => toolchain,
        Err(reason) => {
            println!("{system}: SKIPPED, nothing was checked: {reason:#}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    println!("{system}: {}", toolchain.version()?);
    let mut failed = false;
    for (name, program, first) in [("check", "cargo", "check"), ("clippy", "cargo-clippy", "clippy")] {
        let mut command = toolchain.command(program)?;
        command.arg(first).args(["-Z", "build-std", "--target", triple, "--workspace", "--all-targets"]);
        command.args(["--features", features]);
        command.arg("--quiet").env("CARGO_TARGET_DIR", dir.join(system));
        command.envs(toolchain.tools_for(triple));
        if first == "clippy" {
            command.args(["--", "--deny", "warnings"]);
        }
        let ok = command.status().with_context(|| format!("cannot run {program}"))?.success();
        println!("{system} {name}: {}", if ok { "ok" } else { "FAILED" });
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

    /// Names a compiler and an archiver of C for the build scripts.
    fn tools_for(&self, triple: &str) -> [(String, PathBuf); 2] {
        let archiver = if triple.ends_with("msvc") { self.root.join("cc") } else { PathBuf::from("ar") };
        let triple = triple.replace('-', "_");
        [(format!("CC_{triple}"), self.root.join("cc")), (format!("AR_{triple}"), archiver)]
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
        let settings: [(&str, OsString); 5] = [
            ("PATH", path),
            ("LD_LIBRARY_PATH", libraries),
            ("CARGO", self.bin("cargo").into()),
            ("RUSTC", self.bin("rustc").into()),
            // Lets a released compiler build the standard library.
            ("RUSTC_BOOTSTRAP", "1".into()),
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
    output(Command::new("chmod").arg("+x").arg(&cc))?;
    Ok(())
}

fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}", errors.trim().lines().last().unwrap_or_default());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
