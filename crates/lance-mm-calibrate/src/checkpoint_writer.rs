//! Writing the new checkpoint folder.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use lance_mm_models::is_generation;
use lance_mm_pipelines::Checkpoint;
use lance_mm_pipelines::checkpoint::CheckpointFiles;
use lance_mm_tensor::{TensorInfo, Weights};
use safetensors::{Dtype, View};

use crate::context::Context;
use crate::error::{Error, Result};
use crate::files::{REPORT, copy};
use crate::input_files::InputFiles;
use crate::module_schemes::ModuleSchemes;
use crate::options::GenExpert;
use crate::report::Report;
use crate::{config, model_parts, vision_encoder};

/// Bytes from which a tensor is read through a map of its own, which is dropped with its pages.
const LARGE: usize = 1 << 20;

/// Writes the new folder from the source and the finished parts.
pub(crate) struct CheckpointWriter<'a> {
    pub(crate) context: Context<'a>,
    /// Files of the source.
    pub(crate) files: &'a CheckpointFiles,
    pub(crate) inputs: &'a InputFiles,
    pub(crate) schemes: &'a ModuleSchemes,
    pub(crate) gen_expert: &'a GenExpert,
    pub(crate) report: &'a Report,
}

impl CheckpointWriter<'_> {
    /// Writes everything into a folder within the work folder and renames it to `out`.
    pub(crate) fn write(&self, out: &Path) -> Result<()> {
        self.context.work.write_folder(out, |dir| {
            self.fill(dir)?;
            self.inputs.check_unchanged()
        })
    }

    fn fill(&self, dir: &Path) -> Result<()> {
        let source = (self.context.open)()?;
        let shared = || Ok(source.model().clone());
        let anew = || Ok((self.context.open)()?.model().clone());
        let parts = model_parts::parts(source.config().num_hidden_layers);
        let openers: Vec<Box<dyn Fn() -> Result<Weights> + '_>> = parts
            .iter()
            .map(|part| {
                Box::new(move || model_parts::open(self.context.work, part))
                    as Box<dyn Fn() -> Result<Weights>>
            })
            .collect();
        let mut entries: BTreeMap<String, Entry<'_>> = BTreeMap::new();
        for info in source.model().tensors() {
            if !self.gen_expert.is_dropped() || !is_generation(&info.name) {
                let open: &dyn Fn() -> Result<Weights> = if info.bytes < LARGE { &shared } else { &anew };
                entries.insert(info.name.clone(), Entry { open, info });
            }
        }
        for open in &openers {
            for info in open()?.tensors() {
                entries.insert(info.name.clone(), Entry { open, info });
            }
        }
        let names: Vec<TensorInfo> = entries.values().map(|entry| entry.info.clone()).collect();
        let path = dir.join("model.safetensors");
        safetensors::serialize_to_file(entries, None::<HashMap<String, String>>, &path)
            .map_err(Error::at(&path))?;
        // A source that changed meanwhile leaves a file that does not match its header.
        Weights::open(&[&path])?;
        vision_encoder::write(dir, &source, self.files.vit.as_ref(), self.schemes)?;
        self.write_vae(dir, &source)?;
        for path in self.files.generation_config.iter().chain(&self.files.tokenizer) {
            copy(path, &dir.join(path.file_name().unwrap_or_default()))?;
        }
        let wide = vision_encoder::mlp_width(&source, self.schemes);
        let config =
            config::quantized(&self.files.read_config()?, &names, wide, self.gen_expert, self.report)?;
        write(&dir.join(config::NAME), &config)?;
        // Files of tensors are made readable by their owner only.
        let permissions = fs::metadata(dir.join(config::NAME)).map_err(Error::io(dir))?.permissions();
        for path in ["model.safetensors", "vit.safetensors", "vae.safetensors"].map(|name| dir.join(name)) {
            if path.is_file() {
                fs::set_permissions(&path, permissions.clone()).map_err(Error::io(&path))?;
            }
        }
        write(&dir.join(REPORT), self.report.json().as_bytes())
    }

    /// Writes `vae.safetensors`, if the source has a VAE and the new folder the expert that needs it.
    fn write_vae(&self, dir: &Path, source: &Checkpoint) -> Result<()> {
        let path = dir.join("vae.safetensors");
        let (Some(part), Some(vae)) = (&self.files.vae, source.vae()) else { return Ok(()) };
        if self.gen_expert.is_dropped() {
            return Ok(());
        }
        if !part.sharded {
            return copy(&part.path, &path);
        }
        let anew = || Ok((self.context.open)()?.vae().unwrap_or(vae).clone());
        let entry = |info: TensorInfo| (info.name.clone(), Entry { open: &anew, info });
        safetensors::serialize_to_file(vae.tensors().into_iter().map(entry), None, &path)
            .map_err(Error::at(&path))?;
        Weights::open(&[&path])?;
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(Error::io(path))
}

/// A tensor of the new model file, read when it is written.
struct Entry<'a> {
    open: &'a dyn Fn() -> Result<Weights>,
    info: TensorInfo,
}

impl View for Entry<'_> {
    fn dtype(&self) -> Dtype {
        self.info.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.info.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let bytes = (self.open)().ok().and_then(|w| w.with_bytes(&self.info.name, <[u8]>::to_vec));
        Cow::Owned(bytes.unwrap_or_default())
    }

    fn data_len(&self) -> usize {
        self.info.bytes
    }
}
