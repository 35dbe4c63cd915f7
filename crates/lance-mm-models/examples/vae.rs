//! Runs the VAE alone: noise of the size of a clip to latents, and those back to frames.
//!
//! `cargo run --release -p lance-mm-models --example vae -- DIR [HEIGHT WIDTH [FRAMES]]`, where `DIR` holds a
//! `vae.safetensors`.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::path::Path;
use std::time::Instant;

use candle_core::{Device, Tensor};
use lance_mm_models::{Vae, VaeConfig};
use lance_mm_tensor::testing::seeded;
use lance_mm_tensor::{Error, Result, Weights};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |arg| arg.parse());
    let (Some(dir), Ok(height), Ok(width), Ok(frames)) =
        (args.first(), number(1, 64), number(2, 64), number(3, 1))
    else {
        return Err(Error::input("arguments", "DIR [HEIGHT WIDTH [FRAMES]]", args.join(" ")));
    };
    let weights = Weights::open_in(Path::new(dir), "vae")?;
    let vae = Vae::load(&VaeConfig::of(&weights)?, &weights)?;

    let shape = [3, frames, height, width];
    let clip = Tensor::from_vec(seeded(shape.iter().product(), 1), &shape, &Device::Cpu)?;
    let start = Instant::now();
    let latents = vae.encode(&clip)?;
    println!("{:?} -> {:?} in {:.2} s", clip.dims(), latents.dims(), start.elapsed().as_secs_f64());
    let start = Instant::now();
    let clip = vae.decode(&latents)?;
    println!("{:?} -> {:?} in {:.2} s", latents.dims(), clip.dims(), start.elapsed().as_secs_f64());
    Ok(())
}
