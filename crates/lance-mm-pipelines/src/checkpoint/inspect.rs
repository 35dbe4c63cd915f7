//! Contents of a checkpoint: sizes, bits per weight, memory, and everything that is wrong with it.
//!
//! [`inspect`] reads headers and the few tensors that loading touches; a checkpoint that cannot be loaded
//! still gives a [`InspectReport`] with what could be read.
//!
//! ```no_run
//! use lance_mm_pipelines::inspect::{InspectOptions, inspect};
//!
//! let report = inspect("Lance-3B-AWQ-INT4".as_ref(), InspectOptions::default())?;
//! for part in &report.components {
//!     println!("{:?}: {} weights, {} bytes", part.component, part.count.parameters, part.count.bytes);
//! }
//! for problem in &report.problems {
//!     println!("problem: {problem}");
//! }
//! # Ok::<(), lance_mm_pipelines::Error>(())
//! ```

mod check;
mod component;
mod count;
mod items;
mod parts;
mod quantized;
mod report;
mod scan;

use std::collections::BTreeMap;
use std::path::Path;

use lance_mm_models::{Config, Experts};
use lance_mm_tensor::{ActivationPrecision, TensorInfo, Weights, kv_dtype};

use crate::checkpoint::{Checkpoint, CheckpointFiles, CheckpointLayout, listed};
use crate::error::Result;
use check::Findings;
pub use component::Component;
use component::{Source, is_gen, is_inv_freq};
pub use count::Count;
use items::{Item, items};
use parts::{OpenPart, Parts, Settings};
pub use quantized::{QuantizationSummary, SchemeCount, SchemeName};
pub use report::{
    ComponentSummary, ConfigSummary, ExpertsFound, FileEntry, InspectReport, MemoryEstimate, SpecialId,
    TokenizerSummary,
};
pub use scan::Hash;
use scan::scan;

/// How thorough an inspection is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InspectOptions {
    /// Read every byte: a fingerprint for each component, and a search for weights, scales and biases that
    /// are not finite.
    pub deep: bool,
}

/// Most tensors named one by one when they are not finite.
const MAX_NAMED: usize = 20;

/// Inspects a checkpoint folder, or a single `.safetensors` file.
///
/// # Errors
/// Only a path at which there is nothing to inspect; what is wrong with a checkpoint is in
/// [`InspectReport::problems`].
pub fn inspect(path: &Path, options: InspectOptions) -> Result<InspectReport> {
    let single = path.is_file() && path.extension().is_some_and(|extension| extension == "safetensors");
    let files = if single { CheckpointFiles::of_file(path) } else { CheckpointFiles::find(path)? };
    let mut findings = Findings::default();
    let listing = listing(path, &files, single, &mut findings)?;
    let settings = Settings::read(&files, single, &mut findings);
    let parts = Parts::open(&files, &settings, &mut findings);
    let config = settings.config.as_ref();

    let layout = parts.layout(&files, &settings, &mut findings);
    let items: Vec<Item<'_>> =
        parts.0.iter().flat_map(|part| items(part.source, &part.tensors, &part.modules)).collect();
    let model = parts.of(Source::Model);
    let has_gen = |part: &OpenPart| part.tensors.iter().any(|t| is_gen(&t.name));
    let experts = model.map(|part| if has_gen(part) { ExpertsFound::UndAndGen } else { ExpertsFound::Und });
    check_parts(&parts, &items, config, layout, experts, &mut findings);
    let quantization = model.and_then(|m| quantized::summary(&m.tensors, &m.modules, &settings.quantization));
    check_settings(config, experts, quantization.as_ref(), &items, &mut findings);
    let tokenizer = if single { None } else { check::tokenizer(&files, config, &mut findings) };
    if !single {
        check_presence(&files, &items, experts, &mut findings);
    }

    let hashes = scan_items(&parts, &items, options, &mut findings);
    let of = |source: Source| items.iter().filter(move |item| item.source == source).map(|item| item.count);
    Ok(InspectReport {
        path: path.to_owned(),
        layout,
        config: files.config.clone().zip(config).map(|(file, config)| ConfigSummary::new(file, config)),
        experts,
        latent_frames: config.and_then(|config| latent_frames(config, &items)),
        quantization,
        files: listing,
        components: components(&items, &hashes),
        model: model.map(|_| of(Source::Model).sum()),
        total: items.iter().map(|item| item.count).sum(),
        memory: config.filter(|_| model.is_some()).map(|config| memory(config, &items)),
        tokenizer,
        problems: findings.problems,
        notes: findings.notes,
    })
}

/// The components of an open checkpoint, every byte of them read: counts and fingerprints as those that a
/// deep inspection of its folder gives.
pub fn components_of(checkpoint: &Checkpoint) -> Vec<ComponentSummary> {
    let vit = checkpoint.vit.as_ref().map(|vit| (Source::Vit, vit));
    let parts: Vec<_> = [(Source::Model, &checkpoint.model)]
        .into_iter()
        .chain(vit)
        .map(|(source, weights)| (source, weights, weights.tensors()))
        .collect();
    let (mut all, mut hashes) = (Vec::new(), Vec::new());
    for (source, weights, tensors) in &parts {
        let quantization = &checkpoint.quantization;
        let modules = quantized::modules(*source, tensors, Some(&checkpoint.config), quantization);
        for item in items(*source, tensors, &modules) {
            let dtype = format!("{:?}", item.info.dtype);
            hashes.push(weights.with_bytes(&item.info.name, |bytes| scan(bytes, &dtype).hash));
            all.push(item);
        }
    }
    components(&all, &hashes)
}

/// Sixteen hexadecimal digits of the names, types, shapes and every byte of these tensors. What it takes in
/// memory is one tensor of the files.
///
/// # Errors
/// As [`Weights::release`].
pub fn fingerprint_of(weights: &Weights) -> Result<String> {
    let mut all = Hash::new();
    for info in weights.tensors() {
        let dtype = format!("{:?}", info.dtype);
        let found = weights.with_bytes(&info.name, |bytes| scan(bytes, &dtype));
        add(&mut all, &info.name, &info, found.map_or(0, |found| found.hash));
        weights.release()?;
    }
    Ok(format!("{:016x}", all.finish()))
}

/// The files of the folder, and parts that lie beside it.
fn listing(
    path: &Path,
    files: &CheckpointFiles,
    single: bool,
    findings: &mut Findings,
) -> Result<Vec<FileEntry>> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if single {
        return Ok(check::file_entry(&files.dir, name(path), findings).into_iter().collect());
    }
    let mut listing = check::list_files(&files.dir, findings)?;
    for part in [&files.vit, &files.vae].into_iter().flatten() {
        let relative = part.path.strip_prefix(&files.dir).unwrap_or(&part.path).display().to_string();
        if !listing.iter().any(|file| file.name == relative) {
            listing.extend(check::file_entry(&files.dir, relative, findings));
        }
    }
    Ok(listing)
}

/// Loads what can be loaded.
fn check_parts(
    parts: &Parts,
    items: &[Item<'_>],
    config: Option<&Config>,
    layout: Option<CheckpointLayout>,
    experts: Option<ExpertsFound>,
    findings: &mut Findings,
) {
    if let Some(vae) = parts.of(Source::Vae) {
        check::vae(&vae.weights, findings);
    }
    let Some(config) = config else { return };
    if let Some(model) = parts.of(Source::Model).filter(|_| layout.is_some_and(CheckpointLayout::loadable)) {
        let experts = if experts == Some(ExpertsFound::UndAndGen) { Experts::Both } else { Experts::Und };
        let both = experts == Experts::Both;
        let latents = both && items.iter().any(|item| item.component == Component::Latent);
        if both && !latents {
            findings.note("no layers for latents: images cannot be generated");
        }
        check::llm(config, &model.weights, experts, latents, findings);
    }
    if let Some(vit) = parts.of(Source::Vit) {
        check::vit(config, &vit.weights, findings);
    }
}

/// Compares what the configuration says with what the model file holds.
fn check_settings(
    config: Option<&Config>,
    experts: Option<ExpertsFound>,
    quantization: Option<&QuantizationSummary>,
    items: &[Item<'_>],
    findings: &mut Findings,
) {
    if quantization.is_some_and(|q| q.packed.tensors == 0) {
        findings.note("config.json states a quantization, no tensor of the model file is quantized");
    }
    let Some(config) = config else { return };
    if config.tie_word_embeddings && items.iter().any(|item| item.component == Component::LmHead) {
        findings.note("config.json says tie_word_embeddings; the model file has an lm_head, which is used");
    }
    if config.und_only && experts == Some(ExpertsFound::UndAndGen) {
        findings
            .note("config.json says that only the UND expert is here, the model file holds GEN tensors too");
    }
}

/// Parts that are not there, and tensors that belong to none.
fn check_presence(
    files: &CheckpointFiles,
    items: &[Item<'_>],
    experts: Option<ExpertsFound>,
    findings: &mut Findings,
) {
    let has = |component: Component| items.iter().any(|item| item.component == component);
    if let Err(error) = files.require_model() {
        findings.problem(error);
    }
    if files.vit.is_none() && !has(Component::Vit) {
        findings.problem("expected vit.safetensors, found none: questions about images are not possible");
    }
    if experts == Some(ExpertsFound::Und) {
        findings.note("the UND expert alone: images cannot be generated");
    } else if files.vae.is_none() {
        findings.note("no vae.safetensors: images cannot be generated");
    }
    let unknown = items.iter().filter(|item| item.component == Component::Other && !is_inv_freq(item.name));
    let unknown: Vec<&str> = unknown.map(|item| item.info.name.as_str()).collect();
    if !unknown.is_empty() {
        findings.note(format!("tensors no part of Lance is known to have: {}", listed(&unknown)));
    }
}

/// Hashes of the tensors that were read, in the order of `items`.
fn scan_items(
    parts: &Parts,
    items: &[Item<'_>],
    options: InspectOptions,
    findings: &mut Findings,
) -> Vec<Option<u64>> {
    let mut damaged = 0;
    let mut hashes = Vec::with_capacity(items.len());
    for item in items {
        let Some(part) = parts.of(item.source).filter(|_| options.deep) else {
            hashes.push(None);
            continue;
        };
        let dtype = format!("{:?}", item.info.dtype);
        let found = part.weights.with_bytes(&item.info.name, |bytes| scan(bytes, &dtype));
        if let Some(index) = found.and_then(|found| found.non_finite) {
            damaged += 1;
            if damaged <= MAX_NAMED {
                findings.problem(not_finite(&part.weights, item.info, index));
            }
        }
        hashes.push(found.map(|found| found.hash));
    }
    if damaged > MAX_NAMED {
        findings.problem(format!("{} more tensors with values that are not finite", damaged - MAX_NAMED));
    }
    hashes
}

fn not_finite(weights: &Weights, info: &TensorInfo, index: usize) -> String {
    let place = match info.shape.as_slice() {
        [_, row @ ..] if !row.is_empty() => format!("row {}", index / row.iter().product::<usize>().max(1)),
        _ => format!("element {index}"),
    };
    format!("{}: {}: not finite in {place}", weights.files(), info.name)
}

/// Sums tensors up by component.
fn components(items: &[Item<'_>], hashes: &[Option<u64>]) -> Vec<ComponentSummary> {
    let mut by_component: BTreeMap<Component, Vec<(&Item<'_>, Option<u64>)>> = BTreeMap::new();
    for (item, hash) in items.iter().zip(hashes) {
        by_component.entry(item.component).or_default().push((item, *hash));
    }
    let summary = |(component, mut items): (Component, Vec<(&Item<'_>, Option<u64>)>)| {
        items.sort_by_key(|(item, _)| item.name);
        let mut dtypes: Vec<String> =
            items.iter().map(|(item, _)| format!("{:?}", item.info.dtype)).collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        let count = items.iter().map(|(item, _)| item.count).sum();
        ComponentSummary { component, count, dtypes, fingerprint: fingerprint(&items) }
    };
    by_component.into_iter().map(summary).collect()
}

/// Names, shapes, types and hashes of tensors sorted by name; `None` unless all were read.
fn fingerprint(items: &[(&Item<'_>, Option<u64>)]) -> Option<String> {
    let mut all = Hash::new();
    for (item, hash) in items {
        add(&mut all, item.name, item.info, (*hash)?);
    }
    Some(format!("{:016x}", all.finish()))
}

/// Adds a tensor of this name whose bytes have this hash.
fn add(all: &mut Hash, name: &str, info: &TensorInfo, hash: u64) {
    all.bytes(name.as_bytes());
    all.bytes(format!("{:?} {:?}", info.dtype, info.shape).as_bytes());
    all.word(hash);
}

/// Frames in the table of latent positions.
fn latent_frames(config: &Config, items: &[Item<'_>]) -> Option<usize> {
    let table = items.iter().find(|item| item.name == "latent_pos_embed.pos_embed")?;
    Some(table.info.shape.first()? / (config.max_latent_size * config.max_latent_size))
}

/// Bytes that answering questions reads.
fn memory(config: &Config, items: &[Item<'_>]) -> MemoryEstimate {
    let bytes = |test: &dyn Fn(&Item<'_>) -> bool| -> u64 {
        items.iter().filter(|item| test(item)).fold(0, |sum, item| sum.saturating_add(item.count.bytes))
    };
    let of = |component: Component| bytes(&|item| item.component == component && !is_gen(item.name));
    let (head, table) = (of(Component::LmHead), of(Component::EmbedTokens));
    let tied = head == 0;
    let heads = [config.num_hidden_layers, config.num_key_value_heads, config.head_dim()];
    let value = kv_dtype(ActivationPrecision::Bf16).size_in_bytes();
    MemoryEstimate {
        und_bytes: of(Component::UndLinears) + of(Component::Norms) + if tied { table } else { head },
        embed_tokens_bytes: if tied { 0 } else { table },
        vit_bytes: of(Component::Vit),
        kv_bytes_per_1000_tokens: heads
            .iter()
            .fold((2 * value * 1000) as u64, |n, factor| n.saturating_mul(*factor as u64)),
    }
}

#[cfg(test)]
mod tests;
