//! `lance-mm eval generation`: images of two checkpoints from the same noise.

mod tables;

use std::path::PathBuf;

use anyhow::{Result, bail};
use lance_mm::{GenerateOptions, Guidance};
use lance_mm_eval::dataset::read_text;
use lance_mm_eval::{DataInfo, GenerationOptions, ModelInfo, generation};

use super::data::{DeviceArgs, OutputArgs};
use super::result;
use crate::generation::size;
use crate::{model, progress};

const EXAMPLES: &str = "\
Examples:
  lance-mm eval generation ./Lance-3B-bf16 ./Lance-3B-AWQ-INT4 --prompt \"A red fox at sunset\"
  lance-mm eval generation ./Lance-3B-bf16 ./Lance-3B-8bit --prompts prompts.txt --size 512x512 --html loss.html

Both models begin from the same noise, in f32. Two controls stand beside the candidate: the reference begun from
that noise cast to unsigned integers, which is how the published measurements of quantized Lance began, and the
reference begun from another seed: a change of detail inside the latter is no loss.";

/// Compare images of two checkpoints from the same noise: velocities, latents, fine detail, PSNR and SSIM.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The reference, as a rule not quantized.
    #[arg(value_name = "REF")]
    reference: String,
    /// The checkpoint that is measured.
    #[arg(value_name = "MODEL")]
    candidate: String,
    /// A caption; may be given several times.
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// A UTF-8 file with one caption a line.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    prompts: Option<PathBuf>,
    /// WIDTHxHEIGHT of the images, multiples of 16.
    #[arg(long, value_name = "SIZE", default_value = "512x512")]
    size: String,
    /// Inference steps.
    #[arg(long, value_name = "N", default_value_t = 30)]
    steps: usize,
    /// Guidance scale (CFG); 1 is without.
    #[arg(short, long, value_name = "G", default_value_t = 4.0, allow_negative_numbers = true)]
    guidance: f64,
    /// Seed of the first prompt; each further one has the next.
    #[arg(short, long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Compare the image of each step too: one VAE pass more a step and model.
    #[arg(long)]
    each_step: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let hints = args.output.check()?;
    let mut prompts = args.prompt.clone();
    if let Some(path) = &args.prompts {
        let text = read_text(path)?;
        prompts.extend(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
    }
    if prompts.is_empty() {
        bail!("--prompt: expected at least one caption (or --prompts FILE), found none");
    }
    if prompts.iter().any(|prompt| prompt.trim().is_empty()) {
        bail!("--prompt: expected text, found an empty caption");
    }
    let options = GenerationOptions {
        size: size(&args.size, &[])?,
        generate: GenerateOptions {
            steps: args.steps,
            seed: args.seed,
            guidance: Guidance { scale: args.guidance, ..Guidance::default() },
            ..GenerateOptions::default()
        },
        each_step: args.each_step,
    };
    options.generate.validate()?;
    let device = args.device.open()?;
    let load = |name: &str| model::load_on(&device, name, hints);
    let (reference, candidate) = (load(&args.reference)?, load(&args.candidate)?);
    let report = progress::with("steps", hints, |progress| {
        generation(&reference.lance, &candidate.lance, &prompts, &options, progress)
    })?;
    let models = [&reference, &candidate].map(|model| ModelInfo::of(&model.lance, &model.name));
    let data = DataInfo::of_texts("prompts", &prompts, 0);
    let document = tables::document(&models, &report);
    result::show("eval generation", &models, data, &report, &document, &args.output)
}
