//! A checkpoint in any layout that is converted, as the parts of the MLX layout.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use lance_mm_models::{Config, is_generation};
use lance_mm_pipelines::checkpoint::{CheckpointFiles, CheckpointLayout, WeightsFile};
use lance_mm_tensor::{Problem, Problems};
use serde_json::{Value, json};

use super::names::{self, Name};
use super::{check, pth, vae};
use crate::located::Located;
use crate::{safetensors_file, split};

/// The VAE's file of the original release.
pub(super) const VAE_PTH: &str = "Wan2.2_VAE.pth";

/// Tensors under their MLX names and in MLX's arrangement, wherever they lie.
#[derive(Default)]
pub(super) struct Checkpoint {
    /// `None` for a VAE alone.
    pub(super) layout: Option<CheckpointLayout>,
    /// The configuration as it is to be written; `None` for a VAE alone.
    pub(super) config: Option<Value>,
    /// Whether the position table has more than one slot in time.
    pub(super) video: bool,
    pub(super) llm: Vec<Located>,
    pub(super) vit: Vec<Located>,
    pub(super) vae: Vec<Located>,
    /// Tensors of nothing known, which are not converted.
    pub(super) unmapped: Vec<String>,
    /// Tables in the file that every program computes.
    pub(super) computed: Vec<String>,
    /// Files of the tokenizer and the like.
    pub(super) copied: Vec<PathBuf>,
}

impl Checkpoint {
    /// Opens a folder, or a VAE's `.pth`. With `und_only`, what only generation reads is left out.
    pub(super) fn open(src: &Path, und_only: bool) -> Result<Self> {
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
    pub(super) fn has_model(&self) -> bool {
        self.config.is_some()
    }

    fn vae_alone(path: &Path, tensors: &[Located]) -> Result<Self> {
        let mut problems = FileProblems::default();
        let vae = checked_vae(path, tensors, &mut problems);
        problems.refuse()?;
        Ok(Self { vae, ..Self::default() })
    }

    fn whole(files: &CheckpointFiles, und_only: bool) -> Result<Self> {
        let model = files.require_model()?;
        let json: Value =
            serde_json::from_slice(&files.read_config()?).with_context(|| config_name(files))?;
        let layout = convertible(model, &json)?;
        let mut this = Self { layout: Some(layout), ..Self::default() };
        this.sort(model)?;
        let (config, json) = this.config(json, und_only).with_context(|| config_name(files))?;
        this.video = check::time_slots(&json, &this.llm).is_some_and(|slots| slots > 1);
        if und_only {
            this.llm.retain(|tensor| !is_generation(&tensor.name));
        }

        let mut problems = FileProblems::default();
        problems.add(&model.path, check::llm(&config, &json, &this.llm)?, &this.llm);
        let vit = this.find_vit(files, model)?;
        this.vit = this.vit.drain(..).map(|t| check::channels_first(t, config.vision.in_channels)).collect();
        problems.add(vit, check::vit(&config.vision, &this.vit)?, &this.vit);
        if let Some((path, tensors)) = find_vae(files, layout)?.filter(|_| !und_only) {
            this.vae = checked_vae(&path, &tensors, &mut problems);
        }
        problems.refuse()?;

        this.config = Some(json);
        let copied = split::COPIED.iter().map(|name| files.dir.join(name));
        this.copied = copied.filter(|path| path.is_file()).collect();
        Ok(this)
    }

    /// Puts every tensor of the model file where it belongs.
    fn sort(&mut self, model: &WeightsFile) -> Result<()> {
        for tensor in safetensors_file::open(model)? {
            let name = match self.layout {
                Some(CheckpointLayout::Mlx) => names::from_mlx(&tensor.name),
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

    /// The configuration made true of the tensors.
    fn config(&self, mut json: Value, und_only: bool) -> Result<(Config, Value)> {
        // What is no object is refused before anything is put into it.
        Config::from_json(json.to_string().as_bytes())?;
        if self.llm.iter().any(|tensor| tensor.name == "lm_head.weight") {
            // The original release says true, and stores a head that differs from the embedding.
            json["tie_word_embeddings"] = json!(false);
        }
        if und_only {
            split::mark_und_only(&mut json);
        }
        Ok((Config::from_json(json.to_string().as_bytes())?, json))
    }

    /// Opens the vision transformer unless the model file held one, and says where it lies.
    fn find_vit<'a>(&mut self, files: &'a CheckpointFiles, model: &'a WeightsFile) -> Result<&'a Path> {
        if !self.vit.is_empty() {
            return Ok(&model.path);
        }
        let Some(part) = &files.vit else {
            bail!(
                "{}: expected a vision transformer: tensors vit_model.* in {}, vit.safetensors in the folder or \
                 in ../Qwen2.5-VL-ViT; found none",
                files.dir.display(),
                model.path.display()
            );
        };
        for tensor in safetensors_file::open(part)? {
            let name = names::vit(&tensor.name).to_owned();
            self.vit.push(tensor.renamed(name));
        }
        Ok(&part.path)
    }
}

fn config_name(files: &CheckpointFiles) -> String {
    files.config.as_ref().unwrap_or(&files.dir).display().to_string()
}

/// The layout of a model file, if it is one that is converted.
fn convertible(model: &WeightsFile, config: &Value) -> Result<CheckpointLayout> {
    let name = model.path.display().to_string();
    let layout = CheckpointLayout::recognise(Some(config), &model.open()?.tensors())
        .map_err(|found| anyhow::anyhow!("{name}: {found}"))?;
    match layout {
        CheckpointLayout::Mlx | CheckpointLayout::Upstream | CheckpointLayout::MlxF32 => {}
        CheckpointLayout::MlxQuantized => bail!(
            "{name}: {}: quantized weights are not turned back into dense ones; `split` keeps the UND expert of \
             such a checkpoint",
            layout.describe()
        ),
        other => other.require_loadable(&name)?,
    }
    Ok(layout)
}

/// The VAE of a checkpoint folder, if there is one; the original release keeps it beside the folder.
fn find_vae(files: &CheckpointFiles, layout: CheckpointLayout) -> Result<Option<(PathBuf, Vec<Located>)>> {
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
    for entry in src.read_dir().with_context(|| src.display().to_string())? {
        if has_model(&entry?.path()) {
            return Ok(None);
        }
    }
    Ok(Some(pth))
}

fn checked_vae(path: &Path, tensors: &[Located], problems: &mut FileProblems) -> Vec<Located> {
    let mut list = Vec::new();
    let vae = vae::canonical(tensors, &mut list);
    problems.add(path, list, &vae);
    vae
}

/// What is wrong with the tensors of all files, to be said at once.
#[derive(Default)]
struct FileProblems(Vec<String>);

impl FileProblems {
    /// `problems` of the tensors that `path` holds, and those of their types.
    fn add(&mut self, path: &Path, mut problems: Vec<Problem>, tensors: &[Located]) {
        problems.extend(check::types(tensors));
        if !problems.is_empty() {
            self.0.push(Problems { files: path.display().to_string(), list: problems }.to_string());
        }
    }

    fn refuse(self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { bail!("{}", self.0.join("\n")) }
    }
}
