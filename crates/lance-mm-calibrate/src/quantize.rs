//! The stages of a quantization, from a checkpoint to a smaller one.

use std::path::Path;

use candle_core::Tensor;
use lance_mm_eval::Dataset;
use lance_mm_models::{Expert, Experts};
use lance_mm_pipelines::checkpoint::{CheckpointFiles, WeightsFile};
use lance_mm_pipelines::{Checkpoint, Lance, inspect};
use lance_mm_tensor::{ActivationPrecision, Weights};
use sha2::{Digest, Sha256};

use crate::bit_allocation::{self, SensitivityMeasurement};
use crate::calibration_sequence::CalibrationSequence;
use crate::calibration_set::{self, CalibrationSet};
use crate::capture::Capture;
use crate::checkpoint_writer::Output;
use crate::error::{Error, Result};
use crate::generation_requests::GenerationRequests;
use crate::model_parts::PartQuantizer;
use crate::options::QuantizeOptions;
use crate::progress::{Monitor, Observer, Progress};
use crate::report::Report;
use crate::work_folder::WorkFolder;

/// Quantizes the checkpoint in the folder `source`, in the MLX layout and not quantized yet, into the new folder `out`.
///
/// `dataset` has the questions whose input activations weights are fitted to; [`Recipe::Rtn`](crate::Recipe::Rtn)
/// takes none.
///
/// What is finished is kept in a hidden folder beside `out`: call again with the same arguments to resume a run that
/// was stopped. A folder `out` that an earlier call with the same arguments finished is left as it is, and its report
/// is returned.
///
/// # Errors
/// Options that contradict each other; a source that cannot be read or is quantized; `out` exists and is of other
/// arguments; a dataset too small or with files that cannot be read; a disk that is full.
pub fn quantize(
    source: impl AsRef<Path>,
    dataset: Option<&Dataset>,
    out: impl AsRef<Path>,
    options: &QuantizeOptions,
    observer: &mut Observer<'_>,
) -> Result<Report> {
    let (source, out) = (source.as_ref(), out.as_ref());
    options.validate()?;
    let monitor = &mut Monitor::new(observer, &options.stop);
    let dataset = dataset.filter(|_| options.recipe.is_calibrated());
    if options.recipe.is_calibrated() && dataset.is_none() {
        return Err(Error::Calibration("expected a dataset, found none".into()));
    }
    // Mapped pages count as memory until the map is gone, so each stage opens the files anew.
    // Input activations are recorded nearly exactly, and the same on every processor that multiplies bf16.
    let open = || Ok(Checkpoint::open(source)?.with_activations(ActivationPrecision::Split));
    let checkpoint = open()?;
    refuse_quantized(&checkpoint, source)?;
    let files = CheckpointFiles::find(source)?;
    let layers = checkpoint.config().num_hidden_layers;
    let mut schemes = options.schemes()?;
    let hashes = dataset.map(calibration_set::hashes).transpose()?.unwrap_or_default();
    let drawings = options.gen_expert.drawings();
    let drawn = drawings.map(GenerationRequests::hashes).transpose()?.unwrap_or_default();
    let gen_ = &options.gen_expert;
    let vae = files.vae.as_ref().filter(|_| !gen_.is_dropped()).map(WeightsFile::open).transpose()?;
    let plan = options.plan(&fingerprint(&checkpoint, vae.as_ref(), &files, monitor)?, &hashes, &drawn);
    let Some(work) = WorkFolder::open(out, &plan)? else { return Report::read(out) };
    let prepared = match dataset {
        None => None,
        Some(dataset) => Some(match CalibrationSet::stored(&work)? {
            Some(samples) => (samples, None),
            None => {
                let (sequences, inputs) = lay_out(dataset, drawings, &open, monitor)?;
                let rows = (options.calib_tokens, options.seed);
                (CalibrationSet::new(sequences, checkpoint.config(), rows)?, Some(inputs))
            }
        }),
    };
    let (samples, inputs) = match prepared {
        None => (None, None),
        Some((samples, inputs)) => (Some(samples), inputs),
    };
    let steps = options.steps();
    let experts = if drawings.is_some() { Experts::Both } else { Experts::Und };
    let has_gen = checkpoint.model().tensors().iter().any(|t| t.name.contains("_moe_gen"));
    let quantized: &[Expert] =
        if has_gen && gen_.is_quantized() { &[Expert::Und, Expert::Gen] } else { &[Expert::Und] };
    let mut capture =
        Capture::new(layers, samples.as_ref().map(|samples| (samples, inputs)), &work, &options.stop)?;
    if let (Some(bits), Some(samples)) = (options.budget(), &samples) {
        if !work.has(bit_allocation::FILE) {
            let measuring = SensitivityMeasurement {
                open: &open,
                schemes: &schemes,
                steps: &steps,
                sensitivity: options.sensitivity,
                samples,
                work: &work,
                experts,
            };
            measuring.run(&mut capture, layers, monitor)?;
            capture.rewind()?;
            bit_allocation::allocate_bits(&open()?, &schemes, gen_, bits, layers, &work)?;
        }
        schemes = schemes.with(bit_allocation::read(&work)?.unwrap_or_default());
    }
    let (schemes, steps) = (&schemes, &steps);
    let quantizing =
        PartQuantizer { open: &open, schemes, steps, work: &work, experts, quantized, stop: &options.stop };
    quantizing.parts(&mut capture, layers, monitor)?;
    monitor.begin(Progress::Write)?;
    let report = Report::gather(&work, options.recipe, &plan, samples.as_ref(), layers)?;
    Output { open: &open, files: &files, work: &work, schemes, gen_, report: &report }.write(out)?;
    work.remove()?;
    Ok(report)
}

/// Everything that is run to record inputs, and the first layer's.
fn lay_out(
    dataset: &Dataset,
    drawings: Option<&GenerationRequests>,
    open: &dyn Fn() -> Result<Checkpoint>,
    monitor: &mut Monitor<'_>,
) -> Result<(Vec<CalibrationSequence>, Vec<Tensor>)> {
    let lance = Lance::new(open()?)?;
    if drawings.is_some() {
        // A model that cannot generate is refused before the questions are run.
        lance.load_generator()?;
    }
    let (mut sequences, mut inputs) = calibration_set::questions(&lance, dataset, monitor)?;
    if let Some(drawings) = drawings {
        let (more, rows) = drawings.run(&lance, monitor)?;
        sequences.extend(more);
        inputs.extend(rows);
    }
    Ok((sequences, inputs))
}

/// All bytes of the source in one number: another model is another plan.
fn fingerprint(
    source: &Checkpoint,
    vae: Option<&Weights>,
    files: &CheckpointFiles,
    monitor: &mut Monitor<'_>,
) -> Result<String> {
    monitor.begin(Progress::Fingerprint)?;
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
    let packed = checkpoint.model().tensors().into_iter().find(|t| t.name.ends_with(".scales"));
    match packed {
        None => Ok(()),
        Some(tensor) => {
            Err(Error::Quantized { source_name: source.display().to_string(), tensor: tensor.name })
        }
    }
}

/// Copies a file with the new one's name in the error.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(drop).map_err(Error::io(to))
}

/// Reads a file with its name in the error.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(Error::io(path))
}
