//! The packed matrices of a file: how many weights they stand for, and under which scheme.

use std::collections::{BTreeMap, HashMap};

use lance_mm_models::Config;
use lance_mm_tensor::{Quantization, Scheme, TensorInfo};
use serde::Serialize;

use super::component::{Component, Source, classify};
use super::count::Count;

/// How a model file is quantized.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantizationSummary {
    /// The configuration's setting for modules without an entry of their own.
    pub default: Option<SchemeName>,
    /// Packed matrices by scheme. Its bits per weight are those *per quantized weight*: b + 32/g with
    /// 16-bit scales and biases.
    pub schemes: Vec<SchemeCount>,
    /// All packed matrices together.
    pub packed: Count,
    /// Modules whose scheme cannot be told.
    pub unclear: Vec<String>,
    /// Linear layers and embeddings of the file that are left dense.
    pub dense: Vec<String>,
}

/// Mode, bits and group size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SchemeName {
    /// `affine`, `mxfp4`, `mxfp8` or `nvfp4`.
    pub mode: String,
    /// Bits of a code.
    pub bits: usize,
    /// Weights that share a scale.
    pub group_size: usize,
}

/// Weights packed under one scheme.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SchemeCount {
    /// The scheme.
    pub scheme: SchemeName,
    /// Matrices.
    pub modules: usize,
    /// Their tensors (words, scales, biases), weights and bytes.
    pub count: Count,
}

impl From<Scheme> for SchemeName {
    fn from(scheme: Scheme) -> Self {
        Self { mode: scheme.mode().to_string(), bits: scheme.bits(), group_size: scheme.group_size() }
    }
}

/// A packed matrix.
pub(super) struct Module {
    scheme: Option<Scheme>,
    count: Count,
}

impl Module {
    /// Weights it stands for.
    pub(super) fn parameters(&self) -> u64 {
        self.count.parameters
    }
}

/// The packed matrices of a file by path: words with scales beside them.
pub(super) fn modules(
    source: Source,
    tensors: &[TensorInfo],
    config: Option<&Config>,
    quantization: &Quantization,
) -> BTreeMap<String, Module> {
    let by_name: HashMap<&str, &TensorInfo> = tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut modules = BTreeMap::new();
    for weight in tensors {
        let Some(path) = weight.name.strip_suffix(".weight") else { continue };
        let part = |name: &str| by_name.get(format!("{path}.{name}").as_str()).copied();
        let (Some(scales), [rows, words], true) = (part("scales"), weight.shape.as_slice(), is_words(weight))
        else {
            continue;
        };
        let (biases, groups) = (part("biases"), scales.shape.last().copied().unwrap_or(0));
        let cols = cols(source, path, config).or_else(|| stated_cols(quantization, path, *words));
        let scheme = cols.and_then(|k| quantization.scheme(path, k, *words, groups, biases.is_some()).ok());
        let parameters = cols.and_then(|k| rows.checked_mul(k)).unwrap_or(0) as u64;
        let mut count = Count::default();
        for part in [Some(weight), Some(scales), biases].into_iter().flatten() {
            count += Count { tensors: 1, parameters: 0, bytes: part.bytes as u64 };
        }
        count.parameters = parameters;
        modules.insert(path.to_owned(), Module { scheme, count });
    }
    modules
}

fn is_words(weight: &TensorInfo) -> bool {
    format!("{:?}", weight.dtype) == "U32"
}

/// Columns of a module's matrix, from what the network is.
fn cols(source: Source, path: &str, config: Option<&Config>) -> Option<usize> {
    let config = config?;
    let last = path.rsplit('.').next()?.trim_end_matches("_moe_gen");
    if classify(source, &format!("{path}.weight")).0 == Component::Vit {
        let vit = &config.vision;
        return match last {
            "qkv" | "proj" | "gate_proj" | "up_proj" => Some(vit.hidden_size),
            "down_proj" => Some(vit.intermediate_size),
            _ => Some(vit.hidden_size * vit.spatial_merge_size * vit.spatial_merge_size),
        };
    }
    match last {
        "q_proj" | "k_proj" | "v_proj" | "o_proj" | "gate_proj" | "up_proj" => Some(config.hidden_size),
        "embed_tokens" | "lm_head" | "llm2vae" | "proj_out" => Some(config.hidden_size),
        "down_proj" => Some(config.intermediate_size),
        _ => None,
    }
}

/// Columns of a module that the network does not tell, from the bits the configuration states.
fn stated_cols(quantization: &Quantization, path: &str, words: usize) -> Option<usize> {
    let own = quantization.modules().find(|(module, _)| *module == path).and_then(|(_, scheme)| scheme);
    let scheme = own.or_else(|| quantization.default_scheme())?;
    words.checked_mul(32).map(|bits| bits / scheme.bits())
}

/// Sums the packed matrices up; `None` when there are none.
pub(super) fn summary(
    tensors: &[TensorInfo],
    modules: &BTreeMap<String, Module>,
    quantization: &Quantization,
) -> Option<QuantizationSummary> {
    if modules.is_empty() && quantization.default_scheme().is_none() {
        return None;
    }
    let mut schemes: BTreeMap<Scheme, (usize, Count)> = BTreeMap::new();
    for (scheme, count) in modules.values().filter_map(|m| m.scheme.map(|scheme| (scheme, m.count))) {
        let sum = schemes.entry(scheme).or_default();
        sum.0 += 1;
        sum.1 += count;
    }
    Some(QuantizationSummary {
        default: quantization.default_scheme().map(SchemeName::from),
        packed: modules.values().map(|m| m.count).sum(),
        unclear: modules.iter().filter(|(_, m)| m.scheme.is_none()).map(|(path, _)| path.clone()).collect(),
        dense: dense(tensors, modules),
        schemes: schemes
            .into_iter()
            .map(|(scheme, (modules, count))| SchemeCount { scheme: scheme.into(), modules, count })
            .collect(),
    })
}

/// Paths of matrices that are not packed.
fn dense(tensors: &[TensorInfo], modules: &BTreeMap<String, Module>) -> Vec<String> {
    let matrices = tensors.iter().filter(|t| t.shape.len() == 2);
    let paths = matrices.filter_map(|t| t.name.strip_suffix(".weight"));
    let mut paths: Vec<String> =
        paths.filter(|path| !modules.contains_key(*path)).map(str::to_owned).collect();
    paths.sort_unstable();
    paths
}
