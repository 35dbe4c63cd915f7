//! Checkpoints: configuration, weights and tokenizer, from a folder, the hub's cache or memory.

mod file_state;
mod files;
pub mod hub;
pub mod inspect;
mod layout;
mod named;

use std::fmt;
use std::path::Path;

use candle_core::Device;
use lance_mm_image::{Resize, Resolution};
use lance_mm_models::Config;
use lance_mm_tensor::metadata::{MAX_CONFIG_BYTES, parse_json, read_file, shortened};
use lance_mm_tensor::{ActivationPrecision, Quantization, Weights};
use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::prompt::Medium;
use crate::tokenizer::Tokenizer;
pub use file_state::FileState;
pub(crate) use files::visible;
pub use files::{CheckpointFiles, WeightsFile};
use hub::RepoName;
pub use layout::CheckpointLayout;
pub(crate) use layout::listed;
pub use named::{folder_of, is_bundled};

/// The parts of a checkpoint, mapped but not yet built into networks.
pub struct Checkpoint {
    pub(crate) config: Config,
    pub(crate) model: Weights,
    pub(crate) vit: Option<Weights>,
    /// Or what is wrong with its files, which concerns those who draw.
    vae: Option<std::result::Result<Weights, Unreadable>>,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) stop_ids: Vec<u32>,
    pub(crate) name: String,
    pub(crate) quantization: Quantization,
    base: Option<u32>,
    /// The repository of the hub that its folder is a snapshot of.
    repo: Option<RepoName>,
}

/// Error of a file that only some tasks need, kept until one does.
struct Unreadable {
    file: Option<String>,
    message: String,
}

impl From<Error> for Unreadable {
    fn from(error: Error) -> Self {
        match error {
            Error::Tensor(lance_mm_tensor::Error::File { file, message }) => {
                Self { file: Some(file), message }
            }
            error => Self { file: None, message: error.to_string() },
        }
    }
}

/// The files of a checkpoint that lies in memory, as [`Checkpoint::in_memory`] takes them.
#[derive(Clone, Copy)]
pub struct CheckpointBytes {
    /// Name in errors.
    pub name: &'static str,
    /// `config.json`.
    pub config: &'static [u8],
    /// `generation_config.json`.
    pub generation_config: &'static [u8],
    /// `tokenizer.json`.
    pub tokenizer: &'static [u8],
    /// `model.safetensors`.
    pub model: &'static [u8],
    /// `vit.safetensors`.
    pub vit: &'static [u8],
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Checkpoint {
    /// Maps a folder in the published MLX layout: `config.json`, `model.safetensors` (or shards),
    /// `vit.safetensors`, the tokenizer's files, `generation_config.json` if there is one.
    ///
    /// # Errors
    /// A folder without the files, of another layout, or whose files contradict each other.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        let files = CheckpointFiles::find(dir)?;
        let config = files.read_config()?;
        let model = files.require_model()?.open()?;
        require_loadable(&dir.display().to_string(), &config, &model)?;
        let generation = files.generation_config.as_deref().map(read).transpose()?;
        let vit = files.vit.as_ref().map(WeightsFile::open).transpose()?;
        let vae = files.vae.as_ref().map(|file| file.open().map_err(Unreadable::from));
        let tokenizer = Tokenizer::from_dir(dir)?;
        let name = dir.display().to_string();
        let checkpoint = Self::assemble(&name, &config, generation.as_deref(), tokenizer, model, vit)?;
        Ok(Self { vae, ..checkpoint })
    }

    /// A checkpoint whose files lie in memory.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn in_memory(files: &CheckpointBytes) -> Result<Self> {
        let of = |file: &str| format!("{}/{file}", files.name);
        Self::assemble(
            files.name,
            files.config,
            Some(files.generation_config),
            Tokenizer::from_json(files.tokenizer, &of("tokenizer.json"))?,
            Weights::from_static(&of("model.safetensors"), files.model)?,
            Some(Weights::from_static(&of("vit.safetensors"), files.vit)?),
        )
    }

    fn assemble(
        name: &str,
        config_json: &[u8],
        generation: Option<&[u8]>,
        tokenizer: Tokenizer,
        model: Weights,
        vit: Option<Weights>,
    ) -> Result<Self> {
        let named = |error: lance_mm_tensor::Error| Error::Checkpoint {
            name: name.into(),
            message: error.to_string(),
        };
        let config = Config::from_json(config_json).map_err(named)?;
        let value: Value = serde_json::from_slice(config_json)
            .map_err(|e| Error::Checkpoint { name: name.into(), message: format!("config.json: {e}") })?;
        let quantization = Quantization::from_config(&value).map_err(named)?;
        check_ids(&config, &tokenizer)?;
        Ok(Self {
            model: model.with_quantization(quantization.clone()),
            vit: vit.map(|vit| vit.with_quantization(quantization.clone())),
            vae: None,
            quantization,
            stop_ids: stop_ids(name, generation, &tokenizer)?,
            base: base_size(name, &value)?,
            repo: None,
            name: name.to_owned(),
            tokenizer,
            config,
        })
    }

    /// The same checkpoint, its quantized matrices read with
    /// [`Weights::with_mlx_rounding`]: to compare with answers of dequantized weights.
    pub fn with_mlx_rounding(self) -> Self {
        Self { model: self.model.with_mlx_rounding(), vit: self.vit.map(Weights::with_mlx_rounding), ..self }
    }

    /// The same checkpoint, all matrices multiplied with activations in f32
    /// ([`Weights::with_f32_activations`]): to measure what rounding activations costs.
    pub fn with_f32_activations(self) -> Self {
        self.with(Weights::with_f32_activations)
    }

    /// The same checkpoint, inputs of products with bf16 matrices taken as `activations`. The VAE's count as f32 or,
    /// with [`ActivationPrecision::Bf16`], as the sum of two bf16 terms; on a device as f32.
    pub fn with_activations(self, activations: ActivationPrecision) -> Self {
        self.with(|weights| weights.with_activation_precision(activations))
    }

    /// The same checkpoint, its networks loaded onto `device` (see
    /// [`DeviceChoice::open`](lance_mm_tensor::DeviceChoice::open)).
    pub fn with_device(self, device: &Device) -> Self {
        self.with(|weights| weights.with_device(device.clone()))
    }

    /// The weights of every part read in another way.
    fn with(self, change: impl Fn(Weights) -> Weights) -> Self {
        Self {
            model: change(self.model),
            vit: self.vit.map(&change),
            vae: self.vae.map(|vae| vae.map(&change)),
            ..self
        }
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The tensors of `model.safetensors`.
    pub fn model(&self) -> &Weights {
        &self.model
    }

    /// The tensors of `vit.safetensors`, if it is there.
    pub fn vit(&self) -> Option<&Weights> {
        self.vit.as_ref()
    }

    /// The tensors of `vae.safetensors`, if it is there and can be read.
    pub fn vae(&self) -> Option<&Weights> {
        self.vae.as_ref()?.as_ref().ok()
    }

    /// The tensors of the VAE, which generation needs.
    pub(crate) fn require_vae(&self) -> Result<&Weights> {
        match &self.vae {
            Some(Ok(weights)) => Ok(weights),
            Some(Err(Unreadable { file, message })) => Err(Error::Checkpoint {
                name: file.as_ref().unwrap_or(&self.name).clone(),
                message: message.clone(),
            }),
            None => {
                let message = "expected vae.safetensors, which generation needs, found none".to_owned();
                Err(match &self.repo {
                    Some(repo) => Error::NotCached {
                        name: repo.to_string(),
                        message: format!("{message}; run: lance-mm pull --all {repo}"),
                    },
                    None => Error::UnsupportedByModel { name: self.name.clone(), message },
                })
            }
        }
    }

    /// The same checkpoint with the VAE of another file: `Weights::open_in(folder, "vae")`.
    pub fn with_vae(self, vae: Weights) -> Self {
        Self { vae: Some(Ok(vae)), ..self }
    }

    /// The same checkpoint with the vision encoder of another file: `Weights::open_in(folder, "vit")`.
    pub fn with_vit(self, vit: Weights) -> Self {
        Self { vit: Some(vit.with_quantization(self.quantization.clone())), ..self }
    }

    /// Whether `config.json` says that matrices are quantized, or any of a layer is.
    pub fn is_quantized(&self) -> bool {
        let packed = |name: &str| name.starts_with("layers.") && name.ends_with(".scales");
        self.quantization != Quantization::default() || self.model.tensors().iter().any(|t| packed(&t.name))
    }

    /// In how many bits matrices are quantized, in words.
    pub(crate) fn bits(&self) -> String {
        let modules = self.quantization.modules().filter_map(|(_, scheme)| scheme);
        let mut bits: Vec<usize> =
            self.quantization.default_scheme().into_iter().chain(modules).map(|s| s.bits()).collect();
        bits.sort_unstable();
        bits.dedup();
        let list: Vec<String> = bits.iter().map(usize::to_string).collect();
        if list.is_empty() {
            "quantized weights".to_owned()
        } else {
            format!("weights in {} bits", list.join(" and "))
        }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How pictures or frames are sized when the caller does not say: as upstream does for the published
    /// models (`image_768res`, `video_480p`), or the size a small model was trained at.
    pub(crate) fn default_resize(&self, medium: Medium) -> Resize {
        let base = match medium {
            Medium::Video => Resolution::VIDEO.vit,
            Medium::Image | Medium::Text => Resolution::IMAGE.vit,
        };
        Resize::Bucket { base: self.base.unwrap_or(base) }
    }
}

/// Refuses every layout but the one that is read at run time, by name.
fn require_loadable(name: &str, config: &[u8], model: &Weights) -> Result<()> {
    let config: Option<Value> = serde_json::from_slice(config).ok();
    CheckpointLayout::recognise(config.as_ref(), &model.tensors())
        .map_err(|message| Error::Checkpoint { name: name.into(), message })?
        .require_loadable(name)
}

/// Ids that both the configuration and the tokenizer state must agree.
fn check_ids(config: &Config, tokenizer: &Tokenizer) -> Result<()> {
    let ids = config.special_ids;
    for (field, stated, token) in [
        ("vision_start_token_id", ids.vision_start, "<|vision_start|>"),
        ("vision_end_token_id", ids.vision_end, "<|vision_end|>"),
        ("video_token_id", ids.video, "<|video_pad|>"),
    ] {
        let id = tokenizer.id(token)?;
        if id != stated {
            let message = format!("{token} is {id}, but config.json says {field} {stated}");
            return Err(Error::Tokenizer { name: tokenizer.name().into(), message });
        }
    }
    if tokenizer.vocab_limit() as usize > config.vocab_size {
        let message = format!(
            "{} tokens, but config.json says vocab_size {}",
            tokenizer.vocab_limit(),
            config.vocab_size
        );
        return Err(Error::Tokenizer { name: tokenizer.name().into(), message });
    }
    Ok(())
}

/// `generation_config.json`, as far as it decides about answers.
#[derive(Default, Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<Value>,
}

/// Characters of a value that a message repeats.
const MAX_FOUND: usize = 100;

/// Tokens that end an answer: `eos_token_id` of `generation_config.json` together with `<|im_end|>`, else
/// that and `<|endoftext|>`.
pub(crate) fn stop_ids(name: &str, generation: Option<&[u8]>, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let mut ids = vec![tokenizer.id("<|im_end|>")?];
    let config = match generation {
        None => GenerationConfig::default(),
        Some(json) => parse_json("generation_config.json", json)
            .map_err(|error| Error::Checkpoint { name: name.into(), message: error.to_string() })?,
    };
    let id = |v: &Value| {
        let id = v.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id < tokenizer.vocab_limit());
        id.ok_or_else(|| Error::Checkpoint {
            name: name.into(),
            message: format!(
                "generation_config.json: eos_token_id: expected ids below {}, found {}",
                tokenizer.vocab_limit(),
                shortened(&v.to_string(), MAX_FOUND)
            ),
        })
    };
    match &config.eos_token_id {
        None => ids.push(tokenizer.id("<|endoftext|>")?),
        Some(Value::Array(list)) => {
            for v in list {
                ids.push(id(v)?);
            }
        }
        Some(v) => ids.push(id(v)?),
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// `lance_nano.vit_resolution`: the base size of checkpoints that were trained at another than the
/// published ones.
pub(crate) fn base_size(name: &str, config: &Value) -> Result<Option<u32>> {
    let bad = |field: &str, expected: &str, found: &Value| {
        let found = shortened(&found.to_string(), MAX_FOUND).into_owned();
        let message = format!("config.json: lance_nano{field}: expected {expected}, found {found}");
        Error::Checkpoint { name: name.into(), message }
    };
    let Some(nano) = config.get("lance_nano").filter(|nano| !nano.is_null()) else { return Ok(None) };
    let nano = nano.as_object().ok_or_else(|| bad("", "an object", nano))?;
    let Some(value) = nano.get("vit_resolution") else { return Ok(None) };
    let base = value.as_u64().and_then(|v| u32::try_from(v).ok()).filter(|v| (28..=4096).contains(v));
    base.map(Some).ok_or_else(|| bad(".vit_resolution", "28 to 4096", value))
}

/// Reads a configuration.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(read_file(path, MAX_CONFIG_BYTES)?)
}
