//! `lance-mm generate`: images from a caption.

use std::path::PathBuf;

use anyhow::Result;
use lance_mm::{GenerateOptions, Request};

use crate::generation::{self, GenerationArgs, Session};
use crate::output::StdoutError;
use crate::save::Target;

const EXAMPLES: &str = "\
Examples:
  lance-mm generate \"A red fox on a stone bridge at sunset\" -o fox.png --model ./Lance-3B-bf16
  lance-mm generate \"A poster that says STOP\" -o poster.png --size 3:4 --count 4
  lance-mm generate \"A tea pot\" -o pot.png --size 512x512 --steps 12 --method adams-bashforth --stats

The PNG holds prompt, seed and settings as text.";

/// Width and height of the sizes that upstream offers, by their ratio.
const PRESETS: [(&str, u32, u32); 8] = [
    ("21:9", 1168, 496),
    ("16:9", 1024, 576),
    ("3:2", 944, 624),
    ("4:3", 880, 672),
    ("1:1", 768, 768),
    ("3:4", 672, 880),
    ("2:3", 624, 944),
    ("9:16", 576, 1024),
];

/// Maximum of `--count`: every file is created before the first generation, so that none fails after it.
const MAX_COUNT: i64 = 9999;

/// Generate images from a caption
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Caption of the image
    prompt: String,
    /// PNG file to write; with --count, fox.png becomes fox-1.png, fox-2.png, ..
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: PathBuf,
    /// WIDTHxHEIGHT in multiples of 16, or a ratio: 21:9, 16:9, 3:2, 4:3, 1:1, 3:4, 2:3 or 9:16
    #[arg(long, value_name = "SIZE", default_value = "1:1")]
    size: String,
    /// Number of images, with consecutive seeds
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(1..=MAX_COUNT))]
    count: u32,
    #[command(flatten)]
    generation: GenerationArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.generation.options(&args.prompt)?;
    let request = Request::TextToImage { size: generation::size(&args.size, &PRESETS)? };
    let mut targets = Vec::new();
    for i in 0..args.count as usize {
        targets.push(match args.count {
            1 => Target::image(&args.output)?,
            _ => Target::image(&generation::numbered(&args.output, i + 1))?,
        });
    }
    let mut session = Session::open(&args.generation)?;
    session.check(&args.prompt, &request, &options)?;
    let mut printed = Ok(());
    for (i, target) in targets.into_iter().enumerate() {
        let seed = options.seed.wrapping_add(i as u64);
        let options = GenerateOptions { seed, ..options.clone() };
        match session.generate(&args.prompt, &request, &options, target) {
            // The other images are wanted even where nobody reads their paths.
            Err(error) if error.is::<StdoutError>() => printed = Err(error),
            done => done?,
        }
    }
    printed
}
