//! What is done once when networks were loaded onto a device.

use candle_core::{DType, Device, Tensor};
use lance_mm_models::latent::CHANNELS;
use lance_mm_models::{Cursor, Grid, LatentLayers, Llm, NoiseBlock, Segment, Sequence, Vae, Vit};
use lance_mm_tensor::with_autorelease_pool;

use crate::checkpoint::Checkpoint;
use crate::error::Result;

/// Rows of the prompt that is run: more than any kernel for few rows takes.
const ROWS: usize = 40;
/// Patches of the picture that is run, a side; so many latents are drawn where the model has positions for them.
const SIDE: usize = 8;
/// Frames, rows and columns of latents of the clip that is run: filters lie on one, two and three of its frames.
const CLIP: [usize; 3] = [2, 3, 3];

/// What draws, besides the language model.
pub(crate) type Drawing<'a> = (&'a LatentLayers, &'a Vae);

/// On a device besides the CPU, runs each network once, so that kernels are compiled now and not while somebody
/// waits for the first answer, and gives the pages of files back whose tensors the device has copies of.
///
/// # Errors
/// What the networks refuse.
pub(crate) fn up(
    checkpoint: &Checkpoint,
    llm: &Llm,
    vit: Option<&Vit>,
    drawing: Option<Drawing<'_>>,
) -> Result<()> {
    if checkpoint.model.device().is_cpu() {
        return Ok(());
    }
    with_autorelease_pool(|| run(llm, vit, drawing))?;
    checkpoint.model.release()?;
    let others = checkpoint.vit.iter().chain(checkpoint.vae());
    Ok(others.into_iter().try_for_each(|weights| weights.release())?)
}

fn run(llm: &Llm, vit: Option<&Vit>, drawing: Option<Drawing<'_>>) -> Result<()> {
    let mut cache = llm.cache();
    let text = [Segment::Text(vec![0; ROWS])];
    let sequence = Sequence::new(&text, &llm.config().layout(), Cursor::default());
    llm.prefill(&llm.embed(&sequence, &[])?, &sequence, &mut cache)?;
    let logits = llm.logits(&llm.step(0, sequence.end(), &mut cache)?)?;
    // Those of many sequences together, or of a text that is measured.
    llm.logits(&Tensor::zeros((ROWS, llm.config().hidden_size), DType::F32, logits.device())?)?;
    if let Some(vit) = vit {
        let side = SIDE.next_multiple_of(vit.config().spatial_merge_size);
        let grid = Grid { t: 1, h: side, w: side };
        let shape = (grid.count(), vit.config().patch_width());
        vit.forward(&Tensor::zeros(shape, DType::F32, &Device::Cpu)?, &[grid])?;
    }
    if let Some((latents, vae)) = drawing {
        let side = SIDE.min(llm.config().max_latent_size);
        let grid = Grid { t: 1, h: side, w: side };
        let noise = Tensor::zeros((grid.count(), CHANNELS), DType::F32, &Device::Cpu)?;
        let sequence = Sequence::new(&[Segment::Noise(grid)], &llm.config().layout(), Cursor::default());
        let block = NoiseBlock { latents: &noise, grid, times: &[1.0], sequence: &sequence };
        latents.velocity(llm, &block, &mut llm.cache())?;
        let [t, h, w] = CLIP;
        let clip = Tensor::zeros((CHANNELS, t, h, w), DType::F32, &Device::Cpu)?;
        vae.encode(&vae.decode(&clip)?)?;
    }
    Ok(logits.device().synchronize()?)
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
    use lance_mm_models::Experts;
    use lance_mm_tensor::metal::KernelPlan;
    use lance_mm_tensor::testing::with_executor;
    use lance_mm_tensor::{ActivationPrecision, Weights};

    use super::*;
    use crate::generate::{Request, Resolution, Size};
    use crate::testing::{NANO, checkpoint};
    use crate::{CheckpointBytes, Decoding, Generation, GenerationOptions, Options, Understanding};

    #[test]
    fn the_networks_run() {
        let checkpoint = checkpoint();
        let llm = Llm::load(&checkpoint.config, &checkpoint.model, Experts::Und).unwrap();
        let vit = Vit::load(&checkpoint.config.vision, checkpoint.vit.as_ref().unwrap()).unwrap();
        run(&llm, Some(&vit), None).unwrap();
        up(&checkpoint, &llm, None, None).unwrap();
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

    /// What ran later must be among what was compiled.
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
            let lance = Understanding::new(checkpoint).unwrap();
            run(lance.llm(), lance.vit().ok(), None).unwrap();
            let compiled = seen.take();
            let decoding = Decoding { max_new_tokens: 3, ..Decoding::default() };
            let options = Options { decoding, ..Options::default() };
            let picture = RgbImage::from_pixel(200, 120, [90, 120, 150].into());
            let clip = Clip::from_frames(vec![picture.clone(); 5], 2.0).unwrap();
            lance.generate(&picture, "What is it?", &options).unwrap();
            lance.generate_video(&clip, "What is it?", &options).unwrap();
            // Nine are more rows than a matrix-vector product takes.
            let look = lance.look(&[lance.encode_image(&picture, None).unwrap()], &options).unwrap();
            look.ask_all(&["What is it?"; 9], &options, &mut |_, _| ControlFlow::Continue(())).unwrap();
            let answering = seen.take();
            assert!(answering.iter().any(|(kernel, _)| kernel == "affine_matvec_bf16_bf16"));
            nothing_new(&answering, &compiled);
        });
    }

    #[test]
    fn drawings_run_what_was_compiled_before() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        with_notes(|seen| {
            let vae = Weights::open_in(&fixtures.join("vae/ckpt/mlx"), "vae").unwrap();
            let checkpoint = Checkpoint::open(fixtures.join("generation/ckpt/mlx")).unwrap();
            let checkpoint = checkpoint.with_vae(vae).with_activations(ActivationPrecision::Bf16);
            let lance = Generation::new(checkpoint).unwrap();
            run(lance.llm(), lance.vit().ok(), Some((lance.latent_layers(), lance.vae()))).unwrap();
            let compiled = seen.take();
            let image = &RgbImage::from_pixel(64, 64, [90, 120, 150].into());
            let clip = &Clip::from_frames(vec![image.clone(); 5], 12.0).unwrap();
            let (resolution, size) = (Resolution { vae: 64, vit: 56 }, Size::new(64, 96).unwrap());
            let options = GenerationOptions { steps: 1, ..GenerationOptions::default() };
            for request in [
                Request::TextToImage { size },
                Request::EditImage { image, resolution },
                Request::TextToVideo { size, frames: 5 },
                Request::ImageToVideo { image, frames: 5, resolution },
                Request::EditVideo { clip, resolution },
            ] {
                let drawn =
                    lance.generate("A red fox", &request, &options, &mut |_| ControlFlow::Continue(()));
                drawn.unwrap_or_else(|error| panic!("{}: {error}", request.task()));
                let drawing = seen.take();
                assert!(drawing.iter().any(|(kernel, _)| kernel == "conv_bf16"));
                nothing_new(&drawing, &compiled);
            }
            // Clips have frames before the newest.
            let conv: Vec<u16> =
                compiled.iter().filter(|(k, _)| k == "conv_bf16").map(|(_, c)| c[0]).collect();
            assert_eq!(conv, [1, 2, 3]);
        });
    }
}
