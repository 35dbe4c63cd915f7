//! A whole layer: scales of its pairs, then every linear layer.

use lance_mm_tensor::{AffineWeight, Result, Scheme};

use crate::fuse::{ExpertWeights, Heads, divide};
use crate::inputs::Inputs;
use crate::linear::{quantize_linear, width_errors};
use crate::matrix::{Matrix, Scaled, Source, setting};
use crate::names::{Expert, Pair, Proj, Site, Tie};
use crate::recipe::{Recipe, Scaling};
use crate::report::{LinearReport, PairReport};
use crate::rows::Rows;
use crate::search::{Consumer, Search, losses, search};
use crate::seed::{activation_mean, draw, seed_search};

/// The weights of a layer.
pub struct LayerWeights {
    /// Its index.
    pub layer: usize,
    /// Its heads.
    pub heads: Heads,
    /// One or both experts.
    pub experts: Vec<ExpertWeights>,
}

/// Recorded inputs of one expert's layer, by site.
#[derive(Clone)]
pub struct SiteRows {
    /// Of q, k, v.
    pub a: Rows,
    /// Of o.
    pub b: Rows,
    /// Of gate, up.
    pub c: Rows,
    /// Of down.
    pub d: Rows,
}

impl SiteRows {
    /// At most `n` rows of each site.
    pub fn thinned(&self, n: usize) -> Self {
        let Self { a, b, c, d } = self;
        Self { a: a.thinned(n), b: b.thinned(n), c: c.thinned(n), d: d.thinned(n) }
    }

    fn get(&self, site: Site) -> &Rows {
        match site {
            Site::A => &self.a,
            Site::B => &self.b,
            Site::C => &self.c,
            Site::D => &self.d,
        }
    }

    fn get_mut(&mut self, site: Site) -> &mut Rows {
        match site {
            Site::A => &mut self.a,
            Site::B => &mut self.b,
            Site::C => &mut self.c,
            Site::D => &mut self.d,
        }
    }
}

/// How a weight is to be written.
pub enum Form {
    /// Quantized; scales and biases are bf16.
    Packed(AffineWeight),
    /// Left as it is, but for the scales of its pairs.
    Dense(Matrix),
}

/// One linear layer of the result.
pub struct LinearResult {
    /// The module.
    pub name: String,
    /// Its weight.
    pub form: Form,
    /// What was done; none for a weight that stays dense.
    pub report: Option<LinearReport>,
    /// Its errors in the schemes that were asked for: see [`measure_layer`].
    pub errors: Vec<Option<f64>>,
}

/// One expert's part of the result.
pub struct ExpertResult {
    /// Whose.
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
    /// In the order given.
    pub experts: Vec<ExpertResult>,
    /// The pairs that were searched.
    pub pairs: Vec<PairReport>,
}

/// Quantizes a layer. `rows` has an entry for each expert, `None` where there are no inputs: its norms keep
/// their weights and its linear layers are fitted to the weights alone. `scheme` tells how a linear layer is
/// written; `None` leaves it dense.
///
/// Values of one expert are read by queries of the other, so v to o takes one scale for both. An expert that
/// stays in the file as it was must therefore be left out together with [`Recipe::v_o`]: divided weights
/// would have to be rounded to bf16.
///
/// # Errors
/// Shapes that do not fit, columns that are not whole groups, values that are not finite: all by name.
pub fn quantize_layer(
    weights: LayerWeights,
    rows: Vec<Option<SiteRows>>,
    scheme: &dyn Fn(Expert, Proj) -> Option<Scheme>,
    recipe: &Recipe,
) -> Result<LayerResult> {
    measure_layer(weights, rows, scheme, recipe, &[])
}

/// As [`quantize_layer`], measuring every linear layer that has inputs in other schemes too, with the scales
/// that were found for `scheme`. Each error is relative, at the output, on the rows held back, of at most 512
/// rows of the weight; `None` where columns are not whole groups.
///
/// # Errors
/// As [`quantize_layer`].
pub fn measure_layer(
    weights: LayerWeights,
    rows: Vec<Option<SiteRows>>,
    scheme: &dyn Fn(Expert, Proj) -> Option<Scheme>,
    recipe: &Recipe,
    schemes: &[Scheme],
) -> Result<LayerResult> {
    let mut work = Work::new(weights, rows, scheme, recipe)?;
    let mut pairs = Vec::new();
    for pair in Pair::LAYER {
        match (recipe.scaling, pair) {
            (Scaling::Searched, Pair::VO) if !recipe.v_o => {}
            (Scaling::Searched, Pair::UpDown) if !recipe.up_down => {}
            (Scaling::Searched, Pair::VO) => {
                let all: Vec<usize> = (0..work.experts.len()).collect();
                pairs.extend(work.scale(pair, &all)?);
            }
            (Scaling::Searched, _) => {
                for i in 0..work.experts.len() {
                    pairs.extend(work.scale(pair, &[i])?);
                }
            }
            (Scaling::Seed, Pair::NormQkv | Pair::NormGateUp) => {
                for i in 0..work.experts.len() {
                    pairs.extend(work.scale_as_seed(pair, i)?);
                }
            }
            _ => {}
        }
    }
    Ok(LayerResult { experts: work.finish(schemes)?, pairs })
}

struct Work<'a> {
    layer: usize,
    heads: Heads,
    experts: Vec<ExpertWeights>,
    rows: Vec<Option<SiteRows>>,
    /// Errors of plain rounding before any scale, by expert and linear layer.
    plain: Vec<[Option<f64>; 7]>,
    scheme: &'a dyn Fn(Expert, Proj) -> Option<Scheme>,
    recipe: &'a Recipe,
}

impl<'a> Work<'a> {
    fn new(
        weights: LayerWeights,
        rows: Vec<Option<SiteRows>>,
        scheme: &'a dyn Fn(Expert, Proj) -> Option<Scheme>,
        recipe: &'a Recipe,
    ) -> Result<Self> {
        let LayerWeights { layer, heads, experts } = weights;
        if rows.len() != experts.len() {
            return Err(setting("rows", format!("{} experts", experts.len()), rows.len()));
        }
        for (weights, rows) in experts.iter().zip(&rows) {
            weights.check(layer, &heads)?;
            for proj in Proj::ALL {
                let (found, cols) =
                    (rows.as_ref().map(|r| r.get(proj.site()).n_cols()), weights.linear(proj).n_cols());
                if let Some(found) = found.filter(|found| *found != cols) {
                    let name = proj.site().path(layer, weights.expert);
                    return Err(setting(&name, format!("rows of {cols}"), found));
                }
            }
        }
        let plain = vec![[None; 7]; experts.len()];
        Ok(Self { layer, heads, experts, rows, plain, scheme, recipe })
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
            let rows = self.rows[*i].as_ref()?.get(proj.site());
            let scheme = (self.scheme)(weights.expert, *proj)?;
            Some(Consumer { name, weight: weights.linear(*proj), scheme, rows })
        };
        places.iter().filter_map(consumer).collect()
    }

    fn fuse(&mut self, pair: Pair, i: usize, s: &[f32], tie: &Tie) {
        self.experts[i].fuse(pair, s, tie);
        if let (Some(rows), Some(proj)) = (&mut self.rows[i], pair.consumers().first()) {
            rows.get_mut(proj.site()).divide(&tie.expand(s));
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

    /// Quantizes every linear layer; a weight is freed when it is done.
    fn finish(self, others: &[Scheme]) -> Result<Vec<ExpertResult>> {
        let Self { layer, scheme, recipe, .. } = self;
        let mut results = Vec::new();
        for ((weights, rows), plain) in self.experts.into_iter().zip(self.rows).zip(self.plain) {
            let expert = weights.expert;
            let inputs = |rows, site: Site| Inputs::new(site.path(layer, expert), rows);
            let mut sites = rows.map(|SiteRows { a, b, c, d }| [a, b, c, d].map(Some));
            let mut linears = Vec::new();
            let mut current: Option<(Site, Inputs)> = None;
            for (proj, matrix) in Proj::ALL.into_iter().zip(weights.linears) {
                let site = proj.site();
                if current.as_ref().is_none_or(|(at, _)| *at != site) {
                    let rows = sites.as_mut().and_then(|sites| sites[site as usize].take());
                    current = rows.map(|rows| (site, inputs(rows, site)));
                }
                let name = proj.path(layer, expert);
                let known = current.as_ref().map(|(_, inputs)| inputs);
                let others = if known.is_some() { others } else { &[] };
                let errors = width_errors(&name, &matrix, known, others, recipe)?;
                let plain = plain[proj as usize];
                let done = quantize_one(name, matrix, known, scheme(expert, proj), recipe, plain)?;
                linears.push(LinearResult { errors, ..done });
            }
            results.push(ExpertResult {
                expert,
                input_layernorm: weights.input_layernorm,
                post_attention_layernorm: weights.post_attention_layernorm,
                v_bias: weights.v_bias,
                linears,
            });
        }
        Ok(results)
    }
}

fn quantize_one(
    name: String,
    matrix: Matrix,
    inputs: Option<&Inputs>,
    scheme: Option<Scheme>,
    recipe: &Recipe,
    plain: Option<f64>,
) -> Result<LinearResult> {
    let Some(scheme) = scheme else {
        return Ok(LinearResult { name, form: Form::Dense(matrix), report: None, errors: Vec::new() });
    };
    let quantized = quantize_linear(&name, &matrix, inputs, scheme, recipe)?;
    let report = LinearReport::new(name.clone(), &quantized, plain);
    let form = Form::Packed(quantized.weight);
    Ok(LinearResult { name, form, report: Some(report), errors: Vec::new() })
}

/// A quantized output head.
pub struct HeadResult {
    /// The packed weight.
    pub weight: AffineWeight,
    /// What was done.
    pub report: LinearReport,
    /// The pair of the last norm, if it was searched.
    pub pair: Option<PairReport>,
    /// Its errors in the schemes that were asked for: see [`measure_layer`].
    pub errors: Vec<Option<f64>>,
}

/// Quantizes `lm_head` and divides the last norm's weight by the scale that is chosen for it. The weight is
/// read by rows and may stay in its file.
///
/// # Errors
/// As [`quantize_layer`].
pub fn quantize_head(
    name: &str,
    norm: &mut [f32],
    weight: &dyn Source,
    rows: Rows,
    scheme: Scheme,
    recipe: &Recipe,
) -> Result<HeadResult> {
    measure_head(name, norm, weight, rows, scheme, recipe, &[])
}

/// As [`quantize_head`], measuring other schemes too, as [`measure_layer`] does.
///
/// # Errors
/// As [`quantize_layer`].
pub fn measure_head(
    name: &str,
    norm: &mut [f32],
    weight: &dyn Source,
    mut rows: Rows,
    scheme: Scheme,
    recipe: &Recipe,
    schemes: &[Scheme],
) -> Result<HeadResult> {
    if norm.len() != weight.n_cols() || rows.n_cols() != norm.len() {
        let found = format!("{} and rows of {}", norm.len(), rows.n_cols());
        return Err(setting(name, format!("a norm of {} channels", weight.n_cols()), found));
    }
    let mut scale = vec![1.0; norm.len()];
    let (mut pair, mut plain) = (None, None);
    if recipe.scaling == Scaling::Searched {
        let consumer = Consumer { name, weight, scheme, rows: &rows };
        let found = search(&[consumer], &Tie::none(norm.len()))?;
        pair =
            Some(PairReport::searched(Pair::NormHead, vec![Pair::NormHead.producer(0, Expert::Und)], &found));
        plain = found.plain.first().copied();
        scale = found.scale;
        divide(norm, &scale);
        rows.divide(&scale);
    }
    let scaled = Scaled { source: weight, factors: &scale };
    let inputs = Inputs::new(format!("inputs of {name}"), rows);
    let quantized = quantize_linear(name, &scaled, Some(&inputs), scheme, recipe)?;
    let report = LinearReport::new(name.to_owned(), &quantized, plain);
    let errors = width_errors(name, &scaled, Some(&inputs), schemes, recipe)?;
    Ok(HeadResult { weight: quantized.weight, report, pair, errors })
}

#[cfg(test)]
mod tests;
