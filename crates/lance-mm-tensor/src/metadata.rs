//! Files that describe weights: size limits, JSON whose errors name the field, and text that is short enough to print.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::marker::PhantomData;
use std::path::Path;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

pub use crate::error::shortened;
use crate::error::{Error, Result};

/// Most bytes of a configuration. Entries for each module of Lance take 50 kB.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;
/// Most bytes of a safetensors header or of an index of shards. Those of the largest Lance checkpoint take 0.7 MB.
pub const MAX_HEADER_BYTES: u64 = 8 << 20;
/// Most characters of a message about a file.
const MAX_MESSAGE: usize = 500;

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// A path that is no regular file, a longer file, an error of the operating system.
pub fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let io = |source| Error::Io { path: path.to_owned(), source };
    let bad = |message: String| Error::File { file: path.display().to_string(), message };
    // Looked at before it is opened: opening a pipe waits for its other end.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(bad("expected a file, found a folder or device".into()));
    }
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let mut bytes = Vec::new();
    if len <= limit {
        file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    }
    let len = len.max(bytes.len() as u64);
    if len > limit {
        return Err(bad(format!("expected at most {limit} bytes, found {len}")));
    }
    Ok(bytes)
}

/// Parses a JSON object. Lists do not stand for objects; see [`Object`].
///
/// # Errors
/// `file: vision_config.depth: invalid type: ..`, shortened.
pub fn parse_json<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T> {
    let bad = |error: &dyn fmt::Display| Error::File {
        file: file.to_owned(),
        message: shortened(&error.to_string(), MAX_MESSAGE).into_owned(),
    };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let Object(value) = serde_path_to_error::deserialize(&mut json).map_err(|error| bad(&error))?;
    json.end().map_err(|error| bad(&error))?;
    Ok(value)
}

/// A JSON object as `T`. Derived structs would also be read from a list, field by field in order.
#[derive(Clone, Debug, Default)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> std::result::Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

/// A list of at most `MAX` elements, refused before it takes more memory than those.
#[derive(Clone, Debug)]
pub struct Bounded<T, const MAX: usize>(pub Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct BoundedVisitor<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for BoundedVisitor<T, MAX> {
            type Value = Bounded<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of at most {MAX} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Self::Value, A::Error> {
                let mut list = Vec::new();
                while let Some(element) = seq.next_element()? {
                    if list.len() == MAX {
                        return Err(serde::de::Error::invalid_length(MAX + 1, &self));
                    }
                    list.push(element);
                }
                Ok(Bounded(list))
            }
        }
        deserializer.deserialize_seq(BoundedVisitor(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        inner: Object<Inner>,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        count: u8,
        list: Option<Bounded<u8, 2>>,
    }

    fn parse(json: &str) -> Result<Outer> {
        parse_json("c.json", json.as_bytes())
    }

    #[test]
    fn json_errors_name_file_and_field() {
        let parsed = parse(r#"{"inner": {"count": 1, "list": [1, 2], "other": []}}"#).unwrap();
        assert_eq!((parsed.inner.0.count, parsed.inner.0.list.unwrap().0), (1, vec![1, 2]));
        for (json, expected) in [
            (r#"{"inner": {"count": -1}}"#, "c.json: inner.count: invalid value: integer `-1`, expected u8"),
            (r#"{"inner": [1, [2]]}"#, "c.json: inner: invalid type: sequence, expected an object"),
            (r#"[{"count": 1}]"#, "c.json: invalid type: sequence, expected an object"),
            (
                r#"{"inner": {"count": 1, "list": [1, 2, 3]}}"#,
                "c.json: inner.list: invalid length 3, expected a list",
            ),
            (r#"{"inner": {"count": 1}} x"#, "c.json: trailing characters"),
            (r#"{"inner": {"list": []}}"#, "c.json: inner: missing field `count`"),
            ("{", "c.json: EOF"),
        ] {
            let text = parse(json).unwrap_err().to_string();
            assert!(text.starts_with(expected), "{text}, expected {expected}");
        }
        let long = format!(r#"{{"inner": {{"count": "{}"}}}}"#, "x".repeat(100_000));
        assert!(parse(&long).unwrap_err().to_string().len() < 600);
        assert!(parse(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000))).is_err(), "deep nesting");
    }

    #[test]
    fn files_are_read_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "1234").unwrap();
        assert_eq!(read_file(&path, 4).unwrap(), b"1234");
        let text = read_file(&path, 3).unwrap_err().to_string();
        assert!(text.ends_with("f: expected at most 3 bytes, found 4"), "{text}");
        assert!(read_file(dir.path(), 9).unwrap_err().to_string().contains("found a folder or device"));
        #[cfg(unix)]
        assert!(read_file(Path::new("/dev/zero"), 9).unwrap_err().to_string().contains("device"));
        assert!(matches!(read_file(&dir.path().join("none"), 9), Err(Error::Io { .. })));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        assert_eq!(shortened("äöü", 3), "äöü");
        assert_eq!(shortened("äöü", 2), "äö..");
    }
}
