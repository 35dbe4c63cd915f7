//! A report printed and written.

use anyhow::Result;
use lance_mm_eval::{DataInfo, ModelInfo};
use serde::Serialize;

use super::data::OutputArgs;
use crate::document::Document;
use crate::{output, save};

/// The object that `--json` writes.
#[derive(Serialize)]
struct Record<'a, T> {
    tool: &'static str,
    command: &'static str,
    models: &'a [ModelInfo],
    data: DataInfo,
    report: &'a T,
}

/// Prints the tables and writes the files of `--json` and `--html`.
pub(crate) fn show<T: Serialize>(
    command: &'static str,
    models: &[ModelInfo],
    data: DataInfo,
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
