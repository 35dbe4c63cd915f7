//! Counting tensors, weights and bytes.

use std::collections::{BTreeMap, HashSet};
use std::iter::Sum;
use std::ops::AddAssign;

use lance_mm_tensor::TensorInfo;
use serde::{Serialize, Serializer, ser::SerializeStruct};

use super::component::{Component, Source, classify};
use super::quantized::Module;

/// Tensors, the weights they stand for, and their bytes.
///
/// A packed matrix `(R, K)` counts R·K weights; its scales and biases count none. Serialized with
/// [`bits_per_weight`](Self::bits_per_weight).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Tensors as stored.
    pub tensors: usize,
    /// Weights.
    pub parameters: u64,
    /// Bytes on disk, headers not counted.
    pub bytes: u64,
}

impl Count {
    /// 8 · bytes / weights, scales and biases included; `None` without weights.
    pub fn bits_per_weight(&self) -> Option<f64> {
        (self.parameters > 0).then(|| 8.0 * self.bytes as f64 / self.parameters as f64)
    }
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.tensors += other.tensors;
        self.parameters = self.parameters.saturating_add(other.parameters);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }
}

impl Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        let mut sum = Self::default();
        counts.for_each(|count| sum += count);
        sum
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut s = serializer.serialize_struct("Count", 4)?;
        s.serialize_field("tensors", &self.tensors)?;
        s.serialize_field("parameters", &self.parameters)?;
        s.serialize_field("bytes", &self.bytes)?;
        s.serialize_field("bits_per_weight", &self.bits_per_weight())?;
        s.end()
    }
}

/// One tensor with what it is and what it counts.
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
