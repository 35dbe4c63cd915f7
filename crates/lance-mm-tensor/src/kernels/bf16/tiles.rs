//! Many rows of x on AMX.

use std::ops::Range;

use rayon::prelude::*;

use super::avx512::{COLS, PanelWord};
use super::{Bf16Matrix, SLAB};
use crate::kernels::amx::{Amx, Rows32, SIDE, Split, Sums, Tiles, Words32};
use crate::kernels::columns::{Columns, Part};

/// Steps of 32 values of K that products run over before their sums are stored: a panel's are 32 KB, and stay in
/// the first-level cache while pairs of tiles of x pass.
const DEPTH: usize = 16;
/// Pairs of tiles of x that pass all panels before the next ones do: their values, both terms, over
/// [`DEPTH`] are 1 MB.
const PAIRS: usize = 16;
/// Panels of [`COLS`] rows of the weight packed at once by a thread.
const PANELS: usize = 8;

impl Bf16Matrix<'_> {
    /// As [`in_registers`](Self::in_registers).
    pub(super) fn in_tiles<const T: usize>(&self, amx: Amx, x: &[f32], y: &mut [f32]) {
        let rows = self.n_rows();
        for (x, y) in x.chunks(SLAB * self.k).zip(y.chunks_mut(SLAB * rows)) {
            let x = self.pack_tiles::<T>(x);
            Columns::new(y, rows).in_parallel(COLS, PANELS, |columns| self.panels(amx, &x, columns));
        }
    }

    /// Steps of 32 values of K, the last one filled up with zeros.
    fn steps(&self) -> usize {
        self.k.div_ceil(32)
    }

    fn pack_tiles<const T: usize>(&self, x: &[f32]) -> PackedTiles<T> {
        let n = x.len() / self.k;
        let (split, steps) = (Split::new(n), self.steps());
        let mut values = vec![[Rows32([[0; 32]; SIDE]); T]; split.kept() / split.rows * steps];
        values.par_chunks_mut(steps).zip(x.par_chunks(split.rows * self.k)).for_each(|(tile, x)| {
            for (i, row) in x.chunks_exact(self.k).enumerate() {
                self.kernels.split(row, |step, terms| {
                    for (tile, term) in tile[step].iter_mut().zip(terms.0) {
                        tile.0[i] = term;
                    }
                });
            }
        });
        PackedTiles { values, split, steps, n }
    }

    /// All rows of x against some columns of the output.
    fn panels<const T: usize>(&self, amx: Amx, x: &PackedTiles<T>, columns: &mut Part<'_>) {
        let range = columns.range();
        let panels: Vec<Range<usize>> =
            range.clone().step_by(COLS).map(|r| r..(r + COLS).min(range.end)).collect();
        let mut packed = vec![[PanelWord([0; COLS]); SIDE]; panels.len() * x.steps];
        for (panel, out) in panels.iter().zip(packed.chunks_exact_mut(x.steps)) {
            let values = &self.values[panel.start * self.k..panel.end * self.k];
            self.kernels.pack(values, self.k, out.as_flattened_mut());
        }
        let mut tiles = Tiles::new(amx, x.split.rows, 64);
        let depth = x.steps.div_ceil(x.steps.div_ceil(DEPTH));
        let pairs: Vec<usize> = (0..x.n).step_by(x.split.pair()).collect();
        for pairs in pairs.chunks(PAIRS) {
            for start in (0..x.steps).step_by(depth) {
                let depth = start..(start + depth).min(x.steps);
                for (panel, w) in panels.iter().zip(packed.chunks_exact(x.steps)) {
                    for first in pairs {
                        x.add(&mut tiles, *first, &w[depth.clone()], depth.clone(), panel, columns);
                    }
                }
            }
        }
    }
}

/// Rows of x as `T` bf16 terms, tile by tile, within a tile step by step.
struct PackedTiles<const T: usize> {
    values: Vec<[Rows32; T]>,
    split: Split,
    steps: usize,
    n: usize,
}

impl<const T: usize> PackedTiles<T> {
    /// Adds the products of two tiles of rows, from row `first` on, with a panel over the steps `depth`; the
    /// first of them set what is there.
    fn add(
        &self,
        tiles: &mut Tiles,
        first: usize,
        w: &[Words32],
        depth: Range<usize>,
        panel: &Range<usize>,
        columns: &mut Part<'_>,
    ) {
        let tile = |a: usize| {
            let start = (first / self.split.rows + a) * self.steps;
            &self.values[start + depth.start..start + depth.end]
        };
        let mut sums = Sums::default();
        tiles.bf16([tile(0), tile(1)], w, &mut sums);
        for row in first..(first + self.split.pair()).min(self.n) {
            let (a, i) = ((row - first) / self.split.rows, (row - first) % self.split.rows);
            let out = columns.row(row, panel.clone());
            for (out, half) in out.chunks_mut(SIDE).zip(&sums.0[a]) {
                match depth.start {
                    0 => out.copy_from_slice(&half[i][..out.len()]),
                    _ => out.iter_mut().zip(&half[i]).for_each(|(out, sum)| *out += sum),
                }
            }
        }
    }
}
