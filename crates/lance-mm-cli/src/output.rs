//! Standard error for people, standard output for results, and the exit code.
//!
//! Everything the program says passes through here, where what came from outside (names, texts, errors of libraries)
//! is [escaped](text::escaped). Errors of standard error are ignored, since there is nobody left to tell; those of
//! standard output, closed by its reader or full, are errors.
#![allow(clippy::disallowed_methods, reason = "the one place that writes to a terminal")]

mod text;

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::CommandFactory;
use indicatif::{ProgressBar, ProgressStyle};
use lance_mm::image;
use serde::Serialize;

use crate::interrupt;
pub(crate) use text::{escaped, one_line};

/// Standard output takes nothing more: its reader has gone, or the disk is full.
#[derive(Debug)]
pub(crate) struct StdoutError(io::Error);

impl fmt::Display for StdoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "standard output: {}", self.0)
    }
}

impl std::error::Error for StdoutError {}

/// Writes text for people to standard output.
pub(crate) fn print(text: &str) -> Result<()> {
    write(text::escaped(text).as_bytes())
}

/// A line for people: colour code, empty for none, and text.
pub(crate) type Line = (&'static str, String);

/// Writes lines for people to standard output.
pub(crate) fn print_lines(lines: &[Line]) -> Result<()> {
    let terminal = is_terminal();
    let line = |(code, text): &Line| colour(terminal, code, &text::one_line(text)) + "\n";
    write(lines.iter().map(line).collect::<String>().as_bytes())
}

/// Writes a value as JSON to standard output: one line, or many if it is `pretty`.
pub(crate) fn print_json(value: &impl Serialize, pretty: bool) -> Result<()> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }?;
    write(format!("{}\n", text::json(&text)).as_bytes())
}

/// Writes a path to standard output: as it is for other programs, escaped on a terminal.
pub(crate) fn print_path(path: &Path) -> Result<()> {
    let name = if is_terminal() {
        text::one_line(&path.to_string_lossy()).as_bytes().to_vec()
    } else {
        path.as_os_str().as_encoded_bytes().to_vec()
    };
    write(&[&name[..], b"\n"].concat())
}

fn write(bytes: &[u8]) -> Result<()> {
    let mut out = io::stdout().lock();
    Ok(out.write_all(bytes).and_then(|()| out.flush()).map_err(StdoutError)?)
}

/// Standard output for an answer that comes in pieces, and whether it is a terminal, which must not be sent raw text.
pub(crate) fn answer_output() -> (io::Stdout, bool) {
    (io::stdout(), is_terminal())
}

fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// The error of a failed write to standard output.
pub(crate) fn stdout_error(error: io::Error) -> anyhow::Error {
    StdoutError(error).into()
}

/// Exit code of a result. Prints an error in one line, help and version as they are.
pub(crate) fn exit_code(result: Result<()>) -> ExitCode {
    let error = match result.map(|()| ExitCode::SUCCESS).or_else(explain) {
        Ok(code) => return code,
        Err(error) => error,
    };
    // What an interruption broke is no error.
    interrupt::wait_if_ending();
    complain(&error);
    ExitCode::FAILURE
}

/// Prints help, the version, or what is wrong with the command line.
fn explain(error: anyhow::Error) -> Result<ExitCode> {
    let usage = error.downcast::<clap::Error>()?;
    if usage.use_stderr() {
        // Arguments are quoted in it.
        print_on_stderr(usage.render().to_string().trim_end(), |line| match line.strip_prefix("error:") {
            Some(rest) => paint("31;1", "error:") + rest,
            None => line.to_owned(),
        });
    } else {
        let text = usage.render();
        let coloured = wants_colour(is_terminal());
        write(if coloured { text.ansi().to_string() } else { text.to_string() }.as_bytes())?;
    }
    Ok(ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2)))
}

/// Prints `error: ...` in one line.
pub(crate) fn complain(error: &anyhow::Error) {
    print_on_stderr(&text::one_line(&message(error)), |line| format!("{} {line}", paint("31;1", "error:")));
}

/// An error in one line, options under the names they have here.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let text = match option(error) {
        Some((name, expected, found)) => {
            format!("--{}: expected {expected}, found {found}", name.replace(['_', ' '], "-"))
        }
        None => with_causes(error),
    };
    let line = text.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    text::elided(&line).into_owned()
}

/// Name, expected and found of an option that the library refuses.
fn option(error: &anyhow::Error) -> Option<(&str, &str, &str)> {
    let of_task = match error.downcast_ref() {
        Some(lance_mm_eval::Error::Pipeline(error)) => Some(error),
        _ => error.downcast_ref(),
    };
    if let Some(lance_mm::Error::Option { name, expected, found }) = of_task {
        return Some((name, expected, found));
    }
    if let Some(lance_mm_calibrate::Error::Option { name, expected, found }) = error.downcast_ref() {
        return Some((name, expected, found));
    }
    let of_image = match of_task {
        Some(lance_mm::Error::Image(error)) => Some(error),
        _ => error.downcast_ref::<image::Error>(),
    };
    match of_image? {
        image::Error::Option { name, expected, found } => Some((name, expected, found)),
        _ => None,
    }
}

/// An error and its causes: a file, then the system's message. Messages of the library, and others that repeat their
/// cause, are complete already.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let message = cause.to_string();
        if text.is_empty() {
            text = message;
        } else if !text.contains(&message) {
            text += &format!(": {message}");
        }
        if cause.is::<lance_mm::Error>() || cause.is::<image::Error>() {
            break;
        }
    }
    text
}

/// An error of the command line that clap's rules cannot express.
pub(crate) fn usage(command: &str, message: &str) -> anyhow::Error {
    let mut cli = crate::Cli::command();
    cli.build();
    let mut command = cli.find_subcommand(command).cloned().unwrap_or(cli);
    command.error(clap::error::ErrorKind::MissingRequiredArgument, message).into()
}

/// Prints lines on standard error.
pub(crate) fn say(text: &str) {
    print_on_stderr(text, str::to_owned);
}

/// Prints a dimmed line on standard error: what is no part of the result.
pub(crate) fn say_dim(line: &str) {
    print_on_stderr(&text::one_line(line), |line| paint("2", line));
}

/// Asks for a line on standard input.
pub(crate) fn show_prompt() {
    let _ = io::stderr().lock().write_all((paint("1", ">") + " ").as_bytes());
}

/// Prints lines on standard error, escaped, elided, then `styled`. A line is one write, so that no other process writes
/// into it.
fn print_on_stderr(text: &str, styled: impl Fn(&str) -> String) {
    let mut err = io::stderr().lock();
    for line in text.split('\n') {
        let line = styled(&text::elided(&text::escaped(line))) + "\n";
        let _ = err.write_all(line.as_bytes());
    }
}

/// Log of the libraries on standard error.
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        say(text.strip_suffix('\n').unwrap_or(&text));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Text in a colour, when standard error is a terminal and `NO_COLOR` is not set.
fn paint(code: &str, text: &str) -> String {
    colour(stderr_is_terminal(), code, text)
}

pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}

fn colour(terminal: bool, code: &str, text: &str) -> String {
    if code.is_empty() || !wants_colour(terminal) {
        return text.to_owned();
    }
    format!("\x1b[{code}m{text}\x1b[0m")
}

fn wants_colour(terminal: bool) -> bool {
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// A bar with a message, which may name something from outside.
pub(crate) fn with_message(bar: ProgressBar, message: &str) -> ProgressBar {
    bar.with_message(text::one_line(message).into_owned())
}

/// Hints and progress on standard error, unless `--quiet`.
#[derive(Clone, Copy)]
pub(crate) struct Hints {
    quiet: bool,
}

impl Hints {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    pub(crate) fn is_quiet(self) -> bool {
        self.quiet
    }

    /// Prints a line that is no part of the result.
    pub(crate) fn note(self, line: &str) {
        if !self.quiet {
            say_dim(line);
        }
    }

    /// As [`busy`](Self::busy), with a line where there is no terminal, for long parts.
    pub(crate) fn part(self, what: &str) -> Busy {
        if !self.quiet && !stderr_is_terminal() {
            say(what);
        }
        self.busy(what)
    }

    /// A spinner on a terminal, as long as the value lives.
    pub(crate) fn busy(self, what: &str) -> Busy {
        if self.quiet {
            return Busy(ProgressBar::hidden());
        }
        let bar = with_message(ProgressBar::new_spinner(), what);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Busy(bar)
    }
}

/// See [`Hints::busy`].
pub(crate) struct Busy(ProgressBar);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// `1 image`, `3 images`.
pub(crate) fn plural(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Bytes in decimal units, as shops and the hub count them.
pub(crate) fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1000.0, next);
    }
    match unit {
        "B" => format!("{n} B"),
        _ if value < 99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_950, "1.0 MB"),
            (4_650_000_000, "4.7 GB"),
            (123_456_789, "123 MB"),
        ];
        for (n, expected) in cases {
            assert_eq!(bytes(n), expected);
        }
    }

    #[test]
    fn errors_are_one_line_and_name_options_as_they_are_typed() {
        let option = lance_mm::Error::Option { name: "top_p", expected: "x".into(), found: "y".into() };
        assert_eq!(message(&option.into()), "--top-p: expected x, found y");
        let of_image = || image::Error::Option { name: "fps", expected: "x".into(), found: "y".into() };
        for error in [of_image().into(), lance_mm::Error::from(of_image()).into()] {
            assert_eq!(message(&error), "--fps: expected x, found y");
        }
        assert_eq!(message(&anyhow::anyhow!("a\n  b\n\nc")), "a; b; c");
    }

    #[test]
    fn errors_name_the_thing_and_the_reason_once() {
        let full = || anyhow::Error::from(io::Error::other("disk full"));
        assert_eq!(message(&full().context("a.json")), "a.json: disk full");
        assert_eq!(message(&full().context("a.json: disk full")), "a.json: disk full");
    }
}
