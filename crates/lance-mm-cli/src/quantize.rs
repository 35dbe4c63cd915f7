//! `lance-mm quantize`: arguments, progress and report of a quantization.

mod args;
mod page;
mod progress;

use anyhow::{Result, bail};
use lance_mm::checkpoint::{folder_of, is_bundled};
use lance_mm_calibrate::Report;
use lance_mm_eval::Dataset;

use crate::eval::data::bundled;
use crate::output::{self as out, Hints};
pub(crate) use args::Args;
use args::Method;
use page::Page;
use progress::Display;

/// File of the report as a page.
const PAGE: &str = "quantization_report.html";

pub(crate) fn run(args: &Args) -> Result<()> {
    let options = args.options()?;
    let hints = Hints::new(args.quiet);
    if is_bundled(&args.model) {
        bail!(
            "nano: expected a checkpoint that is not quantized, found the bundled model in 4 bits (it was made from \
             tests/fixtures/nano-bf16 in the repository)"
        );
    }
    let source = folder_of(&args.model)?;
    let dataset = match args.recipe {
        Method::Rtn => None,
        _ => Some(dataset(args)?),
    };
    let mut display = Display::new(hints);
    let mut observer = |progress| display.show(progress);
    let report = lance_mm_calibrate::quantize(&source, dataset.as_ref(), &args.out, &options, &mut observer)?;
    drop(display);
    if report.existed() {
        if !args.out.join(PAGE).exists() {
            write_page(args, &report)?;
        }
        hints.note(&format!("{}: finished by an earlier run", args.out.display()));
        return Ok(());
    }
    out::print(&write_page(args, &report)?)?;
    hints.note(&format!("{}: written", args.out.display()));
    Ok(())
}

/// Writes the page into the new folder, and returns its table.
fn write_page(args: &Args, report: &Report) -> Result<String> {
    let page = Page::new(&args.model, &args.out, report)?;
    crate::save::replace(&args.out.join(PAGE), page.whole().html().as_bytes())?;
    Ok(page.summary().markdown())
}

fn dataset(args: &Args) -> Result<Dataset> {
    match &args.calib {
        Some(name) if name.as_os_str() == "bundled" && !name.exists() => {
            Ok(bundled("bundled", &lance_mm_nano::CALIBRATION))
        }
        Some(path) => Ok(Dataset::read(path)?),
        None => bail!(
            "--calib: expected a file of questions about images, found none (--recipe rtn needs none; \
             --calib bundled is for the nano model)"
        ),
    }
}
