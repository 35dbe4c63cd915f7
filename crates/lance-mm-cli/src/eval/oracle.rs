//! `lance-mm eval oracle`: answers of several models side by side.

use std::path::PathBuf;

use anyhow::Result;
use lance_mm_eval::oracle::{OracleReport, answers};
use lance_mm_eval::{DataInfo, Dataset, ModelInfo};

use super::data::{AskArgs, DeviceArgs, OutputArgs, bundled};
use super::result;
use crate::document::number::{millis, or_dash, yes_no};
use crate::document::{Document, Table};
use crate::model;
use crate::progress;

const EXAMPLES: &str = "\
Examples:
  lance-mm eval oracle nano
  lance-mm eval oracle ./Lance-3B-bf16 ./Lance-3B-AWQ-INT4 --data cases.jsonl

The first model is the reference. `answer` in the data file is the one shipped with upstream's example: another
says the same when it has the same numbers and plates or, where there are none, contains it. An answer is held
against `expected`, where there is one, by containing it. Where no rule can tell, a dash is shown.";

/// Put answers of several models to a few questions side by side.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Models, the reference first. They are loaded one after the other.
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<String>,
    /// File of questions. [default: the bundled demo cases]
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    data: Option<PathBuf>,
    #[command(flatten)]
    ask: AskArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let hints = args.output.check()?;
    let device = args.device.open()?;
    let data: Dataset = match &args.data {
        Some(path) => args.ask.read(path)?,
        None => args.ask.limited(bundled("bundled demo cases", &lance_mm_nano::DEMOS)),
    };
    let options = args.ask.options();
    let mut found = Vec::new();
    for name in &args.models {
        let model = model::load_on(&device, name, hints)?;
        let answers =
            progress::with(&model.name, hints, |progress| answers(&model.lance, &data, &options, progress))?;
        found.push((ModelInfo::of(&model.lance, &model.name), answers));
    }
    let report = OracleReport::new(found, &data)?;
    let tokens = report.totals.iter().map(|total| total.tokens).sum();
    let document = document(&report);
    result::show(
        "eval oracle",
        &report.models,
        DataInfo::of(&data, tokens)?,
        &report,
        &document,
        &args.output,
    )
}

fn document(report: &OracleReport) -> Document {
    let mut document = Document::new("Answers side by side".to_owned());
    let head = ["model", "as REF", "as upstream", "tokens", "prefill", "a token", "bytes"];
    let mut totals = Table::new(head, 1);
    for (model, total) in report.models.iter().zip(&report.totals) {
        totals.row([
            model.name.clone(),
            format!("{} of {}", total.matches_reference, total.told_reference),
            format!("{} of {}", total.matches_upstream, total.told_upstream),
            total.tokens.to_string(),
            millis(total.prefill_seconds),
            millis(total.seconds_per_token),
            model.total.bytes.to_string(),
        ]);
    }
    document.text("Of the cases in which a rule can tell; the first model is REF.");
    document.table(totals);
    document.heading("Answers");
    let head = ["case", "question", "answered by", "as REF", "as upstream", "answer"];
    let mut answers = Table::new(head, 6);
    let mut times = Table::new(["case", "model", "image", "prefill", "tokens", "a token"], 2);
    for (i, case) in report.cases.iter().enumerate() {
        let number = (i + 1).to_string();
        let question = format!("{} ({})", case.question, case.media.join(", "));
        let upstream = or_dash(case.upstream.clone(), |answer| answer);
        let dash = || yes_no(None);
        answers.row([number.clone(), question, "upstream".to_owned(), dash(), dash(), upstream]);
        for (model, result) in report.models.iter().zip(&case.results) {
            let answer = &result.answer;
            answers.row([
                number.clone(),
                String::new(),
                model.name.clone(),
                yes_no(result.matches_reference),
                yes_no(result.matches_upstream),
                answer.text.clone(),
            ]);
            times.row([
                number.clone(),
                model.name.clone(),
                millis(answer.encode_seconds),
                millis(answer.prefill_seconds),
                answer.tokens.to_string(),
                millis(answer.seconds_per_token),
            ]);
        }
    }
    document.table(answers);
    document.heading("Time");
    document.text(
        "Image: through the vision encoder. Prefill: the prompt through the language model. A token: \
         decode, divided by the tokens of the answer.",
    );
    document.table(times);
    document
}
