//! [`Lance`]: the networks of a checkpoint, each loaded once, on first use, and shared by clones.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::Device;
use lance_mm_models::{Config, Experts, LatentLayers, Llm, Vae, VaeConfig, Vit};
use lance_mm_tensor::Weights;
use tracing::debug_span;

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;
use crate::warmup;

/// Lance: answers questions about images, videos and text, and generates images and videos.
///
/// Loading a checkpoint loads the UND expert of the language model. The vision encoder is loaded with the first
/// image, the GEN expert and the VAE with the first generation. Every network is loaded once; clones share them,
/// and so do sessions ([`ImageContext`](crate::ImageContext), [`Chat`](crate::Chat)), which own a clone.
///
/// ```no_run
/// use lance_mm_pipelines::{AskOptions, GenerateOptions, Lance, Size};
///
/// let lance = Lance::from_pretrained("Lance-3B-bf16")?;
/// let fox = lance.generate_image("A red fox at sunset", Size::default(), &GenerateOptions::default())?;
/// let answer = lance.ask(&fox, "Which animal is this?", &AskOptions::default())?;
/// println!("{}", answer.text);
/// # Ok::<(), lance_mm_pipelines::Error>(())
/// ```
#[derive(Clone)]
pub struct Lance {
    shared: Arc<Shared>,
    low_memory: bool,
    vae_budget: Option<usize>,
}

struct Shared {
    checkpoint: Checkpoint,
    /// With the UND expert alone.
    llm: Llm,
    vit: OnDemand<Vit>,
    generator: OnDemand<Generator>,
    vae: OnDemand<Vae>,
}

/// The language model with both experts, whose UND weights are those of [`Shared::llm`], and its latent layers.
struct Generator {
    llm: Llm,
    latents: LatentLayers,
}

impl fmt::Debug for Lance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lance").field("checkpoint", self.checkpoint()).finish_non_exhaustive()
    }
}

impl Lance {
    /// Loads a checkpoint by name: a folder in the published MLX layout, bf16 or quantized; `org/name` of a
    /// repository in the Hugging Face cache; or `nano`, the bundled model. See [`Checkpoint::named`].
    ///
    /// # Errors
    /// No such checkpoint; as [`new`](Self::new).
    pub fn from_pretrained(name: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::new(Checkpoint::named(name)?)
    }

    /// Loads the UND expert of a checkpoint. Weights are mapped on the CPU, copied on a GPU.
    ///
    /// # Errors
    /// All tensors of the UND expert that are missing, misshapen or unknown.
    pub fn new(checkpoint: Checkpoint) -> Result<Self> {
        let _span = debug_span!("load", network = "language model").entered();
        let llm = Llm::load(&checkpoint.config, &checkpoint.model, Experts::Und)?;
        warmup::understanding(&checkpoint.model, &llm)?;
        let shared = Shared {
            checkpoint,
            llm,
            vit: OnDemand::default(),
            generator: OnDemand::default(),
            vae: OnDemand::default(),
        };
        Ok(Self { shared: Arc::new(shared), low_memory: false, vae_budget: None })
    }

    /// This handle on the model, which drops the mapped pages of the vision encoder after every image: they and the
    /// language model's are then never in memory at once. The next image maps them again.
    #[must_use]
    pub fn with_low_memory(self, low_memory: bool) -> Self {
        Self { low_memory, ..self }
    }

    /// This handle on the model, whose VAE decodes in about so many bytes: see [`Vae::with_budget`].
    #[must_use]
    pub fn with_vae_budget(self, bytes: usize) -> Self {
        Self { vae_budget: Some(bytes), ..self }
    }

    /// The checkpoint it was loaded from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.shared.checkpoint
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.checkpoint().config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.checkpoint().tokenizer
    }

    /// The device its networks run on.
    pub fn device(&self) -> &Device {
        self.checkpoint().model.device()
    }

    /// Whether matrices of the language model are quantized. The published quantized checkpoint was made for
    /// questions about images; its authors did not try videos.
    pub fn is_quantized(&self) -> bool {
        self.checkpoint().is_quantized()
    }

    /// Tensors of the files of the language model and the vision encoder that are no part of Lance; they are not
    /// read. Networks that are not loaded yet have read none of theirs.
    pub fn unknown_tensors(&self) -> Vec<String> {
        let vit = self.shared.vit.get().and(self.checkpoint().vit.as_ref());
        let unread = |weights: &Weights| weights.unread();
        vit.map(unread).into_iter().chain([unread(&self.checkpoint().model)]).flatten().collect()
    }

    /// The language model with its UND expert, which answers.
    pub fn llm(&self) -> &Llm {
        &self.shared.llm
    }

    /// The language model with both experts. The UND weights are those of [`llm`](Self::llm).
    ///
    /// # Errors
    /// A checkpoint of the UND expert alone; tensors of the GEN expert that are missing, misshapen or unknown.
    pub fn llm_with_gen(&self) -> Result<&Llm> {
        Ok(&self.generator()?.llm)
    }

    /// The layers between latents and tokens of the language model.
    ///
    /// # Errors
    /// As [`llm_with_gen`](Self::llm_with_gen).
    pub fn latent_layers(&self) -> Result<&LatentLayers> {
        Ok(&self.generator()?.latents)
    }

    /// The vision encoder.
    ///
    /// # Errors
    /// A checkpoint without `vit.safetensors`; tensors of it that are missing, misshapen or unknown.
    pub fn vit(&self) -> Result<&Vit> {
        let checkpoint = self.checkpoint();
        self.shared.vit.get_or_load("vision encoder", || {
            let Some(weights) = &checkpoint.vit else {
                return Err(Error::UnsupportedByModel {
                    name: checkpoint.name.clone(),
                    message: "expected vit.safetensors, which images need, found none".into(),
                });
            };
            let vit = Vit::load(&checkpoint.config.vision, weights)?;
            warmup::vit(weights, &vit)?;
            Ok(vit)
        })
    }

    /// The VAE.
    ///
    /// # Errors
    /// A checkpoint without `vae.safetensors`; tensors of it that are missing, misshapen or unknown.
    pub fn vae(&self) -> Result<&Vae> {
        self.shared.vae.get_or_load("VAE", || {
            let weights = self.checkpoint().require_vae()?;
            let vae = Vae::load(&VaeConfig::of(weights)?, weights)?;
            warmup::vae(weights, &vae)?;
            Ok(vae)
        })
    }

    /// The VAE with the budget of this handle.
    pub(crate) fn budgeted_vae(&self) -> Result<Vae> {
        let vae = self.vae()?.clone();
        Ok(match self.vae_budget {
            Some(bytes) => vae.with_budget(bytes),
            None => vae,
        })
    }

    fn generator(&self) -> Result<&Generator> {
        self.shared.generator.get_or_load("GEN expert", || {
            let checkpoint = self.checkpoint();
            let is_gen = |name: &str| name.contains("_moe_gen");
            if checkpoint.config.und_only || !checkpoint.model.tensors().iter().any(|t| is_gen(&t.name)) {
                let message =
                    "expected both experts, found the UND expert alone, which answers but cannot generate";
                return Err(Error::UnsupportedByModel {
                    name: checkpoint.name.clone(),
                    message: message.into(),
                });
            }
            let latents = LatentLayers::load(&checkpoint.config, &checkpoint.model)?;
            let llm = self.shared.llm.with_gen(&checkpoint.model)?;
            warmup::generation(&checkpoint.model, &llm, &latents)?;
            Ok(Generator { llm, latents })
        })
    }

    /// Drops the mapped pages of the vision encoder, if this handle is to save memory.
    pub(crate) fn release_vit(&self) -> Result<()> {
        match &self.checkpoint().vit {
            Some(weights) if self.low_memory => Ok(weights.release()?),
            _ => Ok(()),
        }
    }
}

/// A value that is made when it is first asked for; a failed attempt is repeated by the next caller.
struct OnDemand<T> {
    value: OnceLock<T>,
    loading: Mutex<()>,
}

impl<T> Default for OnDemand<T> {
    fn default() -> Self {
        Self { value: OnceLock::new(), loading: Mutex::new(()) }
    }
}

impl<T> OnDemand<T> {
    fn get(&self) -> Option<&T> {
        self.value.get()
    }

    /// The network, loaded if it is not; its name is for the log.
    fn get_or_load(&self, network: &str, load: impl FnOnce() -> Result<T>) -> Result<&T> {
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        // The mutex guards no data: a panic of another thread that was loading leaves nothing half done.
        let _loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let _span = debug_span!("load", network).entered();
        let loaded = load()?;
        Ok(self.value.get_or_init(|| loaded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::checkpoint;

    #[test]
    fn clones_share_networks_that_load_on_first_use() {
        let lance = Lance::new(checkpoint()).unwrap();
        let clone = lance.clone().with_low_memory(true);
        assert!(lance.shared.vit.get().is_none());
        assert!(std::ptr::eq(clone.vit().unwrap(), lance.vit().unwrap()));
        assert!(std::ptr::eq(clone.llm(), lance.llm()));
    }

    #[test]
    fn one_of_many_threads_loads() {
        let value = OnDemand::default();
        let loads = std::sync::atomic::AtomicUsize::new(0);
        let load = || -> Result<usize> { Ok(loads.fetch_add(1, std::sync::atomic::Ordering::SeqCst)) };
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(*value.get_or_load("", load).unwrap(), 0));
            }
        });
        assert_eq!(loads.into_inner(), 1);
    }

    #[test]
    fn a_failed_load_is_tried_again() {
        let value = OnDemand::default();
        assert!(value.get_or_load("", || Err(Error::Interrupted)).is_err());
        assert_eq!(*value.get_or_load("", || Ok(1)).unwrap(), 1);
    }

    #[test]
    fn models_and_sessions_can_be_sent_to_other_threads() {
        fn shared<T: Send + Sync>() {}
        fn sent<T: Send + 'static>() {}
        shared::<Lance>();
        sent::<crate::ImageContext>();
        sent::<crate::Chat>();
    }
}
