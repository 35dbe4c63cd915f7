//! Asks a checkpoint about a picture and prints the answer as it comes.
//!
//! `cargo run --release -p lance-mm --example ask -- FOLDER PICTURE QUESTION`

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use lance_mm::{Options, Part, Understanding, image};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, picture, question] = args.as_slice() else {
        return Err("expected FOLDER PICTURE QUESTION".into());
    };
    let lance = Understanding::from_pretrained(folder)?;
    let picture = image::load(Path::new(picture), &image::LoadOptions::default())?;
    let visual = lance.encode_image(&picture, None)?;
    let parts = [Part::Visual(&visual), Part::Text(question)];
    let answer = lance.answer(&parts, &Options::default(), &mut |piece| {
        print!("{piece}");
        // A reader that has gone away ends the answer.
        if std::io::stdout().flush().is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    println!();
    eprintln!(
        "{} tokens of prompt: vision {:.2?}, prefill {:.2?}; {} tokens in {:.2?}",
        answer.prompt_tokens,
        visual.time(),
        answer.prefill_time,
        answer.ids.len(),
        answer.decode_time
    );
    Ok(())
}
