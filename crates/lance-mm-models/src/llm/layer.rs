//! One layer: attention and a gated MLP, each with the weights of the token's expert.

use candle_core::Tensor;
use lance_mm_tensor::{Linear, Result, RmsNorm, Weights};

use super::attention::Attention;
use super::pass::Pass;
use super::{Experts, PerExpert};
use crate::config::Config;
use crate::monitor::Monitor;
use crate::sequence::Expert;

#[derive(Clone)]
pub(super) struct Layer {
    input_layernorm: PerExpert<RmsNorm>,
    self_attn: Attention,
    post_attention_layernorm: PerExpert<RmsNorm>,
    mlp: PerExpert<Mlp>,
}

impl Layer {
    /// Loads all that is not shared with `base`.
    pub(super) fn load(
        base: Option<&Self>,
        config: &Config,
        weights: &Weights,
        experts: Experts,
    ) -> Result<Self> {
        let norm = |base, name: &'static str| {
            PerExpert::load(base, experts, move |expert| {
                let weights = weights.pp(format!("{name}{}", expert.suffix()));
                RmsNorm::load(&weights, config.hidden_size, config.rms_norm_eps as f32)
            })
        };
        Ok(Self {
            input_layernorm: norm(base.map(|base| &base.input_layernorm), "input_layernorm")?,
            self_attn: Attention::load(
                base.map(|base| &base.self_attn),
                config,
                &weights.pp("self_attn"),
                experts,
            )?,
            post_attention_layernorm: norm(
                base.map(|base| &base.post_attention_layernorm),
                "post_attention_layernorm",
            )?,
            mlp: PerExpert::load(base.map(|base| &base.mlp), experts, |expert| {
                Mlp::load(config, weights, expert)
            })?,
        })
    }

    /// The UND expert's linear layer of this path within the layer.
    pub(super) fn linear(&self, path: &str) -> Option<&Linear> {
        let mlp = &self.mlp.und;
        match path.split_once('.')? {
            ("self_attn", name) => self.self_attn.linear(name),
            ("mlp", "gate_proj") => Some(&mlp.gate_proj),
            ("mlp", "up_proj") => Some(&mlp.up_proj),
            ("mlp", "down_proj") => Some(&mlp.down_proj),
            _ => None,
        }
    }

    /// The UND expert's linear layers.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        let Mlp { gate_proj, up_proj, down_proj } = &self.mlp.und;
        self.self_attn.linears().into_iter().chain([gate_proj, up_proj, down_proj])
    }

    /// The UND expert's norm of the residual stream of this name.
    pub(super) fn norm(&self, name: &str) -> Option<&RmsNorm> {
        match name {
            "input_layernorm" => Some(&self.input_layernorm.und),
            "post_attention_layernorm" => Some(&self.post_attention_layernorm.und),
            _ => None,
        }
    }

    /// `(T, D)` to `(T, D)`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        pass: &mut Pass<'_, '_>,
        index: usize,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor> {
        let spans = pass.spans;
        let a = self.input_layernorm.by_span(x, spans, |norm, x| norm.forward(x))?;
        monitor.show(format_args!("layers.{index}.{}", LinearInput::Normed.name()), &a)?;
        let heads = self.self_attn.heads(&a, pass, index, monitor)?;
        let x = match spans {
            // No probe attached: fuse the residual add into `o_proj`.
            [span] if !monitor.is_probed() => self.self_attn.project_onto(x, &heads, span.expert)?,
            _ => {
                let a = self.self_attn.project(&heads, spans)?;
                monitor.show(format_args!("layers.{index}.self_attn"), &a)?;
                (x + a)?
            }
        };
        let m = self.post_attention_layernorm.by_span(&x, spans, |norm, x| norm.forward(x))?;
        monitor.show(format_args!("layers.{index}.{}", LinearInput::Attended.name()), &m)?;
        let m = self.mlp.by_span(&m, spans, Mlp::gated)?;
        monitor.show(format_args!("layers.{index}.{}", LinearInput::Gated.name()), &m)?;
        match spans {
            [span] if !monitor.is_probed() => self.mlp.get(span.expert)?.down_proj.forward_residual(&x, &m),
            _ => {
                let m = self.mlp.by_span(&m, spans, |mlp, x| mlp.down_proj.forward(x))?;
                monitor.show(format_args!("layers.{index}.mlp"), &m)?;
                let x = (x + m)?;
                monitor.show(format_args!("layers.{index}"), &x)?;
                Ok(x)
            }
        }
    }
}

/// Input activations of the linear layers of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinearInput {
    /// `input_layernorm`, `(n, D)`: q, k, v read it.
    Normed,
    /// `self_attn.heads`, `(n, H·D)`: o reads it.
    Heads,
    /// `post_attention_layernorm`, `(n, D)`: gate and up read it.
    Attended,
    /// `mlp.gated`, `(n, F)`: down reads it.
    Gated,
}

impl LinearInput {
    /// All four, in the order of the forward pass.
    pub const ALL: [Self; 4] = [Self::Normed, Self::Heads, Self::Attended, Self::Gated];

    /// Name under which a probe sees it, after `layers.N.`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Normed => "input_layernorm",
            Self::Heads => "self_attn.heads",
            Self::Attended => "post_attention_layernorm",
            Self::Gated => "mlp.gated",
        }
    }
}

impl Layer {
    /// An input of the tokens `rows`, all of one expert. Other tokens are run only as far as attention needs them.
    pub(super) fn input(
        &self,
        x: &Tensor,
        pass: &mut Pass<'_, '_>,
        index: usize,
        (rows, expert): (&[u32], Expert),
        input: LinearInput,
    ) -> Result<Tensor> {
        let rows = Tensor::new(rows, x.device())?;
        let residual = x.index_select(&rows, 0)?;
        if input == LinearInput::Normed {
            return self.input_layernorm.get(expert)?.forward(&residual);
        }
        let a = self.input_layernorm.by_span(x, pass.spans, |norm, x| norm.forward(x))?;
        let heads = self.self_attn.heads(&a, pass, index, &mut Monitor::default())?.index_select(&rows, 0)?;
        if input == LinearInput::Heads {
            return Ok(heads);
        }
        let x = self.self_attn.project_onto(&residual, &heads, expert)?;
        let m = self.post_attention_layernorm.get(expert)?.forward(&x)?;
        match input {
            LinearInput::Gated => self.mlp.get(expert)?.gated(&m),
            _ => Ok(m),
        }
    }
}

#[derive(Clone)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn load(config: &Config, weights: &Weights, expert: Expert) -> Result<Self> {
        let weights = weights.pp(format!("mlp{}", expert.suffix()));
        let (d, f) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            gate_proj: Linear::load(&weights.pp("gate_proj"), d, f)?,
            up_proj: Linear::load(&weights.pp("up_proj"), d, f)?,
            down_proj: Linear::load(&weights.pp("down_proj"), f, d)?,
        })
    }

    /// Input of `down_proj`.
    fn gated(&self, x: &Tensor) -> Result<Tensor> {
        Linear::forward_swiglu(&self.gate_proj, &self.up_proj, x)
    }
}
