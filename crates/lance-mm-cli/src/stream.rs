//! The answer on its way to standard output, piece by piece.

use std::io::{self, Write};
use std::ops::ControlFlow;

use anyhow::Result;

use crate::output::{answer_output, escaped, stdout_error};

/// Prints pieces as they come, without the white space at the ends of the whole.
pub(crate) struct Stream<W> {
    out: W,
    /// Characters that could command a terminal are escaped.
    terminal: bool,
    /// Line breaks become spaces, so that the answer is one line.
    one_line: bool,
    started: bool,
    /// White space that is printed only if more follows.
    held: String,
    error: Option<io::Error>,
}

impl Stream<io::Stdout> {
    pub(crate) fn stdout(one_line: bool) -> Self {
        let (out, terminal) = answer_output();
        Self { out, terminal, one_line, started: false, held: String::new(), error: None }
    }
}

impl<W: Write> Stream<W> {
    /// Prints a piece. Asks to stop when nobody reads any more.
    pub(crate) fn push(&mut self, piece: &str) -> ControlFlow<()> {
        let piece = if self.started { piece } else { piece.trim_start() };
        let kept = piece.trim_end();
        if !kept.is_empty() {
            self.started = true;
            let text = std::mem::take(&mut self.held) + kept;
            self.write(&text);
        }
        self.held.push_str(&piece[kept.len()..]);
        if self.error.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Ends the line.
    pub(crate) fn finish(mut self) -> Result<()> {
        self.one_line = false;
        self.write("\n");
        self.error.map_or(Ok(()), |error| Err(stdout_error(error)))
    }

    fn write(&mut self, text: &str) {
        let text = if self.one_line { text.replace(['\n', '\r'], " ") } else { text.to_owned() };
        let text = if self.terminal { escaped(&text) } else { text.into() };
        if self.error.is_none() {
            self.error = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).err();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(pieces: &[&str], terminal: bool, one_line: bool) -> String {
        let mut bytes = Vec::new();
        let mut stream =
            Stream { out: &mut bytes, terminal, one_line, started: false, held: String::new(), error: None };
        for piece in pieces {
            assert!(stream.push(piece).is_continue());
        }
        stream.finish().unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn white_space_at_the_ends_is_left_out() {
        assert_eq!(printed(&[" ", "\n a", " ", "b ", "\n", "c", " \n", " "], false, false), "a b \nc\n");
        assert_eq!(printed(&[], false, false), "\n");
        assert_eq!(printed(&["  "], false, false), "\n");
    }

    #[test]
    fn a_terminal_is_not_commanded() {
        assert_eq!(printed(&["a\x1b[2J\tb\nc"], true, false), "a\\u{1b}[2J\tb\nc\n");
        assert_eq!(printed(&["a\x1b"], false, false), "a\x1b\n");
    }

    #[test]
    fn one_line_stays_one_line() {
        assert_eq!(printed(&["a\n", "b\r\nc"], false, true), "a b  c\n");
    }

    #[test]
    fn a_reader_that_is_gone_stops_the_answer() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut stream = Stream {
            out: Gone,
            terminal: false,
            one_line: false,
            started: false,
            held: String::new(),
            error: None,
        };
        assert!(stream.push("a").is_break());
        assert!(stream.finish().unwrap_err().is::<crate::output::StdoutError>());
    }
}
