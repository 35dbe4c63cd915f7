//! Runs the vision transformer alone, on the bundled nano weights: patches in, one row a merge group out.
//!
//! `cargo run -p lance-mm-models --example vit`

#![allow(clippy::print_stdout, reason = "an example prints")]

use candle_core::Tensor;
use lance_mm_models::{Config, Grid, Vit};
use lance_mm_tensor::testing::seeded;
use lance_mm_tensor::{Result, Weights};

fn main() -> Result<()> {
    let config = Config::from_json(lance_mm_nano::CONFIG)?;
    let weights = Weights::from_static("nano/vit.safetensors", lance_mm_nano::VIT)?;
    let vit = Vit::load(&config.vision, &weights)?;

    // A picture of 112x168 pixels and a clip of four frames of 56x56, as normalised patches.
    let grids = [Grid { t: 1, h: 8, w: 12 }, Grid { t: 2, h: 4, w: 4 }];
    let n: usize = grids.iter().map(Grid::count).sum();
    let width = config.vision.patch_width();
    let patches = Tensor::from_vec(seeded(n * width, 1), (n, width), weights.device())?;
    let rows = vit.forward(&patches, &grids)?;
    println!("{:?} patches -> {:?} rows for the language model", patches.dims(), rows.dims());
    Ok(())
}
