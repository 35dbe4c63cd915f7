//! Questions about images, videos and text.

mod chat;
mod context;
mod session;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use lance_mm_image::video::Clip;
use lance_mm_image::{self as image, Patches, Resize, RgbImage};
use lance_mm_models::Grid;
use lance_mm_tensor::{StopFlag, with_autorelease_pool};

use crate::decode::{DecodeOptions, Decoded, FinishReason};
use crate::error::{Error, Result};
use crate::model::Lance;
use crate::prompt::{self, Medium, PromptOptions, SpecialTokens, Turn, TurnContent};
pub use chat::Chat;
pub use context::ImageContext;
use session::Session;

/// How a question is put and answered. The default is upstream's published setting.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AskOptions {
    /// System message; by default the one for the kind of input ([`prompt::system_message`]).
    pub system_message: Option<String>,
    /// Length, sampling, stop strings.
    pub decode: DecodeOptions,
    /// Resolution of images and frames; by default upstream's buckets.
    pub resize: Option<Resize>,
    /// Attention among the tokens of an image.
    pub block_attention: BlockAttention,
    /// Handling of special tokens that are written out in the text of a message.
    pub special_tokens: SpecialTokens,
    /// Ends the call when it is set, from any thread: while the image or the prompt is read with
    /// [`Error::Interrupted`], later with what was generated so far. Clones of the options share the flag.
    pub stop_flag: StopFlag,
}

/// Attention among the tokens of an image or video.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockAttention {
    /// Full, as the model was trained.
    #[default]
    Full,
    /// Causal, as lance-mlx computes: only to reproduce its published answers.
    Causal,
}

/// A piece of a user's message.
#[derive(Clone, Copy)]
pub enum Content<'a> {
    /// Text, verbatim.
    Text(&'a str),
    /// An encoded image or video.
    Features(&'a ImageFeatures),
}

impl<'a> Content<'a> {
    fn of_turn(&self) -> TurnContent<'a> {
        match self {
            Self::Text(text) => TurnContent::Text(text),
            Self::Features(features) => TurnContent::Visual(features.grid),
        }
    }
}

/// An image or video as tokens of the language model. Encoding is the costly part of a question: keep it to ask
/// again. Cloning shares the tokens.
#[derive(Clone)]
pub struct ImageFeatures {
    features: Tensor,
    grid: Grid,
    medium: Medium,
    time: Duration,
}

impl ImageFeatures {
    /// Tokens in time, height and width.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Output of the vision encoder, f32 `(tokens, hidden_size)`.
    pub fn features(&self) -> &Tensor {
        &self.features
    }

    /// Image or video.
    pub fn medium(&self) -> Medium {
        self.medium
    }

    /// Time of encoding.
    pub fn time(&self) -> Duration {
        self.time
    }
}

/// An answer, its tokens and times.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Answer {
    /// The answer, without special tokens and white space at its ends.
    pub text: String,
    /// Generated ids, the stop token included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens in the cache when generation began.
    pub prompt_tokens: usize,
    /// Seed of the sampling; `None` when greedy.
    pub seed: Option<u64>,
    /// Time of the prefill; in seconds when serialized.
    #[serde(serialize_with = "seconds")]
    pub prefill_time: Duration,
    /// Time of the generated tokens; in seconds when serialized.
    #[serde(serialize_with = "seconds")]
    pub decode_time: Duration,
}

impl Lance {
    /// Answers a question about an image. An empty question asks for a description.
    ///
    /// # Errors
    /// [`Error::SpecialToken`] in the question, options out of range, an image that cannot be resized,
    /// [`Error::PromptTooLong`], [`Error::Interrupted`].
    pub fn ask(&self, image: &RgbImage, question: &str, options: &AskOptions) -> Result<Answer> {
        self.ask_stream(image, question, options, |_| {})
    }

    /// As [`ask`](Self::ask), handing the text to `on_text` piece by piece as it is generated. The pieces joined
    /// are the answer before white space at its ends is cut off.
    ///
    /// ```no_run
    /// # use lance_mm_pipelines::{AskOptions, Lance};
    /// # fn f(lance: &Lance, image: &lance_mm_image::RgbImage) -> lance_mm_pipelines::Result<()> {
    /// lance.ask_stream(image, "What is in this image?", &AskOptions::default(), |text| print!("{text}"))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn ask_stream(
        &self,
        image: &RgbImage,
        question: &str,
        options: &AskOptions,
        on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        let features = self.encode_image(image, options)?;
        self.answer_stream(&[Content::Features(&features), Content::Text(question)], options, on_text)
    }

    /// Answers a question about a video. An empty question asks for a description.
    ///
    /// # Errors
    /// As [`ask`](Self::ask); a video that is too short.
    pub fn ask_video(&self, clip: &Clip, question: &str, options: &AskOptions) -> Result<Answer> {
        let features = self.encode_video(clip, options)?;
        self.answer(&[Content::Features(&features), Content::Text(question)], options)
    }

    /// Describes an image: [`ask`](Self::ask) with an empty question.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub fn caption(&self, image: &RgbImage, options: &AskOptions) -> Result<Answer> {
        self.ask(image, "", options)
    }

    /// Runs the vision encoder over an image.
    ///
    /// # Errors
    /// No vision encoder, an image that cannot be resized, [`Error::Interrupted`].
    pub fn encode_image(&self, image: &RgbImage, options: &AskOptions) -> Result<ImageFeatures> {
        let resize = options.resize.unwrap_or_else(|| self.checkpoint().default_resize(Medium::Image));
        self.encode_patches(image::prepare_image(image, resize)?, Medium::Image, options)
    }

    /// Runs the vision encoder over sampled frames of a video.
    ///
    /// # Errors
    /// No vision encoder, a video that is too short, frames that cannot be resized, [`Error::Interrupted`].
    pub fn encode_video(&self, clip: &Clip, options: &AskOptions) -> Result<ImageFeatures> {
        let resize = options.resize.unwrap_or_else(|| self.checkpoint().default_resize(Medium::Video));
        self.encode_patches(image::prepare_video(clip, resize)?, Medium::Video, options)
    }

    /// Runs the vision encoder over patches, which [`prepare_image`](image::prepare_image) and
    /// [`prepare_video`](image::prepare_video) make on any thread.
    ///
    /// # Errors
    /// No vision encoder, [`Error::Interrupted`].
    pub fn encode_patches(
        &self,
        patches: Patches,
        medium: Medium,
        options: &AskOptions,
    ) -> Result<ImageFeatures> {
        let start = Instant::now();
        let (features, grid) = self.run_vit(patches, &options.stop_flag)?;
        features.device().synchronize()?;
        self.release_vit()?;
        Ok(ImageFeatures { features, grid, medium, time: start.elapsed() })
    }

    /// Output of the vision encoder for patches, f32 `(n, D)`, and its grid.
    pub(crate) fn run_vit(&self, patches: Patches, stop_flag: &StopFlag) -> Result<(Tensor, Grid)> {
        let vit = self.vit()?;
        let _span =
            tracing::debug_span!("vision encoder", frames = patches.t, height = patches.h, width = patches.w)
                .entered();
        let grid = Grid { t: patches.t, h: patches.h, w: patches.w };
        let shape = (grid.count(), vit.config().patch_width());
        let patches = Tensor::from_vec(patches.values, shape, &Device::Cpu)?;
        let features = with_autorelease_pool(|| vit.forward_with_stop(&patches, &[grid], stop_flag))?;
        Ok((features, grid.merged(vit.config().spatial_merge_size)))
    }

    /// Answers a message of text and encoded images, in their order.
    ///
    /// # Errors
    /// Neither text nor image; as [`ask`](Self::ask).
    pub fn answer(&self, message: &[Content<'_>], options: &AskOptions) -> Result<Answer> {
        self.answer_stream(message, options, |_| {})
    }

    /// As [`answer`](Self::answer), handing the text to `on_text` as [`ask_stream`](Self::ask_stream) does.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn answer_stream(
        &self,
        message: &[Content<'_>],
        options: &AskOptions,
        on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        let medium = medium(message);
        if medium == Medium::Text && !has_text(message) {
            return Err(Error::Prompt("expected a question or an image, found neither".into()));
        }
        let turns = [Turn::User(message.iter().map(Content::of_turn).collect())];
        self.reply(&turns, message, (medium, has_text(message)), options, on_text)
    }

    /// Answers the last turn of a stored conversation. `visuals` are the images and videos of its turns, in order.
    ///
    /// # Errors
    /// As [`prompt::conversation`] and [`answer`](Self::answer); images that are not those of the turns.
    pub fn converse(
        &self,
        turns: &[Turn<'_>],
        visuals: &[ImageFeatures],
        options: &AskOptions,
        on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        let stated: Vec<Grid> = turns.iter().flat_map(Turn::grids).collect();
        let given: Vec<Grid> = visuals.iter().map(ImageFeatures::grid).collect();
        if stated != given {
            let list = |grids: &[Grid]| grids.iter().map(Grid::to_string).collect::<Vec<_>>().join(", ");
            let (expected, found) = (list(&stated), list(&given));
            return Err(Error::Prompt(format!("expected images of [{expected}] tokens, found [{found}]")));
        }
        let contents: Vec<Content<'_>> = visuals.iter().map(Content::Features).collect();
        self.reply(turns, &contents, (medium(&contents), true), options, on_text)
    }

    fn reply(
        &self,
        turns: &[Turn<'_>],
        contents: &[Content<'_>],
        (medium, has_question): (Medium, bool),
        options: &AskOptions,
        on_text: impl FnMut(&str),
    ) -> Result<Answer> {
        let system_message = options.system_message(medium, has_question);
        let segments = prompt::conversation(self.tokenizer(), options.prompt(&system_message), turns)?;
        let mut session = Session::new(self, options);
        session.check(&segments, Some(&options.decode))?;
        let hidden = session.prefill(&segments, &features(contents), options)?;
        session.decode(hidden, options, on_text)
    }

    /// Reads images into a cache, for any number of independent questions about them.
    ///
    /// # Errors
    /// No images, a system message that holds a special token, [`Error::Interrupted`].
    pub fn image_context(&self, images: &[ImageFeatures], options: &AskOptions) -> Result<ImageContext> {
        ImageContext::new(self, images, true, options)
    }

    /// As [`image_context`](Self::image_context), for descriptions of the images: questions are then empty.
    ///
    /// # Errors
    /// As [`image_context`](Self::image_context).
    pub fn caption_context(&self, images: &[ImageFeatures], options: &AskOptions) -> Result<ImageContext> {
        ImageContext::new(self, images, false, options)
    }

    /// Begins a conversation whose turns see the ones before.
    ///
    /// The model was not trained on more than one turn: later answers may drift.
    ///
    /// # Errors
    /// A system message that holds a special token.
    pub fn chat(&self, options: &AskOptions) -> Result<Chat> {
        Chat::new(self, options)
    }
}

impl AskOptions {
    fn system_message(&self, medium: Medium, has_question: bool) -> String {
        self.system_message.clone().unwrap_or_else(|| prompt::system_message(medium, has_question))
    }

    fn prompt<'a>(&self, system_message: &'a str) -> PromptOptions<'a> {
        PromptOptions { system_message, special_tokens: self.special_tokens }
    }
}

impl Decoded {
    fn answer(self, prompt_tokens: usize, prefill_time: Duration) -> Answer {
        Answer {
            text: self.text.trim().to_owned(),
            ids: self.ids,
            finish_reason: self.finish_reason,
            prompt_tokens,
            seed: self.seed,
            prefill_time,
            decode_time: self.time,
        }
    }
}

fn seconds<S: serde::Serializer>(time: &Duration, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// Lets a callback that never stops be called where one may.
fn never_stopping(mut on_text: impl FnMut(&str)) -> impl FnMut(&str) -> ControlFlow<()> {
    move |text| {
        on_text(text);
        ControlFlow::Continue(())
    }
}

fn features(contents: &[Content<'_>]) -> Vec<Tensor> {
    let of = |content: &Content<'_>| match content {
        Content::Text(_) => None,
        Content::Features(features) => Some(features.features.clone()),
    };
    contents.iter().filter_map(of).collect()
}

fn medium(contents: &[Content<'_>]) -> Medium {
    let of = |content: &Content<'_>| match content {
        Content::Text(_) => Medium::Text,
        Content::Features(features) => features.medium,
    };
    let media: Vec<Medium> = contents.iter().map(of).collect();
    [Medium::Video, Medium::Image].into_iter().find(|medium| media.contains(medium)).unwrap_or(Medium::Text)
}

fn has_text(contents: &[Content<'_>]) -> bool {
    contents.iter().any(|content| matches!(content, Content::Text(text) if !text.is_empty()))
}

#[cfg(test)]
mod tests;
