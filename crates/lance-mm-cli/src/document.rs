//! Headings, tables and plots, as Markdown or as a page.

mod grid;
pub(crate) mod number;
mod plot;

use crate::output::escaped;
pub(crate) use grid::Grid;
pub(crate) use plot::{Plot, Series};

/// A report for a person.
pub(crate) struct Document {
    title: String,
    parts: Vec<Part>,
}

enum Part {
    Heading(String),
    Text(String),
    Table(Table),
    /// An SVG; Markdown leaves it out.
    Plot(String),
}

/// Rows of cells under a head; the first `texts` columns are text, the others numbers.
pub(crate) struct Table {
    head: Vec<String>,
    texts: usize,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<'a>(head: impl IntoIterator<Item = &'a str>, texts: usize) -> Self {
        Self { head: head.into_iter().map(str::to_owned).collect(), texts, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let row: Vec<String> = cells.into_iter().collect();
        assert_eq!(row.len(), self.head.len(), "one cell for each column");
        self.rows.push(row);
    }

    fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let escaped = |cells: &Vec<String>| cells.iter().map(|cell| cell_text(cell)).collect::<Vec<_>>();
        let rules: Vec<String> =
            (0..self.head.len()).map(|i| if i < self.texts { "---" } else { "---:" }.to_owned()).collect();
        let rows: String = self.rows.iter().map(|row| line(&escaped(row))).collect();
        line(&escaped(&self.head)) + &line(&rules) + &rows
    }

    fn html(&self) -> String {
        let row = |cells: &Vec<String>, tag: &str| {
            let cell = |(i, cell): (usize, &String)| {
                let class = if i < self.texts { "" } else { " class=\"n\"" };
                format!("<{tag}{class}>{}</{tag}>", escape(cell))
            };
            format!("<tr>{}</tr>\n", cells.iter().enumerate().map(cell).collect::<String>())
        };
        let rows: String = self.rows.iter().map(|cells| row(cells, "td")).collect();
        format!(
            "<table>\n<thead>{}</thead>\n<tbody>\n{rows}</tbody>\n</table>\n",
            row(&self.head, "th").trim_end()
        )
    }
}

impl Document {
    pub(crate) fn new(title: String) -> Self {
        Self { title, parts: Vec::new() }
    }

    pub(crate) fn heading(&mut self, text: &str) {
        self.parts.push(Part::Heading(text.to_owned()));
    }

    pub(crate) fn text(&mut self, text: impl Into<String>) {
        self.parts.push(Part::Text(text.into()));
    }

    pub(crate) fn table(&mut self, table: Table) {
        self.parts.push(Part::Table(table));
    }

    pub(crate) fn plot(&mut self, svg: String) {
        self.parts.push(Part::Plot(svg));
    }

    /// Markdown, without plots.
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("# {}\n", cell_text(&self.title));
        for part in &self.parts {
            match part {
                Part::Heading(heading) => text += &format!("\n## {heading}\n"),
                Part::Text(line) => text += &format!("\n{line}\n"),
                Part::Table(table) => text += &format!("\n{}", table.markdown()),
                Part::Plot(_) => {}
            }
        }
        text
    }

    /// One page that needs no other file.
    pub(crate) fn html(&self) -> String {
        let part = |part: &Part| match part {
            Part::Heading(heading) => format!("<h2>{}</h2>\n", escape(heading)),
            Part::Text(line) => format!("<p>{}</p>\n", escape(line)),
            Part::Table(table) => table.html(),
            Part::Plot(svg) => format!("<figure>{svg}</figure>\n"),
        };
        let title = escape(&self.title);
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<title>{title}</title>\n\
             <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{}</body>\n</html>\n",
            self.parts.iter().map(part).collect::<String>()
        )
    }
}

const STYLE: &str = "\
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent);
  text-align: left; vertical-align: top; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1rem 0; }
svg { max-width: 100%; height: auto; font: 12px system-ui, sans-serif; }
";

/// A cell on one line, without the sign that ends it.
fn cell_text(text: &str) -> String {
    text.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Text as HTML and SVG write it.
pub(crate) fn escape(text: &str) -> String {
    escaped(text).replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms() {
        let mut document = Document::new("a & b".into());
        document.heading("Table");
        let mut table = Table::new(["name", "value"], 1);
        table.row(["x|y\nz".to_owned(), "1".to_owned()]);
        document.table(table);
        document.plot("<svg></svg>".into());
        document.text("small <sample>");
        assert_eq!(
            document.markdown(),
            "# a & b\n\n## Table\n\n| name | value |\n| --- | ---: |\n| x\\|y z | 1 |\n\nsmall <sample>\n"
        );
        let html = document.html();
        assert!(html.contains("<title>a &amp; b</title>") && html.contains("<p>small &lt;sample&gt;</p>"));
        assert!(html.contains("<td>x|y\nz</td><td class=\"n\">1</td>") && html.contains("<svg></svg>"));
        assert!(!html.contains("http") && !html.contains("<script"));
    }
}
