//! Rounds one synthetic linear layer at every width, every way: relative error of its outputs on inputs that
//! no step has seen.
//!
//! `cargo run --release -p lance-mm-quant --example linear`

#![expect(clippy::print_stdout, reason = "an example prints")]

use lance_mm_quant::{Activations, Consumer, Inputs, Matrix, RoundingOptions, Tie, quantize_linear, search};
use lance_mm_tensor::{Result, Scheme};

const ROWS: usize = 128;
const COLS: usize = 256;
/// Inputs live in a space of this many dimensions, plus noise.
const HIDDEN: usize = 64;

fn main() -> Result<()> {
    let weight = Matrix::new("w", values(ROWS * COLS, 1), COLS)?;
    let rows = Activations::new("x", inputs(600, 2), &inputs(200, 3), COLS)?;
    println!("bits  scale           plain    scaled   method                   error");
    for bits in [2, 3, 4, 5, 6, 8] {
        let scheme = Scheme::affine(bits, 128)?;
        let consumer = Consumer { name: "w", weight: &weight, scheme, inputs: &rows };
        let found = search(&[consumer], &Tie::none(COLS))?;
        let (mut weight, mut rows) = (weight.clone(), rows.clone());
        weight.multiply_cols(&found.scale);
        rows.divide(&found.scale);
        let inputs = Inputs::new("x", rows);
        let result = quantize_linear("w", &weight, Some(&inputs), scheme, &RoundingOptions::default())?;
        println!(
            "{bits:>4}  {:<14}  {:.5}  {:.5}  {:<23}  {:.5}",
            format!("{:?} {}", found.best.family, found.best.alpha),
            found.plain[0],
            result.trials[0].held_out,
            format!("{:?}", result.trial().method),
            result.trial().held_out,
        );
    }
    Ok(())
}

/// Inputs whose channels depend on each other; every sixteenth is strong.
fn inputs(n: usize, seed: u64) -> Vec<f32> {
    let (hidden, mix, noise) =
        (values(n * HIDDEN, seed), values(HIDDEN * COLS, 9), values(n * COLS, seed + 10));
    let value = |i: usize, c: usize| {
        let mixed: f32 = (0..HIDDEN).map(|l| hidden[i * HIDDEN + l] * mix[l * COLS + c]).sum();
        (mixed + noise[i * COLS + c]) * if c.is_multiple_of(16) { 20.0 } else { 1.0 }
    };
    (0..n * COLS).map(|at| value(at / COLS, at % COLS)).collect()
}

/// Reproducible values around 0 with a few large ones: a difference of two xorshift draws, to the power 1.5.
fn values(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut unit = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..n)
        .map(|_| {
            let v = unit() - unit();
            v * v.abs().sqrt()
        })
        .collect()
}
