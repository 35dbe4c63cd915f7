//! Attention on the CPU with an online softmax, key tile by key tile (Milakov and Gimelshein 2018, "Online normalizer
//! calculation for softmax"): no row of scores is ever held as a whole.
//!
//! ```text
//! queries of a block   kernel   a register holds
//! 1                    single   sixteen channels of a key or value; keys are split over threads
//! several              panel    one channel of sixteen queries; scores are (keys, 32 queries)
//! several, bf16, AMX   tiles    the same in tiles of 32 keys x 32 queries
//! ```
//!
//! Heads that share a key head are folded: their queries count as queries of that one head, so that keys and values are
//! read once for all of them.

mod panel;
mod single;
mod softmax;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

#[cfg(target_arch = "x86_64")]
use super::amx::AmxBf16;
use super::simd::Simd;
use super::tile::PANEL;
use super::zeros::zeros;
use crate::attention_block::Block;
use crate::precision::ActivationPrecision;
use panel::{KEYS, Panel};
pub(crate) use single::{SingleQuery, attend_single_queries};

/// Queries, times the heads that share a key head, that pass a tile of keys before the next tile.
// Three panels: a tile of 128 keys and values of 128 channels is 128 kB, read once for 96 queries.
const QUERIES: usize = 3 * PANEL;

/// Borrowed heads `(H, T, D)` with any strides of heads and tokens.
#[derive(Clone, Copy)]
pub(crate) struct Heads<'a, T = f32> {
    values: &'a [T],
    strides: [usize; 2],
    dims: [usize; 3],
}

impl<'a, T> Heads<'a, T> {
    /// Borrows heads whose first value is the first of `values`; channels are contiguous.
    ///
    /// # Panics
    /// When the last row does not end within `values`.
    pub(crate) fn new(values: &'a [T], dims: [usize; 3], strides: [usize; 2]) -> Self {
        let [h, t, d] = dims;
        if h * t > 0 {
            let end = (h - 1) * strides[0] + (t - 1) * strides[1] + d;
            assert!(end <= values.len(), "heads within the slice");
        }
        Self { values, strides, dims }
    }

    fn row(&self, head: usize, row: usize) -> &'a [T] {
        &self.values[head * self.strides[0] + row * self.strides[1]..][..self.dims[2]]
    }
}

/// Keys or values `(G, S, D)` in the dtype of the KV cache.
#[derive(Clone, Copy)]
pub(crate) enum KeyValues<'a> {
    F32(Heads<'a>),
    Bf16(Heads<'a, bf16>),
}

impl<'a> KeyValues<'a> {
    fn dims(&self) -> [usize; 3] {
        match self {
            Self::F32(heads) => heads.dims,
            Self::Bf16(heads) => heads.dims,
        }
    }

    /// Rows of a head as f32, and their stride.
    fn rows(&self, head: usize, rows: Range<usize>) -> (Cow<'a, [f32]>, usize) {
        match self {
            Self::F32(heads) => {
                let [of_heads, of_rows] = heads.strides;
                (Cow::Borrowed(&heads.values[head * of_heads + rows.start * of_rows..]), of_rows)
            }
            Self::Bf16(heads) => {
                let d = heads.dims[2];
                let mut wide = vec![0.0; rows.len() * d];
                for (row, wide) in rows.zip(wide.chunks_exact_mut(d)) {
                    heads.row(head, row).convert_to_f32_slice(wide);
                }
                (Cow::Owned(wide), d)
            }
        }
    }
}

/// Queries, keys and values of one call.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    /// `(H, T, D)`.
    pub(crate) q: Heads<'a>,
    /// `(G, S, D)`.
    pub(crate) k: KeyValues<'a>,
    /// `(G, S, D)`, of the dtype of `k`.
    pub(crate) v: KeyValues<'a>,
    /// [`ActivationPrecision::Bf16`] runs blocks of several queries on AMX, if the processor has it.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "read where there is AMX"))]
    pub(crate) precision: ActivationPrecision,
}

impl Attention<'_> {
    /// Computes `softmax(q · kᵀ / sqrt(D)) · v` of every block: `(T, H·D)`. `blocks` cover the queries in order.
    pub(crate) fn run(&self, blocks: &[Block]) -> Vec<f32> {
        let [h, t, d] = self.q.dims;
        let width = h * d;
        let mut out = zeros(t * width);
        let (mut singles, mut many) = ((Vec::new(), Vec::new()), Vec::new());
        let mut rest = out.as_mut_slice();
        for block in blocks {
            let (out, more) = rest.split_at_mut(block.queries.len() * width);
            rest = more;
            match block.queries.len() {
                1 => {
                    let Range { start: row, .. } = block.queries;
                    singles.0.push(SingleQuery { row, keys: block.keys.clone(), k: self.k, v: self.v });
                    singles.1.push(out);
                }
                _ => many.push((block, out)),
            }
        }
        attend_single_queries(self.q, &singles.0, singles.1);
        let many = self.on_tiles(many);
        let step = (QUERIES / self.fold()).max(1);
        let tasks: Vec<_> = many
            .into_iter()
            .flat_map(|(block, out)| {
                let Range { start, end } = block.queries;
                let rows = (start..end).step_by(step).map(move |start| start..(start + step).min(end));
                rows.zip(out.chunks_mut(step * width)).map(move |(rows, out)| (block, rows, out))
            })
            .collect();
        tasks.into_par_iter().with_max_len(1).for_each(|(block, rows, out)| {
            for group in 0..self.k.dims()[0] {
                self.many_queries(group, block, &rows, out);
            }
        });
        out
    }

    /// Runs blocks that fill tiles on AMX, if there is any, and returns the others.
    #[cfg(target_arch = "x86_64")]
    fn on_tiles<'o>(&self, blocks: Vec<(&'o Block, &'o mut [f32])>) -> Vec<(&'o Block, &'o mut [f32])> {
        let Some(amx) = AmxBf16::detect().filter(|_| self.precision == ActivationPrecision::Bf16) else {
            return blocks;
        };
        let enough = |block: &Block| block.queries.len() * self.fold() >= tiles::LEAST;
        let (blocks, rest) = blocks.into_iter().partition(|(block, _)| enough(block));
        tiles::run(amx, self, blocks);
        rest
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn on_tiles<'o>(&self, blocks: Vec<(&'o Block, &'o mut [f32])>) -> Vec<(&'o Block, &'o mut [f32])> {
        blocks
    }

    /// Head and token of folded query `i`: all queries of the first head, then those of the next.
    fn column(&self, group: usize, rows: &Range<usize>, i: usize) -> (usize, usize) {
        (group * self.fold() + i / rows.len(), rows.start + i % rows.len())
    }

    /// Folded queries, `panel` at a time.
    fn by_panel(
        &self,
        group: usize,
        rows: &Range<usize>,
        panel: usize,
    ) -> impl Iterator<Item = impl Iterator<Item = &[f32]>> {
        let n = self.fold() * rows.len();
        (0..n).step_by(panel).map(move |first| {
            (first..(first + panel).min(n)).map(move |i| {
                let (head, row) = self.column(group, rows, i);
                self.q.row(head, row)
            })
        })
    }

    /// Number of query heads that share a key head.
    fn fold(&self) -> usize {
        self.q.dims[0] / self.k.dims()[0]
    }

    /// Computes the queries `rows` of a block for the heads of one key head; `out` has these rows of the output.
    fn many_queries(&self, group: usize, block: &Block, rows: &Range<usize>, out: &mut [f32]) {
        let ([h, _, d], fold) = (self.q.dims, self.fold());
        let simd = Simd::detect();
        let scale = 1.0 / (d as f32).sqrt();
        let column = |i: usize| self.column(group, rows, i);
        let n = fold * rows.len();
        let mut panels: Vec<Panel> =
            self.by_panel(group, rows, PANEL).map(|queries| Panel::new(queries, d, scale)).collect();
        let seen = block.visible(rows.end - 1);
        for start in seen.clone().step_by(KEYS) {
            let keys = start..(start + KEYS).min(seen.end);
            let [(k, of_keys), (v, of_values)] = [self.k, self.v].map(|kept| kept.rows(group, keys.clone()));
            for (p, panel) in panels.iter_mut().enumerate() {
                let visible = |i: usize| {
                    let (_, row) = column((p * PANEL + i).min(n - 1));
                    block.visible(row).end.clamp(keys.start, keys.end) - keys.start
                };
                panel.add(simd, (&k, of_keys), (&v, of_values), keys.len(), visible);
            }
        }
        for (i, (head, row)) in (0..n).map(column).enumerate() {
            let out = &mut out[(row - rows.start) * h * d + head * d..][..d];
            panels[i / PANEL].write(i % PANEL, out);
        }
    }
}
