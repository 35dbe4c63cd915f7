//! A layer report for a person.

use lance_mm_eval::layers::{Compounding, LinearReport, OneLayer, TokenClass};
use lance_mm_eval::{LayerReport, ModelInfo};

use crate::document::number::{decibels, or_dash, short};
use crate::document::{Document, Table};
use crate::document::{Plot, Series};

pub(super) fn document([reference, candidate]: &[ModelInfo; 2], report: &LayerReport) -> Document {
    let mut document = Document::new(format!("Layers of {} against {}", candidate.name, reference.name));
    let note = report.note.map_or(String::new(), |note| format!(" ({note})"));
    document.text(format!(
        "{} questions{note}, {} tokens, {} of them for linear layers. Errors are squared and relative.",
        report.samples, report.tokens, report.linear_tokens
    ));
    document.heading("Layers");
    document.text(
        "Local: the candidate's layer on the reference's input. Accumulated: on its own. Their ratio shows \
         how errors compound.",
    );
    document.table(layers(report));
    document.plot(errors(report));
    document.heading("Tokens");
    document.table(tokens(report));
    document.heading("Linear layers");
    document.text("Each alone, on the reference's inputs, in the reference's space.");
    document.table(linears(report));
    document.plot(snr(report));
    document
}

fn layers(report: &LayerReport) -> Table {
    let head = ["layer", "part", "local", "accumulated", "SNR local, dB", "SNR accumulated, dB", "ratio"];
    let mut table = Table::new(head, 2);
    for layer in &report.layers {
        for (name, part) in parts(layer) {
            table.row([
                layer.layer.to_string(),
                name.to_owned(),
                short(part.local.error()),
                short(part.accumulated.error()),
                decibels(part.local.snr()),
                decibels(part.accumulated.snr()),
                or_dash(part.ratio, short),
            ]);
        }
    }
    table
}

fn parts(layer: &OneLayer) -> [(&'static str, Compounding); 5] {
    [
        ("q after its norm", layer.q_norm),
        ("k after its norm", layer.k_norm),
        ("attention", layer.self_attn),
        ("MLP", layer.mlp),
        ("output", layer.output),
    ]
}

fn tokens(report: &LayerReport) -> Table {
    let mut table = Table::new(["tokens", "error of the input", "cosine after the last layer"], 1);
    for (name, class) in
        [("image", TokenClass::Vit), ("text", TokenClass::Text), ("answer", TokenClass::Answer)]
    {
        if let Some(input) = report.inputs.get(&class) {
            let cosine = report.final_cosine.get(&class);
            table.row([
                name.to_owned(),
                short(input.error()),
                or_dash(cosine, |cosine| format!("{cosine:.6}")),
            ]);
        }
    }
    table
}

fn all_linears(report: &LayerReport) -> impl Iterator<Item = &LinearReport> {
    report.layers.iter().flat_map(|layer| &layer.linears).chain([&report.lm_head])
}

fn linears(report: &LayerReport) -> Table {
    let head = [
        "linear layer",
        "error",
        "SNR, dB",
        "SNR of the weights, dB",
        "outlier ratio",
        "kurtosis",
        "least scale",
        "largest scale",
    ];
    let mut table = Table::new(head, 1);
    for linear in all_linears(report) {
        let [least, largest] = linear.input_scale.map(|scale| short(f64::from(scale)));
        table.row([
            linear.path.clone(),
            short(linear.output.error()),
            decibels(linear.output.snr()),
            decibels(linear.weight_snr_db),
            or_dash(linear.outlier_ratio, short),
            or_dash(linear.kurtosis, short),
            least,
            largest,
        ]);
    }
    table
}

fn numbers(report: &LayerReport) -> Vec<String> {
    report.layers.iter().map(|layer| layer.layer.to_string()).collect()
}

fn errors(report: &LayerReport) -> String {
    let series = |name: &str, value: fn(&OneLayer) -> f64| Series {
        name: name.to_owned(),
        values: report.layers.iter().map(value).collect(),
    };
    let series = [
        series("output, local", |l| l.output.local.error()),
        series("output, acc.", |l| l.output.accumulated.error()),
        series("attention, local", |l| l.self_attn.local.error()),
        series("attention, acc.", |l| l.self_attn.accumulated.error()),
        series("MLP, local", |l| l.mlp.local.error()),
        series("MLP, acc.", |l| l.mlp.accumulated.error()),
    ];
    Plot { title: "Relative error by layer", places: &numbers(report), series: &series, log: true }.lines()
}

fn snr(report: &LayerReport) -> String {
    let count = report.layers.first().map_or(0, |layer| layer.linears.len());
    let series: Vec<Series> = (0..count)
        .map(|i| {
            let of = |layer: &OneLayer| layer.linears.get(i).map_or(f64::NAN, |l| l.output.snr().0);
            let path = report.layers.first().map_or("", |layer| layer.linears[i].path.as_str());
            let name = path.rsplit('.').next().unwrap_or(path).to_owned();
            Series { name, values: report.layers.iter().map(of).collect() }
        })
        .collect();
    Plot { title: "SNR of linear layers, dB", places: &numbers(report), series: &series, log: false }.lines()
}
