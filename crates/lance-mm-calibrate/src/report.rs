//! The report of a quantization, `quantization_report.json`.

use std::collections::BTreeMap;
use std::path::Path;

use lance_mm_quant::RoundingReport;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::calibration_set::CalibrationSet;
use crate::error::{Error, Result};
use crate::files::{REPORT, read};
use crate::fusion_report::FusionReport;
use crate::recipe::Recipe;
use crate::work_folder::WorkFolder;
use crate::{bit_allocation, model_parts};

/// Choices and errors of a quantization: the contents of `quantization_report.json`.
#[derive(Clone, Debug)]
pub struct Report {
    value: Value,
    linears: Vec<RoundingReport>,
    fusions: Vec<FusionReport>,
    existed: bool,
}

/// A part of the model in the report.
#[derive(Deserialize)]
struct Part {
    #[serde(rename = "pairs", default)]
    fusions: Vec<FusionReport>,
    linears: Vec<RoundingReport>,
}

impl Report {
    pub(crate) fn gather(
        work: &WorkFolder,
        recipe: Recipe,
        plan: &Value,
        samples: Option<&CalibrationSet>,
        layers: usize,
    ) -> Result<Self> {
        let mut parts = serde_json::Map::new();
        for name in model_parts::parts(layers) {
            let part = work.require(&format!("{name}.json"))?;
            parts.insert(name, part);
        }
        let calibration = samples.map(|samples| {
            let count = |held: bool| -> usize {
                samples.sequences.iter().filter(|run| run.held_out == held).map(|run| run.tokens.len()).sum()
            };
            json!({ "samples": samples.sequences.len(), "rows": count(false), "rows_held_back": count(true) })
        });
        let value = json!({
            "made_by": concat!("lance-mm ", env!("CARGO_PKG_VERSION")), "preset": recipe, "plan": plan,
            "calibration": calibration, "parts": parts, "widths": work.read_json::<Value>(bit_allocation::FILE)?,
        });
        Self::new(value, false)
    }

    /// Reads the report of a checkpoint that was quantized.
    ///
    /// # Errors
    /// A folder without one, or one that is no JSON.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(REPORT);
        Self::new(serde_json::from_slice(&read(&path)?).map_err(Error::at(&path))?, true)
    }

    fn new(value: Value, existed: bool) -> Result<Self> {
        let mut report = Self { value, linears: Vec::new(), fusions: Vec::new(), existed };
        for (name, part) in report.value["parts"].as_object().into_iter().flatten() {
            let part =
                Part::deserialize(part).map_err(|error| Error::file(format!("{REPORT}: {name}"), error))?;
            report.linears.extend(part.linears);
            report.fusions.extend(part.fusions);
        }
        Ok(report)
    }

    /// Whether an earlier call wrote the checkpoint.
    pub fn existed(&self) -> bool {
        self.existed
    }

    /// Every packed matrix, in the order of the parts' names: embedding, head, layers.
    pub fn linears(&self) -> &[RoundingReport] {
        &self.linears
    }

    /// Every fusion group whose scale was searched, in the same order.
    pub fn fusions(&self) -> &[FusionReport] {
        &self.fusions
    }

    /// The report as JSON.
    pub fn json(&self) -> String {
        format!("{:#}\n", self.value)
    }

    /// Bits and group size of every packed module.
    pub(crate) fn schemes(&self) -> BTreeMap<String, (usize, usize)> {
        self.linears.iter().map(|linear| (linear.name.clone(), (linear.bits, linear.group_size))).collect()
    }

    /// Program, recipe and calibration, in a sentence.
    pub fn about(&self) -> String {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let made = format!("{}, recipe {}", text(&self.value["made_by"]), text(&self.value["preset"]));
        match &self.value["calibration"] {
            Value::Null => format!("{made}, no calibration."),
            calibration => format!(
                "{made}, seed {}; {} samples, {} tokens to fit to and {} held out.",
                self.value["plan"]["seed"],
                calibration["samples"],
                calibration["rows"],
                calibration["rows_held_back"]
            ),
        }
    }

    /// The part of it that `config.json` has.
    pub(crate) fn summary(&self) -> Value {
        json!({ "program": self.value["made_by"], "preset": self.value["preset"], "recipe": self.value["plan"]["recipe"],
                "seed": self.value["plan"]["seed"] })
    }
}
