//! The steps of an answer one at a time: time, and the least that each reads and computes.
//!
//! Each function measures once; [`bench()`](super::bench()) repeats them beside the [roofline]. Times of one run can be
//! compared, those of different runs often not.

use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use lance_mm_image::{RgbImage, Size};
use lance_mm_models::{Cache, Cursor, Grid, NextToken, Segment, Sequence};
use lance_mm_tensor::{in_thread_pool, read_values, roofline};

use crate::error::{Error, Result};
use lance_mm_pipelines::DecodeOptions;
use lance_mm_pipelines::{AskOptions, Content, Lance};
use lance_mm_pipelines::{Sampler, Sampling};

/// A measured step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTiming {
    /// Wall-clock time.
    pub time: Duration,
    /// Tokens, or patches of the vision encoder.
    pub tokens: usize,
    /// Least bytes of weights and KV cache to read.
    pub bytes: f64,
    /// Operations of matmuls and attention; a multiplication and its addition are two.
    pub flops: f64,
}

/// Prefills a prompt of `tokens` tokens of text and picks the token after it.
///
/// # Errors
/// More tokens than the model can hold, or none.
pub fn prefill(lance: &Lance, tokens: usize) -> Result<StepTiming> {
    let mut run = Run::new(lance, tokens)?;
    let start = Instant::now();
    run.prefill(tokens)?;
    let time = start.elapsed();
    Ok(StepTiming {
        time,
        tokens,
        bytes: lance.llm().step_bytes() as f64,
        flops: lance.llm().flops(tokens, 0),
    })
}

/// Tokens generated one by one after a context.
pub struct Decode<'a> {
    run: Run<'a>,
    id: u32,
}

impl<'a> Decode<'a> {
    /// Begins after `context` tokens. Only the first few are computed, the rest repeats them: the time does not
    /// depend on the values in the cache.
    ///
    /// # Errors
    /// A context longer than the model can hold, or none.
    pub fn new(lance: &'a Lance, context: usize) -> Result<Self> {
        const COMPUTED: usize = 64;
        let mut run = Run::new(lance, context)?;
        let id = run.prefill(context.min(COMPUTED))?;
        run.cache.repeat_to(context)?;
        run.at = Cursor { rows: context, position: context as u32 };
        Ok(Self { run, id })
    }

    /// Generates `steps` tokens, then forgets them.
    ///
    /// # Errors
    /// More than the model can hold together with the context.
    pub fn run(&mut self, steps: usize) -> Result<StepTiming> {
        let (lance, begin) = (self.run.lance, self.run.at);
        fits(lance, begin.rows + steps)?;
        let start = Instant::now();
        let mut id = self.id;
        for _ in 0..steps {
            id = self.run.step(id)?;
        }
        let time = start.elapsed();
        self.run.cache.truncate(begin.rows)?;
        self.run.at = begin;
        let per_step = lance.llm().step_bytes() + self.run.cache.row_bytes()?;
        let flops = (0..steps).map(|step| lance.llm().flops(1, begin.rows + step)).sum();
        Ok(StepTiming { time, tokens: steps, bytes: (steps * per_step) as f64, flops })
    }
}

/// Speed of reading the weights of a step and nothing else, bytes a second. They are pages of the system's file cache,
/// which may be read faster or slower than other memory.
pub fn read_weights(lance: &Lance) -> f64 {
    roofline::read(&lance.llm().step_weights())
}

/// Tokens of several sequences of one length, a token of each in every step.
pub struct Batch<'a> {
    lance: &'a Lance,
    caches: Vec<Cache>,
    at: Cursor,
    id: u32,
    sampler: Sampler,
}

impl<'a> Batch<'a> {
    /// Begins with `sequences` sequences after `context` tokens each, as [`Decode::new`] does.
    ///
    /// # Errors
    /// As [`Decode::new`]; no sequences.
    pub fn new(lance: &'a Lance, context: usize, sequences: usize) -> Result<Self> {
        if sequences == 0 {
            return Err(Error::option("sequences", "at least 1", 0));
        }
        let Decode { run: Run { cache, at, sampler, .. }, id } = Decode::new(lance, context)?;
        let mut caches = Vec::with_capacity(sequences);
        for _ in 1..sequences {
            caches.push(cache.fork()?);
        }
        caches.push(cache);
        Ok(Self { lance, caches, at, id, sampler })
    }

    /// Generates `steps` tokens of each sequence, then forgets them.
    ///
    /// # Errors
    /// More than the model can hold together with the context.
    pub fn run(&mut self, steps: usize) -> Result<StepTiming> {
        let (lance, n) = (self.lance, self.caches.len());
        fits(lance, self.at.rows + steps)?;
        let start = Instant::now();
        let mut ids = vec![self.id; n];
        for step in 0..steps {
            let at = Cursor { rows: self.at.rows + step, position: self.at.position + step as u32 };
            let next = |(cache, id): (_, &u32)| NextToken { id: *id, start: at, cache };
            let steps = self.caches.iter_mut().zip(&ids).map(next).collect();
            let logits = in_thread_pool(|| lance.llm().logits(&lance.llm().step_all(steps)?))?;
            let width = lance.config().vocab_size;
            read_values(&logits, |logits| -> Result<()> {
                for (id, logits) in ids.iter_mut().zip(logits.chunks(width)) {
                    *id = self.sampler.pick(logits, &[])?;
                }
                Ok(())
            })??;
        }
        let time = start.elapsed();
        self.caches.iter_mut().try_for_each(|cache| cache.truncate(self.at.rows))?;
        let cached = self.caches[0].row_bytes()? * n;
        let flops: f64 = (0..steps).map(|step| lance.llm().flops(1, self.at.rows + step)).sum();
        let bytes = (steps * (lance.llm().step_bytes() + cached)) as f64;
        Ok(StepTiming { time, tokens: steps * n, bytes, flops: flops * n as f64 })
    }
}

/// Runs the vision encoder over a square image of `side` by `side` patches.
///
/// # Errors
/// No vision encoder; a side that is no multiple of its merge size.
pub fn vit(lance: &Lance, side: usize) -> Result<StepTiming> {
    let vit = lance.vit()?;
    let grid = Grid { t: 1, h: side, w: side };
    let n = grid.count() * vit.config().patch_width();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
    let patches = Tensor::from_vec(values, (grid.count(), vit.config().patch_width()), &Device::Cpu)
        .map_err(lance_mm_tensor::Error::from)?;
    let start = Instant::now();
    vit.forward(&patches, &[grid])?.device().synchronize().map_err(lance_mm_tensor::Error::from)?;
    let (time, flops) = (start.elapsed(), vit.flops(grid));
    Ok(StepTiming { time, tokens: grid.count(), bytes: 0.0, flops })
}

/// Times to the first token of two questions about one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwoQuestions {
    /// From the decoded image to the first token of an answer.
    pub first: Duration,
    /// The part of the vision encoder.
    pub encode: Duration,
    /// From the second question on the same context to the first token of its answer.
    pub second: Duration,
    /// Tokens of the first prompt.
    pub prompt_tokens: usize,
}

/// Asks two questions about an image.
///
/// # Errors
/// As [`Lance::image_context`].
pub fn two_questions(lance: &Lance, image: &RgbImage, questions: [&str; 2]) -> Result<TwoQuestions> {
    let decode = DecodeOptions { max_new_tokens: 1, ..DecodeOptions::default() };
    let options = AskOptions { decode, ..AskOptions::default() };
    let start = Instant::now();
    let visual = lance.encode_image(image, &options)?;
    let encode = visual.time();
    let mut context = lance.image_context(&[visual], &options)?;
    let mut ask = |question| context.ask(question, &options);
    let prompt_tokens = ask(questions[0])?.prompt_tokens;
    let first = start.elapsed();
    let start = Instant::now();
    ask(questions[1])?;
    Ok(TwoQuestions { first, encode, second: start.elapsed(), prompt_tokens })
}

/// Asks one question about an image and generates up to `tokens` tokens of the answer, as `ask` does.
///
/// # Errors
/// As [`Lance::answer`].
pub fn question(lance: &Lance, image: &RgbImage, question: &str, tokens: usize) -> Result<Duration> {
    let decode = DecodeOptions { max_new_tokens: tokens, ..DecodeOptions::default() };
    let options = AskOptions { decode, ..AskOptions::default() };
    let start = Instant::now();
    let visual = lance.encode_image(image, &options)?;
    let message = [Content::Features(&visual), Content::Text(question)];
    lance.answer(&message, &options)?;
    Ok(start.elapsed())
}

/// A synthetic image of smooth colours, `side` pixels high and wide.
///
/// # Errors
/// A side of 0.
pub fn test_image(side: u32) -> Result<RgbImage> {
    let value = |i: u32| (128.0 + 100.0 * (f64::from(i) * 0.01).sin()) as u8;
    let pixels =
        (0..side * side).flat_map(|i| [value(i % side), value(i / side), value(i % side + i / side)]);
    Ok(lance_mm_image::from_raw(Size { width: side, height: side }, pixels.collect())?)
}

/// A cache that is filled with text.
struct Run<'a> {
    lance: &'a Lance,
    cache: Cache,
    at: Cursor,
    sampler: Sampler,
}

impl<'a> Run<'a> {
    fn new(lance: &'a Lance, rows: usize) -> Result<Self> {
        if rows == 0 {
            return Err(Error::option("tokens", "at least 1", 0));
        }
        fits(lance, rows)?;
        let sampler = Sampler::new(&Sampling::default(), lance.tokenizer().vocab_limit())?;
        Ok(Self { lance, cache: lance.llm().cache(), at: Cursor::default(), sampler })
    }

    fn prefill(&mut self, rows: usize) -> Result<u32> {
        let vocab = self.lance.tokenizer().vocab_limit();
        let ids = (0..rows as u32).map(|i| i.wrapping_mul(7919) % vocab).collect();
        let llm = self.lance.llm();
        let sequence = Sequence::new(&[Segment::Text(ids)], &llm.config().layout(), self.at);
        let prompt = || llm.logits(&llm.prefill(&llm.embed(&sequence, &[])?, &sequence, &mut self.cache)?);
        let logits = in_thread_pool(prompt)?;
        self.at = sequence.end();
        self.pick(&logits)
    }

    fn step(&mut self, id: u32) -> Result<u32> {
        let llm = self.lance.llm();
        let logits = in_thread_pool(|| llm.logits(&llm.step(id, self.at, &mut self.cache)?))?;
        self.at = Cursor { rows: self.at.rows + 1, position: self.at.position + 1 };
        self.pick(&logits)
    }

    fn pick(&mut self, logits: &Tensor) -> Result<u32> {
        Ok(read_values(logits, |logits| self.sampler.pick(logits, &[]))??)
    }
}

fn fits(lance: &Lance, rows: usize) -> Result<()> {
    match lance.config().max_position_embeddings {
        max if rows <= max => Ok(()),
        max => Err(Error::option("tokens", format!("at most {max} tokens in all"), rows)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::checkpoint;

    #[test]
    fn every_step_is_measured() {
        let lance = Lance::new(checkpoint()).unwrap();
        let step = prefill(&lance, 20).unwrap();
        assert_eq!((step.tokens, step.bytes), (20, lance.llm().step_bytes() as f64));
        assert!(step.time > Duration::ZERO && step.flops > 1e6);

        let mut decode = Decode::new(&lance, 200).unwrap();
        let (one, three) = (decode.run(1).unwrap(), decode.run(3).unwrap());
        assert_eq!((one.bytes * 3.0, three.tokens), (three.bytes, 3));
        assert!(one.bytes > step.bytes && three.flops > 2.9 * one.flops);

        let four = Batch::new(&lance, 200, 4).unwrap().run(2).unwrap();
        assert_eq!((four.tokens, four.flops), (8, 4.0 * decode.run(2).unwrap().flops));
        assert!(four.bytes < 4.0 * decode.run(2).unwrap().bytes);

        let seen = vit(&lance, 12).unwrap();
        assert_eq!(seen.tokens, 144);

        let image = test_image(100).unwrap();
        let two = two_questions(&lance, &image, ["What is it?", "What colour?"]).unwrap();
        assert!(two.first > two.encode && two.second > Duration::ZERO, "{two:?}");
        assert!(question(&lance, &image, "What is it?", 2).unwrap() > Duration::ZERO);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let lance = Lance::new(checkpoint()).unwrap();
        let max = lance.config().max_position_embeddings;
        for error in [prefill(&lance, 0).err(), prefill(&lance, max + 1).err(), Decode::new(&lance, 0).err()]
        {
            assert!(error.unwrap().to_string().starts_with("option tokens: expected at "));
        }
        assert!(Decode::new(&lance, 8).unwrap().run(max).is_err());
        assert!(Batch::new(&lance, 8, 2).unwrap().run(max).is_err() && Batch::new(&lance, 8, 0).is_err());
        assert!(vit(&lance, 13).is_err());
    }
}
