use lance_mm_tensor::testing::seeded;

use super::*;
use crate::testing::correlated;

fn weight(rows: usize, cols: usize) -> Matrix {
    Matrix::new("w", seeded(rows * cols, 1), cols).unwrap()
}

#[test]
fn errors_and_choice_are_those_of_the_packed_weight() {
    // More rows than a chunk, and a last chunk that is not full.
    let (w, scheme) = (weight(CHUNK + 3, 64), Scheme::affine(3, 32).unwrap());
    let inputs = Inputs::new("x", correlated(90, 30, 64, 2));
    let found = quantize_linear("w", &w, Some(&inputs), scheme, &RoundingOptions::default()).unwrap();
    assert_eq!(found.trials.len(), 6);
    assert!(found.trials.iter().all(|t| t.held_out >= found.trial().held_out));
    let mut value = [0.0; 64];
    let (mut error, mut size, mut noise, mut power) = (0.0, 0.0, 0.0, 0.0);
    for (r, row) in w.values().chunks_exact(64).enumerate() {
        found.weight.read_row(r, &mut value);
        for x in inputs.activations().held_out().chunks_exact(64) {
            let dot = |v: &[f32]| x.iter().zip(v).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            error += (dot(row) - dot(&value)).powi(2);
            size += dot(row).powi(2);
        }
        noise += row.iter().zip(&value).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        power += row.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>();
    }
    assert!((found.trial().held_out / (error / size) - 1.0).abs() < 1e-3);
    assert!((found.trial().snr_db - 10.0 * (power / noise).log10()).abs() < 1e-3);
}

#[test]
fn descent_after_feedback_is_better_on_the_search_rows() {
    for bits in [2, 3, 4] {
        let scheme = Scheme::affine(bits, 32).unwrap();
        let inputs = Inputs::new("x", correlated(400, 100, 96, 2));
        let methods =
            [RoundingMethod::ClipRefit, RoundingMethod::Feedback, RoundingMethod::FeedbackDescent(0.01)];
        let options = RoundingOptions::default();
        let found = quantize_by("w", &weight(40, 96), Some(&inputs), scheme, &options, &methods).unwrap();
        let errors: Vec<f64> = found.trials.iter().map(|t| t.search).collect();
        assert!(errors[2] < 0.9 * errors[1] && errors[1] < errors[0], "{bits}: {errors:?}");
    }
}

#[test]
fn of_many_rows_some_decide_and_all_are_quantized() {
    let (w, scheme) = (weight(ROWS + 100, 32), Scheme::affine(3, 32).unwrap());
    let inputs = Inputs::new("x", correlated(60, 20, 32, 2));
    let options = RoundingOptions { dampings: vec![0.1], ..RoundingOptions::default() };
    let found = quantize_linear("w", &w, Some(&inputs), scheme, &options).unwrap();
    let method = found.trial().method;
    let alone = quantize_by("w", &w, Some(&inputs), scheme, &options, &[method]).unwrap();
    assert_eq!(found.weight.n_rows(), ROWS + 100);
    assert_eq!(found.weight.word_bytes(), alone.weight.word_bytes());
    assert_eq!(found.trial().held_out, alone.trial().held_out);
    let errors = width_errors("w", &w, Some(&inputs), &[scheme], &options).unwrap();
    assert!(
        (errors[0].unwrap() / found.trial().held_out - 1.0).abs() < 0.3,
        "{errors:?} {:?}",
        found.trial()
    );
}

#[test]
fn without_inputs_the_weights_decide() {
    let (w, scheme) = (weight(5, 64), Scheme::affine(2, 64).unwrap());
    let found = quantize_linear("w", &w, None, scheme, &RoundingOptions::default()).unwrap();
    assert_eq!(found.trial().method, RoundingMethod::ClipRefit);
    assert!(found.trials[1].held_out < found.trials[0].held_out);
    let error = quantize_by("w", &w, None, scheme, &RoundingOptions::default(), &[RoundingMethod::Feedback]);
    assert_eq!(error.err().unwrap().to_string(), "w: expected inputs for error feedback, found none");
}

#[test]
fn group_fits_are_the_method_in_detail() {
    let (w, scheme) = (weight(6, 96), Scheme::affine(4, 32).unwrap());
    let inputs = Inputs::new("x", correlated(50, 10, 96, 2));
    let fits = fit_groups("w", &w, &inputs, scheme).unwrap();
    let found = quantize_by(
        "w",
        &w,
        Some(&inputs),
        scheme,
        &RoundingOptions::default(),
        &[RoundingMethod::ClipRefit],
    )
    .unwrap();
    assert_eq!(fits.weight.word_bytes(), found.weight.word_bytes());
    assert_eq!(fits.weight.bias_bytes(), found.weight.bias_bytes());
    assert!(fits.refitted.iter().zip(&fits.clipped).all(|(a, b)| a <= b));
    assert_eq!(fits.steps.len(), 18);
}

#[test]
fn what_does_not_fit_is_named() {
    let inputs = Inputs::new("layers.0 site D", correlated(9, 9, 96, 2));
    let scheme = Scheme::affine(4, 32).unwrap();
    let error = |w: &dyn RowSource, scheme| {
        quantize_linear("layers.0.mlp.down_proj", w, Some(&inputs), scheme, &RoundingOptions::default())
            .err()
            .unwrap()
            .to_string()
    };
    assert_eq!(
        error(&weight(2, 64), scheme),
        "layers.0.mlp.down_proj: expected inputs of width 64, found 96 of layers.0 site D"
    );
    assert_eq!(
        error(&weight(2, 96), Scheme::affine(4, 64).unwrap()),
        "layers.0.mlp.down_proj: expected rows of groups of 64, found 2 rows of 96"
    );
}

struct Damaged;

impl RowSource for Damaged {
    fn n_rows(&self) -> usize {
        3
    }

    fn n_cols(&self) -> usize {
        32
    }

    fn read_row(&self, row: usize, out: &mut [f32]) {
        out.fill(if row == 2 { f32::NAN } else { 1.0 });
    }
}

#[test]
fn values_that_are_not_finite_are_named() {
    let scheme = Scheme::affine(4, 32).unwrap();
    let error =
        quantize_linear("layers.7.self_attn.o_proj", &Damaged, None, scheme, &RoundingOptions::default());
    assert_eq!(error.err().unwrap().to_string(), "layers.7.self_attn.o_proj: not finite in row 2");
}
