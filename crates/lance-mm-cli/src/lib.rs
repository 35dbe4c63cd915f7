//! The program `lance-mm` as a library: [`run`], for other front ends that are this program. Its interface is the command
//! line; nothing here is stable, and programs that want Lance use the crate `lance-mm`.
//!
//! It parses arguments, calls the library, shows progress and prints; each command is a module. Text for
//! other programs goes to standard output, everything said to a person to standard error. The exit code is
//! 0, or 1 after an error, or 2 when the arguments make no sense.

mod args;
mod ask;
mod bench;
mod chat;
mod completions;
mod document;
mod edit;
mod edit_video;
mod eval;
mod generate;
mod generation;
mod inputs;
mod inspect;
mod model;
mod output;
mod pull;
mod quantize;
mod save;
mod stream;
mod video;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

const EXAMPLES: &str = "\
Examples:
  lance-mm ask chart.png \"Which bar is the highest?\"
  lance-mm pull mlx-community/Lance-3B-AWQ-INT4
  lance-mm ask --model mlx-community/Lance-3B-AWQ-INT4 photo.jpg \"What is in this image?\"
  lance-mm chat photo.jpg
  lance-mm generate --model ./Lance-3B-bf16 \"A red fox at sunset\" -o fox.png
  lance-mm inspect ./Lance-3B-AWQ-INT4

Without --model, a bundled nano model answers. It was trained on simple drawn pictures (charts,
plates, amounts, shapes) and knows nothing else.";

/// Ask questions about pictures, videos and text, and draw, with Lance, ByteDance's multimodal model.
#[derive(Parser)]
#[command(name = "lance-mm", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
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
    Quantize(quantize::Args),
    Completions(completions::Args),
}

/// Runs the program with these arguments, the name of the program first, and returns its exit code.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let result = match Cli::try_parse_from(args) {
        Err(error) => Err(error.into()),
        Ok(Cli { command }) => match &command {
            Command::Ask(args) => ask::run(args),
            Command::Chat(args) => chat::run(args),
            Command::Generate(args) => generate::run(args),
            Command::Edit(args) => edit::run(args),
            Command::Video(args) => video::run(args),
            Command::EditVideo(args) => edit_video::run(args),
            Command::Inspect(args) => inspect::run(args),
            Command::Bench(args) => bench::run(args),
            Command::Eval(args) => eval::run(args),
            Command::Pull(args) => pull::run(args),
            Command::Quantize(args) => quantize::run(args),
            Command::Completions(args) => completions::run(args),
        },
    };
    output::exit_code(result)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn every_help_has_examples_and_all_of_them_parse() {
        let mut commands = vec![Cli::command()];
        while let Some(command) = commands.pop() {
            let help = command.get_after_long_help().or(command.get_after_help());
            let help = help.map(ToString::to_string).unwrap_or_default();
            let calls: Vec<Vec<String>> = help.lines().filter_map(call).collect();
            assert!(!calls.is_empty(), "{}: {help}", command.get_name());
            for call in calls {
                let parsed = Cli::try_parse_from(&call);
                assert!(parsed.is_ok(), "{call:?}: {}", parsed.err().unwrap());
            }
            commands.extend(command.get_subcommands().cloned());
        }
    }

    /// The words of the program's call in an indented line of shell, if there is one.
    fn call(line: &str) -> Option<Vec<String>> {
        let words = words(line.strip_prefix("  ")?);
        let start = words.iter().position(|word| word == "lance-mm")?;
        let is_part = |word: &String| word != "|" && word != ">";
        Some(words.into_iter().skip(start).take_while(is_part).collect())
    }

    fn words(line: &str) -> Vec<String> {
        let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
        for c in line.chars() {
            match quote {
                None if c == ' ' => words.push(std::mem::take(&mut word)),
                None if c == '"' || c == '\'' => quote = Some(c),
                Some(open) if c == open => quote = None,
                _ => word.push(c),
            }
        }
        words.push(word);
        words
    }
}
