//! Arguments about questions, and the questions.

use std::path::PathBuf;

use anyhow::{Result, bail};
use candle_core::Device;
use lance_mm::tensor::DeviceChoice;
use lance_mm::{AskOptions, DecodeOptions};
use lance_mm_eval::Dataset;
use lance_mm_eval::dataset::Sample;

use crate::model::Model;
use crate::output::Hints;

/// Prompt and length of answers.
#[derive(clap::Args)]
pub(crate) struct AskArgs {
    /// Take the first N questions only.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max: Option<u32>,
    /// Tokens of an answer at most.
    #[arg(short = 'n', long, value_name = "N", default_value_t = DecodeOptions::default().max_new_tokens)]
    max_new_tokens: usize,
    /// The system message, instead of the one for images or videos.
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,
}

impl AskArgs {
    /// Greedy decoding with these arguments.
    pub(crate) fn options(&self) -> AskOptions {
        let decode = DecodeOptions { max_new_tokens: self.max_new_tokens, ..DecodeOptions::default() };
        AskOptions { system_message: self.instruction.clone(), decode, ..AskOptions::default() }
    }

    /// The questions of a file.
    pub(crate) fn read(&self, path: &std::path::Path) -> Result<Dataset> {
        Ok(self.limited(Dataset::read(path)?))
    }

    /// The first `--max` questions.
    pub(crate) fn limited(&self, data: Dataset) -> Dataset {
        match self.max {
            Some(max) => data.limited(max as usize),
            None => data,
        }
    }
}

/// Where networks run.
#[derive(clap::Args)]
pub(crate) struct DeviceArgs {
    /// Where networks run. `metal` is the GPU of a Mac, in a build with the feature
    /// `metal`.
    #[arg(long, value_name = "auto|cpu|metal", default_value_t = DeviceChoice::Cpu)]
    device: DeviceChoice,
}

impl DeviceArgs {
    /// The device, or why there is none.
    pub(crate) fn open(&self) -> Result<Device> {
        Ok(self.device.open()?)
    }
}

/// Two checkpoints, questions for both, and files for results.
#[derive(clap::Args)]
pub(crate) struct CompareArgs {
    /// The reference.
    #[arg(value_name = "REF")]
    reference: String,
    /// The checkpoint to compare with it.
    #[arg(value_name = "CAND")]
    candidate: String,
    /// File of questions.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    data: PathBuf,
    #[command(flatten)]
    pub(crate) ask: AskArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

impl CompareArgs {
    pub(crate) fn questions(&self) -> Result<Dataset> {
        self.ask.read(&self.data)
    }

    /// The reference and the candidate, as the one and the other function loads it.
    pub(crate) fn models(
        &self,
        reference: impl FnOnce(&str) -> Result<Model>,
        candidate: impl FnOnce(&str) -> Result<Model>,
    ) -> Result<[Model; 2]> {
        Ok([reference(&self.reference)?, candidate(&self.candidate)?])
    }
}

/// Where results go besides standard output.
#[derive(clap::Args)]
pub(crate) struct OutputArgs {
    /// Write everything as one JSON object: models with fingerprints, data, numbers.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) json: Option<PathBuf>,
    /// Write a page with tables and plots that needs no other file.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(crate) html: Option<PathBuf>,
    /// No progress on standard error.
    #[arg(short, long)]
    quiet: bool,
}

impl OutputArgs {
    /// Refuses files that have no place, before anything is measured: what may be said meanwhile.
    pub(crate) fn check(&self) -> Result<Hints> {
        for (option, path) in [("--json", &self.json), ("--html", &self.html)] {
            let Some(path) = path else { continue };
            let expected = match path.parent() {
                _ if path.is_dir() => "expected a file or nothing, found a folder",
                Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
                    "expected a folder to write it in, found none"
                }
                _ => continue,
            };
            bail!("{option} {}: {expected}", path.display());
        }
        Ok(Hints::new(self.quiet))
    }
}

/// Bundled images with their questions.
pub(crate) fn bundled(name: &str, demos: &[lance_mm_nano::Demo]) -> Dataset {
    let sample =
        |demo: &lance_mm_nano::Demo| Sample::of_image(demo.file, demo.png, demo.question, demo.answer);
    Dataset { name: name.to_owned(), samples: demos.iter().map(sample).collect() }
}
