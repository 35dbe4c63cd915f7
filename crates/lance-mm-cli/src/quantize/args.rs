//! Arguments of `lance-mm quantize`.

use std::ffi::OsStr;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use lance_mm_calibrate::{GenExpert, GenerationRequests, QuantizeOptions, Recipe, RecipeSteps, Scaling};

const EXAMPLES: &str = "\
Examples:
  lance-mm quantize ./Lance-3B-bf16 ./Lance-3B-int4 --calib questions.jsonl
  lance-mm quantize --recipe rtn --gen keep ./Lance-3B-bf16 ./Lance-3B-rtn
  lance-mm quantize --bits 3 --calib bundled tests/fixtures/nano-bf16 ./nano-3bit";

const LONG_EXAMPLES: &str = "\
Examples:
  lance-mm quantize ./Lance-3B-bf16 ./Lance-3B-int4 --calib questions.jsonl
  lance-mm quantize --recipe rtn --gen keep ./Lance-3B-bf16 ./Lance-3B-rtn
  lance-mm quantize --bits 3 --calib bundled tests/fixtures/nano-bf16 ./nano-3bit
  lance-mm quantize --recipe awq-mixed --bits-per-weight 4.5 --calib questions.jsonl DIR OUT
  lance-mm quantize --gen-calib images.jsonl --calib questions.jsonl DIR OUT

A line of --calib, where the model's own answer stands in for a missing one:
  {\"image\": \"a.png\", \"question\": \"What is this?\", \"answer\": \"A star\"}
A line of --gen-calib, optionally with size, resolution, steps and seed; an edit has an image:
  {\"prompt\": \"Make it winter\", \"image\": \"a.png\"}";

/// Quantize a checkpoint in the MLX layout.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = LONG_EXAMPLES)]
pub(crate) struct Args {
    /// Checkpoint to quantize: a folder, or ORG/NAME in the hub's cache.
    #[arg(value_name = "MODEL")]
    pub(super) model: String,
    /// Folder to write. A rerun of the same command resumes.
    #[arg(value_name = "OUT")]
    pub(super) out: PathBuf,
    /// Calibration set: questions about images (none for rtn).
    #[arg(long, value_name = "FILE|bundled")]
    pub(super) calib: Option<PathBuf>,
    /// Quantization method.
    #[arg(long, value_name = "NAME", default_value = "awq", value_parser = Renamed::<Method>::new(&RECIPES))]
    pub(super) recipe: Method,
    /// Bits of the linear layers: 2, 3, 4, 5, 6 or 8.
    #[arg(long, value_name = "N", default_value_t = 4)]
    bits: usize,
    /// Weights that share a scale: 32, 64 or 128.
    #[arg(long, value_name = "N", default_value_t = 128)]
    group_size: usize,
    /// Embedding and output head in --bits too, for lance-mlx.
    #[arg(long)]
    uniform_bits: bool,
    /// Average bits per weight, for awq-mixed [default: 4.75]
    #[arg(long, value_name = "F")]
    bits_per_weight: Option<f64>,
    /// GEN expert: round without calibration, keep in bf16, or drop.
    #[arg(long = "gen", value_name = "fit|keep|drop", default_value = "fit", hide_possible_values = true)]
    #[arg(value_parser = Renamed::<Gen>::new(&GENS))]
    gen_: Gen,
    /// Calibrate the GEN expert, on requests for images.
    #[arg(long, value_name = "FILE", conflicts_with = "gen_")]
    gen_calib: Option<PathBuf>,
    /// Bits of the vision encoder [default: not quantized]
    #[arg(long, alias = "vit", value_name = "8|4")]
    vit_bits: Option<usize>,
    /// GPTQ (rounding with error feedback) in awq and awq-mixed; auto: up to 4096 inputs wide [default: auto]
    #[arg(long, value_enum, value_name = "WHERE", help_heading = ADVANCED, hide_short_help = true)]
    gptq: Option<Gptq>,
    /// Steps of awq and awq-mixed to skip, for an ablation.
    #[arg(long, value_enum, value_name = "STEP", value_delimiter = ',')]
    #[arg(help_heading = ADVANCED, hide_short_help = true)]
    without: Vec<Step>,
    /// Granularity at which awq-mixed measures sensitivity to rounding [default: layer]
    #[arg(long, value_enum, value_name = "UNIT", help_heading = ADVANCED, hide_short_help = true)]
    sensitivity: Option<Sensitivity>,
    /// Calibration tokens recorded for each linear layer, a quarter held out [default: 1024]
    #[arg(long, alias = "rows", value_name = "N", help_heading = ADVANCED, hide_short_help = true)]
    calib_tokens: Option<usize>,
    /// Seed of the choice of calibration tokens [default: 0]
    #[arg(long, value_name = "N", help_heading = ADVANCED, hide_short_help = true)]
    seed: Option<u64>,
    /// No progress on standard error.
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Former name of --uniform-bits.
    #[arg(long, hide = true)]
    size_like_seed: bool,
}

/// Heading of the options that `-h` hides.
const ADVANCED: &str = "Advanced";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Method {
    /// AWQ on recorded activations: scales, clipping, GPTQ; embedding and output head in more bits.
    Awq,
    /// awq with bits and group size of every matrix by its sensitivity, within --bits-per-weight.
    AwqMixed,
    /// Recipe of the published checkpoint (xocialize/lance-mlx).
    LanceMlx,
    /// Round to nearest; no calibration.
    Rtn,
}

/// Former names of recipes.
const RECIPES: [(&str, &str); 3] = [
    ("vqa-int4", "expected awq, found its former name"),
    ("vqa-mixed", "expected awq-mixed, found its former name"),
    ("seed", "expected lance-mlx, found its former name"),
];

impl Method {
    fn recipe(self) -> Recipe {
        match self {
            Self::Awq => Recipe::Awq,
            Self::AwqMixed => Recipe::AwqMixed,
            Self::LanceMlx => Recipe::LanceMlx,
            Self::Rtn => Recipe::Rtn,
        }
    }

    /// Its name on the command line.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Gen {
    /// Quantized without input activations.
    Fit,
    /// Kept in bf16.
    Keep,
    /// Left out.
    Drop,
}

/// Former values of `--gen`.
const GENS: [(&str, &str); 1] = [("calibrate", "expected --gen-calib FILE instead")];

/// Values of an enum; former names are refused with a message.
#[derive(Clone)]
struct Renamed<T> {
    former: &'static [(&'static str, &'static str)],
    values: std::marker::PhantomData<T>,
}

impl<T> Renamed<T> {
    fn new(former: &'static [(&'static str, &'static str)]) -> Self {
        Self { former, values: std::marker::PhantomData }
    }
}

impl<T: ValueEnum + Clone + Send + Sync + 'static> TypedValueParser for Renamed<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &clap::Command,
        arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        let Some((name, message)) = self.former.iter().find(|(name, _)| value == *name) else {
            return EnumValueParser::new().parse_ref(command, arg, value);
        };
        let arg = arg.and_then(clap::Arg::get_long).unwrap_or_default();
        Err(command.clone().error(ErrorKind::InvalidValue, format!("--{arg} {name}: {message}")))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let values = T::value_variants().iter();
        Some(Box::new(values.filter_map(ValueEnum::to_possible_value)))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Gptq {
    /// Linear layers of up to 4096 inputs.
    Auto,
    /// Every linear layer.
    All,
    /// None.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    /// Scale search (AWQ).
    Scaling,
    /// The scale from v to o.
    #[value(name = "v-o")]
    VO,
    /// The scale from up to down.
    UpDown,
    /// Clipping of group ranges.
    Clip,
    /// Least-squares refit of scales and biases.
    Refit,
    /// Coordinate descent on codes after GPTQ.
    Descent,
    /// Fitting weights to the activations of the quantized model.
    Compensation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sensitivity {
    /// Not measured: every weight counts the same.
    None,
    /// One layer at a time.
    Layer,
    /// One matrix at a time, seven times as long.
    Linear,
}

impl Args {
    /// The library's options, checked as far as that needs neither model nor questions.
    pub(super) fn options(&self) -> Result<QuantizeOptions> {
        self.check()?;
        let defaults = QuantizeOptions::default();
        let gen_expert = match (&self.gen_calib, self.gen_) {
            (Some(file), _) => GenExpert::Calibrate(GenerationRequests::read(file)?),
            (None, Gen::Fit) => GenExpert::Fit,
            (None, Gen::Keep) => GenExpert::Keep,
            (None, Gen::Drop) => GenExpert::Drop,
        };
        let options = QuantizeOptions {
            recipe: self.recipe.recipe(),
            steps: self.steps(),
            bits: self.bits,
            group_size: self.group_size,
            uniform_bits: self.uniform_bits,
            bits_per_weight: self.bits_per_weight.unwrap_or(defaults.bits_per_weight),
            sensitivity: match self.sensitivity.unwrap_or(Sensitivity::Layer) {
                Sensitivity::None => lance_mm_calibrate::Sensitivity::None,
                Sensitivity::Layer => lance_mm_calibrate::Sensitivity::Layer,
                Sensitivity::Linear => lance_mm_calibrate::Sensitivity::Linear,
            },
            gen_expert,
            vit_bits: self.vit_bits,
            calib_tokens: self.calib_tokens.unwrap_or(defaults.calib_tokens),
            seed: self.seed.unwrap_or(defaults.seed),
            stop: defaults.stop,
        };
        options.validate()?;
        Ok(options)
    }

    fn steps(&self) -> RecipeSteps {
        let mut steps = RecipeSteps::default();
        match self.gptq.unwrap_or(Gptq::Auto) {
            Gptq::Auto => {}
            Gptq::All => steps.rounding.feedback = usize::MAX,
            Gptq::Off => steps.rounding.feedback = 0,
        }
        for step in &self.without {
            match step {
                Step::Scaling => steps.scaling = Scaling::Off,
                Step::VO => steps.v_o = false,
                Step::UpDown => steps.up_down = false,
                Step::Clip => steps.rounding.clip = false,
                Step::Refit => steps.rounding.refit = false,
                Step::Descent => steps.rounding.passes = 0,
                Step::Compensation => steps.compensate = false,
            }
        }
        steps
    }

    /// Refuses former names, and options that the recipe ignores.
    fn check(&self) -> Result<()> {
        if self.size_like_seed {
            bail!("--size-like-seed: expected --uniform-bits, found its former name");
        }
        let is_mixed = self.recipe == Method::AwqMixed;
        let is_awq = is_mixed || self.recipe == Method::Awq;
        let is_calibrated = self.recipe.recipe().is_calibrated();
        let (mixed, awq, calibrated) =
            ("--recipe awq-mixed", "--recipe awq or awq-mixed", "a calibrated recipe");
        for (name, is_given, is_heard, expected) in [
            ("--gptq", self.gptq.is_some(), is_awq, awq),
            ("--without", !self.without.is_empty(), is_awq, awq),
            ("--bits-per-weight", self.bits_per_weight.is_some(), is_mixed, mixed),
            ("--sensitivity", self.sensitivity.is_some(), is_mixed, mixed),
            ("--calib", self.calib.is_some(), is_calibrated, calibrated),
            ("--gen-calib", self.gen_calib.is_some(), is_calibrated, calibrated),
            ("--calib-tokens", self.calib_tokens.is_some(), is_calibrated, calibrated),
            ("--seed", self.seed.is_some(), is_calibrated, calibrated),
        ] {
            if is_given && !is_heard {
                bail!("{name}: expected with {expected} only, found --recipe {}", self.recipe.name());
            }
        }
        Ok(())
    }
}
