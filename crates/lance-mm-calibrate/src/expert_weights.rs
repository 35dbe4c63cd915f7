//! The weights of a layer, and moving scales between them without changing what they compute.

use lance_mm_models::Expert;
use lance_mm_quant::{Matrix, Tie};
use lance_mm_tensor::Result;

use crate::error::setting;
use crate::names::{FusionGroup, Proj};

/// Attention heads of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
}

/// The tensors of one expert's layer that quantization changes.
#[derive(Clone, Debug)]
pub struct ExpertWeights {
    /// The expert.
    pub expert: Expert,
    /// `input_layernorm`, in f32.
    pub input_layernorm: Vec<f32>,
    /// `post_attention_layernorm`, in f32.
    pub post_attention_layernorm: Vec<f32>,
    /// The additive bias of `v_proj`, if it has one.
    pub v_bias: Option<Vec<f32>>,
    /// The weights, in the order of [`Proj::ALL`].
    pub linears: [Matrix; 7],
}

impl ExpertWeights {
    /// One weight.
    pub fn linear(&self, proj: Proj) -> &Matrix {
        &self.linears[proj as usize]
    }

    /// Checks that all shapes fit each other and the heads.
    ///
    /// # Errors
    /// The first part that does not, with both sizes.
    pub fn check(&self, layer: usize, heads: &Heads) -> Result<()> {
        let Heads { n_heads, n_kv_heads, head_dim } = *heads;
        if n_kv_heads == 0 || !n_heads.is_multiple_of(n_kv_heads) {
            return Err(setting(
                "heads",
                "query heads in equal parts",
                format!("{n_heads} over {n_kv_heads}"),
            ));
        }
        let (q, kv) = (n_heads * head_dim, n_kv_heads * head_dim);
        let (width, inner) = (self.input_layernorm.len(), self.linear(Proj::DownProj).n_cols());
        let shapes = [
            (q, width),
            (kv, width),
            (kv, width),
            (width, q),
            (inner, width),
            (inner, width),
            (width, inner),
        ];
        for (proj, (rows, cols)) in Proj::ALL.into_iter().zip(shapes) {
            let found = (self.linear(proj).n_rows(), self.linear(proj).n_cols());
            if found != (rows, cols) {
                let name = proj.path(layer, self.expert);
                return Err(setting(&name, format!("{:?}", (rows, cols)), format!("{found:?}")));
            }
        }
        let norm = self.post_attention_layernorm.len();
        if norm != width {
            return Err(setting(&FusionGroup::NormGateUp.producer(layer, self.expert), width, norm));
        }
        match self.v_bias.as_ref().filter(|bias| bias.len() != kv) {
            None => Ok(()),
            Some(bias) => {
                Err(setting(&format!("{}.bias", Proj::VProj.path(layer, self.expert)), kv, bias.len()))
            }
        }
    }

    /// Multiplies the consumers' columns by `s` and divides the producer's channels by it. For v to o both
    /// experts take the same `s`.
    ///
    /// # Panics
    /// When there is not one factor for each channel of the producer, or for the fusion group of the head.
    pub fn fuse(&mut self, group: FusionGroup, s: &[f32], tie: &Tie) {
        match group {
            FusionGroup::NormQkv => divide(&mut self.input_layernorm, s),
            FusionGroup::NormGateUp => divide(&mut self.post_attention_layernorm, s),
            FusionGroup::UpDown => self.linears[Proj::UpProj as usize].divide_rows(s),
            FusionGroup::VO => {
                self.linears[Proj::VProj as usize].divide_rows(s);
                if let Some(bias) = &mut self.v_bias {
                    divide(bias, s);
                }
            }
            FusionGroup::NormHead => panic!("the head is no part of a layer"),
        }
        let columns = tie.expand(s);
        for proj in group.consumers() {
            self.linears[*proj as usize].multiply_cols(&columns);
        }
    }

    /// The tie of a fusion group's columns.
    pub fn tie(&self, group: FusionGroup, heads: &Heads) -> Tie {
        match group {
            FusionGroup::VO => Tie::heads(heads.n_heads, heads.n_kv_heads, heads.head_dim),
            FusionGroup::UpDown => Tie::none(self.linear(Proj::DownProj).n_cols()),
            FusionGroup::NormQkv | FusionGroup::NormGateUp | FusionGroup::NormHead => {
                Tie::none(self.input_layernorm.len())
            }
        }
    }
}

/// Divides values by `s`, one each.
///
/// # Panics
/// When there is not one divisor for each value.
pub(crate) fn divide(values: &mut [f32], s: &[f32]) {
    assert_eq!(values.len(), s.len(), "one divisor for each channel");
    values.iter_mut().zip(s).for_each(|(v, s)| *v /= s);
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::{assert_close, seeded};

    use super::*;
    use crate::testing::{HEADS, expert_weights};

    fn times(w: &Matrix, x: &[f32]) -> Vec<f32> {
        let dot =
            |row: &[f32]| row.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32;
        w.values().chunks_exact(w.n_cols()).map(dot).collect()
    }

    fn normed(x: &[f32], weight: &[f32]) -> Vec<f32> {
        x.iter().zip(weight).map(|(x, w)| x * w).collect()
    }

    /// Projections of a row, o of a row whose attention returns v itself, and the MLP.
    fn outputs(w: &ExpertWeights, x: &[f32]) -> [Vec<f32>; 4] {
        let a = normed(x, &w.input_layernorm);
        let mut v = times(w.linear(Proj::VProj), &a);
        v.iter_mut().zip(w.v_bias.as_ref().unwrap()).for_each(|(v, b)| *v += b);
        let attended = Tie::heads(HEADS.n_heads, HEADS.n_kv_heads, HEADS.head_dim).expand(&v);
        let c = normed(x, &w.post_attention_layernorm);
        let (gate, up) = (times(w.linear(Proj::GateProj), &c), times(w.linear(Proj::UpProj), &c));
        let inner: Vec<f32> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        [
            times(w.linear(Proj::QProj), &a),
            times(w.linear(Proj::KProj), &a),
            times(w.linear(Proj::OProj), &attended),
            times(w.linear(Proj::DownProj), &inner),
        ]
    }

    #[test]
    fn fusing_leaves_the_outputs_as_they_are() {
        let mut w = expert_weights(Expert::Und, 1);
        w.check(0, &HEADS).unwrap();
        let x = seeded(w.input_layernorm.len(), 9);
        let before = outputs(&w, &x);
        for (i, group) in FusionGroup::LAYER.into_iter().enumerate() {
            let tie = w.tie(group, &HEADS);
            let s: Vec<f32> = seeded(tie.n_free(), 20 + i as u64).iter().map(|v| (3.0 * v).exp()).collect();
            w.fuse(group, &s, &tie);
            for (found, expected) in outputs(&w, &x).iter().zip(&before) {
                let size = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                assert_close(group.name(), found, expected, 1e-5 * size);
            }
        }
        let changed = expert_weights(Expert::Und, 1);
        assert!(changed.linears.iter().zip(&w.linears).filter(|(a, b)| a != b).count() == 7);
    }

    #[test]
    fn shapes_that_do_not_fit_are_named() {
        let mut w = expert_weights(Expert::Gen, 1);
        w.linears[2] = w.linears[0].clone();
        let error = w.check(3, &HEADS).unwrap_err().to_string();
        assert_eq!(error, "layers.3.self_attn.v_proj_moe_gen: expected (32, 64), found (64, 64)");
    }
}
