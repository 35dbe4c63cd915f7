//! Conversations of several turns over one cache.

use lance_mm_models::{Cursor, Segment};

use super::{Answer, Options, Part, Run, Understanding, features, has_text, medium};
use crate::decode::Sink;
use crate::error::{Error, Result};
use crate::prompt::{self, Content, Prompt};

/// A conversation: each turn sees the pictures, questions and answers before it, and costs its own tokens
/// only.
pub struct Chat<'a> {
    run: Run<'a>,
    instruction: Option<String>,
    /// Ids of the last answer that are not in the cache yet.
    unfed: Vec<u32>,
    turns: usize,
}

impl<'a> Chat<'a> {
    pub(super) fn new(lance: &'a Understanding, options: &Options) -> Result<Self> {
        if let Some(instruction) = &options.instruction {
            Prompt::new(lance.tokenizer()).system(instruction)?;
        }
        Ok(Self {
            run: Run::new(lance, options),
            instruction: options.instruction.clone(),
            unfed: Vec::new(),
            turns: 0,
        })
    }

    /// Answered turns.
    pub fn turns(&self) -> usize {
        self.turns
    }

    /// Answers the next turn. Of `options`, only the decoding counts here. After an error the conversation
    /// is as it was before the turn.
    ///
    /// # Errors
    /// As [`Understanding::answer`].
    pub fn ask(&mut self, parts: &[Part<'_>], options: &Options, sink: &mut Sink<'_>) -> Result<Answer> {
        let segments = self.segments(parts)?;
        self.run.check(&segments, Some(&options.decoding))?;
        let before: Cursor = self.run.at;
        let result = self
            .run
            .prefill(&segments, &features(parts))
            .and_then(|normed| self.run.decode(normed, &options.decoding, sink));
        match &result {
            Ok(answer) => {
                let fed = self.run.at.rows - answer.prompt_tokens;
                let stop_ids = &self.run.lance.checkpoint.stop_ids;
                self.unfed = answer.ids[fed..].iter().copied().filter(|id| !stop_ids.contains(id)).collect();
                self.turns += 1;
            }
            Err(_) => {
                self.run.cache.truncate(before.rows)?;
                self.run.at = before;
            }
        }
        result
    }

    /// What this turn adds to the cache: the end of the last answer or the system message, then the turn.
    fn segments(&self, parts: &[Part<'_>]) -> Result<Vec<Segment>> {
        if parts.is_empty() || (!has_text(parts) && features(parts).is_empty()) {
            return Err(Error::Prompt("expected a question or a picture, found neither".into()));
        }
        let mut prompt = Prompt::new(self.run.lance.tokenizer());
        if self.turns == 0 {
            let default = || prompt::instruction(medium(parts), has_text(parts));
            prompt.system(&self.instruction.clone().unwrap_or_else(default))?;
        } else {
            prompt.ids(&self.unfed);
            prompt.close_assistant()?;
        }
        let contents: Vec<Content<'_>> = parts.iter().map(Part::content).collect();
        prompt.user(&contents)?;
        prompt.take()
    }
}
