//! Numbers of tensors, weights and bytes.

use std::iter::Sum;
use std::ops::AddAssign;

use serde::{Serialize, Serializer, ser::SerializeStruct};

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
