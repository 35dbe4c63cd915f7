//! Quantizes the nano model, asks it, decodes with sampling of its own, and runs vision encoder and VAE alone.

use std::path::PathBuf;

use clap::Parser;
use lance_mm::candle::{DType, Device, Tensor};
use lance_mm::image::{LoadOptions, Resize, load, prepare_image};
use lance_mm::models::{Cursor, Grid, Sequence, Vae, VaeConfig};
use lance_mm::prompt::{IMAGE_SYSTEM_MESSAGE, Turn, TurnContent, conversation};
use lance_mm::{AskOptions, Lance, tensor::Weights};
use lance_mm_calibrate::{QuantizeOptions, quantize};
use lance_mm_eval::Dataset;

const QUESTION: &str = "What is the license plate number of the car?";

#[derive(Parser)]
struct Args {
    repository: PathBuf,
    questions: PathBuf,
    out: PathBuf,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Args { repository, questions, out } = Args::parse();
    let fixtures = repository.join("tests/fixtures");
    let (dataset, mut stages) = (Dataset::read(&questions)?, 0);
    let options = QuantizeOptions { calib_tokens: 128, ..QuantizeOptions::default() };
    let report = quantize(fixtures.join("nano-bf16"), Some(&dataset), &out, &options, &mut |_| stages += 1)?;
    println!("quantized {} matrices, {} stages", report.linears().len(), stages);

    let (lance, options) = (Lance::from_pretrained(&out)?, AskOptions::default());
    let image =
        load(&repository.join("crates/lance-mm-nano/assets/demo_plate.png"), &LoadOptions::default())?;
    println!("answer {}", lance.ask(&image, QUESTION, &options)?.text);

    let features = lance.encode_image(&image, &options)?;
    let turn = Turn::User(vec![TurnContent::Visual(features.grid()), TurnContent::Text(QUESTION)]);
    let segments = conversation(lance.tokenizer(), IMAGE_SYSTEM_MESSAGE, &[turn])?;
    let sequence = Sequence::new(&segments, &lance.config().layout(), Cursor::default());
    let (llm, mut cache, mut at) = (lance.llm(), lance.llm().cache(), sequence.end());
    let x = llm.embed(&sequence, &[features.features().clone()])?;
    let mut logits = llm.logits(&llm.prefill(&x, &sequence, &mut cache)?)?;
    let (end, mut ids) = (lance.tokenizer().id("<|im_end|>")?, Vec::new());
    while ids.len() < 32 {
        let id = logits.argmax(1)?.to_vec1::<u32>()?[0];
        if id == end {
            break;
        }
        ids.push(id);
        logits = llm.logits(&llm.step(id, at, &mut cache)?)?;
        at = Cursor { rows: at.rows + 1, position: at.position + 1 };
    }
    println!("decoded {}", lance.tokenizer().decode(&ids, true).trim());

    let patches = prepare_image(&image, Resize::native())?;
    let grid = Grid { t: patches.t, h: patches.h, w: patches.w };
    let pixels = Tensor::from_vec(patches.values, (grid.count(), 1176), &Device::Cpu)?;
    println!("vision encoder {:?}", lance.vit()?.forward(&pixels, &[grid])?.dims());
    let weights = Weights::open_in(&fixtures.join("vae/ckpt/mlx"), "vae")?;
    let vae = Vae::load(&VaeConfig::of(&weights)?, &weights)?;
    println!("VAE {:?}", vae.decode(&Tensor::zeros((48, 1, 2, 3), DType::F32, &Device::Cpu)?)?.dims());
    Ok(())
}
