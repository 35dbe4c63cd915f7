//! One block of the vision transformer.

use candle_core::Tensor;
use lance_mm_tensor::{ActivationPrecision, Block, Linear, Result, RmsNorm, RotaryTable, Weights, attention};

use super::EPS;
use crate::config::VitConfig;
use crate::monitor::Monitor;

#[derive(Clone)]
pub(super) struct VitBlock {
    norm1: RmsNorm,
    qkv: Linear,
    proj: Linear,
    norm2: RmsNorm,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
    num_heads: usize,
    activations: ActivationPrecision,
}

impl VitBlock {
    pub(super) fn load(config: &VitConfig, weights: &Weights) -> Result<Self> {
        let (d, f) = (config.hidden_size, config.intermediate_size);
        let (attn, mlp) = (weights.pp("attn"), weights.pp("mlp"));
        Ok(Self {
            norm1: RmsNorm::load(&weights.pp("norm1"), d, EPS)?,
            qkv: Linear::load_biased(&attn.pp("qkv"), d, 3 * d)?,
            proj: Linear::load_biased(&attn.pp("proj"), d, d)?,
            norm2: RmsNorm::load(&weights.pp("norm2"), d, EPS)?,
            gate_proj: Linear::load_biased(&mlp.pp("gate_proj"), d, f)?,
            up_proj: Linear::load_biased(&mlp.pp("up_proj"), d, f)?,
            down_proj: Linear::load_biased(&mlp.pp("down_proj"), f, d)?,
            num_heads: config.num_heads,
            activations: weights.activation_precision(),
        })
    }

    pub(super) fn linears(&self) -> [&Linear; 5] {
        [&self.qkv, &self.proj, &self.gate_proj, &self.up_proj, &self.down_proj]
    }

    /// `(N, D)` in window order to the same.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        table: &RotaryTable,
        blocks: &[Block],
        index: usize,
        monitor: &mut Monitor<'_>,
    ) -> Result<Tensor> {
        let a = self.norm1.forward(x)?;
        monitor.show(format_args!("blocks.{index}.norm1"), &a)?;
        let a = self.attention(&a, table, blocks)?;
        let x = if monitor.is_probed() {
            let a = self.proj.forward(&a)?;
            monitor.show(format_args!("blocks.{index}.attn"), &a)?;
            (x + a)?
        } else {
            // No probe attached: fuse the residual add into the matmul.
            self.proj.forward_residual(x, &a)?
        };
        let m = self.norm2.forward(&x)?;
        let m = Linear::forward_swiglu(&self.gate_proj, &self.up_proj, &m)?;
        if !monitor.is_probed() {
            return self.down_proj.forward_residual(&x, &m);
        }
        let m = self.down_proj.forward(&m)?;
        monitor.show(format_args!("blocks.{index}.mlp"), &m)?;
        let x = (x + m)?;
        monitor.show(format_args!("blocks.{index}"), &x)?;
        Ok(x)
    }

    /// Outputs of the heads, side by side.
    fn attention(&self, x: &Tensor, table: &RotaryTable, blocks: &[Block]) -> Result<Tensor> {
        let (n, d) = x.dims2()?;
        let h = self.num_heads;
        // (N, 3·D) -> (N, 3·H, D/H); rows of the weight are q of all heads, then k, then v.
        let qkv = self.qkv.forward(x)?.reshape((n, 3 * h, d / h))?;
        let qk = table.apply(qkv.narrow(1, 0, 2 * h)?)?;
        let [q, k] = [0, h].map(|first| qk.narrow(1, first, h)?.transpose(0, 1));
        let (q, k) = (q?, k?);
        let v = qkv.narrow(1, 2 * h, h)?.transpose(0, 1)?;
        attention(&q, &k, &v, blocks, self.activations)
    }
}
