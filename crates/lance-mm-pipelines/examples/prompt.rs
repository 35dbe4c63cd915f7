//! Lays out a question as rows, without running a network: tokenizer, template, positions.
//!
//! `cargo run -p lance-mm-pipelines --example prompt`

#![allow(clippy::print_stdout, reason = "an example prints")]

use lance_mm_models::{Config, Cursor, Grid, Sequence};
use lance_mm_pipelines::prompt::{self, Turn, TurnContent};
use lance_mm_pipelines::{Result, Tokenizer};

fn main() -> Result<()> {
    let tokenizer = Tokenizer::from_json(lance_mm_nano::TOKENIZER, "nano")?;
    let config = Config::from_json(lance_mm_nano::CONFIG)?;
    let picture = Grid { t: 1, h: 4, w: 4 };
    let turn = Turn::User(vec![TurnContent::Visual(picture), TurnContent::Text("What is in this image?")]);
    let segments = prompt::conversation(&tokenizer, prompt::IMAGE_SYSTEM_MESSAGE, &[turn])?;
    let sequence = Sequence::new(&segments, &config.layout(), Cursor::default());
    for (rows, mode) in sequence.segments() {
        let ids = &sequence.ids()[rows.clone()];
        let at = |row: usize| sequence.positions().each_ref().map(|axis| axis[row]);
        println!(
            "rows {rows:?} {mode:?}, positions {:?} to {:?}: {:?}",
            at(rows.start),
            at(rows.end - 1),
            tokenizer.decode(ids, false)
        );
    }
    Ok(())
}
