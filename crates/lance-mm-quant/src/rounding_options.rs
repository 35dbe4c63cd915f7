//! What a quantization does, step by step; every step can be left out.

use serde::Serialize;

/// How the channels of fusion pairs are scaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// Not at all.
    Off,
    /// As the published checkpoint was made: norm pairs only, synthetic inputs, no identity, weights rounded
    /// to bf16 in between.
    Seed,
    /// By [`search`](crate::search) on recorded inputs, all pairs of [`Recipe::v_o`] and
    /// [`Recipe::up_down`] included.
    Searched,
}

/// The settings of a quantization. The default is our own recipe.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Recipe {
    /// Scales of fusion pairs.
    pub scaling: Scaling,
    /// Whether v to o is a pair. Not exact when one expert stays in bf16: see
    /// [`quantize_layer`](crate::quantize_layer).
    pub v_o: bool,
    /// Whether up to down is a pair.
    pub up_down: bool,
    /// Whether groups may be clipped.
    pub clip: bool,
    /// Whether scale and bias are refitted to the codes.
    pub refit: bool,
    /// Widest `K` for which rounding with error feedback (GPTQ) is a candidate; 0 leaves it out.
    pub feedback: usize,
    /// Whether weights are fitted to what they read in the model quantized so far, making good what earlier
    /// ones got wrong; whoever calls records that.
    pub compensate: bool,
    /// Turns of every group in the descent that follows clipping and feedback; 0 leaves it out.
    pub passes: usize,
    /// Dampings of the Hessian for feedback with descent, in means of its diagonal: one candidate each.
    pub dampings: Vec<f64>,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            scaling: Scaling::Searched,
            v_o: true,
            up_down: true,
            clip: true,
            refit: true,
            feedback: usize::MAX,
            compensate: true,
            passes: 4,
            dampings: vec![0.01, 0.1, 1.0],
        }
    }
}

impl Recipe {
    /// Plain rounding of the weights as they are.
    pub fn rtn() -> Self {
        Self {
            scaling: Scaling::Off,
            v_o: false,
            up_down: false,
            clip: false,
            refit: false,
            feedback: 0,
            compensate: false,
            passes: 0,
            dampings: Vec::new(),
        }
    }

    /// The recipe of the published checkpoint, with the inputs at hand.
    pub fn seed() -> Self {
        Self { scaling: Scaling::Seed, ..Self::rtn() }
    }
}
