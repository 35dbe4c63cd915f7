//! Asks a checkpoint about an image and prints the answer as it is generated.
//!
//! `cargo run --release -p lance-mm --example ask -- nano crates/lance-mm-nano/assets/demo_plate.png "Which plate?"`

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::io::Write;
use std::path::Path;

use lance_mm::{AskOptions, Content, Lance, image};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, path, question] = args.as_slice() else {
        return Err("expected MODEL IMAGE QUESTION".into());
    };
    let lance = Lance::from_pretrained(model)?;
    let image = image::load(Path::new(path), &image::LoadOptions::default())?;
    let options = AskOptions::default();
    let features = lance.encode_image(&image, &options)?;
    let message = [Content::Features(&features), Content::Text(question)];
    let answer = lance.answer_stream(&message, &options, |text| {
        print!("{text}");
        if std::io::stdout().flush().is_err() {
            // A reader that is gone ends the answer.
            options.stop_flag.stop();
        }
    })?;
    println!();
    eprintln!(
        "{} tokens of prompt: vision encoder {:.2?}, prefill {:.2?}; {} tokens in {:.2?}",
        answer.prompt_tokens,
        features.time(),
        answer.prefill_time,
        answer.ids.len(),
        answer.decode_time
    );
    Ok(())
}
