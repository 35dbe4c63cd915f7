//! A cache and the place in it: what one-off questions, image contexts and chats have in common.

use std::time::{Duration, Instant};

use candle_core::Tensor;
use lance_mm_models::{Cache, Cursor, Segment, Sequence};
use lance_mm_tensor::with_autorelease_pool;
use tracing::{debug, debug_span};

use super::{Answer, AskOptions, BlockAttention, never_stopping};
use crate::decode::{DecodeOptions, Decoder, OnTextOf, Prefilled};
use crate::error::{Error, Result};
use crate::model::Lance;

pub(super) struct Session {
    pub(super) lance: Lance,
    pub(super) cache: Cache,
    /// Where the cache ends.
    pub(super) at: Cursor,
    attention: BlockAttention,
    pub(super) prefill_time: Duration,
}

impl Session {
    pub(super) fn new(lance: &Lance, options: &AskOptions) -> Self {
        Self {
            cache: lance.llm().cache(),
            lance: lance.clone(),
            at: Cursor::default(),
            attention: options.block_attention,
            prefill_time: Duration::ZERO,
        }
    }

    /// A copy that goes on independently.
    pub(super) fn fork(&self) -> Result<Self> {
        Ok(Self { lance: self.lance.clone(), cache: self.cache.fork()?, ..*self })
    }

    /// Goes back to an earlier place; later tokens are forgotten.
    pub(super) fn rewind(&mut self, at: Cursor) -> Result<()> {
        self.cache.truncate(at.rows)?;
        self.at = at;
        Ok(())
    }

    /// Refuses a prompt that is too long, and decoding options out of range, before they cost anything.
    pub(super) fn check(&self, segments: &[Segment], decode: Option<&DecodeOptions>) -> Result<()> {
        let tokens = self.at.rows + segments.iter().map(Segment::n_tokens).sum::<usize>();
        let limit = self.lance.config().max_position_embeddings - 1;
        if tokens > limit {
            return Err(Error::PromptTooLong { tokens, limit });
        }
        decode.map_or(Ok(()), |decode| self.lance.decoder().check(decode, tokens))
    }

    fn sequence(&self, segments: &[Segment]) -> Sequence {
        let sequence = Sequence::new(segments, &self.lance.config().layout(), self.at);
        match self.attention {
            BlockAttention::Full => sequence,
            BlockAttention::Causal => sequence.causal(),
        }
    }

    /// Runs segments from where the cache ends: the last token's hidden state after the final norm, f32 `(1, D)`.
    pub(super) fn prefill(
        &mut self,
        segments: &[Segment],
        features: &[Tensor],
        options: &AskOptions,
    ) -> Result<Tensor> {
        let start = Instant::now();
        let sequence = self.sequence(segments);
        let _span = debug_span!("prefill", tokens = sequence.len(), context = self.at.rows).entered();
        let llm = self.lance.llm();
        let hidden = with_autorelease_pool(|| {
            let x = llm.embed(&sequence, features)?;
            llm.prefill_with_stop(&x, &sequence, &mut self.cache, &options.stop_flag)
        })?;
        hidden.device().synchronize()?;
        self.at = sequence.end();
        self.prefill_time = start.elapsed();
        Ok(hidden)
    }

    /// Runs text from where the cache ends: hidden states of its last `n` tokens after the final norm, f32 `(n, D)`.
    pub(super) fn last_hidden(&mut self, segments: &[Segment], n: usize) -> Result<Tensor> {
        let sequence = self.sequence(segments);
        let llm = self.lance.llm();
        let hidden = with_autorelease_pool(|| {
            let hidden = llm.forward(&llm.embed(&sequence, &[])?, &sequence, &mut self.cache)?;
            llm.norm(&hidden, &sequence)
        })?;
        self.at = sequence.end();
        Ok(hidden.narrow(0, sequence.len() - n, n)?)
    }

    /// Generates; the cache then ends before the last generated id.
    pub(super) fn decode(
        &mut self,
        hidden: Tensor,
        options: &AskOptions,
        on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        let prompt_tokens = self.at.rows;
        let _span = debug_span!("decode", context = prompt_tokens).entered();
        let prompt = Prefilled { hidden, at: self.at, cache: &mut self.cache };
        let decoded = self.lance.decoder().run(
            prompt,
            &options.decode,
            &options.stop_flag,
            &mut never_stopping(on_text),
        )?;
        debug!(tokens = decoded.ids.len(), reason = decoded.finish_reason.name(), "decoded");
        let fed = self.cache.len() - prompt_tokens;
        self.at = Cursor { rows: self.cache.len(), position: self.at.position + fed as u32 };
        Ok(decoded.answer(prompt_tokens, self.prefill_time))
    }

    /// Generates the answers of several sessions side by side.
    pub(super) fn decode_all(
        lance: &Lance,
        sessions: &mut [(Self, Tensor)],
        options: &AskOptions,
        on_text: &mut OnTextOf<'_>,
    ) -> Result<Vec<Answer>> {
        let before: Vec<(usize, Duration)> =
            sessions.iter().map(|(session, _)| (session.at.rows, session.prefill_time)).collect();
        let prompts = sessions
            .iter_mut()
            .map(|(session, hidden)| Prefilled {
                hidden: hidden.clone(),
                at: session.at,
                cache: &mut session.cache,
            })
            .collect();
        let decoded = lance.decoder().run_all(prompts, &options.decode, &options.stop_flag, on_text)?;
        Ok(decoded
            .into_iter()
            .zip(before)
            .map(|(decoded, (tokens, time))| decoded.answer(tokens, time))
            .collect())
    }
}

impl Lance {
    fn decoder(&self) -> Decoder<'_> {
        Decoder { llm: self.llm(), tokenizer: self.tokenizer(), stop_ids: &self.checkpoint().stop_ids }
    }
}
