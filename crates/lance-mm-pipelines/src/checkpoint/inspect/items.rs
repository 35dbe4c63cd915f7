//! Tensors of a file, classified and counted.

use std::collections::{BTreeMap, HashSet};

use lance_mm_tensor::TensorInfo;

use super::component::{Component, Source, classify};
use super::count::Count;
use super::quantized::Module;

/// A tensor, its component and its counts.
pub(super) struct Item<'a> {
    pub(super) source: Source,
    pub(super) info: &'a TensorInfo,
    pub(super) component: Component,
    /// Its name in MLX's layout.
    pub(super) name: &'a str,
    pub(super) count: Count,
}

/// Classifies and counts the tensors of a file.
pub(super) fn items<'a>(
    source: Source,
    tensors: &'a [TensorInfo],
    modules: &BTreeMap<String, Module>,
) -> Vec<Item<'a>> {
    // Words of the per-channel INT4 layout: two weights a byte, zeros beside them.
    let qweights: HashSet<&str> = tensors.iter().filter_map(|t| t.name.strip_suffix(".qweight")).collect();
    let parameters = |info: &TensorInfo| {
        let elements = info.shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64));
        let Some((path, part)) = info.name.rsplit_once('.') else { return elements };
        match (part, modules.get(path)) {
            ("weight", Some(module)) => module.parameters(),
            ("scales" | "biases", Some(_)) | ("scales_fp8" | "scales_bf16", _) => 0,
            ("qweight", _) => elements.saturating_mul(2),
            ("scales" | "zeros", _) if qweights.contains(path) => 0,
            _ => elements,
        }
    };
    let item = |info: &'a TensorInfo| {
        let (component, name) = classify(source, &info.name);
        let count = Count { tensors: 1, parameters: parameters(info), bytes: info.bytes as u64 };
        Item { source, info, component, name, count }
    };
    tensors.iter().map(item).collect()
}
