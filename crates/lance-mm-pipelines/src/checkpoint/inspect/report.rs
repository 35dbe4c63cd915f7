//! Report of an inspection.

use std::path::PathBuf;

use lance_mm_models::Config;
use serde::Serialize;

use super::component::Component;
use super::count::Count;
use super::quantized::QuantizationSummary;
use crate::checkpoint::CheckpointLayout;

/// Contents of a checkpoint, and everything that is wrong with it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct InspectReport {
    /// The folder or file inspected.
    pub path: PathBuf,
    /// Form of the model file, if it was recognised; a problem says why not.
    pub layout: Option<CheckpointLayout>,
    /// The configuration, if it could be read.
    pub config: Option<ConfigSummary>,
    /// Which experts the model file holds, if it could be read.
    pub experts: Option<ExpertsFound>,
    /// Latent frames that the table of positions has, if there is one: one for images alone, more for videos.
    pub latent_frames: Option<usize>,
    /// How the model file is quantized, if it is.
    pub quantization: Option<QuantizationSummary>,
    /// Visible files of the folder, and the parts that lie beside it.
    pub files: Vec<FileEntry>,
    /// Components found in the files.
    pub components: Vec<ComponentSummary>,
    /// The tensors of the model file. Its bits per weight are the *overall* ones: scales, biases and norms
    /// included.
    pub model: Option<Count>,
    /// The tensors of all files that could be read.
    pub total: Count,
    /// Memory that answering questions needs, if configuration and model could be read.
    pub memory: Option<MemoryEstimate>,
    /// The tokenizer, if there is one.
    pub tokenizer: Option<TokenizerSummary>,
    /// Everything that is wrong; empty for a checkpoint that answers questions about images and, with the GEN expert and a
    /// VAE, draws.
    pub problems: Vec<String>,
    /// Notes on anything unusual, or missing for generation only.
    pub notes: Vec<String>,
}

/// The numbers of the configuration that describe the model's size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConfigSummary {
    /// The file.
    pub file: PathBuf,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key/value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Rows a sequence may have.
    pub max_position_embeddings: usize,
    /// Blocks of the vision transformer.
    pub vit_depth: usize,
    /// Width of the vision transformer.
    pub vit_hidden_size: usize,
}

impl ConfigSummary {
    pub(super) fn new(file: PathBuf, config: &Config) -> Self {
        Self {
            file,
            hidden_size: config.hidden_size,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim(),
            intermediate_size: config.intermediate_size,
            vocab_size: config.vocab_size,
            max_position_embeddings: config.max_position_embeddings,
            vit_depth: config.vision.depth,
            vit_hidden_size: config.vision.hidden_size,
        }
    }
}

/// Experts a model file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum ExpertsFound {
    /// UND only: questions.
    #[serde(rename = "und")]
    Und,
    /// Both.
    #[serde(rename = "und+gen")]
    UndAndGen,
}

/// A file and its size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileEntry {
    /// Name, relative to the folder inspected.
    pub name: String,
    /// Bytes.
    pub bytes: u64,
}

/// One component: what it counts and how it is stored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComponentSummary {
    /// Which.
    pub component: Component,
    /// Tensors, weights, bytes, bits per weight.
    pub count: Count,
    /// Element types present, as the files name them.
    pub dtypes: Vec<String>,
    /// Hash over names, shapes, types and bytes, in sixteen hexadecimal digits: equal for equal tensors,
    /// however files order or prefix them. Computed on request: every byte is read.
    pub fingerprint: Option<String>,
}

/// Memory that answering questions needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// Weights read for every token: the UND expert, its norms, the output head.
    pub und_bytes: u64,
    /// The embedding table, of which only the rows looked up are read. Zero when it is the output head too
    /// and counted there.
    pub embed_tokens_bytes: u64,
    /// The vision transformer, read for every image.
    pub vit_bytes: u64,
    /// Keys and values of 1000 tokens, kept in bf16 as with [`ActivationPrecision::Bf16`](lance_mm_tensor::ActivationPrecision::Bf16).
    pub kv_bytes_per_1000_tokens: u64,
}

/// The tokenizer as it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenizerSummary {
    /// The file or folder it was read from.
    pub name: String,
    /// One more than the largest id.
    pub vocabulary: u32,
    /// Tokens whose ids the configuration states too.
    pub special_ids: Vec<SpecialId>,
}

/// A token id as the tokenizer and the configuration have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpecialId {
    /// The token's text.
    pub token: String,
    /// The tokenizer's id, if it has the token.
    pub tokenizer: Option<u32>,
    /// The configuration's id.
    pub config: u32,
}
