//! The loop that turns logits into an answer, one token at a time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use lance_mm_models::{Cache, Cursor, Llm, NextToken};
use lance_mm_tensor::{StopFlag, in_thread_pool, read_values, with_autorelease_pool};

use crate::error::{Error, Result};
use crate::sampling::{Sampler, Sampling};
use crate::tokenizer::{StopStrings, TextStream, Tokenizer};

/// Length, sampling and stop strings of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodeOptions {
    /// Tokens generated at most, the stop token included; at least 1.
    pub max_new_tokens: usize,
    /// Sampling of tokens; greedy by default.
    pub sampling: Sampling,
    /// Texts that end the answer and are no part of it.
    pub stop_strings: Vec<String>,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        Self { max_new_tokens: 256, sampling: Sampling::default(), stop_strings: Vec::new() }
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// The model generated a stop token.
    StopToken,
    /// A stop string was generated.
    StopString,
    /// `max_new_tokens` were generated.
    Length,
    /// The stop flag was set, or the callback asked to stop.
    Interrupted,
}

/// Its [`name`](FinishReason::name).
impl serde::Serialize for FinishReason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl FinishReason {
    /// `stop`, `length` or `interrupted`: the words of OpenAI's API where it has one.
    pub fn name(self) -> &'static str {
        match self {
            Self::StopToken | Self::StopString => "stop",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
        }
    }
}

/// Receives the text of an answer as it is generated; ends it by returning `Break`.
pub(crate) type OnText<'a> = dyn FnMut(&str) -> ControlFlow<()> + 'a;

/// As [`OnText`], for several answers, with the index of the one that a piece belongs to.
pub(crate) type OnTextOf<'a> = dyn FnMut(usize, &str) -> ControlFlow<()> + 'a;

/// Result of the loop.
pub(crate) struct Decoded {
    pub(crate) text: String,
    pub(crate) ids: Vec<u32>,
    pub(crate) finish_reason: FinishReason,
    pub(crate) seed: Option<u64>,
    pub(crate) time: Duration,
}

/// The parts of a model that the loop needs.
pub(crate) struct Decoder<'a> {
    pub(crate) llm: &'a Llm,
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) stop_ids: &'a [u32],
}

impl Decoder<'_> {
    /// Refuses what could not be generated, before anything is computed.
    pub(crate) fn check(&self, options: &DecodeOptions, prompt_len: usize) -> Result<()> {
        options.sampling.validate()?;
        StopStrings::new(options.stop_strings.clone())?;
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

    /// Generates the answer to a prompt. Each token but the last is fed back, so that the cache ends before the
    /// last one.
    pub(crate) fn run(
        &self,
        prompt: Prefilled<'_>,
        options: &DecodeOptions,
        stop_flag: &StopFlag,
        on_text: &mut OnText<'_>,
    ) -> Result<Decoded> {
        let Prefilled { hidden, mut at, cache } = prompt;
        let start = Instant::now();
        let mut reply = Reply::new(self, options, stop_flag)?;
        let mut logits = with_autorelease_pool(|| self.llm.logits(&hidden))?;
        let finish_reason = loop {
            if let Some(reason) = read_values(&logits, |logits| reply.take(logits, on_text))?? {
                break reason;
            }
            let id = reply.last();
            logits = in_thread_pool(|| self.llm.logits(&self.llm.step(id, at, cache)?))?;
            at = next(at);
        };
        Ok(reply.finish(finish_reason, start.elapsed(), on_text))
    }

    /// As [`run`](Self::run) for several prompts that go on side by side, in one pass over the weights a token.
    /// Answers end when they end; the others go on. `on_text` gets the index of the answer that a piece belongs to.
    pub(crate) fn run_all(
        &self,
        prompts: Vec<Prefilled<'_>>,
        options: &DecodeOptions,
        stop_flag: &StopFlag,
        on_text: &mut OnTextOf<'_>,
    ) -> Result<Vec<Decoded>> {
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let start = Instant::now();
        let mut decoded: Vec<Option<Decoded>> = prompts.iter().map(|_| None).collect();
        let mut active = Vec::with_capacity(prompts.len());
        for (index, prompt) in prompts.into_iter().enumerate() {
            active.push((index, Reply::new(self, options, stop_flag)?, prompt));
        }
        let rows: Vec<&Tensor> = active.iter().map(|(_, _, prompt)| &prompt.hidden).collect();
        let mut logits =
            with_autorelease_pool(|| -> Result<_> { Ok(self.llm.logits(&Tensor::cat(&rows, 0)?)?) })?;
        loop {
            let width = logits.dim(1)?;
            active = read_values(&logits, |logits| -> Result<_> {
                let mut going_on = Vec::with_capacity(active.len());
                for ((index, mut reply, prompt), logits) in active.into_iter().zip(logits.chunks(width)) {
                    let mut on_text = |piece: &str| on_text(index, piece);
                    match reply.take(logits, &mut on_text)? {
                        Some(reason) => {
                            decoded[index] = Some(reply.finish(reason, start.elapsed(), &mut on_text));
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
    /// Hidden state of its last token after the final norm, f32 `(1, D)`.
    pub(crate) hidden: Tensor,
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
    stop_flag: &'a StopFlag,
    options: &'a DecodeOptions,
    ids: Vec<u32>,
    text: String,
}

impl<'a> Reply<'a> {
    fn new(decoder: &Decoder<'a>, options: &'a DecodeOptions, stop_flag: &'a StopFlag) -> Result<Self> {
        Ok(Self {
            sampler: Sampler::new(&options.sampling, decoder.tokenizer.vocab_limit())?,
            stream: TextStream::new(decoder.tokenizer),
            stops: StopStrings::new(options.stop_strings.clone())?,
            stop_ids: decoder.stop_ids,
            stop_flag,
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
    fn take(&mut self, logits: &[f32], on_text: &mut OnText<'_>) -> Result<Option<FinishReason>> {
        let id = self.sampler.pick(logits, &self.ids).map_err(|error| at_step(error, self.ids.len()))?;
        self.ids.push(id);
        if self.stop_ids.contains(&id) {
            return Ok(Some(FinishReason::StopToken));
        }
        let scan = self.stops.push(&self.stream.push(id));
        let flow = emit(&scan.text, &mut self.text, on_text);
        Ok(if scan.stopped {
            Some(FinishReason::StopString)
        } else if flow.is_break() || self.stop_flag.is_stopped() {
            Some(FinishReason::Interrupted)
        } else {
            (self.ids.len() == self.options.max_new_tokens).then_some(FinishReason::Length)
        })
    }

    fn finish(mut self, finish_reason: FinishReason, time: Duration, on_text: &mut OnText<'_>) -> Decoded {
        if matches!(finish_reason, FinishReason::StopToken | FinishReason::Length) {
            // The tail may hold a stop string yet.
            let scan = self.stops.push(&self.stream.finish());
            let rest = if scan.stopped { String::new() } else { self.stops.finish() };
            // Nothing is generated any more, so a wish to stop changes nothing.
            let _ = emit(&(scan.text + &rest), &mut self.text, on_text);
        }
        let seed = (self.options.sampling.temperature > 0.0).then(|| self.sampler.seed());
        Decoded { text: self.text, ids: self.ids, finish_reason, seed, time }
    }
}

fn emit(piece: &str, text: &mut String, on_text: &mut OnText<'_>) -> ControlFlow<()> {
    if piece.is_empty() {
        return ControlFlow::Continue(());
    }
    text.push_str(piece);
    on_text(piece)
}

fn at_step(error: Error, step: usize) -> Error {
    match error {
        Error::NotFinite { place, found } => {
            Error::NotFinite { place: format!("{place} at step {step}"), found }
        }
        other => other,
    }
}
