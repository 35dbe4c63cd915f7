//! Arguments of `lance-mm quantize`.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::ValueEnum;
use lance_mm::quant::Scaling;
use lance_mm_calibrate::{Drawings, GenExpert, QuantizeOptions, Recipe};

const EXAMPLES: &str = "\
Examples:
  lance-mm quantize ./Lance-3B-bf16 ./Lance-3B-mine --calib questions.jsonl
  lance-mm quantize --recipe rtn --gen keep ./Lance-3B-bf16 ./Lance-3B-plain
  lance-mm quantize --bits 3 --calib bundled tests/fixtures/nano-bf16 ./nano-3bit
  lance-mm quantize --recipe vqa-mixed --bits-per-weight 4.5 --calib questions.jsonl ./Lance-3B-bf16 ./Lance-3B-mixed
  lance-mm quantize --gen calibrate drawings.jsonl --calib questions.jsonl ./Lance-3B-bf16 ./Lance-3B-mine

The calibration file has one JSON object a line: {\"image\": \"a.png\", \"question\": \"What?\", \"answer\": \"A star\"};
without an answer the model's own is taken. Requests for pictures are {\"prompt\": \"A red fox\"}, with
\"image\": \"a.png\" for an edit, and where wanted size, resolution, steps and seed. An interrupted run goes on with the same command.";

/// Quantize a checkpoint in the MLX layout.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The checkpoint: a folder, or org/name in the hub's cache.
    #[arg(value_name = "MODEL")]
    pub(super) model: String,
    /// The folder to write.
    #[arg(value_name = "OUT")]
    pub(super) out: PathBuf,
    /// How weights are rounded.
    #[arg(long, value_enum, default_value = "vqa-int4")]
    pub(super) recipe: Preset,
    /// Bits of the linear layers: 2, 3, 4, 5, 6 or 8. With vqa-mixed those of the GEN expert, and those at
    /// which the others are tried out.
    #[arg(long, value_name = "N", default_value_t = 4)]
    bits: usize,
    /// Neighbouring weights that share a scale: 32, 64 or 128.
    #[arg(long, value_name = "N", default_value_t = 128)]
    group_size: usize,
    /// The same bits for embedding and output head too, as the published checkpoint: lance-mlx loads it.
    #[arg(long)]
    size_like_seed: bool,
    /// Size that vqa-mixed divides among the matrices: bits for each weight of the model file, scales and
    /// norms included. [default: 4.75]
    #[arg(long, value_name = "F")]
    bits_per_weight: Option<f64>,
    /// How vqa-mixed measures what answers mind. [default: layer]
    #[arg(long, value_enum, value_name = "WHAT")]
    sensitivity: Option<Sensitivity>,
    /// The GEN expert: quantized without inputs (fit), kept in bf16 (keep), left out (drop), or fitted to what it
    /// reads while it draws the requests of a file (calibrate FILE).
    #[arg(long = "gen", value_name = "fit|keep|drop|calibrate FILE", default_value = "fit")]
    #[arg(value_parser = gen_setting)]
    gen_: GenSetting,
    /// Bits of the vision transformer, in groups of 64. [default: kept in bf16]
    #[arg(long, alias = "vit", value_name = "8|4")]
    vit_bits: Option<usize>,
    /// Rounding with error feedback as a candidate of vqa-int4 and vqa-mixed. [default: auto]
    #[arg(long, value_enum, value_name = "WHERE")]
    gptq: Option<Gptq>,
    /// Steps of vqa-int4 and vqa-mixed to leave out, to see what each brings.
    #[arg(long, value_enum, value_name = "STEP", value_delimiter = ',')]
    without: Vec<Step>,
    /// Questions about pictures to fit to, with every recipe but rtn; `bundled`: the drawn ones that the nano
    /// model knows.
    #[arg(long, value_name = "FILE.jsonl|bundled")]
    pub(super) calib: Option<PathBuf>,
    /// Recorded inputs of every linear layer; a quarter of them is held back. [default: 1024]
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Seed of the choice of inputs. [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// No progress on standard error.
    #[arg(short, long)]
    pub(super) quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Preset {
    /// Plain rounding, no calibration.
    Rtn,
    /// As the published checkpoint was made, with the inputs of the questions at hand.
    Seed,
    /// Scales, clipping, refit and error feedback on recorded inputs; embedding and head wider.
    VqaInt4,
    /// The same, bits and groups of every matrix by what answers mind, within --bits-per-weight.
    VqaMixed,
}

impl Preset {
    /// What it is called on the command line.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Gen {
    /// Quantized without inputs.
    Fit,
    /// Kept in bf16.
    Keep,
    /// Left out.
    Drop,
    /// Fitted to what it reads while it draws.
    Calibrate,
}

/// The argument of `--gen`.
#[derive(Clone, Debug)]
struct GenSetting {
    gen_: Gen,
    /// Requests for pictures, to calibrate with.
    drawings: Option<PathBuf>,
}

/// `fit`, `keep`, `drop` or `calibrate=FILE`, which is what `calibrate FILE` is [joined] to.
fn gen_setting(text: &str) -> Result<GenSetting, String> {
    let (name, file) = match text.split_once('=') {
        Some((name, file)) => (name, Some(PathBuf::from(file))),
        None => (text, None),
    };
    match (Gen::from_str(name, false), file) {
        (Ok(Gen::Calibrate), None) => Err("expected calibrate FILE, a file of requests for pictures".into()),
        (Ok(gen_), drawings) if drawings.is_none() || gen_ == Gen::Calibrate => {
            Ok(GenSetting { gen_, drawings })
        }
        _ => Err("expected fit, keep, drop or calibrate FILE".into()),
    }
}

/// Arguments with `--gen calibrate FILE` as one value: a second value of an option that may have one or two
/// would be taken from what follows.
pub(crate) fn joined(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut out: Vec<OsString> = Vec::new();
    for arg in args {
        let awaits_file = match out.as_slice() {
            [_, command, .., name, value] => command == "quantize" && name == "--gen" && value == "calibrate",
            _ => false,
        };
        match out.last_mut().filter(|last| awaits_file || *last == "--gen=calibrate") {
            Some(last) => last.extend([OsStr::new("="), &arg]),
            None => out.push(arg),
        }
    }
    out
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Gptq {
    /// Where inputs are at most 4096 wide.
    Auto,
    /// Everywhere.
    All,
    /// Nowhere.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Step {
    Scaling,
    #[value(name = "v-o")]
    VO,
    UpDown,
    Clip,
    Refit,
    Descent,
    /// Fitting weights to what they read in the quantized model.
    Compensation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sensitivity {
    /// Not at all: every weight counts the same.
    None,
    /// By rounding one layer at a time.
    Layer,
    /// By rounding one matrix at a time.
    Linear,
}

impl Args {
    /// The library's options, checked as far as that needs neither model nor questions.
    pub(super) fn options(&self) -> Result<QuantizeOptions> {
        self.check()?;
        let defaults = QuantizeOptions::default();
        let gen_expert = match (self.gen_.gen_, &self.gen_.drawings) {
            // Checked before the file is read.
            (Gen::Calibrate, _) if self.recipe == Preset::Rtn => {
                bail!("--gen calibrate: expected a recipe that is fitted to inputs, found rtn")
            }
            (Gen::Calibrate, Some(file)) => GenExpert::Calibrate(Drawings::read(file)?),
            (Gen::Fit | Gen::Calibrate, _) => GenExpert::Fit,
            (Gen::Keep, _) => GenExpert::Keep,
            (Gen::Drop, _) => GenExpert::Drop,
        };
        let options = QuantizeOptions {
            recipe: match self.recipe {
                Preset::Rtn => Recipe::Rtn,
                Preset::Seed => Recipe::LanceMlx,
                Preset::VqaInt4 => Recipe::Awq,
                Preset::VqaMixed => Recipe::AwqMixed,
            },
            steps: self.steps(defaults.steps),
            bits: self.bits,
            group_size: self.group_size,
            uniform_bits: self.size_like_seed,
            bits_per_weight: self.bits_per_weight.unwrap_or(defaults.bits_per_weight),
            sensitivity: match self.sensitivity.unwrap_or(Sensitivity::Layer) {
                Sensitivity::None => lance_mm_calibrate::Sensitivity::None,
                Sensitivity::Layer => lance_mm_calibrate::Sensitivity::Layer,
                Sensitivity::Linear => lance_mm_calibrate::Sensitivity::Linear,
            },
            gen_expert,
            vit_bits: self.vit_bits,
            calib_tokens: self.rows.unwrap_or(defaults.calib_tokens),
            seed: self.seed.unwrap_or(defaults.seed),
            stop: defaults.stop,
        };
        options.validate()?;
        Ok(options)
    }

    fn steps(&self, defaults: lance_mm::quant::Recipe) -> lance_mm::quant::Recipe {
        let mut steps = defaults;
        match self.gptq.unwrap_or(Gptq::Auto) {
            Gptq::Auto => {}
            Gptq::All => steps.feedback = usize::MAX,
            Gptq::Off => steps.feedback = 0,
        }
        for step in &self.without {
            match step {
                Step::Scaling => steps.scaling = Scaling::Off,
                Step::VO => steps.v_o = false,
                Step::UpDown => steps.up_down = false,
                Step::Clip => steps.clip = false,
                Step::Refit => steps.refit = false,
                Step::Descent => steps.passes = 0,
                Step::Compensation => steps.compensate = false,
            }
        }
        steps
    }

    /// Refuses options that say nothing to the recipe.
    fn check(&self) -> Result<()> {
        let is_ours = matches!(self.recipe, Preset::VqaInt4 | Preset::VqaMixed);
        let is_fitted = self.recipe != Preset::Rtn;
        let ours = "--recipe vqa-int4 or vqa-mixed";
        let fitted = "a recipe that is fitted to inputs";
        for (name, is_given, is_heard, expected) in [
            ("--gptq", self.gptq.is_some(), is_ours, ours),
            ("--without", !self.without.is_empty(), is_ours, ours),
            ("--calib", self.calib.is_some(), is_fitted, fitted),
            ("--rows", self.rows.is_some(), is_fitted, fitted),
            ("--seed", self.seed.is_some(), is_fitted, fitted),
        ] {
            if is_given && !is_heard {
                bail!("{name}: expected with {expected} only, found --recipe {}", self.recipe.name());
            }
        }
        let is_mixed = self.recipe == Preset::VqaMixed;
        if !is_mixed && (self.bits_per_weight.is_some() || self.sensitivity.is_some()) {
            bail!("--bits-per-weight and --sensitivity: expected with --recipe vqa-mixed only");
        }
        Ok(())
    }
}
