//! A softmax that takes scores in pieces, and the weighted sum of values it leads to.

use crate::kernels::simd::{Loop, exp, mul_add};

/// Running softmax of some rows: the largest score so far, and with it as the exponent's zero the sum of
/// weights and the weighted sum of values.
pub(super) struct State {
    max: Vec<f32>,
    weight: Vec<f32>,
    sums: Vec<f32>,
    d: usize,
}

impl State {
    /// `n` rows over values of width `d` that have seen nothing.
    pub(super) fn new(n: usize, d: usize) -> Self {
        Self { max: vec![f32::NEG_INFINITY; n], weight: vec![0.0; n], sums: vec![0.0; n * d], d }
    }

    /// Takes in what another state has seen of other keys.
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

    /// The weighted mean of a row.
    pub(super) fn write(&self, row: usize, out: &mut [f32]) {
        let factor = 1.0 / self.weight[row];
        for (out, sum) in out.iter_mut().zip(&self.sums[row * self.d..]) {
            *out = sum * factor;
        }
    }

    /// Turns scores of row `i` into weights, its sums scaled to go with them.
    #[inline(always)]
    fn add_scores<const FMA: bool>(&mut self, i: usize, scores: &mut [f32]) {
        let max = lanes(scores, f32::NEG_INFINITY, f32::max).max(self.max[i]);
        let old = exp::<FMA>(self.max[i] - max);
        if old != 1.0 {
            self.sums[i * self.d..(i + 1) * self.d].iter_mut().for_each(|sum| *sum *= old);
        }
        scores.iter_mut().for_each(|s| *s = exp::<FMA>(*s - max));
        self.weight[i] = self.weight[i] * old + lanes(scores, 0.0, |a, b| a + b);
        self.max[i] = max;
    }

    /// Adds keys and values to all rows; `q` holds the rows' queries.
    #[inline(always)]
    fn add_keys<'a, const FMA: bool>(
        &mut self,
        q: &[f32],
        keys: impl Iterator<Item = (&'a [f32], &'a [f32])>,
    ) {
        let n = self.max.len();
        let mut scores = vec![0.0; n * TILE];
        let mut tile: Vec<(&[f32], &[f32])> = Vec::with_capacity(TILE);
        let mut keys = keys.peekable();
        while keys.peek().is_some() {
            tile.clear();
            tile.extend(keys.by_ref().take(TILE));
            for (i, q) in q.chunks_exact(self.d).enumerate() {
                let scores = &mut scores[i * TILE..(i + 1) * TILE];
                for (keys, scores) in tile.chunks(4).zip(scores.chunks_exact_mut(4)) {
                    // Past the end the last key stands in; its score is not used.
                    let keys = std::array::from_fn(|j| keys[j.min(keys.len() - 1)].0);
                    scores.copy_from_slice(&dots::<FMA>(q, keys));
                }
            }
            for (i, scores) in scores.chunks_exact_mut(TILE).enumerate() {
                let scores = &mut scores[..tile.len()];
                self.add_scores::<FMA>(i, scores);
                let sums = &mut self.sums[i * self.d..(i + 1) * self.d];
                let (fours, rest) = tile.as_chunks::<4>();
                let (weights, last) = scores.as_chunks::<4>();
                for (four, weights) in fours.iter().zip(weights) {
                    add_values::<FMA>(sums, *weights, four.map(|(_, value)| value));
                }
                for ((_, value), weight) in rest.iter().zip(last) {
                    add_values::<FMA>(sums, [*weight, 0.0, 0.0, 0.0], [*value; 4]);
                }
            }
        }
    }
}

/// Adds four weighted values, so that the sums are read and written once for all.
#[inline(always)]
fn add_values<const FMA: bool>(sums: &mut [f32], weights: [f32; 4], values: [&[f32]; 4]) {
    let values = values.map(|value| value[..sums.len()].as_chunks::<LANES>());
    let (whole, tail) = sums.as_chunks_mut::<LANES>();
    for (c, sums) in whole.iter_mut().enumerate() {
        let mut acc = *sums;
        for (weight, (value, _)) in weights.iter().zip(&values) {
            for i in 0..LANES {
                acc[i] = mul_add::<FMA>(*weight, value[c][i], acc[i]);
            }
        }
        *sums = acc;
    }
    for (c, sum) in tail.iter_mut().enumerate() {
        for (weight, (_, value)) in weights.iter().zip(&values) {
            *sum = mul_add::<FMA>(*weight, value[c], *sum);
        }
    }
}

/// Keys that are scored before their values are added.
const TILE: usize = 64;
/// Running values of a reduction: as many as the widest register holds.
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

/// Four products at once, so that `q` is read once for all.
#[inline(always)]
fn dots<const FMA: bool>(q: &[f32], keys: [&[f32]; 4]) -> [f32; 4] {
    let mut acc = [[0.0; LANES]; 4];
    let (whole, tail) = q.as_chunks::<LANES>();
    let keys = keys.map(|key| key[..q.len()].as_chunks::<LANES>());
    for (c, q) in whole.iter().enumerate() {
        for (acc, (key, _)) in acc.iter_mut().zip(&keys) {
            for i in 0..LANES {
                acc[i] = mul_add::<FMA>(q[i], key[c][i], acc[i]);
            }
        }
    }
    let mut out = acc.map(sum);
    for (out, (_, key)) in out.iter_mut().zip(&keys) {
        *out += tail.iter().zip(*key).map(|(a, b)| a * b).sum::<f32>();
    }
    out
}

/// Halves onto halves: few steps, one after another.
#[inline(always)]
fn sum(acc: [f32; LANES]) -> f32 {
    let mut acc = acc;
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
    }
    acc[0]
}

/// See [`State::add_keys`].
pub(super) struct AddKeys<'a, I> {
    pub(super) state: &'a mut State,
    pub(super) q: &'a [f32],
    pub(super) keys: I,
}

impl<'k, I: Iterator<Item = (&'k [f32], &'k [f32])>> Loop for AddKeys<'_, I> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        self.state.add_keys::<FMA>(self.q, self.keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::Simd;

    /// Scores and values that differ by more than an exponential holds, seen in pieces of every size.
    #[test]
    fn pieces_give_what_one_pass_in_f64_gives() {
        let n_keys = 150;
        for d in [1, 5, 16, 80] {
            let at = |seed| crate::testing::seeded(n_keys * d, seed);
            let (q, k, v): (Vec<f32>, _, _) =
                (at(1).iter().take(2 * d).map(|q| 40.0 * q).collect(), at(2), at(3));
            let key = |j: usize| (&k[j * d..(j + 1) * d], &v[j * d..(j + 1) * d]);
            for simd in Simd::all() {
                for cut in [0, 1, 63, 64, 65, 149] {
                    let mut state = State::new(2, d);
                    simd.run(AddKeys { state: &mut state, q: &q, keys: (0..cut).map(key) });
                    let mut other = State::new(2, d);
                    simd.run(AddKeys { state: &mut other, q: &q, keys: (cut..n_keys).map(key) });
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
