//! `lance-mm eval ppl`: perplexity of a text.

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use lance_mm_eval::{ModelInfo, PerplexityReport, perplexity};
use sha2::{Digest, Sha256};

use super::data::{DeviceArgs, OutputArgs};
use super::result::{self, Data};
use crate::document::number::short;
use crate::document::{Document, Table};
use crate::model;
use crate::progress::Progress;

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

/// Tokens of a window unless the arguments say otherwise.
const WINDOW: usize = 1024;

pub(crate) fn run(args: &Args) -> Result<()> {
    let hints = args.output.check()?;
    let device = args.device.open()?;
    let path = args.text.display().to_string();
    let bytes = std::fs::read(&args.text).map_err(|error| anyhow!("{path}: {error}"))?;
    let hash: String = Sha256::digest(&bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let text = String::from_utf8(bytes)
        .map_err(|error| anyhow!("{path}: expected UTF-8, found other bytes: {error}"))?;
    let model = model::load_on(&device, &args.model, hints)?;
    let window = args.window.unwrap_or(WINDOW.min(model.lance.config().max_position_embeddings));
    let mut progress = Progress::new("windows", hints);
    let report = perplexity(&model.lance, &text, window, &mut |done, all| progress.show(done, all))?;
    drop(progress);
    let models = [ModelInfo::of(&model.lance, &model.name)];
    let data = Data::of_text(&path, hash, report.predicted);
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
