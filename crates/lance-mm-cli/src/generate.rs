//! `lance-mm generate`: pictures from a caption.

use std::path::PathBuf;

use anyhow::Result;
use lance_mm::{GenerateOptions, Request};

use crate::generation::{self, DrawArgs, Session};
use crate::save::Target;

const EXAMPLES: &str = "\
Examples:
  lance-mm generate \"A red fox on a stone bridge at sunset\" -o fox.png --model ./Lance-3B-bf16
  lance-mm generate \"A poster that says STOP\" -o poster.png --size 3:4 --count 4
  lance-mm generate \"A tea pot\" -o pot.png --size 512x512 --steps 12 --method adams-bashforth --stats

A PNG holds its prompt, seed and settings as text.";

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

/// Most pictures of one run: each has a file from the beginning, so that none fails for its place at the end.
const MAX_COUNT: i64 = 9999;

/// Draw pictures from a caption.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// What the picture shows.
    prompt: String,
    /// The picture to write, a .png; with --count, `fox.png` becomes fox-1.png, fox-2.png and so on.
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    output: PathBuf,
    /// WIDTHxHEIGHT, multiples of 16, or a ratio: 21:9, 16:9, 3:2, 4:3, 1:1, 3:4, 2:3 or 9:16.
    #[arg(long, value_name = "SIZE", default_value = "1:1")]
    size: String,
    /// Pictures to draw, with one seed after the other.
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(1..=MAX_COUNT))]
    count: u32,
    #[command(flatten)]
    draw: DrawArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.draw.options()?;
    let request = Request::TextToImage { size: generation::size(&args.size, &PRESETS)? };
    generation::prepare()?;
    let mut targets = Vec::new();
    for i in 0..args.count as usize {
        targets.push(match args.count {
            1 => Target::picture(&args.output)?,
            _ => Target::picture(&generation::numbered(&args.output, i + 1))?,
        });
    }
    let mut session = Session::open(&args.draw)?;
    session.check(&args.prompt, &request, &options)?;
    for (i, target) in targets.into_iter().enumerate() {
        let seed = options.seed.wrapping_add(i as u64);
        let options = GenerateOptions { seed, ..options.clone() };
        session.draw(&args.prompt, &request, &options, target)?;
    }
    Ok(())
}
