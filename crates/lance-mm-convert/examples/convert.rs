//! Converts a checkpoint of the original release and shows how far it is:
//! `cargo run -p lance-mm-convert --example convert -- Lance_3B Lance-3B-bf16`.
#![allow(clippy::print_stdout, reason = "a command line program")]

use lance_mm_convert::{ConvertOptions, Error, convert};

fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let (Some(source), Some(out)) = (args.next(), args.next()) else {
        println!("usage: convert SOURCE OUT");
        return Ok(());
    };
    let options = ConvertOptions { verify: true, ..ConvertOptions::default() };
    let report = convert(&source, &out, &options, &mut |written| {
        println!("{} ({} of {} bytes)", written.tensor, written.done, written.total);
    })?;
    println!("{report}");
    Ok(())
}
