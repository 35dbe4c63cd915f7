//! Problems of a checkpoint's parts, found by the code that would load them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use lance_mm_models::{Config, Experts, LatentLayers, Llm, Vae, VaeConfig, Vit};
use lance_mm_tensor::Weights;
use lance_mm_tensor::metadata::{MAX_HEADER_BYTES, parse_json, read_file};
use serde::Deserialize;

use super::report::{FileEntry, SpecialId, TokenizerSummary};
use crate::checkpoint::{CheckpointFiles, WeightsFile, read, stop_ids, visible};
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Problems and notes, each once.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) problems: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Findings {
    pub(super) fn problem(&mut self, text: impl ToString) {
        push(&mut self.problems, text.to_string());
    }

    pub(super) fn note(&mut self, text: impl ToString) {
        push(&mut self.notes, text.to_string());
    }
}

fn push(list: &mut Vec<String>, text: String) {
    if !list.contains(&text) {
        list.push(text);
    }
}

/// The visible files of a folder with their sizes.
pub(super) fn list_files(dir: &Path, findings: &mut Findings) -> Result<Vec<FileEntry>> {
    let names = visible(dir).map_err(|source| Error::Io { path: dir.to_owned(), source })?;
    Ok(names.into_iter().filter_map(|name| file_entry(dir, name, findings)).collect())
}

/// A file's size; links that lead nowhere and pointers without their file are problems.
pub(super) fn file_entry(dir: &Path, name: String, findings: &mut Findings) -> Option<FileEntry> {
    let path = dir.join(&name);
    let meta = match fs::metadata(&path) {
        Ok(meta) => meta,
        Err(e) => {
            findings.problem(format!("{}: {e}", path.display()));
            return None;
        }
    };
    if is_lfs_pointer(&path, meta.len()) {
        let message = "expected the file itself, found a Git LFS pointer: run `git lfs pull`";
        findings.problem(format!("{}: {message}", path.display()));
    }
    meta.is_file().then_some(FileEntry { name, bytes: meta.len() })
}

fn is_lfs_pointer(path: &Path, len: u64) -> bool {
    len < 1024
        && path.is_file()
        && read_file(path, 1024).is_ok_and(|bytes| bytes.starts_with(b"version https://git-lfs"))
}

/// Maps a part's weights; of shards that do not make a whole, those that can be read.
pub(super) fn open(part: &WeightsFile, findings: &mut Findings) -> Option<Weights> {
    let error = match part.open() {
        Ok(weights) => return Some(weights),
        Err(error) => error,
    };
    if !fs::metadata(&part.path).is_ok_and(|meta| is_lfs_pointer(&part.path, meta.len())) {
        findings.problem(&error);
    }
    if !part.sharded {
        return None;
    }
    let mut whole = Vec::new();
    for path in shards(part) {
        match Weights::open(&[&path]) {
            Ok(_) => whole.push(path),
            Err(e) => findings.problem(e),
        }
    }
    Weights::open(&whole).ok().filter(|_| !whole.is_empty())
}

/// The shards an index lists that are there, by name.
pub(super) fn shards(part: &WeightsFile) -> Vec<PathBuf> {
    #[derive(Default, Deserialize)]
    struct ShardIndex {
        weight_map: BTreeMap<String, String>,
    }
    let index = read_file(&part.path, MAX_HEADER_BYTES).and_then(|json| parse_json("", &json));
    let index: ShardIndex = index.unwrap_or_default();
    let beside = |name: &&str| Path::new(name).file_name() == Some(name.as_ref());
    let mut names: Vec<&str> = index.weight_map.values().map(String::as_str).filter(beside).collect();
    names.sort_unstable();
    names.dedup();
    names.iter().map(|name| part.path.with_file_name(name)).filter(|path| path.is_file()).collect()
}

/// Loads the language model and keeps what is wrong with it, or else with what takes in and gives out latents, where
/// there is any of that.
pub(super) fn llm(
    config: &Config,
    weights: &Weights,
    experts: Experts,
    latents: bool,
    findings: &mut Findings,
) {
    let loaded = Llm::load(config, weights, experts).map(drop);
    let loaded =
        loaded.and_then(|()| if latents { LatentLayers::load(config, weights).map(drop) } else { Ok(()) });
    report(loaded, findings);
}

/// Loads the vision transformer and keeps what is wrong with it.
pub(super) fn vit(config: &Config, weights: &Weights, findings: &mut Findings) {
    report(Vit::load(&config.vision, weights).map(drop), findings);
}

/// Loads the VAE and keeps what is wrong with it.
pub(super) fn vae(weights: &Weights, findings: &mut Findings) {
    let loaded = VaeConfig::of(weights).and_then(|config| Vae::load(&config, weights)).map(drop);
    report(loaded, findings);
}

fn report(result: lance_mm_tensor::Result<()>, findings: &mut Findings) {
    if let Err(error) = result {
        findings.problem(error);
    }
}

/// Reads the tokenizer and compares its ids with those of the configuration and of `generation_config.json`.
pub(super) fn tokenizer(
    files: &CheckpointFiles,
    config: Option<&Config>,
    findings: &mut Findings,
) -> Option<TokenizerSummary> {
    let tokenizer = match Tokenizer::from_dir(&files.dir) {
        Ok(tokenizer) => tokenizer,
        Err(error) => {
            findings.problem(error);
            return None;
        }
    };
    let id = |token: &str| tokenizer.id(token).ok();
    for token in ["<|im_start|>", "<|im_end|>"] {
        if id(token).is_none() {
            findings.problem(format!("{}: expected the token {token}, found none", tokenizer.name()));
        }
    }
    let generation = files.generation_config.as_deref().map(read).transpose();
    let name = files.dir.display().to_string();
    if let Err(error) = generation.and_then(|json| stop_ids(&name, json.as_deref(), &tokenizer)) {
        findings.problem(error);
    }
    let vocabulary = tokenizer.vocab_limit();
    if let Some(config) = config.filter(|config| config.vocab_size < vocabulary as usize) {
        let rows = config.vocab_size;
        let name = tokenizer.name();
        findings.problem(format!("{name}: expected ids below vocab_size {rows}, found {}", vocabulary - 1));
    }
    let special_ids = config.map(|config| special_ids(config, id)).unwrap_or_default();
    for special in special_ids.iter().filter(|s| s.tokenizer != Some(s.config)) {
        let found = special.tokenizer.map_or("none".to_owned(), |id| id.to_string());
        let name = tokenizer.name();
        findings.problem(format!(
            "{name}: {}: expected the id {} of config.json, found {found}",
            special.token, special.config
        ));
    }
    Some(TokenizerSummary { name: tokenizer.name().to_owned(), vocabulary, special_ids })
}

fn special_ids(config: &Config, id: impl Fn(&str) -> Option<u32>) -> Vec<SpecialId> {
    let ids = config.special_ids;
    [("<|vision_start|>", ids.vision_start), ("<|vision_end|>", ids.vision_end), ("<|video_pad|>", ids.video)]
        .map(|(token, config)| SpecialId { token: token.to_owned(), tokenizer: id(token), config })
        .into()
}
