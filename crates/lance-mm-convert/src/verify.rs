//! Compares a checkpoint with what became of it on the way there and back.

use std::fmt;

use lance_mm_tensor::StopFlag;
use safetensors::Dtype;

use crate::error::Result;
use crate::file_tensor::{FileTensor, to_bf16};
use crate::parts::Parts;

/// How the tensors of one part compare after a conversion there and back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RoundTrip {
    /// `llm`, `vit` or `vae`.
    pub part: &'static str,
    /// Tensors of the same name, shape, type and bytes.
    pub equal: usize,
    /// Tensors of the same values in another type.
    pub other_type: usize,
    /// Tensors with values that BF16 does not hold, rounded to it.
    pub rounded: Vec<String>,
    /// Tensors with other values or another shape, or that are missing.
    pub different: Vec<String>,
    /// Tensors that the source does not have.
    pub extra: Vec<String>,
}

impl RoundTrip {
    /// Whether every tensor came back with its values.
    pub fn passed(&self) -> bool {
        self.rounded.is_empty() && self.different.is_empty() && self.extra.is_empty()
    }
}

impl fmt::Display for RoundTrip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.equal + self.other_type + self.rounded.len() + self.different.len();
        write!(f, "verify {}: {} of {all} tensors byte-equal", self.part, self.equal)?;
        if self.other_type > 0 {
            write!(f, ", {} of the same values in another type", self.other_type)?;
        }
        for (what, names) in [
            ("rounded to BF16", &self.rounded),
            ("different", &self.different),
            ("only on the way back", &self.extra),
        ] {
            if let Some(first) = names.first() {
                write!(f, ", {} {what} (first {first})", names.len())?;
            }
        }
        Ok(())
    }
}

/// Compares the parts of two checkpoints; parts that neither has are left out.
pub(crate) fn compare(first: &Parts, back: &Parts, stop: &StopFlag) -> Result<Vec<RoundTrip>> {
    let parts =
        [("llm", &first.llm, &back.llm), ("vit", &first.vit, &back.vit), ("vae", &first.vae, &back.vae)];
    let held = parts.into_iter().filter(|(_, first, back)| !first.is_empty() || !back.is_empty());
    held.map(|(part, first, back)| compare_part(part, first, back, stop)).collect()
}

fn compare_part(
    part: &'static str,
    first: &[FileTensor],
    back: &[FileTensor],
    stop: &StopFlag,
) -> Result<RoundTrip> {
    let mut trip = RoundTrip { part, ..RoundTrip::default() };
    for tensor in first {
        stop.check()?;
        let name = || tensor.name.clone();
        match back.iter().find(|other| other.name == tensor.name && other.shape == tensor.shape) {
            None => trip.different.push(name()),
            Some(other) => match values(tensor, other)? {
                Same::Bytes if tensor.dtype == other.dtype => trip.equal += 1,
                Same::Bytes => trip.other_type += 1,
                Same::Rounded => trip.rounded.push(name()),
                Same::Not => trip.different.push(name()),
            },
        }
    }
    let known = |other: &&FileTensor| !first.iter().any(|tensor| tensor.name == other.name);
    trip.extra = back.iter().filter(known).map(|other| other.name.clone()).collect();
    Ok(trip)
}

enum Same {
    /// Bytes of the same type, or values of different ones.
    Bytes,
    Rounded,
    Not,
}

/// Compares tensors of one shape chunk by chunk.
fn values(a: &FileTensor, b: &FileTensor) -> Result<Same> {
    let mut same = Same::Bytes;
    for (x, y) in a.chunks().zip(b.chunks()) {
        let (x, y) = (x?, y?);
        if a.dtype == b.dtype && x == y {
            continue;
        }
        let (x, y) = (a.cast(x, Dtype::F32)?, b.cast(y, Dtype::F32)?);
        if x == y {
            continue;
        }
        if to_bf16(&x) != to_bf16(&y) {
            return Ok(Same::Not);
        }
        same = Same::Rounded;
    }
    Ok(same)
}

#[cfg(test)]
mod tests {
    use crate::file_tensor::Source;

    use super::*;

    fn tensor(
        dir: &tempfile::TempDir,
        name: &str,
        dtype: Dtype,
        bytes: &[u8],
        shape: &[usize],
    ) -> FileTensor {
        let path = dir.path().join(format!("{dtype:?}{bytes:?}"));
        std::fs::write(&path, bytes).unwrap();
        FileTensor::new(&Source::open(&path).unwrap(), name.into(), dtype, shape.to_vec(), 0)
    }

    #[test]
    fn every_way_of_not_being_equal_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let one = |name: &str, value: f32| tensor(&dir, name, Dtype::F32, &value.to_le_bytes(), &[1]);
        let half = |name: &str| tensor(&dir, name, Dtype::BF16, &[0x80, 0x3f], &[1]);
        let first = [one("a", 1.0), half("b"), one("c", 1.0001), one("d", 1.0), one("e", 1.0), one("f", 1.0)];
        let wide = one("e", 1.0).with_unit_dimensions(2);
        let back = [one("a", 1.0), one("b", 1.0), one("c", 1.0), one("d", 2.0), wide, one("g", 1.0)];
        let stop = StopFlag::new();
        let trip = compare_part("llm", &first, &back, &stop).unwrap();
        assert!(!trip.passed());
        assert_eq!(
            trip.to_string(),
            "verify llm: 1 of 6 tensors byte-equal, 1 of the same values in another type, 1 rounded to BF16 \
             (first c), 3 different (first d), 1 only on the way back (first g)"
        );
        let same = compare_part("vit", &first, &first, &stop).unwrap();
        assert!(same.passed() && same.to_string() == "verify vit: 6 of 6 tensors byte-equal");
    }
}
