//! Several queries side by side, one in each lane: scores are keys times a panel of queries, and the softmax runs down the
//! lanes, with no sum across a register.
//!
//! ```text
//! queries    (D, 32)       packed once, scaled by 1 / sqrt(D)
//! scores     (128, 32)     += keys (128, D) in place · queries             by [`tile::add`]
//! weights    exp(score - max), in place of the scores
//! sums       (D, 32)       += values (128, D) in place, transposed · weights
//! max, sum of weights      32 lanes
//! ```

use crate::kernels::simd::{Loop, Simd, exp};
use crate::kernels::tile::{self, Left, PANEL};

/// Keys that are scored at once.
// Their scores are 16 kB, which stay in the first-level cache beside queries of 128 channels, 16 kB.
pub(super) const KEYS: usize = 128;

type Lanes = [f32; PANEL];

/// Queries and their running softmax.
pub(super) struct Panel {
    /// `(D, PANEL)`, scaled.
    queries: Vec<f32>,
    /// `(KEYS, PANEL)`.
    scores: Vec<f32>,
    /// Weighted sums of values `(D, PANEL)`, with the largest score as the exponent's zero.
    sums: Vec<f32>,
    /// Largest scores so far.
    max: Lanes,
    /// Sums of weights.
    weight: Lanes,
}

impl Panel {
    /// Makes a state without keys for up to [`PANEL`] queries of width `d`, which are multiplied by `scale`.
    pub(super) fn new<'a>(rows: impl Iterator<Item = &'a [f32]>, d: usize, scale: f32) -> Self {
        let mut queries = vec![0.0; d * PANEL];
        for (i, row) in rows.enumerate() {
            for (lanes, value) in queries.as_chunks_mut::<PANEL>().0.iter_mut().zip(row) {
                lanes[i] = value * scale;
            }
        }
        Self {
            sums: vec![0.0; queries.len()],
            queries,
            scores: vec![0.0; KEYS * PANEL],
            max: [f32::NEG_INFINITY; PANEL],
            weight: [0.0; PANEL],
        }
    }

    /// Adds `n` keys and values, rows of the given strides. Query `i` attends to the first `visible(i)` of them; of the
    /// first keys added each query attends to one at least.
    pub(super) fn add(
        &mut self,
        simd: Simd,
        k: (&[f32], usize),
        v: (&[f32], usize),
        n: usize,
        visible: impl Fn(usize) -> usize,
    ) {
        let scores = &mut self.scores[..n * PANEL];
        scores.fill(0.0);
        for first in (0..n).step_by(tile::rows(simd)) {
            let rows = tile::rows(simd).min(n - first);
            let keys = Left { values: &k.0[first * k.1..], row: k.1, step: 1 };
            tile::add(simd, rows, keys, &self.queries, &mut scores[first * PANEL..], PANEL);
        }
        let scores = scores.as_chunks_mut::<PANEL>().0;
        for i in 0..PANEL {
            let visible = visible(i);
            scores[visible..].iter_mut().for_each(|lanes| lanes[i] = f32::NEG_INFINITY);
        }
        let Self { sums, max, weight, .. } = self;
        simd.run(Softmax { scores, sums: sums.as_chunks_mut::<PANEL>().0, max, weight });
        let d = self.sums.len() / PANEL;
        for first in (0..d).step_by(tile::rows(simd)) {
            let rows = tile::rows(simd).min(d - first);
            let channels = Left { values: &v.0[first..], row: 1, step: v.1 };
            tile::add(simd, rows, channels, scores.as_flattened(), &mut self.sums[first * PANEL..], PANEL);
        }
    }

    /// Writes the output of query `i`.
    pub(super) fn write(&self, i: usize, out: &mut [f32]) {
        let factor = 1.0 / self.weight[i];
        for (out, sums) in out.iter_mut().zip(self.sums.as_chunks::<PANEL>().0) {
            *out = sums[i] * factor;
        }
    }
}

/// Turns scores into weights, and scales the sums to match.
struct Softmax<'a> {
    scores: &'a mut [Lanes],
    sums: &'a mut [Lanes],
    max: &'a mut Lanes,
    weight: &'a mut Lanes,
}

impl Loop for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Self { scores, sums, max, weight } = self;
        let mut largest = *max;
        for scores in scores.iter() {
            for i in 0..PANEL {
                largest[i] = if scores[i] > largest[i] { scores[i] } else { largest[i] };
            }
        }
        let mut old = [0.0; PANEL];
        for i in 0..PANEL {
            old[i] = exp::<FMA>(max[i] - largest[i]);
        }
        if old != [1.0; PANEL] {
            for sums in sums {
                for i in 0..PANEL {
                    sums[i] *= old[i];
                }
            }
        }
        let mut total = [0.0; PANEL];
        for scores in scores {
            for i in 0..PANEL {
                scores[i] = exp::<FMA>(scores[i] - largest[i]);
                total[i] += scores[i];
            }
        }
        for i in 0..PANEL {
            weight[i] = weight[i] * old[i] + total[i];
        }
        *max = largest;
    }
}
