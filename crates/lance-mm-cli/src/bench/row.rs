//! Measured numbers and the table of them.

use serde::Serialize;

use super::measure::Measured;
use crate::document::number::{percent, short};
use crate::document::{Document, Table};

/// Repeats of one measurement.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Row {
    what: String,
    unit: &'static str,
    median: f64,
    min: f64,
    max: f64,
    /// Share of a limit of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    share: Option<Share>,
}

/// The median of the shares of all repeats.
#[derive(Debug, PartialEq, Serialize)]
struct Share {
    of: &'static str,
    median: f64,
}

impl Row {
    /// A row of repeats.
    ///
    /// # Panics
    /// When there are none.
    pub(super) fn new(what: impl Into<String>, unit: &'static str, values: Vec<f64>) -> Self {
        let sorted = sorted(values);
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        Self { what: what.into(), unit, median: middle(&sorted), min, max, share: None }
    }

    /// The same with the share of a limit that each repeat reached.
    pub(super) fn with_share(self, of: &'static str, shares: Vec<f64>) -> Self {
        Self { share: Some(Share { of, median: middle(&sorted(shares)) }), ..self }
    }

    /// Median, least and greatest.
    fn value(&self) -> String {
        match self.min == self.max {
            true => short(self.median),
            false => format!("{} ({} to {})", short(self.median), short(self.min), short(self.max)),
        }
    }

    fn share(&self) -> String {
        self.share
            .as_ref()
            .map_or_else(String::new, |share| format!("{} of {}", percent(share.median), share.of))
    }
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    assert!(!values.is_empty(), "at least one repeat");
    values.sort_by(f64::total_cmp);
    values
}

fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[half - 1] + sorted[half]) / 2.0,
        _ => sorted[half],
    }
}

/// A table of a list of rows.
pub(super) fn table(rows: &[Row]) -> Table {
    let mut table = Table::new(["what", "unit", "median (least to greatest)", "share of a limit"], 2);
    for row in rows {
        table.row([row.what.clone(), row.unit.to_owned(), row.value(), row.share()]);
    }
    table
}

/// A table for each model, and one of ratios when there are several.
pub(super) fn show(models: &[Measured], document: &mut Document) {
    for model in models.iter().filter(|model| !model.rows.is_empty()) {
        document.heading(&model.name);
        document.table(table(&model.rows));
    }
    let [first, others @ ..] = models else { return };
    if others.is_empty() || first.rows.is_empty() {
        return;
    }
    document.heading(&format!("Ratios to {}", first.name));
    let head = ["what", "unit"].into_iter().chain(others.iter().map(|model| model.name.as_str()));
    let mut table = Table::new(head, 2);
    for row in &first.rows {
        let ratio = |model: &Measured| {
            let other = model.rows.iter().find(|other| other.what == row.what);
            other.map_or_else(|| "–".to_owned(), |other| short(other.median / row.median))
        };
        let cells = [row.what.clone(), row.unit.to_owned()].into_iter().chain(others.iter().map(ratio));
        table.row(cells);
    }
    document.table(table);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_with_their_spread() {
        let row = Row::new("x", "s", vec![3.0, 1.0, 2.0]).with_share("y", vec![0.5, 0.25, 0.4, 0.3]);
        assert_eq!((row.value(), row.share()), ("2.000 (1.000 to 3.000)".into(), "35.0 % of y".into()));
        assert_eq!(Row::new("x", "s", vec![0.5]).value(), "0.5000");
        assert_eq!(Row::new("x", "s", vec![1.0, 4.0]).median, 2.5);
    }
}
