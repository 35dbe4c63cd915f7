//! Names of repositories on the Hugging Face hub, and their copies in its local cache.

use std::fmt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};

/// A repository of the hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RepoName {
    /// `org/name`.
    pub(crate) id: String,
    /// A branch, tag or commit; `main` unless given.
    pub(crate) revision: String,
}

impl RepoName {
    /// Reads `org/name` or `org/name@revision`; `None` if it is neither.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = id.split_once('/')?;
        let legal = is_segment(org) && is_segment(name) && is_revision(revision);
        legal.then(|| Self { id: id.to_owned(), revision: revision.to_owned() })
    }

    /// The same repository at another revision; `None` if that is none.
    pub(crate) fn at(&self, revision: &str) -> Option<Self> {
        is_revision(revision).then(|| Self { id: self.id.clone(), revision: revision.to_owned() })
    }

    /// The repository as hf-hub names it.
    pub(crate) fn repo(&self) -> Repo {
        Repo::with_revision(self.id.clone(), RepoType::Model, self.revision.clone())
    }

    /// The folder of this revision in the cache, if there is one.
    pub(crate) fn cached(&self) -> Result<Option<PathBuf>> {
        let cache = self.cache()?;
        if let Some(folder) = cache.get("config.json").and_then(|path| Some(path.parent()?.to_owned())) {
            return Ok(Some(folder));
        }
        // A commit that other programs fetched has no reference of its own.
        let folder = cache.pointer_path(&self.revision);
        Ok(Some(folder).filter(|folder| folder.join("config.json").is_file()))
    }

    /// This repository's place in the cache.
    pub(crate) fn cache(&self) -> Result<CacheRepo> {
        Ok(cache()?.repo(self.repo()))
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

/// The hub's cache: below `HF_HOME`, or in the home folder.
pub(crate) fn cache() -> Result<Cache> {
    // hf-hub panics where there is no home folder.
    if std::env::var("HF_HOME").is_err() && std::env::home_dir().is_none() {
        bail!("expected a home folder or HF_HOME for the hub's cache, found neither");
    }
    Ok(Cache::from_env())
}

/// These parts become folder names: nothing that climbs, nothing hidden.
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
        assert_eq!((name.id.as_str(), name.revision.as_str()), ("mlx-community/Lance-3B-AWQ-INT4", "main"));
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
