//! `lance-mm convert`: a checkpoint in another layout.

use std::path::PathBuf;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use lance_mm_convert::{ConvertOptions, TargetLayout, Written};

use crate::output::{self, Hints};

const EXAMPLES: &str = "\
Examples:
  lance-mm convert ./Lance_3B ./Lance-3B-bf16
  lance-mm convert ./Lance_3B ./Lance-3B-und --und-only --verify
  lance-mm convert ./Lance-3B-bf16 ./upstream --to upstream";

/// Convert a checkpoint between the original release's layout and MLX's.
///
/// The other commands read MLX's. Sources are Lance_3B, Lance_3B_Video, a third party's F32 export, the MLX layout,
/// or a VAE's .pth alone. Every tensor is checked first, and OUT appears only when all of it is written.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Checkpoint folder, or a VAE's .pth.
    #[arg(value_hint = clap::ValueHint::AnyPath)]
    source: PathBuf,
    /// New folder.
    #[arg(value_hint = clap::ValueHint::DirPath)]
    out: PathBuf,
    /// Layout to write: `mlx-bf16`, which is loaded here (norms in F32), or `upstream`, the original release in F32.
    #[arg(long, value_name = "LAYOUT", value_enum, default_value_t, hide_possible_values = true)]
    to: Layout,
    /// Keep only what questions need: the UND expert and the vision encoder. Quantized checkpoints may be cut too.
    #[arg(long)]
    und_only: bool,
    /// Convert OUT back and compare every tensor with SOURCE; the exit code is 1 if one differs.
    #[arg(long)]
    verify: bool,
    /// Say nothing but errors and the report.
    #[arg(short, long)]
    quiet: bool,
}

/// [`TargetLayout`] as words of the command line.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Layout {
    #[default]
    MlxBf16,
    Upstream,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let to = match args.to {
        Layout::MlxBf16 => TargetLayout::MlxBf16,
        Layout::Upstream => TargetLayout::Upstream,
    };
    let (und_only, verify) = (args.und_only, args.verify);
    let options = ConvertOptions { to, und_only, verify, ..ConvertOptions::default() };
    let bar = bar(Hints::new(args.quiet));
    let mut show = |written: Written<'_>| {
        bar.set_length(written.total);
        bar.set_position(written.done);
    };
    let report = lance_mm_convert::convert(&args.source, &args.out, &options, &mut show);
    bar.finish_and_clear();
    let report = report?;
    output::print(&format!("{}: {report}\n", args.out.display()))?;
    if !report.passed() {
        bail!("{}: differs from {} after the way back", args.out.display(), args.source.display());
    }
    Ok(())
}

/// A bar over bytes, hidden where standard error is no terminal.
fn bar(hints: Hints) -> ProgressBar {
    if hints.is_quiet() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) =
        ProgressStyle::with_template("[{wide_bar}] {decimal_bytes}/{decimal_total_bytes} {eta}")
    {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
