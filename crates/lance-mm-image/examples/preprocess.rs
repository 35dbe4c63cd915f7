//! Prepares an image for the vision encoder of Qwen2.5-VL, and prints the shape of the result.
//!
//! `cargo run -p lance-mm-image --example preprocess -- [IMAGE]`

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::path::Path;

use lance_mm_image::{
    LoadOptions, PATCH_VALUES, Resize, Result, Rgb, RgbImage, Size, decode, encode_png, load, prepare_image,
};

fn main() -> Result<()> {
    let options = LoadOptions { auto_orient: true, ..LoadOptions::default() };
    let image = match std::env::args().nth(1) {
        Some(path) => load(Path::new(&path), &options)?,
        None => decode(&gradient()?, "gradient.png", &options)?,
    };
    let patches = prepare_image(&image, Resize::native())?;

    println!("image        {} pixels", Size::of(&image));
    println!("pixel_values ({}, {PATCH_VALUES}) f32", patches.values.len() / PATCH_VALUES);
    println!("grid_thw     ({}, {}, {})", patches.t, patches.h, patches.w);
    println!("tokens       {}", patches.t * patches.h * patches.w / 4);
    Ok(())
}

/// A PNG file to decode when none is named.
fn gradient() -> Result<Vec<u8>> {
    encode_png(&RgbImage::from_fn(640, 480, |x, y| Rgb([(x / 3) as u8, (y / 2) as u8, 128])), &[])
}
