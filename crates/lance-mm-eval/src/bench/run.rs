//! The measurements on one model, in their order.

use std::time::{Duration, Instant};

use lance_mm_pipelines::Lance;
use lance_mm_tensor::device_name;

use super::machine::{BANDWIDTH, Limits};
use super::measurement::Measurement;
use super::steps::{self, StepTiming, TwoQuestions};
use super::{BenchEvent, BenchModel, BenchObserver, BenchOptions, BenchPart, ModelSpeed, answers, soak};
use crate::error::Result;
use crate::memory;

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

/// Measures one model; the limits it is compared with are added to `limits`.
pub(super) fn measure(
    model: &BenchModel<'_>,
    options: &BenchOptions,
    limits: &mut Limits,
    observer: &mut BenchObserver<'_>,
) -> Result<ModelSpeed> {
    limits.release();
    let watch = options.parts.contains(&BenchPart::Ask).then(memory::Watch::start);
    let start = Instant::now();
    let lance = (model.load)()?;
    let load_time = start.elapsed();
    let mut run = Run { lance: &lance, options, limits, observer, rows: Vec::new() };
    if let Some(watch) = watch {
        run.memory(watch)?;
        run.loads(load_time, &model.load)?;
        run.questions()?;
    }
    for part in &options.parts {
        match part {
            BenchPart::Ask => {}
            BenchPart::Decode => run.decode()?,
            BenchPart::Batch => run.batch()?,
            BenchPart::Prefill => run.prefill()?,
            BenchPart::Vit => run.vit()?,
        }
    }
    let cases = match &options.cases {
        Some(data) => {
            run.begin("answers");
            answers::measure(&lance, data, options.case_tokens)?
        }
        None => Vec::new(),
    };
    let soak = match &options.soak {
        Some(options) => {
            Some(soak(&lance, options, &mut |done, all| (run.observer)(BenchEvent::Soak(done, all)))?)
        }
        None => None,
    };
    Ok(ModelSpeed {
        name: model.name.clone(),
        device: device_name(lance.device()),
        quantized: lance.is_quantized(),
        rows: run.rows,
        cases,
        soak,
    })
}

/// Measurements on a loaded model.
struct Run<'a, 'o> {
    lance: &'a Lance,
    options: &'a BenchOptions,
    limits: &'a mut Limits,
    observer: &'a mut BenchObserver<'o>,
    rows: Vec<Measurement>,
}

impl Run<'_, '_> {
    /// The first question after loading, watched since before that.
    fn memory(&mut self, watch: memory::Watch) -> Result<()> {
        self.begin("memory");
        let image = steps::test_image(QUESTION_IMAGE_SIDE)?;
        let time = steps::question(self.lance, &image, QUESTIONS[0], 8)?;
        self.push(Measurement::new("first question, 8 tokens", "s", vec![time.as_secs_f64()]));
        let Some(most) = watch.finish() else {
            (self.observer)(BenchEvent::MemoryUnknown);
            return Ok(());
        };
        for (what, bytes) in [
            ("peak memory", most.peak),
            ("peak memory, anonymous", most.anonymous),
            ("peak memory, mapped files", most.file),
        ] {
            self.push(Measurement::new(what, "GB", vec![bytes as f64 / 1e9]));
        }
        Ok(())
    }

    fn loads(&mut self, first: Duration, load: impl Fn() -> Result<Lance>) -> Result<()> {
        self.begin("loading");
        let mut times = vec![first.as_secs_f64()];
        for _ in 1..self.options.repeats {
            let start = Instant::now();
            load()?;
            times.push(start.elapsed().as_secs_f64());
        }
        self.push(Measurement::new("load", "s", times));
        Ok(())
    }

    fn questions(&mut self) -> Result<()> {
        self.begin("questions");
        let image = steps::test_image(QUESTION_IMAGE_SIDE)?;
        let found = self.repeat(|run| steps::two_questions(run.lance, &image, QUESTIONS))?;
        let seconds = |of: fn(&TwoQuestions) -> f64| found.iter().map(of).collect::<Vec<f64>>();
        self.push(Measurement::new("time to first token", "s", seconds(|f| f.first.as_secs_f64())));
        self.push(Measurement::new(
            "time to first token, second question",
            "s",
            seconds(|f| f.second.as_secs_f64()),
        ));
        let ratio = seconds(|f| f.second.as_secs_f64() / f.first.as_secs_f64());
        self.push(Measurement::new("second question to first", "ratio", ratio));
        Ok(())
    }

    fn decode(&mut self) -> Result<()> {
        for context in CONTEXTS {
            self.begin(&format!("decode after {context} tokens"));
            let mut decode = steps::Decode::new(self.lance, context)?;
            decode.run(1)?;
            let steps = self.options.steps;
            let found = self.repeat(|run| {
                let (step, limit) = run.beside(Limits::bandwidth, || decode.run(steps))?;
                Ok((step, step.bytes / step.time.as_secs_f64() / limit))
            })?;
            let row = rates(format!("decode after {context} tokens"), "tokens/s", &found);
            self.push_share(row, BANDWIDTH, found.iter().map(|(_, share)| *share));
        }
        if self.lance.device().is_cpu() { self.weights() } else { Ok(()) }
    }

    /// Speed of reading the weights of a step from where they are mapped, and decode relative to that.
    fn weights(&mut self) -> Result<()> {
        self.begin("reading weights");
        let mut decode = steps::Decode::new(self.lance, CONTEXTS[0])?;
        decode.run(1)?;
        let steps = self.options.steps;
        let found = self.repeat(|run| {
            let lance = run.lance;
            let ((before, step, after), limit) = run.beside(Limits::bandwidth, || {
                Ok((steps::read_weights(lance), decode.run(steps)?, steps::read_weights(lance)))
            })?;
            let read = (before + after) / 2.0;
            Ok((read, read / limit, step.bytes / step.time.as_secs_f64() / read))
        })?;
        let row = Measurement::new(
            "weights of a step, read",
            "GB/s",
            found.iter().map(|(read, ..)| read / 1e9).collect(),
        );
        self.push_share(row, BANDWIDTH, found.iter().map(|(_, share, _)| *share));
        let ratios = found.iter().map(|(.., ratio)| *ratio).collect();
        self.push(Measurement::new("decode to reading its weights", "ratio", ratios));
        Ok(())
    }

    fn batch(&mut self) -> Result<()> {
        self.begin("several sequences");
        let mut one = steps::Decode::new(self.lance, CONTEXTS[0])?;
        let mut many = steps::Batch::new(self.lance, CONTEXTS[0], SEQUENCES)?;
        many.run(1)?;
        let steps = self.options.steps;
        let found = self.repeat(|_| Ok((one.run(steps)?, many.run(steps)?)))?;
        let rate = |step: &StepTiming| step.tokens as f64 / step.time.as_secs_f64();
        let rates = found.iter().map(|(_, many)| rate(many)).collect();
        self.push(Measurement::new(format!("decode of {SEQUENCES} sequences"), "tokens/s", rates));
        let ratios = found.iter().map(|(one, many)| rate(many) / rate(one)).collect();
        self.push(Measurement::new(format!("{SEQUENCES} sequences to one"), "ratio", ratios));
        Ok(())
    }

    fn prefill(&mut self) -> Result<()> {
        let int8 = self.lance.is_quantized();
        let of = if int8 { "int8 peak" } else { "bf16 peak" };
        for tokens in PROMPTS {
            self.begin(&format!("prompts of {tokens} tokens"));
            let found = self.repeat(|run| {
                let lance = run.lance;
                let limit = if int8 { Limits::int8 } else { Limits::bf16 };
                let (step, limit) = run.beside(limit, || steps::prefill(lance, tokens))?;
                Ok((step, step.flops / step.time.as_secs_f64() / limit))
            })?;
            let row = rates(format!("prompt of {tokens} tokens"), "tokens/s", &found);
            self.push_share(row, of, found.iter().map(|(_, share)| *share));
        }
        Ok(())
    }

    fn vit(&mut self) -> Result<()> {
        let patch = self.lance.vit()?.config().patch_size;
        for side in IMAGE_SIDES {
            self.begin(&format!("the vision encoder at {side} x {side}"));
            let found = self.repeat(|run| {
                let lance = run.lance;
                let (step, limit) = run.beside(Limits::bf16, || steps::vit(lance, side / patch))?;
                Ok((step, step.flops / step.time.as_secs_f64() / limit))
            })?;
            let times = found.iter().map(|(step, _)| step.time.as_secs_f64()).collect();
            let row = Measurement::new(format!("vision encoder, {side} x {side} pixels"), "s", times);
            self.push_share(row, "bf16 peak", found.iter().map(|(_, share)| *share));
        }
        Ok(())
    }

    /// A step's result, and the mean of a limit right before and right after it.
    fn beside<T>(
        &mut self,
        limit: fn(&mut Limits) -> f64,
        step: impl FnOnce() -> Result<T>,
    ) -> Result<(T, f64)> {
        let before = limit(self.limits);
        let step = step()?;
        Ok((step, (before + limit(self.limits)) / 2.0))
    }

    fn repeat<T>(&mut self, mut once: impl FnMut(&mut Self) -> Result<T>) -> Result<Vec<T>> {
        (0..self.options.repeats).map(|_| once(self)).collect()
    }

    /// A row with its share of a limit, which is the CPU's.
    fn push_share(&mut self, row: Measurement, of: &'static str, shares: impl Iterator<Item = f64>) {
        let cpu = self.lance.device().is_cpu();
        self.push(if cpu { row.with_share(of, shares.collect()) } else { row });
    }

    fn begin(&mut self, what: &str) {
        (self.observer)(BenchEvent::Begin(what));
    }

    fn push(&mut self, row: Measurement) {
        self.rows.push(row);
    }
}

/// Tokens a second of each step.
fn rates(what: String, unit: &'static str, found: &[(StepTiming, f64)]) -> Measurement {
    let rate = |(step, _): &(StepTiming, f64)| step.tokens as f64 / step.time.as_secs_f64();
    Measurement::new(what, unit, found.iter().map(rate).collect())
}
