//! A report printed and written.

use std::path::Path;

use anyhow::Result;
use lance_mm_eval::{Dataset, ModelInfo};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::data::OutputArgs;
use crate::document::Document;
use crate::{output, save};

/// The object that `--json` writes.
#[derive(Serialize)]
struct Record<'a, T> {
    tool: &'static str,
    command: &'static str,
    models: &'a [ModelInfo],
    data: Data<'a>,
    report: &'a T,
}

/// The data that a report is about.
#[derive(Serialize)]
pub(crate) struct Data<'a> {
    name: &'a str,
    samples: usize,
    /// Tokens that were counted.
    tokens: usize,
    /// Digits that tell images and questions from others.
    hashes: Vec<String>,
}

impl<'a> Data<'a> {
    /// Questions, of which `tokens` tokens were counted.
    pub(crate) fn of(data: &'a Dataset, tokens: usize) -> Result<Self> {
        let hash = |sample: &lance_mm_eval::dataset::Sample| sample.hash(&sample.question);
        Ok(Self {
            name: file_name(&data.name),
            samples: data.samples.len(),
            tokens,
            hashes: data.samples.iter().map(hash).collect::<Result<_, _>>()?,
        })
    }

    /// Captions; no token of them is counted.
    pub(crate) fn of_prompts(prompts: &[String]) -> Self {
        let hash = |prompt: &String| {
            Sha256::digest(prompt).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
        };
        Self {
            name: "prompts",
            samples: prompts.len(),
            tokens: 0,
            hashes: prompts.iter().map(hash).collect(),
        }
    }

    /// A text.
    pub(crate) fn of_text(path: &'a str, hash: String, tokens: usize) -> Self {
        Self { name: file_name(path), samples: 1, tokens, hashes: vec![hash] }
    }
}

fn file_name(path: &str) -> &str {
    Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or(path)
}

/// Prints the tables and writes what was asked for.
pub(crate) fn show<T: Serialize>(
    command: &'static str,
    models: &[ModelInfo],
    data: Data<'_>,
    report: &T,
    document: &Document,
    args: &OutputArgs,
) -> Result<()> {
    let record =
        Record { tool: concat!("lance-mm ", env!("CARGO_PKG_VERSION")), command, models, data, report };
    // A file that cannot be written is no reason to lose what was measured.
    let written = write_all(&record, document, args);
    output::print(&document.markdown())?;
    written
}

fn write_all<T: Serialize>(record: &Record<'_, T>, document: &Document, args: &OutputArgs) -> Result<()> {
    if let Some(path) = &args.json {
        save::replace(path, (serde_json::to_string_pretty(record)? + "\n").as_bytes())?;
    }
    match &args.html {
        Some(path) => save::replace(path, document.html().as_bytes()),
        None => Ok(()),
    }
}
