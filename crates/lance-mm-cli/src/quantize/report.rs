//! `quantization_report.json`.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Preset;
use super::layer;
use super::samples::Samples;
use super::widths;
use super::workdir::WorkDir;

/// What was done, gathered from the work folder.
pub(super) struct Report {
    value: Value,
}

impl Report {
    pub(super) fn gather(
        work: &WorkDir,
        preset: Preset,
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
        Ok(Self { value })
    }

    pub(super) fn json(&self) -> Result<String> {
        Ok(serde_json::to_string_pretty(&self.value)? + "\n")
    }

    /// Bits and group size of every packed module.
    pub(super) fn schemes(&self) -> BTreeMap<String, (u64, u64)> {
        let scheme = |linear: &Value| {
            let name = linear["name"].as_str()?.to_owned();
            Some((name, (linear["bits"].as_u64()?, linear["group_size"].as_u64()?)))
        };
        self.linears().filter_map(scheme).collect()
    }

    /// What all parts have under `key`.
    pub(super) fn listed<T: DeserializeOwned>(&self, key: &str) -> Result<Vec<T>> {
        let parts = self.value["parts"].as_object().into_iter().flat_map(|parts| parts.values());
        let values = parts.flat_map(|part| part[key].as_array().into_iter().flatten());
        values.map(|value| T::deserialize(value).context("quantization_report.json")).collect()
    }

    fn linears(&self) -> impl Iterator<Item = &Value> {
        let parts = self.value["parts"].as_object().into_iter().flat_map(|parts| parts.values());
        parts.flat_map(|part| part["linears"].as_array().into_iter().flatten())
    }

    /// How it was made, in a sentence.
    pub(super) fn about(&self) -> String {
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
    pub(super) fn summary(&self) -> Value {
        json!({ "program": self.value["made_by"], "preset": self.value["preset"], "recipe": self.value["plan"]["recipe"],
                "seed": self.value["plan"]["seed"] })
    }
}
