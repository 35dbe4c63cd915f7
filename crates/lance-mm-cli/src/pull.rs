//! `lance-mm pull`: a model from the Hugging Face hub into its local cache.

mod fetch;
mod plan;

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use lance_mm::Checkpoint;
use lance_mm::tensor::Weights;

use crate::hub::{self, RepoName};
use crate::model::RECOMMENDED;
use crate::output::{self, Hints, bytes, plural};
use fetch::Fetch;
use plan::{Plan, TOKENIZER_JSON};

/// Whose tokenizer every Lance uses.
const TOKENIZER_REPO: &str = "Qwen/Qwen2.5-VL-3B-Instruct";

const EXAMPLES: &str = "\
Examples:
  lance-mm pull mlx-community/Lance-3B-AWQ-INT4
  lance-mm pull --all mlx-community/Lance-3B-bf16
  lance-mm inspect \"$(lance-mm pull --offline mlx-community/Lance-3B-AWQ-INT4)\"

Environment: HF_HOME places the cache, HF_TOKEN opens private and gated repositories, HF_ENDPOINT
names a mirror.";

/// Download a model from the Hugging Face hub, into the cache that other programs use too.
///
/// Fetches what questions about images need; drawing takes --all. An interrupted download goes on where it stopped; the folder is
/// printed at the end.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The repository.
    #[arg(value_name = "ORG/NAME")]
    repo: String,
    /// A branch, tag or commit. [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Fetch every safetensors file of the repository: the VAE's too, which drawing needs.
    #[arg(long)]
    all: bool,
    /// Use no network: check and print the folder in the cache.
    #[arg(long)]
    offline: bool,
    /// No progress and no hints on standard error.
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let hints = Hints::new(args.quiet);
    let Some(mut name) = RepoName::parse(&args.repo) else {
        bail!("{:?}: expected org/name of a repository, for example {RECOMMENDED}", args.repo);
    };
    if let Some(revision) = &args.revision {
        let Some(at) = name.at(revision) else {
            bail!("--revision: expected a branch, tag or commit, found {revision:?}")
        };
        name = at;
    }
    let folder =
        if args.offline { offline(&name, args.all, hints)? } else { online(&name, args.all, hints)? };
    check(&folder)?;
    output::print(&format!("{}\n", folder.display()))?;
    match Checkpoint::open(&folder) {
        Ok(_) => hints.note(&format!("next: lance-mm ask --model {name} IMAGE \"QUESTION\"")),
        Err(error) => hints.note(&format!("note: questions are not possible as it is: {error}")),
    }
    Ok(())
}

/// The folder in the cache, if it is complete.
fn offline(name: &RepoName, all: bool, hints: Hints) -> Result<PathBuf> {
    let Some(folder) = name.cached()? else {
        bail!("{name}: not in the cache {}; run: lance-mm pull {name}", hub::cache()?.path().display());
    };
    let files = std::fs::read_dir(&folder).map_err(|error| anyhow!("{}: {error}", folder.display()))?;
    let names: Vec<String> =
        files.flatten().map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    match Plan::new(&names, all) {
        Ok(plan) if plan.has_tokenizer => {
            if all && !plan.has_vae {
                hints.note(&format!("note: no VAE of {name} is in the cache: pictures cannot be drawn"));
            }
            Ok(folder)
        }
        _ => bail!("{name}: only a part of it is in the cache; run: lance-mm pull {name}"),
    }
}

fn online(name: &RepoName, all: bool, hints: Hints) -> Result<PathBuf> {
    let api = api()?;
    let repo = api.repo(name.repo());
    let files = list(&repo, name)?;
    let plan = Plan::new(&files, all).map_err(|found| {
        anyhow!("{name}: expected config.json and model.safetensors, found {found}; a model that can be read is {RECOMMENDED}")
    })?;
    if !plan.has_vit {
        hints.note(&format!(
            "note: {name} has no vit.safetensors: questions about images will not be possible"
        ));
    }
    let folder = fetch_all(&api, &repo, name, &plan.files, hints)?;
    if !plan.has_tokenizer && !folder.join(TOKENIZER_JSON).is_file() {
        hints.note(&format!("note: {name} has no tokenizer: taking the one of {TOKENIZER_REPO}"));
        tokenizer(&api, &folder, hints)?;
    }
    Ok(folder)
}

/// The hub's client, with what the environment says.
fn api() -> Result<Api> {
    let cache = hub::cache()?;
    let set = |name: &str| {
        std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    let token = set("HF_TOKEN").or_else(|| cache.token());
    let mut builder = ApiBuilder::from_cache(cache)
        .with_token(token)
        .with_user_agent("lance-mm", env!("CARGO_PKG_VERSION"));
    if let Some(endpoint) = set("HF_ENDPOINT") {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/').to_owned());
    }
    builder.build().map_err(|error| anyhow!("hub: {error}"))
}

/// Names of the repository's files.
fn list(repo: &ApiRepo, name: &RepoName) -> Result<Vec<String>> {
    let info = repo.info().map_err(|error| {
        let error = refused(&name.to_string(), &error);
        let cached = name.cached().ok().flatten().is_some();
        if cached { anyhow!("{error} (it is in the cache: --offline)") } else { error }
    })?;
    Ok(info.siblings.into_iter().map(|file| file.rfilename).collect())
}

/// Fetches files and returns the folder that holds them all.
fn fetch_all(api: &Api, repo: &ApiRepo, name: &RepoName, files: &[String], hints: Hints) -> Result<PathBuf> {
    let cache = name.cache()?;
    let fetches = files.iter().map(|file| Fetch::new(api, repo, &cache, file)).collect::<Result<Vec<_>>>()?;
    let missing = fetches.iter().filter(|fetch| !fetch.is_cached());
    let (count, size) = missing.fold((0, 0), |(n, size), fetch| (n + 1, size + fetch.left()));
    match count {
        0 => hints.note(&format!("{name}: everything is in the cache")),
        _ => hints.note(&format!("{name}: {} to download, {}", plural(count, "file"), bytes(size))),
    }
    let mut folder: Option<PathBuf> = None;
    for fetch in &fetches {
        let path = fetch.run(hints)?;
        let parent = path.parent().map(Path::to_owned);
        if folder.is_some() && folder != parent {
            bail!("{name}: it was changed on the hub meanwhile; run the same command again");
        }
        folder = parent;
    }
    match (folder, fetches.last()) {
        (Some(folder), Some(last)) => {
            last.refer()?;
            Ok(folder)
        }
        _ => bail!("{name}: expected files, found none"),
    }
}

/// Puts the common tokenizer into the folder of a repository that has none.
fn tokenizer(api: &Api, folder: &Path, hints: Hints) -> Result<()> {
    let Some(name) = RepoName::parse(TOKENIZER_REPO) else { bail!("{TOKENIZER_REPO}: expected org/name") };
    let from = fetch_all(api, &api.repo(name.repo()), &name, &[TOKENIZER_JSON.to_owned()], hints)?;
    let (from, to) = (from.join(TOKENIZER_JSON), folder.join(TOKENIZER_JSON));
    std::fs::copy(&from, &to).map_err(|error| anyhow!("{}: {error}", to.display()))?;
    Ok(())
}

/// Opens every safetensors file: its header must match its length.
fn check(folder: &Path) -> Result<()> {
    let entries = std::fs::read_dir(folder).map_err(|error| anyhow!("{}: {error}", folder.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            Weights::open(&[path])?;
        }
    }
    Ok(())
}

/// What the hub did not give, and why.
fn refused(what: &str, error: &ApiError) -> anyhow::Error {
    match status(error) {
        Some(401 | 403) => {
            anyhow!("{what}: not on the hub, or private or gated (then HF_TOKEN must allow it)")
        }
        Some(404) => anyhow!("{what}: not found on the hub"),
        _ => anyhow!("{what}: {}", error.to_string().trim_start_matches("request error: ")),
    }
}

/// The status of an HTTP answer that was none of success. (hf-hub does not export its HTTP client's error.)
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => error.to_string().strip_prefix("http status: ")?.trim().parse().ok(),
        _ => None,
    }
}
