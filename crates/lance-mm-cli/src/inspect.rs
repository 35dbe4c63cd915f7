//! `lance-mm inspect`: what is in a checkpoint, and what is wrong with it.

mod table;

use std::path::Path;

use anyhow::{Result, bail};
use lance_mm::checkpoint::is_bundled;
use lance_mm::hub::RepoName;
use lance_mm::inspect::{InspectOptions, inspect};

use crate::output::{self, plural};

const EXAMPLES: &str = "\
Examples:
  lance-mm inspect ./Lance-3B-AWQ-INT4
  lance-mm inspect --deep mlx-community/Lance-3B-bf16
  lance-mm inspect --json . | jq .model.bits_per_weight

The exit code is 1 if the checkpoint has problems.";

/// Show what a checkpoint holds and what is wrong with it.
///
/// Layout, experts, tensors by part with types, bits and sizes, memory that questions about images need.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// A checkpoint folder, a .safetensors file, or org/name of a model that was pulled.
    #[arg(value_name = "PATH|ORG/NAME", value_hint = clap::ValueHint::AnyPath)]
    path: String,
    /// Read every byte: a fingerprint of each part, and a search for values that are not finite.
    #[arg(long)]
    deep: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let path = Path::new(&args.path);
    if is_bundled(&args.path) {
        bail!(
            "{}: expected a folder or a file, found the model in this program; its files are \
             crates/lance-mm-nano/assets in the repository",
            args.path
        );
    }
    if let Some(repo) = RepoName::suggest(&args.path).filter(|_| !path.exists()) {
        bail!("{}: no such path: write {repo}", args.path);
    }
    let cached = match RepoName::parse(&args.path).filter(|_| !path.exists()) {
        Some(repo) => match repo.cached()? {
            Some(folder) => Some(folder),
            None => bail!("{repo}: no such path, and not in the hub's cache; run: lance-mm pull {repo}"),
        },
        None => None,
    };
    let report = inspect(cached.as_deref().unwrap_or(path), InspectOptions { deep: args.deep })?;
    if args.json {
        output::print_json(&report, true)?;
    } else {
        output::print_lines(&table::render(&report))?;
    }
    match report.problems.len() {
        0 => Ok(()),
        n => bail!("{}: {}", args.path, plural(n, "problem")),
    }
}
