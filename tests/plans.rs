//! Whole networks through the plans that a Metal device is given, run by the simulator, against the CPU. What runs
//! is the product: the same loader, networks and loop, with [`with_executor`] in the device's place.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::rc::Rc;

use candle_core::Tensor;
use lance_mm::generate::{Event, Size};
use lance_mm::image::{Resize, RgbImage};
use lance_mm::models::{Cursor, Segment, Sequence};
use lance_mm::tensor::Weights;
use lance_mm::tensor::metal::{Arg, Plan};
use lance_mm::tensor::testing::{Executor, assert_close, with_executor};
use lance_mm::{Answer, Checkpoint, Decoding, Files, Generation, GenerationOptions, Options, Part, Request};
use lance_mm::{Understanding, image};
use msl_sim::{Build, Launch, Program};

use crate::support::fixtures;

/// How often each kernel ran.
type Runs = Rc<RefCell<BTreeMap<String, usize>>>;

/// Runs plans in the simulator, lanes shuffled, and counts them.
fn simulator(runs: &Runs) -> Rc<Executor> {
    let (programs, runs) = (RefCell::new(HashMap::<&str, Program>::new()), runs.clone());
    Rc::new(move |plan, inputs| {
        *runs.borrow_mut().entry(plan.kernel.clone()).or_default() += 1;
        let mut programs = programs.borrow_mut();
        let program = programs.entry(plan.source.name).or_insert_with(|| {
            Program::from_source(plan.source.text, Build::Plain).expect("the project's own kernels compile")
        });
        run(program, plan, inputs).map_err(|e| format!("{e:#}"))
    })
}

fn run(
    program: &Program,
    plan: &Plan,
    inputs: &[Vec<u8>],
) -> Result<Vec<u8>, impl std::fmt::Display + use<>> {
    let sizes = |sizes: [usize; 3]| sizes.map(|n| n as u32);
    let mut launch = Launch::new(&plan.kernel, sizes(plan.groups), sizes(plan.threads)).order(5);
    launch.constants = (0..).zip(plan.constants.iter().map(|c| c.to_le_bytes().to_vec())).collect();
    let mut inputs = inputs.to_vec();
    let mut output = vec![0xff; plan.output_len() * 4];
    let mut inputs: Vec<Option<&mut Vec<u8>>> = inputs.iter_mut().map(Some).collect();
    let mut result = Some(&mut output);
    for (slot, arg) in (0..).zip(&plan.args) {
        launch = launch.arg(match arg {
            Arg::Input(i) | Arg::Strided(i) => {
                msl_sim::Arg::Buffer(slot, inputs[*i].take().expect("an input is bound once"))
            }
            Arg::Output(_) => msl_sim::Arg::Buffer(slot, result.take().expect("one output")),
            Arg::U32(n) => msl_sim::Arg::Bytes(slot, n.to_le_bytes().to_vec()),
            Arg::F32(n) => msl_sim::Arg::Bytes(slot, n.to_le_bytes().to_vec()),
        });
    }
    program.run(launch).map(|_| output)
}

/// What `work` gives as on a device, and on the CPU; with the kernels that ran.
fn on_both<T>(work: impl Fn() -> lance_mm::Result<T>) -> (T, T, BTreeMap<String, usize>) {
    let runs = Runs::default();
    let found = with_executor(simulator(&runs), &work).unwrap();
    (found, work().unwrap(), runs.take())
}

#[track_caller]
fn all_ran(kernels: &[&str], runs: &BTreeMap<String, usize>) {
    for kernel in kernels {
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

#[test]
fn the_quantized_model_answers_as_on_the_cpu() {
    let files = Files {
        name: "nano",
        config: lance_mm_nano::CONFIG,
        generation_config: lance_mm_nano::GENERATION_CONFIG,
        tokenizer: lance_mm_nano::TOKENIZER,
        model: lance_mm_nano::MODEL,
        vit: lance_mm_nano::VIT,
    };
    let demo = &lance_mm_nano::DEMOS[2];
    let picture = image::decode(demo.png, "plate.png", &image::LoadOptions::default()).unwrap();
    let (found, expected, runs) = on_both(|| {
        let lance = Understanding::new(Checkpoint::in_memory(&files)?.with_f32_activations())?;
        ask(&lance, &picture, demo.question, &Options::default())
    });
    assert_close("features", &found.features, &expected.features, 1e-3);
    assert_close("logits", &found.logits, &expected.logits, 1e-3);
    assert_eq!((found.answer.text.as_str(), &found.answer.ids), ("BX62 BFY", &expected.answer.ids));
    // Every operation of both networks went through a plan.
    all_ran(&["affine_matmul_f32_bf16", "affine_matvec_f32_bf16", "affine_rows_f32_bf16"], &runs);
    all_ran(&["attention_row_f32", "attention_tiles_f32", "norm_rope_f32", "rms_norm_f32", "swiglu"], &runs);
}

#[test]
fn the_model_in_bf16_answers_as_on_the_cpu() {
    let picture = RgbImage::from_fn(90, 70, |x, y| [x as u8 * 2, y as u8 * 3, (x * y) as u8].into());
    let folder = fixtures("understanding/ckpt/mlx");
    let decoding = Decoding { max_new_tokens: 6, ..Decoding::default() };
    let options = Options { decoding, resize: Some(Resize::Bucket { base: 112 }), ..Options::default() };
    let (found, expected, runs) = on_both(|| {
        let lance = Understanding::new(Checkpoint::open(&folder)?.with_f32_activations())?;
        ask(&lance, &picture, "What is it?", &options)
    });
    assert_close("features", &found.features, &expected.features, 1e-4);
    assert_close("logits", &found.logits, &expected.logits, 1e-4);
    assert_eq!(found.answer.ids, expected.answer.ids);
    all_ran(&["dense_matmul_bf16", "dense_matvec_bf16", "dense_rows_bf16", "attention_tiles_f32"], &runs);
}

/// Both experts, and what leads from latents to rows and back; the VAE is the CPU's.
#[test]
fn latents_are_drawn_as_on_the_cpu() {
    let request = Request::TextToImage { size: Size::new(64, 48).unwrap() };
    let options = GenerationOptions { steps: 2, ..GenerationOptions::default() };
    let (found, expected, runs) = on_both(|| {
        let vae = Weights::open_in(&fixtures("vae/ckpt/mlx"), "vae")?;
        let lance = Generation::new(
            Checkpoint::open(fixtures("generation/ckpt/mlx"))?.with_f32_activations().with_vae(vae),
        )?;
        let mut latents = Vec::new();
        let end = lance.generate("A red fox", &request, &options, &mut |event| match event {
            Event::Step(step) => {
                latents.push(flat(step.next));
                if latents.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            }
            Event::Begin(_) => ControlFlow::Continue(()),
        });
        assert!(matches!(end, Err(lance_mm::Error::Interrupted)));
        Ok(latents.concat())
    });
    assert_close("latents", &found, &expected, 1e-4);
    all_ran(
        &["dense_matmul_bf16", "dense_matvec_bf16", "attention_tiles_f32", "norm_rope_f32", "swiglu"],
        &runs,
    );
}
