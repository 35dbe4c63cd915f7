//! `lance-mm bench`: how fast models answer here, and how far that is from what the machine can do.

mod cases;
mod machine;
mod measure;
mod row;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use lance_mm_eval::Dataset;
use serde::Serialize;

use crate::args::ComputeArgs;
use crate::document::Document;
use crate::eval::data::bundled;
use crate::output::{self, Hints};
use machine::{Limits, Machine};
use measure::{Measured, Plan};

const EXAMPLES: &str = "\
Examples:
  lance-mm bench
  lance-mm bench ./Lance-3B-AWQ-INT4
  lance-mm bench ./Lance-3B-bf16 ./Lance-3B-AWQ-INT4 --cases --json
  lance-mm bench ./Lance-3B-AWQ-INT4 --only decode --only prefill --quick

Every number is the median of repeats, with the least and the greatest. Limits of the machine (bytes read,
products of int8 and bf16 values a second) are measured before and after each repeat, and a share is of their
mean; they are the CPU's, so that a device has no shares. Let nothing else run meanwhile.";

/// Measure how fast models answer, and how far that is from this machine's limits.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Checkpoint folder, org/name of one that was pulled, or nano. Several are set side by side.
    #[arg(value_name = "MODEL", default_value = "nano", env = "LANCE_MM_MODEL", hide_env_values = true)]
    models: Vec<String>,
    /// Measure this part only; may be given several times.
    #[arg(long, value_name = "PART")]
    only: Vec<Part>,
    /// Fewer repeats.
    #[arg(long)]
    quick: bool,
    /// Time the answers to six questions too, the bundled ones or those of FILE (as for eval oracle).
    #[arg(
        long,
        value_name = "FILE",
        num_args = 0..=1,
        require_equals = true,
        value_hint = clap::ValueHint::FilePath
    )]
    cases: Option<Option<PathBuf>>,
    /// Give the memory of the vision encoder back after every image.
    #[arg(long)]
    low_memory: bool,
    #[command(flatten)]
    compute: ComputeArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    /// No progress on standard error.
    #[arg(short, long)]
    quiet: bool,
}

/// A part of the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Time to load, time to the first token of a question and of a second one, memory.
    Ask,
    /// Tokens a second after a short and a long context.
    Decode,
    /// Tokens a second of one sequence and of eight together.
    Batch,
    /// Prompts of 512 and 1024 tokens.
    Prefill,
    /// The vision encoder at a quarter of a megapixel and at one.
    Vit,
}

/// The object that `--json` prints.
#[derive(Serialize)]
struct Record {
    tool: &'static str,
    command: &'static str,
    machine: Machine,
    models: Vec<Measured>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let hints = Hints::new(args.quiet || args.json);
    let data: Option<Dataset> = match &args.cases {
        None => None,
        Some(None) => Some(bundled("bundled demo cases", &lance_mm_nano::DEMOS)),
        Some(Some(path)) => Some(Dataset::read(path)?),
    };
    if data.as_ref().is_some_and(|data| data.samples.is_empty()) {
        bail!("--cases: expected questions, found none");
    }
    let plan = Plan::new(args)?;
    let mut limits = Limits::default();
    let mut models = Vec::new();
    for name in &args.models {
        models.push(measure::model(name, &plan, data.as_ref(), &mut limits, hints)?);
    }
    let record = Record {
        tool: concat!("lance-mm ", env!("CARGO_PKG_VERSION")),
        command: "bench",
        machine: Machine::new(&limits),
        models,
    };
    if args.json { output::print_json(&record, true) } else { output::print(&document(&record).markdown()) }
}

fn document(record: &Record) -> Document {
    let mut document = Document::new("Speed".to_owned());
    record.machine.show(&mut document);
    row::show(&record.models, &mut document);
    cases::show(&record.models, &mut document);
    document
}
