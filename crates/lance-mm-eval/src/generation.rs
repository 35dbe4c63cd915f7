//! Images of two checkpoints from the same noise.
//!
//! lance-mlx reports that quantizing takes 80 % of an image's fine detail. Its runs began from noise that had
//! been cast to the type of the embedding, which is packed `U32` in a quantized file: no noise at all. Here both
//! models begin from one f32 tensor, and two controls stand beside the candidate: the reference begun from
//! that cast noise, and the reference begun from another seed, whose difference is no loss.

use candle_core::Tensor;
use lance_mm_image::RgbImage;
use serde::Serialize;

use super::frequency::Frequency;
use super::similarity::Similarity;
use super::{Relative, SampleProgress, finite};
use crate::error::{Error, Result};
use lance_mm_pipelines::InferenceStep;
use lance_mm_pipelines::Lance;
use lance_mm_pipelines::generate::{Encoded, Event, GenerateOptions, Generated, Request, Size};
use lance_mm_pipelines::noise;
use lance_mm_pipelines::prompt::Task;

/// Passes over the steps for each prompt: the reference, the candidate, its velocities at the reference's latents,
/// the two controls.
const PASSES: usize = 5;

/// Options of [`generation()`].
#[derive(Clone, Debug)]
pub struct GenerationOptions {
    /// Size of the images.
    pub size: Size,
    /// Steps, guidance and the seed of the first prompt; each further one has the next.
    pub generate: GenerateOptions,
    /// Decode and compare the image that each step's latents lead to: one VAE pass more a step and model.
    pub each_step: bool,
}

/// The comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GenerationReport {
    /// One comparison a prompt.
    pub prompts: Vec<PromptReport>,
}

/// Comparison of the images of one prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PromptReport {
    /// The caption.
    pub prompt: String,
    /// Seed of the noise.
    pub seed: u64,
    /// The reference's image.
    pub reference: Frequency,
    /// The candidate, with the reference's noise.
    pub candidate: Compared,
    /// The reference, begun from its noise cast to unsigned integers.
    pub cast_noise: Compared,
    /// The reference, begun from another seed.
    pub other_seed: Compared,
}

/// A run against the reference's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Its noise.
    pub start: Start,
    /// Step by step.
    pub steps: Vec<StepError>,
    /// The last latents against the reference's.
    pub latents: Relative,
    /// The image.
    pub image: ImageComparison,
}

/// Statistics of the values a run began from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Start {
    /// Mean.
    pub mean: f64,
    /// Standard deviation.
    pub std: f64,
    /// Share of values that are exactly zero.
    pub zeros: f64,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepError {
    /// Its time.
    pub t: f32,
    /// The velocity at the reference's latents against the reference's; only the candidate has one.
    pub local: Option<Relative>,
    /// The velocity on the run's own way against the reference's on its own.
    pub accumulated: Relative,
    /// The latents after it.
    pub latents: Relative,
    /// The image it would lead to.
    pub image: Option<ImageComparison>,
}

/// An image against the reference's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ImageComparison {
    /// How alike they are.
    #[serde(flatten)]
    pub similarity: Option<Similarity>,
    /// Its detail.
    pub frequency: Frequency,
    /// `hf_ratio` over the reference's, minus 1; `None` where that is 0.
    pub hf_ratio_change: Option<f64>,
    /// `hf_lance_mlx` over the reference's, minus 1; `None` where that is 0.
    pub hf_lance_mlx_change: Option<f64>,
}

/// Generates an image of every prompt with both models and the two controls. Progress counts the steps of all
/// images.
///
/// # Errors
/// No prompts, and what [`Lance::check_request`] refuses; quantized weights are allowed.
pub fn generation(
    reference: &Lance,
    candidate: &Lance,
    prompts: &[String],
    options: &GenerationOptions,
    progress: &mut SampleProgress<'_>,
) -> Result<GenerationReport> {
    if prompts.is_empty() {
        return Err(Error::option("prompts", "at least one", 0));
    }
    for prompt in prompts {
        let settings = GenerateOptions { allow_quantized: true, ..options.generate.clone() };
        for model in [reference, candidate] {
            model.check_request(prompt, &Request::TextToImage { size: options.size }, &settings)?;
        }
    }
    let mut reports = Vec::with_capacity(prompts.len());
    let (mut done, all) = (0, prompts.len() * PASSES * options.generate.steps);
    progress(done, all);
    let mut stepped = || {
        done += 1;
        progress(done, all);
    };
    for (i, prompt) in prompts.iter().enumerate() {
        let seed = options.generate.seed.wrapping_add(i as u64);
        let pair = Pair { reference, prompt, seed, options };
        reports.push(pair.compare_all(candidate, prompts.len(), &mut stepped)?);
    }
    Ok(GenerationReport { prompts: reports })
}

struct Pair<'a> {
    reference: &'a Lance,
    prompt: &'a str,
    seed: u64,
    options: &'a GenerationOptions,
}

/// A run with its steps.
struct Run {
    generated: Generated,
    steps: Vec<Taken>,
}

struct Taken {
    step: InferenceStep,
    x: Tensor,
    v: Tensor,
    next: Tensor,
    estimate: Tensor,
}

impl Pair<'_> {
    /// Generates with both models and the controls, each step told to `stepped`.
    fn compare_all(
        &self,
        candidate: &Lance,
        prompts: usize,
        stepped: &mut dyn FnMut(),
    ) -> Result<PromptReport> {
        let n = self.request().grid()?.count();
        let start = noise(self.seed, n)?;
        // Beyond the seeds of all prompts, so that no other begins from the same noise.
        let other = noise(self.seed.wrapping_add(prompts as u64), n)?;
        let truth = self.run(self.reference, &start, stepped)?;
        let run = self.run(candidate, &start, stepped)?;
        let local = self.local(candidate, &truth, stepped)?;
        let mut control =
            |start: &Tensor| self.compare(&truth, &self.run(self.reference, start, stepped)?, None);
        Ok(PromptReport {
            prompt: self.prompt.to_owned(),
            seed: self.seed,
            reference: Frequency::of(&truth.generated.frames[0]),
            candidate: self.compare(&truth, &run, Some(local))?,
            cast_noise: control(&as_unsigned(&start)?)?,
            other_seed: control(&other)?,
        })
    }

    fn request(&self) -> Request<'static> {
        Request::TextToImage { size: self.options.size }
    }

    fn settings(&self, start: &Tensor) -> GenerateOptions {
        let noise = Some(start.clone());
        GenerateOptions { noise, allow_quantized: true, ..self.options.generate.clone() }
    }

    fn run(&self, model: &Lance, start: &Tensor, stepped: &mut dyn FnMut()) -> Result<Run> {
        let mut steps = Vec::new();
        let mut fault = None;
        let generated = model.generate(self.prompt, &self.request(), &self.settings(start), |event| {
            let Event::Step(step) = event else { return };
            stepped();
            match step.estimate() {
                Ok(estimate) => steps.push(Taken {
                    step: step.step,
                    x: step.x.clone(),
                    v: step.v.clone(),
                    next: step.next.clone(),
                    estimate,
                }),
                Err(error) => fault = Some(error),
            }
        })?;
        fault.map_or(Ok(Run { generated, steps }), |error| Err(error.into()))
    }

    /// The candidate's velocities at the reference's latents.
    fn local(&self, candidate: &Lance, truth: &Run, stepped: &mut dyn FnMut()) -> Result<Vec<Tensor>> {
        let settings = self.settings(&truth.steps[0].x);
        let (encoded, grid) = (Encoded::default(), truth.generated.grid);
        let plan = candidate.plan(self.prompt, Task::TextToImage, &encoded, grid, &settings)?;
        let mut velocity = candidate.velocity(&plan, &encoded, &settings)?;
        let at = |taken: &Taken| {
            let v = velocity(&taken.x, taken.step)?;
            stepped();
            Ok(v)
        };
        truth.steps.iter().map(at).collect()
    }

    fn compare(&self, truth: &Run, run: &Run, local: Option<Vec<Tensor>>) -> Result<Compared> {
        let mut steps = Vec::with_capacity(truth.steps.len());
        for (i, (t, r)) in truth.steps.iter().zip(&run.steps).enumerate() {
            let image = if self.options.each_step {
                Some(compare_images(&self.image(truth, &t.estimate)?, &self.image(run, &r.estimate)?))
            } else {
                None
            };
            steps.push(StepError {
                t: t.step.t,
                local: local
                    .as_ref()
                    .map(|local| relative(&format!("local velocity {i}"), &t.v, &local[i]))
                    .transpose()?,
                accumulated: relative(&format!("velocity {i}"), &t.v, &r.v)?,
                latents: relative(&format!("latents {}", i + 1), &t.next, &r.next)?,
                image,
            });
        }
        Ok(Compared {
            // From the first step: the noise that the loop used, not the noise it was given.
            start: Start::of(&run.steps[0].x)?,
            steps,
            latents: relative("last latents", &truth.generated.latents, &run.generated.latents)?,
            image: compare_images(&truth.generated.frames[0], &run.generated.frames[0]),
        })
    }

    /// Both models' estimates go through the reference's VAE: quantizing leaves it as it is.
    fn image(&self, run: &Run, latents: &Tensor) -> Result<RgbImage> {
        let pixels = self.reference.decode_latents(latents, run.generated.grid, &self.options.generate)?;
        let mut frames = lance_mm_pipelines::tensor_to_frames(&pixels)?;
        Ok(frames.swap_remove(0))
    }
}

impl Start {
    fn of(values: &Tensor) -> Result<Self> {
        let values: Vec<f32> = values.flatten_all()?.to_vec1()?;
        let n = values.len().max(1) as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        let std = (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt();
        Ok(Self { mean, std, zeros: values.iter().filter(|v| **v == 0.0).count() as f64 / n })
    }
}

/// Values as unsigned integers and back: lance-mlx does this to noise for a quantized checkpoint on a GPU that
/// holds negatives at 0 (`pipeline/t2i.py`, the cast to `embed_tokens.weight.dtype`). For comparison only:
/// nothing here ever takes a type from a weight.
///
/// # Errors
/// Errors of candle.
pub fn as_unsigned(values: &Tensor) -> Result<Tensor> {
    let whole: Vec<f32> = values.flatten_all()?.to_vec1::<f32>()?.iter().map(|v| *v as u32 as f32).collect();
    Ok(Tensor::from_vec(whole, values.shape(), values.device())?)
}

/// Error of `what` in two runs.
fn relative(what: &str, reference: &Tensor, found: &Tensor) -> Result<Relative> {
    let mut relative = Relative::default();
    let values = |run: &str, x: &Tensor| finite::values(x, || format!("{what} of {run}"));
    relative.push(&values("the reference", reference)?, &values("the compared run", found)?);
    Ok(relative)
}

fn compare_images(reference: &RgbImage, image: &RgbImage) -> ImageComparison {
    let (before, frequency) = (Frequency::of(reference), Frequency::of(image));
    let change = |of: fn(&Frequency) -> f64| (of(&before) != 0.0).then(|| of(&frequency) / of(&before) - 1.0);
    ImageComparison {
        similarity: Similarity::of(reference, image),
        hf_ratio_change: change(|f| f.hf_ratio),
        hf_lance_mlx_change: change(|f| f.hf_lance_mlx),
        frequency,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cast_to_unsigned_integers_leaves_no_noise() {
        let intact = noise(42, 4096).unwrap();
        let (before, after) =
            (Start::of(&intact).unwrap(), Start::of(&as_unsigned(&intact).unwrap()).unwrap());
        assert!(
            before.mean.abs() < 0.01 && (before.std - 1.0).abs() < 0.01 && before.zeros < 1e-4,
            "{before:?}"
        );
        // Half is negative, a third is below 1: what is left is 1, 2 and 3.
        assert!((after.mean - 0.18).abs() < 0.01 && (after.std - 0.44).abs() < 0.01, "{after:?}");
        assert!((after.zeros - 0.84).abs() < 0.01, "{after:?}");
    }
}
