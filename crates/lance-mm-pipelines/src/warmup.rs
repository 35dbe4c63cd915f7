//! Warm-up of networks that were loaded onto a device.

use candle_core::{DType, Device, Tensor};
use lance_mm_models::latent::CHANNELS;
use lance_mm_models::{Cursor, Grid, LatentLayers, Llm, NoiseBlock, Segment, Sequence, Vae, Vit};
use lance_mm_tensor::{Weights, with_autorelease_pool};

use crate::error::Result;

/// Tokens of the prompt that is run: more than any kernel for few tokens takes.
const TOKENS: usize = 40;
/// Patches of the image that is run, a side; also latents, where the model has positions for so many.
const SIDE: usize = 8;
/// Frames, rows and columns of latents of the clip that is run: filters cover one, two and three of its frames.
const CLIP: [usize; 3] = [2, 3, 3];

/// Warms up the language model's UND expert.
///
/// # Errors
/// Inputs that the network refuses.
pub(crate) fn understanding(weights: &Weights, llm: &Llm) -> Result<()> {
    on_device(weights, || run_llm(llm))
}

/// Warms up the vision encoder.
///
/// # Errors
/// As [`understanding`].
pub(crate) fn vit(weights: &Weights, vit: &Vit) -> Result<()> {
    on_device(weights, || run_vit(vit))
}

/// Warms up the language model with both experts, and the latent layers.
///
/// # Errors
/// As [`understanding`].
pub(crate) fn generation(weights: &Weights, llm: &Llm, latents: &LatentLayers) -> Result<()> {
    on_device(weights, || run_latents(llm, latents))
}

/// Warms up the VAE.
///
/// # Errors
/// As [`understanding`].
pub(crate) fn vae(weights: &Weights, vae: &Vae) -> Result<()> {
    on_device(weights, || run_vae(vae))
}

/// On a device besides the CPU, runs a network once, so that kernels are compiled now and not while somebody waits for
/// the first answer, and drops the mapped pages of the files whose tensors the device has copies of.
fn on_device(weights: &Weights, run: impl FnOnce() -> Result<()>) -> Result<()> {
    if weights.device().is_cpu() {
        return Ok(());
    }
    with_autorelease_pool(run)?;
    weights.device().synchronize()?;
    Ok(weights.release()?)
}

fn run_llm(llm: &Llm) -> Result<()> {
    let mut cache = llm.cache();
    let text = [Segment::Text(vec![0; TOKENS])];
    let sequence = Sequence::new(&text, &llm.config().layout(), Cursor::default());
    llm.prefill(&llm.embed(&sequence, &[])?, &sequence, &mut cache)?;
    let logits = llm.logits(&llm.step(0, sequence.end(), &mut cache)?)?;
    // Those of many sequences together, or of a text that is measured.
    llm.logits(&Tensor::zeros((TOKENS, llm.config().hidden_size), DType::F32, logits.device())?)?;
    Ok(())
}

fn run_vit(vit: &Vit) -> Result<()> {
    let side = SIDE.next_multiple_of(vit.config().spatial_merge_size);
    let grid = Grid { t: 1, h: side, w: side };
    let shape = (grid.count(), vit.config().patch_width());
    vit.forward(&Tensor::zeros(shape, DType::F32, &Device::Cpu)?, &[grid])?;
    Ok(())
}

fn run_latents(llm: &Llm, latents: &LatentLayers) -> Result<()> {
    let side = SIDE.min(llm.config().max_latent_size);
    let grid = Grid { t: 1, h: side, w: side };
    let noise = Tensor::zeros((grid.count(), CHANNELS), DType::F32, &Device::Cpu)?;
    let sequence = Sequence::new(&[Segment::Noise(grid)], &llm.config().layout(), Cursor::default());
    let block = NoiseBlock { latents: &noise, grid, times: &[1.0], sequence: &sequence };
    latents.velocity(llm, &block, &mut llm.cache())?;
    Ok(())
}

fn run_vae(vae: &Vae) -> Result<()> {
    let [t, h, w] = CLIP;
    let clip = Tensor::zeros((CHANNELS, t, h, w), DType::F32, &Device::Cpu)?;
    vae.encode(&vae.decode(&clip)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::ops::ControlFlow;
    use std::path::Path;
    use std::rc::Rc;

    use lance_mm_image::RgbImage;
    use lance_mm_image::video::Clip;
    use lance_mm_tensor::ActivationPrecision;
    use lance_mm_tensor::metal::KernelPlan;
    use lance_mm_tensor::testing::with_executor;

    use super::*;
    use crate::generate::{Request, Resolution, Size};
    use crate::testing::{NANO, checkpoint};
    use crate::{AskOptions, Checkpoint, CheckpointBytes, DecodeOptions, GenerateOptions, Lance};

    #[test]
    fn the_networks_run() {
        let lance = Lance::new(checkpoint()).unwrap();
        run_llm(lance.llm()).unwrap();
        run_vit(lance.vit().unwrap()).unwrap();
    }

    /// Kernels with their constants, which is what a device compiles.
    type Pipelines = BTreeSet<(String, Vec<u16>)>;

    /// Runs `work` on a device that notes what is to be compiled and gives zeros, good enough to see what runs.
    fn with_notes(work: impl FnOnce(&RefCell<Pipelines>)) {
        let seen = Rc::new(RefCell::new(Pipelines::new()));
        let notes = seen.clone();
        let zeros = move |plan: &KernelPlan, _: &[Vec<u8>]| {
            notes.borrow_mut().insert((plan.kernel.clone(), plan.constants.clone()));
            let (len, float) = plan.output();
            Ok(vec![0; len * float.size()])
        };
        with_executor(Rc::new(zeros), || work(&seen));
    }

    /// Asserts that everything that ran later was compiled before.
    #[track_caller]
    fn nothing_new(later: &Pipelines, compiled: &Pipelines) {
        assert_eq!(later.difference(compiled).collect::<Vec<_>>(), Vec::<&(_, _)>::new());
    }

    #[test]
    fn answers_run_what_was_compiled_before() {
        with_notes(|seen| {
            let files =
                CheckpointBytes { model: lance_mm_nano::MODEL, config: lance_mm_nano::CONFIG, ..NANO };
            let checkpoint =
                Checkpoint::in_memory(&files).unwrap().with_activations(ActivationPrecision::Bf16);
            let lance = Lance::new(checkpoint).unwrap();
            run_llm(lance.llm()).unwrap();
            run_vit(lance.vit().unwrap()).unwrap();
            let compiled = seen.take();
            let decode = DecodeOptions { max_new_tokens: 3, ..DecodeOptions::default() };
            let options = AskOptions { decode, ..AskOptions::default() };
            let image = RgbImage::from_pixel(200, 120, [90, 120, 150].into());
            let clip = Clip::from_frames(vec![image.clone(); 5], 2.0).unwrap();
            lance.ask(&image, "What is it?", &options).unwrap();
            lance.ask_video(&clip, "What is it?", &options).unwrap();
            // Nine are more rows than a matrix-vector product takes.
            let features = lance.encode_image(&image, &options).unwrap();
            let context = lance.image_context(&[features], &options).unwrap();
            context.ask_all(&["What is it?"; 9], &options, |_, _| ControlFlow::Continue(())).unwrap();
            let answering = seen.take();
            assert!(answering.iter().any(|(kernel, _)| kernel == "affine_matvec_bf16_bf16"));
            nothing_new(&answering, &compiled);
        });
    }

    #[test]
    fn generations_run_what_was_compiled_before() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        with_notes(|seen| {
            let vae = Weights::open_in(&fixtures.join("vae/ckpt/mlx"), "vae").unwrap();
            let checkpoint = Checkpoint::open(fixtures.join("generation/ckpt/mlx")).unwrap();
            let checkpoint = checkpoint.with_vae(vae).with_activations(ActivationPrecision::Bf16);
            let lance = Lance::new(checkpoint).unwrap();
            run_llm(lance.llm()).unwrap();
            run_vit(lance.vit().unwrap()).unwrap();
            run_latents(lance.llm_with_gen().unwrap(), lance.latent_layers().unwrap()).unwrap();
            run_vae(lance.vae().unwrap()).unwrap();
            let compiled = seen.take();
            let image = &RgbImage::from_pixel(64, 64, [90, 120, 150].into());
            let clip = &Clip::from_frames(vec![image.clone(); 5], 12.0).unwrap();
            let (resolution, size) = (Resolution { vae: 64, vit: 56 }, Size { width: 96, height: 64 });
            let options = GenerateOptions { steps: 1, ..GenerateOptions::default() };
            for request in [
                Request::TextToImage { size },
                Request::EditImage { image, resolution },
                Request::TextToVideo { size, frames: 5 },
                Request::ImageToVideo { image, frames: 5, resolution },
                Request::EditVideo { clip, resolution },
            ] {
                let generated = lance.generate("A red fox", &request, &options, |_| {});
                generated.unwrap_or_else(|error| panic!("{}: {error}", request.task()));
                let generating = seen.take();
                assert!(generating.iter().any(|(kernel, _)| kernel == "conv_bf16"));
                nothing_new(&generating, &compiled);
            }
            // Clips have frames before the newest.
            let conv: Vec<u16> =
                compiled.iter().filter(|(k, _)| k == "conv_bf16").map(|(_, c)| c[0]).collect();
            assert_eq!(conv, [1, 2, 3]);
        });
    }
}
