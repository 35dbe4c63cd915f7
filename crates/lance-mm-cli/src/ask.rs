//! `lance-mm ask`: one question, one answer.

mod each;
mod report;

use std::ffi::OsString;
use std::time::Instant;

use anyhow::{Result, bail};
use lance_mm::{Answer, AskOptions, Content, ImageFeatures};

use crate::args::{AnswerArgs, ImageArgs, ModelArgs};
use crate::inputs::{self, Input, Source};
use crate::model::{self, Model};
use crate::output::{self, Hints};
use crate::stream::Stream;
use report::{Report, Shown};

const USAGE: &str = "\
lance-mm ask [OPTIONS] <IMAGE>... <QUESTION>
       lance-mm ask [OPTIONS] --caption <IMAGE>...
       lance-mm ask [OPTIONS] --text <QUESTION>";

const EXAMPLES: &str = "\
Examples:
  lance-mm ask chart.png \"Which bar is the highest?\"
  lance-mm ask --resize native invoice.png \"What is the total?\"
  lance-mm ask --caption --each *.jpg > captions.jsonl
  lance-mm ask --text \"What is the capital of France?\"";

const LONG_EXAMPLES: &str = "\
Examples:
  lance-mm ask chart.png \"Which bar is the highest?\"
  lance-mm ask --resize native invoice.png \"What is the total?\"
  lance-mm ask before.png after.png \"What has changed?\"
  lance-mm ask --video clip.gif \"What happens?\"
  lance-mm ask --caption photo.jpg
  lance-mm ask --caption --each *.jpg > captions.jsonl
  lance-mm ask --text \"What is the capital of France?\"
  curl -s https://example.org/cat.jpg | lance-mm ask - \"What animal is this?\"
  lance-mm ask --json plate.png \"What is the license plate number?\" | jq -r .answer

PNG, JPEG, GIF, WebP, BMP, TIFF and PNM are read, and videos (.mp4, .mov, .mkv, .webm, .avi, ..) through ffmpeg.
The bundled nano model, which answers without --model, knows simple synthetic images only.";

/// Ask a question about images, a video or text
#[derive(clap::Args)]
#[command(override_usage = USAGE, after_help = EXAMPLES, after_long_help = LONG_EXAMPLES)]
pub(crate) struct Args {
    /// Image or video files (- is standard input), then the question
    #[arg(value_name = "IMAGE... QUESTION", required = true, num_args = 1.., value_hint = clap::ValueHint::FilePath)]
    inputs: Vec<OsString>,
    /// Describe the image instead of answering a question
    #[arg(short, long, visible_alias = "describe", conflicts_with = "text")]
    caption: bool,
    /// Answer for each image alone: one line of JSON each, with `error` where there is no answer
    #[arg(long, conflicts_with = "text")]
    each: bool,
    /// Ask about no image
    #[arg(long)]
    text: bool,
    /// Print one JSON object: answer, tokens, times, memory, finish reason
    #[arg(long)]
    json: bool,
    /// Print times, tokens per second and memory on standard error
    #[arg(long)]
    stats: bool,
    /// No hints on standard error
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    images: ImageArgs,
    #[command(flatten)]
    answer: AnswerArgs,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let start = Instant::now();
    let hints = Hints::new(args.quiet || args.json);
    let (paths, question) = args.inputs()?;
    if std::path::Path::new(&question).is_file() {
        hints.note(&format!("note: {question:?} is read as the question, although a file has that name"));
    }
    let options = args.answer.options(&args.images, hints)?;
    if args.each {
        return each::run(args, paths, &question, &options, hints);
    }
    let inputs = inputs::read_all("ask", paths, &args.images, hints)?;
    let mut model = model::load_with(&args.model, hints)?;
    // No image follows, so that the language model can have the vision encoder's memory.
    model.lance = model.lance.with_low_memory(true);
    inputs::warn(&inputs, &model.lance, hints);
    if args.caption && args.model.is_bundled() {
        hints.note("note: nano was trained on questions only: ask it to \"Describe this picture.\"");
    }
    let sources: Vec<Source> = inputs.iter().map(|input| input.source.clone()).collect();
    let features = encode(&model, inputs, &options, hints)?;

    let answer = if args.json {
        ask(&model, &features, &question, &options, hints, &mut |_| {})?
    } else {
        let mut stream = Stream::stdout(false);
        let answer = ask(&model, &features, &question, &options, hints, &mut |text| {
            if stream.push(text).is_break() {
                options.stop_flag.stop();
            }
        })?;
        stream.finish()?;
        answer
    };
    let shown =
        sources.iter().zip(&features).map(|(source, features)| Shown::new(source, features)).collect();
    let report = Report::new(&model, &question, shown, &answer, start.elapsed());
    if args.json {
        output::print_json(&report, false)?;
    }
    if args.stats {
        output::say_dim(&report.stats());
    }
    Ok(())
}

impl Args {
    /// The images, and the question or "" for a description.
    fn inputs(&self) -> Result<(&[OsString], String)> {
        if self.caption {
            return Ok((&self.inputs, String::new()));
        }
        let Some((question, paths)) = self.inputs.split_last() else {
            return Err(output::usage("ask", "an image and a question are required"));
        };
        if self.text && !paths.is_empty() {
            return Err(output::usage("ask", "--text takes one question and no image"));
        }
        if !self.text && paths.is_empty() {
            let found = question.to_string_lossy();
            let message = format!(
                "an image and a question are required, found only '{found}' \
                 (--caption describes an image, --text asks without one)"
            );
            return Err(output::usage("ask", &message));
        }
        if paths.iter().filter(|path| *path == "-").count() > 1 {
            return Err(output::usage("ask", "standard input can be only one of the images"));
        }
        let Some(question) = question.to_str() else { bail!("the question is not UTF-8") };
        if question.trim().is_empty() {
            let instead = if self.text { "" } else { " (--caption asks for a description)" };
            bail!("the question is empty: expected text{instead}");
        }
        Ok((paths, question.to_owned()))
    }
}

fn encode(
    model: &Model,
    inputs: Vec<Input>,
    options: &AskOptions,
    hints: Hints,
) -> Result<Vec<ImageFeatures>> {
    let count = inputs.len();
    let encode = |(i, input): (usize, Input)| {
        let _busy = hints.busy(&match count {
            1 => format!("encoding {}", input.source.name),
            n => format!("encoding {} ({} of {n})", input.source.name, i + 1),
        });
        input.encode(&model.lance, options)
    };
    inputs.into_iter().enumerate().map(encode).collect()
}

/// Asks, with a spinner until the first text of the answer.
fn ask(
    model: &Model,
    features: &[ImageFeatures],
    question: &str,
    options: &AskOptions,
    hints: Hints,
    on_text: &mut dyn FnMut(&str),
) -> Result<Answer> {
    let mut message: Vec<Content<'_>> = features.iter().map(Content::Features).collect();
    if !question.is_empty() {
        message.push(Content::Text(question));
    }
    let mut busy = Some(hints.busy("reading the prompt"));
    let answer = model.lance.answer_stream(&message, options, |text| {
        busy.take();
        on_text(text);
    });
    Ok(answer?)
}
