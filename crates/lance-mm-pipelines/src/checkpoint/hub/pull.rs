//! Downloading a model into the hub's cache.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lance_mm_tensor::Weights;
use serde::Deserialize;

use super::RepoName;
use super::cache::{RepoCache, is_commit};
use super::client::{Client, hub, quoted};
use super::environment::Environment;
use super::event::{Observer, PullEvent};
use super::fetch::Fetch;
use super::hash::ContentHash;
use super::selection::{Selection, TOKENIZER_JSON};
use super::url::encoded;
use crate::error::{Error, Result};

/// Repository of the tokenizer that every Lance uses.
const TOKENIZER_REPO: &str = "Qwen/Qwen2.5-VL-3B-Instruct";

/// Files to download, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullOptions {
    /// Download every safetensors file of the repository's top folder: the VAE's too, which generation needs.
    /// Otherwise what questions about images need.
    pub all: bool,
    /// Take the files in the cache and ask nothing of the hub, as with `HF_HUB_OFFLINE`.
    pub offline: bool,
    /// Longest time to connect, to wait for an answer, and without a byte (or at less than 1 kB/s). Default: 30 s.
    pub timeout: Duration,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self { all: false, offline: false, timeout: Duration::from_secs(30) }
    }
}

/// Downloads a model into the hub's cache, which other programs share, and returns its folder.
///
/// Contents are compared with the hub's hashes (SHA-256 of large files, git's of small ones), those that are in the
/// cache already included: damaged ones are fetched again. This reads the whole model. An interrupted download is
/// resumed by the next call; two processes at once wait for each other.
///
/// The environment is read as Hugging Face's own programs read it: `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `HF_HOME`
/// and `XDG_CACHE_HOME` place the cache; `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN` or the file `HF_TOKEN_PATH` open private
/// and gated repositories; `HF_ENDPOINT` names a mirror; `HF_HUB_OFFLINE` takes what is in the cache. `HTTPS_PROXY` and
/// the like, and `REQUESTS_CA_BUNDLE`, `CURL_CA_BUNDLE` and `SSL_CERT_FILE` are read too. The token is sent to the endpoint's scheme, host and port alone.
///
/// # Errors
/// [`Error::Hub`] for a repository that is not found, is refused or holds no Lance in the MLX layout, for a connection
/// that fails again and again, for files that arrive damaged; [`Error::NotCached`] offline; files that cannot be
/// written or whose header does not match their length.
pub fn pull(
    name: &RepoName,
    options: &PullOptions,
    observer: &mut dyn FnMut(PullEvent<'_>),
) -> Result<PathBuf> {
    pull_in(&Environment::of_process(), name, options, observer)
}

/// [`pull`] in an environment.
pub(super) fn pull_in(
    environment: &Environment<'_>,
    name: &RepoName,
    options: &PullOptions,
    observer: &mut Observer<'_>,
) -> Result<PathBuf> {
    let cache = environment.cache()?;
    let by_environment = environment.is_offline();
    if options.offline || by_environment {
        if !options.offline {
            observer(PullEvent::Offline);
        }
        let folder = name.require_cached_in(&cache)?;
        verify(&folder, name, observer)?;
        check(&folder)?;
        return Ok(folder);
    }
    let client = Client::new(
        environment.endpoint()?,
        environment.token()?.as_deref(),
        environment.certificates().as_deref(),
        options.timeout,
    )?;
    let listing = Listing::fetch(&client, name)?;
    let selection = Selection::new(&listing.files, options.all).map_err(|found| hub(name, found))?;
    if !selection.has_vit {
        observer(PullEvent::NoVisionEncoder);
    }
    let repo = RepoCache::new(&cache, name);
    let folder = fetch_all(&client, &repo, name, &listing.commit, &selection.files, observer)?;
    if !selection.has_tokenizer && !folder.join(TOKENIZER_JSON).is_file() {
        observer(PullEvent::NoTokenizer { from: TOKENIZER_REPO });
        add_tokenizer(&client, &cache, &folder, observer)?;
    }
    check(&folder)?;
    Ok(folder)
}

/// A repository's files at a revision.
struct Listing {
    commit: String,
    /// Without duplicates.
    files: Vec<String>,
}

/// The hub's answer about a repository.
#[derive(Deserialize)]
struct Info {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

impl Listing {
    fn fetch(client: &Client, name: &RepoName) -> Result<Self> {
        let path = format!("api/models/{}/revision/{}", name.id, encoded(&name.revision));
        let bytes = client.get_bytes(&client.url(&path)).map_err(|failure| hub(name, failure))?;
        let info: Info = serde_json::from_slice(&bytes).map_err(|error| {
            let found = quoted(&error.to_string());
            hub(name, format!("expected JSON with `sha` and `siblings` from the hub, found {found}"))
        })?;
        if !is_commit(&info.sha) {
            return Err(hub(
                name,
                format!("expected a commit of 40 hexadecimal digits, found {}", quoted(&info.sha)),
            ));
        }
        let files: BTreeSet<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Self { commit: info.sha, files: files.into_iter().collect() })
    }
}

/// Fetches files of a commit and returns the folder that holds them all.
fn fetch_all(
    client: &Client,
    cache: &RepoCache,
    name: &RepoName,
    commit: &str,
    files: &[String],
    observer: &mut Observer<'_>,
) -> Result<PathBuf> {
    let mut fetches = Vec::new();
    for file in files {
        let url = client.url(&format!("{}/resolve/{commit}/{}", name.id, encoded(file)));
        fetches.push(Fetch::new(client, cache, commit, (file, url), observer)?);
    }
    let missing = fetches.iter().filter(|fetch| !fetch.is_cached());
    let (files, bytes) =
        missing.fold((0, 0u64), |(n, bytes), fetch| (n + 1, bytes.saturating_add(fetch.left())));
    observer(PullEvent::Missing { repo: name, files, bytes });
    // A revision that was whole keeps its meaning until the new commit is.
    if !cache.has_reference(&name.revision) {
        cache.refer(&name.revision, commit)?;
    }
    for fetch in &fetches {
        fetch.run(observer)?;
    }
    cache.refer(&name.revision, commit)?;
    Ok(cache.snapshot(commit))
}

/// Puts the common tokenizer into the folder of a repository that has none.
fn add_tokenizer(client: &Client, cache: &Path, folder: &Path, observer: &mut Observer<'_>) -> Result<()> {
    let Some(name) = RepoName::parse(TOKENIZER_REPO) else {
        return Err(hub(TOKENIZER_REPO, "expected org/name"));
    };
    let commit = Listing::fetch(client, &name)?.commit;
    let files = [TOKENIZER_JSON.to_owned()];
    let from = fetch_all(client, &RepoCache::new(cache, &name), &name, &commit, &files, observer)?;
    let (from, to) = (from.join(TOKENIZER_JSON), folder.join(TOKENIZER_JSON));
    let copy = fs::read(&from).and_then(|bytes| crate::staged::write(&to, &bytes));
    copy.map_err(|source| Error::Io { path: to, source })
}

/// Compares the files of a snapshot whose content is named by its hash, as links of the cache are.
fn verify(folder: &Path, name: &RepoName, observer: &mut Observer<'_>) -> Result<()> {
    for file in
        crate::checkpoint::visible(folder).map_err(|source| Error::Io { path: folder.to_owned(), source })?
    {
        let path = folder.join(&file);
        let Some(hash) =
            fs::read_link(&path).ok().and_then(|blob| ContentHash::parse(blob.file_name()?.to_str()?))
        else {
            continue;
        };
        if !path.is_file() {
            continue;
        }
        observer(PullEvent::Verifying { file: &file });
        let found = hash.check(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        found.map_err(|found| hub(path.display(), format!("{found}; run online: lance-mm pull {name}")))?;
    }
    Ok(())
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
