//! `cargo xtask fixtures check DIR...`: runs the public API on folders of reference cases.
//!
//! A case is `NAME.json` with, if it has tensors, `NAME.safetensors` beside it. Names and sizes differ from
//! folder to folder, so a case is recognised by its `request.task`, else by the fields and tensors it holds:
//! [`KINDS`] lists how. Everything a case expects must be compared; what no kind compares is a failure.

mod affine;
mod array;
mod awq;
mod awq_seed;
mod case;
mod checker;
mod compare;
mod components;
mod diagnostics;
mod float_modes;
mod generation;
mod greedy;
mod logits;
mod manifest;
mod modules;
mod plans;
mod preprocess;
mod prompts;
mod questions;
mod report;
mod sampling;
mod schedulers;
mod sources;
mod tokenizer;
mod tolerance;
mod vae;
mod vae_components;
mod x2t;

use std::any::Any;
use std::cell::OnceCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use candle_core::Device;
use clap::{Args, Subcommand};
use lance_mm::Tokenizer;
use lance_mm::tensor::DeviceChoice;

use case::Case;
use checker::Checker;
use report::Report;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Compare with reference numbers: one line a tensor, exit code 1 when anything differs.
    Check(Check),
}

#[derive(Args)]
pub(crate) struct Check {
    /// Folders of cases; checkpoints are found where each case says.
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Folder with the tokenizer of the published models, for cases of the real vocabulary.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Cases to leave out: a case's name, a folder's name or `folder/case`; `*` stands for any text, and
    /// `manifest` for the hashes of a folder's files.
    #[arg(long, value_name = "NAME")]
    skip: Vec<String>,
    /// Where whole networks run; single operations and dequantized weights stay on the CPU.
    #[arg(long, value_name = "auto|cpu|metal", default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
}

impl Command {
    pub(crate) fn run(&self) -> Result<ExitCode> {
        let Self::Check(check) = self;
        check.run()
    }
}

/// Context of every kind besides its case.
pub(crate) struct Context {
    tokenizer_dir: Option<PathBuf>,
    tokenizer: OnceCell<Tokenizer>,
    /// Where whole networks run.
    device: Device,
}

impl Context {
    /// The folder given with `--tokenizer`.
    fn tokenizer_dir(&self) -> Result<&Path> {
        self.tokenizer_dir.as_deref().context("needs the real vocabulary: give its folder with --tokenizer")
    }

    /// The tokenizer given with `--tokenizer`, read once.
    fn tokenizer(&self) -> Result<&Tokenizer> {
        match self.tokenizer.get() {
            Some(tokenizer) => Ok(tokenizer),
            None => {
                let tokenizer = Tokenizer::from_dir(self.tokenizer_dir()?)?;
                Ok(self.tokenizer.get_or_init(|| tokenizer))
            }
        }
    }
}

/// A kind of case: how to know one, and how to run it.
struct Kind {
    is: fn(&Case) -> bool,
    run: fn(&Case, &Context, &mut Checker<'_>) -> Result<()>,
}

/// Tried in this order.
const KINDS: [Kind; 20] = [
    Kind { is: generation::is, run: generation::run },
    Kind { is: sources::is, run: sources::run },
    Kind { is: plans::is, run: plans::run },
    Kind { is: x2t::is, run: x2t::run },
    Kind { is: components::is, run: components::run },
    Kind { is: preprocess::is, run: preprocess::run },
    Kind { is: sampling::is, run: sampling::run },
    Kind { is: prompts::is, run: prompts::run },
    Kind { is: questions::is, run: questions::run },
    Kind { is: tokenizer::is, run: tokenizer::run },
    Kind { is: affine::is, run: affine::run },
    Kind { is: modules::is, run: modules::run },
    Kind { is: float_modes::is, run: float_modes::run },
    Kind { is: awq::is, run: awq::run },
    Kind { is: awq_seed::is, run: awq_seed::run },
    Kind { is: logits::is, run: logits::run },
    Kind { is: diagnostics::is, run: diagnostics::run },
    Kind { is: schedulers::is, run: schedulers::run },
    Kind { is: vae_components::is, run: vae_components::run },
    Kind { is: vae::is, run: vae::run },
];

impl Check {
    fn run(&self) -> Result<ExitCode> {
        let tokenizer_dir = self.tokenizer.clone();
        let context = Context { tokenizer_dir, tokenizer: OnceCell::new(), device: self.device.open()? };
        let mut report = Report::default();
        for dir in &self.dirs {
            if let Err(error) = self.folder(dir, &context, &mut report) {
                report.failed(&name_of(dir), "", &format!("{error:#}"));
            }
        }
        report.summary();
        Ok(if report.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn folder(&self, dir: &Path, context: &Context, report: &mut Report) -> Result<()> {
        let folder = name_of(dir);
        let names = case_names(dir)?;
        report.align(&names);
        if dir.join(manifest::FILE).is_file() && !self.skips(&folder, "manifest", report) {
            manifest::check(dir, report);
        }
        for name in &names {
            if self.skips(&folder, name, report) {
                continue;
            }
            match Case::load(dir, name) {
                Ok(case) => run(&case, context, report),
                Err(error) => report.failed(name, "", &format!("{error:#}")),
            }
        }
        Ok(())
    }

    fn skips(&self, folder: &str, name: &str, report: &mut Report) -> bool {
        let full = format!("{folder}/{name}");
        let skips =
            self.skip.iter().any(|pattern| [name, folder, &full].iter().any(|text| matches(pattern, text)));
        if skips {
            report.skipped(name);
        }
        skips
    }
}

fn run(case: &Case, context: &Context, report: &mut Report) {
    let Some(kind) = KINDS.iter().find(|kind| (kind.is)(case)) else {
        let task =
            case.json.pointer("/request/task").map_or(String::new(), |task| format!(" of task {task}"));
        return report.failed(
            &case.name,
            "",
            &format!("unknown case{task}: no kind knows its fields and tensors"),
        );
    };
    let mut check = Checker::new(case, report);
    // A broken promise inside the library is a failure of this case, and the others still run.
    let result = catch_unwind(AssertUnwindSafe(|| (kind.run)(case, context, &mut check)));
    match result.unwrap_or_else(|panic| Err(anyhow!("panicked: {}", message(panic.as_ref())))) {
        Ok(()) => check.finish(),
        Err(error) => check.failed("", &format!("{error:#}")),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

/// The names of the cases that lie in a folder.
fn case_names(dir: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let extension = path.extension().and_then(|e| e.to_str());
        let stem = path.file_stem().and_then(|s| s.to_str());
        match (stem, extension) {
            (Some(stem), Some("json")) if stem != "manifest" => names.push(stem.to_owned()),
            (Some(stem), Some("safetensors")) if !path.with_extension("json").exists() => {
                bail!("{stem}.safetensors: expected {stem}.json beside it, found none")
            }
            _ => {}
        }
    }
    if names.is_empty() {
        bail!("{}: expected cases (NAME.json), found none", dir.display());
    }
    names.sort();
    Ok(names)
}

/// The last part of a path, of `.` too.
fn name_of(dir: &Path) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    full.file_name().unwrap_or(full.as_os_str()).to_string_lossy().into_owned()
}

/// Whether `text` is `pattern`, in which `*` stands for any text.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|tail| {
            tail.char_indices().map(|(i, _)| i).chain([tail.len()]).any(|i| matches(rest, &tail[i..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_stand_for_any_text() {
        for (pattern, text, expected) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "a", true),
            ("a*c", "abbc", true),
            ("a*c", "abcd", false),
            ("*_b*", "a_b", true),
            ("awq_*", "awq_recipe", true),
            ("*é", "né", true),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }
}
