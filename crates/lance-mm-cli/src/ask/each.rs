//! `ask --each`: the same question about every image, a line of JSON for each.

use std::ffi::{OsStr, OsString};
use std::time::Instant;

use anyhow::{Result, bail};
use lance_mm::AskOptions;
use serde_json::json;

use super::report::{Report, Shown};
use super::{Args, ask};
use crate::inputs::{self, Source};
use crate::model::{self, Model};
use crate::output::{self, Hints, StdoutError, plural};

/// Asks about one image after the other; an error of one does not end the run.
pub(super) fn run(
    args: &Args,
    paths: &[OsString],
    question: &str,
    options: &AskOptions,
    hints: Hints,
) -> Result<()> {
    let model = model::load_with(&args.model, hints)?;
    let mut failed = 0;
    for (i, path) in paths.iter().enumerate() {
        let place = format!("{} of {}", i + 1, paths.len());
        match answer(args, &model, (path, &place), question, options, hints) {
            Ok(()) => {}
            Err(error) if error.is::<StdoutError>() => return Err(error),
            Err(error) => {
                failed += 1;
                let source = Source::new(path.as_ref());
                let line = json!({ "error": output::message(&error), "images": [source] });
                output::print_json(&line, false)?;
                output::complain(&error);
            }
        }
    }
    match failed {
        0 => Ok(()),
        n => bail!("{} could not be answered about", plural(n, "image")),
    }
}

/// Prints the line of one image.
fn answer(
    args: &Args,
    model: &Model,
    (path, place): (&OsStr, &str),
    question: &str,
    options: &AskOptions,
    hints: Hints,
) -> Result<()> {
    let start = Instant::now();
    let input = inputs::read(path, &args.images, hints)?;
    let source = input.source.clone();
    inputs::warn(std::slice::from_ref(&input), &model.lance, hints);
    let features = {
        let _busy = hints.busy(&format!("encoding {} ({place})", source.name));
        [input.encode(&model.lance, options)?]
    };
    let answer = ask(model, &features, question, options, hints, &mut |_| {})?;
    let report =
        Report::new(model, question, vec![Shown::new(&source, &features[0])], &answer, start.elapsed());
    if args.stats {
        output::say_dim(&report.stats());
    }
    output::print_json(&report, false)
}
