//! Whether a checkpoint that was converted and converted back is the one it was.

use anyhow::{Context, Result};
use safetensors::Dtype;

use super::checkpoint::Checkpoint;
use crate::located::{Located, cast};

/// How tensors of one part compare.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Same name, shape, type and bytes.
    equal: usize,
    /// The same values in another type.
    other_type: usize,
    /// Values that BF16 does not hold, rounded to it.
    rounded: Vec<String>,
    /// Other values, another shape, or not there.
    different: Vec<String>,
    /// On the way back only.
    extra: Vec<String>,
}

impl Counts {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn passed(&self) -> bool {
        self.rounded.is_empty() && self.different.is_empty() && self.extra.is_empty()
    }

    /// A line about the part `name`.
    pub(super) fn line(&self, name: &str) -> String {
        let all = self.equal + self.other_type + self.rounded.len() + self.different.len();
        let mut line = format!("verify {name}: {} of {all} tensors byte-equal", self.equal);
        if self.other_type > 0 {
            line += &format!(", {} of the same values in another type", self.other_type);
        }
        for (what, names) in [
            ("rounded to BF16", &self.rounded),
            ("different", &self.different),
            ("only on the way back", &self.extra),
        ] {
            if let Some(first) = names.first() {
                line += &format!(", {} {what} (first {first})", names.len());
            }
        }
        line
    }
}

/// Compares the parts of two checkpoints: names of the parts and how their tensors compare.
pub(super) fn compare(first: &Checkpoint, back: &Checkpoint) -> Result<[(&'static str, Counts); 3]> {
    Ok([
        ("llm", part(&first.llm, &back.llm)?),
        ("vit", part(&first.vit, &back.vit)?),
        ("vae", part(&first.vae, &back.vae)?),
    ])
}

fn part(first: &[Located], back: &[Located]) -> Result<Counts> {
    let mut counts = Counts::default();
    for tensor in first {
        let name = || tensor.name.clone();
        match back.iter().find(|other| other.name == tensor.name && other.shape == tensor.shape) {
            None => counts.different.push(name()),
            Some(other) => match values(tensor, other).with_context(name)? {
                Same::Bytes if tensor.dtype == other.dtype => counts.equal += 1,
                Same::Bytes => counts.other_type += 1,
                Same::Rounded => counts.rounded.push(name()),
                Same::Not => counts.different.push(name()),
            },
        }
    }
    let known = |other: &&Located| !first.iter().any(|tensor| tensor.name == other.name);
    counts.extra = back.iter().filter(known).map(|other| other.name.clone()).collect();
    Ok(counts)
}

enum Same {
    /// Bytes of the same type, or values of different ones.
    Bytes,
    Rounded,
    Not,
}

/// Compares tensors of one shape chunk by chunk.
fn values(a: &Located, b: &Located) -> Result<Same> {
    let mut same = Same::Bytes;
    for (x, y) in a.chunks().zip(b.chunks()) {
        let (x, y) = (x?, y?);
        if a.dtype == b.dtype && x == y {
            continue;
        }
        let (x, y) = (cast(x, a.dtype, Dtype::F32)?, cast(y, b.dtype, Dtype::F32)?);
        if x == y {
            continue;
        }
        if cast(x, Dtype::F32, Dtype::BF16)? != cast(y, Dtype::F32, Dtype::BF16)? {
            return Ok(Same::Not);
        }
        same = Same::Rounded;
    }
    Ok(same)
}

#[cfg(test)]
mod tests {
    use crate::located::Source;

    use super::*;

    fn tensor(dir: &tempfile::TempDir, name: &str, dtype: Dtype, bytes: &[u8], shape: &[usize]) -> Located {
        let path = dir.path().join(format!("{dtype:?}{bytes:?}"));
        std::fs::write(&path, bytes).unwrap();
        Located::new(&Source::open(&path).unwrap(), name.into(), dtype, shape.to_vec(), 0)
    }

    #[test]
    fn every_way_of_not_being_equal_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let one = |name: &str, value: f32| tensor(&dir, name, Dtype::F32, &value.to_le_bytes(), &[1]);
        let half = |name: &str| tensor(&dir, name, Dtype::BF16, &[0x80, 0x3f], &[1]);
        let first = [one("a", 1.0), half("b"), one("c", 1.0001), one("d", 1.0), one("e", 1.0), one("f", 1.0)];
        let wide = one("e", 1.0).with_unit_dimensions(2);
        let back = [one("a", 1.0), one("b", 1.0), one("c", 1.0), one("d", 2.0), wide, one("g", 1.0)];
        let counts = part(&first, &back).unwrap();
        assert!(!counts.passed());
        assert_eq!(
            counts.line("llm"),
            "verify llm: 1 of 6 tensors byte-equal, 1 of the same values in another type, 1 rounded to BF16 \
             (first c), 3 different (first d), 1 only on the way back (first g)"
        );
        let same = part(&first, &first).unwrap();
        assert!(same.passed() && same.line("vit") == "verify vit: 6 of 6 tensors byte-equal");
        assert!(part(&[], &[]).unwrap().is_empty());
    }
}
