//! `lance-mm completions`: scripts that complete the command line.

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::output;

const EXAMPLES: &str = "\
Examples:
  lance-mm completions bash > ~/.local/share/bash-completion/completions/lance-mm
  lance-mm completions zsh > ~/.zfunc/_lance-mm
  lance-mm completions fish > ~/.config/fish/completions/lance-mm.fish";

/// Print a script that completes the command line in a shell.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shell.
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::Cli::command(), "lance-mm", &mut script);
    output::print(&String::from_utf8_lossy(&script))
}
