//! Commands for developers of lance-mm: `cargo xtask --help`.
#![allow(clippy::print_stdout, reason = "a command line program")]

mod check;
mod fixtures;
mod measure;
mod nano;
mod random;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Commands for developers of lance-mm.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Convert(lance_mm_convert::Convert),
    /// Copy a checkpoint in the MLX layout, keeping the UND expert and the vision transformer only.
    Split {
        /// Checkpoint folder.
        src: PathBuf,
        /// Folder to write.
        dst: PathBuf,
    },
    Check(check::Check),
    /// Work with folders of reference cases.
    Fixtures {
        #[command(subcommand)]
        command: fixtures::Command,
    },
    Measure(measure::Measure),
    Nano(nano::Nano),
    /// Write a checkpoint with random weights in the MLX layout.
    Random(random::Random),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Convert(convert) => convert.run(),
        Command::Split { src, dst } => lance_mm_convert::split::run(&src, &dst),
        Command::Check(check) => check.run(),
        Command::Fixtures { command } => command.run(),
        Command::Measure(measure) => measure.run(),
        Command::Nano(nano) => nano.run(),
        Command::Random(random) => random.run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
