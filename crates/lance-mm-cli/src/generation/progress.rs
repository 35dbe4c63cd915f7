//! Progress on a terminal, and time and memory of each stage.

use std::time::{Duration, Instant};

use lance_mm::generate::{Event, Stage};
use lance_mm_eval::memory;

use crate::output::{self, Busy, Hints};
use crate::progress::Progress;

/// Shows the stages of a generation and times them.
pub(super) struct StageTimer {
    hints: Hints,
    /// Inference steps of each generation.
    steps: usize,
    parts: Vec<Part>,
    open: Option<Open>,
}

/// A part that has ended.
struct Part {
    name: &'static str,
    time: Duration,
    peak: Option<u64>,
}

/// The current stage.
struct Open {
    stage: Stage,
    start: Instant,
    _busy: Option<Busy>,
    progress: Option<Progress>,
}

/// Peak memory since it was last reset.
fn peak() -> Option<u64> {
    memory::now().map(|memory| memory.peak)
}

fn name(stage: Stage) -> &'static str {
    match stage {
        Stage::VisionEncoder => "vision encoder",
        Stage::VaeEncode => "VAE encoder",
        Stage::Prompt => "prompt",
        Stage::Denoise => "steps",
        Stage::VaeDecode => "VAE decoder",
    }
}

impl StageTimer {
    pub(super) fn new(steps: usize, hints: Hints) -> Self {
        Self { hints, steps, parts: Vec::new(), open: None }
    }

    /// Times a part of the work that is not the library's.
    pub(super) fn part<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        memory::reset_peak();
        let start = Instant::now();
        let done = work();
        self.parts.push(Part { name, time: start.elapsed(), peak: peak() });
        done
    }

    /// Takes an event of the library.
    pub(super) fn observe(&mut self, event: &Event<'_>) {
        match event {
            Event::Begin(stage) => {
                self.end();
                memory::reset_peak();
                let steps = *stage == Stage::Denoise;
                self.open = Some(Open {
                    stage: *stage,
                    start: Instant::now(),
                    _busy: (!steps).then(|| self.hints.busy(name(*stage))),
                    progress: steps.then(|| {
                        let mut progress = Progress::new("steps", self.hints);
                        progress.show(0, self.steps);
                        progress
                    }),
                });
            }
            Event::Step(step) => {
                if let Some(progress) = self.open.as_mut().and_then(|open| open.progress.as_mut()) {
                    progress.show(step.step.index + 1, step.of);
                }
            }
        }
    }

    /// Ends the current stage.
    pub(super) fn end(&mut self) {
        if let Some(open) = self.open.take() {
            let part = Part { name: name(open.stage), time: open.start.elapsed(), peak: peak() };
            self.parts.push(part);
        }
    }

    /// All parts in one line, and begins anew.
    pub(super) fn stats(&mut self) -> String {
        let part = |part: &Part| {
            let peak = part.peak.map_or(String::new(), |peak| format!(" ({})", output::bytes(peak)));
            format!("{} {:.2} s{peak}", part.name, part.time.as_secs_f64())
        };
        let total: Duration = self.parts.iter().map(|part| part.time).sum();
        let parts: Vec<String> = self.parts.iter().map(part).collect();
        let line =
            format!("{}; {:.2} s in all (in brackets peak memory)", parts.join(", "), total.as_secs_f64());
        self.parts.clear();
        line
    }
}
