//! Rounding the linear layers of an expert, input by input.

use lance_mm_models::LinearInput;
use lance_mm_quant::{
    Activations, Compensated, Inputs, Matrix, RoundingReport, quantize_linear, width_errors,
};
use lance_mm_tensor::{Result, Scheme};

use super::{ExpertResult, LayerActivations, LinearResult, LinearWeight};
use crate::expert_weights::ExpertWeights;
use crate::names::{Proj, input_path};
use crate::options::RecipeSteps;

/// An expert's layer whose scales are fused.
pub(super) struct Rounding {
    pub(super) result: ExpertResult,
    /// Weights that are not rounded yet, in order; each is freed when it is done.
    left: std::array::IntoIter<Matrix, 7>,
    inputs: [Option<Activations>; 4],
    plain: [Option<f64>; 7],
}

/// Settings of one step: the input whose linear layers are rounded.
pub(super) struct Step<'a> {
    pub(super) layer: usize,
    pub(super) input: LinearInput,
    pub(super) scheme: &'a dyn Fn(Proj) -> Option<Scheme>,
    pub(super) steps: &'a RecipeSteps,
    pub(super) others: &'a [Scheme],
}

impl Rounding {
    pub(super) fn new(
        weights: ExpertWeights,
        inputs: Option<LayerActivations>,
        plain: [Option<f64>; 7],
    ) -> Self {
        let ExpertWeights { expert, input_layernorm, post_attention_layernorm, v_bias, linears } = weights;
        let result =
            ExpertResult { expert, input_layernorm, post_attention_layernorm, v_bias, linears: Vec::new() };
        let inputs = inputs.map_or([const { None }; 4], |LayerActivations { qkv, o, gate_up, down }| {
            [qkv, o, gate_up, down].map(Some)
        });
        Self { result, left: linears.into_iter(), inputs, plain }
    }

    pub(super) fn round(&mut self, actual: Option<Activations>, step: &Step<'_>) -> Result<()> {
        let path = input_path(step.input, step.layer, self.result.expert);
        let (original, inputs) = match (self.inputs[step.input as usize].take(), actual) {
            (Some(original), Some(actual)) => (Some(original), Some(actual)),
            (inputs, _) => (None, inputs),
        };
        let inputs = inputs.map(|inputs| Inputs::new(path, inputs));
        for proj in Proj::ALL.into_iter().filter(|proj| proj.input() == step.input) {
            let matrix = self.left.next().expect("a weight for each linear layer");
            let name = proj.path(step.layer, self.result.expert);
            let known = inputs.as_ref();
            let others = if known.is_some() { step.others } else { &[] };
            let errors = width_errors(&name, &matrix, known, others, &step.steps.rounding)?;
            let linear = match (step.scheme)(proj) {
                None => LinearResult { name, weight: LinearWeight::Dense(matrix), report: None, errors },
                Some(scheme) => {
                    let compensated = match original.as_ref().zip(known) {
                        None => None,
                        Some((x, y)) => Some(Compensated::new(&name, &matrix, x, y)?),
                    };
                    let fitted = compensated.as_ref().map(|c| Matrix::read(&name, c)).transpose()?;
                    let weight = fitted.as_ref().unwrap_or(&matrix);
                    let quantized = quantize_linear(&name, weight, known, scheme, &step.steps.rounding)?;
                    let plain = self.plain[proj as usize];
                    let mut report = RoundingReport::new(name.clone(), &quantized, plain);
                    report.drift = compensated.map(|c| c.drift(&quantized.weight));
                    LinearResult {
                        name,
                        weight: LinearWeight::Packed(quantized.weight),
                        report: Some(report),
                        errors,
                    }
                }
            };
            self.result.linears.push(linear);
        }
        Ok(())
    }
}
