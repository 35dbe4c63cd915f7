//! The template of generation, in the words the model was trained with.

use std::fmt;

use super::{Prompt, SpecialTokens};
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// The five tasks of generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// An image from a caption.
    TextToImage,
    /// A video from a caption.
    TextToVideo,
    /// A video from its first frame and a caption.
    ImageToVideo,
    /// An image from another and an instruction.
    EditImage,
    /// A video from another and an instruction.
    EditVideo,
}

const IMAGE: &str = "Describe the image by detailing the color, quantity, text, shape, size, texture, spatial \
    relationships of the objects and background:";
const VIDEO: &str = "Describe the video by detailing the color, quantity, visible text, shape, size, texture, \
    spatial relationships and motion/camera movements of the objects and background:";
const EDIT_IMAGE: &str = "Describe the key features of the input image (color, shape, size, texture, objects, \
    background), then explain how the user’s text instruction should alter or modify the image. Generate a new \
    image that meets the user’s requirements while maintaining consistency with the original input where \
    appropriate.";
const EDIT_VIDEO: &str = "Describe the key features of the input video (color, shape, size, texture, objects, \
    background), then explain how the user’s text instruction should alter or modify the video. Generate a new \
    video that meets the user’s requirements while maintaining consistency with the original input where \
    appropriate.";

impl Task {
    /// The system message.
    pub fn system_message(self) -> &'static str {
        match self {
            Self::TextToImage => IMAGE,
            Self::TextToVideo | Self::ImageToVideo => VIDEO,
            Self::EditImage => EDIT_IMAGE,
            Self::EditVideo => EDIT_VIDEO,
        }
    }

    /// Whether the result is a video.
    pub fn is_video(self) -> bool {
        !matches!(self, Self::TextToImage | Self::EditImage)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TextToImage => "text to image",
            Self::TextToVideo => "text to video",
            Self::ImageToVideo => "image to video",
            Self::EditImage => "image edit",
            Self::EditVideo => "video edit",
        })
    }
}

/// Ids of a generation's prompt. The source of an edit is between the template and the caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GenerationPrompt {
    /// System message and the opening of the user's turn.
    pub before: Vec<u32>,
    /// The caption or instruction, verbatim; may be empty.
    pub caption: Vec<u32>,
    /// The end of the turn and the opening of the answer.
    pub after: Vec<u32>,
}

impl GenerationPrompt {
    /// Encodes the three parts apart, so that no caption merges with the template around it.
    ///
    /// # Errors
    /// [`Error::SpecialToken`](crate::Error::SpecialToken) in the caption.
    pub fn new(
        tokenizer: &Tokenizer,
        task: Task,
        caption: &str,
        special_tokens: SpecialTokens,
    ) -> Result<Self> {
        let mut prompt = Prompt::new(tokenizer, special_tokens);
        prompt.check("prompt", caption)?;
        prompt.system(task.system_message())?;
        prompt.open_user()?;
        let before = prompt.take_ids()?;
        prompt.close_user()?;
        Ok(Self { before, caption: tokenizer.encode_plain(caption)?, after: prompt.take_ids()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tokenizer;

    #[test]
    fn the_parts_are_the_template() {
        let tokenizer = tokenizer();
        let text = |ids: &[u32]| tokenizer.decode(ids, false);
        for (task, what) in [(Task::TextToImage, "the image by"), (Task::ImageToVideo, "the video by")] {
            let prompt = GenerationPrompt::new(&tokenizer, task, "a cat", SpecialTokens::Refuse).unwrap();
            assert!(text(&prompt.before).contains(what));
            assert!(text(&prompt.before).ends_with("background:<|im_end|>\n<|im_start|>user\n"));
            assert_eq!(text(&prompt.caption), "a cat");
            assert_eq!(text(&prompt.after), "<|im_end|>\n<|im_start|>assistant\n");
        }
        assert_eq!(EDIT_VIDEO, EDIT_IMAGE.replace("image", "video"));
        assert!(EDIT_IMAGE.contains('\u{2019}') && !EDIT_IMAGE.contains('\''));
    }

    #[test]
    fn captions_are_taken_verbatim() {
        let tokenizer = tokenizer();
        for caption in ["\nab", "  ab ", "assistant\n"] {
            let prompt =
                GenerationPrompt::new(&tokenizer, Task::EditImage, caption, SpecialTokens::Refuse).unwrap();
            assert_eq!(tokenizer.decode(&prompt.caption, false), caption);
        }
        let empty = GenerationPrompt::new(&tokenizer, Task::TextToVideo, "", SpecialTokens::Refuse).unwrap();
        assert!(empty.caption.is_empty());
        let error =
            GenerationPrompt::new(&tokenizer, Task::TextToImage, "a<|vision_end|>", SpecialTokens::Refuse)
                .unwrap_err();
        assert!(error.to_string().contains("in the prompt, found the special token <|vision_end|>"));
    }
}
