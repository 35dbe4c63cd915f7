//! Progress of a long run, on standard error.

use std::fmt::Write;
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};

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
        let terminal = output::stderr_is_terminal();
        let hidden = hints.is_quiet() || !terminal;
        let bar = if hidden { ProgressBar::hidden() } else { ProgressBar::no_length() };
        let bar = output::with_message(bar, what);
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos} of {len}, {elapsed}{left}") {
            bar.set_style(style.with_key("left", left));
        }
        Self { bar, what: what.to_owned(), lines: !hints.is_quiet() && !terminal, tenth: 0 }
    }

    /// `done` of `all` samples are done. Said before the first, it tells how many there are.
    pub(crate) fn show(&mut self, done: usize, all: usize) {
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
        if done == 0 {
            // The time goes on while a step takes long.
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
        let tenth = 10 * done / all.max(1);
        if self.lines && tenth > self.tenth {
            output::say(&format!("{}: {done} of {all}", self.what));
        }
        self.tenth = tenth;
    }
}

/// Runs `work` under a bar of `what`, which it tells samples done and in all.
pub(crate) fn with<T>(what: &str, hints: Hints, work: impl FnOnce(&mut dyn FnMut(usize, usize)) -> T) -> T {
    let mut progress = Progress::new(what, hints);
    work(&mut |done, all| progress.show(done, all))
}

/// The time left, once the first step tells how long one takes.
fn left(state: &ProgressState, out: &mut dyn Write) {
    if state.pos() > 0 {
        // A line that cannot be formatted is shown without.
        let _ = write!(out, ", {:#} left", HumanDuration(state.eta()));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
