//! RMS norm and pixel norm: rows scaled by a function of their sum of squares.
//!
//! ```text
//! a row     | x0 .. x31 | x32 .. x63 | .. | tail |     32 running sums of squares, then one pass of x · scale · w
//! ```
//!
//! Both passes read the row from the first-level cache; candle's sum of a row is one chain of additions.

use rayon::prelude::*;

use super::pointwise::silu;
use super::simd::{Loop, Simd, mul_add};
use super::zeros::zeros;

/// Values that a thread takes at once, in whole rows.
// 64 kB: many more than handing them to a thread costs.
const CHUNK: usize = 16 * 1024;
/// Running sums of squares.
// Two of the widest registers, so that additions overlap.
const LANES: usize = 32;
/// Least L2 norm that a pixel is divided by.
// The epsilon of `F.normalize`, which the original calls.
const MIN_LENGTH: f32 = 1e-12;

/// RMS norm, `w · x / sqrt(mean(x²) + eps)`, of every row of `x`.
///
/// # Panics
/// When `x` is not whole rows of the width of `w`.
pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let width = w.len() as f32;
    scaled(x, w, |squares| 1.0 / (squares / width + eps).sqrt(), false)
}

/// Pixel norm, `gamma · x · √C / max(‖x‖₂, 1e-12)`, of every row of `x`; `with_silu` applies SiLU to the result.
///
/// # Panics
/// As [`rms_norm`].
pub(crate) fn pixel_norm(x: &[f32], gamma: &[f32], with_silu: bool) -> Vec<f32> {
    let root = (gamma.len() as f32).sqrt();
    scaled(x, gamma, |squares| root / squares.sqrt().max(MIN_LENGTH), with_silu)
}

fn scaled(x: &[f32], w: &[f32], scale: impl Fn(f32) -> f32 + Sync, with_silu: bool) -> Vec<f32> {
    let mut out = zeros(x.len());
    if out.is_empty() {
        return out;
    }
    assert!(!w.is_empty() && x.len().is_multiple_of(w.len()), "whole rows");
    let simd = Simd::detect();
    let piece = (CHUNK / w.len()).max(1) * w.len();
    let scaled = |(out, x): (&mut [f32], &[f32])| simd.run(Scaled { x, w, scale: &scale, with_silu, out });
    if x.len() > CHUNK {
        out.par_chunks_mut(piece).zip(x.par_chunks(piece)).for_each(scaled)
    } else {
        scaled((&mut out, x))
    }
    out
}

struct Scaled<'a, F> {
    x: &'a [f32],
    w: &'a [f32],
    /// Scale of a row, from its sum of squares.
    scale: F,
    with_silu: bool,
    out: &'a mut [f32],
}

impl<F: Fn(f32) -> f32> Loop for Scaled<'_, F> {
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
            let squares = sums.iter().sum::<f32>() + tail.iter().map(|x| x * x).sum::<f32>();
            let scale = (self.scale)(squares);
            for ((out, x), w) in out.iter_mut().zip(x).zip(self.w) {
                *out = x * scale * w;
            }
            if self.with_silu {
                out.iter_mut().for_each(|v| *v = silu::<FMA>(*v));
            }
        }
    }
}
