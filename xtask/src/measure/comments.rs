//! Share of reasons in the kernels' lines.

use std::path::Path;

use super::KERNELS;
use super::source::{Line, Workspace};

#[derive(Default)]
struct Count {
    /// `//` lines outside SAFETY comments.
    reasons: usize,
    /// `//!` lines.
    module_docs: usize,
    /// Lines that are not blank.
    lines: usize,
}

impl Count {
    fn add<'a>(&mut self, lines: impl Iterator<Item = &'a str>) {
        let mut safety = false;
        for text in lines {
            let line = Line::of(text);
            self.lines += usize::from(line != Line::Blank);
            self.module_docs += usize::from(line == Line::ModuleDoc);
            let comment = line == Line::Comment;
            safety = comment && (safety || text.trim_start().starts_with("// SAFETY"));
            self.reasons += usize::from(comment && !safety);
        }
    }

    fn share(&self) -> f64 {
        100.0 * (self.reasons + self.module_docs) as f64 / self.lines.max(1) as f64
    }
}

/// Prints the share for the Rust and for the Metal sources.
pub(super) fn print(workspace: &Workspace) {
    let (mut rust, mut metal) = (Count::default(), Count::default());
    for file in workspace.crates.iter().flat_map(|krate| &krate.files) {
        if file.path.starts_with(KERNELS) || file.path == Path::new(KERNELS).with_extension("rs") {
            rust.add(file.product_lines().map(|(_, text)| text));
        }
    }
    workspace.metal.iter().for_each(|text| metal.add(text.lines()));
    println!(
        "\nreasons in kernels: (`//` lines without SAFETY comments and `///`, and `//!` lines) / lines not blank"
    );
    for (name, count) in [("Rust", rust), ("Metal", metal)] {
        println!(
            "  {name}: {:.1} % ({} comments and {} module docs in {} lines)",
            count.share(),
            count.reasons,
            count.module_docs,
            count.lines
        );
    }
}
