//! Conversations as segments: the text template, and where images go in it.
//!
//! Reference: bytedance/Lance, the understanding data class; packing of several turns is ours. Pieces
//! between special tokens are encoded on their own and ids are inserted, so no text of a user is ever
//! parsed for structure.

mod generation;

use std::fmt;

use lance_mm_models::{Grid, Segment};

use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
pub use generation::{GenerationPrompt, Task};

const IM_START: &str = "<|im_start|>";
const IM_END: &str = "<|im_end|>";

/// System message for questions about images.
pub const IMAGE_SYSTEM_MESSAGE: &str = "Look at the image carefully and answer the question.";
/// System message for questions about videos.
pub const VIDEO_SYSTEM_MESSAGE: &str = "Watch the video carefully and answer the question.";
/// System message for questions without an image.
pub const TEXT_SYSTEM_MESSAGE: &str = "You are a helpful assistant.";

/// Kind of input of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Medium {
    /// Text alone.
    Text,
    /// Images.
    Image,
    /// At least one video.
    Video,
}

/// Default system message. Without a question it asks for a description, in upstream's words.
pub fn system_message(medium: Medium, has_question: bool) -> String {
    match (medium, has_question) {
        (Medium::Text, _) => TEXT_SYSTEM_MESSAGE.into(),
        (Medium::Image, true) => IMAGE_SYSTEM_MESSAGE.into(),
        (Medium::Video, true) => VIDEO_SYSTEM_MESSAGE.into(),
        (medium, false) => format!(
            "Generate a detailed and accurate description of the {medium}, including all the key moments and visual details."
        ),
    }
}

impl fmt::Display for Medium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Image => "image",
            Self::Video => "video",
        })
    }
}

/// A piece of a user's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnContent<'a> {
    /// Text, verbatim.
    Text(&'a str),
    /// An image or video of this many language model tokens.
    Visual(Grid),
}

/// An assistant's earlier answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// Text that is encoded.
    Text(&'a str),
    /// Generated ids, kept as they are; a stop token at the end is left out.
    Ids(&'a [u32]),
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn<'a> {
    /// Text and images of the user, in order.
    User(Vec<TurnContent<'a>>),
    /// An earlier answer.
    Assistant(Reply<'a>),
}

impl Turn<'_> {
    /// Grids of the turn's images and videos.
    pub(crate) fn grids(&self) -> impl Iterator<Item = Grid> {
        let contents = match self {
            Self::User(contents) => contents.as_slice(),
            Self::Assistant(_) => &[],
        };
        contents.iter().filter_map(|content| match content {
            TurnContent::Text(_) => None,
            TurnContent::Visual(grid) => Some(*grid),
        })
    }
}

/// System message of a conversation, and handling of special tokens in its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromptOptions<'a> {
    /// System message, verbatim.
    pub system_message: &'a str,
    /// Special tokens that are written out in text.
    pub special_tokens: SpecialTokens,
}

/// A system message, special tokens in text refused.
impl<'a> From<&'a str> for PromptOptions<'a> {
    fn from(system_message: &'a str) -> Self {
        Self { system_message, special_tokens: SpecialTokens::Refuse }
    }
}

/// Handling of special tokens (`<|im_end|>`, ..) that are written out in the text of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SpecialTokens {
    /// Refused with [`Error::SpecialToken`].
    #[default]
    Refuse,
    /// Encoded as the plain text that they are, for text that may quote them: logs, source code. No text can end a
    /// message or begin another either way.
    PlainText,
}

/// Lays a conversation out up to where the answer begins: segments for
/// [`Sequence::new`](lance_mm_models::Sequence::new), text joined between blocks.
///
/// # Errors
/// No turns; turns that do not alternate from user to user; [`Error::SpecialToken`].
pub fn conversation<'a>(
    tokenizer: &Tokenizer,
    options: impl Into<PromptOptions<'a>>,
    turns: &[Turn<'_>],
) -> Result<Vec<Segment>> {
    let options = options.into();
    let mut prompt = Prompt::new(tokenizer, options.special_tokens);
    prompt.system(options.system_message)?;
    if !matches!(turns.last(), Some(Turn::User(_))) {
        return Err(Error::Prompt("expected a last turn of the user, found none".into()));
    }
    for (i, turn) in turns.iter().enumerate() {
        match (turn, i % 2) {
            (Turn::User(contents), 0) => prompt.user(contents)?,
            (Turn::Assistant(reply), 1) => prompt.assistant(*reply)?,
            _ => {
                return Err(Error::Prompt(format!(
                    "expected user and assistant in turn, found two alike at {i}"
                )));
            }
        }
    }
    prompt.take()
}

/// A prompt under construction: pieces that have not been encoded yet.
pub(crate) struct Prompt<'t> {
    tokenizer: &'t Tokenizer,
    special_tokens: SpecialTokens,
    pieces: Vec<Piece>,
}

enum Piece {
    Text(String),
    Ids(Vec<u32>),
    Visual(Grid),
}

impl<'t> Prompt<'t> {
    pub(crate) fn new(tokenizer: &'t Tokenizer, special_tokens: SpecialTokens) -> Self {
        Self { tokenizer, special_tokens, pieces: Vec::new() }
    }

    /// The system message, verbatim.
    pub(crate) fn system(&mut self, message: &str) -> Result<()> {
        self.check("system message", message)?;
        self.token(IM_START)?;
        self.text("system\n");
        self.text(message);
        self.token(IM_END)?;
        self.text("\n");
        Ok(())
    }

    /// A user's turn and the opening of the answer.
    pub(crate) fn user(&mut self, contents: &[TurnContent<'_>]) -> Result<()> {
        self.open_user()?;
        for content in contents {
            match content {
                TurnContent::Text(text) => self.question(text)?,
                TurnContent::Visual(grid) => self.visual(*grid),
            }
        }
        self.close_user()
    }

    pub(crate) fn open_user(&mut self) -> Result<()> {
        self.token(IM_START)?;
        self.text("user\n");
        Ok(())
    }

    pub(crate) fn question(&mut self, text: &str) -> Result<()> {
        self.check("question", text)?;
        self.text(text);
        Ok(())
    }

    pub(crate) fn visual(&mut self, grid: Grid) {
        self.pieces.push(Piece::Visual(grid));
    }

    pub(crate) fn close_user(&mut self) -> Result<()> {
        self.token(IM_END)?;
        self.text("\n");
        self.token(IM_START)?;
        self.text("assistant\n");
        Ok(())
    }

    fn assistant(&mut self, reply: Reply<'_>) -> Result<()> {
        match reply {
            Reply::Text(text) => {
                self.check("answer", text)?;
                self.text(text);
            }
            Reply::Ids(ids) => {
                let end = [self.tokenizer.id(IM_END)?, self.tokenizer.id("<|endoftext|>")?];
                let ids = ids.strip_suffix(&end[..1]).or_else(|| ids.strip_suffix(&end[1..])).unwrap_or(ids);
                self.ids(ids);
            }
        }
        self.close_assistant()
    }

    /// Ends an answer whose ids are in place.
    pub(crate) fn close_assistant(&mut self) -> Result<()> {
        self.token(IM_END)?;
        self.text("\n");
        Ok(())
    }

    pub(crate) fn ids(&mut self, ids: &[u32]) {
        self.pieces.push(Piece::Ids(ids.to_vec()));
    }

    /// Encodes what was added since the last call.
    pub(crate) fn take(&mut self) -> Result<Vec<Segment>> {
        let mut segments = Vec::new();
        let mut ids = Vec::new();
        for piece in self.pieces.drain(..) {
            match piece {
                Piece::Text(text) => ids.extend(self.tokenizer.encode_plain(&text)?),
                Piece::Ids(more) => ids.extend(more),
                Piece::Visual(grid) => {
                    if !ids.is_empty() {
                        segments.push(Segment::Text(std::mem::take(&mut ids)));
                    }
                    segments.push(Segment::Vit(grid));
                }
            }
        }
        if !ids.is_empty() {
            segments.push(Segment::Text(ids));
        }
        Ok(segments)
    }

    /// As [`take`](Self::take), for text alone.
    fn take_ids(&mut self) -> Result<Vec<u32>> {
        let ids = |segment| match segment {
            Segment::Text(ids) => ids,
            _ => Vec::new(),
        };
        Ok(self.take()?.into_iter().flat_map(ids).collect())
    }

    fn token(&mut self, name: &str) -> Result<()> {
        self.pieces.push(Piece::Ids(vec![self.tokenizer.id(name)?]));
        Ok(())
    }

    /// Text between two tokens or blocks is one piece, however it came together: it is encoded as a whole.
    fn text(&mut self, text: &str) {
        match self.pieces.last_mut() {
            Some(Piece::Text(before)) => before.push_str(text),
            _ => self.pieces.push(Piece::Text(text.to_owned())),
        }
    }

    fn check(&self, place: &'static str, text: &str) -> Result<()> {
        match self.tokenizer.special_in(text) {
            Some(token) if self.special_tokens == SpecialTokens::Refuse => {
                Err(Error::SpecialToken { place, token: token.to_owned() })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tokenizer;

    const GRID: Grid = Grid { t: 1, h: 2, w: 3 };

    fn rendered(segments: &[Segment]) -> String {
        let tokenizer = tokenizer();
        segments
            .iter()
            .map(|segment| match segment {
                Segment::Text(ids) => tokenizer.decode(ids, false),
                Segment::Vit(grid) => format!("[{grid}]"),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn one_question_about_one_image() {
        let turns = [Turn::User(vec![TurnContent::Visual(GRID), TurnContent::Text("What?")])];
        let segments = conversation(&tokenizer(), IMAGE_SYSTEM_MESSAGE, &turns).unwrap();
        assert_eq!(segments.len(), 3);
        assert_eq!(
            rendered(&segments),
            "<|im_start|>system\nLook at the image carefully and answer the question.<|im_end|>\n<|im_start|>user\n\
             [1x2x3]What?<|im_end|>\n<|im_start|>assistant\n"
        );
    }

    #[test]
    fn later_turns_follow_the_answer() {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode("yes").unwrap();
        let stopped = [ids.as_slice(), &[tokenizer.id(IM_END).unwrap()]].concat();
        for reply in [Reply::Text("yes"), Reply::Ids(&ids), Reply::Ids(&stopped)] {
            let turns = [
                Turn::User(vec![TurnContent::Text("a "), TurnContent::Visual(GRID), TurnContent::Text(" b")]),
                Turn::Assistant(reply),
                Turn::User(vec![TurnContent::Text("c")]),
            ];
            let text = rendered(&conversation(&tokenizer, "s", &turns).unwrap());
            assert!(text.ends_with(
                "user\na [1x2x3] b<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n\
                 <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
            ));
        }
    }

    #[test]
    fn text_that_comes_in_pieces_is_encoded_as_one() {
        let tokenizer = tokenizer();
        let split = [Turn::User(vec![TurnContent::Text("\nab"), TurnContent::Text("cd")])];
        let whole = [Turn::User(vec![TurnContent::Text("\nabcd")])];
        assert_eq!(
            conversation(&tokenizer, "s", &split).unwrap(),
            conversation(&tokenizer, "s", &whole).unwrap()
        );
    }

    #[test]
    fn special_tokens_and_broken_conversations_are_refused() {
        let tokenizer = tokenizer();
        let user = |text| Turn::User(vec![TurnContent::Text(text)]);
        let of = |message: &str, turns: &[Turn<'_>]| {
            conversation(&tokenizer, message, turns).unwrap_err().to_string()
        };
        assert_eq!(
            of("s", &[user("a<|im_end|>b")]),
            "prompt: expected plain text in the question, found the special token <|im_end|>"
        );
        assert!(
            of("<|vision_start|>", &[user("a")])
                .contains("in the system message, found the special token <|vision_start|>")
        );
        let reply = Turn::Assistant(Reply::Text("<|im_start|>"));
        assert!(of("s", &[user("a"), reply, user("b")]).contains("in the answer"));
        assert!(of("s", &[]).contains("found none"));
        assert!(of("s", &[user("a"), Turn::Assistant(Reply::Text("b"))]).contains("a last turn of the user"));
        assert!(of("s", &[user("a"), user("b"), user("c")]).contains("two alike at 1"));
        assert!(conversation(&tokenizer, "s", &[user("assistant\n is plain text")]).is_ok());
    }

    #[test]
    fn special_tokens_can_be_plain_text() {
        let tokenizer = tokenizer();
        let options = PromptOptions { system_message: "s", special_tokens: SpecialTokens::PlainText };
        let text = "log: <|im_end|>\n<|im_start|>assistant";
        let turns = [Turn::User(vec![TurnContent::Text(text)])];
        let segments = conversation(&tokenizer, options, &turns).unwrap();
        assert!(rendered(&segments).contains(text));
        let [Segment::Text(ids)] = segments.as_slice() else { panic!("{segments:?}") };
        let count = |token| ids.iter().filter(|id| **id == tokenizer.id(token).unwrap()).count();
        // Those of the template: system and user end, the answer is open.
        assert_eq!((count(IM_START), count(IM_END)), (3, 2));
        let refused = conversation(&tokenizer, "s", &turns).unwrap_err();
        assert!(matches!(refused, Error::SpecialToken { place: "question", .. }));
    }

    #[test]
    fn system_messages_by_kind_of_input() {
        assert_eq!(system_message(Medium::Image, true), IMAGE_SYSTEM_MESSAGE);
        assert_eq!(system_message(Medium::Video, true), VIDEO_SYSTEM_MESSAGE);
        assert_eq!(system_message(Medium::Text, false), TEXT_SYSTEM_MESSAGE);
        assert!(system_message(Medium::Video, false).contains("description of the video,"));
    }
}
