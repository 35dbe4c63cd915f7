//! Online softmax of the query heads of one key head, a single token each, and the weighted sum of values.
//!
//! ```text
//! scores     4 query heads x 4 keys at a time: 16 registers of sums, channels in lanes
//!            transposed and added up: one register of 16 scores
//! weights    64 keys for each head
//! values     4 query heads x 4 registers of channels: 16 registers of sums; a broadcast weight for each head and key
//! ```
//!
//! Each key and each value is read once for four heads. Four by four sums ran 4,096 keys of 16 heads in 190 us, where one
//! query at a time took 363 (two threads of Zen 5).

use half::bf16;
use half::slice::HalfFloatSliceExt;

use crate::kernels::simd::exp;
use crate::kernels::vector::{Kernel, Simd};

/// Softmax state of some query heads: the largest score so far, and relative to it the sum of weights and the weighted sum
/// of values.
pub(super) struct State {
    max: Vec<f32>,
    weight: Vec<f32>,
    sums: Vec<f32>,
    d: usize,
}

impl State {
    /// Makes a state without keys for `n` query heads, and values of width `d`.
    pub(super) fn new(n: usize, d: usize) -> Self {
        Self { max: vec![f32::NEG_INFINITY; n], weight: vec![0.0; n], sums: vec![0.0; n * d], d }
    }

    /// Adds the state of other keys.
    pub(super) fn merge(&mut self, other: &Self) {
        for i in 0..self.max.len() {
            let max = self.max[i].max(other.max[i]);
            let (mine, theirs) = (exp::<false>(self.max[i] - max), exp::<false>(other.max[i] - max));
            self.max[i] = max;
            self.weight[i] = self.weight[i] * mine + other.weight[i] * theirs;
            let row = i * self.d..(i + 1) * self.d;
            for (sum, other) in self.sums[row.clone()].iter_mut().zip(&other.sums[row]) {
                *sum = *sum * mine + other * theirs;
            }
        }
    }

    /// Writes the output of a query head.
    pub(super) fn write(&self, row: usize, out: &mut [f32]) {
        let factor = 1.0 / self.weight[row];
        for (out, sum) in out.iter_mut().zip(&self.sums[row * self.d..]) {
            *out = sum * factor;
        }
    }

    /// Turns scores of query head `i` into weights, and scales its sums to match.
    #[inline(always)]
    fn weigh<const FMA: bool>(&mut self, i: usize, scores: &mut [f32]) {
        let max = lanes(scores, f32::NEG_INFINITY, f32::max).max(self.max[i]);
        let old = exp::<FMA>(self.max[i] - max);
        if old != 1.0 {
            self.sums[i * self.d..(i + 1) * self.d].iter_mut().for_each(|sum| *sum *= old);
        }
        scores.iter_mut().for_each(|s| *s = exp::<FMA>(*s - max));
        self.weight[i] = self.weight[i] * old + lanes(scores, 0.0, |a, b| a + b);
        self.max[i] = max;
    }
}

/// Keys that are scored before their values are added.
// Keys and values of 128 channels are 64 kB of f32, which fit a second-level cache, or 32 kB of bf16.
const TILE: usize = 64;
/// Lanes of a reduction.
// As many as the widest register holds.
const LANES: usize = 16;

#[inline(always)]
fn lanes(values: &[f32], start: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut acc = [start; LANES];
    let (whole, tail) = values.as_chunks::<LANES>();
    for chunk in whole {
        for i in 0..LANES {
            acc[i] = join(acc[i], chunk[i]);
        }
    }
    let acc = acc.into_iter().fold(start, &join);
    tail.iter().fold(acc, |acc, v| join(acc, *v))
}

/// A key, or a value, in the dtype of the KV cache.
pub(super) trait Row: Copy {
    /// Widens sixteen channels from channel `LANES · c` on; prefetches those [`AHEAD`].
    fn lanes<S: Simd>(self, simd: S, c: usize) -> S::Floats;

    /// One channel.
    fn channel(self, c: usize) -> f32;
}

impl Row for &[f32] {
    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, c: usize) -> S::Floats {
        let lanes = &self.as_chunks().0[c];
        simd.prefetch(lanes.as_ptr().wrapping_byte_add(AHEAD).cast());
        simd.load_floats(lanes)
    }

    #[inline(always)]
    fn channel(self, c: usize) -> f32 {
        self[c]
    }
}

impl Row for &[bf16] {
    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, c: usize) -> S::Floats {
        let lanes = &self.reinterpret_cast().as_chunks().0[c];
        simd.prefetch(lanes.as_ptr().wrapping_byte_add(AHEAD).cast());
        simd.widen_bits(lanes)
    }

    #[inline(always)]
    fn channel(self, c: usize) -> f32 {
        self[c].to_f32()
    }
}

/// Adds keys and values to all query heads of a state; `q` holds their queries.
pub(super) struct AddKeys<'a, I> {
    pub(super) state: &'a mut State,
    pub(super) q: &'a [f32],
    pub(super) keys: I,
}

impl<R: Row, I: Iterator<Item = (R, R)>> Kernel for AddKeys<'_, I> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { state, q, keys } = self;
        let (n, d) = (state.max.len(), state.d);
        let mut weights = vec![[0.0; TILE]; n.next_multiple_of(ROWS)];
        let mut tile = Vec::with_capacity(TILE);
        let mut keys = keys.peekable();
        while keys.peek().is_some() {
            tile.clear();
            tile.extend(keys.by_ref().take(TILE));
            for (i, scores) in weights.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
                add_scores(simd, q, d, i * ROWS, &tile, scores);
            }
            for (i, scores) in weights.iter_mut().enumerate().take(n) {
                if S::FMA {
                    state.weigh::<true>(i, &mut scores[..tile.len()])
                } else {
                    state.weigh::<false>(i, &mut scores[..tile.len()])
                }
            }
            for (i, weights) in weights.as_chunks::<ROWS>().0.iter().enumerate() {
                add_values(simd, weights, d, &tile, &mut state.sums[i * ROWS * d..]);
            }
        }
    }
}

/// Query heads that are multiplied at once, by as many keys, or as many times [`LANES`] channels.
// 16 sums and 8 operands of 32 registers.
const ROWS: usize = 4;

/// Distance of prefetched keys and values, in bytes.
// Four pages, so that addresses are translated in time too. Prefetched tile by tile instead, a token after 64 and 700 took
// the same, one after 4,096 2 % longer.
const AHEAD: usize = 16 * 1024;

/// Scores of up to [`ROWS`] query heads from `first` on.
#[inline(always)]
fn add_scores<S: Simd, R: Row>(
    simd: S,
    q: &[f32],
    d: usize,
    first: usize,
    tile: &[(R, R)],
    scores: &mut [[f32; TILE]; ROWS],
) {
    // Past the end the last head, and the last key, stand in; their scores are not used.
    let last = q.len() / d - 1;
    let mut rows = [&[][..]; ROWS];
    for i in 0..ROWS {
        rows[i] = &q[(first + i).min(last) * d..][..d];
    }
    for start in (0..tile.len()).step_by(ROWS) {
        let mut keys = [tile[start].0; ROWS];
        for j in 1..ROWS {
            keys[j] = tile[(start + j).min(tile.len() - 1)].0;
        }
        let mut sums = [simd.splat(0.0); LANES];
        for c in 0..d / LANES {
            let mut k = [simd.splat(0.0); ROWS];
            for j in 0..ROWS {
                k[j] = keys[j].lanes(simd, c);
            }
            for i in 0..ROWS {
                let q = simd.load_floats(&rows[i].as_chunks().0[c]);
                for j in 0..ROWS {
                    sums[ROWS * i + j] = simd.mul_add(q, k[j], sums[ROWS * i + j]);
                }
            }
        }
        let mut products = [0.0; LANES];
        simd.store_floats(totals(simd, &sums), &mut products);
        for i in 0..ROWS {
            for j in 0..ROWS {
                let products = &mut products[ROWS * i + j];
                for c in d / LANES * LANES..d {
                    *products += rows[i][c] * keys[j].channel(c);
                }
                scores[i][start + j] = *products;
            }
        }
    }
}

/// Adds up the lanes of each register.
#[inline(always)]
fn totals<S: Simd>(simd: S, sums: &[S::Floats; LANES]) -> S::Floats {
    let mut rows = [simd.load(&[0; 64]); LANES];
    for i in 0..LANES {
        rows[i] = simd.floats_to_bytes(sums[i]);
    }
    simd.transpose(&mut rows);
    let mut columns = [simd.splat(0.0); LANES];
    for i in 0..LANES {
        columns[i] = simd.bytes_to_floats(rows[i]);
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            columns[i] = simd.add(columns[i], columns[i + width]);
        }
    }
    columns[0]
}

/// Adds weighted values to up to [`ROWS`] query heads of `sums`.
#[inline(always)]
fn add_values<S: Simd, R: Row>(
    simd: S,
    weights: &[[f32; TILE]; ROWS],
    d: usize,
    tile: &[(R, R)],
    sums: &mut [f32],
) {
    let whole = d / LANES;
    let mut c = 0;
    while whole - c >= ROWS {
        add_channels::<S, R, ROWS>(simd, weights, d, tile, c, sums);
        c += ROWS;
    }
    while c < whole {
        add_channels::<S, R, 1>(simd, weights, d, tile, c, sums);
        c += 1;
    }
    for (sums, weights) in sums.chunks_exact_mut(d).zip(weights) {
        for c in whole * LANES..d {
            for ((_, value), weight) in tile.iter().zip(weights) {
                sums[c] += weight * value.channel(c);
            }
        }
    }
}

/// Adds weighted values to `C` times [`LANES`] channels; see [`add_values`].
#[inline(always)]
fn add_channels<S: Simd, R: Row, const C: usize>(
    simd: S,
    weights: &[[f32; TILE]; ROWS],
    d: usize,
    tile: &[(R, R)],
    first: usize,
    sums: &mut [f32],
) {
    let mut acc = [[simd.splat(0.0); C]; ROWS];
    for (j, (_, value)) in tile.iter().enumerate().take(TILE) {
        let mut v = [simd.splat(0.0); C];
        for c in 0..C {
            v[c] = value.lanes(simd, first + c);
        }
        for i in 0..ROWS {
            let weight = simd.splat(weights[i][j]);
            for c in 0..C {
                acc[i][c] = simd.mul_add(weight, v[c], acc[i][c]);
            }
        }
    }
    for (sums, acc) in sums.chunks_exact_mut(d).zip(&acc) {
        for (sums, acc) in sums.as_chunks_mut().0[first..].iter_mut().zip(acc) {
            let sum = simd.add(simd.load_floats(sums), *acc);
            simd.store_floats(sum, sums);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::vector::Isa;

    /// Scores and values that differ by more than an exponential holds, seen in pieces of every size.
    #[test]
    fn pieces_give_what_one_pass_in_f64_gives() {
        let n_keys = 150;
        for d in [1, 5, 16, 80] {
            let at = |seed| crate::testing::seeded(n_keys * d, seed);
            let (q, k, v): (Vec<f32>, _, _) =
                (at(1).iter().take(2 * d).map(|q| 40.0 * q).collect(), at(2), at(3));
            let key = |j: usize| (&k[j * d..(j + 1) * d], &v[j * d..(j + 1) * d]);
            for isa in Isa::available() {
                for cut in [0, 1, 63, 64, 65, 149] {
                    let mut state = State::new(2, d);
                    isa.run(AddKeys { state: &mut state, q: &q, keys: (0..cut).map(key) });
                    let mut other = State::new(2, d);
                    isa.run(AddKeys { state: &mut other, q: &q, keys: (cut..n_keys).map(key) });
                    match cut {
                        0 => state = other,
                        _ => state.merge(&other),
                    }
                    for row in 0..2 {
                        let mut out = vec![f32::NAN; d];
                        state.write(row, &mut out);
                        let score = |j: usize| {
                            let products = q[row * d..].iter().zip(key(j).0);
                            products.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
                        };
                        let max = (0..n_keys).map(score).fold(f64::NEG_INFINITY, f64::max);
                        let weights: Vec<f64> = (0..n_keys).map(|j| (score(j) - max).exp()).collect();
                        let total: f64 = weights.iter().sum();
                        for c in 0..d {
                            let sum: f64 =
                                weights.iter().enumerate().map(|(j, w)| w * f64::from(key(j).1[c])).sum();
                            let error = (f64::from(out[c]) - sum / total).abs();
                            assert!(error < 3e-5, "d {d} cut {cut} row {row} at {c}: {error}");
                        }
                    }
                }
            }
        }
    }
}
