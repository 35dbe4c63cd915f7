//! Models of the Hugging Face hub: names of repositories and their local cache, which other programs share.
//!
//! Reading the cache needs no network. Downloading is `pull`, with the feature `hub`.

#[cfg(feature = "hub")]
mod cache;
#[cfg(feature = "hub")]
mod client;
mod environment;
#[cfg(feature = "hub")]
mod event;
#[cfg(feature = "hub")]
mod fetch;
#[cfg(feature = "hub")]
mod hash;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod selection;
#[cfg(feature = "hub")]
#[cfg(test)]
mod tests;
#[cfg(feature = "hub")]
mod url;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointFiles;
use crate::error::{Error, Result};
use environment::Environment;
#[cfg(feature = "hub")]
pub use event::PullEvent;
#[cfg(feature = "hub")]
pub use pull::{PullOptions, pull};

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
        // The cache writes `--` for `/`; the hub has no such names.
        let legal = is_segment(org) && is_segment(name) && !id.contains("--") && is_revision(revision);
        legal.then(|| Self { id: id.to_owned(), revision: revision.to_owned() })
    }

    /// The repository that an address of the hub (`https://huggingface.co/org/name/tree/main`, `hf.co/org/name`), or a
    /// name with too much around it (`org/name/`), means; `None` for a well-formed name and for everything else.
    pub fn suggest(text: &str) -> Option<Self> {
        if Self::parse(text).is_some() {
            return None;
        }
        let text = text.trim().split(['?', '#']).next()?;
        let rest =
            ["https://", "http://", "hf://", "git@"].iter().find_map(|scheme| text.strip_prefix(scheme));
        let rest = rest.unwrap_or(text).strip_prefix("www.").unwrap_or(rest.unwrap_or(text));
        let hosts = ["huggingface.co", "hf.co", "hf-mirror.com"];
        let path = hosts.iter().find_map(|host| rest.strip_prefix(host)?.strip_prefix(['/', ':']));
        // An address of another host is no name.
        let path = path.or_else(|| (rest == text || text.starts_with("hf://")).then_some(rest))?;
        let path = path.strip_prefix("models/").unwrap_or(path);
        let mut segments = path.split('/').filter(|segment| !segment.is_empty());
        let (org, name) = (segments.next()?, segments.next()?);
        let relative = path.starts_with(['/', '.', '~']) || matches!(org, "datasets" | "spaces");
        let id = format!("{org}/{}", name.strip_suffix(".git").unwrap_or(name));
        let found = match (segments.next(), segments.next()) {
            (None, _) => Self::parse(&id),
            (Some("tree" | "blob" | "resolve" | "raw" | "commit"), Some(revision)) => {
                Self::parse(&id)?.at(revision)
            }
            _ => None,
        };
        found.filter(|_| !relative)
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
    /// No place for the cache, as [`cache_dir`].
    pub fn cached(&self) -> Result<Option<PathBuf>> {
        Ok(self.cached_in(&cache_dir()?))
    }

    fn cached_in(&self, cache: &Path) -> Option<PathBuf> {
        let repo = self.folder_in(cache);
        let snapshot = |commit: &str| {
            let folder = repo.join("snapshots").join(commit);
            Some(folder).filter(|folder| folder.join("config.json").is_file())
        };
        // A commit that other programs fetched has no reference of its own.
        let commit = commit_at(&repo.join("refs").join(&self.revision));
        commit.and_then(|commit| snapshot(&commit)).or_else(|| snapshot(&self.revision))
    }

    /// Folder of this revision in the cache, with configuration, language model and tokenizer. Contents are not
    /// compared with the hub's hashes; `pull` does that.
    ///
    /// # Errors
    /// [`Error::NotCached`] where the cache has none or only a part of it; as [`cached`](Self::cached).
    pub fn require_cached(&self) -> Result<PathBuf> {
        self.require_cached_in(&cache_dir()?)
    }

    fn require_cached_in(&self, cache: &Path) -> Result<PathBuf> {
        let Some(folder) = self.cached_in(cache) else {
            return Err(self.not_cached(format!(
                "not in the hub's cache {}{}",
                cache.display(),
                self.others(cache)
            )));
        };
        let files = CheckpointFiles::in_dir(&folder);
        if files.model.is_none() || files.tokenizer.is_empty() {
            return Err(self.not_cached("only a part of it is in the hub's cache".to_owned()));
        }
        Ok(folder)
    }

    /// Folder of the repository in the cache.
    fn folder_in(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}", self.id.replace('/', "--")))
    }

    /// A hint at the commits of this repository that the cache has.
    fn others(&self, cache: &Path) -> String {
        let found = super::visible(&self.folder_in(cache).join("snapshots")).unwrap_or_default();
        match found.iter().find(|commit| is_segment(commit)) {
            Some(commit) => format!(" (another commit is: {}@{commit})", self.id),
            None => String::new(),
        }
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

/// Folder of the hub's cache, where Hugging Face's own programs have it: `HF_HUB_CACHE`, else `HUGGINGFACE_HUB_CACHE`,
/// else `hub` in `HF_HOME`, else `huggingface/hub` in `XDG_CACHE_HOME`, else in `.cache` of the home folder.
///
/// # Errors
/// No home folder and none of these.
pub fn cache_dir() -> Result<PathBuf> {
    Environment::of_process().cache()
}

/// The commit that a reference of the cache names.
fn commit_at(reference: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(reference).ok()?.take(256).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned()).filter(|commit| is_segment(commit))
}

/// Whether `text` can be a folder's name in the cache: nothing that climbs, nothing hidden.
fn is_segment(text: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= 200 && !text.starts_with('.') && text.chars().all(legal)
}

fn is_revision(text: &str) -> bool {
    text.split('/').all(is_segment)
}

#[cfg(test)]
mod name_tests {
    use std::fs;

    use super::*;

    #[test]
    fn names_of_repositories() {
        let name = RepoName::parse("mlx-community/Lance-3B-AWQ-INT4").unwrap();
        assert_eq!((name.id(), name.revision()), ("mlx-community/Lance-3B-AWQ-INT4", "main"));
        assert_eq!(name.to_string(), "mlx-community/Lance-3B-AWQ-INT4");
        assert_eq!(RepoName::parse("a/b@refs/pr/1").unwrap().to_string(), "a/b@refs/pr/1");
        for text in [
            "", "a", "/a", "a/", "a/b/c", "./a", "../a", "a/..", "~/a", "a b/c", "a/b@", "a/b@../x",
            "C:\\a/b", "a--b/c",
        ] {
            assert_eq!(RepoName::parse(text), None, "{text}");
        }
        assert_eq!(name.at(".."), None);
    }

    #[test]
    fn addresses_mean_a_name() {
        for (text, name) in [
            ("https://huggingface.co/a/b", "a/b"),
            ("http://www.huggingface.co/a/b/", "a/b"),
            ("huggingface.co/a/b?library=mlx#files", "a/b"),
            ("https://hf.co/a/b/tree/main", "a/b"),
            ("hf.co/a/b/blob/v1/config.json", "a/b@v1"),
            ("git@hf.co:a/b.git", "a/b"),
            ("hf://a/b", "a/b"),
            ("hf://models/a/b", "a/b"),
            ("a/b/", "a/b"),
            (" a/b", "a/b"),
            ("a/b/tree/refs", "a/b@refs"),
        ] {
            assert_eq!(RepoName::suggest(text).map(|name| name.to_string()).as_deref(), Some(name), "{text}");
        }
        for text in [
            "a/b",
            "a",
            "",
            "a/b/c",
            "./a/b/",
            "/a/b",
            "~/a/b/",
            "https://example.com/a/b",
            "https://huggingface.co/a",
            "https://huggingface.co/datasets/a/b",
            "https://huggingface.co/a/../b",
        ] {
            assert_eq!(RepoName::suggest(text), None, "{text}");
        }
    }

    /// A cache with `org/nano` at the commit `0123abcd`, as real files.
    fn cache(reference: &str) -> tempfile::TempDir {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--org--nano");
        let snapshot = repo.join("snapshots/0123abcd");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::write(repo.join("refs/main"), reference).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            fs::write(snapshot.join(name), "x").unwrap();
        }
        cache
    }

    #[test]
    fn snapshots_of_other_programs_are_found() {
        let name = RepoName::parse("org/nano").unwrap();
        let here = cache("0123abcd\n");
        let folder = name.require_cached_in(here.path()).unwrap();
        assert!(folder.ends_with("models--org--nano/snapshots/0123abcd"));
        assert_eq!(name.at("0123abcd").unwrap().require_cached_in(here.path()).unwrap(), folder);
        fs::remove_file(folder.join("tokenizer.json")).unwrap();
        let error = name.require_cached_in(here.path()).unwrap_err().to_string();
        assert!(error.contains("only a part of it"), "{error}");
        for reference in ["../../elsewhere", "", "ffff"] {
            let error = name.require_cached_in(cache(reference).path()).unwrap_err().to_string();
            assert!(
                error.ends_with("(another commit is: org/nano@0123abcd); run: lance-mm pull org/nano"),
                "{error}"
            );
        }
    }

    #[cfg(unix)]
    #[test]
    fn snapshots_of_links_are_found() {
        let here = cache("0123abcd");
        let repo = here.path().join("models--org--nano");
        fs::create_dir(repo.join("blobs")).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            let file = repo.join("snapshots/0123abcd").join(name);
            fs::rename(&file, repo.join("blobs").join(name)).unwrap();
            std::os::unix::fs::symlink(Path::new("../../blobs").join(name), file).unwrap();
        }
        assert!(RepoName::parse("org/nano").unwrap().require_cached_in(here.path()).is_ok());
    }
}
