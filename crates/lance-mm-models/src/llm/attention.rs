//! Self-attention of a layer: projections and norms by expert, one attention over all tokens.

use candle_core::Tensor;
use lance_mm_tensor::{ActivationPrecision, Linear, Result, RmsNorm, Weights};

use super::pass::Pass;
use super::{Experts, PerExpert};
use crate::config::Config;
use crate::monitor::Monitor;
use crate::sequence::{Expert, Span};

#[derive(Clone)]
pub(super) struct Attention {
    parts: PerExpert<Projections>,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    activations: ActivationPrecision,
}

#[derive(Clone)]
struct Projections {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    q_norm: RmsNorm,
    k_norm: RmsNorm,
}

impl Projections {
    fn load(config: &Config, weights: &Weights, expert: Expert) -> Result<Self> {
        let part = |name: &str| weights.pp(format!("{name}{}", expert.suffix()));
        let (d, head) = (config.hidden_size, config.head_dim());
        let kv = config.num_key_value_heads * head;
        let eps = config.rms_norm_eps as f32;
        Ok(Self {
            q_proj: Linear::load_biased(&part("q_proj"), d, d)?,
            k_proj: Linear::load_biased(&part("k_proj"), d, kv)?,
            v_proj: Linear::load_biased(&part("v_proj"), d, kv)?,
            o_proj: Linear::load(&part("o_proj"), d, d)?,
            q_norm: RmsNorm::load(&part("q_norm"), head, eps)?,
            k_norm: RmsNorm::load(&part("k_norm"), head, eps)?,
        })
    }
}

impl Attention {
    /// Loads all that is not shared with `base`.
    pub(super) fn load(
        base: Option<&Self>,
        config: &Config,
        weights: &Weights,
        experts: Experts,
    ) -> Result<Self> {
        Ok(Self {
            parts: PerExpert::load(base.map(|base| &base.parts), experts, |expert| {
                Projections::load(config, weights, expert)
            })?,
            n_heads: config.num_attention_heads,
            n_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim(),
            activations: weights.activation_precision(),
        })
    }

    /// The UND expert's projection of this name.
    pub(super) fn linear(&self, name: &str) -> Option<&Linear> {
        let parts = &self.parts.und;
        match name {
            "q_proj" => Some(&parts.q_proj),
            "k_proj" => Some(&parts.k_proj),
            "v_proj" => Some(&parts.v_proj),
            "o_proj" => Some(&parts.o_proj),
            _ => None,
        }
    }

    /// The UND expert's projections.
    pub(super) fn linears(&self) -> [&Linear; 4] {
        let Projections { q_proj, k_proj, v_proj, o_proj, .. } = &self.parts.und;
        [q_proj, k_proj, v_proj, o_proj]
    }

    /// The output projection of tokens of [`heads`](Self::heads), `(T, H·D)` to `(T, D)`.
    pub(super) fn project(&self, heads: &Tensor, spans: &[Span]) -> Result<Tensor> {
        self.parts.by_span(heads, spans, |p, x| p.o_proj.forward(x))
    }

    /// An expert's output projection of tokens of [`heads`](Self::heads), added to `x`.
    pub(super) fn project_onto(&self, x: &Tensor, heads: &Tensor, expert: Expert) -> Result<Tensor> {
        self.parts.get(expert)?.o_proj.forward_residual(x, heads)
    }

    /// Outputs of the heads, side by side: `(T, D)` to `(T, H·D)`; keys and values of the tokens go into layer `index` of the
    /// pass's caches.
    pub(super) fn heads(
        &self,
        x: &Tensor,
        pass: &mut Pass<'_, '_>,
        index: usize,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor> {
        let t = x.dim(0)?;
        let spans = pass.spans;
        let [q, k, v] = self
            .parts
            .by_span_each(x, spans, |p, x| Linear::forward_each([&p.q_proj, &p.k_proj, &p.v_proj], x))?;
        monitor.show(format_args!("layers.{index}.self_attn.q_proj"), &q)?;
        // (T, H·D) -> (T, H, D); the norms go over each head's channels.
        let q = q.reshape((t, self.n_heads, self.head_dim))?;
        let k = k.reshape((t, self.n_kv_heads, self.head_dim))?;
        let v = v.reshape((t, self.n_kv_heads, self.head_dim))?;
        let (q, k) = match spans {
            // Nobody looks at heads between norm and rotation.
            [span] if !monitor.is_probed() => {
                let parts = self.parts.get(span.expert)?;
                let turn = |norm, x| pass.table.apply_normed(norm, None, x);
                (turn(&parts.q_norm, &q)?, turn(&parts.k_norm, &k)?)
            }
            // A block of latents between its markers.
            [before, block, after] if !monitor.is_probed() && before.expert == after.expert => {
                let (parts, others) = (self.parts.get(before.expert)?, self.parts.get(block.expert)?);
                let turn =
                    |norm, other, x| pass.table.apply_normed(norm, Some((other, block.rows.clone())), x);
                (turn(&parts.q_norm, &others.q_norm, &q)?, turn(&parts.k_norm, &others.k_norm, &k)?)
            }
            _ => {
                let q = self.parts.by_span(&q, spans, |p, x| p.q_norm.forward(x))?;
                let k = self.parts.by_span(&k, spans, |p, x| p.k_norm.forward(x))?;
                monitor.show(format_args!("layers.{index}.self_attn.q_norm"), &q)?;
                monitor.show(format_args!("layers.{index}.self_attn.k_norm"), &k)?;
                // Who looks may keep what it saw, and heads turn where they lie.
                let (q, k) =
                    if monitor.is_probed() { (q.force_contiguous()?, k.force_contiguous()?) } else { (q, k) };
                (pass.table.apply(q)?, pass.table.apply(k)?)
            }
        };
        let o = pass.attend(index, &q, &k, &v, self.activations)?;
        monitor.show(format_args!("layers.{index}.self_attn.heads"), &o)?;
        Ok(o)
    }
}
