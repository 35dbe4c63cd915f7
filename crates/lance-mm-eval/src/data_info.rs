//! The data that a report is about.

use std::path::Path;

use lance_mm_pipelines::inspect::Hash;
use serde::Serialize;

use crate::Dataset;
use crate::error::Result;

/// Data as it was measured on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DataInfo {
    /// Name of its file, without folders.
    pub name: String,
    /// Questions, prompts or texts.
    pub samples: usize,
    /// Tokens that were counted.
    pub tokens: usize,
    /// Hash of each sample, 16 hexadecimal digits: tells samples apart without revealing their content.
    pub hashes: Vec<String>,
}

impl DataInfo {
    /// Questions, of which `tokens` tokens were counted.
    ///
    /// # Errors
    /// As [`Sample::hash`](crate::Sample::hash).
    pub fn of(data: &Dataset, tokens: usize) -> Result<Self> {
        let hashes =
            data.samples.iter().map(|sample| sample.hash(&sample.question)).collect::<Result<_>>()?;
        Ok(Self::new(&data.name, hashes, tokens))
    }

    /// Texts or prompts, of which `tokens` tokens were counted.
    pub fn of_texts(name: &str, texts: &[impl AsRef<str>], tokens: usize) -> Self {
        let hash = |text: &str| {
            let mut hash = Hash::new();
            hash.bytes(text.as_bytes());
            format!("{:016x}", hash.finish())
        };
        Self::new(name, texts.iter().map(|text| hash(text.as_ref())).collect(), tokens)
    }

    fn new(name: &str, hashes: Vec<String>, tokens: usize) -> Self {
        let file = Path::new(name).file_name().and_then(|name| name.to_str());
        Self { name: file.unwrap_or(name).to_owned(), samples: hashes.len(), tokens, hashes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::demos;

    #[test]
    fn samples_are_told_apart_by_hash_and_named_without_folders() {
        let info = DataInfo::of_texts("/home/me/t.txt", &["a", "b", "a"], 3);
        assert_eq!((info.name.as_str(), info.samples, info.tokens), ("t.txt", 3, 3));
        assert!(info.hashes[0] == info.hashes[2] && info.hashes[0] != info.hashes[1]);
        let info = DataInfo::of(&demos(), 0).unwrap();
        assert_eq!((info.samples, info.hashes.iter().all(|hash| hash.len() == 16)), (6, true));
    }
}
