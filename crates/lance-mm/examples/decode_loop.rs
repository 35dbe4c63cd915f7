//! Decodes with a sampling of one's own, by the public API alone: prompt, prefill, logits, one step a token.
//!
//! `cargo run --release -p lance-mm --example decode_loop -- nano crates/lance-mm-nano/assets/demo_plate.png "Which plate?"`

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::path::Path;

use lance_mm::models::{Cursor, Sequence};
use lance_mm::prompt::{IMAGE_SYSTEM_MESSAGE, Turn, TurnContent, conversation};
use lance_mm::{AskOptions, Lance, TextStream, image};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, path, question] = args.as_slice() else {
        return Err("expected MODEL IMAGE QUESTION".into());
    };
    let lance = Lance::from_pretrained(model)?;
    let image = image::load(Path::new(path), &image::LoadOptions::default())?;
    let features = lance.encode_image(&image, &AskOptions::default())?;

    let turn = Turn::User(vec![TurnContent::Visual(features.grid()), TurnContent::Text(question)]);
    let segments = conversation(lance.tokenizer(), IMAGE_SYSTEM_MESSAGE, &[turn])?;
    let llm = lance.llm();
    let mut cache = llm.cache();
    let sequence = Sequence::new(&segments, &lance.config().layout(), Cursor::default());
    let x = llm.embed(&sequence, &[features.features().clone()])?;
    let mut hidden = llm.prefill(&x, &sequence, &mut cache)?;

    let end = lance.tokenizer().id("<|im_end|>")?;
    let (mut at, mut text) = (sequence.end(), TextStream::new(lance.tokenizer()));
    for _ in 0..64 {
        let id = likeliest_unless_close(&llm.logits(&hidden)?.squeeze(0)?.to_vec1()?);
        if id == end {
            break;
        }
        print!("{}", text.push(id));
        hidden = llm.step(id, at, &mut cache)?;
        at = Cursor { rows: at.rows + 1, position: at.position + 1 };
    }
    println!("{}", text.finish());
    Ok(())
}

/// The likeliest token, or the lower id of the two likeliest where their logits differ by less than 0.1.
fn likeliest_unless_close(logits: &[f32]) -> u32 {
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    ids.sort_unstable_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
    let [first, second] = [ids[0], ids[1]];
    if logits[first as usize] - logits[second as usize] < 0.1 { first.min(second) } else { first }
}
