//! How far a long measurement is, on standard error.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::output::{self, Hints};

/// A bar on a terminal; elsewhere a line each tenth of the way.
pub(crate) struct Progress {
    bar: ProgressBar,
    what: String,
    lines: bool,
    tenth: usize,
}

impl Progress {
    pub(crate) fn new(what: &str, hints: Hints) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if hints.is_quiet() || !terminal { ProgressBar::hidden() } else { ProgressBar::new(0) };
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos} of {len}, {eta} left") {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        Self { bar, what: what.to_owned(), lines: !hints.is_quiet() && !terminal, tenth: 0 }
    }

    /// `done` of `all` samples are done.
    pub(crate) fn show(&mut self, done: usize, all: usize) {
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
        let tenth = 10 * done / all.max(1);
        if self.lines && tenth > self.tenth {
            output::say(&format!("{}: {done} of {all}", self.what));
        }
        self.tenth = tenth;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
