//! Pointwise operations: SwiGLU, biases and residuals.
//!
//! Values lie in any shape, one after another; a thread takes a contiguous chunk, which the compiler vectorizes.

use rayon::prelude::*;

use super::simd::{Loop, Simd, exp};

/// Values that a thread takes at once.
// 64 kB for each operand: many more than handing them to a thread costs, and few enough to share a large input evenly.
const CHUNK: usize = 16 * 1024;

/// Writes `silu(gate) · up` to `gate`, with `silu(x) = x / (1 + e^-x)`.
///
/// # Panics
/// When the lengths differ.
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "a gate for each value");
    let chunks = gate.par_chunks_mut(CHUNK).zip(up.par_chunks(CHUNK));
    chunks.for_each(|(gate, up)| swiglu_serial(gate, up));
}

/// [`swiglu`] on this thread; values of `gate` past the end of `up` stay.
pub(super) fn swiglu_serial(gate: &mut [f32], up: &[f32]) {
    Simd::detect().run(Swiglu { gate, up });
}

struct Swiglu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Loop for Swiglu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for (gate, up) in self.gate.iter_mut().zip(self.up) {
            *gate = silu::<FMA>(*gate) * up;
        }
    }
}

/// `x / (1 + e^-x)`. `FMA` as for [`mul_add`](super::simd::mul_add).
#[inline(always)]
pub(super) fn silu<const FMA: bool>(x: f32) -> f32 {
    // The exponential of the negative magnitude neither overflows nor cancels.
    let e = exp::<FMA>(-x.abs());
    x * (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
}

/// Adds `values` to `y` row by row, one row of them as often as `y` has rows.
///
/// # Panics
/// When `y` is not whole rows.
pub(super) fn add_to(y: &mut [f32], values: &[f32]) {
    if y.is_empty() {
        return;
    }
    assert!(!values.is_empty() && y.len().is_multiple_of(values.len()), "whole rows");
    let add = |y: &mut [f32], values: &[f32]| y.iter_mut().zip(values).for_each(|(y, v)| *y += v);
    if y.len() <= CHUNK {
        // Done before another thread has started.
        return y.chunks_exact_mut(values.len()).for_each(|y| add(y, values));
    }
    if y.len() == values.len() {
        return y.par_chunks_mut(CHUNK).zip(values.par_chunks(CHUNK)).for_each(|(y, values)| add(y, values));
    }
    let rows = (CHUNK / values.len()).max(1);
    y.par_chunks_mut(rows * values.len()).for_each(|y| {
        y.chunks_exact_mut(values.len()).for_each(|y| add(y, values));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::seeded;

    #[test]
    fn swiglu_equals_the_f64_reference() {
        for simd in Simd::available() {
            let mut x: Vec<f32> = seeded(4001, 1).iter().map(|x| x * 30.0).collect();
            x.extend([0.0, -0.0, 88.0, -88.0, 1e30, -1e30, f32::INFINITY]);
            let up = seeded(x.len(), 2);
            let mut found = x.clone();
            simd.run(Swiglu { gate: &mut found, up: &up });
            for ((x, up), found) in x.iter().zip(&up).zip(found) {
                let (x, up) = (f64::from(*x), f64::from(*up));
                let expected = x / (1.0 + (-x).exp()) * up;
                let error = (f64::from(found) - expected).abs();
                assert!(
                    error <= 5e-7 * expected.abs() + 1e-35 || f64::from(found) == expected,
                    "{x} {up}: {found}"
                );
            }
        }
        let mut bad = vec![f32::NAN];
        swiglu(&mut bad, &[1.0]);
        assert!(bad[0].is_nan());
    }

    #[test]
    fn long_inputs_are_whole() {
        let (mut gate, up) = (vec![1.0; 3 * CHUNK + 5], vec![2.0; 3 * CHUNK + 5]);
        swiglu(&mut gate, &up);
        assert!(gate.iter().all(|v| (v - 1.462_117_2).abs() < 1e-6));
        let mut y = vec![1.0; 30_000];
        add_to(&mut y, &[0.0, 1.0, 2.0]);
        assert!(y.iter().enumerate().all(|(i, y)| *y == 1.0 + (i % 3) as f32));
        let values: Vec<f32> = (0..30_000).map(|i| 2.0 - (i % 3) as f32).collect();
        add_to(&mut y, &values);
        assert!(y.iter().all(|y| *y == 3.0));
    }
}
