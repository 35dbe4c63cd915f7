//! Settings of a quantization.

use lance_mm_quant::RoundingOptions;
use lance_mm_tensor::StopFlag;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::generation_requests::GenerationRequests;
use crate::module_schemes::ModuleSchemes;
use crate::recipe::Recipe;

/// Treatment of the GEN expert, which generates images.
#[derive(Clone, Debug, Default)]
pub enum GenExpert {
    /// Quantized by its weights alone, without input activations.
    #[default]
    Fit,
    /// Kept in bf16.
    Keep,
    /// Left out, with the VAE: the checkpoint answers and does not generate.
    Drop,
    /// Fitted to its input activations while it generates these images.
    Calibrate(GenerationRequests),
}

impl GenExpert {
    pub(crate) fn is_quantized(&self) -> bool {
        matches!(self, Self::Fit | Self::Calibrate(_))
    }

    pub(crate) fn is_dropped(&self) -> bool {
        matches!(self, Self::Drop)
    }

    pub(crate) fn requests(&self) -> Option<&GenerationRequests> {
        match self {
            Self::Calibrate(requests) => Some(requests),
            _ => None,
        }
    }

    /// Its name in reports.
    fn name(&self) -> &'static str {
        match self {
            Self::Fit => "fit",
            Self::Keep => "keep",
            Self::Drop => "drop",
            Self::Calibrate(_) => "calibrate",
        }
    }
}

/// Resolution at which the sensitivity of answers to rounding errors is measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sensitivity {
    /// None measured: every weight counts the same.
    None,
    /// One layer rounded at a time.
    #[default]
    Layer,
    /// One matrix rounded at a time: seven times as long.
    Linear,
}

/// Scaling of the channels of fusion groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scaling {
    /// No scales.
    Off,
    /// The search of lance-mlx: norm groups only, synthetic inputs, no identity, weights rounded to bf16 in between.
    LanceMlx,
    /// The [`search`](lance_mm_quant::search) on recorded input activations, with the groups of [`RecipeSteps::v_o`] and
    /// [`RecipeSteps::up_down`] included.
    Searched,
}

/// Steps of a recipe; every one can be left out. The default is [`Recipe::Awq`]'s.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecipeSteps {
    /// Scales of fusion groups.
    pub scaling: Scaling,
    /// Whether v to o is a fusion group. Not exact when one expert stays in bf16: see
    /// [`quantize_layer`](crate::quantize_layer).
    pub v_o: bool,
    /// Whether up to down is a fusion group.
    pub up_down: bool,
    /// Whether weights are fitted to their inputs in the model quantized so far, so that they compensate for the errors
    /// of earlier layers. Whoever calls [`LayerQuantizer`](crate::LayerQuantizer) records these.
    pub compensate: bool,
    /// Rounding of one matrix.
    #[serde(flatten)]
    pub rounding: RoundingOptions,
}

impl Default for RecipeSteps {
    fn default() -> Self {
        let rounding = RoundingOptions { feedback: 4096, ..RoundingOptions::default() };
        Self { scaling: Scaling::Searched, v_o: true, up_down: true, compensate: true, rounding }
    }
}

impl RecipeSteps {
    /// Plain rounding of the weights as they are.
    pub fn rtn() -> Self {
        Self {
            scaling: Scaling::Off,
            v_o: false,
            up_down: false,
            compensate: false,
            rounding: RoundingOptions::plain(),
        }
    }

    /// The recipe of the published checkpoint.
    pub fn lance_mlx() -> Self {
        Self { scaling: Scaling::LanceMlx, ..Self::rtn() }
    }
}

/// Settings of [`quantize`](crate::quantize).
#[derive(Clone, Debug)]
pub struct QuantizeOptions {
    /// Method.
    pub recipe: Recipe,
    /// Steps of [`Recipe::Awq`] and [`Recipe::AwqMixed`]; the other recipes have their own.
    pub steps: RecipeSteps,
    /// Bits of the linear layers: 2, 3, 4, 5, 6 or 8. With [`Recipe::AwqMixed`] those of the GEN expert, and those at
    /// which sensitivities are measured.
    pub bits: usize,
    /// Neighbouring weights of a row that share a scale: 32, 64 or 128.
    pub group_size: usize,
    /// Embedding and output head in the same bits as the linear layers, so that lance-mlx loads the checkpoint.
    pub uniform_bits: bool,
    /// Size that [`Recipe::AwqMixed`] divides among the matrices: bits for each weight of the model file, scales
    /// and norms included; above 0 and below 16.
    pub bits_per_weight: f64,
    /// Resolution at which [`Recipe::AwqMixed`] measures sensitivities.
    pub sensitivity: Sensitivity,
    /// Treatment of the GEN expert.
    pub gen_expert: GenExpert,
    /// Bits of the vision encoder, 8 or 4 in groups of 64; `None` keeps it as it is.
    pub vit_bits: Option<usize>,
    /// Tokens whose input activations are recorded for every linear layer; a quarter of them is held back.
    pub calib_tokens: usize,
    /// Seed of the choice of these tokens.
    pub seed: u64,
    /// Ends the run between two samples or layers with [`Error::Stopped`].
    pub stop: StopFlag,
}

impl Default for QuantizeOptions {
    fn default() -> Self {
        Self {
            recipe: Recipe::default(),
            steps: RecipeSteps::default(),
            bits: 4,
            group_size: 128,
            uniform_bits: false,
            bits_per_weight: 4.75,
            sensitivity: Sensitivity::default(),
            gen_expert: GenExpert::default(),
            vit_bits: None,
            calib_tokens: 1024,
            seed: 0,
            stop: StopFlag::new(),
        }
    }
}

impl QuantizeOptions {
    /// Checks what needs neither model nor dataset.
    ///
    /// # Errors
    /// A value out of range, or options that contradict each other.
    pub fn validate(&self) -> Result<()> {
        self.schemes()?;
        if self.gen_expert.requests().is_some() && !self.recipe.is_calibrated() {
            return Err(Error::option("gen_expert", "no requests for a recipe without calibration", "some"));
        }
        if self.recipe == Recipe::AwqMixed && self.uniform_bits {
            let expected = "false with the mixed recipe, whose matrices differ in bits";
            return Err(Error::option("uniform_bits", expected, true));
        }
        let bits = self.bits_per_weight;
        if !(bits > 0.0 && bits < 16.0) {
            let expected = "a number above 0 and below the 16 of bf16";
            return Err(Error::option("bits_per_weight", expected, bits));
        }
        Ok(())
    }

    /// Bits and group size by module, before a budget is divided.
    pub(crate) fn schemes(&self) -> Result<ModuleSchemes> {
        ModuleSchemes::new(self.recipe, self.bits, self.group_size, self.uniform_bits, self.vit_bits)
    }

    /// The steps of the recipe.
    pub(crate) fn steps(&self) -> RecipeSteps {
        match self.recipe {
            Recipe::Rtn => RecipeSteps::rtn(),
            Recipe::LanceMlx => RecipeSteps::lance_mlx(),
            // Values of one expert are read by queries of the other: the scale needs both in the same form.
            Recipe::Awq | Recipe::AwqMixed => {
                let v_o = self.steps.v_o && !matches!(self.gen_expert, GenExpert::Keep);
                RecipeSteps { v_o, ..self.steps.clone() }
            }
        }
    }

    /// The budget, of the recipe that has one.
    pub(crate) fn budget(&self) -> Option<f64> {
        (self.recipe == Recipe::AwqMixed).then_some(self.bits_per_weight)
    }

    /// Everything that decides the result, for a resumed run to compare.
    pub(crate) fn plan(&self, source: &str, samples: &[String], requests: &[String]) -> Value {
        let sensitivity = (self.recipe == Recipe::AwqMixed).then_some(self.sensitivity);
        json!({
            "source": source, "recipe": self.steps(), "preset": self.recipe, "bits": self.bits,
            "group_size": self.group_size, "uniform": self.uniform_bits, "gen": self.gen_expert.name(),
            "vit": self.vit_bits, "bits_per_weight": self.budget().map(|bits| bits.to_string()),
            "sensitivity": sensitivity, "rows": self.calib_tokens, "seed": self.seed, "samples": samples,
            "drawings": requests, "version": env!("CARGO_PKG_VERSION"),
        })
    }
}
