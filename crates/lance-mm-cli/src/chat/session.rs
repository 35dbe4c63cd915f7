//! The two ways to go on asking: every question alone, or in a conversation.

use std::ops::ControlFlow;

use anyhow::Result;
use lance_mm::{Answer, Chat, Look, Options, Part, Understanding, Visual};

use crate::picture::Input;

/// Images that have been read, and what was said about them.
pub(crate) struct Session<'a> {
    lance: &'a Understanding,
    visuals: Vec<Visual>,
    mode: Mode<'a>,
}

enum Mode<'a> {
    Alone(Look<'a>),
    History(Chat<'a>),
}

impl<'a> Session<'a> {
    pub(crate) fn new(
        lance: &'a Understanding,
        inputs: Vec<Input>,
        options: &Options,
        history: bool,
    ) -> Result<Self> {
        let visuals: Vec<Visual> =
            inputs.into_iter().map(|input| input.encode(lance, options)).collect::<Result<_>>()?;
        let mode = match history {
            true => Mode::History(lance.chat(options)?),
            false => Mode::Alone(lance.look(&visuals, options)?),
        };
        Ok(Self { lance, visuals, mode })
    }

    /// Forgets what was said.
    pub(crate) fn reset(&mut self, options: &Options) -> Result<()> {
        if let Mode::History(chat) = &mut self.mode {
            *chat = self.lance.chat(options)?;
        }
        Ok(())
    }

    pub(crate) fn ask(
        &mut self,
        question: &str,
        options: &Options,
        sink: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Answer> {
        let answer = match &mut self.mode {
            Mode::Alone(look) => look.ask(question, options, sink),
            Mode::History(chat) => {
                let shown = if chat.turns() == 0 { self.visuals.as_slice() } else { &[] };
                let mut parts: Vec<Part<'_>> = shown.iter().map(Part::Visual).collect();
                parts.push(Part::Text(question));
                chat.ask(&parts, options, sink)
            }
        };
        Ok(answer?)
    }
}
