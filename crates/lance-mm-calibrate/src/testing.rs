//! Inputs for tests.

use lance_mm_models::Expert;
use lance_mm_quant::Matrix;
use lance_mm_quant::testing::correlated;
use lance_mm_tensor::testing::seeded;

use crate::expert_weights::{ExpertWeights, Heads};
use crate::layer_quantizer::LayerActivations;

/// Heads of the layers below.
pub(crate) const HEADS: Heads = Heads { n_heads: 4, n_kv_heads: 2, head_dim: 16 };

/// A layer of width 64 with an MLP of 96; a few channels are large, as in real models.
pub(crate) fn expert_weights(expert: Expert, seed: u64) -> ExpertWeights {
    let (width, inner, kv) = (64, 96, 32);
    let matrix = |rows: usize, cols: usize, part: u64| {
        let mut values = seeded(rows * cols, seed * 100 + part);
        let size = seeded(cols, seed * 100 + part + 50);
        for row in values.chunks_exact_mut(cols) {
            row.iter_mut().zip(&size).for_each(|(v, s)| *v *= v.abs() * (1.5 * s).exp());
        }
        Matrix::new("w", values, cols).expect("finite values")
    };
    let norm = |part| seeded(width, seed * 100 + part).iter().map(|v| 1.0 + 0.5 * v).collect();
    ExpertWeights {
        expert,
        input_layernorm: norm(20),
        post_attention_layernorm: norm(21),
        v_bias: Some(seeded(kv, seed * 100 + 22)),
        linears: [
            matrix(width, width, 1),
            matrix(kv, width, 2),
            matrix(kv, width, 3),
            matrix(width, width, 4),
            matrix(inner, width, 5),
            matrix(inner, width, 6),
            matrix(width, inner, 7),
        ],
    }
}

/// Activations for [`expert_weights`].
pub(crate) fn layer_activations(seed: u64) -> LayerActivations {
    let rows = |cols, part| correlated(150, 50, cols, seed * 100 + part);
    LayerActivations { qkv: rows(64, 1), o: rows(64, 2), gate_up: rows(64, 3), down: rows(96, 4) }
}
