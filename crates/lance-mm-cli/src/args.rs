//! Options that `ask` and `chat` share.

use anyhow::Result;
use candle_core::Device;
use lance_mm::checkpoint::is_bundled;
use lance_mm::image::{self, LoadOptions, Resize};
use lance_mm::tensor::{ActivationPrecision, DeviceChoice};
use lance_mm::{AskOptions, DecodeOptions, Sampling};

use crate::output::Hints;

/// Which model answers.
#[derive(clap::Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// Folder of a checkpoint, or org/name (or org/name@revision) of one that was pulled; `nano`, the
    /// default, is the bundled one.
    #[arg(short, long, value_name = "PATH|ORG/NAME", env = "LANCE_MM_MODEL", hide_env_values = true)]
    pub(crate) model: Option<String>,
    /// Give the memory of the vision transformer's weights back after every picture, as `ask` always does.
    #[arg(long)]
    pub(crate) low_memory: bool,
    #[command(flatten)]
    pub(crate) compute: ComputeArgs,
}

impl ModelArgs {
    /// Whether the bundled model answers.
    pub(crate) fn is_bundled(&self) -> bool {
        self.model.as_deref().is_none_or(is_bundled)
    }
}

/// Where networks run, and how they multiply.
#[derive(clap::Args)]
pub(crate) struct ComputeArgs {
    /// Where networks run: `metal` is the GPU of a Mac, in a build with the feature `metal`; `auto` takes it where
    /// it is there.
    #[arg(long, value_name = "auto|cpu|metal", default_value_t)]
    device: DeviceChoice,
    /// What inputs of products with bf16 matrices count as where the processor multiplies bf16: `bf16`, as the
    /// original computes, keys and values kept in it too; `split`, the sum of two bf16 terms, slower on prompts and
    /// pictures and nearly exact; `f32`, exact and slow. On a GPU `bf16` is what rows of the networks are between
    /// operations, keys and values too, and the others are f32.
    #[arg(long, value_name = "bf16|split|f32", default_value_t)]
    activations: ActivationPrecision,
}

impl ComputeArgs {
    /// The device, or why there is none.
    pub(crate) fn open_device(&self) -> Result<Device> {
        Ok(self.device.open()?)
    }

    /// What inputs of products with bf16 matrices count as.
    pub(crate) fn activations(&self) -> ActivationPrecision {
        self.activations
    }
}

/// How pictures are read.
#[derive(clap::Args)]
#[command(next_help_heading = "Pictures")]
pub(crate) struct PictureArgs {
    /// How pictures are sized: `native` keeps all of the picture near its own size (documents, panoramas);
    /// image_256res, image_512res, image_768res, video_192p, video_360p and video_480p crop to the nearest
    /// shape the model was trained on. [default: the model's own]
    #[arg(long, value_name = "SIZE")]
    resize: Option<String>,
    /// Leave pictures as they lie in the file instead of turning them as their EXIF data says.
    #[arg(long)]
    no_auto_orient: bool,
    /// Show every IMAGE as a video: an animated GIF, a file that ffmpeg reads, or a folder of pictures as its
    /// frames. Files that end in .mp4, .mov, .mkv, .webm, .avi, .m4v, .mpg or .mpeg are shown as videos in any case.
    #[arg(long)]
    pub(crate) video: bool,
    /// Frames per second of the video. [default: the file's own, 24 for a folder]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) fps: Option<f64>,
}

/// How answers are generated.
#[derive(clap::Args)]
#[command(next_help_heading = "Answer")]
pub(crate) struct AnswerArgs {
    /// Tokens generated at most.
    #[arg(short = 'n', long, value_name = "N", default_value_t = DecodeOptions::default().max_new_tokens)]
    max_new_tokens: usize,
    /// 0 takes the likeliest token every time; higher is more varied.
    #[arg(short, long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Choose among the likeliest tokens that reach this probability together; 1 is off.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Choose among this many of the likeliest tokens; 0 is off.
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Above 1, tokens that were generated before become less likely.
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Makes a varied answer repeatable.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// End the answer where this text comes up; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// The system message, instead of the one for what is shown.
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,
}

impl PictureArgs {
    /// How picture files are decoded.
    pub(crate) fn load_options(&self) -> LoadOptions {
        LoadOptions { auto_orient: !self.no_auto_orient, ..LoadOptions::default() }
    }

    fn resize(&self) -> Result<Option<Resize>> {
        match self.resize.as_deref() {
            None => Ok(None),
            Some("native") => Ok(Some(Resize::native())),
            Some(name) => match Resize::resolution(name) {
                Ok(resize) => Ok(Some(resize)),
                Err(image::Error::Option { expected, found, .. }) => {
                    anyhow::bail!("--resize: expected native, {expected}, found {found}")
                }
                Err(error) => Err(error.into()),
            },
        }
    }
}

impl AnswerArgs {
    /// The library's options, checked as far as that needs no model.
    pub(crate) fn options(&self, pictures: &PictureArgs, hints: Hints) -> Result<AskOptions> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        sampling.validate()?;
        if self.temperature == 0.0 && (self.top_p != 1.0 || self.top_k != 0 || self.seed.is_some()) {
            hints.note("note: --top-p, --top-k and --seed have no effect at temperature 0");
        }
        Ok(AskOptions {
            system_message: self.instruction.clone(),
            decode: DecodeOptions {
                max_new_tokens: self.max_new_tokens,
                sampling,
                stop_strings: self.stop.clone(),
            },
            resize: pictures.resize()?,
            ..AskOptions::default()
        })
    }
}
