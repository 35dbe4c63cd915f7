//! Measured quality of generation with quantized weights.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

/// Report of `eval generation` in a checkpoint's folder.
const REPORT: &str = "eval-generation.json";

/// The part of a report that is printed.
#[derive(Deserialize)]
struct Record {
    /// The reference, then the candidate.
    models: [Model; 2],
    report: Report,
}

#[derive(Deserialize)]
struct Model {
    name: String,
}

#[derive(Deserialize)]
struct Report {
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Prompt {
    candidate: Compared,
}

#[derive(Deserialize)]
struct Compared {
    image: Image,
}

#[derive(Deserialize)]
struct Image {
    psnr: Psnr,
    ssim: f64,
    hf_ratio_change: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Psnr {
    Finite(f64),
    /// `inf`, of equal images.
    Word(String),
}

/// Text of a file, of which no report is larger.
fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(64 << 20).read_to_string(&mut text)?;
    Ok(text)
}

/// Note before generating with quantized weights: the numbers of the report in their folder, or how to make one.
///
/// # Errors
/// A report that cannot be read.
pub(super) fn note(name: &str, folder: &Path) -> Result<String> {
    let path = folder.join(REPORT);
    let text = match read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(format!(
                "note: {name} is quantized, and nothing shows that its weights generate well; to measure it: \
                 lance-mm eval generation REF {name} --prompts FILE --json {}",
                path.display()
            ));
        }
        text => text.with_context(|| path.display().to_string())?,
    };
    let expected = || format!("{}: expected a report of eval generation", path.display());
    let record: Record = serde_json::from_str(&text).with_context(expected)?;
    let images: Vec<_> = record.report.prompts.iter().map(|prompt| &prompt.candidate.image).collect();
    if images.is_empty() {
        bail!("{}, found none of an image", expected());
    }
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let psnr = images.iter().map(|image| match &image.psnr {
        Psnr::Finite(psnr) => Ok(*psnr),
        Psnr::Word(word) if word == "inf" => Ok(f64::INFINITY),
        Psnr::Word(word) => bail!("{}, found PSNR {word}", expected()),
    });
    let psnr = mean(&psnr.collect::<Result<Vec<f64>>>()?);
    let ssim: Vec<f64> = images.iter().map(|image| image.ssim).collect();
    let detail: Vec<f64> = images.iter().filter_map(|image| image.hf_ratio_change).collect();
    let detail = if detail.is_empty() {
        String::new()
    } else {
        format!(", fine detail {:+.1} %", 100.0 * mean(&detail))
    };
    Ok(format!(
        "note: {name} is quantized; {} of its images beside those of {}, on average: \
         PSNR {psnr:.1} dB, SSIM {:.3}{detail}",
        images.len(),
        record.models[0].name,
        mean(&ssim),
    ))
}
