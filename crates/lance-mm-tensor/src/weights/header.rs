//! Checks of a safetensors header before the `safetensors` crate reads it: length, rank, and the end of the data, in
//! one pass that keeps nothing.

use std::fmt;

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};
use crate::metadata::{Bounded, MAX_HEADER_BYTES, Object, parse_json};

/// Most dimensions of a tensor; Lance's have 5.
const MAX_RANK: usize = 8;

/// Compares the length of a file with the one its header implies, for a message with both numbers.
pub(super) fn check(file: &str, bytes: &[u8]) -> Result<()> {
    let bad = |message: String| Error::File { file: file.to_owned(), message };
    let len = bytes.len();
    if len < 1024 && bytes.starts_with(b"version https://git-lfs") {
        return Err(bad("expected weights, found a Git LFS pointer: run `git lfs pull`".into()));
    }
    let Some(header) = bytes.first_chunk::<8>().map(|n| u64::from_le_bytes(*n)) else {
        return Err(bad(format!("expected a safetensors header, found {len} bytes")));
    };
    let end = usize::try_from(header).ok().and_then(|n| n.checked_add(8));
    let Some(json) = end.and_then(|end| bytes.get(8..end)) else {
        return Err(bad(format!(
            "truncated or not safetensors: expected a header of {header} bytes, found {len} bytes"
        )));
    };
    if header > MAX_HEADER_BYTES {
        return Err(bad(format!("expected a header of at most {MAX_HEADER_BYTES} bytes, found {header}")));
    }
    let Extent(data) = parse_json(file, json)?;
    let expected = data.saturating_add(header).saturating_add(8);
    if expected > len as u64 {
        return Err(bad(format!("truncated: expected {expected} bytes, found {len}")));
    }
    Ok(())
}

/// The largest end of a tensor's bytes.
struct Extent(u64);

impl<'de> Deserialize<'de> for Extent {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Extent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a safetensors header")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Extent, A::Error> {
                let mut end = 0;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        let Object(tensor) = map.next_value::<Object<Tensor>>()?;
                        end = end.max(tensor.data_offsets.1);
                    }
                }
                Ok(Extent(end))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

// The crate keeps what it does not know of a tensor as values, at 28 bytes of memory a byte.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tensor {
    #[expect(dead_code, reason = "no list or object")]
    dtype: String,
    #[expect(dead_code, reason = "counted while it is read")]
    shape: Bounded<IgnoredAny, MAX_RANK>,
    data_offsets: (u64, u64),
}
