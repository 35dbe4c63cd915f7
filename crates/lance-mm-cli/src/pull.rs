//! `lance-mm pull`: a model from the Hugging Face hub into its local cache.

use anyhow::{Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use lance_mm::checkpoint::WeightsFile;
use lance_mm::hub::{self, PullEvent, PullOptions, RECOMMENDED, RepoName};
use lance_mm::{Checkpoint, Error};

use crate::output::{self, Busy, Hints, bytes, plural};

const EXAMPLES: &str = "\
Examples:
  lance-mm pull mlx-community/Lance-3B-AWQ-INT4
  lance-mm pull --all mlx-community/Lance-3B-bf16
  lance-mm inspect \"$(lance-mm pull --offline mlx-community/Lance-3B-AWQ-INT4)\"

Environment, as for Hugging Face's own programs: HF_HUB_CACHE or HF_HOME place the cache,
HF_HUB_OFFLINE=1 is --offline, HF_TOKEN opens private and gated repositories, HF_ENDPOINT names a
mirror. The token is sent to no other host than the endpoint's.";

/// Download a model from the Hugging Face hub, into the cache that other programs use too.
///
/// Downloads what questions about images need; generation needs --all. Rerun to resume an interrupted download. All
/// files are compared with the hub's hashes, and damaged ones fetched again. The folder is printed at the end.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The repository.
    #[arg(value_name = "ORG/NAME")]
    repo: String,
    /// A branch, tag or commit. [default: main]
    #[arg(long, value_name = "REVISION")]
    revision: Option<String>,
    /// Download every safetensors file of the repository: the VAE's too, which generation needs.
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
    let name = name_of(args)?;
    let mut display = Display { hints, name: &name, bar: ProgressBar::hidden(), busy: None };
    let options = PullOptions { all: args.all, offline: args.offline, ..PullOptions::default() };
    let pulled = hub::pull(&name, &options, &mut |event| display.show(event));
    drop(display);
    let folder = pulled.map_err(|error| match (&error, name.require_cached()) {
        (Error::Hub { .. }, Ok(_)) if !args.offline => anyhow!("{error} (it is in the cache: --offline)"),
        _ => error.into(),
    })?;
    if args.all && WeightsFile::in_dir(&folder, "vae").is_none() {
        hints.note(&format!("note: no VAE of {name} is in the cache: images cannot be generated"));
    }
    output::print_path(&folder)?;
    match Checkpoint::open(&folder) {
        Ok(_) => hints.note(&format!("next: lance-mm ask --model {name} IMAGE \"QUESTION\"")),
        Err(error) => hints.note(&format!("note: questions are not possible as it is: {error}")),
    }
    Ok(())
}

/// The repository and revision that the arguments name.
fn name_of(args: &Args) -> Result<RepoName> {
    let Some(name) = RepoName::parse(&args.repo) else {
        match RepoName::suggest(&args.repo) {
            Some(name) => bail!("{:?}: expected org/name of a repository: write {name}", args.repo),
            None => bail!("{:?}: expected org/name of a repository, for example {RECOMMENDED}", args.repo),
        }
    };
    match &args.revision {
        None => Ok(name),
        Some(revision) => match name.at(revision) {
            Some(name) => Ok(name),
            None => bail!("--revision: expected a branch, tag or commit, found {revision:?}"),
        },
    }
}

/// The progress of a download on standard error: bars only where that is a terminal.
struct Display<'a> {
    hints: Hints,
    name: &'a RepoName,
    bar: ProgressBar,
    busy: Option<Busy>,
}

impl Display<'_> {
    fn show(&mut self, event: PullEvent<'_>) {
        let name = self.name;
        self.busy = None;
        match event {
            PullEvent::Offline => {
                self.hints.note("note: HF_HUB_OFFLINE is set: taking the cache, asking nothing of the hub");
            }
            PullEvent::Damaged { file } => {
                self.hints.note(&format!("note: {file} in the cache is damaged: fetching it again"));
            }
            PullEvent::Waiting { file } => {
                self.hints.note(&format!("note: waiting for another process that is downloading {file}"));
            }
            PullEvent::NoVisionEncoder => self.hints.note(&format!(
                "note: {name} has no vit.safetensors: questions about images will not be possible"
            )),
            PullEvent::NoTokenizer { from } => {
                self.hints.note(&format!("note: {name} has no tokenizer: taking the one of {from}"));
            }
            PullEvent::Missing { repo, files: 0, .. } => {
                self.hints.note(&format!("{repo}: everything is in the cache"));
            }
            PullEvent::Missing { repo, files, bytes: size } => {
                let files = plural(files, "file");
                self.hints.note(&format!("{repo}: {files} to download, {}", bytes(size)));
            }
            PullEvent::Begin { file, size, resumed } => self.begin(file, size, resumed),
            PullEvent::Received(bytes) => self.bar.inc(bytes),
            PullEvent::Verifying { file } => {
                self.bar.finish_and_clear();
                self.busy = Some(self.hints.busy(&format!("verifying {file}")));
            }
            PullEvent::Done { file, size } => {
                self.bar.finish_and_clear();
                self.hints.note(&format!("{file}  {}", bytes(size)));
            }
            _ => {}
        }
    }

    fn begin(&mut self, file: &str, size: u64, resumed: u64) {
        self.bar.finish_and_clear();
        if self.hints.is_quiet() {
            return;
        }
        let template =
            "{msg} [{wide_bar}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
        self.bar = output::with_message(ProgressBar::new(size), file).with_position(resumed);
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        // What an earlier try brought says nothing about the speed.
        self.bar.reset_eta();
    }
}

impl Drop for Display<'_> {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
