//! A parity report for a person.

use lance_mm_eval::parity::{Score, Stratum};
use lance_mm_eval::{Continuation, LogitReport, ModelInfo, ParityReport};

use crate::document::number::{or_dash, percent, short};
use crate::document::{Document, Table};
use crate::document::{Plot, Series};
use crate::output::bytes;

pub(super) fn document(models: &[ModelInfo; 2], report: &ParityReport) -> Document {
    let [reference, candidate] = models;
    let mut document = Document::new(format!("Parity of {} with {}", candidate.name, reference.name));
    let through = match report.continuation {
        Continuation::Greedy => "the reference's own greedy answer",
        Continuation::Given => "the answer in the data",
    };
    let note = report.all.note.map_or(String::new(), |note| format!(" ({note})"));
    let samples = report.all.samples;
    document.text(format!("{samples} questions{note}; logits are compared along {through}."));
    document.table(by_model(models, report));
    if !report.kinds.is_empty() {
        document.heading("By kind");
        document.table(by_kind(report));
        plots(&mut document, report);
    }
    document.heading("All numbers");
    document.table(all_numbers(report));
    document
}

/// One row a model.
fn by_model([reference, candidate]: &[ModelInfo; 2], report: &ParityReport) -> Table {
    let without = report.without.as_ref();
    let mut head = vec!["model", "exact"];
    let name = without.map(|without| format!("exact {}", without.name));
    head.extend(name.as_deref());
    head.extend(["same as REF", "KL mean", "KL p95", "same argmax", "size", "bytes", "bits/weight"]);
    let mut table = Table::new(head, 1);
    let mut row = |model: &ModelInfo, score: fn(&Stratum) -> Option<Score>, compared: [String; 4]| {
        let exact = |stratum: &Stratum| or_dash(score(stratum), |score| percent(score.exact));
        let size = model.total;
        let mut cells = vec![model.name.clone(), exact(&report.all)];
        cells.extend(without.map(exact));
        cells.extend(compared);
        cells.extend([
            bytes(size.bytes),
            size.bytes.to_string(),
            or_dash(size.bits_per_weight(), |b| format!("{b:.2}")),
        ]);
        table.row(cells);
    };
    row(reference, |s| s.reference, ["100.0 %", "0", "0", "100.0 %"].map(str::to_owned));
    row(candidate, |s| s.candidate, compared(&report.all));
    table
}

/// Agreement of answers, mean and 95th percentile of the divergence, share of the same argmax.
fn compared(stratum: &Stratum) -> [String; 4] {
    let logits = |show: fn(LogitReport) -> String| or_dash(stratum.logits, show);
    [
        or_dash(stratum.agreement, |agreement| percent(agreement.exact)),
        logits(|l| short(l.kl.mean)),
        logits(|l| short(l.kl.p95)),
        logits(|l| percent(l.top1_agreement)),
    ]
}

fn by_kind(report: &ParityReport) -> Table {
    let head = [
        "kind",
        "note",
        "questions",
        "tokens",
        "exact REF",
        "exact CAND",
        "same as REF",
        "KL mean",
        "KL p95",
        "same argmax",
    ];
    let mut table = Table::new(head, 2);
    for stratum in report.kinds.iter().chain(&report.without).chain([&report.all]) {
        let exact = |score: Option<Score>| or_dash(score, |score| percent(score.exact));
        let start = [
            stratum.name.clone(),
            stratum.note.unwrap_or_default().to_owned(),
            stratum.samples.to_string(),
            or_dash(stratum.logits, |l| l.positions.to_string()),
            exact(stratum.reference),
            exact(stratum.candidate),
        ];
        table.row(start.into_iter().chain(compared(stratum)));
    }
    table
}

fn all_numbers(report: &ParityReport) -> Table {
    let strata: Vec<&Stratum> = [&report.all].into_iter().chain(&report.without).collect();
    let mut table = Table::new(["number"].into_iter().chain(strata.iter().map(|s| s.name.as_str())), 1);
    let mut row = |name: &str, value: &dyn Fn(&Stratum) -> Option<String>| {
        let values = strata.iter().map(|stratum| or_dash(value(stratum), |v| v));
        table.row([name.to_owned()].into_iter().chain(values));
    };
    type Show = fn(&LogitReport) -> String;
    let logits: [(&str, Show); 14] = [
        ("tokens compared", |l| l.positions.to_string()),
        ("KL mean, nats", |l| short(l.kl.mean)),
        ("KL median", |l| short(l.kl.median)),
        ("KL p95", |l| short(l.kl.p95)),
        ("KL max", |l| short(l.kl.max)),
        ("KL of the first token", |l| short(l.kl_first)),
        ("same argmax", |l| percent(l.top1_agreement)),
        ("top 5 in common", |l| percent(l.top5_overlap)),
        ("other argmax though REF led by more than 1", |l| percent(l.flips_with_margin)),
        ("NLL of CAND", |l| short(l.nll)),
        ("NLL of REF", |l| short(l.nll_reference)),
        ("perplexity of CAND", |l| short(l.perplexity)),
        ("perplexity over REF's", |l| short(l.perplexity_ratio)),
        ("logit error", |l| short(l.logit_error)),
    ];
    for (name, value) in logits {
        row(name, &|stratum| stratum.logits.as_ref().map(value));
    }
    row("same answer", &|s| Some(percent(s.agreement?.exact)));
    row("similarity of characters", &|s| Some(short(s.agreement?.char_similarity)));
    row("words in common", &|s| Some(short(s.agreement?.word_jaccard)));
    row("length over REF's", &|s| Some(short(s.agreement?.length_ratio)));
    row("same facts", &|s| Some(percent(s.agreement?.facts_equal)));
    row("REF contains what is expected", &|s| Some(percent(s.reference?.expected)));
    row("CAND contains what is expected", &|s| Some(percent(s.candidate?.expected)));
    table
}

fn plots(document: &mut Document, report: &ParityReport) {
    let places: Vec<String> = report.kinds.iter().map(|stratum| stratum.name.clone()).collect();
    let series = |name: &str, value: &dyn Fn(&Stratum) -> Option<f64>| Series {
        name: name.to_owned(),
        values: report.kinds.iter().map(|stratum| value(stratum).unwrap_or(f64::NAN)).collect(),
    };
    let mut bars = |title: &str, series: &[Series], log: bool| {
        document.plot(Plot { title, places: &places, series, log }.bars());
    };
    if report.all.agreement.is_some() {
        let exact = [
            series("REF", &|s| Some(100.0 * s.reference?.exact)),
            series("CAND", &|s| Some(100.0 * s.candidate?.exact)),
            series("same as REF", &|s| Some(100.0 * s.agreement?.exact)),
        ];
        bars("Exact answers, %", &exact, false);
    }
    let kl = [series("mean", &|s| Some(s.logits?.kl.mean)), series("p95", &|s| Some(s.logits?.kl.p95))];
    bars("KL from the reference, nats a token", &kl, true);
}
