//! Quantizing a whole layer: scales of its fusion groups, then every linear layer.

mod rounding;
mod scaling;

use lance_mm_models::{Expert, LinearInput};
use lance_mm_quant::{Activations, Matrix, RoundingReport};
use lance_mm_tensor::{AffineWeight, Result, Scheme};
use rounding::{Rounding, Step};
use scaling::FusionSearch;

use crate::expert_weights::{ExpertWeights, Heads};
use crate::fusion_report::FusionReport;
use crate::names::Proj;
use crate::options::RecipeSteps;

/// The weights of a layer.
pub struct LayerWeights {
    /// Its index.
    pub layer: usize,
    /// Its heads.
    pub heads: Heads,
    /// One or both experts.
    pub experts: Vec<ExpertWeights>,
}

/// Recorded input activations of one expert's layer.
#[derive(Clone)]
pub struct LayerActivations {
    /// Input of q, k and v.
    pub qkv: Activations,
    /// Input of o.
    pub o: Activations,
    /// Input of gate and up.
    pub gate_up: Activations,
    /// Input of down.
    pub down: Activations,
}

impl LayerActivations {
    /// Evenly spread tokens, at most `n` of each input.
    pub fn subsampled(&self, n: usize) -> Self {
        let Self { qkv, o, gate_up, down } = self;
        Self {
            qkv: qkv.subsampled(n),
            o: o.subsampled(n),
            gate_up: gate_up.subsampled(n),
            down: down.subsampled(n),
        }
    }

    fn get(&self, input: LinearInput) -> &Activations {
        match input {
            LinearInput::Normed => &self.qkv,
            LinearInput::Heads => &self.o,
            LinearInput::Attended => &self.gate_up,
            LinearInput::Gated => &self.down,
        }
    }

    fn get_mut(&mut self, input: LinearInput) -> &mut Activations {
        match input {
            LinearInput::Normed => &mut self.qkv,
            LinearInput::Heads => &mut self.o,
            LinearInput::Attended => &mut self.gate_up,
            LinearInput::Gated => &mut self.down,
        }
    }
}

/// The weight of a linear layer of the result.
pub enum LinearWeight {
    /// Quantized; scales and biases are bf16.
    Packed(AffineWeight),
    /// Not quantized, with the scales of its fusion groups.
    Dense(Matrix),
}

/// One linear layer of the result.
pub struct LinearResult {
    /// The module.
    pub name: String,
    /// Its weight.
    pub weight: LinearWeight,
    /// Choices and errors; none for a weight that stays dense.
    pub report: Option<RoundingReport>,
    /// Errors in other schemes: see [`measure_layer`].
    pub errors: Vec<Option<f64>>,
}

/// One expert's part of the result.
pub struct ExpertResult {
    /// The expert.
    pub expert: Expert,
    /// `input_layernorm` after fusing.
    pub input_layernorm: Vec<f32>,
    /// `post_attention_layernorm` after fusing.
    pub post_attention_layernorm: Vec<f32>,
    /// Bias of `v_proj` after fusing.
    pub v_bias: Option<Vec<f32>>,
    /// The seven linear layers, in the order of [`Proj::ALL`].
    pub linears: Vec<LinearResult>,
}

/// A quantized layer.
pub struct LayerResult {
    /// Experts, in the order given.
    pub experts: Vec<ExpertResult>,
    /// The fusion groups that were searched.
    pub fusions: Vec<FusionReport>,
}

/// Quantizes a layer. `inputs` has an entry for each expert; one with `None` keeps its norms, and its linear layers are
/// rounded by their weights alone. `scheme` is how a linear layer is written; `None` leaves it dense.
///
/// Queries of one expert attend to values of the other, so v to o takes one scale for both. If one expert stays in the
/// file as it was, [`RecipeSteps::v_o`] must be left out: its divided weights would have to be rounded to bf16.
///
/// # Errors
/// Shapes that do not fit, columns that are not whole groups, values that are not finite: all by name.
pub fn quantize_layer(
    weights: LayerWeights,
    inputs: Vec<Option<LayerActivations>>,
    scheme: &dyn Fn(Expert, Proj) -> Option<Scheme>,
    steps: &RecipeSteps,
) -> Result<LayerResult> {
    measure_layer(weights, inputs, scheme, steps, &[])
}

/// Quantizes a layer and measures every linear layer that has inputs in other `schemes` too, with the scales that were
/// found for `scheme`. An error is relative, of outputs on held-out activations and at most 512 rows of the weight;
/// `None` where columns are not whole groups.
///
/// # Errors
/// The same as of [`quantize_layer`].
pub fn measure_layer(
    weights: LayerWeights,
    inputs: Vec<Option<LayerActivations>>,
    scheme: &dyn Fn(Expert, Proj) -> Option<Scheme>,
    steps: &RecipeSteps,
    schemes: &[Scheme],
) -> Result<LayerResult> {
    let mut layer =
        LayerQuantizer { others: schemes, ..LayerQuantizer::new(weights, inputs, scheme, steps)? };
    while layer.next().is_some() {
        layer.round(Vec::new())?;
    }
    Ok(layer.finish())
}

/// Quantizes a layer input by input, so that the inputs of later linear layers can be recorded with the earlier ones
/// quantized.
pub struct LayerQuantizer<'a> {
    layer: usize,
    experts: Vec<Rounding>,
    fusions: Vec<FusionReport>,
    /// Number of inputs that are done.
    done: usize,
    scheme: &'a dyn Fn(Expert, Proj) -> Option<Scheme>,
    steps: &'a RecipeSteps,
    others: &'a [Scheme],
}

impl<'a> LayerQuantizer<'a> {
    /// Searches and fuses the scales of all fusion groups; arguments as for [`quantize_layer`].
    ///
    /// # Errors
    /// The same as of [`quantize_layer`].
    pub fn new(
        weights: LayerWeights,
        inputs: Vec<Option<LayerActivations>>,
        scheme: &'a dyn Fn(Expert, Proj) -> Option<Scheme>,
        steps: &'a RecipeSteps,
    ) -> Result<Self> {
        let mut search = FusionSearch::new(weights, inputs, scheme, steps)?;
        let fusions = search.scale_all()?;
        let FusionSearch { layer, experts, inputs, plain, .. } = search;
        let experts = experts.into_iter().zip(inputs).zip(plain);
        let experts =
            experts.map(|((weights, inputs), plain)| Rounding::new(weights, inputs, plain)).collect();
        Ok(Self { layer, experts, fusions, done: 0, scheme, steps, others: &[] })
    }

    /// The input whose linear layers are rounded next.
    pub fn next(&self) -> Option<LinearInput> {
        LinearInput::ALL.get(self.done).copied()
    }

    /// The norms and biases with their scales, and the linear layers that are done.
    pub fn experts(&self) -> impl Iterator<Item = &ExpertResult> {
        self.experts.iter().map(|expert| &expert.result)
    }

    /// Rounds the linear layers of the [next](Self::next) input. `actual` has this input of each expert in the model
    /// quantized so far, token by token the recorded one: with it they are fitted to the outputs they had before.
    /// Without it they are fitted to the recorded input.
    ///
    /// # Errors
    /// The same as of [`quantize_layer`]; tokens that do not correspond.
    pub fn round(&mut self, actual: Vec<Option<Activations>>) -> Result<()> {
        let Some(input) = self.next() else { return Ok(()) };
        self.done += 1;
        let mut actual = actual.into_iter();
        for expert in &mut self.experts {
            let which = expert.result.expert;
            let scheme = |proj| (self.scheme)(which, proj);
            let step =
                Step { layer: self.layer, input, scheme: &scheme, steps: self.steps, others: self.others };
            expert.round(actual.next().flatten(), &step)?;
        }
        Ok(())
    }

    /// Returns the whole layer.
    ///
    /// # Panics
    /// When an input is left.
    pub fn finish(self) -> LayerResult {
        assert!(self.next().is_none(), "all inputs are rounded");
        let experts = self.experts.into_iter().map(|expert| expert.result).collect();
        LayerResult { experts, fusions: self.fusions }
    }
}

#[cfg(test)]
mod tests;
