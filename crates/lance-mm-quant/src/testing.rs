//! Inputs for tests.

use lance_mm_tensor::testing::seeded;

use crate::activations::Activations;

/// Activations whose channels depend on each other and differ in size, as real activations do.
pub fn correlated(n: usize, n_held_out: usize, cols: usize, seed: u64) -> Activations {
    let rank = cols / 4 + 1;
    let mix = seeded(rank * cols, seed);
    let size = seeded(cols, seed + 1);
    let make = |n: usize, seed: u64| -> Vec<f32> {
        let (hidden, noise) = (seeded(n * rank, seed), seeded(n * cols, seed + 1));
        let value = |i: usize, c: usize| {
            let mixed: f32 = (0..rank).map(|l| hidden[i * rank + l] * mix[l * cols + c]).sum();
            (mixed + 0.3 * noise[i * cols + c]) * (2.0 * size[c]).exp()
        };
        (0..n * cols).map(|at| value(at / cols, at % cols)).collect()
    };
    Activations::new("x", make(n, seed + 2), &make(n_held_out, seed + 4), cols).expect("finite rows")
}
