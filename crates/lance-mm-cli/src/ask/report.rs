//! Report of an answer, for `--json` and `--stats`.

use std::time::Duration;

use lance_mm::tensor::device_name;
use lance_mm::{Answer, ImageFeatures};
use lance_mm_eval::memory;
use serde::Serialize;

use crate::inputs::Source;
use crate::model::Model;
use crate::output::{bytes, plural};

/// An answer and how it came about; the object that `--json` prints.
#[derive(Serialize)]
pub(crate) struct Report<'a> {
    answer: &'a str,
    finish_reason: &'static str,
    model: &'a str,
    /// cpu or metal.
    device: &'static str,
    /// Absent when a description was asked for.
    #[serde(skip_serializing_if = "str::is_empty")]
    question: &'a str,
    images: Vec<Shown<'a>>,
    prompt_tokens: usize,
    completion_tokens: usize,
    /// Generated ids, the stop token included.
    ids: &'a [u32],
    /// Of the random choices; null when there were none.
    seed: Option<u64>,
    times: Times,
    /// Null where the system does not say.
    memory: Option<Resident>,
}

/// Bytes that were resident.
#[derive(Serialize)]
struct Resident {
    /// At most, the program's own and mapped files together.
    peak: u64,
    /// At the end, the program's own.
    anonymous: u64,
    /// At the end, of mapped files.
    file: u64,
}

/// Milliseconds.
#[derive(Serialize)]
struct Times {
    load: f64,
    encode: f64,
    prefill: f64,
    decode: f64,
    total: f64,
    tokens_per_second: f64,
}

/// An image or video of the question.
#[derive(Serialize)]
pub(crate) struct Shown<'a> {
    #[serde(flatten)]
    source: &'a Source,
    kind: String,
    /// Tokens in time, rows and columns.
    grid: [usize; 3],
    tokens: usize,
    #[serde(skip)]
    time: Duration,
}

impl<'a> Shown<'a> {
    pub(crate) fn new(source: &'a Source, features: &ImageFeatures) -> Self {
        let grid = features.grid();
        let kind = features.medium().to_string();
        Self { source, kind, grid: [grid.t, grid.h, grid.w], tokens: grid.count(), time: features.time() }
    }
}

impl<'a> Report<'a> {
    pub(crate) fn new(
        model: &'a Model,
        question: &'a str,
        images: Vec<Shown<'a>>,
        answer: &'a Answer,
        total: Duration,
    ) -> Self {
        let times = Times {
            load: millis(model.time),
            encode: millis(images.iter().map(|image| image.time).sum()),
            prefill: millis(answer.prefill_time),
            decode: millis(answer.decode_time),
            total: millis(total),
            tokens_per_second: per_second(answer.ids.len(), answer.decode_time),
        };
        Self {
            answer: &answer.text,
            finish_reason: answer.finish_reason.name(),
            model: &model.name,
            device: device_name(model.lance.device()),
            question,
            images,
            prompt_tokens: answer.prompt_tokens,
            completion_tokens: answer.ids.len(),
            ids: &answer.ids,
            seed: answer.seed,
            times,
            memory: memory::now().map(|m| Resident { peak: m.peak, anonymous: m.anonymous, file: m.file }),
        }
    }

    /// The same for a person, in one line.
    pub(crate) fn stats(&self) -> String {
        let times = &self.times;
        let mut stats = format!("load {}", duration(times.load));
        if !self.images.is_empty() {
            let tokens: usize = self.images.iter().map(|image| image.tokens).sum();
            let images = plural(self.images.len(), &self.images[0].kind);
            stats += &format!(", {images} of {} {}", plural(tokens, "token"), duration(times.encode));
        }
        stats += &format!(
            ", prompt of {} {}, answer of {} {} ({:.1} tokens/s), {} in all; ended by {}",
            plural(self.prompt_tokens, "token"),
            duration(times.prefill),
            plural(self.completion_tokens, "token"),
            duration(times.decode),
            times.tokens_per_second,
            duration(times.total),
            self.finish_reason,
        );
        if let Some(memory) = &self.memory {
            stats += &format!("; memory {} at most", bytes(memory.peak));
        }
        match self.seed {
            Some(seed) => format!("{stats}; seed {seed}"),
            None => stats,
        }
    }
}

/// Milliseconds with three digits after the point.
fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

fn per_second(tokens: usize, time: Duration) -> f64 {
    let rate = tokens as f64 / time.as_secs_f64().max(1e-9);
    (rate * 100.0).round() / 100.0
}

fn duration(millis: f64) -> String {
    if millis < 1000.0 { format!("{millis:.0} ms") } else { format!("{:.1} s", millis / 1000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        assert_eq!(millis(Duration::from_nanos(1_234_567)), 1.234);
        assert_eq!(per_second(3, Duration::from_millis(1500)), 2.0);
        assert!(per_second(3, Duration::ZERO).is_finite());
        assert_eq!((duration(12.4), duration(12_345.0)), ("12 ms".into(), "12.3 s".into()));
    }
}
