//! Independent questions about the images, or a conversation.

use anyhow::Result;
use lance_mm::{Answer, AskOptions, Chat, Content, ImageContext, ImageFeatures, Lance};

use crate::inputs::Input;

/// Encoded images and the questions so far.
pub(crate) struct Session {
    lance: Lance,
    images: Vec<ImageFeatures>,
    mode: Mode,
}

enum Mode {
    Independent(ImageContext),
    History(Chat),
}

impl Session {
    pub(crate) fn new(
        lance: &Lance,
        inputs: Vec<Input>,
        options: &AskOptions,
        history: bool,
    ) -> Result<Self> {
        let images: Vec<ImageFeatures> =
            inputs.into_iter().map(|input| input.encode(lance, options)).collect::<Result<_>>()?;
        let mode = if history {
            Mode::History(lance.chat(options)?)
        } else {
            Mode::Independent(lance.image_context(&images, options)?)
        };
        Ok(Self { lance: lance.clone(), images, mode })
    }

    /// Forgets the questions so far.
    pub(crate) fn reset(&mut self, options: &AskOptions) -> Result<()> {
        if let Mode::History(chat) = &mut self.mode {
            *chat = self.lance.chat(options)?;
        }
        Ok(())
    }

    pub(crate) fn ask(
        &mut self,
        question: &str,
        options: &AskOptions,
        on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        let answer = match &mut self.mode {
            Mode::Independent(context) => context.ask_stream(question, options, on_text),
            Mode::History(chat) => {
                let images = if chat.turns() == 0 { self.images.as_slice() } else { &[] };
                let mut message: Vec<Content<'_>> = images.iter().map(Content::Features).collect();
                message.push(Content::Text(question));
                chat.ask_stream(&message, options, on_text)
            }
        };
        Ok(answer?)
    }
}
