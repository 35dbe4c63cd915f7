//! Pictures and videos from captions, pictures and videos.
//!
//! [`Generation`] holds the networks, a [`Request`] says what is to be drawn from what, [`GenerationOptions`]
//! how. Each task is a list of [`Piece`]s, laid out by a [`Plan`]; one loop denoises all of them.

mod plan;
mod request;
mod trace;

use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use lance_mm_image::{self as image, Resize, RgbImage};
use lance_mm_models::latent::CHANNELS;
use lance_mm_models::{Cache, Config, Experts, Grid, LatentLayers, Llm, Sequence, Vae, VaeConfig, Vit};
use lance_mm_tensor::with_autorelease_pool;

use crate::checkpoint::Checkpoint;
use crate::denoise::{Denoised, Denoiser, Prefix};
use crate::error::{Error, Result};
use crate::noise::noise;
use crate::prompt::{GenerationPrompt, Task};
use crate::schedule::Step;
use crate::tokenizer::Tokenizer;
use crate::warm;
pub use plan::{Piece, Plan, Unconditional};
pub use request::{GenerationOptions, LATENT_PIXELS, Request, Resolution, Size};
pub use trace::{Pass, Trace};

/// Lance's generating side: both experts, the latent layers, the VAE and, for edits, the vision transformer.
///
/// ```no_run
/// use std::ops::ControlFlow;
/// use lance_mm_pipelines::generate::Size;
/// use lance_mm_pipelines::{Generation, GenerationOptions, Request};
///
/// let lance = Generation::from_pretrained("Lance-3B-bf16")?;
/// let request = Request::TextToImage { size: Size::new(768, 768)? };
/// let options = GenerationOptions::default();
/// let drawn = lance.generate("A red fox at sunset", &request, &options, &mut |_| ControlFlow::Continue(()))?;
/// drawn.frames[0].save("fox.png")?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Generation {
    pub(crate) checkpoint: Checkpoint,
    llm: Llm,
    latents: LatentLayers,
    vit: Option<Vit>,
    vae: Vae,
}

/// What was drawn.
#[derive(Clone)]
pub struct Generated {
    /// The picture, or the frames of the video, 12 a second.
    pub frames: Vec<RgbImage>,
    /// The latents, f32 `(N, 48)` in order of time, row, column.
    pub latents: Tensor,
    /// Of the latents.
    pub grid: Grid,
}

/// A part of the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// The vision transformer looks at the source.
    See,
    /// The VAE encodes the source.
    Encode,
    /// Everything before the noise block goes through the language model once.
    Prompt,
    /// The steps.
    Denoise,
    /// The VAE decodes the result.
    Decode,
}

/// What is going on.
pub enum Event<'a> {
    /// A part of the work begins.
    Begin(Stage),
    /// A step was taken.
    Step(&'a Denoised<'a>),
}

/// Told what is going on; asks to stop by returning `Break`.
pub type Observer<'a> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'a;

/// A source as the networks see it.
#[derive(Default)]
pub struct Encoded {
    /// Rows of the vision transformer f32 `(n, D)`, for edits.
    pub features: Option<(Tensor, Grid)>,
    /// Latents f32 `(48, t, h, w)`: of the source for edits, of the first frame for a video from a picture.
    pub latents: Option<Tensor>,
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generation").field("checkpoint", &self.checkpoint).finish_non_exhaustive()
    }
}

impl Generation {
    /// Loads a folder in the published MLX layout with `vae.safetensors`. Weights are mapped; those of the
    /// vision transformer are touched by edits only.
    ///
    /// # Errors
    /// Everything that is wrong with the folder's files; a checkpoint of the UND expert alone.
    pub fn from_pretrained(dir: impl AsRef<Path>) -> Result<Self> {
        Self::new(Checkpoint::open(dir)?)
    }

    /// Builds the networks of a checkpoint.
    ///
    /// # Errors
    /// All tensors that are missing, misshapen or unknown; no VAE; a checkpoint of the UND expert alone.
    pub fn new(mut checkpoint: Checkpoint) -> Result<Self> {
        if checkpoint.config.und_only
            || !checkpoint.model.tensors().iter().any(|t| t.name.contains("_moe_gen"))
        {
            let message = "expected both experts, found the UND expert alone, which answers but cannot draw";
            return Err(Error::Checkpoint { name: checkpoint.name, message: message.into() });
        }
        let vae = checkpoint.require_vae()?;
        let vae = Vae::load(&VaeConfig::of(&vae)?, &vae)?;
        let latents = LatentLayers::load(&checkpoint.config, &checkpoint.model)?;
        let llm = Llm::load(&checkpoint.config, &checkpoint.model, Experts::Both)?;
        let vit = match &checkpoint.vit {
            Some(weights) => Some(Vit::load(&checkpoint.config.vision, weights)?),
            None => None,
        };
        warm::up(&checkpoint, &llm, vit.as_ref(), Some((&latents, &vae)))?;
        Ok(Self { checkpoint, llm, latents, vit, vae })
    }

    /// The same, decoding pictures in about so many bytes: see [`Vae::with_budget`].
    #[must_use]
    pub fn with_decoding_budget(self, bytes: usize) -> Self {
        Self { vae: self.vae.with_budget(bytes), ..self }
    }

    /// The checkpoint that it was loaded from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.checkpoint.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.checkpoint.tokenizer
    }

    /// The device its networks run on.
    pub fn device(&self) -> &Device {
        self.checkpoint.model.device()
    }

    /// The language model.
    pub fn llm(&self) -> &Llm {
        &self.llm
    }

    /// What leads from latents to rows of the language model and back.
    pub fn latent_layers(&self) -> &LatentLayers {
        &self.latents
    }

    /// The VAE.
    pub fn vae(&self) -> &Vae {
        &self.vae
    }

    /// The vision transformer.
    ///
    /// # Errors
    /// A checkpoint without `vit.safetensors`.
    pub fn vit(&self) -> Result<&Vit> {
        self.vit.as_ref().ok_or_else(|| Error::Checkpoint {
            name: self.checkpoint.name.clone(),
            message: "expected vit.safetensors, which edits need, found none".into(),
        })
    }

    /// Whether matrices of the language model are quantized.
    pub fn is_quantized(&self) -> bool {
        self.checkpoint.is_quantized()
    }

    /// Refuses what could not be drawn, before anything is computed: the latents of what can.
    ///
    /// # Errors
    /// Quantized weights unless they are allowed; options out of range; a prompt that holds a special token or
    /// is too long; a size, frame count or source that cannot be drawn; noise of another shape; more frames
    /// than the checkpoint has positions for; an edit without vision transformer.
    pub fn check(&self, prompt: &str, request: &Request<'_>, options: &GenerationOptions) -> Result<Grid> {
        let task = request.task();
        if self.is_quantized() && !options.allow_quantized {
            return Err(self.quantized(task));
        }
        options.validate()?;
        let grid = request.grid()?;
        self.latents.positions(grid)?;
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
        let prompt = GenerationPrompt::new(self.tokenizer(), task, prompt)?;
        // The source of an edit takes at most as many rows again for the VAE, and fewer for the ViT.
        let blocks = if matches!(task, Task::EditImage | Task::EditVideo) { 3 } else { 1 };
        let text = prompt.before.len() + prompt.caption.len() + prompt.after.len();
        let (rows, max) = (text + blocks * (grid.count() + 2), self.config().max_position_embeddings);
        if rows > max {
            let caption = prompt.caption.len();
            let room = max.saturating_sub(rows - caption);
            return Err(Error::Prompt(format!(
                "expected at most {room} tokens beside {grid} latents, found {caption}"
            )));
        }
        Ok(grid)
    }

    fn quantized(&self, task: Task) -> Error {
        Error::Checkpoint {
            name: self.checkpoint.name.clone(),
            message: format!(
                "{task}: expected weights that are not quantized, found {}; nothing shows that such weights draw \
                 well: take mlx-community/Lance-3B-bf16 (for videos Lance-3B-Video-bf16), or allow them and \
                 measure the loss with `lance-mm eval generation`",
                self.checkpoint.bits()
            ),
        }
    }

    /// Draws what is asked for, telling `observe` how it goes.
    ///
    /// # Errors
    /// What [`check`](Self::check) refuses; [`Error::Interrupted`] when the observer asks to stop; weights
    /// that overflow.
    pub fn generate(
        &self,
        prompt: &str,
        request: &Request<'_>,
        options: &GenerationOptions,
        observe: &mut Observer<'_>,
    ) -> Result<Generated> {
        let grid = self.check(prompt, request, options)?;
        let encoded = self.encode(request, options, observe)?;
        let plan = self.plan(prompt, request.task(), &encoded, grid, options.unconditional)?;
        let latents = self.denoise(&plan, request.task(), &encoded, options, observe)?;
        begin(observe, Stage::Decode)?;
        let frames = crate::pixels::tensor_to_frames(&self.pixels(&latents, grid)?)?;
        Ok(Generated { frames, latents, grid })
    }

    /// Runs the source of a request through the networks that see it.
    ///
    /// # Errors
    /// A source that cannot be sized or sampled; source noise of another shape.
    pub fn encode(
        &self,
        request: &Request<'_>,
        options: &GenerationOptions,
        observe: &mut Observer<'_>,
    ) -> Result<Encoded> {
        let (frames, resolution, seen): (Vec<&RgbImage>, Resolution, bool) = match *request {
            Request::TextToImage { .. } | Request::TextToVideo { .. } => return Ok(Encoded::default()),
            Request::ImageToVideo { image, resolution, .. } => (vec![image], resolution, false),
            Request::EditImage { image, resolution } => (vec![image], resolution, true),
            Request::EditVideo { clip, resolution } => (clip.sampled()?, resolution, true),
        };
        let features = match seen {
            true => {
                begin(observe, Stage::See)?;
                Some(self.see(&image::resize_frames(&frames, Resize::Bucket { base: resolution.vit })?)?)
            }
            false => None,
        };
        begin(observe, Stage::Encode)?;
        let pixels = crate::pixels::frames_to_tensor(&image::resize_to_bucket(&frames, resolution.vae)?)?;
        let latents = self.latents_of(&pixels, options.source_noise.as_ref())?;
        Ok(Encoded { features, latents: Some(latents) })
    }

    /// Rows of the vision transformer and their grid.
    fn see(&self, frames: &[RgbImage]) -> Result<(Tensor, Grid)> {
        let vit = self.vit()?;
        let patches = image::patches(frames)?;
        let grid = Grid { t: patches.t, h: patches.h, w: patches.w };
        let rows =
            Tensor::from_vec(patches.values, (grid.count(), vit.config().patch_width()), &Device::Cpu)?;
        Ok((
            with_autorelease_pool(|| vit.forward(&rows, &[grid]))?,
            grid.merged(vit.config().spatial_merge_size),
        ))
    }

    /// Lays a task out.
    ///
    /// # Errors
    /// A prompt that holds a special token.
    pub fn plan(
        &self,
        prompt: &str,
        task: Task,
        encoded: &Encoded,
        grid: Grid,
        unconditional: Unconditional,
    ) -> Result<Plan> {
        let prompt = GenerationPrompt::new(self.tokenizer(), task, prompt)?;
        let seen = encoded.features.as_ref().map(|(_, grid)| *grid);
        Ok(Plan::new(&pieces(prompt, seen, grid), &self.config().layout(), unconditional))
    }

    /// Runs everything before the noise block once: what both passes share, then the rest of each. Without
    /// `guided` there is no second pass.
    ///
    /// # Errors
    /// What the networks refuse.
    pub fn prefill(&self, plan: &Plan, encoded: &Encoded, guided: bool) -> Result<Prefix> {
        let mut shared = self.llm.cache();
        let mut blocks = self.source_rows(encoded, plan.grid)?.into_iter();
        for sequence in &plan.shared {
            let features: Vec<Tensor> = blocks.by_ref().take(sequence.visual().len()).collect();
            self.run(sequence, &features, &mut shared)?;
        }
        let mut unconditional = None;
        if guided && plan.has_caption() {
            let mut cache = shared.fork()?;
            plan.unconditional.iter().try_for_each(|sequence| self.run(sequence, &[], &mut cache))?;
            unconditional = Some(cache);
        }
        plan.conditional.iter().try_for_each(|sequence| self.run(sequence, &[], &mut shared))?;
        Ok(Prefix { conditional: shared, unconditional })
    }

    /// Rows of the blocks that an edit's source takes before the noise: of the vision transformer, and clean
    /// latents.
    fn source_rows(&self, encoded: &Encoded, grid: Grid) -> Result<Vec<Tensor>> {
        match (&encoded.features, &encoded.latents) {
            (Some((seen, _)), Some(latents)) => {
                let clean = self.latents.embed(&rows_of(latents)?, grid, &vec![0.0; grid.t])?;
                Ok(vec![seen.clone(), clean])
            }
            _ => Ok(Vec::new()),
        }
    }

    fn run(&self, sequence: &Sequence, features: &[Tensor], cache: &mut Cache) -> Result<()> {
        with_autorelease_pool(|| self.llm.forward(&self.llm.embed(sequence, features)?, sequence, cache))?;
        Ok(())
    }

    fn denoise(
        &self,
        plan: &Plan,
        task: Task,
        encoded: &Encoded,
        options: &GenerationOptions,
        observe: &mut Observer<'_>,
    ) -> Result<Tensor> {
        let grid = plan.grid;
        begin(observe, Stage::Prompt)?;
        let first =
            encoded.latents.as_ref().filter(|_| task == Task::ImageToVideo).map(rows_of).transpose()?;
        let mut denoiser = self.denoiser(plan, encoded, options, usize::from(first.is_some()))?;
        begin(observe, Stage::Denoise)?;
        let mut x = match &options.noise {
            Some(noise) => noise.clone(),
            None => noise(options.seed, grid.count())?,
        };
        if let Some(first) = &first {
            let n = first.dim(0)?;
            x = Tensor::cat(&[first, &x.narrow(0, n, grid.count() - n)?], 0)?;
        }
        let schedule = options.schedule()?;
        denoiser.run(x, &schedule, options.method, &mut |step| observe(Event::Step(step)))
    }

    /// Guided velocity f32 `(N, 48)` of latents f32 `(N, 48)` at a step, everything before the noise block read once:
    /// for a sampler of one's own, or to compare models at the same latents.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill); of the function, latents that do not match the plan's grid.
    pub fn velocity<'a>(
        &'a self,
        plan: &'a Plan,
        encoded: &Encoded,
        options: &'a GenerationOptions,
    ) -> Result<impl FnMut(&Tensor, Step) -> Result<Tensor> + 'a> {
        let mut denoiser = self.denoiser(plan, encoded, options, 0)?;
        Ok(move |x: &Tensor, step: Step| Ok(denoiser.velocities(x, step)?.v))
    }

    /// What denoises, with everything before the noise block in its cache.
    fn denoiser<'a>(
        &'a self,
        plan: &'a Plan,
        encoded: &Encoded,
        options: &'a GenerationOptions,
        clean_frames: usize,
    ) -> Result<Denoiser<'a>> {
        let guided = options.schedule()?.steps().any(|step| options.guidance.applies(step.t));
        Ok(Denoiser {
            llm: &self.llm,
            latents: &self.latents,
            plan,
            prefix: self.prefill(plan, encoded, guided)?,
            guidance: &options.guidance,
            unconditional: options.unconditional,
            clean_frames,
        })
    }

    /// Decodes latents f32 `(N, 48)`: pixels f32 `(3, T, H, W)`, about in [-1, 1].
    ///
    /// # Errors
    /// Latents that do not match the grid.
    pub fn pixels(&self, latents: &Tensor, grid: Grid) -> Result<Tensor> {
        // (N, 48) -> (48, t, h, w)
        let latents = latents.reshape((grid.t, grid.h, grid.w, CHANNELS))?.permute((3, 0, 1, 2))?;
        Ok(self.vae.decode(&latents.contiguous()?)?)
    }

    /// Latents f32 `(48, t, h, w)` of pixels f32 `(3, T, H, W)`.
    fn latents_of(&self, pixels: &Tensor, noise: Option<&Tensor>) -> Result<Tensor> {
        let Some(noise) = noise else { return Ok(self.vae.encode(pixels)?) };
        let posterior = self.vae.posterior(pixels)?;
        if noise.dims() != posterior.mean.dims() {
            let expected = format!("{:?}", posterior.mean.dims());
            return Err(Error::option("source_noise", expected, format!("{:?}", noise.dims())));
        }
        Ok(posterior.sample(noise)?)
    }
}

/// A task as its pieces: text and noise of `grid`; for edits, whose source is `seen` as so many tokens, the
/// source twice between template and caption.
pub fn pieces(prompt: GenerationPrompt, seen: Option<Grid>, grid: Grid) -> Vec<Piece> {
    let mut pieces = vec![Piece::Template(prompt.before)];
    if let Some(seen) = seen {
        pieces.extend([Piece::Vit(seen), Piece::Clean(grid)]);
    }
    if !prompt.caption.is_empty() {
        pieces.push(Piece::Caption(prompt.caption));
    }
    pieces.extend([Piece::Template(prompt.after), Piece::Noise(grid)]);
    pieces
}

/// Latents `(48, t, h, w)` as rows `(N, 48)`.
fn rows_of(latents: &Tensor) -> Result<Tensor> {
    Ok(latents.permute((1, 2, 3, 0))?.contiguous()?.reshape(((), CHANNELS))?)
}

fn begin(observe: &mut Observer<'_>, stage: Stage) -> Result<()> {
    match observe(Event::Begin(stage)) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    }
}
