//! Plots over the layers.

use lance_mm_calibrate::FusionGroup;
use lance_mm_quant::{Family, RoundingReport};

use super::{Page, place};
use crate::document::{Grid, Plot, Series};

const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
/// Experts with the end of their modules' names.
const EXPERTS: [(&str, &str); 2] = [("UND", ""), ("GEN", "_moe_gen")];
/// Fusion fusion groups within a layer, with the legend's words.
const PAIRS: [(FusionGroup, &str); 4] = [
    (FusionGroup::NormQkv, "norm to q, k, v"),
    (FusionGroup::VO, "v to o"),
    (FusionGroup::NormGateUp, "norm to gate, up"),
    (FusionGroup::UpDown, "up to down"),
];
const FAMILIES: [(Family, &str); 2] =
    [(Family::Act, "α where s = a^α"), (Family::ActWeight, "α where s = a^α / m^(1−α)")];

/// A number by layer for one kind of matrix; a gap where there is none.
fn along(page: &Page<'_>, kind: &str, value: impl Fn(&RoundingReport) -> f64) -> Vec<f64> {
    let mut values = vec![f64::NAN; layers(page).len()];
    for linear in page.report.linears() {
        if let (Some(layer), path) = place(&linear.name)
            && path == kind
        {
            values[layer] = value(linear);
        }
    }
    values
}

fn layers(page: &Page<'_>) -> Vec<String> {
    let n = page
        .report
        .linears()
        .iter()
        .filter_map(|linear| place(&linear.name).0)
        .max()
        .map_or(0, |last| last + 1);
    (0..n).map(|layer| layer.to_string()).collect()
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// One plot an expert: every kind of matrix before, dashed, and after.
pub(super) fn errors(page: &Page<'_>) -> Vec<String> {
    let places = layers(page);
    let plot = |(expert, suffix): (&str, &str)| {
        let series = |value: fn(&RoundingReport) -> f64| -> Vec<Series> {
            let one = |kind: &&str| Series {
                name: last(kind).to_owned(),
                values: along(page, &format!("{kind}{suffix}"), value),
            };
            LINEARS.iter().map(one).collect()
        };
        let (before, after) = (series(|linear| linear.plain), series(|linear| linear.final_error));
        let is_there = after.iter().flat_map(|series| &series.values).any(|value| value.is_finite());
        let title = format!("Relative error of {expert}; dashed: plain rounding");
        let plot = Plot { title: &title, places: &places, series: &after, log: true };
        is_there.then(|| plot.lines_over(&before))
    };
    EXPERTS.into_iter().filter_map(plot).collect()
}

/// Bits of every matrix, those outside layers at the last place.
pub(super) fn bits(page: &Page<'_>) -> String {
    let mut places = layers(page);
    let mut rows: Vec<(String, Vec<f64>)> = Vec::new();
    for (_, suffix) in EXPERTS {
        for kind in LINEARS {
            let mut values = along(page, &format!("{kind}{suffix}"), |linear| linear.bits as f64);
            if values.iter().any(|value| value.is_finite()) {
                values.push(f64::NAN);
                rows.push((format!("{}{suffix}", last(kind)), values));
            }
        }
    }
    for linear in page.report.linears().iter().filter(|linear| place(&linear.name).0.is_none()) {
        let mut values = vec![f64::NAN; places.len()];
        values.push(linear.bits as f64);
        rows.push((linear.name.clone(), values));
    }
    places.push("–".to_owned());
    Grid { title: "Bits", places: &places, rows: &rows, full: 8.0 }.svg()
}

/// One plot a family of scales, of the fusion groups that were accepted.
pub(super) fn alphas(page: &Page<'_>) -> Vec<String> {
    let places = layers(page);
    let plot = |(family, title): (Family, &str)| {
        let mut all = Vec::new();
        for (expert, suffix) in EXPERTS {
            for (group, name) in PAIRS {
                let mut values = vec![f64::NAN; places.len()];
                for found in page
                    .report
                    .fusions()
                    .iter()
                    .filter(|p| p.accepted && p.family == family && p.group == group)
                {
                    let producer = found.producers.first().map_or("", String::as_str);
                    let layer = producer.split('.').nth(1).and_then(|layer| layer.parse::<usize>().ok());
                    let is_gen = producer.ends_with("_moe_gen");
                    if let Some(layer) = layer.filter(|_| is_gen != suffix.is_empty()) {
                        values[layer] = found.alpha;
                    }
                }
                // Those of UND always, so that a fusion group has one colour in both plots.
                if suffix.is_empty() || values.iter().any(|value| value.is_finite()) {
                    let name = if suffix.is_empty() { name.to_owned() } else { format!("{name} ({expert})") };
                    all.push(Series { name, values });
                }
            }
        }
        let is_there = all.iter().flat_map(|series| &series.values).any(|value| value.is_finite());
        let plot = Plot { title, places: &places, series: &all, log: false };
        is_there.then(|| plot.lines())
    };
    FAMILIES.into_iter().filter_map(plot).collect()
}
