//! `quantization_report.json`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::layer;
use crate::options::Recipe;
use crate::quantize::read;
use crate::samples::Samples;
use crate::widths;
use crate::workdir::WorkDir;

/// The name of the report in a checkpoint's folder.
pub(crate) const FILE: &str = "quantization_report.json";

/// What a quantization did: the contents of `quantization_report.json`.
#[derive(Clone, Debug)]
pub struct Report {
    value: Value,
    existed: bool,
}

impl Report {
    pub(crate) fn gather(
        work: &WorkDir,
        preset: Recipe,
        plan: &Value,
        samples: Option<&Samples>,
        layers: usize,
    ) -> Result<Self> {
        let mut parts = serde_json::Map::new();
        for name in layer::parts(layers) {
            let part = work.read_json(&format!("{name}.json"))?;
            parts.insert(name.clone(), part.with_context(|| format!("{name}.json: missing"))?);
        }
        let rows = samples.map(|samples| {
            let count = |held: bool| -> usize {
                samples.runs.iter().filter(|run| run.held_back == held).map(|run| run.picks.len()).sum()
            };
            json!({ "samples": samples.runs.len(), "rows": count(false), "rows_held_back": count(true) })
        });
        let value = json!({
            "made_by": concat!("lance-mm ", env!("CARGO_PKG_VERSION")), "preset": preset, "plan": plan,
            "calibration": rows, "parts": parts, "widths": work.read_json(widths::FILE)?,
        });
        Ok(Self { value, existed: false })
    }

    /// Reads the report of a checkpoint that was quantized.
    ///
    /// # Errors
    /// A folder without one, or one that is no JSON.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let value = serde_json::from_slice(&read(&path)?).with_context(|| path.display().to_string())?;
        Ok(Self { value, existed: true })
    }

    /// Whether an earlier call wrote the checkpoint.
    pub fn existed(&self) -> bool {
        self.existed
    }

    /// The report as JSON.
    ///
    /// # Errors
    /// None that a report gives cause for.
    pub fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.value)? + "\n")
    }

    /// Bits and group size of every packed module.
    pub(crate) fn schemes(&self) -> BTreeMap<String, (u64, u64)> {
        let scheme = |linear: &Value| {
            let name = linear["name"].as_str()?.to_owned();
            Some((name, (linear["bits"].as_u64()?, linear["group_size"].as_u64()?)))
        };
        self.linears().filter_map(scheme).collect()
    }

    /// What all parts have under `key`.
    ///
    /// # Errors
    /// A report that was changed by hand.
    pub fn listed<T: DeserializeOwned>(&self, key: &str) -> Result<Vec<T>> {
        let parts = self.value["parts"].as_object().into_iter().flat_map(|parts| parts.values());
        let values = parts.flat_map(|part| part[key].as_array().into_iter().flatten());
        values.map(|value| T::deserialize(value).context("quantization_report.json")).collect()
    }

    fn linears(&self) -> impl Iterator<Item = &Value> {
        let parts = self.value["parts"].as_object().into_iter().flat_map(|parts| parts.values());
        parts.flat_map(|part| part["linears"].as_array().into_iter().flatten())
    }

    /// How it was made, in a sentence.
    pub fn about(&self) -> String {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let made = format!("{}, recipe {}", text(&self.value["made_by"]), text(&self.value["preset"]));
        match &self.value["calibration"] {
            Value::Null => format!("{made}, no calibration."),
            rows => format!(
                "{made}, seed {}; {} samples, {} rows to search with and {} held back.",
                self.value["plan"]["seed"], rows["samples"], rows["rows"], rows["rows_held_back"]
            ),
        }
    }

    /// What `config.json` keeps of it.
    pub(crate) fn summary(&self) -> Value {
        json!({ "program": self.value["made_by"], "preset": self.value["preset"], "recipe": self.value["plan"]["recipe"],
                "seed": self.value["plan"]["seed"] })
    }
}
