//! Speed of models beside the limits of the machine, and the steps of an answer one at a time.
//!
//! [`bench()`] repeats each step, measures the machine's [roofline](lance_mm_tensor::roofline) around every repeat, and
//! reports medians with their share of the limit. The functions of [`steps`] measure once.

mod answers;
mod machine;
mod measurement;
mod run;
mod soak;
pub mod steps;

use lance_mm_pipelines::Lance;
use serde::Serialize;

use crate::Dataset;
use crate::error::{Error, Result};
pub use answers::AnswerTime;
use machine::Limits;
pub use machine::Machine;
pub use measurement::{LimitShare, Measurement};
pub use soak::{SoakOptions, SoakPoint, SoakReport, soak};

/// Options of [`bench()`].
#[derive(Clone, Debug, PartialEq)]
pub struct BenchOptions {
    /// Parts to measure.
    pub parts: Vec<BenchPart>,
    /// Repeats of each measurement.
    pub repeats: usize,
    /// Tokens generated in a repeat.
    pub steps: usize,
    /// Questions whose answers are timed one by one.
    pub cases: Option<Dataset>,
    /// Most tokens of such an answer.
    pub case_tokens: usize,
    /// Many questions in this process, to see whether memory grows.
    pub soak: Option<SoakOptions>,
}

impl Default for BenchOptions {
    fn default() -> Self {
        Self {
            parts: BenchPart::ALL.to_vec(),
            repeats: 3,
            steps: 32,
            cases: None,
            case_tokens: 256,
            soak: None,
        }
    }
}

impl BenchOptions {
    /// One repeat of each measurement, and short answers.
    pub fn quick() -> Self {
        Self { repeats: 1, steps: 16, case_tokens: 32, ..Self::default() }
    }

    fn validate(&self) -> Result<()> {
        for (name, value) in [("repeats", self.repeats), ("steps", self.steps)] {
            if value == 0 {
                return Err(Error::option(name, "at least 1", 0));
            }
        }
        match &self.cases {
            Some(data) if data.samples.is_empty() => Err(Error::option("cases", "questions", "none")),
            _ => Ok(()),
        }
    }
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchPart {
    /// Time to load, time to the first token of a question and of a second one, memory.
    Ask,
    /// Tokens a second after a short and a long context.
    Decode,
    /// Tokens a second of one sequence and of eight together.
    Batch,
    /// Prompts of 512 and 1024 tokens.
    Prefill,
    /// The vision encoder at a quarter of a megapixel and at one.
    Vit,
}

impl BenchPart {
    /// All parts.
    pub const ALL: [Self; 5] = [Self::Ask, Self::Decode, Self::Batch, Self::Prefill, Self::Vit];
}

/// A model to measure.
pub struct BenchModel<'a> {
    /// Name in the report.
    pub name: String,
    /// Loads it; called once for each repeat of the load time.
    pub load: Box<dyn Fn() -> Result<Lance> + 'a>,
}

/// Progress of [`bench()`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BenchEvent<'a> {
    /// A measurement begins.
    Begin(&'a str),
    /// Questions of the soak test: done, and in all.
    Soak(usize, usize),
    /// The system reports no memory in use: the report has no such rows.
    MemoryUnknown,
}

/// Observer of [`bench()`].
pub type BenchObserver<'a> = dyn FnMut(BenchEvent<'_>) + 'a;

/// Speed of models on this machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BenchReport {
    /// The machine and the limits met.
    pub machine: Machine,
    /// The models, in the order given.
    pub models: Vec<ModelSpeed>,
}

/// Speed of one model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSpeed {
    /// Its name.
    pub name: String,
    /// Where it ran: `cpu` or `metal`.
    pub device: &'static str,
    /// Whether its weights are quantized.
    pub quantized: bool,
    /// The measurements, in their order.
    pub rows: Vec<Measurement>,
    /// Times of the answers to [`BenchOptions::cases`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cases: Vec<AnswerTime>,
    /// Memory over [`BenchOptions::soak`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub soak: Option<SoakReport>,
}

/// Measures models one after the other. Nothing else should run meanwhile.
///
/// # Errors
/// Options out of range, and every error of loading or running a model.
pub fn bench(
    models: &[BenchModel<'_>],
    options: &BenchOptions,
    observer: &mut BenchObserver<'_>,
) -> Result<BenchReport> {
    options.validate()?;
    let mut limits = Limits::default();
    let models = models.iter().map(|model| run::measure(model, options, &mut limits, observer));
    let models = models.collect::<Result<_>>()?;
    Ok(BenchReport { machine: Machine::new(&limits), models })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{checkpoint, demos};

    fn run(options: &BenchOptions) -> Result<(BenchReport, Vec<String>)> {
        let load = || Ok(Lance::new(checkpoint())?);
        let models = [BenchModel { name: "a".into(), load: Box::new(load) }];
        let mut begun = Vec::new();
        let report = bench(&models, options, &mut |event| {
            if let BenchEvent::Begin(what) = event {
                begun.push(what.to_owned());
            }
        })?;
        Ok((report, begun))
    }

    #[test]
    fn parts_and_cases_are_measured_beside_limits() {
        let options = BenchOptions {
            parts: vec![BenchPart::Prefill],
            cases: Some(demos().limited(1)),
            case_tokens: 2,
            ..BenchOptions::quick()
        };
        let (report, begun) = run(&BenchOptions { repeats: 2, ..options }).unwrap();
        assert_eq!(begun, ["prompts of 512 tokens", "prompts of 1024 tokens", "answers"]);
        let [model] = report.models.as_slice() else { panic!("one model") };
        assert_eq!((model.rows.len(), model.cases.len(), model.quantized), (2, 1, false));
        let row = &model.rows[0];
        assert!(row.min > 0.0 && row.min <= row.median && row.median <= row.max, "{row:?}");
        assert!(row.share.is_some_and(|share| share.of == "bf16 peak" && share.median > 0.0));
        assert!(report.machine.threads > 0 && report.machine.limits.len() == 1, "{:?}", report.machine);
        assert!(model.cases[0].tokens <= 2 && model.cases[0].seconds > model.cases[0].prompt_seconds);
    }

    #[test]
    fn options_out_of_range_are_refused() {
        let none = |options: BenchOptions| run(&options).unwrap_err().to_string();
        let quick = BenchOptions::quick;
        assert_eq!(
            none(BenchOptions { repeats: 0, ..quick() }),
            "option repeats: expected at least 1, found 0"
        );
        assert_eq!(none(BenchOptions { steps: 0, ..quick() }), "option steps: expected at least 1, found 0");
        let empty = Some(Dataset::default());
        assert_eq!(
            none(BenchOptions { cases: empty, ..quick() }),
            "option cases: expected questions, found none"
        );
    }
}
