//! Requests for images, run to record the input activations of the GEN expert.

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use lance_mm_eval::dataset::read_text;
use lance_mm_image::{self as image, LoadOptions};
use lance_mm_pipelines::generate::{Resolution, Size, Trace, check_size};
use lance_mm_pipelines::{GenerateOptions, Lance, Request};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::calibration_sequence::CalibrationSequence;
use crate::error::{Error, Result};
use crate::files::read;
use crate::progress::{Monitor, Progress};

/// Denoising steps that are recorded of a request: one from each half of the schedule.
const STEPS: usize = 2;
/// Requests after which the same steps are recorded again.
const CYCLE: usize = 4;

/// A request for an image.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GenerationRequest {
    /// Caption, or instruction of an edit.
    prompt: String,
    /// Image to edit; its path is relative to the file of requests.
    image: Option<PathBuf>,
    /// `WIDTHxHEIGHT` of an image from a caption.
    size: Option<String>,
    /// Name of one of upstream's resolutions, for an edit.
    resolution: Option<String>,
    steps: Option<usize>,
    seed: Option<u64>,
    /// File and line.
    #[serde(skip)]
    place: String,
}

impl GenerationRequest {
    fn parse(line: &str, place: String) -> Result<Self> {
        let mut request: Self = serde_json::from_str(line).map_err(|error| Error::file(&place, error))?;
        let is_edit = request.image.is_some();
        if is_edit && request.size.is_some() || !is_edit && request.resolution.is_some() {
            return Err(Error::file(place, "expected size for a caption, resolution for an edit"));
        }
        if request.prompt.trim().is_empty() {
            return Err(Error::file(place, "prompt: expected text, found an empty one"));
        }
        request.place = place;
        Ok(request)
    }
}

/// Requests for images, to calibrate the GEN expert with.
#[derive(Clone, Debug)]
pub struct GenerationRequests {
    dir: PathBuf,
    list: Vec<GenerationRequest>,
}

impl GenerationRequests {
    /// Reads a file of one JSON object a line: `{"prompt": "A red fox"}`, for edits with `image`; optional are `size`,
    /// `resolution`, `steps` and `seed`.
    ///
    /// # Errors
    /// A file that cannot be read or is none of this, naming the line; fewer than 4 requests.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = read_text(path)?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let list: Vec<GenerationRequest> = lines
            .map(|(i, line)| GenerationRequest::parse(line, format!("{name}: line {}", i + 1)))
            .collect::<Result<_>>()?;
        if list.len() < 4 {
            let message =
                format!("expected 4 requests or more, of which a quarter is held out, found {}", list.len());
            return Err(Error::file(name, message));
        }
        Ok(Self { dir: path.parent().unwrap_or(Path::new("")).to_owned(), list })
    }

    /// A hash of each request.
    pub(crate) fn hashes(&self) -> Result<Vec<String>> {
        let hash = |request: &GenerationRequest| {
            let GenerationRequest { prompt, image, size, resolution, steps, seed, place } = request;
            let mut hash = Sha256::new();
            hash.update(format!("{prompt:?} {size:?} {resolution:?} {steps:?} {seed:?}"));
            if let Some(image) = image {
                hash.update(read(&self.dir.join(image)).map_err(|error| Error::file(place, error))?);
            }
            Ok(hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect())
        };
        self.list.iter().map(hash).collect()
    }

    /// Generates everything with the unquantized model: the passes to record, and the first layer's input of each.
    pub(crate) fn run(
        &self,
        lance: &Lance,
        monitor: &mut Monitor<'_>,
    ) -> Result<(Vec<CalibrationSequence>, Vec<Tensor>)> {
        let (mut sequences, mut inputs) = (Vec::new(), Vec::new());
        let total = self.list.len();
        monitor.begin(Progress::Requests { done: 0, total })?;
        for (i, request) in self.list.iter().enumerate() {
            let named = |error| match error {
                Error::Stopped => Error::Stopped,
                error => Error::file(&request.place, error),
            };
            let trace = self.trace(lance, request, i).map_err(named)?;
            for pass in trace.passes {
                sequences.push(CalibrationSequence::generation(
                    trace.pieces.clone(),
                    pass.captioned,
                    i % 4 == 3,
                ));
                inputs.push(pass.x);
            }
            monitor.begin(Progress::Requests { done: i + 1, total })?;
        }
        Ok((sequences, inputs))
    }

    fn trace(&self, lance: &Lance, request: &GenerationRequest, index: usize) -> Result<Trace> {
        let mut options = GenerateOptions::default();
        options.steps = request.steps.unwrap_or(options.steps);
        options.seed = request.seed.unwrap_or(options.seed + index as u64);
        let load = |path| image::load(&self.dir.join(path), &LoadOptions::default());
        let source = request.image.as_ref().map(load).transpose()?;
        let task = match &source {
            Some(image) => {
                let name = request.resolution.as_deref().unwrap_or("image_512res");
                Request::EditImage { image, resolution: Resolution::named(name)? }
            }
            None => Request::TextToImage { size: size(request)? },
        };
        Ok(lance.trace(&request.prompt, &task, &options, &recorded_steps(options.steps, index))?)
    }
}

/// 384 x 384 unless the request says otherwise, as the published checkpoint was calibrated.
fn size(request: &GenerationRequest) -> Result<Size> {
    let size = match &request.size {
        Some(size) => {
            let sides = size.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
            let (width, height) =
                sides.ok_or_else(|| Error::file("size", format!("expected WIDTHxHEIGHT, found {size}")))?;
            Size { width, height }
        }
        None => Size { width: 384, height: 384 },
    };
    check_size(size)?;
    Ok(size)
}

/// Steps that are recorded of a request: spread over the schedule, and over the requests.
fn recorded_steps(steps: usize, index: usize) -> Vec<usize> {
    let places = CYCLE * STEPS;
    let mut recorded: Vec<usize> = (0..STEPS).map(|j| (j * CYCLE + index % CYCLE) * steps / places).collect();
    recorded.dedup();
    recorded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_together_see_the_whole_schedule() {
        let seen: Vec<Vec<usize>> = (0..5).map(|i| recorded_steps(30, i)).collect();
        assert_eq!(seen, [[0, 15], [3, 18], [7, 22], [11, 26], [0, 15]]);
        assert_eq!((recorded_steps(1, 3), recorded_steps(2, 1)), (vec![0], vec![0, 1]));
    }

    #[test]
    fn a_file_is_refused_by_line_and_field() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("requests.jsonl");
        let error = |text: &str| {
            std::fs::write(&path, text).unwrap();
            format!("{:#}", GenerationRequests::read(&path).err().unwrap())
        };
        let line = "{\"prompt\": \"A fox\"}\n";
        assert!(error(line).contains("expected 4 requests or more"), "{}", error(line));
        assert!(error(&format!("{line}{{\"prompt\": 3}}")).contains("line 2"));
        assert!(
            error(&format!("{line}\n{}", line.replace("A fox", " ")))
                .contains("line 3: prompt: expected text")
        );
        assert!(error("{\"caption\": \"A fox\"}").contains("unknown field `caption`"));
        let sized = "{\"prompt\": \"Winter\", \"image\": \"a.png\", \"size\": \"32x32\"}\n";
        assert!(error(&sized.repeat(4)).contains("line 1: expected size for a caption"));
    }
}
