//! `lance-mm bench`: speed of models here, and their share of the limits of the machine.

mod tables;

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use lance_mm::Lance;
use lance_mm::checkpoint::Checkpoint;
use lance_mm_eval::Dataset;
use lance_mm_eval::bench::{self, BenchEvent, BenchModel, BenchOptions, BenchPart, BenchReport, SoakOptions};
use serde::Serialize;

use crate::args::ComputeArgs;
use crate::eval::data::bundled;
use crate::model::display_name;
use crate::output::{self, Hints};
use crate::progress::Progress;

const EXAMPLES: &str = "\
Examples:
  lance-mm bench
  lance-mm bench ./Lance-3B-AWQ-INT4
  lance-mm bench ./Lance-3B-bf16 ./Lance-3B-AWQ-INT4 --cases --json
  lance-mm bench ./Lance-3B-AWQ-INT4 --only decode --only prefill --quick
  lance-mm bench --only soak --questions 10000

Every number is the median of repeats, with the least and the greatest. Limits of the machine (bytes read,
int8 and bf16 operations a second) are measured before and after each repeat, and a share is of their
mean; they are the CPU's, so that a device has no shares. Let nothing else run meanwhile.";

/// Measure the speed of models, and its share of this machine's limits.
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
    /// Questions of the part soak.
    #[arg(long, value_name = "N", default_value_t = 1000)]
    questions: usize,
    /// Unload the vision encoder after every image.
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
    /// Memory over many questions, each with its image read anew; runs only where it is named.
    Soak,
}

impl Part {
    /// The part of the library; the soak test is an option of its own there.
    fn of_library(self) -> Option<BenchPart> {
        Some(match self {
            Self::Ask => BenchPart::Ask,
            Self::Decode => BenchPart::Decode,
            Self::Batch => BenchPart::Batch,
            Self::Prefill => BenchPart::Prefill,
            Self::Vit => BenchPart::Vit,
            Self::Soak => return None,
        })
    }
}

/// The object that `--json` prints.
#[derive(Serialize)]
struct Record<'a> {
    tool: &'static str,
    command: &'static str,
    #[serde(flatten)]
    report: &'a BenchReport,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let hints = Hints::new(args.quiet || args.json);
    let options = args.options()?;
    let device = args.compute.open_device()?;
    let load = |name: &str| -> lance_mm_eval::Result<Lance> {
        let checkpoint = Checkpoint::named(name)?.with_activations(args.compute.activations());
        Ok(Lance::new(checkpoint.with_device(&device))?.with_low_memory(args.low_memory))
    };
    let load = &load;
    let models = args
        .models
        .iter()
        .map(|name| BenchModel { name: display_name(name).to_owned(), load: Box::new(move || load(name)) });
    let models: Vec<BenchModel<'_>> = models.collect();
    let (mut busy, mut progress) = (None, Progress::new("questions", hints));
    let report = bench::bench(&models, &options, &mut |event| match event {
        BenchEvent::Begin(what) => busy = Some(hints.busy(&format!("measuring {what}"))),
        BenchEvent::Soak(done, all) => {
            busy = None;
            progress.show(done, all);
        }
        BenchEvent::MemoryUnknown => hints.note("note: the system does not report memory in use"),
        _ => {}
    })?;
    drop((busy, progress));
    let record =
        Record { tool: concat!("lance-mm ", env!("CARGO_PKG_VERSION")), command: "bench", report: &report };
    if args.json {
        output::print_json(&record, true)
    } else {
        output::print(&tables::document(&report).markdown())
    }
}

impl Args {
    fn options(&self) -> Result<BenchOptions> {
        let demos = || bundled("bundled demo cases", &lance_mm_nano::DEMOS);
        let cases = match &self.cases {
            None => None,
            Some(None) => Some(demos()),
            Some(Some(path)) => Some(Dataset::read(path)?),
        };
        let mut options = if self.quick { BenchOptions::quick() } else { BenchOptions::default() };
        if !self.only.is_empty() {
            let wanted = |part: &BenchPart| self.only.iter().any(|only| only.of_library() == Some(*part));
            options.parts.retain(wanted);
        }
        let soak = self.only.contains(&Part::Soak).then(|| SoakOptions {
            data: cases.clone().unwrap_or_else(demos),
            questions: self.questions,
            max_new_tokens: options.case_tokens,
        });
        Ok(BenchOptions { cases, soak, ..options })
    }
}
