//! Images and videos from captions, images and videos.
//!
//! [`Lance::generate_image`] and its siblings are the common calls. [`Lance::generate`] takes any [`Request`] and
//! reports its progress. Each task is a list of [`Piece`]s, laid out by a [`Plan`]; one loop denoises all of them.

mod request;
mod trace;

use candle_core::{DType, Tensor};
use lance_mm_image::video::Clip;
use lance_mm_image::{self as image, Resize, RgbImage};
use lance_mm_models::latent::CHANNELS;
use lance_mm_models::{Cache, Grid, Sequence};
use lance_mm_tensor::{require_finite, with_autorelease_pool};
use tracing::debug_span;

use crate::checkpoint::Checkpoint;
use crate::denoise::{Denoised, Denoiser, Prefix};
use crate::error::{Error, Result};
use crate::model::Lance;
use crate::noise::noise;
use crate::pixels::{frames_to_tensor, tensor_to_frames};
pub use crate::plan::{Piece, Plan, Unconditional};
use crate::prompt::{GenerationPrompt, Task};
use crate::schedule::InferenceStep;
pub use lance_mm_image::{Resolution, Size};
pub use request::{GenerateOptions, LATENT_PIXELS, Request, check_size};
pub use trace::{Pass, Trace};

/// Frames a second of generated videos.
pub const FPS: f64 = 12.0;

/// Result of a generation.
#[derive(Clone)]
pub struct Generated {
    /// The image, or the frames of the video, [`FPS`] a second.
    pub frames: Vec<RgbImage>,
    /// The latents, f32 `(N, 48)` in order of time, row, column.
    pub latents: Tensor,
    /// Grid of the latents.
    pub grid: Grid,
}

/// A stage of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The vision encoder reads the source.
    VisionEncoder,
    /// The VAE encodes the source.
    VaeEncode,
    /// Prefill of everything before the noise block.
    Prompt,
    /// The inference steps.
    Denoise,
    /// The VAE decodes the result.
    VaeDecode,
}

/// Progress of a generation.
pub enum Event<'a> {
    /// A stage begins.
    Begin(Stage),
    /// An inference step was taken.
    Step(&'a Denoised<'a>),
}

/// Receives the progress of a generation.
pub type GenerationObserver<'a> = dyn FnMut(Event<'_>) + 'a;

/// A source, encoded.
#[derive(Default)]
pub struct Encoded {
    /// Output of the vision encoder f32 `(n, D)`, for edits.
    pub features: Option<(Tensor, Grid)>,
    /// Latents f32 `(48, t, h, w)`: of the source for edits, of the first frame for a video from an image.
    pub latents: Option<Tensor>,
}

impl Lance {
    /// Generates an image from a caption.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_image(&self, prompt: &str, size: Size, options: &GenerateOptions) -> Result<RgbImage> {
        self.one_image(prompt, &Request::TextToImage { size }, options)
    }

    /// Changes an image as an instruction says, at upstream's resolution for edits ([`Resolution::IMAGE`]).
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn edit_image(&self, image: &RgbImage, prompt: &str, options: &GenerateOptions) -> Result<RgbImage> {
        self.one_image(prompt, &Request::EditImage { image, resolution: Resolution::IMAGE }, options)
    }

    /// Generates a video of `4·((frames − 1) / 4) + 1` frames from a caption.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_video(
        &self,
        prompt: &str,
        size: Size,
        frames: usize,
        options: &GenerateOptions,
    ) -> Result<Clip> {
        self.one_clip(prompt, &Request::TextToVideo { size, frames }, options)
    }

    /// Generates a video of `4·((frames − 1) / 4) + 1` frames that begins with an image, at upstream's resolution
    /// ([`Resolution::VIDEO`]).
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn animate_image(
        &self,
        image: &RgbImage,
        prompt: &str,
        frames: usize,
        options: &GenerateOptions,
    ) -> Result<Clip> {
        self.one_clip(
            prompt,
            &Request::ImageToVideo { image, frames, resolution: Resolution::VIDEO },
            options,
        )
    }

    /// Changes the sampled frames of a video as an instruction says, at upstream's resolution
    /// ([`Resolution::VIDEO`]).
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn edit_video(&self, clip: &Clip, prompt: &str, options: &GenerateOptions) -> Result<Clip> {
        self.one_clip(prompt, &Request::EditVideo { clip, resolution: Resolution::VIDEO }, options)
    }

    fn one_image(&self, prompt: &str, request: &Request<'_>, options: &GenerateOptions) -> Result<RgbImage> {
        let mut generated = self.generate(prompt, request, options, |_| {})?;
        Ok(generated.frames.swap_remove(0))
    }

    fn one_clip(&self, prompt: &str, request: &Request<'_>, options: &GenerateOptions) -> Result<Clip> {
        Ok(Clip::from_frames(self.generate(prompt, request, options, |_| {})?.frames, FPS)?)
    }

    /// Loads the networks that generate: GEN expert, latent layers and VAE, which the first generation does
    /// otherwise.
    ///
    /// # Errors
    /// As [`llm_with_gen`](Self::llm_with_gen) and [`vae`](Self::vae).
    pub fn load_generator(&self) -> Result<()> {
        self.vae()?;
        self.llm_with_gen().map(drop)
    }

    /// Refuses what could not be generated, before anything is computed: the grid of latents of what can.
    ///
    /// # Errors
    /// Quantized weights unless they are allowed; options out of range; [`Error::SpecialToken`] in the prompt,
    /// [`Error::PromptTooLong`]; a size, frame count or source that cannot be generated; noise of another shape;
    /// more frames than the checkpoint has positions for; a checkpoint without GEN expert or VAE, or, for edits,
    /// without vision encoder.
    pub fn check_request(
        &self,
        prompt: &str,
        request: &Request<'_>,
        options: &GenerateOptions,
    ) -> Result<Grid> {
        let task = request.task();
        if self.is_quantized() && !options.allow_quantized {
            return Err(quantized(self.checkpoint(), task));
        }
        options.validate()?;
        let grid = request.grid()?;
        self.load_generator()?;
        self.latent_layers()?.positions(grid)?;
        if matches!(task, Task::EditImage | Task::EditVideo) {
            self.vit()?;
        }
        if let Some(noise) = &options.noise
            && (noise.dims() != [grid.count(), CHANNELS] || noise.dtype() != DType::F32)
        {
            let expected = format!("F32 [{}, {CHANNELS}]", grid.count());
            let found = format!("{:?} {:?}", noise.dtype(), noise.dims());
            return Err(Error::option("noise", expected, found));
        }
        for (place, noise) in [("noise", &options.noise), ("source noise", &options.source_noise)] {
            noise.as_ref().map_or(Ok(()), |noise| require_finite(place, noise))?;
        }
        let prompt = GenerationPrompt::new(self.tokenizer(), task, prompt, options.special_tokens)?;
        // The source of an edit takes at most as many tokens again for the VAE, and fewer for the ViT.
        let blocks = if matches!(task, Task::EditImage | Task::EditVideo) { 3 } else { 1 };
        let text = prompt.before.len() + prompt.caption.len() + prompt.after.len();
        let (total, max) = (text + blocks * (grid.count() + 2), self.config().max_position_embeddings);
        if total > max {
            let tokens = prompt.caption.len();
            return Err(Error::PromptTooLong { tokens, limit: max.saturating_sub(total - tokens) });
        }
        Ok(grid)
    }

    /// Generates what a request asks for, reporting its progress to `observer`.
    ///
    /// # Errors
    /// As [`check_request`](Self::check_request); [`Error::Interrupted`] when the stop flag is set;
    /// [`Error::NotFinite`] for damaged weights, or numbers that overflow.
    pub fn generate(
        &self,
        prompt: &str,
        request: &Request<'_>,
        options: &GenerateOptions,
        mut observer: impl FnMut(Event<'_>),
    ) -> Result<Generated> {
        let grid = self.check_request(prompt, request, options)?;
        let encoded = self.encode_source(request, options, &mut observer)?;
        let plan = self.plan(prompt, request.task(), &encoded, grid, options)?;
        let latents = self.denoise(&plan, request.task(), &encoded, options, &mut observer)?;
        observer(Event::Begin(Stage::VaeDecode));
        let pixels = self.decode_latents(&latents, grid, options)?;
        let frames = tensor_to_frames(&pixels)?;
        Ok(Generated { frames, latents, grid })
    }

    /// Encodes the source of a request.
    ///
    /// # Errors
    /// A source that cannot be resized or sampled; source noise of another shape; [`Error::Interrupted`].
    pub fn encode_source(
        &self,
        request: &Request<'_>,
        options: &GenerateOptions,
        observer: &mut GenerationObserver<'_>,
    ) -> Result<Encoded> {
        let (frames, resolution, is_edit): (Vec<&RgbImage>, Resolution, bool) = match *request {
            Request::TextToImage { .. } | Request::TextToVideo { .. } => return Ok(Encoded::default()),
            Request::ImageToVideo { image, resolution, .. } => (vec![image], resolution, false),
            Request::EditImage { image, resolution } => (vec![image], resolution, true),
            Request::EditVideo { clip, resolution } => (clip.sampled()?, resolution, true),
        };
        let features = if is_edit {
            observer(Event::Begin(Stage::VisionEncoder));
            let frames = image::resize_frames(&frames, Resize::Bucket { base: resolution.vit })?;
            Some(self.run_vit(image::patches(&frames)?, &options.stop_flag)?)
        } else {
            None
        };
        observer(Event::Begin(Stage::VaeEncode));
        let pixels = frames_to_tensor(&image::resize_to_bucket(&frames, resolution.vae)?)?;
        let latents = self.encode_pixels(&pixels, options)?;
        Ok(Encoded { features, latents: Some(latents) })
    }

    /// Lays a task out.
    ///
    /// # Errors
    /// [`Error::SpecialToken`] in the prompt.
    pub fn plan(
        &self,
        prompt: &str,
        task: Task,
        encoded: &Encoded,
        grid: Grid,
        options: &GenerateOptions,
    ) -> Result<Plan> {
        let prompt = GenerationPrompt::new(self.tokenizer(), task, prompt, options.special_tokens)?;
        let pieces = pieces(prompt, encoded.vit_grid(), grid);
        Ok(Plan::new(&pieces, &self.config().layout(), options.unconditional))
    }

    /// Prefills everything before the noise block once: what both passes of guidance share, then the rest of each.
    /// Without guidance in any step there is no second pass.
    ///
    /// # Errors
    /// [`Error::Interrupted`]; inputs that the networks refuse.
    pub fn prefill(&self, plan: &Plan, encoded: &Encoded, options: &GenerateOptions) -> Result<Prefix> {
        let llm = self.llm_with_gen()?;
        let _span = debug_span!("prefill").entered();
        let run = |sequence: &Sequence, features: &[Tensor], cache: &mut Cache| -> Result<()> {
            with_autorelease_pool(|| {
                llm.forward_with_stop(&llm.embed(sequence, features)?, sequence, cache, &options.stop_flag)
            })?;
            Ok(())
        };
        let mut shared = llm.cache();
        let mut blocks = self.source_features(encoded, plan.grid)?.into_iter();
        for sequence in &plan.shared {
            let features: Vec<Tensor> = blocks.by_ref().take(sequence.visual().len()).collect();
            run(sequence, &features, &mut shared)?;
        }
        let mut unconditional = None;
        if options.is_guided()? && plan.has_caption() {
            let mut cache = shared.fork()?;
            plan.unconditional.iter().try_for_each(|sequence| run(sequence, &[], &mut cache))?;
            unconditional = Some(cache);
        }
        plan.conditional.iter().try_for_each(|sequence| run(sequence, &[], &mut shared))?;
        Ok(Prefix { conditional: shared, unconditional })
    }

    /// Features of the blocks that an edit's source takes before the noise: vision encoder, and clean latents.
    fn source_features(&self, encoded: &Encoded, grid: Grid) -> Result<Vec<Tensor>> {
        match (&encoded.features, &encoded.latents) {
            (Some((features, _)), Some(latents)) => {
                let clean = self.latent_layers()?.embed(&tokens_of(latents)?, grid, &vec![0.0; grid.t])?;
                Ok(vec![features.clone(), clean])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn denoise(
        &self,
        plan: &Plan,
        task: Task,
        encoded: &Encoded,
        options: &GenerateOptions,
        observer: &mut GenerationObserver<'_>,
    ) -> Result<Tensor> {
        let grid = plan.grid;
        observer(Event::Begin(Stage::Prompt));
        let first =
            encoded.latents.as_ref().filter(|_| task == Task::ImageToVideo).map(tokens_of).transpose()?;
        let mut denoiser = self.denoiser(plan, encoded, options, usize::from(first.is_some()))?;
        observer(Event::Begin(Stage::Denoise));
        let _span = debug_span!("denoise", latents = grid.count(), steps = options.steps).entered();
        let mut x = match &options.noise {
            Some(noise) => noise.clone(),
            None => noise(options.seed, grid.count())?,
        };
        if let Some(first) = &first {
            let n = first.dim(0)?;
            x = Tensor::cat(&[first, &x.narrow(0, n, grid.count() - n)?], 0)?;
        }
        let schedule = options.schedule()?;
        denoiser.run(x, &schedule, options.solver, &mut |step| observer(Event::Step(step)))
    }

    /// Guided velocity f32 `(N, 48)` of latents f32 `(N, 48)` at a step, everything before the noise block prefilled
    /// once: for a solver of one's own, or to compare models at the same latents.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill); of the function, latents that do not match the plan's grid.
    pub fn velocity<'a>(
        &'a self,
        plan: &'a Plan,
        encoded: &Encoded,
        options: &'a GenerateOptions,
    ) -> Result<impl FnMut(&Tensor, InferenceStep) -> Result<Tensor> + 'a> {
        let mut denoiser = self.denoiser(plan, encoded, options, 0)?;
        Ok(move |x: &Tensor, step: InferenceStep| Ok(denoiser.velocities(x, step)?.v))
    }

    /// The denoising loop, everything before the noise block prefilled; `clean_frames` latent frames at the beginning
    /// stay as they are.
    fn denoiser<'a>(
        &'a self,
        plan: &'a Plan,
        encoded: &Encoded,
        options: &'a GenerateOptions,
        clean_frames: usize,
    ) -> Result<Denoiser<'a>> {
        Ok(Denoiser {
            llm: self.llm_with_gen()?,
            latents: self.latent_layers()?,
            plan,
            prefix: self.prefill(plan, encoded, options)?,
            guidance: &options.guidance,
            unconditional: options.unconditional,
            clean_frames,
            stop_flag: &options.stop_flag,
        })
    }

    /// Decodes latents f32 `(N, 48)`: pixels f32 `(3, T, H, W)`, about in [-1, 1].
    ///
    /// # Errors
    /// Latents that do not match the grid; [`Error::Interrupted`].
    pub fn decode_latents(&self, latents: &Tensor, grid: Grid, options: &GenerateOptions) -> Result<Tensor> {
        let _span = debug_span!("VAE decode", %grid).entered();
        // (N, 48) -> (48, t, h, w)
        let latents = latents.reshape((grid.t, grid.h, grid.w, CHANNELS))?.permute((3, 0, 1, 2))?;
        Ok(self.budgeted_vae()?.decode_with_stop(&latents.contiguous()?, &options.stop_flag)?)
    }

    /// Latents f32 `(48, t, h, w)` of pixels f32 `(3, T, H, W)`.
    fn encode_pixels(&self, pixels: &Tensor, options: &GenerateOptions) -> Result<Tensor> {
        let vae = self.vae()?;
        let _span = debug_span!("VAE encode", pixels = ?pixels.dims()).entered();
        let posterior = vae.posterior_with_stop(pixels, &options.stop_flag)?;
        let Some(noise) = &options.source_noise else { return Ok(posterior.mean) };
        if noise.dims() != posterior.mean.dims() {
            let expected = format!("{:?}", posterior.mean.dims());
            return Err(Error::option("source_noise", expected, format!("{:?}", noise.dims())));
        }
        Ok(posterior.sample(noise)?)
    }
}

impl Encoded {
    /// Grid of the vision encoder's output.
    fn vit_grid(&self) -> Option<Grid> {
        self.features.as_ref().map(|(_, grid)| *grid)
    }
}

/// The refusal to generate with quantized weights.
fn quantized(checkpoint: &Checkpoint, task: Task) -> Error {
    Error::UnsupportedByModel {
        name: checkpoint.name.clone(),
        message: format!(
            "{task}: expected weights that are not quantized, found {}; nothing shows that such weights generate \
             well: take mlx-community/Lance-3B-bf16 (for videos Lance-3B-Video-bf16), or allow them and \
             measure the loss with `lance-mm eval generation`",
            checkpoint.bits()
        ),
    }
}

/// A task as its pieces: text and noise of `grid`; for edits, whose source has the grid `vit` after the vision
/// encoder, the source twice between template and caption.
pub fn pieces(prompt: GenerationPrompt, vit: Option<Grid>, grid: Grid) -> Vec<Piece> {
    let mut pieces = vec![Piece::Template(prompt.before)];
    if let Some(vit) = vit {
        pieces.extend([Piece::Vit(vit), Piece::Clean(grid)]);
    }
    if !prompt.caption.is_empty() {
        pieces.push(Piece::Caption(prompt.caption));
    }
    pieces.extend([Piece::Template(prompt.after), Piece::Noise(grid)]);
    pieces
}

/// Latents `(48, t, h, w)` as tokens `(N, 48)`.
fn tokens_of(latents: &Tensor) -> Result<Tensor> {
    Ok(latents.permute((1, 2, 3, 0))?.contiguous()?.reshape(((), CHANNELS))?)
}
