//! Many independent questions about the same pictures.

use std::time::Duration;

use candle_core::Tensor;
use lance_mm_models::{Cursor, Segment};

use super::{Answer, Options, Part, Run, Understanding, Visual, features, medium};
use crate::decode::{Sink, SinkOf};
use crate::error::{Error, Result};
use crate::prompt::{self, Medium, Prompt};

/// Pictures that have been read into the cache, ready for questions. Every question is answered as if it
/// were the only one, at the cost of its own tokens.
pub struct Look<'a> {
    run: Run<'a>,
    end: Cursor,
    time: Duration,
}

impl<'a> Look<'a> {
    pub(super) fn new(
        lance: &'a Understanding,
        visuals: &[Visual],
        has_question: bool,
        options: &Options,
    ) -> Result<Self> {
        let parts: Vec<Part<'_>> = visuals.iter().map(Part::Visual).collect();
        let medium = medium(&parts);
        if medium == Medium::Text {
            return Err(Error::Prompt("expected a picture to look at, found none".into()));
        }
        let default = || prompt::instruction(medium, has_question);
        let instruction = options.instruction.clone().unwrap_or_else(default);
        let mut prompt = Prompt::new(lance.tokenizer());
        prompt.system(&instruction)?;
        prompt.open_user()?;
        for visual in visuals {
            prompt.visual(visual.grid);
        }
        let segments = prompt.take()?;
        let mut run = Run::new(lance, options);
        run.check(&segments, None)?;
        run.prefill(&segments, &features(&parts))?;
        Ok(Self { end: run.at, time: run.prefill_time, run })
    }

    /// Time it took to read the pictures into the cache, their encoding not counted.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Answers a question about the pictures. Of `options`, only the decoding counts here.
    ///
    /// # Errors
    /// As [`Understanding::answer`].
    pub fn ask(&mut self, question: &str, options: &Options, sink: &mut Sink<'_>) -> Result<Answer> {
        let segments = self.question(question)?;
        self.run.check(&segments, Some(&options.decoding))?;
        let answer = self
            .run
            .prefill(&segments, &[])
            .and_then(|normed| self.run.decode(normed, &options.decoding, sink));
        self.forget()?;
        answer
    }

    /// Answers several questions about the pictures side by side: each token costs one pass over the weights for
    /// all of them. The answers are those of [`ask`](Self::ask), in order, up to rounding where two tokens are as
    /// likely; each question takes a copy of the cache of the pictures. `sink` is told which question a piece of
    /// text answers; the time of generation is counted from the first token of all.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_all(
        &self,
        questions: &[&str],
        options: &Options,
        sink: &mut SinkOf<'_>,
    ) -> Result<Vec<Answer>> {
        let mut runs = Vec::with_capacity(questions.len());
        for question in questions {
            let segments = self.question(question)?;
            self.run.check(&segments, Some(&options.decoding))?;
            let mut run = self.run.fork()?;
            let normed = run.prefill(&segments, &[])?;
            runs.push((run, normed));
        }
        Run::decode_all(&mut runs, &options.decoding, sink)
    }

    fn question(&self, question: &str) -> Result<Vec<Segment>> {
        let mut prompt = Prompt::new(self.run.lance.tokenizer());
        prompt.question(question)?;
        prompt.close_user()?;
        prompt.take()
    }

    /// The rows that predict `ids` when they are the answer to a question, after the final norm: f32
    /// `(n, D)`, for [`Llm::logits`](lance_mm_models::Llm::logits). For comparing models on the same answer.
    ///
    /// # Errors
    /// No ids; as [`Understanding::answer`].
    pub fn force(&mut self, question: &str, ids: &[u32]) -> Result<Tensor> {
        let Some((_, fed)) = ids.split_last() else {
            return Err(Error::Prompt("expected an answer to go through, found none".into()));
        };
        let mut prompt = Prompt::new(self.run.lance.tokenizer());
        prompt.question(question)?;
        prompt.close_user()?;
        prompt.ids(fed);
        let segments = prompt.take()?;
        self.run.check(&segments, None)?;
        let rows = self.run.last_rows(&segments, ids.len());
        self.forget()?;
        rows
    }

    /// Forgets what came after the pictures.
    fn forget(&mut self) -> Result<()> {
        self.run.cache.truncate(self.end.rows)?;
        self.run.at = self.end;
        Ok(())
    }
}
