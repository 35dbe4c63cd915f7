//! `--model`: the bundled model, a folder, or a repository in the hub's cache.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use candle_core::Device;
use lance_mm::checkpoint::WeightsFile;
use lance_mm::tensor::ActivationPrecision;
use lance_mm::{Checkpoint, CheckpointBytes, Lance};

use crate::args::ModelArgs;
use crate::hub::RepoName;
use crate::output::Hints;

/// The published model that questions are best put to.
pub(crate) const RECOMMENDED: &str = "mlx-community/Lance-3B-AWQ-INT4";

const NANO: &str = "nano";

/// A model that is ready to answer.
pub(crate) struct Model {
    /// What to call it.
    pub(crate) name: String,
    pub(crate) lance: Lance,
    /// Time it took to load.
    pub(crate) time: Duration,
}

/// Loads what the arguments name, as they say.
pub(crate) fn load_with(args: &ModelArgs, hints: Hints) -> Result<Model> {
    let (device, activations) = (args.compute.open_device()?, args.compute.activations());
    let change = |checkpoint: Checkpoint| checkpoint.with_activations(activations).with_device(&device);
    let model = load_as(args.model.as_deref(), hints, change)?;
    Ok(Model { lance: model.lance.with_low_memory(args.low_memory), ..model })
}

/// Loads what `model` names onto a device, to measure it nearly exactly.
pub(crate) fn load_on(device: &Device, model: &str, hints: Hints) -> Result<Model> {
    let split = ActivationPrecision::Split;
    load_as(Some(model), hints, |checkpoint| checkpoint.with_activations(split).with_device(device))
}

/// Loads what `--model` names, the checkpoint changed before its networks are built.
pub(crate) fn load_as(
    model: Option<&str>,
    hints: Hints,
    change: impl FnOnce(Checkpoint) -> Checkpoint,
) -> Result<Model> {
    let model = model.unwrap_or(NANO);
    let bundled = is_bundled(model);
    if bundled {
        hints.note(&format!(
            "model: bundled nano (knows simple drawn pictures only; --model {RECOMMENDED} for the real one)"
        ));
    }
    let _busy = hints.busy("loading the model");
    let start = Instant::now();
    let (name, checkpoint) = if bundled {
        ("bundled nano".to_owned(), Checkpoint::in_memory(&nano())?)
    } else {
        (model.to_owned(), Checkpoint::open(folder(model)?)?)
    };
    let lance = Lance::new(change(checkpoint))?;
    let unknown = lance.unknown_tensors();
    if let Some(first) = unknown.first() {
        let others =
            if unknown.len() > 1 { format!(" and {} more", unknown.len() - 1) } else { String::new() };
        hints.note(&format!("note: {name} holds tensors that are no part of Lance: {first}{others}"));
    }
    Ok(Model { name, lance, time: start.elapsed() })
}

/// The folder of a checkpoint that is not the bundled one.
pub(crate) fn folder(model: &str) -> Result<PathBuf> {
    find(model, &["model"], "pull")
}

/// The folder of a checkpoint that draws.
pub(crate) fn drawing_folder(model: &str) -> Result<PathBuf> {
    find(model, &["model", "vae"], "pull --all")
}

/// The folder of a checkpoint; from the hub's cache with these parts, which `lance-mm` and `pull` brings there.
fn find(model: &str, parts: &[&str], pull: &str) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let Some(repo) = RepoName::parse(model) else {
        bail!("model {model:?}: expected a checkpoint folder or org/name, found nothing at this path");
    };
    let Some(folder) = repo.cached()? else {
        bail!("model {model}: no such folder, and not in the hub's cache; run: lance-mm {pull} {repo}");
    };
    if !parts.iter().all(|part| WeightsFile::in_dir(&folder, part).is_some()) {
        bail!("model {model}: only a part of it is in the hub's cache; run: lance-mm {pull} {repo}");
    }
    Ok(folder)
}

/// Whether this is the name of the bundled model.
pub(crate) fn is_bundled(model: &str) -> bool {
    model == NANO && !Path::new(model).exists()
}

fn nano() -> CheckpointBytes {
    CheckpointBytes {
        name: NANO,
        config: lance_mm_nano::CONFIG,
        generation_config: lance_mm_nano::GENERATION_CONFIG,
        tokenizer: lance_mm_nano::TOKENIZER,
        model: lance_mm_nano::MODEL,
        vit: lance_mm_nano::VIT,
    }
}
