//! `lance-mm edit`: a picture changed as an instruction says.

use std::path::PathBuf;

use anyhow::Result;
use lance_mm::Request;

use crate::generation::{self, DrawArgs, Session, SourceArgs};
use crate::save::Target;

const EXAMPLES: &str = "\
Examples:
  lance-mm edit photo.jpg \"Remove the hat\" -o without.png --model ./Lance-3B-bf16
  lance-mm edit photo.jpg \"Make it winter\" -o winter.png --resolution image_512res --seed 7
  curl -s https://example.org/cat.jpg | lance-mm edit - \"Make it green\" -o green.png";

/// Change a picture as an instruction says.
///
/// The result has one of six shapes near the picture's own; what does not fit is cropped at the sides.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The picture to change (`-` is standard input).
    #[arg(value_hint = clap::ValueHint::FilePath)]
    image: PathBuf,
    /// How to change it.
    instruction: String,
    /// The picture to write, a .png.
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: PathBuf,
    /// image_256res, image_512res or image_768res: about so many pixels high and wide.
    #[arg(long, value_name = "NAME", default_value = "image_768res")]
    resolution: String,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    draw: DrawArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.draw.options()?;
    let resolution = generation::resolution(&args.resolution)?;
    let image = args.source.picture(&args.image, args.draw.hints())?;
    let request = Request::EditImage { image: &image, resolution };
    generation::prepare()?;
    let target = Target::picture(&args.output)?;
    let mut session = Session::open(&args.draw)?;
    session.check(&args.instruction, &request, &options)?;
    session.draw(&args.instruction, &request, &options, target)
}
