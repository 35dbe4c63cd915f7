//! `lance-mm pull`: a model from the Hugging Face hub into its local cache.

use std::path::PathBuf;

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

Environment: HF_HOME places the cache, HF_TOKEN opens private and gated repositories, HF_ENDPOINT
names a mirror.";

/// Download a model from the Hugging Face hub, into the cache that other programs use too.
///
/// Downloads what questions about images need; generation needs --all. Rerun to resume an interrupted download. The
/// folder is printed at the end.
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
    output::print_path(&folder)?;
    match Checkpoint::open(&folder) {
        Ok(_) => hints.note(&format!("next: lance-mm ask --model {name} IMAGE \"QUESTION\"")),
        Err(error) => hints.note(&format!("note: questions are not possible as it is: {error}")),
    }
    Ok(())
}

/// The folder in the cache, if it is complete.
fn offline(name: &RepoName, all: bool, hints: Hints) -> Result<PathBuf> {
    let folder = name.require_cached()?;
    if all && WeightsFile::in_dir(&folder, "vae").is_none() {
        hints.note(&format!("note: no VAE of {name} is in the cache: images cannot be generated"));
    }
    Ok(folder)
}

fn online(name: &RepoName, all: bool, hints: Hints) -> Result<PathBuf> {
    let mut display = Display { hints, name, bar: ProgressBar::hidden(), busy: None };
    let pulled = hub::pull(name, &PullOptions { all }, &mut |event| display.show(event));
    pulled.map_err(|error| match (&error, name.require_cached()) {
        (Error::Hub { .. }, Ok(_)) => anyhow!("{error} (it is in the cache: --offline)"),
        _ => error.into(),
    })
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
        match event {
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
                self.busy = None;
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
