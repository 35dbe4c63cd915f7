use lance_mm_tensor::ActivationPrecision;

use super::*;
use crate::testing::{changed, checkpoint, demos};

/// Products of bf16 weights and of the same in f32 take other paths: relative squared errors stay below this.
const ROUNDING: f64 = 1e-9;

fn lance() -> Lance {
    Lance::new(checkpoint().with_activations(ActivationPrecision::Split)).unwrap()
}

fn run(candidate: &Lance, data: &Dataset, options: &LayerOptions) -> Result<LayerReport> {
    layers(&lance(), candidate, data, options, &mut |_, _| {})
}

#[test]
fn identical_weights_are_infinitely_good() {
    let report = run(&lance(), &demos(), &LayerOptions::default()).unwrap();
    assert_eq!((report.samples, report.note, report.layers.len()), (6, Some("small sample"), 4));
    for layer in &report.layers {
        for part in [layer.q_norm, layer.k_norm, layer.self_attn, layer.mlp, layer.output] {
            assert_eq!((part.local.error(), part.accumulated.error(), part.ratio), (0.0, 0.0, None));
            assert_eq!(part.local.snr().0, f64::INFINITY);
        }
        assert_eq!(layer.linears.len(), 7);
        for linear in layer.linears.iter().chain([&report.lm_head]) {
            assert_eq!(linear.output.snr().0, f64::INFINITY, "{}", linear.path);
            assert_eq!((linear.weight_snr_db.0, linear.input_scale), (f64::INFINITY, [1.0, 1.0]));
            assert!(
                linear.kurtosis.is_some_and(|k| k > 1.0) && linear.outlier_ratio.is_some_and(|r| r > 1.0)
            );
        }
    }
    assert!(report.inputs.values().all(|relative| relative.error() == 0.0));
    assert_eq!(report.final_cosine.values().copied().collect::<Vec<_>>(), [1.0, 1.0, 1.0]);
    assert!(report.linear_tokens <= report.tokens && report.linear_tokens > 0);
    let json = serde_json::to_string(&report).unwrap();
    assert!(json.contains("\"snr_db\":\"inf\"") && !json.contains("NaN") && json.contains("\"vit\":"));
}

/// Scales of input columns; powers of two, so that every product stays exact.
fn scale(k: usize) -> f32 {
    [1.0, 4.0, 0.5, 16.0, 0.25][k % 5]
}

#[test]
fn weights_in_a_scaled_space_are_no_error() {
    let scaled = changed(|name, values, shape| {
        let cols = *shape.last().unwrap();
        let columns =
            ["q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight"];
        let columns = columns.iter().any(|end| name.ends_with(end)) || name == "lm_head.weight";
        for (i, v) in values.iter_mut().enumerate() {
            let (row, col) = (i / cols, i % cols);
            if columns || name.ends_with("down_proj.weight") {
                *v *= scale(col);
            }
            if name.ends_with("_layernorm.weight") || name == "norm.weight" {
                *v /= scale(col);
            }
            if name.ends_with("up_proj.weight") {
                *v /= scale(row);
            }
            // Two key/value heads of 64, each of two query heads.
            if name.ends_with("v_proj.weight") {
                *v /= scale(row);
            }
            if name.ends_with("v_proj.bias") {
                *v /= scale(col);
            }
            if name.ends_with("o_proj.weight") {
                *v *= scale(col / 128 * 64 + col % 64);
            }
        }
    });
    let report = run(&scaled, &demos(), &LayerOptions { linear_tokens: 9, ..Default::default() }).unwrap();
    assert!(report.linear_tokens == 6 * 9 && report.tokens > report.linear_tokens);
    for layer in &report.layers {
        assert!(layer.output.accumulated.error() < ROUNDING, "layer {}", layer.layer);
        for linear in &layer.linears {
            assert!(linear.output.error() < ROUNDING, "{}", linear.path);
            assert_eq!((linear.weight_snr_db.0, linear.input_scale), (f64::INFINITY, [0.25, 16.0]));
        }
    }
    assert!(report.lm_head.output.error() < ROUNDING);
}

#[test]
fn an_error_stays_where_it_was_made() {
    let path = "layers.1.mlp.down_proj";
    let rounded = changed(|name, values, _| {
        if name.strip_suffix(".weight") == Some(path) {
            values.iter_mut().enumerate().for_each(|(i, v)| *v *= if i % 2 == 0 { 1.1 } else { 0.9 });
        }
    });
    let report = run(&rounded, &demos(), &LayerOptions::default()).unwrap();
    for linear in report.layers.iter().flat_map(|layer| &layer.linears) {
        if linear.path == path {
            assert!((linear.weight_snr_db.0 - 20.0).abs() < 0.01, "{linear:?}");
        } else {
            assert!(linear.output.error() < ROUNDING, "{}", linear.path);
        }
    }
    let errors =
        |i: usize| (report.layers[i].output.local.error(), report.layers[i].output.accumulated.error());
    assert!(errors(0).0 < ROUNDING && errors(0).1 < ROUNDING);
    assert!(errors(1).0 > ROUNDING && (errors(1).0 / errors(1).1 - 1.0).abs() < 1e-3);
    assert!(errors(2).0 < ROUNDING && errors(2).1 > ROUNDING);
    assert!(report.layers[1].self_attn.accumulated.error() < ROUNDING);
    assert!(report.final_cosine.values().all(|cosine| *cosine < 1.0));
}

#[test]
fn what_cannot_be_compared_is_told() {
    let none = LayerOptions { linear_tokens: 0, ..Default::default() };
    let error = run(&lance(), &demos(), &none).unwrap_err().to_string();
    assert_eq!(error, "option linear_tokens: expected at least 1, found 0");
    let mut other = lance().config().clone();
    other.intermediate_size += 1;
    let error = require_same_shape(lance().config(), &other).unwrap_err().to_string();
    assert_eq!(
        error,
        "candidate: expected 4 layers of 256, 4 and 2 heads, MLP 640, vocabulary 512, \
         found 4 layers of 256, 4 and 2 heads, MLP 641, vocabulary 512"
    );
    let mut data = demos();
    data.samples.truncate(1);
    data.samples[0].answer = None;
    let report = run(&lance(), &data, &LayerOptions::default()).unwrap();
    assert_eq!(report.layers[3].output.accumulated.error(), 0.0, "the reference's own answer stands in");
}

#[test]
fn values_that_are_not_finite_are_an_error_with_their_tensor() {
    for (tensor, expected) in [
        (
            "layers.1.mlp.down_proj.weight",
            "candidate: row 0 of layers.1.mlp.down_proj.weight: expected finite numbers, found NaN",
        ),
        (
            "layers.2.self_attn.k_norm.weight",
            "demo_chart.png: candidate, on the reference's input: layer 2, self_attn.k_norm: expected finite numbers, \
             found NaN",
        ),
    ] {
        let broken = changed(|name, values, _| {
            if name == tensor {
                values[0] = f32::NAN;
            }
        });
        let error = run(&broken, &demos().limited(1), &LayerOptions::default()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}
