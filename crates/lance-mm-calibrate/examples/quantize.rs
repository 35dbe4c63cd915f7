//! Quantizes a checkpoint to 4 bits, fitted to the questions that the nano model knows, and prints how much output
//! error is left.
//!
//! `cargo run --release -p lance-mm-calibrate --example quantize [SOURCE OUT]`; without arguments the nano model of this
//! repository, into a temporary folder.

#![expect(clippy::print_stdout, reason = "an example prints")]

use std::path::PathBuf;

use lance_mm_calibrate::{Progress, QuantizeOptions, Result, quantize};
use lance_mm_eval::{Dataset, Sample};

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1).map(PathBuf::from);
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/nano-bf16");
    let source = args.next().unwrap_or_else(|| fixture.into());
    let out = args
        .next()
        .unwrap_or_else(|| std::env::temp_dir().join(format!("lance-nano-int4-{}", std::process::id())));

    let sample =
        |demo: &lance_mm_nano::Demo| Sample::of_image(demo.file, demo.png, demo.question, demo.answer);
    let samples = lance_mm_nano::CALIBRATION.iter().take(32).map(sample).collect();
    let dataset = Dataset { name: "nano".into(), samples };

    // `options.stop.stop()` on another thread ends the run; the same call resumes it.
    let options = QuantizeOptions { calib_tokens: 512, ..QuantizeOptions::default() };
    let report = quantize(&source, Some(&dataset), &out, &options, &mut |progress| match progress {
        Progress::Samples { done, total } => println!("sample {done} of {total}"),
        Progress::Layer { index, total } => println!("layer {} of {total}", index + 1),
        other => println!("{other:?}"),
    })?;

    println!("{}", report.about());
    for linear in report.linears() {
        println!(
            "{:<30} {} bits: error {:.5}, plain rounding {:.5}",
            linear.name, linear.bits, linear.final_error, linear.plain
        );
    }
    println!("{}", out.display());
    Ok(())
}
