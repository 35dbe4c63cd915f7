//! A report of `bench` as tables.

use lance_mm_eval::bench::{BenchReport, Machine, Measurement, ModelSpeed, SoakReport};

use crate::document::number::{or_dash, percent, short};
use crate::document::{Document, Table};
use crate::output::{bytes, plural};

pub(super) fn document(report: &BenchReport) -> Document {
    let mut document = Document::new("Speed".to_owned());
    machine(&report.machine, &mut document);
    for model in report.models.iter().filter(|model| !model.rows.is_empty()) {
        document.heading(&model.name);
        document.table(table(&model.rows));
    }
    if let [first, others @ ..] = report.models.as_slice() {
        ratios(first, others, &mut document);
        answers(first, others, &mut document);
    }
    for model in &report.models {
        if let Some(report) = &model.soak {
            document.heading(&format!("Memory of {}", model.name));
            soak(report, &mut document);
        }
    }
    document
}

/// Memory over each tenth, and its slope.
fn soak(report: &SoakReport, document: &mut Document) {
    let mut table = Table::new(["questions", "resident", "anonymous", "anonymous, bytes"], 0);
    for point in &report.points {
        table.row([
            point.questions.to_string(),
            bytes(point.resident),
            bytes(point.anonymous),
            point.anonymous.to_string(),
        ]);
    }
    document.table(table);
    document.text(format!(
        "Means over each tenth. Slope of anonymous memory: {:+.1} bytes a question, standard error {:.1}.",
        report.bytes_per_question, report.standard_error
    ));
}

fn machine(machine: &Machine, document: &mut Document) {
    let cpu = machine.cpu.as_deref().unwrap_or("processor unknown");
    let threads = plural(machine.threads, "thread");
    document.text(format!("{cpu} ({}, {}), {threads}.", machine.arch, machine.os));
    if !machine.limits.is_empty() {
        document.heading("Limits");
        document.table(table(&machine.limits));
    }
}

/// Median, least and greatest.
fn value(row: &Measurement) -> String {
    if row.min == row.max {
        return short(row.median);
    }
    format!("{} ({} to {})", short(row.median), short(row.min), short(row.max))
}

fn share(row: &Measurement) -> String {
    row.share.map_or_else(String::new, |share| format!("{} of {}", percent(share.median), share.of))
}

fn table(rows: &[Measurement]) -> Table {
    let mut table = Table::new(["what", "unit", "median (least to greatest)", "share of a limit"], 2);
    for row in rows {
        table.row([row.what.clone(), row.unit.to_owned(), value(row), share(row)]);
    }
    table
}

/// Medians of the other models relative to the first.
fn ratios(first: &ModelSpeed, others: &[ModelSpeed], document: &mut Document) {
    if others.is_empty() || first.rows.is_empty() {
        return;
    }
    document.heading(&format!("Ratios to {}", first.name));
    let head = ["what", "unit"].into_iter().chain(others.iter().map(|model| model.name.as_str()));
    let mut table = Table::new(head, 2);
    for row in &first.rows {
        let ratio = |model: &ModelSpeed| {
            let other = model.rows.iter().find(|other| other.what == row.what);
            or_dash(other, |other| short(other.median / row.median))
        };
        let cells = [row.what.clone(), row.unit.to_owned()].into_iter().chain(others.iter().map(ratio));
        table.row(cells);
    }
    document.table(table);
}

/// Questions down, models across, as the table that was published with the original port.
fn answers(first: &ModelSpeed, others: &[ModelSpeed], document: &mut Document) {
    if first.cases.is_empty() {
        return;
    }
    document.heading("Answers");
    document.text("Seconds in all, until the prompt is read, and for each of the tokens.");
    let models = || [first].into_iter().chain(others);
    let mut head = vec!["#".to_owned(), "question".to_owned()];
    for model in models() {
        head.extend(["s", "prompt", "a token", "tokens"].map(|what| format!("{}: {what}", model.name)));
    }
    head.extend(others.iter().map(|model| format!("{} a token to {}", first.name, model.name)));
    let mut table = Table::new(head.iter().map(String::as_str), 2);
    for (i, case) in first.cases.iter().enumerate() {
        let mut row = vec![(i + 1).to_string(), case.question.clone()];
        for case in models().map(|model| &model.cases[i]) {
            row.extend([case.seconds, case.prompt_seconds, case.seconds_per_token].map(short));
            row.push(case.tokens.to_string());
        }
        let ratio = |model: &ModelSpeed| short(case.seconds_per_token / model.cases[i].seconds_per_token);
        row.extend(others.iter().map(ratio));
        table.row(row);
    }
    document.table(table);
}

#[cfg(test)]
mod tests {
    use lance_mm_eval::bench::LimitShare;

    use super::*;

    #[test]
    fn medians_with_their_range() {
        let share_of = Some(LimitShare { of: "y", median: 0.35 });
        let mut row =
            Measurement { what: "x".into(), unit: "s", median: 2.0, min: 1.0, max: 3.0, share: share_of };
        assert_eq!((value(&row), share(&row)), ("2.000 (1.000 to 3.000)".into(), "35.0 % of y".into()));
        (row.min, row.max, row.share) = (2.0, 2.0, None);
        assert_eq!((value(&row), share(&row)), ("2.000".into(), String::new()));
    }
}
