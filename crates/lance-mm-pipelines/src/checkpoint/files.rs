//! Which files of a folder make a checkpoint.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use lance_mm_tensor::Weights;

use super::layout::{CheckpointLayout, listed};
use crate::error::{Error, Result};
use crate::tokenizer;

/// Files that make a tokenizer.
const TOKENIZER: [&str; 4] = ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json"];
/// Model files of other authors' layouts, which also say what they are.
const MARKS: [(&str, CheckpointLayout); 2] =
    [("awq_state_dict", CheckpointLayout::PerChannelInt4), ("nvfp4_state_dict", CheckpointLayout::NvFp4)];
/// Folders that are looked into to find a checkpoint below the one given.
const MAX_FOLDERS: usize = 500;
/// Levels below the folder given; the hub's cache has `snapshots/<revision>`.
const MAX_DEPTH: usize = 3;

/// The files of a checkpoint folder. [`find`](Self::find) makes it; a part that is not there is `None`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointFiles {
    /// The folder.
    pub dir: PathBuf,
    /// `config.json`, else `llm_config.json`.
    pub config: Option<PathBuf>,
    /// `generation_config.json`.
    pub generation_config: Option<PathBuf>,
    /// The language model.
    pub model: Option<WeightsFile>,
    /// The vision transformer. For the original release, where it lies beside the folder, that one.
    pub vit: Option<WeightsFile>,
    /// The VAE in MLX's layout.
    pub vae: Option<WeightsFile>,
    /// Files of the tokenizer, of this folder or of the one above it: all from where
    /// [`Tokenizer::from_dir`](crate::Tokenizer::from_dir) finds a whole one; empty if it finds none.
    pub tokenizer: Vec<PathBuf>,
    /// The layout that the model file's own name tells, if it does.
    pub marked: Option<CheckpointLayout>,
}

/// One network's weights: a safetensors file, or shards and the index that lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightsFile {
    /// `x.safetensors` or `x.safetensors.index.json`.
    pub path: PathBuf,
    /// The shards' index rather than the weights themselves.
    pub sharded: bool,
}

impl CheckpointFiles {
    /// Finds the files of the checkpoint in `dir`.
    ///
    /// # Errors
    /// A path that is no folder, or a folder without weights: with what was found and, if a checkpoint lies
    /// below it, where to point instead.
    pub fn find(dir: &Path) -> Result<Self> {
        match fs::metadata(dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(bad(dir, "expected a checkpoint folder, found nothing at this path"));
            }
            Err(source) => return Err(Error::Io { path: dir.to_owned(), source }),
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => {
                let folder = dir.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                return Err(bad(
                    dir,
                    format!("expected a folder, found a file: point at its folder {}", folder.display()),
                ));
            }
        }
        let files = Self::in_dir(dir);
        if files.model.is_some() || files.vit.is_some() || files.vae.is_some() {
            Ok(files)
        } else {
            Err(nothing_in(dir)?)
        }
    }

    pub(crate) fn in_dir(dir: &Path) -> Self {
        let file = |name: &str| Some(dir.join(name)).filter(|path| path.is_file());
        let config = file("config.json");
        let upstream = config.is_none();
        let mut model = WeightsFile::in_dir(dir, "model").or_else(|| WeightsFile::in_dir(dir, "ema"));
        let mut marked = None;
        for (stem, layout) in MARKS {
            if let (None, Some(part)) = (&model, WeightsFile::in_dir(dir, stem)) {
                model = Some(part);
                marked = Some(layout);
            }
        }
        // The original release keeps the one vision transformer of its variants beside their folders.
        let beside = || {
            WeightsFile::in_dir(&dir.join("../Qwen2.5-VL-ViT"), "vit").filter(|_| upstream && model.is_some())
        };
        let tokenizer = tokenizer::folder(dir).map(|folder| TOKENIZER.map(|name| folder.join(name)));
        Self {
            dir: dir.to_owned(),
            config: config.or_else(|| file("llm_config.json")),
            generation_config: file("generation_config.json"),
            vit: WeightsFile::in_dir(dir, "vit").or_else(beside),
            vae: WeightsFile::in_dir(dir, "vae"),
            tokenizer: tokenizer.into_iter().flatten().filter(|path| path.is_file()).collect(),
            model,
            marked,
        }
    }

    /// A single weights file as the part its name says (`vit`, `vae`, otherwise the model), with the
    /// configuration that lies beside it.
    pub(crate) fn of_file(path: &Path) -> Self {
        let dir = path.parent().unwrap_or(Path::new(""));
        let part = Some(WeightsFile { path: path.to_owned(), sharded: false });
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let (vit, vae) = (stem == "vit", stem == "vae");
        Self {
            vit: part.clone().filter(|_| vit),
            vae: part.clone().filter(|_| vae),
            model: part.filter(|_| !vit && !vae),
            marked: MARKS.iter().find(|(mark, _)| *mark == stem).map(|(_, layout)| *layout),
            generation_config: None,
            tokenizer: Vec::new(),
            ..Self::in_dir(dir)
        }
    }

    /// The whole configuration file.
    ///
    /// # Errors
    /// None there, or one that cannot be read.
    pub fn read_config(&self) -> Result<Vec<u8>> {
        let Some(path) = &self.config else {
            return Err(bad(&self.dir, "expected config.json or llm_config.json, found neither"));
        };
        super::read(path)
    }

    /// The language model's weights.
    ///
    /// # Errors
    /// None there, or a file whose name tells a layout that is not read.
    pub fn require_model(&self) -> Result<&WeightsFile> {
        let Some(model) = &self.model else {
            let found: Vec<String> =
                [&self.vit, &self.vae].into_iter().flatten().map(WeightsFile::file_name).collect();
            let message = format!("expected model.safetensors or its index, found only {}", listed(&found));
            return Err(bad(&self.dir, message));
        };
        match self.marked {
            Some(layout) => layout.require_loadable(&model.path.display().to_string()).map(|()| model),
            None => Ok(model),
        }
    }

    /// The vision transformer's weights.
    ///
    /// # Errors
    /// None there.
    pub fn require_vit(&self) -> Result<&WeightsFile> {
        let message =
            "expected vit.safetensors or its index, found neither: questions about images are not possible";
        self.vit.as_ref().ok_or_else(|| bad(&self.dir, message))
    }
}

impl WeightsFile {
    /// `model` (`vit`, `vae`) in a folder: the single file, else the index of its shards.
    pub fn in_dir(dir: &Path, stem: &str) -> Option<Self> {
        let single = dir.join(format!("{stem}.safetensors"));
        let index = dir.join(format!("{stem}.safetensors.index.json"));
        if single.is_file() {
            return Some(Self { path: single, sharded: false });
        }
        index.is_file().then_some(Self { path: index, sharded: true })
    }

    /// Maps the weights.
    ///
    /// # Errors
    /// As [`Weights::open`] and [`Weights::open_in`].
    pub fn open(&self) -> Result<Weights> {
        let name = self.file_name();
        Ok(match (name.strip_suffix(".safetensors.index.json"), self.path.parent()) {
            (Some(stem), Some(dir)) if self.sharded => Weights::open_in(dir, stem)?,
            _ => Weights::open(&[&self.path])?,
        })
    }

    /// The files that hold the weights: this one, or the index and the safetensors files beside it.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn files(&self) -> Result<Vec<PathBuf>> {
        let mut files = vec![self.path.clone()];
        if let Some(dir) = self.path.parent().filter(|_| self.sharded) {
            let names = visible(dir).map_err(|source| Error::Io { path: dir.to_owned(), source })?;
            files.extend(
                names.iter().filter(|name| name.ends_with(".safetensors")).map(|name| dir.join(name)),
            );
        }
        Ok(files)
    }

    pub(crate) fn file_name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }
}

/// Why a folder without weights is refused: what is in it, or where below it a checkpoint lies.
fn nothing_in(dir: &Path) -> Result<Error> {
    let names = visible(dir).map_err(|source| Error::Io { path: dir.to_owned(), source })?;
    if names.is_empty() {
        return Ok(bad(dir, "expected config.json and model.safetensors, found an empty folder"));
    }
    let below = checkpoints_below(dir);
    let expected = "expected model.safetensors or its index in this folder";
    let found = match below.as_slice() {
        [] => listed(&names),
        [one] => format!("a checkpoint below it: point at {one}"),
        more => format!("checkpoints below it: point at one of {}", listed(more)),
    };
    Ok(bad(dir, format!("{expected}, found {found}")))
}

/// Folders below `dir` that hold a model file, nearest first.
fn checkpoints_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut level = vec![dir.to_owned()];
    let mut left = MAX_FOLDERS;
    for _ in 0..MAX_DEPTH {
        let mut next = Vec::new();
        for folder in level {
            let names = visible(&folder).unwrap_or_default();
            let folders = names.iter().map(|name| folder.join(name)).filter(|path| path.is_dir());
            next.extend(folders.take(left.saturating_sub(next.len())));
        }
        left = left.saturating_sub(next.len());
        let hits = next.iter().filter(|path| CheckpointFiles::in_dir(path).model.is_some());
        found.extend(hits.map(|path| path.display().to_string()));
        level = next;
    }
    found
}

/// Names of a folder's entries that are not hidden, in order.
pub(crate) fn visible(dir: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn bad(path: &Path, message: impl Into<String>) -> Error {
    Error::Checkpoint { name: path.display().to_string(), message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates empty files and returns the folder.
    fn folder(names: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        dir
    }

    fn error(path: &Path) -> String {
        CheckpointFiles::find(path).unwrap_err().to_string()
    }

    #[test]
    fn the_files_of_a_folder() {
        let dir = folder(&["config.json", "llm_config.json", "model.safetensors", "vit.safetensors"]);
        let files = CheckpointFiles::find(dir.path()).unwrap();
        assert!(files.config.unwrap().ends_with("config.json"));
        assert_eq!(files.model.unwrap().path, dir.path().join("model.safetensors"));
        assert!(files.tokenizer.is_empty());
        assert!(files.vit.is_some() && files.vae.is_none() && files.marked.is_none());

        let dir = folder(&["ema.safetensors", "vit.safetensors.index.json"]);
        let files = CheckpointFiles::find(dir.path()).unwrap();
        assert!(files.model.unwrap().path.ends_with("ema.safetensors") && files.vit.unwrap().sharded);
    }

    #[test]
    fn a_tokenizer_is_taken_whole_from_where_it_lies() {
        let named = |files: &[&str]| -> Vec<String> {
            let dir = folder(&[&["a/model.safetensors"], files].concat());
            let root = fs::canonicalize(dir.path()).unwrap();
            let found = CheckpointFiles::find(&dir.path().join("a")).unwrap().tokenizer;
            found.iter().map(|path| path.strip_prefix(&root).unwrap().display().to_string()).collect()
        };
        assert_eq!(named(&["a/vocab.json", "merges.txt"]), [""; 0]);
        assert_eq!(named(&["a/vocab.json", "tokenizer.json"]), ["tokenizer.json"]);
        assert_eq!(
            named(&["a/tokenizer.json", "a/vocab.json", "vocab.json", "merges.txt"]),
            ["a/tokenizer.json", "a/vocab.json"]
        );
        let pair = ["vocab.json", "merges.txt", "tokenizer_config.json"];
        assert_eq!(named(&pair), pair);
    }

    #[test]
    fn the_original_releases_vit_lies_beside() {
        let dir = folder(&[
            "Lance_3B/model.safetensors",
            "Lance_3B/llm_config.json",
            "Qwen2.5-VL-ViT/vit.safetensors",
        ]);
        let files = CheckpointFiles::find(&dir.path().join("Lance_3B")).unwrap();
        assert!(files.config.as_ref().unwrap().ends_with("llm_config.json") && files.require_vit().is_ok());
        let vit = CheckpointFiles::find(&dir.path().join("Qwen2.5-VL-ViT")).unwrap();
        let error = vit.require_model().unwrap_err().to_string();
        assert!(error.ends_with("found only vit.safetensors"), "{error}");
    }

    #[test]
    fn other_authors_files_are_refused_by_name() {
        for (name, what) in [("awq_state_dict", "per-channel INT4"), ("nvfp4_state_dict", "NVFP4")] {
            let dir = folder(&[&format!("{name}.safetensors"), "awq_meta.json"]);
            let error = CheckpointFiles::find(dir.path()).unwrap().require_model().unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(what), "{error}");
        }
    }

    #[test]
    fn unusable_paths_say_what_to_point_at() {
        let dir = folder(&[
            "root/Lance_3B/model.safetensors",
            "root/Lance_3B_Video/ema.safetensors",
            "x/notes.txt",
        ]);
        let dir = dir.path();
        fs::create_dir(dir.join("empty")).unwrap();
        assert!(
            error(&dir.join("gone"))
                .ends_with("gone: expected a checkpoint folder, found nothing at this path")
        );
        assert!(error(&dir.join("empty")).ends_with("found an empty folder"));
        assert!(error(&dir.join("x")).ends_with("in this folder, found notes.txt"));
        let file = error(&dir.join("root/Lance_3B/model.safetensors"));
        assert!(
            file.ends_with("root/Lance_3B") && file.contains("found a file: point at its folder"),
            "{file}"
        );
        let root = error(&dir.join("root"));
        assert!(root.contains("point at one of ") && root.ends_with("root/Lance_3B_Video"), "{root}");
        assert!(error(dir).contains("root/Lance_3B, "), "{}", error(dir));
    }

    #[test]
    fn a_snapshot_of_the_hubs_cache_is_found() {
        let dir = folder(&["models--a--b/snapshots/0123/model.safetensors", "models--a--b/refs/main"]);
        let text = error(&dir.path().join("models--a--b"));
        assert!(text.ends_with("snapshots/0123"), "{text}");
    }
}
