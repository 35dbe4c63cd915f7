//! The report for a person: a table by part, plots by layer, and everything that was chosen.

mod plots;
mod tables;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use lance_mm::inspect::{self, InspectOptions, inspect};
use lance_mm::tensor::Weights;
use serde::Deserialize;
use serde_json::Value;

use crate::document::Document;
use lance_mm_calibrate::Report;

/// What the report says of a packed matrix. A number that was not finite is none.
#[derive(Deserialize)]
struct Linear {
    name: String,
    bits: usize,
    group_size: usize,
    plain: Option<f64>,
    scaled: Option<f64>,
    #[serde(rename = "final")]
    error: Option<f64>,
    snr_db: Option<f64>,
    clipped: Option<f64>,
    method: Value,
    drift: Option<Drift>,
}

/// What it says of a matrix whose inputs have changed.
#[derive(Deserialize)]
struct Drift {
    before: Option<f64>,
    after: Option<f64>,
    rounded: Option<f64>,
}

impl Linear {
    /// The layer, if it is in one, and the path within it.
    fn place(&self) -> (Option<usize>, &str) {
        let within = self.name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
        match within.and_then(|(layer, path)| Some((layer.parse().ok()?, path))) {
            Some((layer, path)) => (Some(layer), path),
            None => (None, &self.name),
        }
    }
}

/// What it says of a fusion pair.
#[derive(Deserialize)]
struct Pair {
    pair: String,
    producers: Vec<String>,
    family: String,
    alpha: f64,
    identity: Option<f64>,
    best: Option<f64>,
    held_back_identity: Option<f64>,
    held_back_best: Option<f64>,
    accepted: bool,
}

/// The report beside what was written.
pub(super) struct Page<'a> {
    source: String,
    report: &'a Report,
    linears: Vec<Linear>,
    pairs: Vec<Pair>,
    /// Bytes of packed matrices with their scales, by module.
    bytes: BTreeMap<String, usize>,
    inspected: inspect::Report,
}

impl<'a> Page<'a> {
    /// Of what was made from the checkpoint `source` and is in `dir`.
    pub(super) fn new(source: &str, dir: &Path, report: &'a Report) -> Result<Self> {
        let mut bytes = BTreeMap::new();
        for info in Weights::open(&[dir.join("model.safetensors")])?.tensors() {
            if let Some((module, "weight" | "scales" | "biases")) = info.name.rsplit_once('.') {
                *bytes.entry(module.to_owned()).or_insert(0) += info.bytes;
            }
        }
        Ok(Self {
            source: Path::new(source).file_name().unwrap_or_default().to_string_lossy().into_owned(),
            report,
            linears: report.listed("linears")?,
            pairs: report.listed("pairs")?,
            bytes,
            inspected: inspect(dir, InspectOptions::default())?,
        })
    }

    /// The table by part, for the terminal.
    pub(super) fn summary(&self) -> Document {
        let mut document = Document::new(format!("Quantization of {}", self.source));
        document.text(self.report.about());
        document.text(
            "Errors are squared and relative: of outputs on the rows held back, and of the weights of matrices \
             whose inputs were not recorded. Before: of plain rounding. After: of what is in the file.",
        );
        document.table(tables::parts(self));
        for problem in &self.inspected.problems {
            document.text(format!("problem: {problem}"));
        }
        document
    }

    /// The table with plots and everything that was chosen.
    pub(super) fn whole(&self) -> Document {
        let mut document = self.summary();
        document.heading("Error by layer and linear");
        for svg in plots::errors(self) {
            document.plot(svg);
        }
        document.heading("Bits by layer and linear");
        document.plot(plots::bits(self));
        if !self.pairs.is_empty() {
            document.heading("Scales");
            document.text(
                "A scale s divides what a producer gives and multiplies the columns of its consumers. It comes from \
                 magnitudes a of inputs and m of weights; α is the exponent with which outputs came out nearest. \
                 Points are the scales that were accepted, on rows held back.",
            );
            for svg in plots::alphas(self) {
                document.plot(svg);
            }
            document.table(tables::scales(self));
        }
        document.heading("Matrices");
        document.text(
            "Drift is what earlier matrices, rounded, have changed of a matrix's outputs: before and after the matrix \
             was fitted to make it good, and together with the matrix's own rounding.",
        );
        document.table(tables::matrices(self));
        document
    }
}
