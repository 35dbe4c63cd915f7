//! Settings of the rounding of one matrix.

use serde::{Deserialize, Serialize};

/// Method of rounding a weight.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RoundingMethod {
    /// Round to nearest, as `mx.quantize` does.
    Plain,
    /// Clipped ranges, scale and bias refitted to the codes.
    ClipRefit,
    /// Rounding with error feedback.
    Feedback,
    /// Rounding with error feedback and searched ranges, then descent, with this damping.
    FeedbackDescent(f64),
}

/// Steps of [`quantize_linear`](crate::quantize_linear); every one can be left out.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RoundingOptions {
    /// Whether the range of a group may be clipped.
    pub clip: bool,
    /// Whether scale and bias are refitted to the codes.
    pub refit: bool,
    /// Widest `K` for which rounding with error feedback (GPTQ) is a candidate; 0 leaves it out.
    pub feedback: usize,
    /// Sweeps over every group in the coordinate descent that follows clipping and feedback; 0 leaves it out.
    pub passes: usize,
    /// Dampings of the Hessian for feedback with descent, in means of its diagonal: one candidate each.
    pub dampings: Vec<f64>,
}

impl Default for RoundingOptions {
    fn default() -> Self {
        Self { clip: true, refit: true, feedback: usize::MAX, passes: 4, dampings: vec![0.01, 0.1, 1.0] }
    }
}

impl RoundingOptions {
    /// Round to nearest alone, as `mx.quantize` does.
    pub fn plain() -> Self {
        Self { clip: false, refit: false, feedback: 0, passes: 0, dampings: Vec::new() }
    }

    /// Candidate methods for a weight of width `cols`, in the order of preference between equals.
    pub fn methods(&self, cols: usize, has_inputs: bool) -> Vec<RoundingMethod> {
        let mut methods = vec![RoundingMethod::Plain];
        if self.clip || self.refit {
            methods.push(RoundingMethod::ClipRefit);
        }
        if has_inputs && cols <= self.feedback {
            methods.push(RoundingMethod::Feedback);
            if self.passes > 0 {
                methods.extend(self.dampings.iter().map(|d| RoundingMethod::FeedbackDescent(*d)));
            }
        }
        methods
    }
}
