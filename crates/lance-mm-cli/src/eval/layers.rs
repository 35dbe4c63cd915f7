//! `lance-mm eval layers`: quantization error by layer.

mod tables;

use anyhow::Result;
use lance_mm_eval::{DataInfo, LayerOptions, ModelInfo, layers};

use super::data::CompareArgs;
use super::result;
use crate::model;
use crate::progress;

const EXAMPLES: &str = "\
Examples:
  lance-mm eval layers ./Lance-3B-bf16 ./Lance-3B-AWQ-INT4 --data held-out.jsonl
  lance-mm eval layers tests/fixtures/nano-bf16 nano --data held-out.jsonl --max 32 --html layers.html

Give questions that no calibration used: errors of calibrated questions are too small.";

/// Compare a checkpoint with its reference layer by layer.
///
/// Each linear layer alone on the reference's inputs; outputs of attention, MLP and layer with all earlier
/// layers original (local) and quantized (accumulated).
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    compare: CompareArgs,
    /// Tokens of each sample that linear layers are compared on.
    #[arg(long, alias = "rows", value_name = "N", default_value_t = LayerOptions::default().linear_tokens)]
    linear_tokens: usize,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let hints = args.compare.output.check()?;
    let device = args.compare.device.open()?;
    let data = args.compare.questions()?;
    let options = LayerOptions { asking: args.compare.ask.options(), linear_tokens: args.linear_tokens };
    let load = |name: &str| model::load_on(&device, name, hints);
    let [reference, candidate] = args.compare.models(load, load)?;
    let report = progress::with("questions", hints, |progress| {
        layers(&reference.lance, &candidate.lance, &data, &options, progress)
    })?;
    let models = [&reference, &candidate].map(|model| ModelInfo::of(&model.lance, &model.name));
    let document = tables::document(&models, &report);
    result::show(
        "eval layers",
        &models,
        DataInfo::of(&data, report.tokens)?,
        &report,
        &document,
        &args.compare.output,
    )
}
