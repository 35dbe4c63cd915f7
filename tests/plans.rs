//! Whole networks through the plans that a Metal device is given, against the CPU. What runs is the product: the same
//! loader, networks and loops. On Linux the simulator takes the device's place.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use lance_mm::generate::{Generated, Size};
use lance_mm::image::{self, Resize, RgbImage};
use lance_mm::models::{Cursor, Segment, Sequence, Vae, VaeConfig};
use lance_mm::tensor::testing::{assert_close, seeded};
use lance_mm::tensor::{ActivationPrecision, Weights};
use lance_mm::{
    Answer, AskOptions, Checkpoint, CheckpointBytes, Content, DecodeOptions, GenerateOptions, Lance, Request,
};
#[cfg(target_os = "linux")]
use lance_mm::{
    models::{Grid, NoiseBlock},
    tensor::testing::with_executor,
};

#[cfg(target_os = "linux")]
use crate::simulator::{Runs, simulator};
use crate::support::fixtures;

/// How often each kernel ran.
type Counts = BTreeMap<String, usize>;

/// Result of `work` on a device, whose place the simulator takes, with the kernels that ran.
#[cfg(target_os = "linux")]
fn on_device<T>(work: impl FnOnce(&Device) -> lance_mm::Result<T>) -> Option<(T, Counts)> {
    let runs = Runs::default();
    let found = with_executor(simulator(&runs), || work(&Device::Cpu)).unwrap();
    Some((found, runs.take()))
}

/// Result of `work` on this machine's device; nothing in a build without Metal.
#[cfg(target_os = "macos")]
fn on_device<T>(work: impl FnOnce(&Device) -> lance_mm::Result<T>) -> Option<(T, Counts)> {
    let device = lance_mm::tensor::DeviceChoice::Metal.open().ok()?;
    Some((work(&device).unwrap(), Counts::new()))
}

/// Results of `work` on a device and on the CPU.
fn on_both<T>(work: impl Fn(&Device) -> lance_mm::Result<T>) -> Option<(T, T, Counts)> {
    let (found, runs) = on_device(&work)?;
    Some((found, work(&Device::Cpu).unwrap(), runs))
}

#[track_caller]
fn all_ran(kernels: &[&str], runs: &Counts) {
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

fn ask(lance: &Lance, picture: &RgbImage, question: &str, options: &AskOptions) -> lance_mm::Result<Asked> {
    let visual = lance.encode_image(picture, options)?;
    let text = [Segment::Text(vec![1, 2, 3]), Segment::Vit(visual.grid()), Segment::Text(vec![4, 5])];
    let sequence = Sequence::new(&text, &lance.config().layout(), Cursor::default());
    let llm = lance.llm();
    let x = llm.embed(&sequence, &[visual.features().clone()])?;
    let logits = llm.logits(&llm.prefill(&x, &sequence, &mut llm.cache())?)?;
    let parts = [Content::Features(&visual), Content::Text(question)];
    let answer = lance.answer(&parts, options)?;
    Ok(Asked { features: flat(visual.features()), logits: flat(&logits), answer })
}

fn flat(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn nano() -> CheckpointBytes {
    CheckpointBytes {
        name: "nano",
        config: lance_mm_nano::CONFIG,
        generation_config: lance_mm_nano::GENERATION_CONFIG,
        tokenizer: lance_mm_nano::TOKENIZER,
        model: lance_mm_nano::MODEL,
        vit: lance_mm_nano::VIT,
    }
}

/// The question of a demo, rows on a device as `activations` say. Products on the CPU are in f32.
fn ask_nano(device: &Device, activations: ActivationPrecision) -> lance_mm::Result<Asked> {
    let demo = &lance_mm_nano::DEMOS[2];
    let picture = image::decode(demo.png, "plate.png", &image::LoadOptions::default())?;
    let checkpoint = Checkpoint::in_memory(&nano())?.with_f32_activations().with_activations(activations);
    let lance = Lance::new(checkpoint.with_device(device))?;
    ask(&lance, &picture, demo.question, &AskOptions::default())
}

#[test]
fn the_quantized_model_answers_as_on_the_cpu() {
    let both = on_both(|device| ask_nano(device, ActivationPrecision::F32));
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

/// Each operation rounds its rows to bf16; the reference on the CPU is in f32.
#[test]
fn the_quantized_model_answers_the_same_in_bf16() {
    let Some((found, runs)) = on_device(|device| ask_nano(device, ActivationPrecision::Bf16)) else { return };
    let expected = ask_nano(&Device::Cpu, ActivationPrecision::F32).unwrap();
    assert_close("features", &found.features, &expected.features, 0.1);
    assert_close("logits", &found.logits, &expected.logits, 0.06);
    assert_eq!((found.answer.text.as_str(), &found.answer.ids), ("BX62 BFY", &expected.answer.ids));
    // Pixels go in and logits come out as f32; nothing else does.
    let in_f32: Vec<&String> = runs.keys().filter(|kernel| kernel.contains("_f32")).collect();
    assert!(in_f32.is_empty() || in_f32 == ["affine_matvec_f32_bf16", "dense_matmul_f32_bf16"], "{in_f32:?}");
}

/// Kernels of the model's 36 layers, as docs/metal.md counts them.
#[test]
#[cfg(target_os = "linux")]
fn a_token_takes_13_dispatches_a_layer_and_3() {
    let runs = Runs::default();
    let layers = with_executor(simulator(&runs), || {
        let lance = Lance::new(Checkpoint::in_memory(&nano())?)?;
        let (llm, mut cache) = (lance.llm(), lance.llm().cache());
        let text = Sequence::new(&[Segment::Text(vec![1, 2, 3])], &llm.config().layout(), Cursor::default());
        llm.prefill(&llm.embed(&text, &[])?, &text, &mut cache)?;
        runs.take();
        llm.logits(&llm.step(4, text.end(), &mut cache)?)?;
        lance_mm::Result::Ok(llm.config().num_hidden_layers)
    });
    assert_eq!(runs.take().values().sum::<usize>(), 13 * layers.unwrap() + 3);
}

/// A copy of a cache has buffers of its own: what one sequence goes on with, the other does not see.
#[test]
fn forked_sequences_go_on_apart() {
    let both = on_both(|device| {
        let checkpoint = Checkpoint::in_memory(&nano())?.with_f32_activations();
        let lance = Lance::new(checkpoint.with_device(device))?;
        let (llm, mut cache) = (lance.llm(), lance.llm().cache());
        let text = Sequence::new(&[Segment::Text(vec![1, 2, 3])], &llm.config().layout(), Cursor::default());
        llm.prefill(&llm.embed(&text, &[])?, &text, &mut cache)?;
        let mut fork = cache.fork()?;
        let mut found = Vec::new();
        for (i, at) in [text.end(), Cursor { rows: 4, position: 4 }].into_iter().enumerate() {
            for (cache, id) in [(&mut cache, 4), (&mut fork, 40)] {
                found.push(flat(&llm.logits(&llm.step(id + i as u32, at, cache)?)?));
            }
        }
        Ok(found)
    });
    let Some((found, expected, _)) = both else { return };
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert_close(&format!("step {i}"), found, expected, 1e-3);
    }
    assert_ne!(expected[2], expected[3]);
}

/// A question to a model in bf16, rows on a device as `activations` say. Products on the CPU are in f32.
fn ask_toy(device: &Device, activations: ActivationPrecision) -> lance_mm::Result<Asked> {
    let picture = RgbImage::from_fn(90, 70, |x, y| [x as u8 * 2, y as u8 * 3, (x * y) as u8].into());
    let folder = fixtures("understanding/ckpt/mlx");
    let decode = DecodeOptions { max_new_tokens: 6, ..DecodeOptions::default() };
    let options = AskOptions { decode, resize: Some(Resize::Bucket { base: 112 }), ..AskOptions::default() };
    let checkpoint = Checkpoint::open(&folder)?.with_f32_activations().with_activations(activations);
    ask(&Lance::new(checkpoint.with_device(device))?, &picture, "What is it?", &options)
}

#[test]
fn the_model_in_bf16_answers_as_on_the_cpu() {
    let both = on_both(|device| ask_toy(device, ActivationPrecision::F32));
    let Some((found, expected, runs)) = both else { return };
    assert_close("features", &found.features, &expected.features, 1e-4);
    assert_close("logits", &found.logits, &expected.logits, 1e-4);
    assert_eq!(found.answer.ids, expected.answer.ids);
    all_ran(
        &["dense_matmul_f32_bf16", "dense_matvec_f32_bf16", "dense_rows_f32_bf16", "attention_tiles_f32"],
        &runs,
    );
}

/// Each operation rounds its rows to bf16; the reference on the CPU is in f32.
#[test]
fn rows_in_bf16_stay_close_in_a_model_of_random_weights() {
    let Some((found, runs)) = on_device(|device| ask_toy(device, ActivationPrecision::Bf16)) else { return };
    let expected = ask_toy(&Device::Cpu, ActivationPrecision::F32).unwrap();
    assert_close("features", &found.features, &expected.features, 0.07);
    // Random weights make more of what is rounded than trained ones.
    assert_close("logits", &found.logits, &expected.logits, 0.3);
    all_ran(&["dense_matmul_bf16_bf16", "dense_matvec_bf16_bf16", "dense_rows_bf16_bf16"], &runs);
}

/// Layers that generate, hidden states on a device as `activations` say. Matmuls on the CPU are in f32.
fn generation(device: &Device, activations: ActivationPrecision) -> lance_mm::Result<Lance> {
    let vae = Weights::open_in(&fixtures("vae/ckpt/mlx"), "vae")?;
    let checkpoint = Checkpoint::open(fixtures("generation/ckpt/mlx"))?.with_vae(vae).with_f32_activations();
    Lance::new(checkpoint.with_activations(activations).with_device(device))
}

/// Kernels of a step over one block of latents, as docs/metal.md counts them.
#[test]
#[cfg(target_os = "linux")]
fn a_step_of_drawing_takes_23_dispatches_a_layer_and_8() {
    let runs = Runs::default();
    let layers = with_executor(simulator(&runs), || {
        let lance = generation(&Device::Cpu, ActivationPrecision::Bf16)?;
        let (llm, grid) = (lance.llm_with_gen()?, Grid { t: 1, h: 3, w: 4 });
        let noise = Tensor::from_vec(seeded(12 * 48, 1), (12, 48), &Device::Cpu).unwrap();
        let sequence = Sequence::new(&[Segment::Noise(grid)], &llm.config().layout(), Cursor::default());
        let block = NoiseBlock { latents: &noise, grid, times: &[1.0], sequence: &sequence };
        lance.latent_layers()?.velocity(llm, &block, &mut llm.cache())?;
        lance_mm::Result::Ok(llm.config().num_hidden_layers)
    });
    assert_eq!(runs.take().values().sum::<usize>(), 23 * layers.unwrap() + 8);
}

/// Draws in two steps.
fn draw(device: &Device, activations: ActivationPrecision) -> lance_mm::Result<(Lance, Generated)> {
    let request = Request::TextToImage { size: Size { width: 48, height: 32 } };
    let options = GenerateOptions { steps: 2, ..GenerateOptions::default() };
    let lance = generation(device, activations)?;
    let drawn = lance.generate("A red fox", &request, &options, |_| {})?;
    Ok((lance, drawn))
}

/// Both experts, what leads from latents to rows and back, and the VAE.
#[test]
fn a_picture_is_drawn_as_on_the_cpu() {
    let both = on_both(|device| {
        let (lance, drawn) = draw(device, ActivationPrecision::F32)?;
        let pixels = lance.decode_latents(&drawn.latents, drawn.grid, &GenerateOptions::default())?;
        // Encoding what was drawn goes the other way.
        Ok([flat(&drawn.latents), flat(&pixels), flat(&lance.vae()?.encode(&pixels)?)])
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

/// Rows of both experts in bf16, latents in f32.
#[test]
fn latents_stay_close_when_rows_are_bf16() {
    let latents = |device: &Device, activations| Ok(flat(&draw(device, activations)?.1.latents));
    let Some((found, runs)) = on_device(|device| latents(device, ActivationPrecision::Bf16)) else { return };
    let expected = latents(&Device::Cpu, ActivationPrecision::F32).unwrap();
    assert_close("latents", &found, &expected, 0.08);
    all_ran(&["dense_matmul_bf16_bf16", "dense_matvec_bf16_bf16", "attention_tiles_bf16"], &runs);
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
