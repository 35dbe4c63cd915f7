//! Commands for developers of lance-mm: `cargo xtask --help`.
#![allow(clippy::print_stdout, reason = "a command line program")]

mod check;
mod fixtures;
mod measure;
mod nano;
mod program;
mod random;

use std::ffi::OsString;
use std::path::Path;
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
    /// Run `lance-mm convert`.
    Convert {
        /// Arguments of the program.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
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
        Command::Convert { args } => convert(args),
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

/// The program's own command, in a build of this workspace.
fn convert(args: Vec<OsString>) -> anyhow::Result<ExitCode> {
    let status = program::run(Path::new("."), std::iter::once("convert".into()).chain(args))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
