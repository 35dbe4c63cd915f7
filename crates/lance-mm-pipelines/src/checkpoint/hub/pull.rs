//! Downloading a model into the hub's cache.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use lance_mm_tensor::Weights;

use super::fetch::Fetch;
use super::selection::{Selection, TOKENIZER_JSON};
use super::{RECOMMENDED, RepoName, cache_dir};
use crate::error::{Error, Result};

/// Repository of the tokenizer that every Lance uses.
const TOKENIZER_REPO: &str = "Qwen/Qwen2.5-VL-3B-Instruct";

/// Files to download.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullOptions {
    /// Download every safetensors file of the repository's top folder: the VAE's too, which generation needs.
    /// Otherwise what questions about images need.
    pub all: bool,
}

/// Progress of [`pull`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullEvent<'a> {
    /// The repository has no vision encoder: questions about images will not be possible.
    NoVisionEncoder,
    /// The repository has no tokenizer; that of the repository `from` is taken.
    NoTokenizer {
        /// `org/name`.
        from: &'a str,
    },
    /// Files of `repo` that the cache lacks; 0 files where it has all.
    Missing {
        /// The repository.
        repo: &'a RepoName,
        /// Number of files.
        files: usize,
        /// Bytes to download.
        bytes: u64,
    },
    /// Download of a file begins, or continues with another connection.
    Begin {
        /// Name of the file.
        file: &'a str,
        /// Bytes of the whole file.
        size: u64,
        /// Bytes that an earlier try brought.
        resumed: u64,
    },
    /// Bytes of the file that arrived since the last event.
    Received(u64),
    /// The file is compared with the hub's SHA-256.
    Verifying {
        /// Name of the file.
        file: &'a str,
    },
    /// The file is in the cache.
    Done {
        /// Name of the file.
        file: &'a str,
        /// Bytes.
        size: u64,
    },
}

pub(super) type Observer<'a> = dyn FnMut(PullEvent<'_>) + 'a;

/// Downloads a model into the hub's cache, which other programs share, and returns its folder.
///
/// Cached files are not downloaded again; an interrupted download is resumed by the next call. Files are compared
/// with the hub's SHA-256 where it states one. `HF_HOME` is the cache's place, `HF_TOKEN` (or the token file of
/// Hugging Face's own programs) opens private and gated repositories, `HF_ENDPOINT` names a mirror; `HTTPS_PROXY` and
/// the like are heard.
///
/// # Errors
/// [`Error::Hub`] for a repository that is not found, is refused or holds no Lance in the MLX layout, for a connection
/// that fails again and again, for files that arrive damaged; files that cannot be written or whose header does not
/// match their length.
pub fn pull(
    name: &RepoName,
    options: &PullOptions,
    observer: &mut dyn FnMut(PullEvent<'_>),
) -> Result<PathBuf> {
    let client = Client::new()?;
    let repo = client.api.repo(repo_of(name));
    let names = list(&repo, name)?;
    let selection = Selection::new(&names, options.all).map_err(|found| {
        let expected = "expected config.json and model.safetensors";
        hub(name, format!("{expected}, found {found}; a model that can be read is {RECOMMENDED}"))
    })?;
    if !selection.has_vit {
        observer(PullEvent::NoVisionEncoder);
    }
    let folder = client.fetch_all(&repo, name, &selection.files, observer)?;
    if !selection.has_tokenizer && !folder.join(TOKENIZER_JSON).is_file() {
        observer(PullEvent::NoTokenizer { from: TOKENIZER_REPO });
        client.add_tokenizer(&folder, observer)?;
    }
    check(&folder)?;
    Ok(folder)
}

/// The hub's client and its cache.
struct Client {
    api: Api,
    cache: Cache,
}

impl Client {
    fn new() -> Result<Self> {
        let cache = Cache::new(cache_dir()?);
        let set = |name: &str| {
            env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
        };
        let token = set("HF_TOKEN").or_else(|| cache.token());
        let mut builder = ApiBuilder::from_cache(cache.clone())
            .with_token(token)
            .with_user_agent("lance-mm", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = set("HF_ENDPOINT") {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
        }
        let api = builder.build().map_err(|error| hub("hub", error))?;
        Ok(Self { api, cache })
    }

    /// Fetches files and returns the folder that holds them all.
    fn fetch_all(
        &self,
        repo: &ApiRepo,
        name: &RepoName,
        files: &[String],
        observer: &mut Observer<'_>,
    ) -> Result<PathBuf> {
        let cache = self.cache.repo(repo_of(name));
        let fetches = files.iter().map(|file| Fetch::new(&self.api, repo, &cache, file));
        let fetches = fetches.collect::<Result<Vec<_>>>()?;
        let missing = fetches.iter().filter(|fetch| !fetch.is_cached());
        let (files, bytes) = missing.fold((0, 0), |(n, bytes), fetch| (n + 1, bytes + fetch.left()));
        observer(PullEvent::Missing { repo: name, files, bytes });
        let mut folder: Option<PathBuf> = None;
        for fetch in &fetches {
            let path = fetch.run(observer)?;
            let parent = path.parent().map(Path::to_owned);
            if folder.is_some() && folder != parent {
                return Err(hub(name, "it was changed on the hub meanwhile; run the same command again"));
            }
            folder = parent;
        }
        match (folder, fetches.last()) {
            (Some(folder), Some(last)) => {
                last.refer()?;
                Ok(folder)
            }
            _ => Err(hub(name, "expected files, found none")),
        }
    }

    /// Puts the common tokenizer into the folder of a repository that has none.
    fn add_tokenizer(&self, folder: &Path, observer: &mut Observer<'_>) -> Result<()> {
        let Some(name) = RepoName::parse(TOKENIZER_REPO) else {
            return Err(hub(TOKENIZER_REPO, "expected org/name"));
        };
        let files = [TOKENIZER_JSON.to_owned()];
        let from = self.fetch_all(&self.api.repo(repo_of(&name)), &name, &files, observer)?;
        let to = folder.join(TOKENIZER_JSON);
        fs::copy(from.join(TOKENIZER_JSON), &to).map_err(|source| Error::Io { path: to, source })?;
        Ok(())
    }
}

/// The repository as hf-hub names it.
fn repo_of(name: &RepoName) -> Repo {
    Repo::with_revision(name.id.clone(), RepoType::Model, name.revision.clone())
}

/// Names of the repository's files.
fn list(repo: &ApiRepo, name: &RepoName) -> Result<Vec<String>> {
    let info = repo.info().map_err(|error| hub(name, refusal(&error)))?;
    Ok(info.siblings.into_iter().map(|file| file.rfilename).collect())
}

/// Opens every safetensors file: its header must match its length.
fn check(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?;
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            Weights::open(&[path])?;
        }
    }
    Ok(())
}

pub(super) fn hub(name: impl ToString, message: impl ToString) -> Error {
    Error::Hub { name: name.to_string(), message: message.to_string() }
}

/// The reason why the hub did not give something.
pub(super) fn refusal(error: &ApiError) -> String {
    match status(error) {
        Some(401 | 403) => "not on the hub, or private or gated (then HF_TOKEN must allow it)".to_owned(),
        Some(404) => "not found on the hub".to_owned(),
        _ => error.to_string().trim_start_matches("request error: ").to_owned(),
    }
}

/// Status of an HTTP answer other than success. (hf-hub does not export its HTTP client's error.)
pub(super) fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => error.to_string().strip_prefix("http status: ")?.trim().parse().ok(),
        _ => None,
    }
}
