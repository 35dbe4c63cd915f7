//! Generates an image from a caption, reporting each inference step.
//!
//! `cargo run --release -p lance-mm --example generate -- Lance-3B-bf16 "A red fox at sunset" fox.png`

use lance_mm::generate::Event;
use lance_mm::{GenerateOptions, Lance, Request, Size};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompt, output] = args.as_slice() else {
        return Err("expected MODEL PROMPT OUTPUT.png".into());
    };
    let lance = Lance::from_pretrained(model)?;
    let request = Request::TextToImage { size: Size::default() };
    let generated = lance.generate(prompt, &request, &GenerateOptions::default(), |event| {
        if let Event::Step(step) = event {
            eprintln!("step {} of {}", step.step.index + 1, step.of);
        }
    })?;
    generated.frames[0].save(output)?;
    Ok(())
}
