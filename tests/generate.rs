//! Drawing through the facade, on a checkpoint with random weights. That its numbers are the original's is
//! checked by `cargo xtask fixtures check`, whose tests run on the same fixtures.

use candle_core::{DType, Tensor};
use lance_mm::generate::{Event, Generated, Plan, Resolution, Size, Stage, Unconditional};
use lance_mm::image::RgbImage;
use lance_mm::tensor::{ActivationPrecision, Weights};
use lance_mm::{Checkpoint, Error, GenerateOptions, Guidance, Lance, Request};

use crate::support::fixtures;

fn lance() -> Lance {
    let vae = Weights::open_in(&fixtures("vae/ckpt/mlx"), "vae").unwrap();
    Lance::new(
        Checkpoint::open(fixtures("generation/ckpt/mlx"))
            .unwrap()
            .with_vae(vae)
            .with_activations(ActivationPrecision::Split),
    )
    .unwrap()
}

fn picture() -> RgbImage {
    RgbImage::from_fn(90, 70, |x, y| [x as u8 * 2, y as u8 * 3, (x * y) as u8].into())
}

/// Few steps; with the stages and, for each step, whether there was a second pass.
fn draw(request: &Request<'_>, options: &GenerateOptions) -> (Generated, Vec<Stage>, Vec<bool>) {
    let (mut stages, mut guided) = (Vec::new(), Vec::new());
    let drawn = lance().generate("A red fox", request, options, |event| match event {
        Event::Begin(stage) => stages.push(stage),
        Event::Step(step) => {
            assert_eq!(
                (step.x.dtype(), step.v.dtype(), step.next.dtype()),
                (DType::F32, DType::F32, DType::F32)
            );
            guided.push(step.v_uncond.is_some());
        }
    });
    (drawn.unwrap(), stages, guided)
}

fn short() -> GenerateOptions {
    GenerateOptions { steps: 2, ..GenerateOptions::default() }
}

#[test]
fn the_seed_decides_and_guidance_1_needs_no_second_pass() {
    let request = Request::TextToImage { size: Size { width: 48, height: 32 } };
    let (drawn, stages, guided) = draw(&request, &short());
    assert_eq!((stages, guided), (vec![Stage::Prompt, Stage::Denoise, Stage::VaeDecode], vec![true, true]));
    assert_eq!((drawn.frames.len(), drawn.frames[0].dimensions()), (1, (48, 32)));
    assert_eq!(draw(&request, &short()).0.frames, drawn.frames);
    let other = GenerateOptions { seed: 43, ..short() };
    assert_ne!(draw(&request, &other).0.frames, drawn.frames);
    let plain = GenerateOptions { guidance: Guidance { scale: 1.0, ..Guidance::default() }, ..short() };
    assert_eq!(draw(&request, &plain).2, [false, false]);
    // A seed stands for the noise of the documented generator.
    let given = GenerateOptions { noise: Some(lance_mm::noise(42, 6).unwrap()), seed: 1, ..short() };
    assert_eq!(draw(&request, &given).0.frames, drawn.frames);
}

#[test]
fn a_video_keeps_the_latents_of_its_first_frame() {
    let image = picture();
    let resolution = Resolution { vae: 64, vit: 56 };
    let request = Request::ImageToVideo { image: &image, frames: 5, resolution };
    let (drawn, stages, _) = draw(&request, &short());
    assert_eq!(stages, [Stage::VaeEncode, Stage::Prompt, Stage::Denoise, Stage::VaeDecode]);
    assert_eq!(drawn.frames.len(), 5);
    let encoded = lance().encode_source(&request, &short(), &mut |_| {}).unwrap();
    let flat = |x: Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    // (48, 1, h, w) -> (h·w, 48)
    let first = encoded.latents.unwrap().permute((1, 2, 3, 0)).unwrap();
    let n = drawn.grid.h * drawn.grid.w;
    assert_eq!(flat(drawn.latents.narrow(0, 0, n).unwrap()), flat(first));
}

#[test]
fn an_edit_looks_at_its_source_twice() {
    let image = picture();
    let request = Request::EditImage { image: &image, resolution: Resolution { vae: 64, vit: 56 } };
    let (drawn, stages, _) = draw(&request, &short());
    assert_eq!(
        stages,
        [Stage::VisionEncoder, Stage::VaeEncode, Stage::Prompt, Stage::Denoise, Stage::VaeDecode]
    );
    let mut other = image.clone();
    other.pixels_mut().for_each(|pixel| pixel.0[0] = 255 - pixel.0[0]);
    let changed = Request::EditImage { image: &other, resolution: Resolution { vae: 64, vit: 56 } };
    assert_ne!(draw(&changed, &short()).0.frames, drawn.frames);
}

#[test]
fn a_trace_reads_what_the_steps_read() {
    let (lance, image) = (lance(), picture());
    let requests = [
        Request::TextToImage { size: Size { width: 48, height: 32 } },
        Request::EditImage { image: &image, resolution: Resolution { vae: 64, vit: 56 } },
    ];
    for request in requests {
        // With the caption and without, of the second of three steps.
        let options = GenerateOptions { steps: 3, ..GenerateOptions::default() };
        let mut velocities = Vec::new();
        lance
            .generate("A red fox", &request, &options, |event| {
                if let Event::Step(step) = event
                    && step.step.index == 1
                {
                    velocities = vec![step.v_cond.clone(), step.v_uncond.unwrap().clone()];
                }
            })
            .unwrap();
        let trace = lance.trace("A red fox", &request, &options, &[1]).unwrap();
        assert_eq!(trace.passes.iter().map(|pass| pass.captioned).collect::<Vec<_>>(), [true, false]);
        let plan = Plan::new(&trace.pieces, &lance.config().layout(), Unconditional::Cached);
        for (pass, expected) in trace.passes.iter().zip(velocities) {
            let sequence = plan.whole(pass.captioned);
            let mut x = pass.x.clone();
            for index in 0..lance.config().num_hidden_layers {
                x = lance
                    .llm_with_gen()
                    .unwrap()
                    .run_layer(index, &x, &sequence, &mut |_, _| Ok(()))
                    .unwrap();
            }
            let normed = lance.llm_with_gen().unwrap().norm(&x, &sequence).unwrap();
            let rows = sequence.visual().last().unwrap();
            let rows = normed.narrow(0, rows.start, rows.len()).unwrap();
            let found = lance.latent_layers().unwrap().velocity_of(&rows).unwrap();
            let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            lance_mm::tensor::testing::assert_close("velocity", &flat(&found), &flat(&expected), 1e-3);
        }
    }
}

#[test]
fn it_stops_when_asked() {
    let request = Request::TextToImage { size: Size { width: 32, height: 32 } };
    let options = GenerateOptions::default();
    let mut steps = 0;
    let result = lance().generate("A fox", &request, &options, |event| {
        if matches!(event, Event::Step(_)) {
            steps += 1;
            if steps == 2 {
                options.stop_flag.stop();
            }
        }
    });
    assert!(matches!(result, Err(Error::Interrupted)) && steps == 2);
}

#[test]
fn what_does_not_fit_is_refused() {
    let lance = lance();
    let request = Request::TextToImage { size: Size { width: 32, height: 32 } };
    let check =
        |options: &GenerateOptions| lance.check_request("x", &request, options).err().map(|e| e.to_string());
    let wrong = GenerateOptions { noise: Some(lance_mm::noise(1, 5).unwrap()), ..short() };
    assert_eq!(check(&wrong).unwrap(), "option noise: expected F32 [4, 48], found F32 [5, 48]");
    // Noise of the type of a packed weight is none.
    let noise = lance_mm::noise(1, 4).unwrap().to_dtype(DType::U32).unwrap();
    let cast = GenerateOptions { noise: Some(noise), ..short() };
    assert!(check(&cast).unwrap().ends_with("found U32 [4, 48]"));
    assert!(check(&short()).is_none());
    // A checkpoint of the UND expert alone.
    let und = Checkpoint::open(fixtures("understanding/ckpt/mlx")).unwrap();
    let error = Lance::new(und).unwrap().load_generator().unwrap_err().to_string();
    assert!(error.contains("expected both experts") || error.contains("expected vae.safetensors"), "{error}");
}
