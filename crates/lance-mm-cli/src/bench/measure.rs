//! The measurements on one model, in their order.

use std::time::Duration;

use anyhow::Result;
use candle_core::Device;
use lance_mm::tensor::{ActivationPrecision, device_name};
use lance_mm::{Checkpoint, Lance};
use lance_mm_eval::Dataset;
use lance_mm_eval::bench::{self, StepTiming, TwoQuestions};
use lance_mm_eval::memory;
use serde::Serialize;

use super::cases::{self, CaseTime};
use super::machine::{BANDWIDTH, Limits};
use super::row::Row;
use super::{Args, Part};
use crate::model::{self, Model};
use crate::output::Hints;

const CONTEXTS: [usize; 2] = [64, 4096];
/// Sequences that are decoded together.
const SEQUENCES: usize = 8;
const PROMPTS: [usize; 2] = [512, 1024];
/// Sides of square images in pixels: a quarter of a megapixel, and one.
const IMAGE_SIDES: [usize; 2] = [504, 1008];
/// Side of the image of questions, as large as the published models take it.
const QUESTION_IMAGE_SIDE: u32 = 672;
/// Two questions of a usual length.
const QUESTIONS: [&str; 2] =
    ["What is the license plate number of the car?", "What colour is the car in front?"];

/// What is measured, and how often.
pub(super) struct Plan {
    parts: Vec<Part>,
    repeats: usize,
    /// Tokens generated in a repeat.
    steps: usize,
    /// Tokens of a case's answer at most.
    pub(super) answer: usize,
    /// Where networks run and what inputs of bf16 products count as.
    device: Device,
    activations: ActivationPrecision,
    /// Gives the memory of the vision encoder back after every image.
    low_memory: bool,
}

impl Plan {
    pub(super) fn new(args: &Args) -> Result<Self> {
        let all = [Part::Ask, Part::Decode, Part::Batch, Part::Prefill, Part::Vit];
        let wanted = |part: &Part| args.only.is_empty() || args.only.contains(part);
        let (repeats, steps, answer) = if args.quick { (1, 16, 32) } else { (3, 32, 256) };
        Ok(Self {
            parts: all.into_iter().filter(wanted).collect(),
            repeats,
            steps,
            answer,
            device: args.compute.open_device()?,
            activations: args.compute.activations(),
            low_memory: args.low_memory,
        })
    }
}

/// What was measured on one model.
#[derive(Serialize)]
pub(super) struct Measured {
    pub(super) name: String,
    /// cpu or metal.
    device: &'static str,
    quantized: bool,
    pub(super) rows: Vec<Row>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) cases: Vec<CaseTime>,
}

/// Measures one model; the limits it is compared with are added to `limits`.
pub(super) fn model(
    name: &str,
    plan: &Plan,
    data: Option<&Dataset>,
    limits: &mut Limits,
    hints: Hints,
) -> Result<Measured> {
    limits.release();
    let load = || -> Result<Model> {
        let onto =
            |checkpoint: Checkpoint| checkpoint.with_activations(plan.activations).with_device(&plan.device);
        let model = model::load_as(Some(name), Hints::new(true), onto)?;
        Ok(Model { lance: model.lance.with_low_memory(plan.low_memory), ..model })
    };
    let watch = plan.parts.contains(&Part::Ask).then(memory::Watch::start);
    let loaded = load()?;
    let lance = &loaded.lance;
    let mut run = Run { lance, plan, limits, hints, rows: Vec::new() };
    if let Some(watch) = watch {
        run.memory(watch)?;
        run.loads(loaded.time, load)?;
        run.questions()?;
    }
    for part in &plan.parts {
        match part {
            Part::Ask => {}
            Part::Decode => run.decode()?,
            Part::Batch => run.batch()?,
            Part::Prefill => run.prefill()?,
            Part::Vit => run.vit()?,
        }
    }
    let rows = run.rows;
    let cases = match data {
        Some(data) => cases::measure(&loaded, data, plan.answer, hints)?,
        None => Vec::new(),
    };
    let device = device_name(lance.device());
    Ok(Measured { quantized: lance.is_quantized(), name: loaded.name, device, rows, cases })
}

/// Measurements on a loaded model.
struct Run<'a> {
    lance: &'a Lance,
    plan: &'a Plan,
    limits: &'a mut Limits,
    hints: Hints,
    rows: Vec<Row>,
}

impl Run<'_> {
    /// The first question after loading, watched since before that.
    fn memory(&mut self, watch: memory::Watch) -> Result<()> {
        let _busy = self.hints.busy("measuring memory");
        let image = bench::test_image(QUESTION_IMAGE_SIDE)?;
        let time = bench::question(self.lance, &image, QUESTIONS[0], 8)?;
        self.push(Row::new("first question, 8 tokens", "s", vec![time.as_secs_f64()]));
        let Some(most) = watch.finish() else {
            self.hints.note("note: the system does not say how much memory is in use");
            return Ok(());
        };
        for (what, bytes) in [
            ("peak memory", most.peak),
            ("peak memory, anonymous", most.anonymous),
            ("peak memory, mapped files", most.file),
        ] {
            self.push(Row::new(what, "GB", vec![bytes as f64 / 1e9]));
        }
        Ok(())
    }

    fn loads(&mut self, first: Duration, load: impl Fn() -> Result<Model>) -> Result<()> {
        let _busy = self.hints.busy("measuring loading");
        let mut times = vec![first.as_secs_f64()];
        for _ in 1..self.plan.repeats {
            times.push(load()?.time.as_secs_f64());
        }
        self.push(Row::new("load", "s", times));
        Ok(())
    }

    fn questions(&mut self) -> Result<()> {
        let _busy = self.hints.busy("measuring questions");
        let image = bench::test_image(QUESTION_IMAGE_SIDE)?;
        let found = self.repeat(|run| Ok(bench::two_questions(run.lance, &image, QUESTIONS)?))?;
        let seconds = |of: fn(&TwoQuestions) -> f64| found.iter().map(of).collect::<Vec<f64>>();
        self.push(Row::new("time to first token", "s", seconds(|f| f.first.as_secs_f64())));
        self.push(Row::new("time to first token, second question", "s", seconds(|f| f.second.as_secs_f64())));
        let ratio = seconds(|f| f.second.as_secs_f64() / f.first.as_secs_f64());
        self.push(Row::new("second question to first", "ratio", ratio));
        Ok(())
    }

    fn decode(&mut self) -> Result<()> {
        for context in CONTEXTS {
            let _busy = self.hints.busy(&format!("measuring decode after {context} tokens"));
            let mut decode = bench::Decode::new(self.lance, context)?;
            decode.run(1)?;
            let steps = self.plan.steps;
            let found = self.repeat(|run| {
                let (step, limit) = run.beside(Limits::bandwidth, || decode.run(steps))?;
                Ok((step, step.bytes / step.time.as_secs_f64() / limit))
            })?;
            let row = rates(format!("decode after {context} tokens"), "tokens/s", &found);
            self.push_share(row, BANDWIDTH, found.iter().map(|(_, share)| *share));
        }
        match self.lance.device().is_cpu() {
            true => self.weights(),
            false => Ok(()),
        }
    }

    /// How fast the weights of a step are read where they lie, and how near to that decode comes.
    fn weights(&mut self) -> Result<()> {
        let _busy = self.hints.busy("measuring reading weights");
        let mut decode = bench::Decode::new(self.lance, CONTEXTS[0])?;
        decode.run(1)?;
        let steps = self.plan.steps;
        let found = self.repeat(|run| {
            let lance = run.lance;
            let ((before, step, after), limit) = run.beside(Limits::bandwidth, || {
                Ok((bench::read_weights(lance), decode.run(steps)?, bench::read_weights(lance)))
            })?;
            let read = (before + after) / 2.0;
            Ok((read, read / limit, step.bytes / step.time.as_secs_f64() / read))
        })?;
        let row =
            Row::new("weights of a step, read", "GB/s", found.iter().map(|(read, ..)| read / 1e9).collect());
        self.push_share(row, BANDWIDTH, found.iter().map(|(_, share, _)| *share));
        let ratios = found.iter().map(|(.., ratio)| *ratio).collect();
        self.push(Row::new("decode to reading its weights", "ratio", ratios));
        Ok(())
    }

    fn batch(&mut self) -> Result<()> {
        let _busy = self.hints.busy("measuring several sequences");
        let mut one = bench::Decode::new(self.lance, CONTEXTS[0])?;
        let mut many = bench::Batch::new(self.lance, CONTEXTS[0], SEQUENCES)?;
        many.run(1)?;
        let steps = self.plan.steps;
        let found = self.repeat(|_| Ok((one.run(steps)?, many.run(steps)?)))?;
        let rate = |step: &StepTiming| step.rows as f64 / step.time.as_secs_f64();
        let rates = found.iter().map(|(_, many)| rate(many)).collect();
        self.push(Row::new(format!("decode of {SEQUENCES} sequences"), "tokens/s", rates));
        let ratios = found.iter().map(|(one, many)| rate(many) / rate(one)).collect();
        self.push(Row::new(format!("{SEQUENCES} sequences to one"), "ratio", ratios));
        Ok(())
    }

    fn prefill(&mut self) -> Result<()> {
        let (of, int8) = match self.lance.is_quantized() {
            true => ("int8 peak", true),
            false => ("bf16 peak", false),
        };
        for rows in PROMPTS {
            let _busy = self.hints.busy(&format!("measuring prompts of {rows} tokens"));
            let found = self.repeat(|run| {
                let lance = run.lance;
                let limit = if int8 { Limits::int8 } else { Limits::bf16 };
                let (step, limit) = run.beside(limit, || bench::prefill(lance, rows))?;
                Ok((step, step.flops / step.time.as_secs_f64() / limit))
            })?;
            let row = rates(format!("prompt of {rows} tokens"), "tokens/s", &found);
            self.push_share(row, of, found.iter().map(|(_, share)| *share));
        }
        Ok(())
    }

    fn vit(&mut self) -> Result<()> {
        let patch = self.lance.vit()?.config().patch_size;
        for side in IMAGE_SIDES {
            let _busy = self.hints.busy(&format!("measuring the vision encoder at {side} x {side}"));
            let found = self.repeat(|run| {
                let lance = run.lance;
                let (step, limit) = run.beside(Limits::bf16, || bench::vit(lance, side / patch))?;
                Ok((step, step.flops / step.time.as_secs_f64() / limit))
            })?;
            let times = found.iter().map(|(step, _)| step.time.as_secs_f64()).collect();
            let row = Row::new(format!("vision encoder, {side} x {side} pixels"), "s", times);
            self.push_share(row, "bf16 peak", found.iter().map(|(_, share)| *share));
        }
        Ok(())
    }

    /// What a step gives, and the mean of a limit right before and right after it.
    fn beside<T>(
        &mut self,
        limit: fn(&mut Limits) -> f64,
        step: impl FnOnce() -> lance_mm_eval::Result<T>,
    ) -> Result<(T, f64)> {
        let before = limit(self.limits);
        let step = step()?;
        Ok((step, (before + limit(self.limits)) / 2.0))
    }

    fn repeat<T>(&mut self, mut once: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        (0..self.plan.repeats).map(|_| once(self)).collect()
    }

    /// A row with its share of a limit, which is the CPU's.
    fn push_share(&mut self, row: Row, of: &'static str, shares: impl Iterator<Item = f64>) {
        self.push(match self.lance.device().is_cpu() {
            true => row.with_share(of, shares.collect()),
            false => row,
        });
    }

    fn push(&mut self, row: Row) {
        self.rows.push(row);
    }
}

/// Rows of a step a second.
fn rates(what: String, unit: &'static str, found: &[(StepTiming, f64)]) -> Row {
    let rate = |(step, _): &(StepTiming, f64)| step.rows as f64 / step.time.as_secs_f64();
    Row::new(what, unit, found.iter().map(rate).collect())
}
