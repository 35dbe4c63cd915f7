//! An inspection's report for a person.

use lance_mm::inspect::{Component, Count, ExpertsFound, InspectReport, MemoryEstimate, QuantizationSummary};

use crate::output::{Line, bytes, one_line, plural};

/// Most names listed one by one.
const MAX_LISTED: usize = 4;

/// The whole report.
pub(super) fn render(report: &InspectReport) -> Vec<Line> {
    let mut lines = vec![("1", report.path.display().to_string())];
    lines.extend(facts(report).into_iter().map(|(name, value)| ("", format!("  {name:<13} {value}"))));
    let mut section = |title: &str, code: &'static str, texts: &[String]| {
        if !texts.is_empty() {
            lines.extend([("", String::new()), ("1", title.to_owned())]);
            lines.extend(texts.iter().map(|text| (code, format!("  {}", text.trim_end()))));
        }
    };
    section("parts", "", &parts(report));
    // Escaped here, where widths are counted.
    let file =
        |file: &lance_mm::inspect::FileEntry| vec![one_line(&file.name).into_owned(), bytes(file.bytes)];
    section("files", "", &aligned(&report.files.iter().map(file).collect::<Vec<_>>(), 1));
    if let Some(memory) = &report.memory {
        section("in memory for questions about images", "", &aligned(&memory_rows(memory), 1));
    }
    section("notes", "", &report.notes);
    section("problems", "31", &report.problems);
    lines
}

fn facts(report: &InspectReport) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    match report.layout {
        Some(layout) => facts.push(("layout", layout.describe().to_owned())),
        None if report.model.is_some() => facts.push(("layout", "not recognised".to_owned())),
        None => {}
    }
    match report.experts {
        Some(ExpertsFound::Und) => facts.push(("experts", "UND (questions)".to_owned())),
        Some(ExpertsFound::UndAndGen) => {
            let makes = if report.latent_frames > Some(1) {
                "questions, images and videos"
            } else {
                "questions and images"
            };
            facts.push(("experts", format!("UND and GEN ({makes})")))
        }
        None => {}
    }
    if let Some(config) = &report.config {
        facts.push((
            "language",
            format!(
                "{} of width {}, {} heads ({} key/value) of {}, vocabulary {}, up to {} tokens",
                plural(config.num_hidden_layers, "layer"),
                config.hidden_size,
                config.num_attention_heads,
                config.num_key_value_heads,
                config.head_dim,
                config.vocab_size,
                config.max_position_embeddings,
            ),
        ));
        facts.push((
            "vision",
            format!("{} of width {}", plural(config.vit_depth, "block"), config.vit_hidden_size),
        ));
    }
    if let Some(quantization) = &report.quantization {
        facts.extend(quantized(quantization).into_iter().map(|value| ("quantization", value)));
    }
    if let Some(tokenizer) = &report.tokenizer {
        facts.push(("tokenizer", format!("{} tokens, {}", tokenizer.vocabulary, tokenizer.name)));
    }
    facts
}

fn quantized(quantization: &QuantizationSummary) -> Vec<String> {
    let scheme = |scheme: &lance_mm::inspect::SchemeCount| {
        let name = &scheme.scheme;
        format!(
            "{} of {} bits in groups of {}: {}, {} bits per weight",
            name.mode,
            name.bits,
            name.group_size,
            match scheme.modules {
                1 => "1 matrix".to_owned(),
                n => format!("{n} matrices"),
            },
            bits(&scheme.count),
        )
    };
    let mut lines: Vec<String> = quantization.schemes.iter().map(scheme).collect();
    for (what, names) in [("unclear", &quantization.unclear), ("dense", &quantization.dense)] {
        if !names.is_empty() {
            lines.push(format!("{what}: {}", listed(names)));
        }
    }
    lines
}

fn listed(names: &[String]) -> String {
    match names.len().saturating_sub(MAX_LISTED) {
        0 => names.join(", "),
        more => format!("{} and {more} more", names[..MAX_LISTED].join(", ")),
    }
}

/// The table of parts and its two sums.
fn parts(report: &InspectReport) -> Vec<String> {
    let row = |name: &str, count: &Count, dtypes: String, fingerprint: &str| {
        vec![
            name.to_owned(),
            count.tensors.to_string(),
            thousands(count.parameters),
            bytes(count.bytes),
            bits(count),
            dtypes,
            fingerprint.to_owned(),
        ]
    };
    let head = ["", "tensors", "weights", "size", "bits/weight", "types", "fingerprint"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for part in &report.components {
        let fingerprint = part.fingerprint.as_deref().unwrap_or_default();
        rows.push(row(name(part.component), &part.count, part.dtypes.join(" "), fingerprint));
    }
    if let Some(model) = &report.model {
        rows.push(row("model file", model, String::new(), ""));
    }
    rows.push(row("all files", &report.total, String::new(), ""));
    if report.components.iter().all(|part| part.fingerprint.is_none()) {
        rows.iter_mut().for_each(|row| row.truncate(6));
    }
    aligned(&rows, 4)
}

fn name(component: Component) -> &'static str {
    match component {
        Component::UndLinears => "UND layers",
        Component::GenLinears => "GEN layers",
        Component::EmbedTokens => "embedding table",
        Component::LmHead => "output head",
        Component::Norms => "norms",
        Component::Latent => "latent in and out",
        Component::Vit => "vision encoder",
        Component::Vae => "VAE",
        Component::Other => "other",
    }
}

fn memory_rows(memory: &MemoryEstimate) -> Vec<Vec<String>> {
    [
        ("UND expert, read for every token", memory.und_bytes),
        ("embedding table, of which a few rows are read", memory.embed_tokens_bytes),
        ("vision encoder, read for every image", memory.vit_bytes),
        ("keys and values of 1000 tokens", memory.kv_bytes_per_1000_tokens),
    ]
    .into_iter()
    .filter(|(_, size)| *size > 0)
    .map(|(what, size)| vec![what.to_owned(), bytes(size)])
    .collect()
}

/// Lines of columns: the first to the left, the `numbers` after it to the right, the rest to the left.
fn aligned(rows: &[Vec<String>], numbers: usize) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |i: usize| {
        rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let cell = |(i, cell): (usize, &String)| {
        if (1..=numbers).contains(&i) {
            format!("{cell:>0$}", widths[i])
        } else {
            format!("{cell:<0$}", widths[i])
        }
    };
    rows.iter().map(|row| row.iter().enumerate().map(cell).collect::<Vec<_>>().join("  ")).collect()
}

fn bits(count: &Count) -> String {
    count.bits_per_weight().map_or_else(|| "-".to_owned(), |bits| format!("{bits:.2}"))
}

/// `1 234 567`.
fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_columns() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1 000", "1 234 567"]);
        let rows = [["a", "1", "x"], ["bcd", "234", "yz"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(aligned(&rows, 1), ["a      1  x ", "bcd  234  yz"]);
        assert_eq!(listed(&["a", "b", "c", "d", "e"].map(str::to_owned)), "a, b, c, d and 1 more");
    }
}
