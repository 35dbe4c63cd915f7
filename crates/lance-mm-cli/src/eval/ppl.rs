//! `lance-mm eval ppl`: perplexity of a text.

use std::path::PathBuf;

use anyhow::Result;
use lance_mm_eval::dataset::read_text;
use lance_mm_eval::{DataInfo, ModelInfo, PerplexityOptions, PerplexityReport, perplexity};

use super::data::{DeviceArgs, OutputArgs};
use super::result;
use crate::document::number::short;
use crate::document::{Document, Table};
use crate::model;
use crate::progress;

const EXAMPLES: &str = "\
Examples:
  lance-mm eval ppl ./Lance-3B-AWQ-INT4 --text wiki.txt
  lance-mm eval ppl nano --text answers.txt --window 256

Lance was trained to answer: perplexity of plain text is large, and tells less than eval parity does.";

/// Perplexity of a text under a checkpoint, without a prompt or an image.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The checkpoint.
    #[arg(value_name = "MODEL")]
    model: String,
    /// The text, a UTF-8 file.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    text: PathBuf,
    /// Tokens read at once; each window begins anew. [default: 1024, or what the model can hold]
    #[arg(long, value_name = "N")]
    window: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let hints = args.output.check()?;
    let device = args.device.open()?;
    let text = read_text(&args.text)?;
    let model = model::load_on(&device, &args.model, hints)?;
    let options = PerplexityOptions { window: args.window };
    let report =
        progress::with("windows", hints, |progress| perplexity(&model.lance, &text, &options, progress))?;
    let models = [ModelInfo::of(&model.lance, &model.name)];
    let data = DataInfo::of_texts(&args.text.display().to_string(), &[&text], report.predicted);
    result::show("eval ppl", &models, data, &report, &document(&models[0], &report), &args.output)
}

fn document(model: &ModelInfo, report: &PerplexityReport) -> Document {
    let mut document = Document::new(format!("Perplexity under {}", model.name));
    let mut table = Table::new(["tokens", "predicted", "windows", "NLL, nats", "perplexity"], 0);
    table.row([
        report.tokens.to_string(),
        report.predicted.to_string(),
        format!("{} of {}", report.windows, report.window),
        short(report.nll),
        short(report.perplexity),
    ]);
    document.table(table);
    document
}
