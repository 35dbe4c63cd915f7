//! Options that `ask` and `chat` share.

use anyhow::Result;
use candle_core::Device;
use lance_mm::checkpoint::is_bundled;
use lance_mm::image::{self, LoadOptions, Resize};
use lance_mm::tensor::{ActivationPrecision, DeviceChoice};
use lance_mm::{AskOptions, DecodeOptions, Sampling};

use crate::output::Hints;

/// Heading of the options that `-h` hides.
pub(crate) const ADVANCED: &str = "Advanced";

/// Model that answers.
#[derive(clap::Args)]
#[command(next_help_heading = "Model")]
pub(crate) struct ModelArgs {
    /// Checkpoint: a folder, ORG/NAME[@REVISION] of a pulled model, or nano [default: nano]
    #[arg(short, long, value_name = "MODEL", env = "LANCE_MM_MODEL", hide_env_values = true)]
    pub(crate) model: Option<String>,
    /// Unload the vision encoder after every image, as ask always does
    #[arg(long, help_heading = ADVANCED, hide_short_help = true)]
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

/// Device and precision of the networks.
#[derive(clap::Args)]
pub(crate) struct ComputeArgs {
    /// Device: metal needs a Mac and a build with that feature; auto takes it where possible
    #[arg(long, value_name = "auto|cpu|metal", default_value_t)]
    device: DeviceChoice,
    /// Precision of activations in matmuls: bf16 (fast), split (two bf16 terms, near exact) or f32. It is that of the
    /// KV cache, too.
    #[arg(long, value_name = "bf16|split|f32", default_value_t, help_heading = ADVANCED, hide_short_help = true)]
    activations: ActivationPrecision,
}

impl ComputeArgs {
    /// Opens the device.
    pub(crate) fn open_device(&self) -> Result<Device> {
        Ok(self.device.open()?)
    }

    /// Precision of activations in matmuls.
    pub(crate) fn activations(&self) -> ActivationPrecision {
        self.activations
    }
}

/// Reading of images and videos.
#[derive(clap::Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct ImageArgs {
    /// Resolution: native (whole image, for documents), image_256res, image_512res, image_768res, video_192p,
    /// video_360p or video_480p [default: the trained one]
    #[arg(long, value_name = "SIZE")]
    resize: Option<String>,
    /// Ignore the EXIF orientation of photographs
    #[arg(long, help_heading = ADVANCED, hide_short_help = true)]
    no_auto_orient: bool,
    /// Read every IMAGE as a video: a GIF, a video file, or a folder of frames
    #[arg(long)]
    pub(crate) video: bool,
    /// Frame rate of a video [default: the file's own, 24 for a folder]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(crate) fps: Option<f64>,
}

/// Generation of answers.
#[derive(clap::Args)]
#[command(next_help_heading = "Answer")]
pub(crate) struct AnswerArgs {
    /// Maximum number of tokens
    #[arg(short = 'n', long, value_name = "N", default_value_t = DecodeOptions::default().max_new_tokens)]
    max_new_tokens: usize,
    /// Sampling temperature; 0 is greedy
    #[arg(short, long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Nucleus sampling: the most probable tokens of this total probability; 1 is off
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Sample among the K most probable tokens; 0 is off
    #[arg(long, value_name = "K", default_value_t = 0)]
    top_k: usize,
    /// Penalty on tokens generated before; 1 is off
    #[arg(long, value_name = "R", default_value_t = 1.0, allow_negative_numbers = true)]
    #[arg(help_heading = ADVANCED, hide_short_help = true)]
    repetition_penalty: f32,
    /// Random seed of sampling
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Stop string, where the answer ends; may be repeated
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// System message [default: the trained one for images, videos or text]
    #[arg(long, alias = "system", value_name = "TEXT", help_heading = ADVANCED, hide_short_help = true)]
    instruction: Option<String>,
}

impl ImageArgs {
    /// Decoding of image files.
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
    /// Options of the library, checked as far as that needs no model.
    pub(crate) fn options(&self, images: &ImageArgs, hints: Hints) -> Result<AskOptions> {
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        sampling.validate()?;
        if self.temperature == 0.0 && (self.top_p != 1.0 || self.top_k != 0 || self.seed.is_some()) {
            hints.note(
                "note: --top-p, --top-k and --seed have no effect on greedy decoding (--temperature 0)",
            );
        }
        Ok(AskOptions {
            system_message: self.instruction.clone(),
            decode: DecodeOptions {
                max_new_tokens: self.max_new_tokens,
                sampling,
                stop_strings: self.stop.clone(),
            },
            resize: images.resize()?,
            ..AskOptions::default()
        })
    }
}
