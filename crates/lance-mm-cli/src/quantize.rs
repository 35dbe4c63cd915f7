//! `lance-mm quantize`: a smaller checkpoint, fitted to what its inputs are.

mod capture;
mod config;
mod drawings;
mod judge;
mod layer;
mod output;
mod page;
mod report;
mod run;
mod samples;
mod scheme;
mod stored;
mod vit;
mod widths;
mod workdir;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use lance_mm::eval::Dataset;
use lance_mm::models::Experts;
use lance_mm::quant::{Expert, Recipe};
use lance_mm::{Checkpoint, Generation, Understanding};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::eval::data::bundled;
use crate::model;
use crate::output::{self as out, Hints};
use candle_core::Tensor;
use capture::Capture;
use drawings::Drawings;
use layer::Quantizing;
use report::Report;
use run::Run;
use samples::Samples;
use scheme::Schemes;
use widths::{Measuring, Sensitivity};
use workdir::WorkDir;

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
    model: String,
    /// The folder to write.
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// How weights are rounded.
    #[arg(long, value_enum, default_value = "vqa-int4")]
    recipe: Preset,
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
    #[arg(long, value_name = "8|4")]
    vit: Option<usize>,
    /// Rounding with error feedback as a candidate.
    #[arg(long, value_enum, value_name = "WHERE", default_value = "auto")]
    gptq: Gptq,
    /// Steps of the recipe to leave out, to see what each brings.
    #[arg(long, value_enum, value_name = "STEP", value_delimiter = ',')]
    without: Vec<Step>,
    /// Questions about pictures to fit to; `bundled`: the drawn ones that the nano model knows.
    #[arg(long, value_name = "FILE.jsonl|bundled")]
    calib: Option<PathBuf>,
    /// Recorded inputs of every linear layer; a quarter of them is held back.
    #[arg(long, value_name = "N", default_value_t = 1024)]
    rows: usize,
    /// Seed of the choice of inputs.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// No progress on standard error.
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Preset {
    /// Plain rounding, no calibration.
    Rtn,
    /// As the published checkpoint was made, with the inputs of the questions at hand.
    Seed,
    /// Scales, clipping, refit and error feedback on recorded inputs; embedding and head wider.
    VqaInt4,
    /// The same, bits and groups of every matrix by what answers mind, within --bits-per-weight.
    VqaMixed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
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

impl Gen {
    fn is_quantized(self) -> bool {
        matches!(self, Self::Fit | Self::Calibrate)
    }
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

impl Args {
    fn recipe(&self) -> Recipe {
        let mut recipe = match self.recipe {
            Preset::Rtn => return Recipe::rtn(),
            Preset::Seed => return Recipe::seed(),
            Preset::VqaInt4 | Preset::VqaMixed => Recipe::default(),
        };
        recipe.feedback = match self.gptq {
            Gptq::Auto => 4096,
            Gptq::All => usize::MAX,
            Gptq::Off => 0,
        };
        // Values of one expert are read by queries of the other: the scale needs both in the same form.
        recipe.v_o = self.gen_.gen_ != Gen::Keep;
        for step in &self.without {
            match step {
                Step::Scaling => recipe.scaling = lance_mm::quant::Scaling::Off,
                Step::VO => recipe.v_o = false,
                Step::UpDown => recipe.up_down = false,
                Step::Clip => recipe.clip = false,
                Step::Refit => recipe.refit = false,
                Step::Descent => recipe.passes = 0,
                Step::Compensation => recipe.compensate = false,
            }
        }
        recipe
    }

    /// The budget, of the recipe that has one.
    fn bits_per_weight(&self) -> Option<f64> {
        (self.recipe == Preset::VqaMixed).then(|| self.bits_per_weight.unwrap_or(4.75))
    }

    /// Refuses options that say nothing to the recipe.
    fn check(&self) -> Result<()> {
        if self.gen_.gen_ == Gen::Calibrate && self.recipe == Preset::Rtn {
            bail!("--gen calibrate: expected a recipe that is fitted to inputs, found rtn");
        }
        let is_mixed = self.recipe == Preset::VqaMixed;
        if !is_mixed && (self.bits_per_weight.is_some() || self.sensitivity.is_some()) {
            bail!("--bits-per-weight and --sensitivity: expected with --recipe vqa-mixed only");
        }
        if is_mixed && self.size_like_seed {
            bail!("--size-like-seed: expected without --recipe vqa-mixed, whose matrices differ in bits");
        }
        match self.bits_per_weight {
            Some(bits) if !bits.is_finite() || bits <= 0.0 => {
                bail!("--bits-per-weight: expected a number above 0, found {bits}")
            }
            _ => Ok(()),
        }
    }

    /// Everything that decides the result, for the work folder to compare.
    fn plan(&self, source: &str, samples: &[String], drawings: &[String]) -> serde_json::Value {
        serde_json::json!({
            "source": source, "recipe": self.recipe(), "preset": self.recipe, "bits": self.bits,
            "group_size": self.group_size, "uniform": self.size_like_seed, "gen": self.gen_.gen_, "vit": self.vit,
            "bits_per_weight": self.bits_per_weight().map(|bits| bits.to_string()),
            "sensitivity": self.sensitivity, "rows": self.rows, "seed": self.seed, "samples": samples, "drawings": drawings, "version": env!("CARGO_PKG_VERSION"),
        })
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    args.check()?;
    let hints = Hints::new(args.quiet);
    // Mapped pages count as memory until the map is gone, so each stage opens the files anew.
    let open = || model::checkpoint(&args.model);
    let source = open()?;
    refuse_quantized(&source, &args.model)?;
    let has_gen = source.model().tensors().iter().any(|t| t.name.contains("_moe_gen"));
    let layers = source.config().num_hidden_layers;
    let mut schemes = Schemes::new(args.recipe, args.bits, args.group_size, args.size_like_seed, args.vit)?;
    let dataset = match args.recipe {
        Preset::Rtn => None,
        _ => Some(dataset(args)?),
    };
    let hashes = dataset.as_ref().map(samples::hashes).transpose()?.unwrap_or_default();
    let drawings = args.gen_.drawings.as_deref().map(Drawings::read).transpose()?;
    let drawn = drawings.as_ref().map(Drawings::hashes).transpose()?.unwrap_or_default();
    let plan = args.plan(&fingerprint(&source), &hashes, &drawn);
    let Some(work) = WorkDir::open(&args.out, &plan)? else {
        hints.note(&format!("{}: finished by an earlier run", args.out.display()));
        return Ok(());
    };
    let prepared = match &dataset {
        None => None,
        Some(dataset) => Some(match Samples::stored(&work)? {
            Some(samples) => (samples, None),
            None => {
                let (runs, inputs) = lay_out(dataset, drawings.as_ref(), &open, hints)?;
                let samples = Samples::new(runs, source.config(), (args.rows, args.seed))?;
                (samples, Some(inputs))
            }
        }),
    };
    let (samples, inputs) = match prepared {
        None => (None, None),
        Some((samples, inputs)) => (Some(samples), inputs),
    };
    let (recipe, gen_) = (args.recipe(), args.gen_.gen_);
    let experts = if gen_ == Gen::Calibrate { Experts::Both } else { Experts::Und };
    let quantized: &[Expert] =
        if has_gen && gen_.is_quantized() { &[Expert::Und, Expert::Gen] } else { &[Expert::Und] };
    let mut capture = Capture::new(layers, samples.as_ref().map(|samples| (samples, inputs)), &work)?;
    if let (Some(bits), Some(samples)) = (args.bits_per_weight(), &samples) {
        if !work.has(widths::FILE) {
            let measuring = Measuring {
                open: &open,
                schemes: &schemes,
                recipe: &recipe,
                sensitivity: args.sensitivity.unwrap_or(Sensitivity::Layer),
                samples,
                work: &work,
                hints,
                experts,
            };
            measuring.run(&mut capture, layers)?;
            capture.rewind()?;
            widths::allot(&open()?, &schemes, gen_, bits, layers, &work)?;
        }
        schemes = schemes.with(widths::read(&work)?.unwrap_or_default());
    }
    let (schemes, recipe) = (&schemes, &recipe);
    let quantizing = Quantizing { open: &open, schemes, recipe, work: &work, experts, quantized };
    if !layer::is_done(&work, layer::EMBED) {
        let _busy = hints.busy("embedding");
        quantizing.embedding()?;
    }
    if recipe.compensate && capture.awaits(0) {
        capture.follow(&quantizing.with_part(layer::EMBED)?)?;
    }
    let start = Instant::now();
    for index in 0..layers {
        let busy = hints.busy(&progress(index, layers, start));
        let sites = match capture.awaits(index) {
            false => [None, None],
            true => capture.layer(&quantizing.original()?, index)?,
        };
        let name = layer::layer_name(index);
        if !layer::is_done(&work, &name) {
            quantizing.layer(index, sites, &capture)?;
        }
        let is_next = capture.follows() && capture.awaits(index);
        let quantized = is_next.then(|| quantizing.with_part(&name)).transpose()?;
        capture.advance(index, quantized.as_ref())?;
        drop(busy);
    }
    let _busy = hints.busy("head and files");
    if !layer::is_done(&work, layer::HEAD) {
        let rows = match &samples {
            None => None,
            Some(_) => capture.head_rows(&quantizing.original()?)?,
        };
        quantizing.head(rows)?;
    }
    let report = Report::gather(&work, args.recipe, &plan, samples.as_ref(), layers)?;
    let extras = model::extras(&args.model)?;
    let table = output::Output {
        source: &args.model,
        open: &open,
        extras: &extras,
        work: &work,
        schemes,
        gen_,
        report: &report,
    }
    .write(&args.out)?;
    work.remove()?;
    out::print(&table)
}

/// Everything that is run to record inputs, and the first layer's.
fn lay_out(
    dataset: &Dataset,
    drawings: Option<&Drawings>,
    open: &dyn Fn() -> Result<Checkpoint>,
    hints: Hints,
) -> Result<(Vec<Run>, Vec<Tensor>)> {
    let (mut runs, mut inputs) = samples::questions(&Understanding::new(open()?)?, dataset, hints)?;
    if let Some(drawings) = drawings {
        let (more, rows) = drawings.run(&Generation::new(open()?)?, hints)?;
        runs.extend(more);
        inputs.extend(rows);
    }
    Ok((runs, inputs))
}

/// Names, types and shapes of all tensors in one number: another model is another plan.
fn fingerprint(source: &Checkpoint) -> String {
    let mut hash = Sha256::new();
    for weights in [Some(source.model()), source.vit()].into_iter().flatten() {
        for tensor in weights.tensors() {
            hash.update(format!("{} {:?} {:?}\n", tensor.name, tensor.dtype, tensor.shape));
        }
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn refuse_quantized(checkpoint: &Checkpoint, name: &str) -> Result<()> {
    let packed = checkpoint.model().tensors().into_iter().find(|t| t.name.ends_with(".scales"));
    match packed {
        None => Ok(()),
        Some(tensor) => bail!(
            "{name}: expected a checkpoint that is not quantized, found {}; quantizing twice is not offered{}",
            tensor.name,
            if model::is_bundled(name) {
                " (what the bundled model was made from is tests/fixtures/nano-bf16 in the repository)"
            } else {
                ""
            }
        ),
    }
}

fn dataset(args: &Args) -> Result<Dataset> {
    match &args.calib {
        Some(name) if name.as_os_str() == "bundled" && !name.exists() => {
            Ok(bundled("bundled", &lance_mm_nano::CALIBRATION))
        }
        Some(path) => Ok(Dataset::read(path)?),
        None => bail!(
            "--calib: expected a file of questions about pictures, found none (--recipe rtn needs none; a nano \
             model is fitted to those in this program by --calib bundled)"
        ),
    }
}

fn progress(index: usize, layers: usize, start: Instant) -> String {
    let left = match index {
        0 => String::new(),
        _ => {
            let each = start.elapsed().as_secs_f64() / index as f64;
            format!(", about {:.0} s left", each * (layers - index) as f64)
        }
    };
    format!("layer {} of {layers}{left}", index + 1)
}

/// Reads a file with its name in the error.
fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}
