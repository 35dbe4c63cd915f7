//! `lance-mm eval`: a quantized checkpoint against its reference.

pub(crate) mod data;
mod generation;
mod layers;
mod oracle;
mod parity;
mod ppl;
mod result;

use anyhow::Result;
use clap::Subcommand;

const EXAMPLES: &str = "\
Examples:
  lance-mm eval parity ./Lance-3B-bf16 ./Lance-3B-AWQ-INT4 --data questions.jsonl --html parity.html
  lance-mm eval layers ./Lance-3B-bf16 ./Lance-3B-AWQ-INT4 --data held-out.jsonl --json layers.json
  lance-mm eval oracle nano
  lance-mm eval ppl ./Lance-3B-AWQ-INT4 --text wiki.txt

A MODEL is a checkpoint folder, org/name of one that was pulled, or nano. A data file has one question a
line: {\"image\": \"a.png\", \"question\": \"What is it?\", \"answer\": \"A star\", \"kind\": \"shape\"}, with
answer and kind optional, and images (a list) or video instead of image. Paths are relative to the file.";

/// Measure a checkpoint against its reference: answers, logits, layers, images, perplexity.
///
/// Prints tables in Markdown: numbers only, what they are good for is the reader's to say.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Parity(parity::Args),
    Layers(layers::Args),
    Generation(generation::Args),
    Oracle(oracle::Args),
    Ppl(ppl::Args),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    match &args.command {
        Command::Parity(args) => parity::run(args),
        Command::Layers(args) => layers::run(args),
        Command::Generation(args) => generation::run(args),
        Command::Oracle(args) => oracle::run(args),
        Command::Ppl(args) => ppl::run(args),
    }
}
