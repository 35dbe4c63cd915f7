//! Conversations of several turns over one cache.

use lance_mm_models::Segment;

use super::{Answer, AskOptions, Content, Session, features, has_text, medium};
use crate::error::{Error, Result};
use crate::model::Lance;
use crate::prompt::{Prompt, TurnContent};

/// A conversation: each turn sees the images, questions and answers before it, and costs its own tokens only.
///
/// It owns its cache and a clone of the model: it can be kept in a map and sent to other threads.
pub struct Chat {
    session: Session,
    system_message: Option<String>,
    /// Ids of the last answer that are not in the cache yet.
    unfed: Vec<u32>,
    turns: usize,
}

impl Chat {
    pub(super) fn new(lance: &Lance, options: &AskOptions) -> Result<Self> {
        if let Some(system_message) = &options.system_message {
            Prompt::new(lance.tokenizer(), options.special_tokens).system(system_message)?;
        }
        Ok(Self {
            session: Session::new(lance, options),
            system_message: options.system_message.clone(),
            unfed: Vec::new(),
            turns: 0,
        })
    }

    /// Answered turns.
    pub fn turns(&self) -> usize {
        self.turns
    }

    /// Answers the next turn. System message, resolution and attention are those that the conversation began with.
    /// After an error the conversation is as it was before the turn.
    ///
    /// # Errors
    /// As [`Lance::answer`].
    pub fn ask(&mut self, message: &[Content<'_>], options: &AskOptions) -> Result<Answer> {
        self.ask_stream(message, options, |_| {})
    }

    /// As [`ask`](Self::ask), handing the text to `on_text` as [`Lance::ask_stream`] does.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_stream(
        &mut self,
        message: &[Content<'_>],
        options: &AskOptions,
        on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        let segments = self.segments(message, options)?;
        self.session.check(&segments, Some(&options.decode))?;
        let before = self.session.at;
        let result = self
            .session
            .prefill(&segments, &features(message), options)
            .and_then(|hidden| self.session.decode(hidden, options, on_text));
        match &result {
            Ok(answer) => {
                let fed = self.session.at.rows - answer.prompt_tokens;
                let stop_ids = &self.session.lance.checkpoint().stop_ids;
                self.unfed = answer.ids[fed..].iter().copied().filter(|id| !stop_ids.contains(id)).collect();
                self.turns += 1;
            }
            Err(_) => self.session.rewind(before)?,
        }
        result
    }

    /// Segments that this turn adds to the cache: the end of the last answer or the system message, then the turn.
    fn segments(&self, message: &[Content<'_>], options: &AskOptions) -> Result<Vec<Segment>> {
        if !has_text(message) && features(message).is_empty() {
            return Err(Error::Prompt("expected a question or an image, found neither".into()));
        }
        let mut prompt = Prompt::new(self.session.lance.tokenizer(), options.special_tokens);
        if self.turns == 0 {
            let options = AskOptions { system_message: self.system_message.clone(), ..options.clone() };
            prompt.system(&options.system_message(medium(message), has_text(message)))?;
        } else {
            prompt.ids(&self.unfed);
            prompt.close_assistant()?;
        }
        let contents: Vec<TurnContent<'_>> = message.iter().map(Content::of_turn).collect();
        prompt.user(&contents)?;
        prompt.take()
    }
}
