//! What is asked for, and how it is to be drawn.

use candle_core::Tensor;
use lance_mm_image::RgbImage;
use lance_mm_image::video::Clip;
use lance_mm_models::Grid;

use super::Unconditional;
use crate::error::{Error, Result};
use crate::guidance::Guidance;
use crate::prompt::Task;
use crate::schedule::Schedule;
use crate::solver::Method;

/// Pixels that a latent is high and wide.
pub const LATENT_PIXELS: u32 = 16;
/// Frames that a latent frame after the first stands for.
const LATENT_FRAMES: usize = 4;
/// Most frames that may be asked for: the table of the video checkpoint has 31 latent frames.
const MAX_FRAMES: usize = 121;
/// Longest side that may be asked for; the table of latent positions ends long before.
const MAX_SIDE: u32 = 4096;

/// Height and width in pixels, multiples of 16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

impl Size {
    /// A size that can be drawn.
    ///
    /// # Errors
    /// Sides that are not multiples of 16 from 16 to 4096.
    pub fn new(height: u32, width: u32) -> Result<Self> {
        for (name, side) in [("height", height), ("width", width)] {
            if !side.is_multiple_of(LATENT_PIXELS) || !(LATENT_PIXELS..=MAX_SIDE).contains(&side) {
                let expected = format!("a multiple of {LATENT_PIXELS} from {LATENT_PIXELS} to {MAX_SIDE}");
                return Err(Error::option(name, expected, side));
            }
        }
        Ok(Self { height, width })
    }
}

/// Sides of the squares whose buckets a source is brought to, for the VAE and the vision transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// For the VAE, and so of the result.
    pub vae: u32,
    /// For the vision transformer.
    pub vit: u32,
}

/// Upstream's names.
const RESOLUTIONS: [(&str, Resolution); 6] = [
    ("image_256res", Resolution { vae: 256, vit: 224 }),
    ("image_512res", Resolution { vae: 512, vit: 448 }),
    ("image_768res", Resolution::IMAGE),
    ("video_192p", Resolution { vae: 256, vit: 224 }),
    ("video_360p", Resolution { vae: 480, vit: 476 }),
    ("video_480p", Resolution::VIDEO),
];

impl Resolution {
    /// `image_768res`, the default of image edits.
    pub const IMAGE: Self = Self { vae: 768, vit: 672 };
    /// `video_480p`, the default of tasks on videos.
    pub const VIDEO: Self = Self { vae: 640, vit: 616 };

    /// The resolution of one of upstream's names.
    ///
    /// # Errors
    /// Another name.
    pub fn named(name: &str) -> Result<Self> {
        match RESOLUTIONS.iter().find(|(known, _)| *known == name) {
            Some((_, resolution)) => Ok(*resolution),
            None => Err(Error::option("resolution", RESOLUTIONS.map(|(known, _)| known).join(", "), name)),
        }
    }
}

/// What is to be drawn, from what.
#[derive(Clone, Copy)]
pub enum Request<'a> {
    /// A picture from a caption.
    TextToImage {
        /// Of the picture.
        size: Size,
    },
    /// A video from a caption.
    TextToVideo {
        /// Of each frame.
        size: Size,
        /// Frames asked for; 4·((n − 1) / 4) + 1 are drawn.
        frames: usize,
    },
    /// A video that begins with a picture.
    ImageToVideo {
        /// The first frame, before it is cropped and resized.
        image: &'a RgbImage,
        /// Frames asked for; 4·((n − 1) / 4) + 1 are drawn.
        frames: usize,
        /// To which it is resized.
        resolution: Resolution,
    },
    /// A picture changed as an instruction says.
    EditImage {
        /// The source, before it is cropped and resized.
        image: &'a RgbImage,
        /// To which it is resized.
        resolution: Resolution,
    },
    /// A video changed as an instruction says: the frames that are sampled of it.
    EditVideo {
        /// The source, before it is sampled, cropped and resized.
        clip: &'a Clip,
        /// To which it is resized.
        resolution: Resolution,
    },
}

impl Request<'_> {
    /// Which task it is.
    pub fn task(&self) -> Task {
        match self {
            Self::TextToImage { .. } => Task::TextToImage,
            Self::TextToVideo { .. } => Task::TextToVideo,
            Self::ImageToVideo { .. } => Task::ImageToVideo,
            Self::EditImage { .. } => Task::EditImage,
            Self::EditVideo { .. } => Task::EditVideo,
        }
    }

    /// To which its picture or video is resized; `None` where there is none.
    pub fn resolution(&self) -> Option<Resolution> {
        match self {
            Self::TextToImage { .. } | Self::TextToVideo { .. } => None,
            Self::ImageToVideo { resolution, .. }
            | Self::EditImage { resolution, .. }
            | Self::EditVideo { resolution, .. } => Some(*resolution),
        }
    }

    /// Latents of the result.
    ///
    /// # Errors
    /// No frames or too many, a size or source that cannot be drawn.
    pub fn grid(&self) -> Result<Grid> {
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
        let size = Size::new(size.height, size.width)?;
        let side = |pixels: u32| (pixels / LATENT_PIXELS) as usize;
        Ok(Grid { t: (frames - 1) / LATENT_FRAMES + 1, h: side(size.height), w: side(size.width) })
    }
}

fn bucket_of(image: &RgbImage, resolution: Resolution) -> Result<Size> {
    let bucket = lance_mm_image::bucket(lance_mm_image::Size::of(image), resolution.vae)?;
    Ok(Size { height: bucket.height, width: bucket.width })
}

/// How something is drawn. The default is upstream's published setting.
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// Steps from noise to picture; at least 1.
    pub steps: usize,
    /// Above 1, more of the steps are spent near the noise.
    pub shift: f64,
    /// How velocities are integrated.
    pub method: Method,
    /// How far the caption is followed.
    pub guidance: Guidance,
    /// Seed of the [`noise`](crate::noise()). The same seed draws the same on the same machine.
    pub seed: u64,
    /// The noise itself instead of a seed: f32 `(N, 48)`, one row a latent of the result.
    pub noise: Option<Tensor>,
    /// Standard normal values f32 `(48, t, h, w)` that move the latents of a source within what the VAE is
    /// uncertain of, as upstream does at random. Without them they are its best guess.
    pub source_noise: Option<Tensor>,
    /// How the prompt without its caption is run.
    pub unconditional: Unconditional,
    /// Draw with quantized weights, of which nobody has shown that they draw well.
    pub allow_quantized: bool,
}

impl Default for GenerationOptions {
    fn default() -> Self {
        Self {
            steps: 30,
            shift: 3.5,
            method: Method::Euler,
            guidance: Guidance::default(),
            seed: 42,
            noise: None,
            source_noise: None,
            unconditional: Unconditional::Cached,
            allow_quantized: false,
        }
    }
}

impl GenerationOptions {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(error: Error) -> String {
        error.to_string()
    }

    #[test]
    fn grids_of_all_tasks() {
        let size = Size::new(480, 848).unwrap();
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
    fn what_cannot_be_drawn_is_named() {
        for (h, w, name) in [(760, 768, "height"), (768, 0, "width"), (768, 4112, "width"), (8, 16, "height")]
        {
            let error = text(Size::new(h, w).unwrap_err());
            assert!(error.starts_with(&format!("option {name}: expected a multiple of 16 from 16 to 4096")));
        }
        for frames in [0, 122] {
            let request = Request::TextToVideo { size: Size { height: 64, width: 64 }, frames };
            let error = text(request.grid().unwrap_err());
            assert_eq!(error, format!("option frames: expected a number from 1 to 121, found {frames}"));
        }
        let unchecked = Request::TextToImage { size: Size { height: 63, width: 64 } };
        assert!(text(unchecked.grid().unwrap_err()).contains("height"));
        assert!(text(Resolution::named("image_1k").unwrap_err()).contains("video_480p, found image_1k"));
        assert_eq!(Resolution::named("video_360p").unwrap(), Resolution { vae: 480, vit: 476 });
        let empty = RgbImage::new(0, 4);
        assert!(Request::EditImage { image: &empty, resolution: Resolution::IMAGE }.grid().is_err());
    }

    #[test]
    fn options_are_checked() {
        let default = GenerationOptions::default;
        default().validate().unwrap();
        for (options, name) in [
            (GenerationOptions { steps: 0, ..default() }, "steps"),
            (GenerationOptions { shift: 0.0, ..default() }, "shift"),
            (
                GenerationOptions { guidance: Guidance { scale: -1.0, ..Guidance::default() }, ..default() },
                "guidance",
            ),
        ] {
            let error = text(options.validate().unwrap_err());
            assert!(error.starts_with(&format!("option {name}: expected")), "{error}");
        }
    }
}
