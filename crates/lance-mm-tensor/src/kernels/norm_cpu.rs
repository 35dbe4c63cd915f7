//! Rows divided by their root mean square.

use rayon::prelude::*;

use super::simd::{Loop, Simd, mul_add};
use crate::pool::zeros;

/// Values that a thread takes at once.
const CHUNK: usize = 16 * 1024;
/// Running sums: two of the widest registers.
const LANES: usize = 32;

/// `w · x / sqrt(mean(x²) + eps)` of every row of `x`.
///
/// # Panics
/// When `x` is not whole rows of the width of `w`.
pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let mut out = zeros(x.len());
    if out.is_empty() {
        return out;
    }
    assert!(!w.is_empty() && x.len().is_multiple_of(w.len()), "whole rows");
    let simd = Simd::detect();
    let piece = (CHUNK / w.len()).max(1) * w.len();
    let normed = |(out, x): (&mut [f32], &[f32])| simd.run(RmsNorm { x, w, eps, out });
    match x.len() > CHUNK {
        true => out.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(normed),
        false => normed((&mut out, x)),
    }
    out
}

struct RmsNorm<'a> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Loop for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let width = self.w.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            let mut sums = [0.0; LANES];
            let (whole, tail) = x.as_chunks::<LANES>();
            for x in whole {
                for i in 0..LANES {
                    sums[i] = mul_add::<FMA>(x[i], x[i], sums[i]);
                }
            }
            let total = sums.iter().sum::<f32>() + tail.iter().map(|x| x * x).sum::<f32>();
            let scale = 1.0 / (total / width as f32 + self.eps).sqrt();
            for ((out, x), w) in out.iter_mut().zip(x).zip(self.w) {
                *out = x * scale * w;
            }
        }
    }
}
