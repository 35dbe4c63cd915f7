//! Models of the Hugging Face hub: names of repositories and their local cache, which other programs share.
//!
//! Reading the cache needs no network. Downloading is `pull`, with the feature `hub`.

#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod selection;

use std::env;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use crate::checkpoint::CheckpointFiles;
use crate::error::{Error, Result};
#[cfg(feature = "hub")]
pub use pull::{PullEvent, PullOptions, pull};

/// Repository of a quantized Lance that answers questions well.
pub const RECOMMENDED: &str = "mlx-community/Lance-3B-AWQ-INT4";

/// A repository of the hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RepoName {
    id: String,
    revision: String,
}

impl RepoName {
    /// Parses `org/name` or `org/name@revision`; `None` if it is neither. Without a revision it is `main`.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = id.split_once('/')?;
        let legal = is_segment(org) && is_segment(name) && is_revision(revision);
        legal.then(|| Self { id: id.to_owned(), revision: revision.to_owned() })
    }

    /// The same repository at another revision; `None` if `revision` is no branch, tag or commit.
    pub fn at(&self, revision: &str) -> Option<Self> {
        is_revision(revision).then(|| Self { id: self.id.clone(), revision: revision.to_owned() })
    }

    /// `org/name`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A branch, tag or commit.
    pub fn revision(&self) -> &str {
        &self.revision
    }

    /// Folder of this revision in the cache, complete or not; `None` if there is none.
    ///
    /// # Errors
    /// No home folder and no `HF_HOME`.
    pub fn cached(&self) -> Result<Option<PathBuf>> {
        let repo = cache_dir()?.join(format!("models--{}", self.id.replace('/', "--")));
        let snapshot = |commit: &str| {
            let folder = repo.join("snapshots").join(commit);
            Some(folder).filter(|folder| folder.join("config.json").is_file())
        };
        let commit = fs::read_to_string(repo.join("refs").join(&self.revision)).ok();
        let commit = commit.filter(|commit| is_segment(commit));
        // A commit that other programs fetched has no reference of its own.
        Ok(commit.and_then(|commit| snapshot(&commit)).or_else(|| snapshot(&self.revision)))
    }

    /// Folder of this revision in the cache, with configuration, language model and tokenizer.
    ///
    /// # Errors
    /// [`Error::NotCached`] where the cache has none or only a part of it; as [`cached`](Self::cached).
    pub fn require_cached(&self) -> Result<PathBuf> {
        let Some(folder) = self.cached()? else {
            return Err(self.not_cached(format!("not in the hub's cache {}", cache_dir()?.display())));
        };
        let files = CheckpointFiles::in_dir(&folder);
        if files.model.is_none() || files.tokenizer.is_empty() {
            return Err(self.not_cached("only a part of it is in the hub's cache".to_owned()));
        }
        Ok(folder)
    }

    fn not_cached(&self, found: String) -> Error {
        Error::NotCached { name: self.to_string(), message: format!("{found}; run: lance-mm pull {self}") }
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision.as_str() {
            "main" => f.write_str(&self.id),
            revision => write!(f, "{}@{revision}", self.id),
        }
    }
}

/// Folder of the hub's cache: `hub` in `HF_HOME`, or in `.cache/huggingface` of the home folder.
///
/// # Errors
/// No home folder and no `HF_HOME`.
pub fn cache_dir() -> Result<PathBuf> {
    let home = env::var_os("HF_HOME").map(PathBuf::from);
    let home = home.or_else(|| env::home_dir().map(|home| home.join(".cache/huggingface")));
    home.map(|home| home.join("hub")).ok_or_else(|| Error::Hub {
        name: "hub".into(),
        message: "expected a home folder or HF_HOME for its cache, found neither".into(),
    })
}

/// Whether `text` can be a folder's name in the cache: nothing that climbs, nothing hidden.
fn is_segment(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && !text.starts_with('.') && text.chars().all(legal)
}

fn is_revision(text: &str) -> bool {
    text.split('/').all(is_segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_repositories() {
        let name = RepoName::parse("mlx-community/Lance-3B-AWQ-INT4").unwrap();
        assert_eq!((name.id(), name.revision()), ("mlx-community/Lance-3B-AWQ-INT4", "main"));
        assert_eq!(name.to_string(), "mlx-community/Lance-3B-AWQ-INT4");
        assert_eq!(RepoName::parse("a/b@refs/pr/1").unwrap().to_string(), "a/b@refs/pr/1");
        for text in [
            "", "a", "/a", "a/", "a/b/c", "./a", "../a", "a/..", "~/a", "a b/c", "a/b@", "a/b@../x",
            "C:\\a/b",
        ] {
            assert_eq!(RepoName::parse(text), None, "{text}");
        }
        assert_eq!(name.at(".."), None);
    }
}
