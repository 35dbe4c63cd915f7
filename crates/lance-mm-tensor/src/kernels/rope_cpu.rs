//! Turns pairs of channels.

use rayon::prelude::*;

use super::simd::{Loop, Simd};

/// Values that a thread takes at once.
const CHUNK: usize = 16 * 1024;

/// Angles of rows: cosines and sines `(T, D/2)`.
#[derive(Clone, Copy)]
pub(crate) struct Angles<'a> {
    pub(crate) cos: &'a [f32],
    pub(crate) sin: &'a [f32],
    /// `D/2`.
    pub(crate) half: usize,
}

/// Turns channel `j` of each head with `j + D/2` by the row's angle `j`, in place. Rows begin `stride` values apart in
/// `x`, which begins with the first head of the first; each has `heads` of them.
///
/// # Panics
/// When the sizes do not go together.
pub(crate) fn apply_rotary(x: &mut [f32], stride: usize, heads: usize, angles: Angles<'_>) {
    let Angles { cos, sin, half } = angles;
    let width = heads * 2 * half;
    if x.is_empty() || width == 0 {
        return;
    }
    assert!(cos.len() == sin.len() && cos.len().is_multiple_of(half), "a sine for every cosine");
    let n = cos.len() / half;
    assert!(width <= stride && x.len().div_ceil(stride) == n, "a row of angles for every row");
    assert!(x.len() >= (n - 1) * stride + width, "the last row is whole");
    let simd = Simd::detect();
    if n * width <= CHUNK {
        return simd.run(ApplyRotary { x, stride, heads, angles });
    }
    let rows = (CHUNK / width).max(1);
    let angles = cos.par_chunks(rows * half).zip(sin.par_chunks(rows * half));
    x.par_chunks_mut(rows * stride).zip(angles).for_each(|(x, (cos, sin))| {
        simd.run(ApplyRotary { x, stride, heads, angles: Angles { cos, sin, half } });
    });
}

struct ApplyRotary<'a> {
    x: &'a mut [f32],
    stride: usize,
    heads: usize,
    angles: Angles<'a>,
}

impl Loop for ApplyRotary<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { x, stride, heads, angles: Angles { cos, sin, half } } = self;
        let angles = cos.chunks_exact(half).zip(sin.chunks_exact(half));
        for (x, (cos, sin)) in x.chunks_mut(stride).zip(angles) {
            for x in x.chunks_exact_mut(2 * half).take(heads) {
                let (a, b) = x.split_at_mut(half);
                for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                    (*a, *b) = (*a * cos - *b * sin, *a * sin + *b * cos);
                }
            }
        }
    }
}
