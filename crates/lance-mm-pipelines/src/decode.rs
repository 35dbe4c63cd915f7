//! The loop that turns logits into an answer, one token at a time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use lance_mm_models::{Cache, Cursor, Llm, NextToken};
use lance_mm_tensor::{in_thread_pool, read_values, with_autorelease_pool};

use crate::error::{Error, Result};
use crate::sampling::{Sampler, Sampling};
use crate::tokenizer::{StopStrings, TextStream, Tokenizer};

/// How an answer is generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoding {
    /// Tokens generated at most, the stop token included; at least 1.
    pub max_new_tokens: usize,
    /// How tokens are chosen; greedy by default.
    pub sampling: Sampling,
    /// Texts that end the answer and are no part of it.
    pub stop: Vec<String>,
}

impl Default for Decoding {
    fn default() -> Self {
        Self { max_new_tokens: 256, sampling: Sampling::default(), stop: Vec::new() }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finish {
    /// The model said so.
    StopToken,
    /// A stop string came up.
    StopString,
    /// `max_new_tokens` were generated.
    Length,
    /// The receiver of the text asked to stop.
    Interrupted,
}

impl Finish {
    /// `stop`, `length` or `interrupted`: the words of OpenAI's API where it has one.
    pub fn reason(self) -> &'static str {
        match self {
            Self::StopToken | Self::StopString => "stop",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Receives the answer as it comes into being; asks to stop by returning `Break`.
pub type Sink<'a> = dyn FnMut(&str) -> ControlFlow<()> + 'a;

/// As [`Sink`], for several answers: told which one a piece belongs to.
pub type SinkOf<'a> = dyn FnMut(usize, &str) -> ControlFlow<()> + 'a;

/// What the loop produced.
pub(crate) struct Decoded {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) finish: Finish,
    pub(crate) seed: Option<u64>,
    pub(crate) time: Duration,
}

/// What the loop needs of a model.
pub(crate) struct Decoder<'a> {
    pub(crate) llm: &'a Llm,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) stop_ids: &'a [u32],
}

impl Decoder<'_> {
    /// Refuses what could not be generated, before anything is computed.
    pub(crate) fn check(&self, options: &Decoding, prompt_len: usize) -> Result<()> {
        options.sampling.validate()?;
        StopStrings::new(options.stop.clone())?;
        if options.max_new_tokens == 0 {
            return Err(Error::option("max_new_tokens", "at least 1", 0));
        }
        let max = self.llm.config().max_position_embeddings;
        let total = prompt_len.saturating_add(options.max_new_tokens);
        if total > max {
            let found = format!("{prompt_len} tokens of prompt and {} new ones", options.max_new_tokens);
            return Err(Error::option("max_new_tokens", format!("at most {max} tokens in all"), found));
        }
        Ok(())
    }

    /// Generates from `normed`, the last row of the prompt after the final norm, f32 `(1, D)`. Each token
    /// but the last is fed back, so that the cache ends before the last one.
    pub(crate) fn run(
        &self,
        normed: Tensor,
        mut at: Cursor,
        cache: &mut Cache,
        options: &Decoding,
        sink: &mut Sink<'_>,
    ) -> Result<Decoded> {
        let start = Instant::now();
        let mut reply = Reply::new(self, options)?;
        let mut logits = with_autorelease_pool(|| self.llm.logits(&normed))?;
        let finish = loop {
            if let Some(finish) = read_values(&logits, |logits| reply.take(logits, sink))?? {
                break finish;
            }
            let id = reply.last();
            logits = in_thread_pool(|| self.llm.logits(&self.llm.step(id, at, cache)?))?;
            at = next(at);
        };
        Ok(reply.finish(finish, start.elapsed(), sink))
    }

    /// As [`run`](Self::run) for several prompts that go on side by side, in one pass over the weights a token.
    /// Answers end when they end; the others go on. `sink` is told which answer a piece belongs to.
    pub(crate) fn run_all(
        &self,
        prompts: Vec<Prefilled<'_>>,
        options: &Decoding,
        sink: &mut SinkOf<'_>,
    ) -> Result<Vec<Decoded>> {
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let start = Instant::now();
        let mut decoded: Vec<Option<Decoded>> = prompts.iter().map(|_| None).collect();
        let mut active = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.into_iter().enumerate() {
            active.push((index, Reply::new(self, options)?, prompt));
        }
        let rows: Vec<&Tensor> = active.iter().map(|(_, _, prompt)| &prompt.normed).collect();
        let mut logits =
            with_autorelease_pool(|| -> Result<_> { Ok(self.llm.logits(&Tensor::cat(&rows, 0)?)?) })?;
        loop {
            let width = logits.dim(1)?;
            active = read_values(&logits, |logits| -> Result<_> {
                let mut going_on = Vec::with_capacity(active.len());
                for ((index, mut reply, prompt), logits) in active.into_iter().zip(logits.chunks(width)) {
                    let mut sink = |piece: &str| sink(index, piece);
                    match reply.take(logits, &mut sink)? {
                        Some(finish) => {
                            decoded[index] = Some(reply.finish(finish, start.elapsed(), &mut sink));
                        }
                        None => going_on.push((index, reply, prompt)),
                    }
                }
                Ok(going_on)
            })??;
            if active.is_empty() {
                break;
            }
            let mut steps = Vec::with_capacity(active.len());
            for (_, reply, prompt) in &mut active {
                steps.push(NextToken { id: reply.last(), start: prompt.at, cache: prompt.cache });
                prompt.at = next(prompt.at);
            }
            logits = in_thread_pool(|| self.llm.logits(&self.llm.step_all(steps)?))?;
        }
        Ok(decoded.into_iter().flatten().collect())
    }
}

/// A prompt that was read into a cache.
pub(crate) struct Prefilled<'a> {
    /// Its last row after the final norm, f32 `(1, D)`.
    pub(crate) normed: Tensor,
    /// Where it ends.
    pub(crate) at: Cursor,
    pub(crate) cache: &'a mut Cache,
}

fn next(at: Cursor) -> Cursor {
    Cursor { rows: at.rows + 1, position: at.position + 1 }
}

/// An answer in the making.
struct Reply<'a> {
    sampler: Sampler,
    stream: TextStream<'a>,
    stops: StopStrings,
    stop_ids: &'a [u32],
    options: &'a Decoding,
    ids: Vec<u32>,
    text: String,
}

impl<'a> Reply<'a> {
    fn new(decoder: &Decoder<'a>, options: &'a Decoding) -> Result<Self> {
        Ok(Self {
            sampler: Sampler::new(&options.sampling, decoder.tokenizer.vocab_limit())?,
            stream: TextStream::new(decoder.tokenizer),
            stops: StopStrings::new(options.stop.clone())?,
            stop_ids: decoder.stop_ids,
            options,
            ids: Vec::new(),
            text: String::new(),
        })
    }

    /// The last token taken.
    fn last(&self) -> u32 {
        *self.ids.last().expect("asked for after a token was taken")
    }

    /// Chooses a token; why the answer ends with it, if it does.
    fn take(&mut self, logits: &[f32], sink: &mut Sink<'_>) -> Result<Option<Finish>> {
        let id = self.sampler.pick(logits, &self.ids).map_err(|error| at_step(error, self.ids.len()))?;
        self.ids.push(id);
        if self.stop_ids.contains(&id) {
            return Ok(Some(Finish::StopToken));
        }
        let scan = self.stops.push(&self.stream.push(id));
        let flow = emit(&scan.text, &mut self.text, sink);
        Ok(if scan.stopped {
            Some(Finish::StopString)
        } else if flow.is_break() {
            Some(Finish::Interrupted)
        } else {
            (self.ids.len() == self.options.max_new_tokens).then_some(Finish::Length)
        })
    }

    fn finish(mut self, finish: Finish, time: Duration, sink: &mut Sink<'_>) -> Decoded {
        if matches!(finish, Finish::StopToken | Finish::Length) {
            // The tail may hold a stop string yet.
            let scan = self.stops.push(&self.stream.finish());
            let rest = if scan.stopped { String::new() } else { self.stops.finish() };
            // Nothing is generated any more, so a wish to stop changes nothing.
            let _ = emit(&(scan.text + &rest), &mut self.text, sink);
        }
        let seed = (self.options.sampling.temperature > 0.0).then(|| self.sampler.seed());
        Decoded { text: self.text, ids: self.ids, finish, seed, time }
    }
}

fn emit(piece: &str, text: &mut String, sink: &mut Sink<'_>) -> ControlFlow<()> {
    if piece.is_empty() {
        return ControlFlow::Continue(());
    }
    text.push_str(piece);
    sink(piece)
}

fn at_step(error: Error, step: usize) -> Error {
    match error {
        Error::Logits(message) => Error::Logits(format!("{message} at step {step}")),
        other => other,
    }
}
