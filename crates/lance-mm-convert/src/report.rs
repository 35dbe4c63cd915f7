//! What a conversion says about itself: `conversion_report.json` and a few lines.

use std::path::Path;

use serde_json::{Value, json};

use super::checkpoint::Checkpoint;
use super::write::{Target, variant};

/// Names that are printed at most.
const SHOWN: usize = 20;

/// `conversion_report.json`. It names no path of this machine.
pub(super) fn report(checkpoint: &Checkpoint, to: Target) -> Value {
    json!({
        "source_layout": source_layout(checkpoint),
        "variant": checkpoint.has_model().then(|| variant(checkpoint).to_lowercase()),
        "dtype": to.dtype(),
        "tensors": {
            "llm": checkpoint.llm.len(),
            "vit": checkpoint.vit.len(),
            "vae": checkpoint.vae.len(),
        },
        "computed": checkpoint.computed,
        "unmapped": checkpoint.unmapped,
    })
}

/// The lines to print about what was written to `dst`.
pub(super) fn lines(checkpoint: &Checkpoint, dst: &Path) -> Vec<String> {
    let from = checkpoint.layout.map_or("the VAE alone", |layout| layout.describe());
    let parts = [("llm", &checkpoint.llm), ("vit", &checkpoint.vit), ("vae", &checkpoint.vae)];
    let mut lines = vec![format!("{}: from {from}", dst.display())];
    for (name, tensors) in parts {
        lines.push(match tensors.first() {
            Some(first) => format!("  {name}: {} tensors of {}", tensors.len(), first.path().display()),
            None => format!("  {name}: none"),
        });
    }
    for (what, names) in [
        ("computed anyway, left out", &checkpoint.computed),
        ("not of this model, left out", &checkpoint.unmapped),
    ] {
        if !names.is_empty() {
            let more = names.len().saturating_sub(SHOWN);
            let shown = names[..names.len() - more].join(", ");
            lines.push(match more {
                0 => format!("  {what}: {shown}"),
                _ => format!("  {what}: {shown} and {more} more"),
            });
        }
    }
    if checkpoint.has_model() && !checkpoint.copied.iter().any(|path| path.ends_with("tokenizer.json")) {
        lines.push("  no tokenizer.json: take that of Qwen/Qwen2.5-VL-3B-Instruct".into());
    }
    lines
}

fn source_layout(checkpoint: &Checkpoint) -> Value {
    match checkpoint.layout {
        Some(layout) => json!(layout),
        None => json!("vae"),
    }
}
