//! Whole networks through the plans that a Metal device is given, against the CPU. What runs is the product: the same
//! loader, networks and loops. On Linux the simulator takes the device's place.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use lance_mm::generate::Size;
use lance_mm::image::{Resize, RgbImage};
use lance_mm::models::{Cursor, Segment, Sequence, Vae, VaeConfig};
use lance_mm::tensor::Weights;
#[cfg(target_os = "linux")]
use lance_mm::tensor::testing::with_executor;
use lance_mm::tensor::testing::{assert_close, seeded};
use lance_mm::{Answer, Checkpoint, Decoding, Files, Generation, GenerationOptions, Options, Part, Request};
use lance_mm::{Understanding, image};

#[cfg(target_os = "linux")]
use crate::simulator::{Runs, simulator};
use crate::support::fixtures;

/// What `work` gives on a device, whose place the simulator takes, and on the CPU; with the kernels that ran.
#[cfg(target_os = "linux")]
fn on_both<T>(work: impl Fn(&Device) -> lance_mm::Result<T>) -> Option<(T, T, BTreeMap<String, usize>)> {
    let runs = Runs::default();
    let found = with_executor(simulator(&runs), || work(&Device::Cpu)).unwrap();
    Some((found, work(&Device::Cpu).unwrap(), runs.take()))
}

/// What `work` gives on this machine's device and on the CPU; nothing in a build without Metal.
#[cfg(target_os = "macos")]
fn on_both<T>(work: impl Fn(&Device) -> lance_mm::Result<T>) -> Option<(T, T, BTreeMap<String, usize>)> {
    let device = lance_mm::tensor::DeviceChoice::Metal.open().ok()?;
    Some((work(&device).unwrap(), work(&Device::Cpu).unwrap(), BTreeMap::new()))
}

#[track_caller]
fn all_ran(kernels: &[&str], runs: &BTreeMap<String, usize>) {
    // A device does not count.
    for kernel in kernels.iter().filter(|_| cfg!(target_os = "linux")) {
        assert!(runs.contains_key(*kernel), "{kernel} is not among {runs:?}");
    }
}

/// A picture and a question: what is seen, the logits of a first token, the answer.
struct Asked {
    features: Vec<f32>,
    logits: Vec<f32>,
    answer: Answer,
}

fn ask(
    lance: &Understanding,
    picture: &RgbImage,
    question: &str,
    options: &Options,
) -> lance_mm::Result<Asked> {
    let visual = lance.encode_image(picture, options.resize)?;
    let text = [Segment::Text(vec![1, 2, 3]), Segment::Vit(visual.grid()), Segment::Text(vec![4, 5])];
    let sequence = Sequence::new(&text, &lance.config().layout(), Cursor::default());
    let llm = lance.llm();
    let x = llm.embed(&sequence, &[visual.features().clone()])?;
    let logits = llm.logits(&llm.prefill(&x, &sequence, &mut llm.cache())?)?;
    let parts = [Part::Visual(&visual), Part::Text(question)];
    let answer = lance.answer(&parts, options, &mut |_| ControlFlow::Continue(()))?;
    Ok(Asked { features: flat(visual.features()), logits: flat(&logits), answer })
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn nano() -> Files {
    Files {
        name: "nano",
        config: lance_mm_nano::CONFIG,
        generation_config: lance_mm_nano::GENERATION_CONFIG,
        tokenizer: lance_mm_nano::TOKENIZER,
        model: lance_mm_nano::MODEL,
        vit: lance_mm_nano::VIT,
    }
}

#[test]
fn the_quantized_model_answers_as_on_the_cpu() {
    let demo = &lance_mm_nano::DEMOS[2];
    let picture = image::decode(demo.png, "plate.png", &image::LoadOptions::default()).unwrap();
    let both = on_both(|device| {
        let lance =
            Understanding::new(Checkpoint::in_memory(&nano())?.with_f32_activations().with_device(device))?;
        ask(&lance, &picture, demo.question, &Options::default())
    });
    let Some((found, expected, runs)) = both else { return };
    assert_close("features", &found.features, &expected.features, 1e-3);
    assert_close("logits", &found.logits, &expected.logits, 1e-3);
    assert_eq!((found.answer.text.as_str(), &found.answer.ids), ("BX62 BFY", &expected.answer.ids));
    // Every operation of both networks went through a plan.
    all_ran(&["affine_matmul_f32_bf16", "affine_matvec_f32_bf16", "affine_rows_f32_bf16"], &runs);
    all_ran(
        &["attention_row_f32", "attention_tiles_f32", "norm_rope_f32", "rms_norm_f32", "swiglu_f32"],
        &runs,
    );
}

/// What docs/metal.md says of the model's 36 layers.
#[test]
#[cfg(target_os = "linux")]
fn a_token_takes_13_dispatches_a_layer_and_3() {
    let runs = Runs::default();
    let layers = with_executor(simulator(&runs), || {
        let lance = Understanding::new(Checkpoint::in_memory(&nano())?)?;
        let (llm, mut cache) = (lance.llm(), lance.llm().cache());
        let text = Sequence::new(&[Segment::Text(vec![1, 2, 3])], &llm.config().layout(), Cursor::default());
        llm.prefill(&llm.embed(&text, &[])?, &text, &mut cache)?;
        runs.take();
        llm.logits(&llm.step(4, text.end(), &mut cache)?)?;
        lance_mm::Result::Ok(llm.config().num_hidden_layers)
    });
    assert_eq!(runs.take().values().sum::<usize>(), 13 * layers.unwrap() + 3);
}

#[test]
fn the_model_in_bf16_answers_as_on_the_cpu() {
    let picture = RgbImage::from_fn(90, 70, |x, y| [x as u8 * 2, y as u8 * 3, (x * y) as u8].into());
    let folder = fixtures("understanding/ckpt/mlx");
    let decoding = Decoding { max_new_tokens: 6, ..Decoding::default() };
    let options = Options { decoding, resize: Some(Resize::Bucket { base: 112 }), ..Options::default() };
    let both = on_both(|device| {
        let lance =
            Understanding::new(Checkpoint::open(&folder)?.with_f32_activations().with_device(device))?;
        ask(&lance, &picture, "What is it?", &options)
    });
    let Some((found, expected, runs)) = both else { return };
    assert_close("features", &found.features, &expected.features, 1e-4);
    assert_close("logits", &found.logits, &expected.logits, 1e-4);
    assert_eq!(found.answer.ids, expected.answer.ids);
    all_ran(
        &["dense_matmul_f32_bf16", "dense_matvec_f32_bf16", "dense_rows_f32_bf16", "attention_tiles_f32"],
        &runs,
    );
}

/// Both experts, what leads from latents to rows and back, and the VAE.
#[test]
fn a_picture_is_drawn_as_on_the_cpu() {
    let request = Request::TextToImage { size: Size::new(32, 48).unwrap() };
    let options = GenerationOptions { steps: 2, ..GenerationOptions::default() };
    let both = on_both(|device| {
        let vae = Weights::open_in(&fixtures("vae/ckpt/mlx"), "vae")?;
        let checkpoint = Checkpoint::open(fixtures("generation/ckpt/mlx"))?.with_f32_activations();
        let lance = Generation::new(checkpoint.with_vae(vae).with_device(device))?;
        let drawn = lance.generate("A red fox", &request, &options, &mut |_| ControlFlow::Continue(()))?;
        let pixels = lance.pixels(&drawn.latents, drawn.grid)?;
        // Encoding what was drawn goes the other way.
        Ok([flat(&drawn.latents), flat(&pixels), flat(&lance.vae().encode(&pixels)?)])
    });
    let Some((found, expected, runs)) = both else { return };
    for (name, i) in [("latents", 0), ("pixels", 1), ("encoded", 2)] {
        assert_close(name, &found[i], &expected[i], 1e-3);
    }
    all_ran(
        &["dense_matmul_f32_bf16", "dense_matvec_f32_bf16", "attention_tiles_f32", "norm_rope_f32"],
        &runs,
    );
    all_ran(&["conv_bf16", "pixel_norm"], &runs);
}

/// Frames of a clip that are remembered from one to the next.
#[test]
fn a_clip_is_decoded_as_on_the_cpu() {
    let values = seeded(48 * 3 * 2, 1);
    let both = on_both(|device| {
        let weights = Weights::open_in(&fixtures("vae/ckpt/mlx"), "vae")?.with_device(device.clone());
        let vae = Vae::load(&VaeConfig::of(&weights)?, &weights)?;
        let latents = Tensor::from_slice(&values, (48, 3, 1, 2), &Device::Cpu).unwrap();
        Ok(flat(&vae.decode(&latents)?))
    });
    let Some((found, expected, _)) = both else { return };
    assert_close("frames", &found, &expected, 1e-3);
}
