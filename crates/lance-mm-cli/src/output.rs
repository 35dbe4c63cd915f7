//! Standard error for people, standard output for results, and the exit code.
//!
//! Nothing here panics when the other end of a pipe is gone: errors of standard error are ignored, a closed
//! standard output ends the program quietly.

use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::CommandFactory;
use indicatif::{ProgressBar, ProgressStyle};
use lance_mm::image;

/// Standard output was closed by its reader: the end, but no error.
#[derive(Debug)]
pub(crate) struct StdoutClosed;

impl fmt::Display for StdoutClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output is closed")
    }
}

impl std::error::Error for StdoutClosed {}

/// Writes to standard output and flushes it.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(stdout_error)
}

/// The error of a failed write to standard output.
pub(crate) fn stdout_error(error: io::Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::BrokenPipe => StdoutClosed.into(),
        _ => anyhow::anyhow!("standard output: {error}"),
    }
}

/// Exit code of a result. Prints an error in one line; clap prints its own.
pub(crate) fn exit_code(result: Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    if error.is::<StdoutClosed>() {
        return ExitCode::SUCCESS;
    }
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        // Help and version come this way too, with code 0.
        let _ = usage.print();
        return ExitCode::from(u8::try_from(usage.exit_code()).unwrap_or(2));
    }
    complain(&error);
    ExitCode::FAILURE
}

/// Prints `error: ...` in one line.
pub(crate) fn complain(error: &anyhow::Error) {
    say(&format!("{} {}", paint("31;1", "error:"), message(error)));
}

/// An error in one line, options under the names they have here.
pub(crate) fn message(error: &anyhow::Error) -> String {
    let text = match option(error) {
        Some((name, expected, found)) => {
            format!("--{}: expected {expected}, found {found}", name.replace(['_', ' '], "-"))
        }
        None => with_causes(error),
    };
    text.split('\n').map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
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

/// Prints a line on standard error.
pub(crate) fn say(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Text in a colour, when standard error is a terminal and `NO_COLOR` is not set.
pub(crate) fn paint(code: &str, text: &str) -> String {
    colour(io::stderr().is_terminal(), code, text)
}

/// As [`paint`], for standard output.
pub(crate) fn paint_out(code: &str, text: &str) -> String {
    colour(io::stdout().is_terminal(), code, text)
}

fn colour(terminal: bool, code: &str, text: &str) -> String {
    let wanted = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if wanted { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
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
            say(&paint("2", line));
        }
    }

    /// As [`busy`](Self::busy), with a line where there is no terminal, for long parts.
    pub(crate) fn part(self, what: &str) -> Busy {
        if !self.quiet && !io::stderr().is_terminal() {
            say(what);
        }
        self.busy(what)
    }

    /// A spinner on a terminal, as long as the value lives.
    pub(crate) fn busy(self, what: &str) -> Busy {
        if self.quiet {
            return Busy(ProgressBar::hidden());
        }
        let bar = ProgressBar::new_spinner().with_message(what.to_owned());
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
