//! One linear layer of a candidate against its reference.

use candle_core::Tensor;
use lance_mm_models::Llm;
use lance_mm_tensor::{Linear, Weight};
use serde::Serialize;

use super::scale;
use crate::error::{Error, Result};
use crate::{Decibels, Relative, finite};

/// A linear layer alone, in the reference's space: `y = X Wᵀ` without bias on the reference's activations X, and
/// `ŷ = (X / s) Ŵᵀ · r`, with s the scale of its input columns and r that of its output rows, as far as the
/// checkpoint holds its weights scaled. s of q, k, v, gate, up and the head is the ratio of the norms before
/// them; r of v and up, which is s of o and down, is fitted to the rows of their weights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LinearReport {
    /// Checkpoint path.
    pub path: String,
    /// `‖ŷ − y‖² / ‖y‖²`.
    pub output: Relative,
    /// The same of the weights, Ŵ brought back to the reference's space. Not for comparing scaled variants:
    /// it falls where scaling does its work.
    pub weight_snr_db: Decibels,
    /// Largest over median root mean square of the input's channels; `None` when the median is zero.
    pub outlier_ratio: Option<f64>,
    /// Fourth central moment of all inputs over their squared variance: 3 for normal ones.
    pub kurtosis: Option<f64>,
    /// Smallest and largest s.
    pub input_scale: [f32; 2],
}

/// A linear layer within a layer and the probe that shows its input.
pub(super) struct Site {
    path: &'static str,
    pub(super) input: &'static str,
}

pub(super) const SITES: [Site; 7] = [
    Site { path: "self_attn.q_proj", input: "input_layernorm" },
    Site { path: "self_attn.k_proj", input: "input_layernorm" },
    Site { path: "self_attn.v_proj", input: "input_layernorm" },
    Site { path: "self_attn.o_proj", input: "self_attn.heads" },
    Site { path: "mlp.gate_proj", input: "post_attention_layernorm" },
    Site { path: "mlp.up_proj", input: "post_attention_layernorm" },
    Site { path: "mlp.down_proj", input: "mlp.gated" },
];

/// Sums for one linear layer.
pub(super) struct Comparison {
    path: String,
    /// s.
    input_scale: Vec<f32>,
    /// r, unless it is 1.
    output_scale: Option<Vec<f32>>,
    weight: Relative,
    output: Relative,
    inputs: Inputs,
}

/// The linear layers of layer `index`, in the order of [`SITES`].
pub(super) fn of_layer(reference: &Llm, candidate: &Llm, index: usize) -> Result<Vec<Comparison>> {
    let path = |name: &str| format!("layers.{index}.{name}");
    let before = |norm: &str| norm_scale(reference, candidate, &path(norm));
    let (attention, mlp) = (before("input_layernorm")?, before("post_attention_layernorm")?);
    let output = |name: &str, input_scale: &[f32]| -> Result<Vec<f32>> {
        let (r, c) = weights(reference, candidate, &path(name))?;
        Ok(scale::of_rows(r, c, input_scale))
    };
    let (v, up) = (output("self_attn.v_proj", &attention)?, output("mlp.up_proj", &mlp)?);
    let config = reference.config();
    let heads = scale::for_all_heads(&v, config.num_attention_heads, config.num_key_value_heads);
    let comparison = |site: &Site| -> Result<Comparison> {
        let (input_scale, output_scale) = match site.path {
            "self_attn.v_proj" => (&attention, Some(v.clone())),
            "self_attn.o_proj" => (&heads, None),
            "mlp.up_proj" => (&mlp, Some(up.clone())),
            "mlp.down_proj" => (&up, None),
            "mlp.gate_proj" => (&mlp, None),
            _ => (&attention, None),
        };
        Comparison::new(reference, candidate, path(site.path), input_scale.clone(), output_scale)
    };
    SITES.iter().map(comparison).collect()
}

/// The output head.
pub(super) fn lm_head(reference: &Llm, candidate: &Llm) -> Result<Comparison> {
    let input_scale = norm_scale(reference, candidate, "norm")?;
    Comparison::new(reference, candidate, "lm_head".to_owned(), input_scale, None)
}

fn norm_scale(reference: &Llm, candidate: &Llm, path: &str) -> Result<Vec<f32>> {
    match (reference.residual_norm(path), candidate.residual_norm(path)) {
        (Some(r), Some(c)) => scale::of_norms(r, c),
        _ => Err(missing(path)),
    }
}

fn linears<'a>(reference: &'a Llm, candidate: &'a Llm, path: &str) -> Result<(&'a Linear, &'a Linear)> {
    reference.linear(path).zip(candidate.linear(path)).ok_or_else(|| missing(path))
}

fn weights<'a>(reference: &'a Llm, candidate: &'a Llm, path: &str) -> Result<(&'a Weight, &'a Weight)> {
    linears(reference, candidate, path).map(|(r, c)| (r.weight(), c.weight()))
}

fn missing(path: &str) -> Error {
    Error::data(path, "expected it in both models, found it missing")
}

impl Comparison {
    fn new(
        reference: &Llm,
        candidate: &Llm,
        path: String,
        input_scale: Vec<f32>,
        output_scale: Option<Vec<f32>>,
    ) -> Result<Self> {
        let (r, c) = weights(reference, candidate, &path)?;
        let mut weight = Relative::default();
        let (mut expected, mut found) = (vec![0.0; r.n_cols()], vec![0.0; r.n_cols()]);
        for row in 0..r.n_rows() {
            r.read_row(row, &mut expected);
            c.read_row(row, &mut found);
            for (model, weights) in [("reference", &expected), ("candidate", &found)] {
                finite::check(weights, || format!("{model}: row {row} of {path}.weight"))?;
            }
            let by_row = output_scale.as_ref().map_or(1.0, |scale| scale[row]);
            found.iter_mut().zip(&input_scale).for_each(|(w, s)| *w = *w / s * by_row);
            weight.push(&expected, &found);
        }
        let inputs = Inputs::new(r.n_cols());
        Ok(Self { path, input_scale, output_scale, weight, output: Relative::default(), inputs })
    }

    /// Adds input activations of the reference, f32 `(n, K)`.
    pub(super) fn add(&mut self, reference: &Llm, candidate: &Llm, x: &Tensor) -> Result<()> {
        let (r, c) = weights(reference, candidate, &self.path)?;
        let y = r.matmul(x)?;
        let mut found = c.matmul(&scale::divided(x, &self.input_scale)?)?;
        if let Some(scale) = &self.output_scale {
            found = scale::multiplied(&found, scale)?;
        }
        let values = |model: &str, what: &str, tensor: &Tensor| {
            finite::values(tensor, || format!("{model}: {what} of {}", self.path))
        };
        let inputs = values("reference", "input", x)?;
        self.output.push(&values("reference", "output", &y)?, &values("candidate", "output", &found)?);
        self.inputs.add(&inputs);
        Ok(())
    }

    pub(super) fn report(self) -> LinearReport {
        let least = self.input_scale.iter().copied().fold(f32::INFINITY, f32::min);
        let most = self.input_scale.iter().copied().fold(0.0, f32::max);
        LinearReport {
            output: self.output,
            weight_snr_db: self.weight.snr(),
            outlier_ratio: self.inputs.outlier_ratio(),
            kurtosis: self.inputs.kurtosis(),
            input_scale: [least, most],
            path: self.path,
        }
    }
}

/// Sums over input activations.
struct Inputs {
    /// Sum of squares of each channel.
    squares: Vec<f64>,
    n: f64,
    powers: [f64; 4],
}

impl Inputs {
    fn new(channels: usize) -> Self {
        Self { squares: vec![0.0; channels], n: 0.0, powers: [0.0; 4] }
    }

    fn add(&mut self, activations: &[f32]) {
        for row in activations.chunks_exact(self.squares.len()) {
            for (sum, x) in self.squares.iter_mut().zip(row) {
                let x = f64::from(*x);
                *sum += x * x;
                let mut power = 1.0;
                for total in &mut self.powers {
                    power *= x;
                    *total += power;
                }
            }
            self.n += row.len() as f64;
        }
    }

    fn outlier_ratio(&self) -> Option<f64> {
        let mut sorted = self.squares.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = |i: usize| sorted.get(i).map(|square| square.sqrt());
        let median = (middle((sorted.len().checked_sub(1)?) / 2)? + middle(sorted.len() / 2)?) / 2.0;
        (median > 0.0).then_some(sorted.last()?.sqrt() / median)
    }

    fn kurtosis(&self) -> Option<f64> {
        let [m1, m2, m3, m4] = self.powers.map(|power| power / self.n);
        let variance = m2 - m1 * m1;
        let fourth = m4 - 4.0 * m1 * m3 + 6.0 * m1 * m1 * m2 - 3.0 * m1.powi(4);
        (variance > 0.0).then(|| fourth / variance.powi(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outliers_and_heavy_tails() {
        let mut inputs = Inputs::new(3);
        inputs.add(&[1.0, -2.0, 8.0, -1.0, 2.0, -8.0]);
        assert_eq!(inputs.outlier_ratio(), Some(4.0));
        // Mean 0, variance 23, fourth moment (1 + 16 + 4096) / 3.
        assert!((inputs.kurtosis().unwrap() - 4113.0 / 3.0 / 23.0f64.powi(2)).abs() < 1e-12);
        let flat = Inputs::new(2);
        assert_eq!((flat.outlier_ratio(), flat.kurtosis()), (None, None));
        assert_eq!(Inputs::new(0).outlier_ratio(), None);
    }
}
