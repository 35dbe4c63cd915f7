//! Several queries on AMX: scores are keys times transposed queries, outputs are transposed values times weights, so that
//! queries lie side by side, one in each lane.
//!
//! ```text
//!              left operand                 right operand                  sums
//! scores       keys: 32 x 32 channels       queries: 16 words x 32         32 keys x 32 queries
//! outputs      values: 32 channels x 32     weights: 16 words x 32         32 channels x 32 queries
//! ```
//!
//! Keys and values are packed once for a block, queries once. Weights of two neighbouring keys become a word by rounding
//! two rows of scores, so that nothing is transposed between the two matmuls. Queries, keys, values and weights are rounded
//! to bf16; scores, softmax and sums are f32.

use std::ops::Range;

use rayon::prelude::*;

use super::Attention;
use crate::attention_block::Block;
use crate::kernels::amx::{AmxBf16, Operands, PANEL, Rows32, SIDE, Sums, Tiles, Words16};
use crate::kernels::avx512_bf16::Avx512Bf16;
use crate::kernels::simd::{Loop, Simd, exp};

/// Panels of keys that are scored at once.
// The scores of 128 keys with 32 queries are 16 kB, and stay in the first-level cache until they are weights.
const KEY_PANELS: usize = 4;
/// Panels of queries that pass some keys before the next keys.
// 256 queries, whose sums of 128 channels are 128 kB. 1 to 32 panels differ by a twentieth: 7.0 ms at 4 to 16 for 512 queries
// of 16 heads, 7.5 at 1, 7.8 at 32 (one core).
const QUERY_PANELS: usize = 8;
/// Fewest queries, times the heads that share a key head, that run on tiles.
// One right operand. Fewer, padded, gain too: 8 queries over 1,024 keys took 1.9 ms on tiles, 3.6 without (one core).
pub(super) const LEAST: usize = 16;

/// Runs blocks, each with its rows of the output `(T, H·D)`.
pub(super) fn run(amx: AmxBf16, attention: &Attention<'_>, blocks: Vec<(&Block, &mut [f32])>) {
    let [h, _, d] = attention.q.dims;
    let (n_groups, fold) = (attention.k.dims()[0], attention.fold());
    let most = (QUERY_PANELS * PANEL / fold).max(1);
    let threads = rayon::current_num_threads();
    // A thread takes a whole block if there are enough of them.
    let (small, large): (Vec<_>, Vec<_>) = if blocks.len() >= 2 * threads {
        blocks.into_iter().partition(|(block, _)| block.queries.len() <= most)
    } else {
        (Vec::new(), blocks)
    };
    small.into_par_iter().with_max_len(1).for_each(|(block, out)| {
        for group in 0..n_groups {
            let head = Head { amx, attention, group, block };
            let keys: Vec<Keys> = head.parts().map(|keys| head.keys(keys)).collect();
            head.run(&keys, &block.queries, out);
        }
    });
    for (block, out) in large {
        let least = PANEL.div_ceil(fold).min(most);
        let n_rows = block.queries.len().div_ceil(threads).clamp(least, most);
        for group in 0..n_groups {
            let head = Head { amx, attention, group, block };
            let parts: Vec<Range<usize>> = head.parts().collect();
            let keys: Vec<Keys> = parts.into_par_iter().map(|keys| head.keys(keys)).collect();
            // One task at a time: of a causal block the last queries take longest.
            out.par_chunks_mut(n_rows * h * d).enumerate().with_max_len(1).for_each(|(i, out)| {
                let first = block.queries.start + i * n_rows;
                head.run(&keys, &(first..(first + n_rows).min(block.queries.end)), out);
            });
        }
    }
}

/// A key head of a block, and the query heads that share it.
#[derive(Clone, Copy)]
struct Head<'a> {
    amx: AmxBf16,
    attention: &'a Attention<'a>,
    group: usize,
    block: &'a Block,
}

impl Head<'_> {
    /// The keys of the block in ranges that are scored at once.
    fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        let keys = self.block.keys.clone();
        keys.clone().step_by(KEY_PANELS * PANEL).map(move |k| k..(k + KEY_PANELS * PANEL).min(keys.end))
    }

    fn keys(&self, range: Range<usize>) -> Keys {
        let (n, d) = (range.len(), self.attention.q.dims[2]);
        let [(k, of_keys), (v, of_values)] =
            [self.attention.k, self.attention.v].map(|kept| kept.rows(self.group, range.clone()));
        let key = |i: usize| &k[i * of_keys..][..d];
        let value = |i: usize| &v[i * of_values..][..d];
        Keys::new(self.amx.convert, key, value, n, d)
    }

    /// Computes the queries `rows`, whose output begins with `out`, for these heads.
    fn run(&self, keys: &[Keys], rows: &Range<usize>, out: &mut [f32]) {
        let Self { amx, attention, group, block } = *self;
        let ([h, _, d], fold, simd) = (attention.q.dims, attention.fold(), Simd::detect());
        let scale = 1.0 / (d as f32).sqrt();
        let column = |i: usize| attention.column(group, rows, i);
        let n = fold * rows.len();
        let queries = attention.by_panel(group, rows, PANEL);
        let mut panels: Vec<Panel> =
            queries.map(|queries| Panel::new(amx.convert, queries, d, scale)).collect();
        let mut tiles = amx.tiles();
        let mut scores = Scores::default();
        for (keys, range) in keys.iter().zip(self.parts()) {
            for (p, panel) in panels.iter_mut().enumerate() {
                let visible = std::array::from_fn(|b| {
                    std::array::from_fn(|i| {
                        let (_, row) = column((p * PANEL + b * SIDE + i).min(n - 1));
                        block.visible(row).end.clamp(range.start, range.end) - range.start
                    })
                });
                if visible.as_flattened().iter().any(|n| *n > 0) {
                    panel.add(amx.convert, &mut tiles, simd, keys, &visible, &mut scores);
                }
            }
        }
        for (p, panel) in panels.iter().enumerate() {
            panel.rows(amx.convert, |i, values| {
                if let Some((head, row)) = Some(p * PANEL + i).filter(|i| *i < n).map(column) {
                    out[(row - rows.start) * h * d + head * d..][..d].copy_from_slice(&values[..d]);
                }
            });
        }
    }
}

/// Keys and values of a head, up to [`KEY_PANELS`] panels of them, as left operands.
struct Keys {
    n: usize,
    /// By panel of keys, then step of channels.
    k: Vec<[Rows32; 2]>,
    /// By panel of channels, then step of keys.
    v: Vec<[Rows32; 2]>,
}

impl Keys {
    /// `n` keys and values of width `d`.
    fn new<'a>(
        convert: Avx512Bf16,
        key: impl Fn(usize) -> &'a [f32],
        value: impl Fn(usize) -> &'a [f32],
        n: usize,
        d: usize,
    ) -> Self {
        let (steps, panels) = (d.div_ceil(PANEL), n.div_ceil(PANEL));
        let empty = || vec![[Rows32::default(); 2]; panels * steps];
        let (mut k, mut v) = (empty(), empty());
        for i in 0..n {
            let (panel, half, at) = (i / PANEL, i % PANEL / SIDE, i % SIDE);
            let out = k[panel * steps..][..steps].iter_mut().map(|step| &mut step[half].0[at]);
            convert.round(key(i), out);
        }
        // Sixteen channels of 32 keys.
        let mut rows = [[0.0; PANEL]; SIDE];
        for panel in 0..panels {
            for first in (0..d).step_by(SIDE) {
                let width = SIDE.min(d - first);
                for half in 0..2 {
                    let mut square = [[0.0; SIDE]; SIDE];
                    for (i, row) in square.iter_mut().enumerate() {
                        let at = panel * PANEL + half * SIDE + i;
                        if at < n {
                            let value = &value(at)[first..first + width];
                            match value.as_array() {
                                // A known length: an instruction instead of a call.
                                Some(value) => *row = *value,
                                None => row[..width].copy_from_slice(value),
                            }
                        }
                    }
                    convert.transpose(&square, &mut rows.as_flattened_mut()[half * SIDE..], PANEL);
                }
                for (i, row) in rows.iter().enumerate() {
                    let out = &mut v[first / PANEL * panels + panel][first % PANEL / SIDE].0[i];
                    convert.round(row, std::iter::once(out));
                }
            }
        }
        Self { n, k, v }
    }

    fn n_panels(&self) -> usize {
        self.n.div_ceil(PANEL)
    }
}

/// Scores of keys with a panel of queries, and their weights.
#[derive(Default)]
struct Scores {
    /// By panel of keys; rows are keys, columns queries.
    sums: [Sums<f32>; KEY_PANELS],
    weights: [[[Words16; 2]; 1]; KEY_PANELS],
}

/// One value for each of the queries of a panel.
type Lanes = [[f32; SIDE]; 2];

/// Queries and their running softmax.
struct Panel {
    /// By step of channels, scaled.
    queries: Vec<[[Words16; 2]; 1]>,
    /// Weighted sums of values by panel of channels.
    sums: Vec<Sums<f32>>,
    /// Subtracted from scores before they become exponents: the largest so far, or up to [`HEADROOM`] less.
    zero: Lanes,
    /// Sum of weights.
    weight: Lanes,
}

impl Panel {
    /// Makes a state without keys for up to [`PANEL`] queries of width `d`, which are multiplied by `scale`.
    fn new<'a>(convert: Avx512Bf16, rows: impl Iterator<Item = &'a [f32]>, d: usize, scale: f32) -> Self {
        let mut scaled = vec![0.0; PANEL * d];
        for (scaled, row) in scaled.chunks_exact_mut(d).zip(rows) {
            scaled.iter_mut().zip(row).for_each(|(scaled, value)| *scaled = value * scale);
        }
        let steps = d.div_ceil(PANEL);
        let mut queries = vec![[[Words16::default(); 2]; 1]; steps];
        for (step, [out]) in queries.iter_mut().enumerate() {
            for (rows, out) in scaled.chunks_exact(SIDE * d).zip(out) {
                let terms = convert.split_rows(rows, d, 32 * step);
                convert.pair_up(&terms, 0, out.0.as_flattened_mut(), SIDE);
            }
        }
        Self {
            queries,
            sums: (0..steps).map(|_| Sums::default()).collect(),
            zero: [[f32::NEG_INFINITY; SIDE]; 2],
            weight: [[0.0; SIDE]; 2],
        }
    }

    /// Adds keys and values, of which each query attends to the first `visible`. Of the first keys added each query
    /// attends to one at least.
    fn add(
        &mut self,
        convert: Avx512Bf16,
        tiles: &mut Tiles,
        simd: Simd,
        keys: &Keys,
        visible: &[[usize; SIDE]; 2],
        scores: &mut Scores,
    ) {
        let (n_panels, steps) = (keys.n_panels(), self.queries.len());
        let Scores { sums, weights } = scores;
        let (sums, weights) = (&mut sums[..n_panels], &mut weights[..n_panels]);
        let queries = Operands::in_tiles(&self.queries);
        for (keys, sums) in keys.k.chunks_exact(steps).zip(&mut *sums) {
            tiles.bf16(keys, queries, sums, false, keys.as_ptr().cast());
        }
        hide(sums, visible);
        simd.run(Softmax {
            scores: sums,
            sums: &mut self.sums,
            zero: &mut self.zero,
            weight: &mut self.weight,
        });
        for (scores, weights) in sums.iter().zip(&mut *weights) {
            for (a, rows) in scores.0.iter().enumerate() {
                for (rows, weights) in rows.iter().zip(&mut weights[0]) {
                    convert.pair_rows(rows, &mut weights.0.as_chunks_mut::<8>().0[a]);
                }
            }
        }
        let weights = Operands::in_tiles(weights);
        for (values, sums) in keys.v.chunks_exact(n_panels).zip(&mut self.sums) {
            tiles.bf16(values, weights, sums, true, values.as_ptr().cast());
        }
    }

    /// Shows the weighted mean of each query, with some zeros at its end.
    fn rows(&self, convert: Avx512Bf16, mut show: impl FnMut(usize, &[f32])) {
        let width = self.sums.len() * PANEL;
        let mut rows = vec![0.0; SIDE * width];
        for b in 0..2 {
            for (panel, sums) in self.sums.iter().enumerate() {
                for a in 0..2 {
                    convert.transpose(&sums.0[a][b], &mut rows[panel * PANEL + a * SIDE..], width);
                }
            }
            for (i, row) in rows.chunks_exact_mut(width).enumerate() {
                let factor = 1.0 / self.weight[b][i];
                row.iter_mut().for_each(|value| *value *= factor);
                show(b * SIDE + i, row);
            }
        }
    }
}

/// Leaves each query the scores of the keys that it sees.
fn hide(scores: &mut [Sums<f32>], visible: &[[usize; SIDE]; 2]) {
    let first = visible.as_flattened().iter().copied().min().unwrap_or(0);
    for key in first..scores.len() * PANEL {
        let Sums(sums) = &mut scores[key / PANEL];
        for (b, visible) in visible.iter().enumerate() {
            for (score, visible) in sums[key % PANEL / SIDE][b][key % SIDE].iter_mut().zip(visible) {
                if key >= *visible {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// Turns scores into weights, and scales the sums to match.
struct Softmax<'a> {
    scores: &'a mut [Sums<f32>],
    sums: &'a mut [Sums<f32>],
    zero: &'a mut Lanes,
    weight: &'a mut Lanes,
}

/// Most that scores may exceed the subtracted value before sums are scaled to another one.
// Scaling is skipped for most tiles of keys, and e^8 = 2,981 times any number of keys is far from the largest f32.
const HEADROOM: f32 = 8.0;

impl Loop for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        for b in 0..2 {
            // Four rows at a time, so that no comparison waits for the one before it.
            let [mut m0, mut m1, mut m2, mut m3] = [[f32::NEG_INFINITY; SIDE]; 4];
            for Sums(scores) in self.scores.iter() {
                for half in scores {
                    for [r0, r1, r2, r3] in half[b].as_chunks().0 {
                        (m0, m1) = (larger(m0, r0), larger(m1, r1));
                        (m2, m3) = (larger(m2, r2), larger(m3, r3));
                    }
                }
            }
            let largest = larger(larger(m0, &m1), &larger(m2, &m3));
            let before = self.zero[b];
            let (mut zero, mut old) = (before, [1.0; SIDE]);
            for i in 0..SIDE {
                zero[i] = if largest[i] > before[i] + HEADROOM { largest[i] } else { before[i] };
                old[i] = exp::<FMA>(before[i] - zero[i]);
            }
            if old != [1.0; SIDE] {
                for Sums(sums) in self.sums.iter_mut() {
                    for half in sums {
                        for row in &mut half[b] {
                            let mut scaled = *row;
                            for i in 0..SIDE {
                                scaled[i] *= old[i];
                            }
                            *row = scaled;
                        }
                    }
                }
            }
            let mut total = [[0.0; SIDE]; 4];
            for Sums(scores) in self.scores.iter_mut() {
                for half in scores {
                    for rows in half[b].as_chunks_mut::<4>().0 {
                        for (total, row) in total.iter_mut().zip(rows) {
                            let mut weights = *row;
                            for i in 0..SIDE {
                                weights[i] = exp::<FMA>(weights[i] - zero[i]);
                            }
                            *row = weights;
                            for i in 0..SIDE {
                                total[i] += weights[i];
                            }
                        }
                    }
                }
            }
            for i in 0..SIDE {
                let [t0, t1, t2, t3] = [total[0][i], total[1][i], total[2][i], total[3][i]];
                self.weight[b][i] = self.weight[b][i] * old[i] + ((t0 + t1) + (t2 + t3));
            }
            self.zero[b] = zero;
        }
    }
}

#[inline(always)]
fn larger(mut a: [f32; SIDE], b: &[f32; SIDE]) -> [f32; SIDE] {
    for i in 0..SIDE {
        a[i] = if b[i] > a[i] { b[i] } else { a[i] };
    }
    a
}
