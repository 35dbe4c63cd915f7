//! Encodes an image with the VAE alone, decodes the latents and saves what comes back.
//!
//! `cargo run --release -p lance-mm --example vae_decode -- DIR IMAGE OUT.png`, where `DIR` holds a `vae.safetensors`.

use std::path::Path;

use lance_mm::image::{self, LoadOptions};
use lance_mm::models::{Vae, VaeConfig};
use lance_mm::tensor::Weights;
use lance_mm::{frames_to_tensor, tensor_to_frames};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, path, out] = args.as_slice() else {
        return Err("expected DIR IMAGE OUT.png".into());
    };
    let weights = Weights::open_in(Path::new(dir), "vae")?;
    let vae = Vae::load(&VaeConfig::of(&weights)?, &weights)?;

    let image = image::load(Path::new(path), &LoadOptions::default())?;
    let frames = image::resize_to_bucket(&[&image], 256)?;
    // (3, 1, H, W) in [-1, 1] to (48, 1, H/16, W/16), the latents that generation works on, and back.
    let latents = vae.encode(&frames_to_tensor(&frames)?)?;
    let frames = tensor_to_frames(&vae.decode(&latents)?)?;
    eprintln!("latents {:?}, image {:?}", latents.dims(), frames[0].dimensions());
    frames[0].save(out)?;
    Ok(())
}
