//! `--model`: the bundled model, a folder, or a repository in the hub's cache.

use std::time::{Duration, Instant};

use anyhow::Result;
use candle_core::Device;
use lance_mm::checkpoint::is_bundled;
use lance_mm::hub::RECOMMENDED;
use lance_mm::tensor::ActivationPrecision;
use lance_mm::{Checkpoint, Lance};

use crate::args::ModelArgs;
use crate::output::Hints;

const NANO: &str = "nano";

/// A model that is ready to answer.
pub(crate) struct Model {
    /// Name in messages and reports.
    pub(crate) name: String,
    pub(crate) lance: Lance,
    /// Time it took to load.
    pub(crate) time: Duration,
}

/// Name of a model in reports.
pub(crate) fn display_name(model: &str) -> &str {
    if is_bundled(model) { "bundled nano" } else { model }
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
            "model: bundled nano (knows simple synthetic images only; --model {RECOMMENDED} for the real one)"
        ));
    }
    let _busy = hints.busy("loading the model");
    let start = Instant::now();
    let lance = Lance::new(change(Checkpoint::named(model)?))?;
    let name = display_name(model).to_owned();
    let unknown = lance.unknown_tensors();
    if let Some(first) = unknown.first() {
        let others =
            if unknown.len() > 1 { format!(" and {} more", unknown.len() - 1) } else { String::new() };
        hints.note(&format!("note: {name} holds tensors that are no part of Lance: {first}{others}"));
    }
    Ok(Model { name, lance, time: start.elapsed() })
}
