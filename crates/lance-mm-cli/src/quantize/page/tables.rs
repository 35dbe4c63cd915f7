//! Tables of what was chosen.

use lance_mm::inspect::{Component, Count};
use lance_mm_quant::{Drift, Family, RoundingMethod, RoundingReport};

use super::{Page, place};
use crate::document::Table;
use crate::document::number::{or_dash, percent, short};

/// One row a kind of matrix, then the sums.
pub(super) fn parts(page: &Page<'_>) -> Table {
    let head = ["part", "bits", "group", "bytes", "bits per weight", "error before", "error after"];
    let mut table = Table::new(head, 1);
    let mut kinds: Vec<(&str, Vec<&RoundingReport>)> = Vec::new();
    for linear in page.report.linears() {
        let (_, kind) = place(&linear.name);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, list)) => list.push(linear),
            None => kinds.push((kind, vec![linear])),
        }
    }
    for (kind, linears) in kinds {
        let bytes: usize = linears.iter().filter_map(|linear| page.bytes.get(&linear.name)).sum();
        // A group costs its codes, a scale and a bias.
        let groups = |l: &&RoundingReport| {
            let each = (l.bits * l.group_size).div_ceil(8) + 4;
            page.bytes.get(&l.name).map_or(0, |bytes| bytes / each * l.group_size)
        };
        let weights: usize = linears.iter().map(groups).sum();
        table.row([
            kind.to_owned(),
            range(linears.iter().map(|l| l.bits)),
            range(linears.iter().map(|l| l.group_size)),
            bytes.to_string(),
            or_dash((weights > 0).then(|| 8.0 * bytes as f64 / weights as f64), |bits| format!("{bits:.3}")),
            or_dash(mean(linears.iter().map(|l| l.plain)), short),
            or_dash(mean(linears.iter().map(|l| l.final_error)), short),
        ]);
    }
    let vit = page.inspected.components.iter().find(|part| part.component == Component::Vit);
    let sums = [
        ("model file", page.inspected.model),
        ("vision encoder", vit.map(|part| part.count)),
        ("all files", Some(page.inspected.total)),
    ];
    for (name, count) in sums.into_iter().filter_map(|(name, count)| Some((name, count?))) {
        table.row(sum(name, count));
    }
    table
}

fn sum(name: &str, count: Count) -> [String; 7] {
    let dash = || "–".to_owned();
    let bits = or_dash(count.bits_per_weight(), |bits| format!("{bits:.3}"));
    [name.to_owned(), dash(), dash(), count.bytes.to_string(), bits, dash(), dash()]
}

/// `4`, or `3–6`.
fn range(values: impl Iterator<Item = usize> + Clone) -> String {
    match (values.clone().min(), values.max()) {
        (Some(least), Some(most)) if least != most => format!("{least}–{most}"),
        (Some(only), _) => only.to_string(),
        _ => "–".to_owned(),
    }
}

/// Mean of the finite values.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) =
        values.filter(|value| value.is_finite()).fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

/// Every fusion group.
pub(super) fn scales(page: &Page<'_>) -> Table {
    let head = [
        "producers",
        "group",
        "family",
        "α",
        "search, identity",
        "search, best",
        "held out, identity",
        "held out, best",
        "accepted",
    ];
    let mut table = Table::new(head, 3);
    for group in page.report.fusions() {
        table.row([
            group.producers.join(", "),
            group.group.name().to_owned(),
            family(group.family).to_owned(),
            format!("{:.2}", group.alpha),
            or_dash(group.identity, short),
            or_dash(finite(group.best), short),
            or_dash(group.held_out_identity, short),
            or_dash(group.held_out_best, short),
            if group.accepted { "yes" } else { "no" }.to_owned(),
        ]);
    }
    table
}

/// Every packed matrix.
pub(super) fn matrices(page: &Page<'_>) -> Table {
    let head = [
        "matrix",
        "rounding",
        "bits",
        "group",
        "bytes",
        "plain",
        "scaled",
        "final",
        "drift",
        "drift, compensated",
        "drift and rounding",
        "SNR of the weights, dB",
        "groups clipped",
    ];
    let mut table = Table::new(head, 2);
    for linear in page.report.linears() {
        table.row([
            linear.name.clone(),
            method(linear.method),
            linear.bits.to_string(),
            linear.group_size.to_string(),
            or_dash(page.bytes.get(&linear.name), |bytes| bytes.to_string()),
            or_dash(finite(linear.plain), short),
            or_dash(finite(linear.scaled), short),
            or_dash(finite(linear.final_error), short),
            or_dash(drift(linear, |d| d.before), short),
            or_dash(drift(linear, |d| d.after), short),
            or_dash(drift(linear, |d| d.rounded), short),
            or_dash(finite(linear.snr_db), |snr| format!("{snr:.1}")),
            or_dash(finite(linear.clipped), percent),
        ]);
    }
    table
}

fn drift(linear: &RoundingReport, of: impl Fn(&Drift) -> f64) -> Option<f64> {
    linear.drift.as_ref().map(of).and_then(finite)
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// A family of scales.
fn family(family: Family) -> &'static str {
    match family {
        Family::Identity => "identity",
        Family::Act => "act",
        Family::ActWeight => "act_weight",
    }
}

/// A rounding method with its damping.
fn method(method: RoundingMethod) -> String {
    match method {
        RoundingMethod::Plain => "plain".to_owned(),
        RoundingMethod::ClipRefit => "clip refit".to_owned(),
        RoundingMethod::Feedback => "feedback".to_owned(),
        RoundingMethod::FeedbackDescent(damping) => format!("feedback descent {damping}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_is_a_range() {
        assert_eq!(range([4, 4].into_iter()), "4");
        assert_eq!(range([4, 3, 6].into_iter()), "3–6");
        assert_eq!(range([].into_iter()), "–");
        assert_eq!(mean([1.0, f64::NAN, 3.0].into_iter()), Some(2.0));
        assert_eq!(mean([f64::NAN].into_iter()), None);
    }

    #[test]
    fn a_method_is_words_with_its_setting() {
        assert_eq!(method(RoundingMethod::ClipRefit), "clip refit");
        assert_eq!(method(RoundingMethod::FeedbackDescent(0.1)), "feedback descent 0.1");
    }
}
