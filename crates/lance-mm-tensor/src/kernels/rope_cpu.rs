//! Turns pairs of channels.

use rayon::prelude::*;

use super::simd::{Loop, Simd};

/// Values that a thread takes at once.
const CHUNK: usize = 16 * 1024;

/// Rows of heads, each of which turns channel `j` with `j + D/2` by the row's angle `j`: `x` is `(T, H, D)`, `cos` and
/// `sin` are `(T, D/2)`.
///
/// # Panics
/// When the sizes do not go together.
pub(crate) fn turn(x: &[f32], heads: usize, cos: &[f32], sin: &[f32], half: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    if out.is_empty() {
        return out;
    }
    let width = heads * 2 * half;
    assert!(width > 0 && cos.len() == sin.len(), "a sine for every cosine");
    assert!(x.len() == cos.len() / half * width, "a row of angles for every row");
    let simd = Simd::detect();
    let rows = (CHUNK / width).max(1);
    if x.len() <= CHUNK {
        simd.run(Turn { x, heads, cos, sin, half, out: &mut out });
        return out;
    }
    let values = out.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width));
    let angles = cos.par_chunks(rows * half).zip(sin.par_chunks(rows * half));
    values.zip(angles).for_each(|((out, x), (cos, sin))| simd.run(Turn { x, heads, cos, sin, half, out }));
    out
}

struct Turn<'a> {
    x: &'a [f32],
    heads: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    half: usize,
    out: &'a mut [f32],
}

impl Loop for Turn<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { x, heads, cos, sin, half, out } = self;
        let width = heads * 2 * half;
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(angles);
        for ((x, out), (cos, sin)) in rows {
            for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
                let ((a, b), (out_a, out_b)) = (x.split_at(half), out.split_at_mut(half));
                for j in 0..half {
                    out_a[j] = a[j] * cos[j] - b[j] * sin[j];
                    out_b[j] = a[j] * sin[j] + b[j] * cos[j];
                }
            }
        }
    }
}
