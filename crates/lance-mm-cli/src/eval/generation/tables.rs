//! A comparison of drawings for a person.

use lance_mm_eval::generation::{Compared, Drawing, PictureError};
use lance_mm_eval::{DrawingReport, ModelInfo, Relative};

use crate::document::number::{decibels, or_dash, percent, short};
use crate::document::{Document, Plot, Series, Table};

/// Name of a run, and where it lies in a drawing.
type Run = (&'static str, fn(&Drawing) -> &Compared);
const RUNS: [Run; 3] = [
    ("candidate", |d| &d.candidate),
    ("REF, noise cast to u32", |d| &d.cast_noise),
    ("REF, another seed", |d| &d.other_seed),
];

pub(super) fn document(models: &[ModelInfo; 2], report: &DrawingReport) -> Document {
    let [reference, candidate] = models;
    let mut document = Document::new(format!("Drawings of {} beside {}", candidate.name, reference.name));
    let n = report.drawings.len();
    document.text(format!(
        "{n} {}; every number against the reference's drawing from the same noise.",
        if n == 1 { "prompt" } else { "prompts" }
    ));
    for drawing in &report.drawings {
        document.heading(&format!("{} (seed {})", drawing.prompt, drawing.seed));
        document.table(ends(drawing));
        document.table(steps(drawing));
        plot(&mut document, drawing);
    }
    document
}

/// One row a run: what it began from and what came of it.
fn ends(drawing: &Drawing) -> Table {
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
        "hf_seed change",
        "contrast",
    ];
    let mut table = Table::new(head, 1);
    let dash = || "–".to_owned();
    let mut first = vec!["REF".to_owned(), dash(), dash(), dash(), "0".to_owned(), dash(), "1".to_owned()];
    let reference = &drawing.reference;
    first.extend([short(reference.hf_ratio), dash(), dash(), short(reference.contrast)]);
    table.row(first);
    for (name, of) in RUNS {
        let run = of(drawing);
        let mut cells = vec![
            name.to_owned(),
            short(run.start.mean),
            short(run.start.std),
            percent(run.start.zeros),
            norm(&run.latents),
        ];
        cells.extend(alike(&run.picture));
        cells.extend([
            short(run.picture.frequency.hf_ratio),
            percent(run.picture.hf_ratio_change),
            percent(run.picture.hf_seed_change),
            short(run.picture.frequency.contrast),
        ]);
        table.row(cells);
    }
    table
}

/// One row a step of the candidate.
fn steps(drawing: &Drawing) -> Table {
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
    for step in &drawing.candidate.steps {
        let mut cells = vec![
            short(f64::from(step.t)),
            or_dash(step.local.as_ref(), norm),
            norm(&step.accumulated),
            norm(&step.latents),
        ];
        let picture = step.picture.as_ref();
        cells.extend(picture.map_or_else(|| ["–".to_owned(), "–".to_owned()], alike));
        cells.push(or_dash(picture, |picture| percent(picture.hf_ratio_change)));
        table.row(cells);
    }
    table
}

fn alike(picture: &PictureError) -> [String; 2] {
    [
        or_dash(picture.similarity, |similarity| decibels(similarity.psnr)),
        or_dash(picture.similarity, |similarity| short(similarity.ssim)),
    ]
}

/// ‖found − reference‖ / ‖reference‖.
fn norm(relative: &Relative) -> String {
    short(relative.error().sqrt())
}

fn plot(document: &mut Document, drawing: &Drawing) {
    let places: Vec<String> = drawing.candidate.steps.iter().map(|step| short(f64::from(step.t))).collect();
    let series: Vec<Series> = RUNS
        .iter()
        .map(|(name, of)| Series {
            name: (*name).to_owned(),
            values: of(drawing).steps.iter().map(|step| step.latents.error().sqrt()).collect(),
        })
        .collect();
    document.plot(
        Plot { title: "Error of the latents by time", places: &places, series: &series, log: true }.lines(),
    );
}
