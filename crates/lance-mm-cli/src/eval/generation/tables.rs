//! A comparison of generated images as tables and plots.

use lance_mm_eval::generation::{Compared, ImageComparison, PromptReport};
use lance_mm_eval::{GenerationReport, ModelInfo, Relative};

use crate::document::number::{decibels, or_dash, percent, short};
use crate::document::{Document, Plot, Series, Table};

/// Name of a run, and its field of a prompt.
type Run = (&'static str, fn(&PromptReport) -> &Compared);
const RUNS: [Run; 3] = [
    ("candidate", |d| &d.candidate),
    ("REF, noise cast to u32", |d| &d.cast_noise),
    ("REF, another seed", |d| &d.other_seed),
];

pub(super) fn document(models: &[ModelInfo; 2], report: &GenerationReport) -> Document {
    let [reference, candidate] = models;
    let mut document = Document::new(format!("Images of {} beside {}", candidate.name, reference.name));
    let n = report.prompts.len();
    document.text(format!(
        "{n} {}; every number against the reference's image from the same noise.",
        if n == 1 { "prompt" } else { "prompts" }
    ));
    for prompt in &report.prompts {
        document.heading(&format!("{} (seed {})", prompt.prompt, prompt.seed));
        document.table(ends(prompt));
        document.table(steps(prompt));
        plot(&mut document, prompt);
    }
    document
}

/// One row a run: what it began from and what came of it.
fn ends(prompt: &PromptReport) -> Table {
    let head = [
        "run",
        "start mean",
        "start std",
        "start zeros",
        "latents",
        "PSNR dB",
        "SSIM",
        "hf_ratio",
        "hf_ratio change",
        "hf_lance_mlx change",
        "contrast",
    ];
    let mut table = Table::new(head, 1);
    let dash = || "–".to_owned();
    let mut first = vec!["REF".to_owned(), dash(), dash(), dash(), "0".to_owned(), dash(), "1".to_owned()];
    let reference = &prompt.reference;
    first.extend([short(reference.hf_ratio), dash(), dash(), short(reference.contrast)]);
    table.row(first);
    for (name, of) in RUNS {
        let run = of(prompt);
        let mut cells = vec![
            name.to_owned(),
            short(run.start.mean),
            short(run.start.std),
            percent(run.start.zeros),
            norm(&run.latents),
        ];
        cells.extend(alike(&run.image));
        cells.extend([
            short(run.image.frequency.hf_ratio),
            or_dash(run.image.hf_ratio_change, percent),
            or_dash(run.image.hf_lance_mlx_change, percent),
            short(run.image.frequency.contrast),
        ]);
        table.row(cells);
    }
    table
}

/// One row a step of the candidate.
fn steps(prompt: &PromptReport) -> Table {
    let head = [
        "t",
        "velocity at REF's latents",
        "velocity on its own way",
        "latents",
        "PSNR dB",
        "SSIM",
        "hf_ratio change",
    ];
    let mut table = Table::new(head, 0);
    for step in &prompt.candidate.steps {
        let mut cells = vec![
            short(f64::from(step.t)),
            or_dash(step.local.as_ref(), norm),
            norm(&step.accumulated),
            norm(&step.latents),
        ];
        let image = step.image.as_ref();
        cells.extend(image.map_or_else(|| ["–".to_owned(), "–".to_owned()], alike));
        cells.push(or_dash(image.and_then(|image| image.hf_ratio_change), percent));
        table.row(cells);
    }
    table
}

fn alike(image: &ImageComparison) -> [String; 2] {
    [
        or_dash(image.similarity, |similarity| decibels(similarity.psnr)),
        or_dash(image.similarity, |similarity| short(similarity.ssim)),
    ]
}

/// ‖found − reference‖ / ‖reference‖.
fn norm(relative: &Relative) -> String {
    short(relative.error().sqrt())
}

fn plot(document: &mut Document, prompt: &PromptReport) {
    let places: Vec<String> = prompt.candidate.steps.iter().map(|step| short(f64::from(step.t))).collect();
    let series: Vec<Series> = RUNS
        .iter()
        .map(|(name, of)| Series {
            name: (*name).to_owned(),
            values: of(prompt).steps.iter().map(|step| step.latents.error().sqrt()).collect(),
        })
        .collect();
    document.plot(
        Plot { title: "Error of the latents by time", places: &places, series: &series, log: true }.lines(),
    );
}
