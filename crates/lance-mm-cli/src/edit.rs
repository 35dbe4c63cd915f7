//! `lance-mm edit`: an image changed by an instruction.

use std::path::PathBuf;

use anyhow::Result;
use lance_mm::Request;

use crate::generation::{self, GenerationArgs, Session, SourceArgs};
use crate::save::Target;

const EXAMPLES: &str = "\
Examples:
  lance-mm edit photo.jpg \"Remove the hat\" -o without.png --model ./Lance-3B-bf16
  lance-mm edit photo.jpg \"Make it winter\" -o winter.png --resolution image_512res --seed 7
  curl -s https://example.org/cat.jpg | lance-mm edit - \"Make it green\" -o green.png";

/// Edit an image by an instruction
///
/// The result has the nearest of six shapes; the rest of the source is cropped at the sides.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Image to edit (- is standard input)
    #[arg(value_hint = clap::ValueHint::FilePath)]
    image: PathBuf,
    /// Instruction
    instruction: String,
    /// PNG file to write
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: PathBuf,
    /// Resolution: image_256res, image_512res or image_768res
    #[arg(long, value_name = "NAME", default_value = "image_768res")]
    resolution: String,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    generation: GenerationArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.generation.options(&args.instruction)?;
    let resolution = generation::resolution(&args.resolution)?;
    let image = args.source.image(&args.image, args.generation.hints())?;
    let request = Request::EditImage { image: &image, resolution };
    let target = Target::image(&args.output)?;
    let mut session = Session::open(&args.generation)?;
    session.check(&args.instruction, &request, &options)?;
    session.generate(&args.instruction, &request, &options, target)
}
