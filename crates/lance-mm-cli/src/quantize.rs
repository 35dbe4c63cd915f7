//! `lance-mm quantize`: a smaller checkpoint, fitted to what its inputs are.

mod args;
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

use std::path::Path;

use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use lance_mm::checkpoint::{Files, Part, find};
use lance_mm::eval::Dataset;
use lance_mm::inspect;
use lance_mm::models::Experts;
use lance_mm::quant::Expert;
use lance_mm::tensor::Weights;
use lance_mm::{Checkpoint, Generation, Understanding};
use sha2::{Digest, Sha256};

use crate::eval::data::bundled;
use crate::model;
use crate::output::{self as out, Hints};
pub(crate) use args::{Args, joined};
use args::{Gen, Preset};
use capture::Capture;
use drawings::Drawings;
use layer::Quantizing;
use report::Report;
use run::Run;
use samples::Samples;
use scheme::Schemes;
use widths::{Measuring, Sensitivity};
use workdir::WorkDir;

pub(crate) fn run(args: &Args) -> Result<()> {
    args.check()?;
    let hints = Hints::new(args.quiet);
    // Mapped pages count as memory until the map is gone, so each stage opens the files anew.
    let open = || model::checkpoint(&args.model);
    let source = open()?;
    refuse_quantized(&source, &args.model)?;
    let files = find(&model::folder(&args.model)?)?;
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
    let vae = files.vae.as_ref().filter(|_| args.gen_.gen_ != Gen::Drop).map(Part::open).transpose()?;
    let plan = args.plan(&fingerprint(&source, vae.as_ref(), &files, hints)?, &hashes, &drawn);
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
                let samples = Samples::new(runs, source.config(), args.rows())?;
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
    quantizing.parts(&mut capture, layers, hints)?;
    let report = Report::gather(&work, args.recipe, &plan, samples.as_ref(), layers)?;
    let busy = hints.part("writing the checkpoint");
    let table = output::Output {
        source: &args.model,
        open: &open,
        files: &files,
        work: &work,
        schemes,
        gen_,
        report: &report,
    }
    .write(&args.out)?;
    work.remove()?;
    drop(busy);
    out::print(&table)?;
    hints.note(&format!("{}: written", args.out.display()));
    Ok(())
}

/// Everything that is run to record inputs, and the first layer's.
fn lay_out(
    dataset: &Dataset,
    drawings: Option<&Drawings>,
    open: &dyn Fn() -> Result<Checkpoint>,
    hints: Hints,
) -> Result<(Vec<Run>, Vec<Tensor>)> {
    // A model that cannot draw is refused before the questions are run.
    let draws = match drawings {
        Some(drawings) => Some((drawings, Generation::new(open()?)?)),
        None => None,
    };
    let (mut runs, mut inputs) = samples::questions(&Understanding::new(open()?)?, dataset, hints)?;
    if let Some((drawings, lance)) = draws {
        let (more, rows) = drawings.run(&lance, hints)?;
        runs.extend(more);
        inputs.extend(rows);
    }
    Ok((runs, inputs))
}

/// All bytes of the source in one number: another model is another plan.
fn fingerprint(source: &Checkpoint, vae: Option<&Weights>, files: &Files, hints: Hints) -> Result<String> {
    let _busy = hints.part("reading the checkpoint");
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

/// Copies a file with the new one's name in the error.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(drop).with_context(|| to.display().to_string())
}

/// Reads a file with its name in the error.
fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}
