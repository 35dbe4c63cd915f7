//! Requests of generation, and its options.

use candle_core::Tensor;
use lance_mm_image::video::Clip;
use lance_mm_image::{Resolution, RgbImage, Size, bucket};
use lance_mm_models::Grid;
use lance_mm_tensor::StopFlag;

use super::Unconditional;
use crate::error::{Error, Result};
use crate::guidance::Guidance;
use crate::prompt::{SpecialTokens, Task};
use crate::schedule::Schedule;
use crate::solver::SolverKind;

/// Height and width of a latent in pixels.
pub const LATENT_PIXELS: u32 = 16;
/// Frames of a latent frame after the first.
const LATENT_FRAMES: usize = 4;
/// Most frames of a request: the table of the video checkpoint has 31 latent frames.
const MAX_FRAMES: usize = 121;
/// Longest side of a request; the table of latent positions ends long before.
const MAX_SIDE: u32 = 4096;

/// Checks that a size can be generated.
///
/// # Errors
/// Sides that are not multiples of 16 from 16 to 4096.
pub fn check_size(size: Size) -> Result<()> {
    for (name, side) in [("height", size.height), ("width", size.width)] {
        if !side.is_multiple_of(LATENT_PIXELS) || !(LATENT_PIXELS..=MAX_SIDE).contains(&side) {
            let expected = format!("a multiple of {LATENT_PIXELS} from {LATENT_PIXELS} to {MAX_SIDE}");
            return Err(Error::option(name, expected, side));
        }
    }
    Ok(())
}

/// A task of generation with its source.
#[derive(Clone, Copy)]
pub enum Request<'a> {
    /// An image from a caption.
    TextToImage {
        /// Size of the image.
        size: Size,
    },
    /// A video from a caption.
    TextToVideo {
        /// Size of each frame.
        size: Size,
        /// Frames asked for; 4·((n − 1) / 4) + 1 are generated.
        frames: usize,
    },
    /// A video that begins with an image.
    ImageToVideo {
        /// The first frame, before it is cropped and resized.
        image: &'a RgbImage,
        /// Frames asked for; 4·((n − 1) / 4) + 1 are generated.
        frames: usize,
        /// Resolution that it is resized to.
        resolution: Resolution,
    },
    /// An image changed as an instruction says.
    EditImage {
        /// The source, before it is cropped and resized.
        image: &'a RgbImage,
        /// Resolution that it is resized to.
        resolution: Resolution,
    },
    /// The sampled frames of a video changed as an instruction says.
    EditVideo {
        /// The source, before it is sampled, cropped and resized.
        clip: &'a Clip,
        /// Resolution that it is resized to.
        resolution: Resolution,
    },
}

impl Request<'_> {
    /// The task.
    pub fn task(&self) -> Task {
        match self {
            Self::TextToImage { .. } => Task::TextToImage,
            Self::TextToVideo { .. } => Task::TextToVideo,
            Self::ImageToVideo { .. } => Task::ImageToVideo,
            Self::EditImage { .. } => Task::EditImage,
            Self::EditVideo { .. } => Task::EditVideo,
        }
    }

    /// Resolution of its source; `None` without a source.
    pub fn resolution(&self) -> Option<Resolution> {
        match self {
            Self::TextToImage { .. } | Self::TextToVideo { .. } => None,
            Self::ImageToVideo { resolution, .. }
            | Self::EditImage { resolution, .. }
            | Self::EditVideo { resolution, .. } => Some(*resolution),
        }
    }

    /// Grid of the result's latents.
    ///
    /// # Errors
    /// No frames or too many, a size or source that cannot be generated.
    pub fn grid(&self) -> Result<Grid> {
        let bucket_of = |image, resolution: Resolution| bucket(Size::of(image), resolution.vae);
        let (size, frames) = match *self {
            Self::TextToImage { size } => (size, 1),
            Self::TextToVideo { size, frames } => (size, frames),
            Self::ImageToVideo { image, frames, resolution } => (bucket_of(image, resolution)?, frames),
            Self::EditImage { image, resolution } => (bucket_of(image, resolution)?, 1),
            Self::EditVideo { clip, resolution } => {
                let sampled = clip.sampled()?;
                (bucket_of(sampled[0], resolution)?, sampled.len())
            }
        };
        if !(1..=MAX_FRAMES).contains(&frames) {
            return Err(Error::option("frames", format!("a number from 1 to {MAX_FRAMES}"), frames));
        }
        check_size(size)?;
        let side = |pixels: u32| (pixels / LATENT_PIXELS) as usize;
        Ok(Grid { t: (frames - 1) / LATENT_FRAMES + 1, h: side(size.height), w: side(size.width) })
    }
}

/// Options of generation. The default is upstream's published setting.
#[derive(Clone, Debug)]
pub struct GenerateOptions {
    /// Inference steps; at least 1.
    pub steps: usize,
    /// Timestep shift: above 1, more of the steps are spent near the noise.
    pub shift: f64,
    /// Solver of the flow's ODE.
    pub solver: SolverKind,
    /// Classifier-free guidance (CFG).
    pub guidance: Guidance,
    /// Seed of the [`noise`](crate::noise()). The same seed gives the same result on the same machine.
    pub seed: u64,
    /// The noise itself instead of a seed: f32 `(N, 48)`, one row a latent of the result.
    pub noise: Option<Tensor>,
    /// Standard normal values f32 `(48, t, h, w)` that move the latents of a source within what the VAE is
    /// uncertain of, as upstream does at random. Without them they are its best guess.
    pub source_noise: Option<Tensor>,
    /// Layout of the pass without caption.
    pub unconditional: Unconditional,
    /// Generate with quantized weights, of which nobody has shown that they generate well.
    pub allow_quantized: bool,
    /// Handling of special tokens that are written out in the prompt.
    pub special_tokens: SpecialTokens,
    /// Ends the call with [`Error::Interrupted`] when it is set, from any thread. Clones of the options share the
    /// flag.
    pub stop_flag: StopFlag,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        Self {
            steps: 30,
            shift: 3.5,
            solver: SolverKind::Euler,
            guidance: Guidance::default(),
            seed: 42,
            noise: None,
            source_noise: None,
            unconditional: Unconditional::Cached,
            allow_quantized: false,
            special_tokens: SpecialTokens::Refuse,
            stop_flag: StopFlag::new(),
        }
    }
}

impl GenerateOptions {
    /// Checks what needs no model: steps, shift and guidance.
    ///
    /// # Errors
    /// [`Error::Option`] for the first value out of its range.
    pub fn validate(&self) -> Result<()> {
        self.guidance.validate()?;
        self.schedule().map(drop)
    }

    pub(super) fn schedule(&self) -> Result<Schedule> {
        Schedule::new(self.steps, self.shift)
    }

    /// Whether guidance applies to any step.
    pub(super) fn is_guided(&self) -> Result<bool> {
        Ok(self.schedule()?.steps().any(|step| self.guidance.applies(step.t)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(error: Error) -> String {
        error.to_string()
    }

    #[test]
    fn grids_of_all_tasks() {
        let size = Size { width: 848, height: 480 };
        let image = RgbImage::new(1000, 750);
        let clip = Clip::from_frames(vec![RgbImage::new(640, 360); 20], 24.0).unwrap();
        let grid = |t, h, w| Grid { t, h, w };
        for (request, expected) in [
            (Request::TextToImage { size }, grid(1, 30, 53)),
            (Request::TextToVideo { size, frames: 50 }, grid(13, 30, 53)),
            (Request::TextToVideo { size, frames: 121 }, grid(31, 30, 53)),
            (Request::EditImage { image: &image, resolution: Resolution::IMAGE }, grid(1, 42, 56)),
            (
                Request::ImageToVideo { image: &image, frames: 61, resolution: Resolution::VIDEO },
                grid(16, 35, 47),
            ),
            (Request::EditVideo { clip: &clip, resolution: Resolution::VIDEO }, grid(3, 30, 53)),
        ] {
            assert_eq!(request.grid().unwrap(), expected, "{}", request.task());
        }
    }

    #[test]
    fn bad_requests_are_named() {
        for (h, w, name) in [(760, 768, "height"), (768, 0, "width"), (768, 4112, "width"), (8, 16, "height")]
        {
            let error = text(check_size(Size { width: w, height: h }).unwrap_err());
            assert!(error.starts_with(&format!("option {name}: expected a multiple of 16 from 16 to 4096")));
        }
        for frames in [0, 122] {
            let request = Request::TextToVideo { size: Size { height: 64, width: 64 }, frames };
            let error = text(request.grid().unwrap_err());
            assert_eq!(error, format!("option frames: expected a number from 1 to 121, found {frames}"));
        }
        let unchecked = Request::TextToImage { size: Size { height: 63, width: 64 } };
        assert!(text(unchecked.grid().unwrap_err()).contains("height"));
        let empty = RgbImage::new(0, 4);
        assert!(Request::EditImage { image: &empty, resolution: Resolution::IMAGE }.grid().is_err());
    }

    #[test]
    fn options_are_checked() {
        let default = GenerateOptions::default;
        default().validate().unwrap();
        for (options, name) in [
            (GenerateOptions { steps: 0, ..default() }, "steps"),
            (GenerateOptions { shift: 0.0, ..default() }, "shift"),
            (
                GenerateOptions { guidance: Guidance { scale: -1.0, ..Guidance::default() }, ..default() },
                "guidance",
            ),
        ] {
            let error = text(options.validate().unwrap_err());
            assert!(error.starts_with(&format!("option {name}: expected")), "{error}");
        }
    }
}
