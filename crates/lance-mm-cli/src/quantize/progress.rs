//! Progress of a quantization on standard error.

use std::time::Instant;

use lance_mm_calibrate::Progress;

use crate::output::{Busy, Hints};
use crate::progress::Progress as Bar;

/// Shows the stage that runs: a bar over samples, else a moving sign with a text.
pub(super) struct Display {
    hints: Hints,
    bar: Option<Bar>,
    busy: Option<Busy>,
    /// The first layer that is quantized, and when that began.
    first: Option<(usize, Instant)>,
}

impl Display {
    pub(super) fn new(hints: Hints) -> Self {
        Self { hints, bar: None, busy: None, first: None }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        let text = match progress {
            Progress::FewSamples(n) => {
                return self.hints.note(&format!("note: {n} samples are few; 32 or more are advised"));
            }
            Progress::Samples { done, total } => return self.count("samples", done, total),
            Progress::Requests { done, total } => return self.count("requests", done, total),
            Progress::Fingerprint => "reading the checkpoint".to_owned(),
            Progress::Reference => "answers of the unchanged model".to_owned(),
            Progress::MeasureEmbedding => "measuring the embedding".to_owned(),
            Progress::MeasureLayer { index, total } => format!("measuring layer {} of {total}", index + 1),
            Progress::MeasureHead => "measuring the head".to_owned(),
            Progress::Embedding => "embedding".to_owned(),
            Progress::Layer { index, total } => self.layer(index, total),
            Progress::Head => "head".to_owned(),
            Progress::Write => "writing the checkpoint".to_owned(),
            _ => return,
        };
        // The stage before is cleared first.
        (self.bar, self.busy) = (None, None);
        self.busy = Some(self.hints.part(&text));
    }

    fn count(&mut self, what: &str, done: usize, total: usize) {
        if done == 0 {
            (self.bar, self.busy) = (None, None);
        }
        self.bar.get_or_insert_with(|| Bar::new(what, self.hints)).show(done, total);
    }

    /// The layer, and the time left at the mean of the layers since the first.
    fn layer(&mut self, index: usize, total: usize) -> String {
        let (first, start) = *self.first.get_or_insert_with(|| (index, Instant::now()));
        let left = match index - first {
            0 => String::new(),
            done => {
                let each = start.elapsed().as_secs_f64() / done as f64;
                format!(", about {:.0} s left", each * (total - index) as f64)
            }
        };
        format!("layer {} of {total}{left}", index + 1)
    }
}
