//! Attention on the CPU with a softmax that is kept up to date key tile by key tile (Milakov and Gimelshein
//! 2018, "Online normalizer calculation for softmax"): no row of scores is ever held as a whole.

mod softmax;

use std::ops::Range;

use rayon::prelude::*;

use super::gemm::{MatRef, add_product};
use super::simd::Simd;
use crate::attention::Block;
use softmax::{AddKeys, AddScores, State};

/// Keys that scores are made for at once by many queries.
const KEYS: usize = 256;
/// Rows of scores, queries times the heads that share a key head, that are made at once.
const ROWS: usize = 96;
/// Least keys that are worth a task of their own when there is one query.
const SPLIT: usize = 256;

/// Heads `(H, T, D)` that lie in a slice with any distance between heads and between rows.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a> {
    values: &'a [f32],
    strides: [usize; 2],
    dims: [usize; 3],
}

impl<'a> Heads<'a> {
    /// Heads whose first value is the first of `values`; a row's values are neighbours.
    ///
    /// # Panics
    /// When the last row does not end within `values`.
    pub(crate) fn new(values: &'a [f32], dims: [usize; 3], strides: [usize; 2]) -> Self {
        let [h, t, d] = dims;
        if h * t > 0 {
            let end = (h - 1) * strides[0] + (t - 1) * strides[1] + d;
            assert!(end <= values.len(), "heads within the slice");
        }
        Self { values, strides, dims }
    }

    fn row(&self, head: usize, row: usize) -> &'a [f32] {
        &self.values[head * self.strides[0] + row * self.strides[1]..][..self.dims[2]]
    }

    /// Rows of a head as a matrix.
    fn rows(&self, head: usize, rows: &Range<usize>) -> MatRef<'a, f32> {
        let first = head * self.strides[0] + rows.start * self.strides[1];
        MatRef::new(&self.values[first..], rows.len(), self.dims[2], self.strides[1].max(self.dims[2]))
    }
}

/// Queries, keys and values of one call.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    /// `(H, T, D)`.
    pub(crate) q: Heads<'a>,
    /// `(G, S, D)`.
    pub(crate) k: Heads<'a>,
    /// `(G, S, D)`.
    pub(crate) v: Heads<'a>,
}

impl Attention<'_> {
    /// `softmax(q · kᵀ / sqrt(D)) · v` of every block, `(T, H·D)`. `blocks` cover the queries in order.
    pub(crate) fn run(&self, blocks: &[Block]) -> Vec<f32> {
        let [h, t, d] = self.q.dims;
        let width = h * d;
        let mut out = vec![0.0; t * width];
        let step = (ROWS / self.fold()).max(1);
        let mut tasks = Vec::new();
        let mut rest = out.as_mut_slice();
        for block in blocks {
            if block.queries.len() == 1 {
                let (out, more) = rest.split_at_mut(width);
                rest = more;
                self.one_query(block.queries.start, block.keys.clone(), out);
                continue;
            }
            for start in block.queries.clone().step_by(step) {
                let rows = start..(start + step).min(block.queries.end);
                let (out, more) = rest.split_at_mut(rows.len() * width);
                rest = more;
                tasks.push((block, rows, out));
            }
        }
        tasks.into_par_iter().for_each(|(block, rows, out)| {
            for group in 0..self.k.dims[0] {
                self.many_queries(group, block, &rows, out);
            }
        });
        out
    }

    /// Query heads of a key head.
    fn fold(&self) -> usize {
        self.q.dims[0] / self.k.dims[0]
    }

    /// The query rows of a key head's query heads, head by head, scaled.
    fn queries(&self, group: usize, rows: &Range<usize>) -> Vec<f32> {
        let fold = self.fold();
        let scale = 1.0 / (self.q.dims[2] as f32).sqrt();
        let of_head = |head| rows.clone().flat_map(move |row| self.q.row(head, row));
        (group * fold..(group + 1) * fold).flat_map(of_head).map(|v| v * scale).collect()
    }

    /// One query: keys are split over threads, each read once for all heads that share it.
    fn one_query(&self, row: usize, keys: Range<usize>, out: &mut [f32]) {
        let (n_groups, d) = (self.k.dims[0], self.q.dims[2]);
        let splits = (2 * rayon::current_num_threads()).div_ceil(n_groups).min(keys.len().div_ceil(SPLIT));
        let length = keys.len().div_ceil(splits.max(1)).max(1);
        let parts: Vec<(usize, Range<usize>)> = (0..n_groups)
            .flat_map(|group| keys.clone().step_by(length).map(move |start| (group, start..start + length)))
            .map(|(group, part)| (group, part.start..part.end.min(keys.end)))
            .collect();
        let simd = Simd::detect();
        let states: Vec<State> = parts
            .par_iter()
            .map(|(group, keys)| {
                let q = self.queries(*group, &(row..row + 1));
                let mut state = State::new(self.fold(), d);
                let key = |j| (self.k.row(*group, j), self.v.row(*group, j));
                simd.run(AddKeys { state: &mut state, q: &q, keys: keys.clone().map(key) });
                state
            })
            .collect();
        let mut merged: Vec<State> = (0..n_groups).map(|_| State::new(self.fold(), d)).collect();
        for ((group, _), state) in parts.iter().zip(&states) {
            merged[*group].merge(state);
        }
        for (state, out) in merged.iter().zip(out.chunks_exact_mut(self.fold() * d)) {
            for (head, out) in out.chunks_exact_mut(d).enumerate() {
                state.write(head, out);
            }
        }
    }

    /// Query rows `rows` of a block, for the query heads of one key head; `out` has these rows of the output.
    fn many_queries(&self, group: usize, block: &Block, rows: &Range<usize>, out: &mut [f32]) {
        let ([h, _, d], fold) = (self.q.dims, self.fold());
        let n = fold * rows.len();
        let q = self.queries(group, rows);
        let mut state = State::new(n, d);
        let seen = block.visible(rows.end - 1);
        let mut scores = vec![0.0; n * KEYS.min(seen.len())];
        let simd = Simd::detect();
        for start in seen.clone().step_by(KEYS) {
            let keys = start..(start + KEYS).min(seen.end);
            let scores = &mut scores[..n * keys.len()];
            scores.fill(0.0);
            let k = self.k.rows(group, &keys).t();
            add_product(scores, keys.len(), 1.0, MatRef::new(&q, n, d, d), k);
            for (i, scores) in scores.chunks_exact_mut(keys.len()).enumerate() {
                let visible = block.visible(rows.start + i % rows.len()).end;
                let (seen, hidden) = scores.split_at_mut(visible.clamp(keys.start, keys.end) - keys.start);
                simd.run(AddScores { state: &mut state, row: i, scores: seen });
                hidden.fill(0.0);
            }
            let weights = MatRef::new(scores, n, keys.len(), keys.len());
            add_product(state.sums_mut(), d, 1.0, weights, self.v.rows(group, &keys));
        }
        for (i, row) in out.chunks_exact_mut(h * d).enumerate() {
            for head in 0..fold {
                state.write(head * rows.len() + i, &mut row[(group * fold + head) * d..][..d]);
            }
        }
    }
}
