//! Runs the language model alone, on the bundled nano weights: token ids in, the next ids out.
//!
//! `cargo run -p lance-mm-models --example llm`

#![allow(clippy::print_stdout, reason = "an example prints")]

use lance_mm_models::{Config, Cursor, Experts, Llm, Segment, Sequence};
use lance_mm_tensor::{Quantization, Result, Weights};

fn main() -> Result<()> {
    let config = Config::from_json(lance_mm_nano::CONFIG)?;
    // A quantized checkpoint states its scheme in config.json.
    let json = serde_json::from_slice(lance_mm_nano::CONFIG).expect("the bundled config.json is JSON");
    let weights = Weights::from_static("nano/model.safetensors", lance_mm_nano::MODEL)?
        .with_quantization(Quantization::from_config(&json)?);
    let llm = Llm::load(&config, &weights, Experts::Und)?;

    let mut cache = llm.cache();
    let prompt = [Segment::Text((40..60).collect())];
    let sequence = Sequence::new(&prompt, &config.layout(), Cursor::default());
    let mut row = llm.prefill(&llm.embed(&sequence, &[])?, &sequence, &mut cache)?;
    let mut at = sequence.end();
    let mut ids = Vec::new();
    for _ in 0..8 {
        let id = llm.logits(&row)?.argmax(1)?.to_vec1::<u32>()?[0];
        ids.push(id);
        row = llm.step(id, at, &mut cache)?;
        at = Cursor { rows: at.rows + 1, position: at.position + 1 };
    }
    println!(
        "{ids:?} after {} ids; the cache holds {} rows, {} bytes",
        sequence.len(),
        cache.len(),
        cache.bytes()
    );
    Ok(())
}
