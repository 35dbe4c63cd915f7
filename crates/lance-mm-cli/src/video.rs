//! `lance-mm video`: a video from a caption, and a first frame if there is one.

use std::path::PathBuf;

use anyhow::Result;
use lance_mm::Request;

use crate::generation::{self, GenerationArgs, Session, SourceArgs};
use crate::save::Target;

const EXAMPLES: &str = "\
Examples:
  lance-mm video \"A red panda surfs\" -o panda.mp4 --model ./Lance-3B-Video-bf16
  lance-mm video \"It turns around\" --image fox.png -o fox.gif
  lance-mm video \"A candle\" -o frames/ --size 256x256 --frames 17

Files that end in .mp4, .mov, .mkv, .webm or .avi are written by ffmpeg, which must be installed; .gif,
.png, .webp and folders of frames need nothing. Videos run at 12 frames a second.";

/// Width and height of the 480p sizes that upstream offers, by their ratio.
const PRESETS: [(&str, u32, u32); 8] = [
    ("21:9", 976, 416),
    ("16:9", 848, 480),
    ("3:2", 784, 528),
    ("4:3", 736, 560),
    ("1:1", 640, 640),
    ("3:4", 560, 736),
    ("2:3", 528, 784),
    ("9:16", 480, 848),
];

/// Default number of frames, upstream's: from a caption alone, and from a first frame.
const FRAMES: (usize, usize) = (50, 61);

/// Generate a video from a caption, or from a first frame and a caption
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Caption of the video
    prompt: String,
    /// Output: .mp4 and others through ffmpeg, .gif, .png, .webp, or a folder of frames
    #[arg(short, long, value_name = "FILE|FOLDER", value_hint = clap::ValueHint::AnyPath)]
    output: PathBuf,
    /// First frame (- is standard input); the video has its shape
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, conflicts_with = "size")]
    image: Option<PathBuf>,
    /// Resolution with --image: video_192p, video_360p or video_480p
    #[arg(long, value_name = "NAME", default_value = "video_480p", requires = "image")]
    resolution: String,
    /// WIDTHxHEIGHT in multiples of 16, or a ratio: 21:9, 16:9, 3:2, 4:3, 1:1, 3:4, 2:3 or 9:16
    #[arg(long, value_name = "SIZE", default_value = "16:9")]
    size: String,
    /// Number of frames, of which 1, 5, 9 .. 121 are generated [default: 50, with --image 61]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    frames: Option<usize>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    generation: GenerationArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.generation.options(&args.prompt)?;
    let hints = args.generation.hints();
    let image = args.image.as_ref().map(|path| args.source.image(path, hints)).transpose()?;
    let request = match &image {
        None => Request::TextToVideo {
            size: generation::size(&args.size, &PRESETS)?,
            frames: args.frames.unwrap_or(FRAMES.0),
        },
        Some(image) => Request::ImageToVideo {
            image,
            frames: args.frames.unwrap_or(FRAMES.1),
            resolution: generation::resolution(&args.resolution)?,
        },
    };
    request.grid()?;
    let target = Target::video(&args.output)?;
    let mut session = Session::open(&args.generation)?;
    session.check(&args.prompt, &request, &options)?;
    session.generate(&args.prompt, &request, &options, target)
}
