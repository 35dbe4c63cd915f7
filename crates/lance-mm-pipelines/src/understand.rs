//! Questions about pictures, videos and text.

mod chat;
mod look;

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use lance_mm_image::video::Clip;
use lance_mm_image::{self as image, Resize, RgbImage};
use lance_mm_models::{Cache, Config, Cursor, Experts, Grid, Llm, Segment, Sequence, Vit};
use lance_mm_tensor::{Weights, with_autorelease_pool};

use crate::checkpoint::Checkpoint;
use crate::decode::{Decoded, Decoder, Decoding, Finish, Prefilled, Sink, SinkOf};
use crate::error::{Error, Result};
use crate::prompt::{self, Content, Medium, Turn};
use crate::tokenizer::Tokenizer;
use crate::warm;
pub use chat::Chat;
pub use look::Look;

/// Lance's understanding side: the UND expert and the vision transformer.
///
/// ```no_run
/// use lance_mm_pipelines::{Options, Understanding, image};
///
/// let lance = Understanding::from_pretrained("Lance-3B-AWQ-INT4")?;
/// let picture = image::load("photo.jpg".as_ref(), &image::LoadOptions::default())?;
/// let answer = lance.generate(&picture, "What is in this image?", &Options::default())?;
/// println!("{}", answer.text);
/// # Ok::<(), lance_mm_pipelines::Error>(())
/// ```
pub struct Understanding {
    pub(crate) checkpoint: Checkpoint,
    llm: Llm,
    vit: Option<Vit>,
    low_memory: bool,
}

/// How a question is put and answered. The default is upstream's published setting.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// The system message; by default the one for what is shown ([`prompt::instruction`]).
    pub instruction: Option<String>,
    /// Length, sampling, stop strings.
    pub decoding: Decoding,
    /// How pictures and frames are sized; by default upstream's buckets.
    pub resize: Option<Resize>,
    /// How the rows of a picture see each other.
    pub block_attention: BlockAttention,
}

/// How the rows of a picture or video see each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BlockAttention {
    /// All see all, as the model was trained.
    #[default]
    Full,
    /// Each sees the ones before it, as lance-mlx computes: only to reproduce its published answers.
    Causal,
}

/// A part of what is asked.
#[derive(Clone, Copy)]
pub enum Part<'a> {
    /// Text, verbatim.
    Text(&'a str),
    /// An encoded picture or video.
    Visual(&'a Visual),
}

impl<'a> Part<'a> {
    fn content(&self) -> Content<'a> {
        match self {
            Self::Text(text) => Content::Text(text),
            Self::Visual(visual) => Content::Visual(visual.grid),
        }
    }
}

/// A picture or video as rows for the language model. Encoding is the costly part of a question: keep it
/// to ask again. Cloning shares the rows.
#[derive(Clone)]
pub struct Visual {
    features: Tensor,
    grid: Grid,
    medium: Medium,
    time: Duration,
}

impl Visual {
    /// Tokens in time, rows and columns.
    pub fn grid(&self) -> Grid {
        self.grid
    }

    /// Rows f32 `(tokens, hidden_size)`.
    pub fn features(&self) -> &Tensor {
        &self.features
    }

    /// Picture or video.
    pub fn medium(&self) -> Medium {
        self.medium
    }

    /// Time it took to encode.
    pub fn time(&self) -> Duration {
        self.time
    }
}

/// An answer and how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The answer, without special tokens and white space at its ends.
    pub text: String,
    /// Generated ids, the stop token included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Rows of the prompt in the cache when generation began.
    pub prompt_tokens: usize,
    /// Seed of the choices; `None` when greedy.
    pub seed: Option<u64>,
    /// Time from the prompt's ids to its last row.
    pub prefill_time: Duration,
    /// Time of the generated tokens.
    pub decode_time: Duration,
}

impl fmt::Debug for Understanding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Understanding").field("checkpoint", &self.checkpoint).finish_non_exhaustive()
    }
}

impl Understanding {
    /// Loads a folder in the published MLX layout, bf16 or quantized. Weights are mapped, and only those of
    /// the UND expert and the vision transformer are ever touched.
    ///
    /// # Errors
    /// Everything that is wrong with the folder's files.
    pub fn from_pretrained(dir: impl AsRef<Path>) -> Result<Self> {
        Self::new(Checkpoint::open(dir)?)
    }

    /// Builds the networks of a checkpoint.
    ///
    /// # Errors
    /// All tensors that are missing, misshapen or unknown.
    pub fn new(checkpoint: Checkpoint) -> Result<Self> {
        let llm = Llm::load(&checkpoint.config, &checkpoint.model, Experts::Und)?;
        let vit = match &checkpoint.vit {
            Some(weights) => Some(Vit::load(&checkpoint.config.vision, weights)?),
            None => None,
        };
        warm::up(&checkpoint, &llm, vit.as_ref(), None)?;
        Ok(Self { checkpoint, llm, vit, low_memory: false })
    }

    /// The same model, which gives the memory of the vision transformer's weights back after every picture: it
    /// then never holds those and the language model's at once. The next picture maps them again.
    pub fn with_low_memory(self, low_memory: bool) -> Self {
        Self { low_memory, ..self }
    }

    /// The checkpoint that it was loaded from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.checkpoint.config
    }

    /// Tensors of the files that are no part of Lance; they are not read.
    pub fn unknown_tensors(&self) -> Vec<String> {
        let vit = self.checkpoint.vit.iter().flat_map(Weights::unread);
        self.checkpoint.model.unread().into_iter().chain(vit).collect()
    }

    /// Whether matrices of the language model are quantized. The published quantized checkpoint was made
    /// for pictures; its authors did not try videos.
    pub fn is_quantized(&self) -> bool {
        self.checkpoint.is_quantized()
    }

    /// The device its networks run on.
    pub fn device(&self) -> &Device {
        self.checkpoint.model.device()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.checkpoint.tokenizer
    }

    /// The language model.
    pub fn llm(&self) -> &Llm {
        &self.llm
    }

    /// The vision transformer.
    ///
    /// # Errors
    /// A checkpoint without `vit.safetensors`.
    pub fn vit(&self) -> Result<&Vit> {
        self.vit.as_ref().ok_or_else(|| Error::Checkpoint {
            name: self.checkpoint.name.clone(),
            message: "expected vit.safetensors, which pictures need, found none".into(),
        })
    }

    /// Answers a question about a picture. An empty question asks for a description.
    ///
    /// # Errors
    /// A question that holds a special token, options out of range, a picture that cannot be sized.
    pub fn generate(&self, picture: &RgbImage, question: &str, options: &Options) -> Result<Answer> {
        let visual = self.encode_image(picture, options.resize)?;
        self.answer(&[Part::Visual(&visual), Part::Text(question)], options, &mut |_| {
            ControlFlow::Continue(())
        })
    }

    /// Answers a question about a video. An empty question asks for a description.
    ///
    /// # Errors
    /// As [`generate`](Self::generate); a video that is too short.
    pub fn generate_video(&self, clip: &Clip, question: &str, options: &Options) -> Result<Answer> {
        let visual = self.encode_video(clip, options.resize)?;
        self.answer(&[Part::Visual(&visual), Part::Text(question)], options, &mut |_| {
            ControlFlow::Continue(())
        })
    }

    /// Runs the vision transformer over a picture.
    ///
    /// # Errors
    /// No vision transformer, a picture that cannot be sized.
    pub fn encode_image(&self, picture: &RgbImage, resize: Option<Resize>) -> Result<Visual> {
        let resize = resize.unwrap_or_else(|| self.checkpoint.default_resize(Medium::Image));
        self.encode(&[image::resize(picture, resize)?], Medium::Image)
    }

    /// Runs the vision transformer over sampled frames of a video.
    ///
    /// # Errors
    /// No vision transformer, a video that is too short, frames that cannot be sized.
    pub fn encode_video(&self, clip: &Clip, resize: Option<Resize>) -> Result<Visual> {
        let resize = resize.unwrap_or_else(|| self.checkpoint.default_resize(Medium::Video));
        self.encode(&image::resize_frames(&clip.sampled()?, resize)?, Medium::Video)
    }

    fn encode(&self, frames: &[RgbImage], medium: Medium) -> Result<Visual> {
        let vit = self.vit()?;
        let start = Instant::now();
        let patches = image::patches(frames)?;
        let grid = Grid { t: patches.t, h: patches.h, w: patches.w };
        let rows =
            Tensor::from_vec(patches.values, (grid.count(), vit.config().patch_width()), &Device::Cpu)?;
        let features = with_autorelease_pool(|| vit.forward(&rows, &[grid]))?;
        features.device().synchronize()?;
        if let (true, Some(weights)) = (self.low_memory, &self.checkpoint.vit) {
            weights.release()?;
        }
        let grid = grid.merged(vit.config().spatial_merge_size);
        Ok(Visual { features, grid, medium, time: start.elapsed() })
    }

    /// Answers what `parts` ask, in their order, handing the text to `sink` as it comes into being. The
    /// pieces joined are the answer before white space at its ends is cut off.
    ///
    /// # Errors
    /// Nothing to answer, text that holds a special token, options out of range.
    pub fn answer(&self, parts: &[Part<'_>], options: &Options, sink: &mut Sink<'_>) -> Result<Answer> {
        let medium = medium(parts);
        if medium == Medium::Text && !has_text(parts) {
            return Err(Error::Prompt("expected a question or a picture, found neither".into()));
        }
        let contents = parts.iter().map(Part::content).collect();
        let instruction = options.instruction.clone();
        let instruction = instruction.unwrap_or_else(|| prompt::instruction(medium, has_text(parts)));
        self.reply(&instruction, &[Turn::User(contents)], &features(parts), options, sink)
    }

    /// Answers the last turn of a stored conversation. `visuals` are the pictures and videos of its turns,
    /// in order.
    ///
    /// # Errors
    /// As [`prompt::conversation`] and [`answer`](Self::answer); visuals that are not those of the turns.
    pub fn converse(
        &self,
        turns: &[Turn<'_>],
        visuals: &[Visual],
        options: &Options,
        sink: &mut Sink<'_>,
    ) -> Result<Answer> {
        let parts: Vec<Part<'_>> = visuals.iter().map(Part::Visual).collect();
        let stated: Vec<Grid> = turns.iter().flat_map(Turn::grids).collect();
        let given: Vec<Grid> = visuals.iter().map(Visual::grid).collect();
        if stated != given {
            let list = |grids: &[Grid]| grids.iter().map(Grid::to_string).collect::<Vec<_>>().join(", ");
            let (expected, found) = (list(&stated), list(&given));
            return Err(Error::Prompt(format!("expected visuals of [{expected}] tokens, found [{found}]")));
        }
        let instruction = options.instruction.clone();
        let instruction = instruction.unwrap_or_else(|| prompt::instruction(medium(&parts), true));
        self.reply(&instruction, turns, &features(&parts), options, sink)
    }

    fn reply(
        &self,
        instruction: &str,
        turns: &[Turn<'_>],
        features: &[Tensor],
        options: &Options,
        sink: &mut Sink<'_>,
    ) -> Result<Answer> {
        let segments = prompt::conversation(self.tokenizer(), instruction, turns)?;
        let mut run = Run::new(self, options);
        run.check(&segments, Some(&options.decoding))?;
        let normed = run.prefill(&segments, features)?;
        run.decode(normed, &options.decoding, sink)
    }

    /// Prepares a prompt up to the last of `visuals`, for any number of independent questions.
    ///
    /// # Errors
    /// No visuals, an instruction that holds a special token.
    pub fn look(&self, visuals: &[Visual], options: &Options) -> Result<Look<'_>> {
        Look::new(self, visuals, true, options)
    }

    /// As [`look`](Self::look), for a description of the visuals: the question is then empty.
    ///
    /// # Errors
    /// As [`look`](Self::look).
    pub fn look_to_describe(&self, visuals: &[Visual], options: &Options) -> Result<Look<'_>> {
        Look::new(self, visuals, false, options)
    }

    /// Begins a conversation whose turns see the ones before.
    ///
    /// The model was not trained on more than one turn: later answers may drift.
    ///
    /// # Errors
    /// An instruction that holds a special token.
    pub fn chat(&self, options: &Options) -> Result<Chat<'_>> {
        Chat::new(self, options)
    }

    fn decoder(&self) -> Decoder<'_> {
        Decoder { llm: &self.llm, tokenizer: &self.checkpoint.tokenizer, stop_ids: &self.checkpoint.stop_ids }
    }
}

/// A cache and the place in it.
struct Run<'a> {
    lance: &'a Understanding,
    cache: Cache,
    at: Cursor,
    attention: BlockAttention,
    prefill_time: Duration,
}

impl<'a> Run<'a> {
    fn new(lance: &'a Understanding, options: &Options) -> Self {
        Self {
            lance,
            cache: lance.llm.cache(),
            at: Cursor::default(),
            attention: options.block_attention,
            prefill_time: Duration::ZERO,
        }
    }

    /// Refuses a prompt that is too long, and decoding options out of range, before they cost anything.
    fn check(&self, segments: &[Segment], decoding: Option<&Decoding>) -> Result<()> {
        let rows = |segment: &Segment| match segment {
            Segment::Text(ids) => ids.len(),
            Segment::Vit(grid) | Segment::Clean(grid) | Segment::Noise(grid) => grid.count() + 2,
        };
        let total = self.at.rows + segments.iter().map(rows).sum::<usize>();
        let max = self.lance.config().max_position_embeddings;
        if total >= max {
            return Err(Error::Prompt(format!("expected less than {max} tokens, found {total}")));
        }
        decoding.map_or(Ok(()), |decoding| self.lance.decoder().check(decoding, total))
    }

    /// Rows of segments from where the cache ends.
    fn sequence(&self, segments: &[Segment]) -> Sequence {
        let sequence = Sequence::new(segments, &self.lance.llm.config().layout(), self.at);
        match self.attention {
            BlockAttention::Full => sequence,
            BlockAttention::Causal => sequence.causal(),
        }
    }

    /// Runs segments from where the cache ends; the last row after the final norm.
    fn prefill(&mut self, segments: &[Segment], features: &[Tensor]) -> Result<Tensor> {
        let start = Instant::now();
        let llm = &self.lance.llm;
        let sequence = self.sequence(segments);
        let normed = with_autorelease_pool(|| {
            llm.prefill(&llm.embed(&sequence, features)?, &sequence, &mut self.cache)
        })?;
        normed.device().synchronize()?;
        self.at = sequence.end();
        self.prefill_time = start.elapsed();
        Ok(normed)
    }

    /// Runs text from where the cache ends; its last `n` rows after the final norm, f32 `(n, D)`.
    fn last_rows(&mut self, segments: &[Segment], n: usize) -> Result<Tensor> {
        let llm = &self.lance.llm;
        let sequence = self.sequence(segments);
        let normed = with_autorelease_pool(|| {
            let hidden = llm.forward(&llm.embed(&sequence, &[])?, &sequence, &mut self.cache)?;
            llm.norm(&hidden, &sequence)
        })?;
        self.at = sequence.end();
        Ok(normed.narrow(0, sequence.len() - n, n)?)
    }

    /// A copy that goes on independently.
    fn fork(&self) -> Result<Self> {
        Ok(Self { cache: self.cache.fork()?, ..*self })
    }

    /// Generates the answers of several runs side by side.
    fn decode_all(
        runs: &mut [(Self, Tensor)],
        options: &Decoding,
        sink: &mut SinkOf<'_>,
    ) -> Result<Vec<Answer>> {
        let Some((first, _)) = runs.first() else { return Ok(Vec::new()) };
        let decoder = first.lance.decoder();
        let before: Vec<(usize, Duration)> =
            runs.iter().map(|(run, _)| (run.at.rows, run.prefill_time)).collect();
        let prompts = runs
            .iter_mut()
            .map(|(run, normed)| Prefilled { normed: normed.clone(), at: run.at, cache: &mut run.cache })
            .collect();
        let decoded = decoder.run_all(prompts, options, sink)?;
        Ok(decoded
            .into_iter()
            .zip(before)
            .map(|(decoded, (rows, time))| decoded.answer(rows, time))
            .collect())
    }

    /// Generates; the cache then ends before the last generated id.
    fn decode(&mut self, normed: Tensor, options: &Decoding, sink: &mut Sink<'_>) -> Result<Answer> {
        let prompt_tokens = self.at.rows;
        let decoded = self.lance.decoder().run(normed, self.at, &mut self.cache, options, sink)?;
        let fed = self.cache.len() - prompt_tokens;
        self.at = Cursor { rows: self.cache.len(), position: self.at.position + fed as u32 };
        Ok(decoded.answer(prompt_tokens, self.prefill_time))
    }
}

impl Decoded {
    fn answer(self, prompt_tokens: usize, prefill_time: Duration) -> Answer {
        Answer {
            text: self.text.trim().to_owned(),
            ids: self.ids,
            finish: self.finish,
            prompt_tokens,
            seed: self.seed,
            prefill_time,
            decode_time: self.time,
        }
    }
}

fn features(parts: &[Part<'_>]) -> Vec<Tensor> {
    let of = |part: &Part<'_>| match part {
        Part::Text(_) => None,
        Part::Visual(visual) => Some(visual.features.clone()),
    };
    parts.iter().filter_map(of).collect()
}

fn medium(parts: &[Part<'_>]) -> Medium {
    let of = |part: &Part<'_>| match part {
        Part::Text(_) => Medium::Text,
        Part::Visual(visual) => visual.medium,
    };
    let media: Vec<Medium> = parts.iter().map(of).collect();
    [Medium::Video, Medium::Image].into_iter().find(|medium| media.contains(medium)).unwrap_or(Medium::Text)
}

fn has_text(parts: &[Part<'_>]) -> bool {
    parts.iter().any(|part| matches!(part, Part::Text(text) if !text.is_empty()))
}

#[cfg(test)]
mod tests;
