//! The scales of a layer's pairs.

use lance_mm_models::Expert;
use lance_mm_quant::{
    Consumer, Rows, Search, Source, Tie, activation_mean, draw, losses, search, seed_search,
};
use lance_mm_tensor::{Result, Scheme};

use super::{LayerActivations, LayerWeights};
use crate::error::setting;
use crate::expert_weights::{ExpertWeights, Heads};
use crate::names::{Pair, Proj, input_path};
use crate::options::{RecipeSteps, Scaling};
use crate::report::PairReport;

/// A layer whose scales are searched and fused.
pub(super) struct Work<'a> {
    pub(super) layer: usize,
    heads: Heads,
    pub(super) experts: Vec<ExpertWeights>,
    pub(super) rows: Vec<Option<LayerActivations>>,
    /// Errors of plain rounding before any scale, by expert and linear layer.
    pub(super) plain: Vec<[Option<f64>; 7]>,
    scheme: &'a dyn Fn(Expert, Proj) -> Option<Scheme>,
    steps: &'a RecipeSteps,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        weights: LayerWeights,
        rows: Vec<Option<LayerActivations>>,
        scheme: &'a dyn Fn(Expert, Proj) -> Option<Scheme>,
        steps: &'a RecipeSteps,
    ) -> Result<Self> {
        let LayerWeights { layer, heads, experts } = weights;
        if rows.len() != experts.len() {
            return Err(setting("rows", format!("{} experts", experts.len()), rows.len()));
        }
        for (weights, rows) in experts.iter().zip(&rows) {
            weights.check(layer, &heads)?;
            for proj in Proj::ALL {
                let (found, cols) =
                    (rows.as_ref().map(|r| r.get(proj.input()).n_cols()), weights.linear(proj).n_cols());
                if let Some(found) = found.filter(|found| *found != cols) {
                    let name = input_path(proj.input(), layer, weights.expert);
                    return Err(setting(&name, format!("rows of {cols}"), found));
                }
            }
        }
        let plain = vec![[None; 7]; experts.len()];
        Ok(Self { layer, heads, experts, rows, plain, scheme, steps })
    }

    /// Searches and fuses the scales that the steps asks for.
    pub(super) fn scale_all(&mut self) -> Result<Vec<PairReport>> {
        let steps = self.steps;
        let all: Vec<usize> = (0..self.experts.len()).collect();
        let mut pairs = Vec::new();
        for pair in Pair::LAYER {
            match (steps.scaling, pair) {
                (Scaling::Searched, Pair::VO) if !steps.v_o => {}
                (Scaling::Searched, Pair::UpDown) if !steps.up_down => {}
                (Scaling::Searched, Pair::VO) => pairs.extend(self.scale(pair, &all)?),
                (Scaling::Searched, _) => {
                    for i in &all {
                        pairs.extend(self.scale(pair, &[*i])?);
                    }
                }
                (Scaling::LanceMlx, Pair::NormQkv | Pair::NormGateUp) => {
                    for i in &all {
                        pairs.extend(self.scale_as_seed(pair, *i)?);
                    }
                }
                _ => {}
            }
        }
        Ok(pairs)
    }

    /// Searches and fuses the scale of a pair of some experts; nothing without inputs.
    fn scale(&mut self, pair: Pair, experts: &[usize]) -> Result<Option<PairReport>> {
        let tie = self.experts[experts[0]].tie(pair, &self.heads);
        let Some(found) = self.search(pair, experts, &tie)? else { return Ok(None) };
        if found.accepted {
            experts.iter().for_each(|i| self.fuse(pair, *i, &found.scale, &tie));
        }
        let producers = experts.iter().map(|i| pair.producer(self.layer, self.experts[*i].expert)).collect();
        Ok(Some(PairReport::searched(pair, producers, &found)))
    }

    fn search(&mut self, pair: Pair, experts: &[usize], tie: &Tie) -> Result<Option<Search>> {
        let places = self.places(pair, experts);
        if places.is_empty() {
            return Ok(None);
        }
        let found = search(&self.consumers(&places), tie)?;
        for ((i, proj, _), plain) in places.iter().zip(&found.plain) {
            self.plain[*i][*proj as usize] = Some(*plain);
        }
        Ok(Some(found))
    }

    /// The consumers of a pair that are quantized and have inputs.
    fn places(&self, pair: Pair, experts: &[usize]) -> Vec<(usize, Proj, String)> {
        let mut places = Vec::new();
        for i in experts {
            let expert = self.experts[*i].expert;
            for proj in pair.consumers() {
                if self.rows[*i].is_some() && (self.scheme)(expert, *proj).is_some() {
                    places.push((*i, *proj, proj.path(self.layer, expert)));
                }
            }
        }
        places
    }

    fn consumers<'b>(&'b self, places: &'b [(usize, Proj, String)]) -> Vec<Consumer<'b>> {
        let consumer = |(i, proj, name): &'b (usize, Proj, String)| {
            let weights = &self.experts[*i];
            let rows = self.rows[*i].as_ref()?.get(proj.input());
            let scheme = (self.scheme)(weights.expert, *proj)?;
            Some(Consumer { name, weight: weights.linear(*proj), scheme, rows })
        };
        places.iter().filter_map(consumer).collect()
    }

    fn fuse(&mut self, pair: Pair, i: usize, s: &[f32], tie: &Tie) {
        self.experts[i].fuse(pair, s, tie);
        if let (Some(rows), Some(proj)) = (&mut self.rows[i], pair.consumers().first()) {
            rows.get_mut(proj.input()).divide(&tie.expand(s));
        }
    }

    fn scale_as_seed(&mut self, pair: Pair, i: usize) -> Result<Option<PairReport>> {
        let tie = self.experts[i].tie(pair, &self.heads);
        let places = self.places(pair, &[i]);
        let consumers = self.consumers(&places);
        let Some(Consumer { scheme, rows, .. }) = consumers.first().copied() else { return Ok(None) };
        let plain = losses(&consumers, &tie, &[vec![1.0; tie.n_free()]], Rows::held_back)?;
        let means: Vec<f32> = rows.mean_abs().iter().map(|v| *v as f32).collect();
        let sources: Vec<&dyn Source> = consumers.iter().map(|c| c.weight).collect();
        let found = seed_search(&sources, &activation_mean(&[(&means, 1)]), &draw(tie.n_free()), scheme)?;
        for ((_, proj, _), plain) in places.iter().zip(&plain) {
            self.plain[i][*proj as usize] = Some(plain[0]);
        }
        self.fuse(pair, i, &found.scale, &tie);
        pair.consumers().iter().for_each(|proj| self.experts[i].linears[*proj as usize].round_bf16());
        let producers = vec![pair.producer(self.layer, self.experts[i].expert)];
        Ok(Some(PairReport::seed(pair, producers, &found)))
    }
}
