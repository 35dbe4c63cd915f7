//! Quantizing one linear layer: every method is tried, the held-out error decides.

use std::sync::Arc;

use lance_mm_tensor::{AffineWeight, FloatType, Result, Scheme, pack_codes};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::block::{Block, energy, output_energy, relative};
use crate::clip::{Fit, clip};
use crate::descent::Descent;
use crate::gptq::{Choice, gptq};
use crate::group_gram::GroupGram;
use crate::hessian_factor::Factor;
use crate::inputs::Inputs;
use crate::matrix::{CHUNK, Matrix, RowSource, Sampled, check_rows, setting};
use crate::or_nan::or_nan;
use crate::refit::refit;
use crate::rounding_options::{RoundingMethod, RoundingOptions};

/// Steps of the clipping search: down to 0.55 of a group's range.
const CLIPS: usize = 10;
/// Rounds of the refit.
const REFITS: usize = 3;
/// Damping of GPTQ, in means of the Hessian's diagonal.
const DAMPING: f64 = 0.01;
/// Rows of a weight on which methods are compared.
const ROWS: usize = 2048;

/// A method that was tried.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trial {
    /// The method.
    pub method: RoundingMethod,
    /// `‖X·Wᵀ − X·Ŵᵀ‖² / ‖X·Wᵀ‖²` on the search set; without inputs the error of the weights.
    #[serde(deserialize_with = "or_nan")]
    pub search: f64,
    /// The same error on held-out activations.
    #[serde(rename = "held_back", deserialize_with = "or_nan")]
    pub held_out: f64,
    /// Signal to noise of the weights in dB.
    #[serde(deserialize_with = "or_nan")]
    pub snr_db: f64,
    /// Share of groups whose range was clipped.
    #[serde(deserialize_with = "or_nan")]
    pub clipped: f64,
}

/// A quantized linear layer.
pub struct QuantizedMatrix {
    /// The packed weight; scales and biases are bf16.
    pub weight: AffineWeight,
    /// Index of the trial that was kept.
    pub chosen: usize,
    /// All trials, in order.
    pub trials: Vec<Trial>,
}

impl QuantizedMatrix {
    /// The trial that was kept.
    pub fn trial(&self) -> &Trial {
        &self.trials[self.chosen]
    }
}

/// Quantizes a weight `(R, K)` with every method that `options` allow and keeps the one with the smallest error on
/// held-out activations; of equal ones the earlier. Without inputs the error of the weights decides. Methods are compared
/// on at most 2048 rows of the weight; only the one that is kept rounds all of them.
///
/// # Errors
/// Columns that are not whole groups or not those of the inputs, values that are not finite: all named.
pub fn quantize_linear(
    name: &str,
    weight: &dyn RowSource,
    inputs: Option<&Inputs>,
    scheme: Scheme,
    options: &RoundingOptions,
) -> Result<QuantizedMatrix> {
    let methods = options.methods(weight.n_cols(), inputs.is_some());
    quantize_by(name, weight, inputs, scheme, options, &methods)
}

/// Quantizes a weight with the given methods, as [`quantize_linear`] does.
///
/// # Errors
/// The same as of [`quantize_linear`]; a method that needs inputs, without them; no method.
pub fn quantize_by(
    name: &str,
    weight: &dyn RowSource,
    inputs: Option<&Inputs>,
    scheme: Scheme,
    options: &RoundingOptions,
    methods: &[RoundingMethod],
) -> Result<QuantizedMatrix> {
    check(name, weight, inputs, scheme)?;
    let some = Sampled::new(weight, ROWS);
    let mut best: Option<(AffineWeight, usize)> = None;
    let mut trials: Vec<Trial> = Vec::new();
    for method in methods {
        let prepared = PreparedMethod::new(name, *method, inputs, scheme, options)?;
        let (quantized, trial) = run(name, &some, inputs, scheme, &prepared)?;
        let is_better = best.as_ref().is_none_or(|(_, at)| trial.held_out < trials[*at].held_out);
        if is_better {
            best = Some((quantized, trials.len()));
        }
        trials.push(trial);
    }
    let Some((mut packed, chosen)) = best else { return Err(setting(name, "a rounding method", "none")) };
    if some.n_rows() < weight.n_rows() {
        let prepared = PreparedMethod::new(name, methods[chosen], inputs, scheme, options)?;
        (packed, trials[chosen]) = run(name, weight, inputs, scheme, &prepared)?;
    }
    Ok(QuantizedMatrix { weight: packed, chosen, trials })
}

/// Relative error of a weight in several schemes, on held-out activations and at most 512 rows of the weight; `None`
/// where columns are not whole groups. Of the methods that `options` allow two are tried: clipped ranges, and descent
/// with the middle damping.
///
/// # Errors
/// The same as of [`quantize_linear`].
pub fn width_errors(
    name: &str,
    weight: &dyn RowSource,
    inputs: Option<&Inputs>,
    schemes: &[Scheme],
    options: &RoundingOptions,
) -> Result<Vec<Option<f64>>> {
    let some = Sampled::new(weight, 512);
    let all = options.methods(weight.n_cols(), inputs.is_some());
    let middle = options.dampings.get(options.dampings.len() / 2);
    let few = |method: &RoundingMethod| match method {
        RoundingMethod::ClipRefit => true,
        RoundingMethod::FeedbackDescent(damping) => Some(damping) == middle,
        RoundingMethod::Plain | RoundingMethod::Feedback => false,
    };
    let few: Vec<RoundingMethod> = all.iter().copied().filter(few).collect();
    let methods = if few.is_empty() { &all } else { &few };
    let error = |scheme: &Scheme| {
        if !weight.n_cols().is_multiple_of(scheme.group_size()) {
            return Ok(None);
        }
        Ok(Some(quantize_by(name, &some, inputs, *scheme, options, methods)?.trial().held_out))
    };
    schemes.iter().map(error).collect()
}

/// A method with its precomputed statistics.
struct PreparedMethod<'a> {
    method: RoundingMethod,
    scheme: Scheme,
    clips: usize,
    refits: usize,
    passes: usize,
    grams: Grams<'a>,
    factor: Option<Arc<Factor>>,
    descent: Option<Descent>,
}

enum Grams<'a> {
    Same(GroupGram),
    Each(&'a [GroupGram]),
}

impl<'a> PreparedMethod<'a> {
    fn new(
        name: &str,
        method: RoundingMethod,
        inputs: Option<&'a Inputs>,
        scheme: Scheme,
        options: &RoundingOptions,
    ) -> Result<Self> {
        let group = scheme.group_size();
        let damping = match method {
            RoundingMethod::Plain | RoundingMethod::ClipRefit => None,
            RoundingMethod::Feedback => Some(DAMPING),
            RoundingMethod::FeedbackDescent(damping) => Some(damping),
        };
        let factor = match (damping, inputs) {
            (None, _) => None,
            (Some(damping), Some(inputs)) => Some(inputs.factor(damping)?),
            (Some(_), None) => return Err(setting(name, "inputs for error feedback", "none")),
        };
        let descends = matches!(method, RoundingMethod::FeedbackDescent(_));
        let descent = match (&factor, inputs) {
            (Some(factor), Some(inputs)) if descends => {
                Some(Descent::new(inputs.activations(), factor, scheme))
            }
            _ => None,
        };
        let grams = match inputs {
            Some(inputs) if method == RoundingMethod::ClipRefit => Grams::Each(inputs.grams(group)),
            _ => Grams::Same(GroupGram::identity(group)),
        };
        Ok(Self {
            method,
            scheme,
            clips: if options.clip { CLIPS } else { 1 },
            refits: if options.refit { REFITS } else { 0 },
            passes: options.passes,
            grams,
            factor,
            descent,
        })
    }

    fn round(&self, w: &[f32], cols: usize) -> Block {
        let mut block = match (self.method, &self.factor) {
            (RoundingMethod::Feedback, Some(factor)) => gptq(w, factor, self.scheme, Choice::Plain),
            (RoundingMethod::FeedbackDescent(_), Some(factor)) => {
                gptq(w, factor, self.scheme, Choice::Searched)
            }
            (RoundingMethod::ClipRefit, _) => self.clip_refit(w, cols),
            _ => Block::plain(w, self.scheme),
        };
        if let Some(descent) = &self.descent {
            descent.improve(w, &mut block, self.passes);
        }
        block
    }

    fn clip_refit(&self, w: &[f32], cols: usize) -> Block {
        let (bits, group) = (self.scheme.bits(), self.scheme.group_size());
        let mut block = Block::zeros(w.len(), self.scheme);
        for (g, w) in w.chunks_exact(group).enumerate() {
            let gram = match &self.grams {
                Grams::Same(gram) => gram,
                Grams::Each(grams) => &grams[g % (cols / group)],
            };
            let (fit, step) = clip(w, gram, bits, self.clips);
            let fit = refit(fit, w, gram, bits, self.refits);
            block.codes[g * group..(g + 1) * group].copy_from_slice(&fit.codes);
            (block.scales[g], block.biases[g]) = (fit.scale, fit.bias);
            block.n_clipped += usize::from(step > 0);
        }
        block
    }
}

/// Clipping and refit of a matrix, group by group.
pub struct GroupFits {
    /// The packed weight.
    pub weight: AffineWeight,
    /// The clipping step of every group: step `i` keeps `1 − 0.05·i` of its range.
    pub steps: Vec<u8>,
    /// `dᵀHd` of every group after clipping.
    pub clipped: Vec<f64>,
    /// `dᵀHd` of every group after the refit.
    pub refitted: Vec<f64>,
}

/// Runs [`RoundingMethod::ClipRefit`] and returns its steps and errors too.
///
/// # Errors
/// The same as of [`quantize_linear`].
pub fn fit_groups(name: &str, weight: &Matrix, inputs: &Inputs, scheme: Scheme) -> Result<GroupFits> {
    let (cols, group) = (weight.n_cols(), scheme.group_size());
    check(name, weight, Some(inputs), scheme)?;
    let grams = inputs.grams(group);
    let fits: Vec<(Fit, usize, f64)> = weight
        .values()
        .par_chunks(group)
        .enumerate()
        .map(|(g, w)| {
            let gram = &grams[g % (cols / group)];
            let (clipped, step) = clip(w, gram, scheme.bits(), CLIPS);
            let error = clipped.error;
            (refit(clipped, w, gram, scheme.bits(), REFITS), step, error)
        })
        .collect();
    let codes: Vec<u8> = fits.iter().flat_map(|(fit, ..)| &fit.codes).copied().collect();
    let scales: Vec<f32> = fits.iter().map(|(fit, ..)| fit.scale).collect();
    let biases: Vec<f32> = fits.iter().map(|(fit, ..)| fit.bias).collect();
    let words = pack_codes(&codes, scheme.bits());
    Ok(GroupFits {
        weight: AffineWeight::from_parts(name, words, &scales, &biases, cols, scheme, FloatType::BF16)?,
        steps: fits.iter().map(|(_, step, _)| *step as u8).collect(),
        clipped: fits.iter().map(|(.., error)| *error).collect(),
        refitted: fits.iter().map(|(fit, ..)| fit.error).collect(),
    })
}

/// Checks that a weight can be quantized in this scheme with these inputs.
fn check(name: &str, weight: &dyn RowSource, inputs: Option<&Inputs>, scheme: Scheme) -> Result<()> {
    let (cols, group) = (weight.n_cols(), scheme.group_size());
    if cols == 0 || weight.n_rows() == 0 || !cols.is_multiple_of(group) {
        let found = format!("{} rows of {cols}", weight.n_rows());
        return Err(setting(name, format!("rows of groups of {group}"), found));
    }
    match inputs.filter(|inputs| inputs.activations().n_cols() != cols) {
        None => Ok(()),
        Some(inputs) => {
            let found = format!("{} of {}", inputs.activations().n_cols(), inputs.name());
            Err(setting(name, format!("inputs of width {cols}"), found))
        }
    }
}

/// A chunk of rounded rows with its errors.
struct Piece {
    words: Vec<u32>,
    scales: Vec<f32>,
    biases: Vec<f32>,
    sums: [f64; 7],
}

/// Rounds all rows with one method and measures the result. Chunks of rows do not depend on the number of threads, and
/// sums follow their order.
fn run(
    name: &str,
    weight: &dyn RowSource,
    inputs: Option<&Inputs>,
    scheme: Scheme,
    prepared: &PreparedMethod<'_>,
) -> Result<(AffineWeight, Trial)> {
    let (rows, cols) = (weight.n_rows(), weight.n_cols());
    let pieces: Vec<Piece> = (0..rows.div_ceil(CHUNK))
        .into_par_iter()
        .map(|i| {
            let w = weight.read_rows(i * CHUNK, CHUNK.min(rows - i * CHUNK));
            check_rows(name, &w, cols)?;
            let block = prepared.round(&w, cols);
            let d = block.error(&w, scheme);
            let mut sums = [energy(&d), energy(&w), block.n_clipped as f64, 0.0, 0.0, 0.0, 0.0];
            if let Some(inputs) = inputs {
                let [search, held_out] = [inputs.activations().search(), inputs.activations().held_out()];
                sums[3] = output_energy(search, &d, cols);
                sums[4] = output_energy(search, &w, cols);
                sums[5] = output_energy(held_out, &d, cols);
                sums[6] = output_energy(held_out, &w, cols);
            }
            let words = pack_codes(&block.codes, scheme.bits());
            Ok(Piece { words, scales: block.scales, biases: block.biases, sums })
        })
        .collect::<Result<_>>()?;
    let mut sums = [0.0; 7];
    let (mut words, mut scales, mut biases) = (Vec::new(), Vec::new(), Vec::new());
    for piece in pieces {
        sums.iter_mut().zip(piece.sums).for_each(|(sum, v)| *sum += v);
        words.extend(piece.words);
        scales.extend(piece.scales);
        biases.extend(piece.biases);
    }
    let weights = relative(sums[0], sums[1]);
    let (search, held_out) = match inputs {
        Some(_) => (relative(sums[3], sums[4]), relative(sums[5], sums[6])),
        None => (weights, weights),
    };
    let trial = Trial {
        method: prepared.method,
        search,
        held_out,
        snr_db: -10.0 * weights.max(1e-30).log10(),
        clipped: sums[2] / scales.len() as f64,
    };
    let packed = AffineWeight::from_parts(name, words, &scales, &biases, cols, scheme, FloatType::BF16)?;
    Ok((packed, trial))
}

#[cfg(test)]
mod tests;
