//! The stages of a quantization.

use std::path::Path;

use candle_core::Tensor;
use lance_mm_eval::Dataset;
use lance_mm_models::{Expert, Experts};
use lance_mm_pipelines::checkpoint::{CheckpointFiles, WeightsFile};
use lance_mm_pipelines::{Checkpoint, Lance, inspect};
use lance_mm_tensor::{ActivationPrecision, Weights};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::bit_allocation::{self, SensitivityMeasurement};
use crate::calibration_set::{self, CalibrationSet};
use crate::capture::Capture;
use crate::checkpoint_writer::CheckpointWriter;
use crate::config;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::files::read;
use crate::generation_requests::GenerationRequests;
use crate::input_files::InputFiles;
use crate::model_parts::PartQuantizer;
use crate::module_schemes::ModuleSchemes;
use crate::options::QuantizeOptions;
use crate::progress::{Monitor, Observer, Progress};
use crate::report::Report;
use crate::work_folder::WorkFolder;

/// Quantizes the checkpoint in the folder `source`, which is in the MLX layout and not quantized, into the new folder
/// `out`.
///
/// `dataset` has the questions whose input activations weights are fitted to; [`Recipe::Rtn`](crate::Recipe::Rtn)
/// takes none. `observer` is called when a stage begins.
///
/// Finished parts are kept in a hidden folder beside `out`: the same call resumes a run that was stopped, to the same
/// bytes. A folder `out` that an earlier call with the same arguments finished is left as it is, and its report is
/// returned.
///
/// # Errors
/// Options that contradict each other; a source that cannot be read or is quantized; an `out` of other arguments; a
/// dataset that is too small or has files that cannot be read; a full disk; [`Error::Stopped`].
pub fn quantize(
    source: impl AsRef<Path>,
    dataset: Option<&Dataset>,
    out: impl AsRef<Path>,
    options: &QuantizeOptions,
    observer: &mut Observer<'_>,
) -> Result<Report> {
    let (source, out) = (source.as_ref(), out.as_ref());
    options.validate()?;
    let dataset = dataset.filter(|_| options.recipe.is_calibrated());
    if options.recipe.is_calibrated() && dataset.is_none() {
        return Err(Error::Calibration("expected a dataset, found none".into()));
    }
    let monitor = &mut Monitor::new(observer, &options.stop);
    // Mapped pages count as memory until the map is gone, so each stage opens the files anew.
    // Input activations are recorded nearly exactly, and the same on every processor that multiplies bf16.
    let open = || Ok(Checkpoint::open(source)?.with_activations(ActivationPrecision::Split));
    let checkpoint = open()?;
    refuse_quantized(&checkpoint, source)?;
    let files = CheckpointFiles::find(source)?;
    let inputs = InputFiles::new(&files)?;
    config::check(&files.read_config()?)?;
    let plan = plan(&checkpoint, &files, dataset, options, monitor)?;
    let Some(mut work) = WorkFolder::open(out, &plan)? else { return Report::read(out) };

    let prepared = match dataset {
        Some(dataset) => Some(calibration_set(dataset, &open, options, &work, monitor)?),
        None => None,
    };
    let (samples, first_layer) = prepared.unzip();
    let (samples, steps) = (samples.as_ref(), &options.steps());
    let experts = if options.gen_expert.requests().is_some() { Experts::Both } else { Experts::Und };
    let context = Context { open: &open, steps, work: &work, experts, stop: &options.stop };
    let layers = checkpoint.config().num_hidden_layers;
    let mut capture =
        Capture::new(layers, samples.map(|samples| (samples, first_layer.flatten())), &work, &options.stop)?;
    let schemes = allocated(context, options, samples, &mut capture, layers, monitor)?;
    let has_gen = checkpoint.model().tensors().iter().any(|t| t.name.contains(Expert::Gen.suffix()));
    let quantizes_gen = has_gen && options.gen_expert.is_quantized();
    let quantized: &[Expert] = if quantizes_gen { &Expert::ALL } else { &[Expert::Und] };
    PartQuantizer { context, schemes: &schemes, quantized }.run(&mut capture, layers, monitor)?;

    monitor.begin(Progress::Write)?;
    let report = Report::gather(&work, options.recipe, &plan, samples, layers)?;
    CheckpointWriter {
        context,
        files: &files,
        inputs: &inputs,
        schemes: &schemes,
        gen_expert: &options.gen_expert,
        report: &report,
    }
    .write(out)?;
    work.remove()?;
    Ok(report)
}

/// Everything that decides the result.
fn plan(
    checkpoint: &Checkpoint,
    files: &CheckpointFiles,
    dataset: Option<&Dataset>,
    options: &QuantizeOptions,
    monitor: &mut Monitor<'_>,
) -> Result<Value> {
    let samples = dataset.map(calibration_set::hashes).transpose()?.unwrap_or_default();
    let requests = options.gen_expert.requests().map(GenerationRequests::hashes).transpose()?;
    let is_written = !options.gen_expert.is_dropped();
    let vae = files.vae.as_ref().filter(|_| is_written).map(WeightsFile::open).transpose()?;
    monitor.begin(Progress::Fingerprint)?;
    let source = fingerprint(checkpoint, vae.as_ref(), files)?;
    Ok(options.plan(&source, &samples, &requests.unwrap_or_default()))
}

/// The calibration set of an earlier run, or a new one with the first layer's input of every sequence.
fn calibration_set(
    dataset: &Dataset,
    open: &dyn Fn() -> Result<Checkpoint>,
    options: &QuantizeOptions,
    work: &WorkFolder,
    monitor: &mut Monitor<'_>,
) -> Result<(CalibrationSet, Option<Vec<Tensor>>)> {
    if let Some(samples) = CalibrationSet::stored(work)? {
        return Ok((samples, None));
    }
    let lance = Lance::new(open()?)?;
    let requests = options.gen_expert.requests();
    if requests.is_some() {
        // A model that cannot generate is refused before the questions are run.
        lance.load_generator()?;
    }
    let (mut sequences, mut inputs) = calibration_set::questions(&lance, dataset, monitor)?;
    if let Some(requests) = requests {
        let (more, x) = requests.run(&lance, monitor)?;
        sequences.extend(more);
        inputs.extend(x);
    }
    let samples = CalibrationSet::new(sequences, lance.config(), options.calib_tokens, options.seed)?;
    Ok((samples, Some(inputs)))
}

/// Bits and group size of every module, the budget divided if the recipe has one.
fn allocated(
    context: Context<'_>,
    options: &QuantizeOptions,
    samples: Option<&CalibrationSet>,
    capture: &mut Capture<'_>,
    layers: usize,
    monitor: &mut Monitor<'_>,
) -> Result<ModuleSchemes> {
    let schemes = options.schemes()?;
    let (Some(bits), Some(samples)) = (options.budget(), samples) else { return Ok(schemes) };
    if !context.work.has(bit_allocation::FILE) {
        let sensitivity = options.sensitivity;
        SensitivityMeasurement { context, schemes: &schemes, sensitivity, samples }
            .run(capture, layers, monitor)?;
        capture.rewind()?;
        let source = (context.open)()?;
        bit_allocation::allocate_bits(&source, &schemes, &options.gen_expert, bits, layers, context.work)?;
    }
    Ok(schemes.with(bit_allocation::read(context.work)?.unwrap_or_default()))
}

/// A hash of all bytes of the source.
fn fingerprint(source: &Checkpoint, vae: Option<&Weights>, files: &CheckpointFiles) -> Result<String> {
    let mut hash = Sha256::new();
    for weights in [Some(source.model()), source.vit(), vae].into_iter().flatten() {
        hash.update(inspect::fingerprint_of(weights)?);
    }
    for path in files.config.iter().chain(&files.generation_config).chain(&files.tokenizer) {
        // The length says where the next file begins.
        let bytes = read(path)?;
        hash.update(format!("{:?} {}", path.file_name(), bytes.len()));
        hash.update(bytes);
    }
    Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
}

fn refuse_quantized(checkpoint: &Checkpoint, source: &Path) -> Result<()> {
    match checkpoint.model().tensors().into_iter().find(|t| t.name.ends_with(".scales")) {
        None => Ok(()),
        Some(packed) => {
            Err(Error::Quantized { source_name: source.display().to_string(), tensor: packed.name })
        }
    }
}
