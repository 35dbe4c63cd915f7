//! The parts of a checkpoint in any layout that is converted.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lance_mm_models::{Config, is_generation};
use lance_mm_pipelines::checkpoint::{CheckpointFiles, CheckpointLayout, WeightsFile};
use lance_mm_tensor::{Problem, Problems};
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::file_tensor::FileTensor;
use crate::names::{self, Name};
use crate::{check, pth, safetensors_file, vae};

/// The VAE's file of the original release.
pub(crate) const VAE_PTH: &str = "Wan2.2_VAE.pth";

/// Files that are copied as they are, when present.
const COPIED: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "generation_config.json"];

/// Tensors under their MLX names and in MLX's arrangement, whatever file holds them.
#[derive(Default)]
pub(crate) struct Parts {
    /// `None` for a VAE alone.
    pub(crate) layout: Option<CheckpointLayout>,
    /// The configuration as it is to be written; `None` for a VAE alone.
    pub(crate) config: Option<Value>,
    /// Whether the position table has more than one slot in time.
    pub(crate) video: bool,
    pub(crate) llm: Vec<FileTensor>,
    pub(crate) vit: Vec<FileTensor>,
    pub(crate) vae: Vec<FileTensor>,
    /// Tensors of nothing known, which are not converted.
    pub(crate) unmapped: Vec<String>,
    /// Tables in the file that every program computes.
    pub(crate) computed: Vec<String>,
    /// Files of the tokenizer and the like.
    pub(crate) copied: Vec<PathBuf>,
}

impl Parts {
    /// Opens a folder, or a VAE's `.pth`. With `und_only`, what only generation reads is left out.
    pub(crate) fn open(src: &Path, und_only: bool) -> Result<Self> {
        if let Some(pth) = lone_vae(src)? {
            return Self::vae_alone(&pth, &pth::open(&pth)?);
        }
        let files = CheckpointFiles::find(src)?;
        match (&files.model, &files.vit, &files.vae) {
            (None, None, Some(part)) => Self::vae_alone(&part.path, &safetensors_file::open(part)?),
            _ => Self::whole(&files, und_only),
        }
    }

    /// Whether there is a language model, and with it a configuration.
    pub(crate) fn has_model(&self) -> bool {
        self.config.is_some()
    }

    /// Whether large matrices are packed, and stay so.
    pub(crate) fn is_quantized(&self) -> bool {
        self.layout == Some(CheckpointLayout::MlxQuantized)
    }

    /// The tensors of all parts.
    fn tensors(&self) -> impl Iterator<Item = &FileTensor> {
        self.llm.iter().chain(&self.vit).chain(&self.vae)
    }

    /// Bytes of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.tensors().map(FileTensor::bytes).sum()
    }

    /// Checks that no file of the tensors changed since it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let mut seen = HashSet::new();
        let mut sources =
            self.tensors().map(FileTensor::source).filter(|file| seen.insert(Arc::as_ptr(file)));
        sources.try_for_each(|file| file.check_unchanged())
    }

    fn vae_alone(path: &Path, tensors: &[FileTensor]) -> Result<Self> {
        let mut problems = FileProblems::default();
        let vae = checked_vae(path, tensors, &mut problems);
        problems.into_result()?;
        Ok(Self { vae, ..Self::default() })
    }

    fn whole(files: &CheckpointFiles, und_only: bool) -> Result<Self> {
        let model = files.require_model()?;
        let name = config_name(files);
        let json: Value = serde_json::from_slice(&files.read_config()?)
            .map_err(|error| Error::file(&name, error.to_string()))?;
        let layout = convertible(model, &json, und_only)?;
        let mut this = Self { layout: Some(layout), ..Self::default() };
        this.sort(model)?;
        let (config, json) = this.config(json, und_only, &name)?;
        this.video = check::time_slots(&config, &this.llm).is_some_and(|slots| slots > 1);
        if und_only {
            this.llm.retain(|tensor| !is_generation(&tensor.name));
        }
        let vit = this.find_vit(files, model)?;
        if layout != CheckpointLayout::MlxQuantized {
            let mut problems = FileProblems::default();
            problems.add(&model.path, check::llm(&config, &this.llm)?, &this.llm);
            let channels = config.vision.in_channels;
            this.vit = this.vit.drain(..).map(|t| check::channels_first(t, channels)).collect();
            problems.add(vit, check::vit(&config.vision, &this.vit)?, &this.vit);
            if let Some((path, tensors)) = find_vae(files, layout)?.filter(|_| !und_only) {
                this.vae = checked_vae(&path, &tensors, &mut problems);
            }
            problems.into_result()?;
        }
        this.config = Some(json);
        let copied = COPIED.iter().map(|name| files.dir.join(name));
        this.copied = copied.filter(|path| path.is_file()).collect();
        Ok(this)
    }

    /// Puts every tensor of the model file where it belongs.
    fn sort(&mut self, model: &WeightsFile) -> Result<()> {
        for tensor in safetensors_file::open(model)? {
            let name = match self.layout {
                Some(CheckpointLayout::Mlx | CheckpointLayout::MlxQuantized) => names::from_mlx(&tensor.name),
                _ => names::from_upstream(&tensor.name),
            };
            match name {
                Name::Llm(name) => self.llm.push(tensor.renamed(name)),
                Name::Vit(name) => self.vit.push(tensor.renamed(name)),
                Name::Computed => self.computed.push(tensor.name),
                Name::Unknown => self.unmapped.push(tensor.name),
            }
        }
        Ok(())
    }

    /// The configuration made true of the tensors; `name` is its file.
    fn config(&self, mut json: Value, und_only: bool, name: &Path) -> Result<(Config, Value)> {
        let parsed = |json: &Value| {
            Config::from_json(json.to_string().as_bytes())
                .map_err(|error| Error::file(name, error.to_string()))
        };
        // Values are put into it below, and a list would be read as a configuration too.
        if !json.is_object() {
            return Err(Error::file(name, "expected an object"));
        }
        parsed(&json)?;
        if self.llm.iter().any(|tensor| tensor.name == "lm_head.weight") {
            // The original release says true, and stores a head that differs from the embedding.
            json["tie_word_embeddings"] = json!(false);
        }
        if und_only {
            if !json["lance_mm"].is_object() {
                json["lance_mm"] = json!({});
            }
            json["lance_mm"]["experts"] = json!(["und"]);
        }
        Ok((parsed(&json)?, json))
    }

    /// Opens the vision encoder unless the model file held one; returns its file.
    fn find_vit<'a>(&mut self, files: &'a CheckpointFiles, model: &'a WeightsFile) -> Result<&'a Path> {
        if !self.vit.is_empty() {
            return Ok(&model.path);
        }
        let Some(part) = &files.vit else {
            let message = format!(
                "expected a vision encoder: tensors vit_model.* in {}, vit.safetensors in the folder or in \
                 ../Qwen2.5-VL-ViT; found none",
                model.path.display()
            );
            return Err(Error::file(&files.dir, message));
        };
        for tensor in safetensors_file::open(part)? {
            let name = names::vit(&tensor.name).to_owned();
            self.vit.push(tensor.renamed(name));
        }
        Ok(&part.path)
    }
}

fn config_name(files: &CheckpointFiles) -> PathBuf {
    files.config.as_ref().unwrap_or(&files.dir).clone()
}

/// The layout of a model file, if it is one that is converted.
fn convertible(model: &WeightsFile, config: &Value, und_only: bool) -> Result<CheckpointLayout> {
    let layout = CheckpointLayout::recognise(Some(config), &model.open()?.tensors())
        .map_err(|found| Error::file(&model.path, found))?;
    match layout {
        CheckpointLayout::Mlx | CheckpointLayout::Upstream | CheckpointLayout::MlxF32 => {}
        CheckpointLayout::MlxQuantized if und_only => {}
        CheckpointLayout::MlxQuantized => {
            let message = format!(
                "{}: quantized weights are not turned back into dense ones; its UND expert alone (und-only) can be \
                 copied",
                layout.describe()
            );
            return Err(Error::file(&model.path, message));
        }
        other => other.require_loadable(&model.path.display().to_string())?,
    }
    Ok(layout)
}

/// The VAE of a checkpoint folder, if there is one; the original release keeps it beside the folder.
fn find_vae(files: &CheckpointFiles, layout: CheckpointLayout) -> Result<Option<(PathBuf, Vec<FileTensor>)>> {
    if let Some(part) = &files.vae {
        return Ok(Some((part.path.clone(), safetensors_file::open(part)?)));
    }
    let beside = files.dir.join("..").join(VAE_PTH);
    let places = [Some(files.dir.join(VAE_PTH)), Some(beside).filter(|_| layout != CheckpointLayout::Mlx)];
    let Some(path) = places.into_iter().flatten().find(|path| path.is_file()) else { return Ok(None) };
    let tensors = pth::open(&path)?;
    Ok(Some((path, tensors)))
}

/// The VAE that `src` is, or that is all it holds.
fn lone_vae(src: &Path) -> Result<Option<PathBuf>> {
    if src.is_file() && src.extension().is_some_and(|extension| extension == "pth") {
        return Ok(Some(src.to_owned()));
    }
    let pth = src.join(VAE_PTH);
    let has_model = |dir: &Path| CheckpointFiles::find(dir).is_ok_and(|files| files.model.is_some());
    if !pth.is_file() || has_model(src) {
        return Ok(None);
    }
    for entry in src.read_dir().map_err(Error::io(src))? {
        if has_model(&entry.map_err(Error::io(src))?.path()) {
            return Ok(None);
        }
    }
    Ok(Some(pth))
}

fn checked_vae(path: &Path, tensors: &[FileTensor], problems: &mut FileProblems) -> Vec<FileTensor> {
    let mut list = Vec::new();
    let vae = vae::canonical(tensors, &mut list);
    problems.add(path, list, &vae);
    vae
}

/// Problems with the tensors of all files, to be returned at once.
#[derive(Default)]
struct FileProblems(Vec<Problems>);

impl FileProblems {
    /// `problems` of the tensors that `path` holds, and those of their types.
    fn add(&mut self, path: &Path, mut problems: Vec<Problem>, tensors: &[FileTensor]) {
        problems.extend(check::types(tensors));
        if !problems.is_empty() {
            self.0.push(Problems { files: path.display().to_string(), list: problems });
        }
    }

    fn into_result(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Tensors(self.0)) }
    }
}
