//! The scales of a layer's fusion groups.

use lance_mm_models::Expert;
use lance_mm_quant::{
    Activations, Consumer, RowSource, Search, Tie, activation_mean, lance_mlx_search, losses, search,
    synthetic_inputs,
};
use lance_mm_tensor::{Result, Scheme};

use super::{LayerActivations, LayerWeights};
use crate::error::setting;
use crate::expert_weights::{ExpertWeights, Heads};
use crate::fusion_report::FusionReport;
use crate::names::{FusionGroup, Proj, input_path};
use crate::options::{RecipeSteps, Scaling};

/// A layer whose scales are searched and fused.
pub(super) struct FusionSearch<'a> {
    pub(super) layer: usize,
    heads: Heads,
    pub(super) experts: Vec<ExpertWeights>,
    pub(super) inputs: Vec<Option<LayerActivations>>,
    /// Errors of plain rounding before any scale, by expert and linear layer.
    pub(super) plain: Vec<[Option<f64>; 7]>,
    scheme: &'a dyn Fn(Expert, Proj) -> Option<Scheme>,
    steps: &'a RecipeSteps,
}

impl<'a> FusionSearch<'a> {
    pub(super) fn new(
        weights: LayerWeights,
        inputs: Vec<Option<LayerActivations>>,
        scheme: &'a dyn Fn(Expert, Proj) -> Option<Scheme>,
        steps: &'a RecipeSteps,
    ) -> Result<Self> {
        let LayerWeights { layer, heads, experts } = weights;
        if inputs.len() != experts.len() {
            return Err(setting("inputs", format!("{} experts", experts.len()), inputs.len()));
        }
        for (weights, inputs) in experts.iter().zip(&inputs) {
            weights.check(layer, &heads)?;
            for proj in Proj::ALL {
                let (found, cols) =
                    (inputs.as_ref().map(|r| r.get(proj.input()).n_cols()), weights.linear(proj).n_cols());
                if let Some(found) = found.filter(|found| *found != cols) {
                    let name = input_path(proj.input(), layer, weights.expert);
                    return Err(setting(&name, format!("rows of {cols}"), found));
                }
            }
        }
        let plain = vec![[None; 7]; experts.len()];
        Ok(Self { layer, heads, experts, inputs, plain, scheme, steps })
    }

    /// Searches and fuses the scales that the steps have.
    pub(super) fn scale_all(&mut self) -> Result<Vec<FusionReport>> {
        let steps = self.steps;
        let all: Vec<usize> = (0..self.experts.len()).collect();
        let mut fusions = Vec::new();
        for group in FusionGroup::LAYER {
            match (steps.scaling, group) {
                (Scaling::Searched, FusionGroup::VO) if !steps.v_o => {}
                (Scaling::Searched, FusionGroup::UpDown) if !steps.up_down => {}
                (Scaling::Searched, FusionGroup::VO) => fusions.extend(self.scale(group, &all)?),
                (Scaling::Searched, _) => {
                    for i in &all {
                        fusions.extend(self.scale(group, &[*i])?);
                    }
                }
                (Scaling::LanceMlx, FusionGroup::NormQkv | FusionGroup::NormGateUp) => {
                    for i in &all {
                        fusions.extend(self.scale_as_lance_mlx(group, *i)?);
                    }
                }
                _ => {}
            }
        }
        Ok(fusions)
    }

    /// Searches and fuses the scale of a fusion group of some experts; nothing without inputs.
    fn scale(&mut self, group: FusionGroup, experts: &[usize]) -> Result<Option<FusionReport>> {
        let tie = self.experts[experts[0]].tie(group, &self.heads);
        let Some(found) = self.search(group, experts, &tie)? else { return Ok(None) };
        if found.accepted {
            experts.iter().for_each(|i| self.fuse(group, *i, &found.scale, &tie));
        }
        let producers = experts.iter().map(|i| group.producer(self.layer, self.experts[*i].expert)).collect();
        Ok(Some(FusionReport::searched(group, producers, &found)))
    }

    fn search(&mut self, group: FusionGroup, experts: &[usize], tie: &Tie) -> Result<Option<Search>> {
        let places = self.places(group, experts);
        if places.is_empty() {
            return Ok(None);
        }
        let found = search(&self.consumers(&places), tie)?;
        for ((i, proj, _), plain) in places.iter().zip(&found.plain) {
            self.plain[*i][*proj as usize] = Some(*plain);
        }
        Ok(Some(found))
    }

    /// The consumers of a fusion group that are quantized and have inputs.
    fn places(&self, group: FusionGroup, experts: &[usize]) -> Vec<(usize, Proj, String)> {
        let mut places = Vec::new();
        for i in experts {
            let expert = self.experts[*i].expert;
            for proj in group.consumers() {
                if self.inputs[*i].is_some() && (self.scheme)(expert, *proj).is_some() {
                    places.push((*i, *proj, proj.path(self.layer, expert)));
                }
            }
        }
        places
    }

    fn consumers<'b>(&'b self, places: &'b [(usize, Proj, String)]) -> Vec<Consumer<'b>> {
        let consumer = |(i, proj, name): &'b (usize, Proj, String)| {
            let weights = &self.experts[*i];
            let inputs = self.inputs[*i].as_ref()?.get(proj.input());
            let scheme = (self.scheme)(weights.expert, *proj)?;
            Some(Consumer { name, weight: weights.linear(*proj), scheme, inputs })
        };
        places.iter().filter_map(consumer).collect()
    }

    fn fuse(&mut self, group: FusionGroup, i: usize, s: &[f32], tie: &Tie) {
        self.experts[i].fuse(group, s, tie);
        if let (Some(inputs), Some(proj)) = (&mut self.inputs[i], group.consumers().first()) {
            inputs.get_mut(proj.input()).divide(&tie.expand(s));
        }
    }

    fn scale_as_lance_mlx(&mut self, group: FusionGroup, i: usize) -> Result<Option<FusionReport>> {
        let tie = self.experts[i].tie(group, &self.heads);
        let places = self.places(group, &[i]);
        let consumers = self.consumers(&places);
        let Some(Consumer { scheme, inputs, .. }) = consumers.first().copied() else { return Ok(None) };
        let plain = losses(&consumers, &tie, &[vec![1.0; tie.n_free()]], Activations::held_out)?;
        let means: Vec<f32> = inputs.mean_abs().iter().map(|v| *v as f32).collect();
        let sources: Vec<&dyn RowSource> = consumers.iter().map(|c| c.weight).collect();
        let found = lance_mlx_search(
            &sources,
            &activation_mean(&[(&means, 1)]),
            &synthetic_inputs(tie.n_free()),
            scheme,
        )?;
        for ((_, proj, _), plain) in places.iter().zip(&plain) {
            self.plain[i][*proj as usize] = Some(plain[0]);
        }
        self.fuse(group, i, &found.scale, &tie);
        group.consumers().iter().for_each(|proj| self.experts[i].linears[*proj as usize].round_bf16());
        let producers = vec![group.producer(self.layer, self.experts[i].expert)];
        Ok(Some(FusionReport::lance_mlx(group, producers, &found)))
    }
}
