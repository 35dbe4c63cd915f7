//! `quantization_report.json` and the table that is printed.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use lance_mm::inspect::{InspectOptions, inspect};
use serde_json::{Value, json};

use super::Preset;
use super::layer::{ENDS, layer_name};
use super::samples::Samples;
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
        for name in (0..layers).map(layer_name).chain([ENDS.to_owned()]) {
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
            "calibration": rows, "parts": parts,
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

    fn linears(&self) -> impl Iterator<Item = &Value> {
        let parts = self.value["parts"].as_object().into_iter().flat_map(|parts| parts.values());
        parts.flat_map(|part| part["linears"].as_array().into_iter().flatten())
    }

    /// What `config.json` keeps of it.
    pub(super) fn summary(&self) -> Value {
        json!({ "program": self.value["made_by"], "preset": self.value["preset"], "recipe": self.value["plan"]["recipe"],
                "seed": self.value["plan"]["seed"] })
    }

    /// A table by part: bits, size, error of plain rounding and of what is in the file.
    pub(super) fn table(&self, out: &Path) -> Result<String> {
        let mut text =
            format!("{:<28} {:>5} {:>6} {:>11} {:>11}\n", "linear layers", "bits", "group", "plain", "final");
        let mut groups: Vec<(String, Vec<&Value>)> = Vec::new();
        for linear in self.linears() {
            let name = linear["name"].as_str().unwrap_or_default();
            let kind = name.splitn(3, '.').nth(2).unwrap_or(name).to_owned();
            match groups.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, list)) => list.push(linear),
                None => groups.push((kind, vec![linear])),
            }
        }
        for (kind, linears) in groups {
            let mean = |key: &str| {
                linears.iter().filter_map(|l| l[key].as_f64()).sum::<f64>() / linears.len() as f64
            };
            writeln!(
                text,
                "{kind:<28} {:>5} {:>6} {:>11.6} {:>11.6}",
                linears[0]["bits"],
                linears[0]["group_size"],
                mean("plain"),
                mean("final")
            )?;
        }
        let report = inspect(out, InspectOptions::default())?;
        if let Some(model) = &report.model {
            let bits = model.bits_per_weight().unwrap_or_default();
            writeln!(
                text,
                "{}: {} bytes in the model file, {bits:.3} bits per weight",
                out.display(),
                model.bytes
            )?;
        }
        for problem in &report.problems {
            writeln!(text, "problem: {problem}")?;
        }
        Ok(text)
    }
}
