//! `lance-mm edit-video`: a video changed by an instruction.

use std::path::PathBuf;

use anyhow::Result;
use lance_mm::Request;

use crate::generation::{self, GenerationArgs, Session, SourceArgs};
use crate::inputs;
use crate::save::Target;

const EXAMPLES: &str = "\
Examples:
  lance-mm edit-video clip.mp4 \"Make the car red\" -o red.mp4 --model ./Lance-3B-Video-bf16
  lance-mm edit-video clip.gif \"At night\" -o night.gif --resolution video_192p
  lance-mm edit-video frames/ \"In the snow\" -o snow/ --fps 12

The model reads and generates 12 frames a second for at most 6 seconds, sampled from the whole video.";

/// Edit a video by an instruction
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Video file (read by ffmpeg), animated GIF, or folder of frames
    #[arg(value_hint = clap::ValueHint::AnyPath)]
    video: PathBuf,
    /// Instruction
    instruction: String,
    /// Output: .mp4 and others through ffmpeg, .gif, .png, .webp, or a folder of frames
    #[arg(short, long, value_name = "FILE|FOLDER", value_hint = clap::ValueHint::AnyPath)]
    output: PathBuf,
    /// Frame rate of the source [default: the file's own, 24 for a folder]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    fps: Option<f64>,
    /// video_192p, video_360p or video_480p.
    #[arg(long, value_name = "NAME", default_value = "video_480p")]
    resolution: String,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    generation: GenerationArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.generation.options(&args.instruction)?;
    let resolution = generation::resolution(&args.resolution)?;
    let clip = inputs::clip(&args.video, args.fps, &args.source.load_options())?;
    let request = Request::EditVideo { clip: &clip, resolution };
    request.grid()?;
    let target = Target::video(&args.output)?;
    let mut session = Session::open(&args.generation)?;
    session.check(&args.instruction, &request, &options)?;
    session.generate(&args.instruction, &request, &options, target)
}
