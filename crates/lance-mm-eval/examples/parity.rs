//! Compares a quantized checkpoint with its reference: the same questions to both, logits token by token and answers.
//!
//! `cargo run --release -p lance-mm-eval --example parity [REFERENCE CANDIDATE QUESTIONS.jsonl]`; without arguments the
//! bundled nano model against the bf16 checkpoint of this repository that it was quantized from.

#![expect(clippy::print_stdout, reason = "an example prints")]

use lance_mm_eval::{Dataset, ParityOptions, Result, Sample, parity};
use lance_mm_pipelines::{Checkpoint, Lance};
use lance_mm_tensor::ActivationPrecision;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (reference, candidate, data) = match args.as_slice() {
        [reference, candidate, questions] => {
            (reference.as_str(), candidate.as_str(), Dataset::read(questions.as_ref())?)
        }
        _ => {
            let bf16 = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/nano-bf16");
            let demos = lance_mm_nano::DEMOS.iter();
            let samples = demos.map(|demo| Sample::of_image(demo.file, demo.png, demo.question, demo.answer));
            (bf16, "nano", Dataset { name: "demos".into(), samples: samples.collect() })
        }
    };
    // Nearly exact activations: the error of quantization alone.
    let load = |name: &str| -> Result<Lance> {
        Ok(Lance::new(Checkpoint::named(name)?.with_activations(ActivationPrecision::Split))?)
    };
    let (reference, candidate) = (load(reference)?, load(candidate)?);

    let report = parity(&reference, &candidate, &data, &ParityOptions::default(), &mut |done, all| {
        println!("{done} of {all} questions");
    })?;

    if let Some(logits) = report.all.logits {
        println!("KL divergence: mean {:.5} nats, p95 {:.5}", logits.kl.mean, logits.kl.p95);
        println!("same likeliest token: {:.1} % of {}", 100.0 * logits.top1_agreement, logits.positions);
    }
    for (sample, found) in data.samples.iter().zip(&report.samples) {
        let answer = |text: &Option<String>| text.clone().unwrap_or_default();
        println!("{}: {} | {}", sample.question, answer(&found.reference), answer(&found.candidate));
    }
    Ok(())
}
