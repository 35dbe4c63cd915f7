//! Quantizes a matrix to every width of MLX's affine format and multiplies with it.
//!
//! `cargo run -p lance-mm-tensor --example affine`

#![allow(clippy::print_stdout, reason = "an example prints")]

use candle_core::{Device, Tensor};
use lance_mm_tensor::testing::seeded;
use lance_mm_tensor::{AffineWeight, DenseWeight, Linear, Result, Scheme};

const ROWS: usize = 512;
const COLS: usize = 1024;

fn main() -> Result<()> {
    let values = seeded(ROWS * COLS, 1);
    let x = Tensor::from_vec(seeded(COLS, 2), (1, COLS), &Device::Cpu)?;
    let exact = Linear::from(DenseWeight::from_f32(&values, COLS)).forward(&x)?;
    println!("bits  group  bits/weight  relative error of x · Wᵀ");
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            let scheme = Scheme::affine(bits, group)?;
            let linear = Linear::from(AffineWeight::quantize_f32("w", &values, COLS, scheme)?);
            let error = (linear.forward(&x)? - &exact)?.sqr()?.sum_all()?.to_scalar::<f32>()?;
            let size = exact.sqr()?.sum_all()?.to_scalar::<f32>()?;
            let stored = bits as f32 + 32.0 / group as f32;
            println!("{bits:>4}  {group:>5}  {stored:>11.2}  {:>24.5}", (error / size).sqrt());
        }
    }
    Ok(())
}
