//! The program `lance-mm` as a library: [`run`], for other front ends that are this program. Its interface is the command
//! line; nothing here is stable, and programs that want Lance use the crate `lance-mm`.
//!
//! It parses arguments, calls the library, shows progress and prints; each command is a module. Text for
//! other programs goes to standard output, everything said to a person to standard error. The exit code is
//! 0, or 1 after an error, or 2 when the arguments make no sense.

#![warn(clippy::print_stderr)]

mod args;
mod ask;
mod bench;
mod chat;
mod completions;
mod convert;
mod document;
mod edit;
mod edit_video;
mod eval;
mod generate;
mod generation;
mod inputs;
mod inspect;
mod interrupt;
mod log;
mod model;
mod output;
mod progress;
mod pull;
mod quantize;
mod save;
mod stream;
mod video;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tracing_subscriber::filter::Targets;

use args::ADVANCED;

const EXAMPLES: &str = "\
Examples:
  lance-mm ask chart.png \"Which bar is the highest?\"
  lance-mm pull mlx-community/Lance-3B-AWQ-INT4
  lance-mm ask --model mlx-community/Lance-3B-AWQ-INT4 photo.jpg \"What is in this image?\"
  lance-mm generate --model ./Lance-3B-bf16 \"A red fox at sunset\" -o fox.png

Without --model, a bundled nano model answers. It was trained on simple synthetic images (charts,
plates, amounts, shapes) and knows nothing else.";

/// Ask about images, videos and text, and generate them, with Lance, ByteDance's multimodal model
#[derive(Parser)]
#[command(name = "lance-mm", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// Options of all commands.
#[derive(clap::Args)]
#[command(next_help_heading = ADVANCED)]
struct Global {
    /// Number of CPU threads [default: all, or RAYON_NUM_THREADS]
    #[arg(long, global = true, value_name = "N", hide_short_help = true)]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Log of stages and their times: error, warn, info, debug, trace or TARGET=LEVEL,.. [default: RUST_LOG]
    #[arg(long, global = true, value_name = "LEVEL", hide_short_help = true)]
    log: Option<Targets>,
}

#[derive(Subcommand)]
enum Command {
    Ask(ask::Args),
    Chat(chat::Args),
    Generate(generate::Args),
    Edit(edit::Args),
    Video(video::Args),
    EditVideo(edit_video::Args),
    Inspect(inspect::Args),
    Bench(bench::Args),
    Eval(eval::Args),
    Pull(pull::Args),
    Convert(convert::Args),
    Quantize(quantize::Args),
    Completions(completions::Args),
}

/// Runs the program with these arguments, the name of the program first, and returns its exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    interrupt::handle();
    std::panic::set_hook(Box::new(|panic| {
        output::say(&panic.to_string());
        let trace = Backtrace::capture();
        if trace.status() == BacktraceStatus::Captured {
            output::say(&trace.to_string());
        }
    }));
    output::exit_code(Cli::try_parse_from(args).map_err(Into::into).and_then(Cli::run))
}

impl Cli {
    fn run(self) -> Result<()> {
        self.global.apply()?;
        self.command.run()
    }
}

impl Global {
    fn apply(self) -> Result<()> {
        // An environment for other programs is no reason to fail.
        let environment = || std::env::var("RUST_LOG").ok()?.parse().ok();
        if let Some(targets) = self.log.or_else(environment) {
            log::init(targets);
        }
        if let Some(threads) = self.threads {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.into());
            pool.build_global().context("--threads")?;
        }
        Ok(())
    }
}

impl Command {
    fn run(&self) -> Result<()> {
        match self {
            Self::Ask(args) => ask::run(args),
            Self::Chat(args) => chat::run(args),
            Self::Generate(args) => generate::run(args),
            Self::Edit(args) => edit::run(args),
            Self::Video(args) => video::run(args),
            Self::EditVideo(args) => edit_video::run(args),
            Self::Inspect(args) => inspect::run(args),
            Self::Bench(args) => bench::run(args),
            Self::Eval(args) => eval::run(args),
            Self::Pull(args) => pull::run(args),
            Self::Convert(args) => convert::run(args),
            Self::Quantize(args) => quantize::run(args),
            Self::Completions(args) => completions::run(args),
        }
    }
}

#[cfg(test)]
mod tests;
