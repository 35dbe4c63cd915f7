//! The report as a page: a table by part, plots by layer, and every choice.

mod plots;
mod tables;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use lance_mm::inspect::{self, InspectOptions, inspect};
use lance_mm::tensor::Weights;
use lance_mm_calibrate::Report;

use crate::document::Document;

/// The layer of a module, if it is in one, and the path within it.
fn place(name: &str) -> (Option<usize>, &str) {
    let within = name.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
    match within.and_then(|(layer, path)| Some((layer.parse().ok()?, path))) {
        Some((layer, path)) => (Some(layer), path),
        None => (None, name),
    }
}

/// The page beside a checkpoint.
pub(super) struct Page<'a> {
    source: String,
    report: &'a Report,
    /// Bytes of packed matrices with their scales, by module.
    bytes: BTreeMap<String, usize>,
    inspected: inspect::InspectReport,
}

impl<'a> Page<'a> {
    /// Reads the checkpoint `dir`, quantized from `source`.
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
            bytes,
            inspected: inspect(dir, InspectOptions::default())?,
        })
    }

    /// The table by part, for the terminal.
    pub(super) fn summary(&self) -> Document {
        let mut document = Document::new(format!("Quantization of {}", self.source));
        document.text(self.report.about());
        document.text(
            "Errors are squared and relative: of outputs on held-out activations, and of the weights of matrices \
             whose inputs were not recorded. Before: plain rounding. After: the weights in the file.",
        );
        document.table(tables::parts(self));
        for problem in &self.inspected.problems {
            document.text(format!("problem: {problem}"));
        }
        document
    }

    /// The table with plots and every choice.
    pub(super) fn whole(&self) -> Document {
        let mut document = self.summary();
        document.heading("Error by layer and linear");
        for svg in plots::errors(self) {
            document.plot(svg);
        }
        document.heading("Bits by layer and linear");
        document.plot(plots::bits(self));
        if !self.report.fusions().is_empty() {
            document.heading("Scales");
            document.text(
                "A scale s divides the output channels of a producer and multiplies the columns of its consumers. It is \
                 a function of magnitudes a of inputs and m of weights; α is the exponent with the smallest output \
                 error. Points are the scales that were accepted, on held-out activations.",
            );
            for svg in plots::alphas(self) {
                document.plot(svg);
            }
            document.table(tables::scales(self));
        }
        document.heading("Matrices");
        document.text(
            "Drift is the error of a matrix's outputs caused by earlier matrices: before and after the matrix was \
             fitted to compensate for it, and together with the matrix's own rounding.",
        );
        document.table(tables::matrices(self));
        document
    }
}
