//! A checkpoint's configuration and weights, opened as far as they can be.

use std::collections::BTreeMap;

use lance_mm_models::Config;
use lance_mm_tensor::{Quantization, TensorInfo, Weights};
use serde_json::Value;

use super::check::{self, Findings};
use super::component::{Component, Source, classify};
use super::quantized;
use crate::checkpoint::{CheckpointFiles, CheckpointLayout, base_size};

/// The configuration in its three readings, each as far as it can be read.
pub(super) struct Settings {
    json: Option<Value>,
    pub(super) config: Option<Config>,
    pub(super) quantization: Quantization,
}

impl Settings {
    pub(super) fn read(files: &CheckpointFiles, single: bool, findings: &mut Findings) -> Self {
        let mut settings = Self { json: None, config: None, quantization: Quantization::default() };
        // A vision transformer or VAE alone has no configuration of ours; a single file may have none.
        if files.model.is_none() || (single && files.config.is_none()) {
            return settings;
        }
        let bytes = match files.read_config() {
            Ok(bytes) => bytes,
            Err(error) => {
                findings.problem(error);
                return settings;
            }
        };
        settings.json = serde_json::from_slice(&bytes).ok();
        match Config::from_json(&bytes) {
            Ok(config) => settings.config = Some(config),
            Err(error) => findings.problem(error),
        }
        if let Some(json) = &settings.json {
            if let Err(error) = base_size(&files.dir.display().to_string(), json) {
                findings.problem(error);
            }
            match Quantization::from_config(json) {
                Ok(quantization) => settings.quantization = quantization,
                Err(error) => findings.problem(error),
            }
        }
        settings
    }
}

/// A file or its shards, opened.
pub(super) struct OpenPart {
    pub(super) source: Source,
    pub(super) weights: Weights,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) modules: BTreeMap<String, quantized::Module>,
}

pub(super) struct Parts(pub(super) Vec<OpenPart>);

impl Parts {
    pub(super) fn open(files: &CheckpointFiles, settings: &Settings, findings: &mut Findings) -> Self {
        let mut parts = Vec::new();
        let sources = [(Source::Model, &files.model), (Source::Vit, &files.vit), (Source::Vae, &files.vae)];
        for (source, part) in sources {
            let Some(part) = part else { continue };
            let bundled = parts.first().is_some_and(|model: &OpenPart| bundles_vit(&model.tensors));
            if source == Source::Vit && bundled {
                findings
                    .note(format!("{}: not used, the model file has a ViT of its own", part.path.display()));
                continue;
            }
            let Some(weights) = check::open(part, findings) else { continue };
            let quantization = match source {
                Source::Model => settings.quantization.clone(),
                _ => Quantization::default(),
            };
            let tensors = weights.tensors();
            let modules = quantized::modules(source, &tensors, settings.config.as_ref(), &quantization);
            let weights = weights.with_quantization(quantization);
            parts.push(OpenPart { source, weights, tensors, modules });
        }
        Self(parts)
    }

    pub(super) fn of(&self, source: Source) -> Option<&OpenPart> {
        self.0.iter().find(|part| part.source == source)
    }

    /// The layout, with a problem if there is none or none that can be loaded.
    pub(super) fn layout(
        &self,
        files: &CheckpointFiles,
        settings: &Settings,
        findings: &mut Findings,
    ) -> Option<CheckpointLayout> {
        let name = files.model.as_ref().map(|part| part.path.display().to_string())?;
        let recognised = match (files.marked, self.of(Source::Model)) {
            (Some(layout), _) => Ok(layout),
            (None, Some(model)) => CheckpointLayout::recognise(settings.json.as_ref(), &model.tensors),
            (None, None) => return None,
        };
        match recognised {
            Ok(layout) => {
                if let Err(error) = layout.require_loadable(&name) {
                    findings.problem(error);
                }
                Some(layout)
            }
            Err(message) => {
                findings.problem(format!("{name}: {message}"));
                None
            }
        }
    }
}

fn bundles_vit(tensors: &[TensorInfo]) -> bool {
    tensors.iter().any(|t| classify(Source::Model, &t.name).0 == Component::Vit)
}
