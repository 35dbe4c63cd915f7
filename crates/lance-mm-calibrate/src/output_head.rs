//! The output head.

use lance_mm_models::Expert;
use lance_mm_quant::{
    Activations, Compensated, Consumer, Inputs, RoundingReport, RowSource, Scaled, Tie, quantize_linear,
    search, width_errors,
};
use lance_mm_tensor::{AffineWeight, Result, Scheme};

use crate::error::setting;
use crate::expert_weights::divide;
use crate::fusion_report::FusionReport;
use crate::names::FusionGroup;
use crate::options::{RecipeSteps, Scaling};

/// A quantized output head.
pub struct HeadResult {
    /// The packed weight.
    pub weight: AffineWeight,
    /// Choices and errors.
    pub report: RoundingReport,
    /// The fusion group of the last norm, if it was searched.
    pub group: Option<FusionReport>,
    /// Errors in other schemes: see [`measure_layer`](crate::measure_layer()).
    pub errors: Vec<Option<f64>>,
}

/// Input activations of the output head.
pub struct HeadActivations {
    /// In the original model.
    pub original: Activations,
    /// In the model quantized so far, token by token the same, after the original norm.
    pub actual: Option<Activations>,
}

/// Quantizes `lm_head` and divides the weight `norm` of the last norm by the scale that is chosen. The matrix `weight`
/// is read by rows and may stay in its file.
///
/// # Errors
/// Shapes that do not fit, columns that are not whole groups, values that are not finite: all by name.
pub fn quantize_head(
    name: &str,
    norm: &mut [f32],
    weight: &dyn RowSource,
    inputs: HeadActivations,
    scheme: Scheme,
    steps: &RecipeSteps,
) -> Result<HeadResult> {
    measure_head(name, norm, weight, inputs, scheme, steps, &[])
}

/// Quantizes the head and measures other schemes too, as [`measure_layer`](crate::measure_layer()) does.
///
/// # Errors
/// The same as of [`quantize_head`].
pub fn measure_head(
    name: &str,
    norm: &mut [f32],
    weight: &dyn RowSource,
    inputs: HeadActivations,
    scheme: Scheme,
    steps: &RecipeSteps,
    schemes: &[Scheme],
) -> Result<HeadResult> {
    let HeadActivations { original: mut rows, mut actual } = inputs;
    if norm.len() != weight.n_cols() || rows.n_cols() != norm.len() {
        let found = format!("{} and activations of {}", norm.len(), rows.n_cols());
        return Err(setting(name, format!("a norm of {} channels", weight.n_cols()), found));
    }
    let mut scale = vec![1.0; norm.len()];
    let (mut group, mut plain) = (None, None);
    if steps.scaling == Scaling::Searched {
        let consumer = Consumer { name, weight, scheme, inputs: &rows };
        let found = search(&[consumer], &Tie::none(norm.len()))?;
        group = Some(FusionReport::searched(
            FusionGroup::NormHead,
            vec![FusionGroup::NormHead.producer(0, Expert::Und)],
            &found,
        ));
        plain = found.plain.first().copied();
        scale = found.scale;
        divide(norm, &scale);
        rows.divide(&scale);
        actual.iter_mut().for_each(|rows| rows.divide(&scale));
    }
    let scaled = Scaled { source: weight, factors: &scale };
    let (original, rows) = match actual {
        Some(actual) => (Some(rows), actual),
        None => (None, rows),
    };
    let inputs = Inputs::new(format!("inputs of {name}"), rows);
    let compensated = match &original {
        Some(original) => Some(Compensated::new(name, &scaled, original, &inputs)?),
        None => None,
    };
    let source: &dyn RowSource = compensated.as_ref().map_or(&scaled, |compensated| compensated);
    let quantized = quantize_linear(name, source, Some(&inputs), scheme, &steps.rounding)?;
    let mut report = RoundingReport::new(name.to_owned(), &quantized, plain);
    report.drift = compensated.as_ref().map(|compensated| compensated.drift(&quantized.weight));
    let errors = width_errors(name, &scaled, Some(&inputs), schemes, &steps.rounding)?;
    Ok(HeadResult { weight: quantized.weight, report, group, errors })
}

#[cfg(test)]
mod tests {
    use lance_mm_quant::Matrix;
    use lance_mm_quant::testing::correlated;
    use lance_mm_tensor::testing::seeded;

    use super::*;

    #[test]
    fn a_head_takes_its_scale_from_the_last_norm() {
        let (cols, scheme) = (64, Scheme::affine(3, 32).unwrap());
        let weight = Matrix::new("lm_head", seeded(300 * cols, 1), cols).unwrap();
        let mut norm = vec![1.0; cols];
        let rows = |actual| HeadActivations { original: correlated(40, 20, cols, 3), actual };
        let head = quantize_head("lm_head", &mut norm, &weight, rows(None), scheme, &RecipeSteps::default())
            .unwrap();
        assert_eq!(norm.iter().any(|v| *v != 1.0), head.group.unwrap().accepted);
        assert!(head.report.final_error < head.report.plain);
        assert_eq!((head.weight.n_rows(), head.weight.n_cols()), (300, cols));
    }
}
