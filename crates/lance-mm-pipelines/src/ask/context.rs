//! Independent questions about the same images.

use std::ops::ControlFlow;
use std::time::Duration;

use candle_core::Tensor;
use lance_mm_models::{Cursor, Segment};

use super::{Answer, AskOptions, Content, ImageFeatures, Session, features, medium};
use crate::error::{Error, Result};
use crate::model::Lance;
use crate::prompt::{Medium, Prompt};

/// Images that have been read into a cache, ready for questions. Every question is answered as if it were the only
/// one, at the cost of its own tokens.
///
/// It owns its cache and a clone of the model: it can be kept in a map and sent to other threads.
pub struct ImageContext {
    session: Session,
    /// Where the images end.
    end: Cursor,
    time: Duration,
}

impl ImageContext {
    pub(super) fn new(
        lance: &Lance,
        images: &[ImageFeatures],
        has_question: bool,
        options: &AskOptions,
    ) -> Result<Self> {
        let contents: Vec<Content<'_>> = images.iter().map(Content::Features).collect();
        let medium = medium(&contents);
        if medium == Medium::Text {
            return Err(Error::Prompt("expected an image, found none".into()));
        }
        let mut prompt = Prompt::new(lance.tokenizer(), options.special_tokens);
        prompt.system(&options.system_message(medium, has_question))?;
        prompt.open_user()?;
        for image in images {
            prompt.visual(image.grid);
        }
        let segments = prompt.take()?;
        let mut session = Session::new(lance, options);
        session.check(&segments, None)?;
        session.prefill(&segments, &features(&contents), options)?;
        Ok(Self { end: session.at, time: session.prefill_time, session })
    }

    /// Time of the images' prefill, their encoding not counted.
    pub fn time(&self) -> Duration {
        self.time
    }

    /// Answers a question about the images. System message, resolution and attention are those of the context.
    ///
    /// # Errors
    /// As [`Lance::answer`]. The context can be used again after any.
    pub fn ask(&mut self, question: &str, options: &AskOptions) -> Result<Answer> {
        self.ask_stream(question, options, |_| {})
    }

    /// As [`ask`](Self::ask), handing the text to `on_text` as [`Lance::ask_stream`] does.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_stream(
        &mut self,
        question: &str,
        options: &AskOptions,
        on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        let segments = self.question(question, &[], options)?;
        self.session.check(&segments, Some(&options.decode))?;
        let answer = self
            .session
            .prefill(&segments, &[], options)
            .and_then(|hidden| self.session.decode(hidden, options, on_text));
        self.session.rewind(self.end)?;
        answer
    }

    /// Answers several questions about the images side by side: each token costs one pass over the weights for
    /// all of them. The answers are those of [`ask`](Self::ask), in order, up to rounding where two tokens are as
    /// likely; each question takes a copy of the images' cache. `on_text` gets the index of the question with each
    /// piece of text, and ends that answer by returning `Break`; times of generation count from the first token of
    /// all.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_all(
        &self,
        questions: &[&str],
        options: &AskOptions,
        mut on_text: impl FnMut(usize, &str) -> ControlFlow<()>,
    ) -> Result<Vec<Answer>> {
        let mut sessions = Vec::with_capacity(questions.len());
        for question in questions {
            let segments = self.question(question, &[], options)?;
            self.session.check(&segments, Some(&options.decode))?;
            let mut session = self.session.fork()?;
            let hidden = session.prefill(&segments, &[], options)?;
            sessions.push((session, hidden));
        }
        Session::decode_all(&self.session.lance, &mut sessions, options, &mut on_text)
    }

    /// Hidden states that predict `ids` when they are the answer to a question, after the final norm: f32 `(n, D)`,
    /// for [`Llm::logits`](lance_mm_models::Llm::logits). For comparing models on the same answer.
    ///
    /// # Errors
    /// No ids; as [`Lance::answer`].
    pub fn teacher_forced(&mut self, question: &str, ids: &[u32]) -> Result<Tensor> {
        let Some((_, fed)) = ids.split_last() else {
            return Err(Error::Prompt("expected the ids of an answer, found none".into()));
        };
        let segments = self.question(question, fed, &AskOptions::default())?;
        self.session.check(&segments, None)?;
        let hidden = self.session.last_hidden(&segments, ids.len());
        self.session.rewind(self.end)?;
        hidden
    }

    /// The rest of the user's turn, and the beginning of the answer.
    fn question(&self, question: &str, answer: &[u32], options: &AskOptions) -> Result<Vec<Segment>> {
        let mut prompt = Prompt::new(self.session.lance.tokenizer(), options.special_tokens);
        prompt.question(question)?;
        prompt.close_user()?;
        prompt.ids(answer);
        prompt.take()
    }
}
