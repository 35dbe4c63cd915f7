//! The loop that turns logits into an answer, one token at a time.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use candle_core::Tensor;
use lance_mm_models::{Cache, Cursor, Llm};

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
        let mut sampler = Sampler::new(&options.sampling, self.tokenizer.vocab_limit())?;
        let mut stream = TextStream::new(self.tokenizer);
        let mut stops = StopStrings::new(options.stop.clone())?;
        let mut normed = normed;
        let mut ids: Vec<u32> = Vec::new();
        let mut text = String::new();
        let finish = loop {
            let logits = self.llm.logits(&normed)?.flatten_all()?.to_vec1::<f32>().map_err(Error::from)?;
            let id = sampler.pick(&logits, &ids).map_err(|error| at_step(error, ids.len()))?;
            ids.push(id);
            if self.stop_ids.contains(&id) {
                break Finish::StopToken;
            }
            let scan = stops.push(&stream.push(id));
            let flow = emit(&scan.text, &mut text, sink);
            if scan.stopped {
                break Finish::StopString;
            }
            if flow.is_break() {
                break Finish::Interrupted;
            }
            if ids.len() == options.max_new_tokens {
                break Finish::Length;
            }
            normed = self.llm.step(id, at, cache)?;
            at = Cursor { rows: at.rows + 1, position: at.position + 1 };
        };
        if matches!(finish, Finish::StopToken | Finish::Length) {
            // The tail may hold a stop string yet.
            let scan = stops.push(&stream.finish());
            let rest = if scan.stopped { String::new() } else { stops.finish() };
            // Nothing is generated any more, so a wish to stop changes nothing.
            let _ = emit(&(scan.text + &rest), &mut text, sink);
        }
        let seed = (options.sampling.temperature > 0.0).then(|| sampler.seed());
        Ok(Decoded { text, ids, finish, seed, time: start.elapsed() })
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
