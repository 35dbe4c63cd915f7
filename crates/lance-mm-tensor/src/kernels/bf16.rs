//! `y = x · Wᵀ` for bf16 weights read straight from their file, on processors with bf16 products.
//!
//! Each activation is the sum of two bf16 terms, which is nearly f32. Up to [`FEW`] tokens reading the weight is the bound
//! and the second term costs nothing; with more it halves the speed, and [`ActivationPrecision::Bf16`] leaves it out.
//!
//! ```text
//! tokens    1 .. 8    weights in place: a register is 32 neighbouring values of one row, lanes are added up at the end
//! more, AMX           amx_matmul: weights are the left operand, in the order of the file
//! more, AVX-512       packed: a register is one word (two values of K) of 16 rows of the weight
//!
//! panel of W          word 0: rows 0 .. 31 | word 1: rows 0 .. 31 | ..           two registers a word
//! group of x          word 0: term 0: tokens 0 .. 11, term 1: tokens 0 .. 11 | word 1 ..      broadcast one by one
//! register tile       12 tokens x 32 rows: 24 registers of f32 sums, 2 of weights, 1 broadcast, of 32 in all
//! ```

use std::ops::Range;

use rayon::prelude::*;

use super::amx::{AmxBf16, Rows32, SIDE};
use super::amx_matmul::{Order, Output, Panels, amx_matmul};
use super::avx512_bf16::{Avx512Bf16, COLS, PanelWord, Terms};
use super::operands::{Addends, Rows, added};
use super::output_columns::{Columns, Part};
use super::zeros::zeros;
use crate::precision::ActivationPrecision;

/// Most tokens that are multiplied by weights in place.
// Without AMX, 8 x 11008 x 2048 takes as long packed; 12 tokens take half as long packed (14.9 against 29.2 ms, one core).
pub(super) const FEW: usize = 8;
/// Tokens that are multiplied in place at once.
// Two rows of the weight, two terms and four tokens are 16 sums. Terms of four tokens of 2048 columns are 32 kB.
const NARROW: usize = 4;
/// Rows of the weight that all tokens pass over, [`NARROW`] at a time, before the next rows.
// 64 kB at 2048 columns, read from the second-level cache by the second four tokens. 4 to 32 rows take the same time within noise.
const BLOCK: usize = 16;
/// Tokens of a register tile.
// 12 x 2 sums, 2 registers of weights and a broadcast leave five of 32 free.
const ROWS: usize = 12;
/// Words of K (two values each) that a tile runs over before its sums are stored.
// 30 kB of x, which stay in the first-level cache, and 80 kB of every panel of weights.
const DEPTH: usize = 640;
/// Panels of [`COLS`] rows of the weight that a thread packs at once.
// x is read from afar once for four panels, whose parts of 80 kB share the second-level cache.
const PANELS: usize = 4;
/// Tokens packed at once.
// Bounds memory: with two terms and 2048 columns they are 34 MB.
const SLAB: usize = 4096;
/// Steps of a row that are packed together for AMX.
// Sixteen rows over 16 steps are 16 kB, half of a first-level cache of 32 kB.
const STEPS: usize = 16;

/// Implements [`matmul_swiglu`](super::matmul::matmul_swiglu); `None` if two matmuls and a SwiGLU after them are as fast.
pub(super) fn matmul_swiglu(
    x: &[f32],
    n: usize,
    gate: &dyn Rows,
    up: &dyn Rows,
    biases: [Option<&[f32]>; 2],
) -> Option<Vec<f32>> {
    let (gate, up) = (Bf16Matrix::of(gate)?, Bf16Matrix::of(up)?);
    let amx = gate.amx.filter(|_| n > FEW && gate.n_rows() > 0 && gate.one_term == up.one_term)?;
    let output = Output::Swiglu { w: [&gate, &up], biases };
    Some(if gate.one_term {
        amx_matmul::<1, _>(amx, x, &output)
    } else {
        amx_matmul::<2, _>(amx, x, &output)
    })
}

/// A borrowed `(R, K)` matrix of bf16 values.
#[derive(Clone, Copy)]
pub(super) struct Bf16Matrix<'a> {
    values: &'a [[u8; 2]],
    k: usize,
    /// Whether activations of many tokens are rounded to one term.
    one_term: bool,
    kernels: Avx512Bf16,
    amx: Option<AmxBf16>,
}

impl<'a> Bf16Matrix<'a> {
    /// Makes a matrix with rows of `k`; `None` on processors without bf16 products, and for f32 activations.
    pub(super) fn new(values: &'a [[u8; 2]], k: usize, precision: ActivationPrecision) -> Option<Self> {
        let one_term = match precision {
            ActivationPrecision::F32 => return None,
            ActivationPrecision::Split => false,
            ActivationPrecision::Bf16 => true,
        };
        let kernels = Avx512Bf16::detect()?;
        (k > 0).then_some(Self { values, k, one_term, kernels, amx: AmxBf16::detect() })
    }

    /// Makes a matrix of rows that are bf16; see [`new`](Self::new).
    pub(super) fn of(rows: &'a dyn Rows) -> Option<Self> {
        let (values, precision) = rows.bf16()?;
        Self::new(values, rows.n_cols(), precision)
    }

    fn n_rows(&self) -> usize {
        self.values.len() / self.k
    }

    /// `x · Wᵀ` of `n` tokens, plus bias and residual: `(n, R)`, summed in f32.
    pub(super) fn matmul(&self, x: &[f32], n: usize, add: Addends<'_>) -> Vec<f32> {
        match n * self.n_rows() {
            0 => Vec::new(),
            _ if n <= FEW => added(self.few(x, n), add),
            _ if self.one_term => self.many::<1>(x, n, add),
            _ => self.many::<2>(x, n, add),
        }
    }

    fn many<const T: usize>(&self, x: &[f32], n: usize, add: Addends<'_>) -> Vec<f32> {
        match self.amx {
            Some(amx) => amx_matmul::<T, _>(amx, x, &Output::Sums { w: self, add }),
            None => added(self.in_registers::<T>(x, n), add),
        }
    }

    fn few(&self, x: &[f32], n: usize) -> Vec<f32> {
        let parts: Vec<(usize, Vec<Terms>)> = x
            .chunks(NARROW * self.k)
            .map(|x| {
                let n = x.len() / self.k;
                let mut terms = vec![Terms([[0; 32]; 2]); n * self.k.div_ceil(32)];
                for (i, row) in x.chunks_exact(self.k).enumerate() {
                    self.kernels.split(row, |c, values| terms[c * n + i] = values);
                }
                (n, terms)
            })
            .collect();
        let mut y = vec![0.0; n * self.n_rows()];
        Columns::new(&mut y, self.n_rows()).in_parallel(BLOCK, 1024 / BLOCK, |columns| {
            let range = columns.range();
            for block in range.clone().step_by(BLOCK).map(|r| r..(r + BLOCK).min(range.end)) {
                for (i, (n, terms)) in parts.iter().enumerate() {
                    let first = i * NARROW;
                    match n {
                        1 => self.dots::<1, 1>(terms.as_chunks().0, first, block.clone(), columns),
                        2 => self.dots::<1, 2>(terms.as_chunks().0, first, block.clone(), columns),
                        3 => self.dots::<2, 3>(terms.as_chunks().0, first, block.clone(), columns),
                        _ => self.dots::<2, NARROW>(terms.as_chunks().0, first, block.clone(), columns),
                    }
                }
            }
        });
        y
    }

    /// Multiplies the tokens from `first` on by a block of rows of the weight, `R` of them at once: one stream of memory for
    /// one or two tokens, more products for every load of x with more.
    fn dots<const R: usize, const N: usize>(
        &self,
        x: &[[Terms; N]],
        first: usize,
        block: Range<usize>,
        columns: &mut Part<'_>,
    ) {
        for r in block.clone().step_by(R) {
            // Past the end of the block its last row stands in.
            let rows: [usize; R] = std::array::from_fn(|j| (r + j).min(block.end - 1));
            let sums = self.kernels.dots(x, rows.map(|r| &self.values[r * self.k..(r + 1) * self.k]));
            for (j, sums) in (r..block.end).zip(sums) {
                for (i, sum) in sums.into_iter().enumerate() {
                    columns.row(first + i, j..j + 1)[0] = sum;
                }
            }
        }
    }

    fn in_registers<const T: usize>(&self, x: &[f32], n: usize) -> Vec<f32> {
        let rows = self.n_rows();
        let mut y = zeros(n * rows);
        for (x, y) in x.chunks(SLAB * self.k).zip(y.chunks_mut(SLAB * rows)) {
            let packed = PackedRows::<T>::new(x, self.k, self.kernels);
            Columns::new(y, rows).in_parallel(COLS, PANELS, |columns| self.block(&packed, columns));
        }
        y
    }

    /// Computes some columns of the output for all tokens.
    fn block<const T: usize>(&self, x: &PackedRows<T>, columns: &mut Part<'_>) {
        let range = columns.range();
        let words = self.k.div_ceil(2);
        let panels: Vec<Range<usize>> =
            range.clone().step_by(COLS).map(|r| r..(r + COLS).min(range.end)).collect();
        let mut packed = vec![PanelWord([0; COLS]); panels.len() * words];
        for (panel, out) in panels.iter().zip(packed.chunks_exact_mut(words)) {
            let values = &self.values[panel.start * self.k..panel.end * self.k];
            for (step, out) in out.chunks_mut(16).enumerate() {
                self.kernels.pack(values, self.k, 32 * step, out);
            }
        }
        let depth = words.div_ceil(words.div_ceil(DEPTH));
        for start in (0..words).step_by(depth) {
            let depth = start..(start + depth).min(words);
            for group in &x.groups {
                for (panel, w) in panels.iter().zip(packed.chunks_exact(words)) {
                    let mut sums = [[0.0; COLS]; ROWS];
                    x.multiply(group, &w[depth.clone()], depth.clone(), self.kernels, &mut sums);
                    for (row, sums) in group.rows.clone().zip(&sums) {
                        let out = columns.row(row, panel.clone());
                        match start {
                            0 => out.copy_from_slice(&sums[..out.len()]),
                            _ => out.iter_mut().zip(sums).for_each(|(o, s)| *o += s),
                        }
                    }
                }
            }
        }
    }
}

impl Panels for Bf16Matrix<'_> {
    fn dims(&self) -> [usize; 2] {
        [self.n_rows(), self.k]
    }

    fn order(&self) -> Order {
        Order::Natural
    }

    fn pack(&self, first: usize, next: usize, steps: Range<usize>, half: usize, out: &mut [[Rows32; 2]]) {
        let rows = first.min(self.n_rows())..(first + SIDE).min(self.n_rows());
        let ahead = 2 * (next - first) * self.k;
        // All rows over some steps before the next steps: the tiles that are written stay in the first-level cache.
        // Prefetched meanwhile: the same steps of the next panel.
        for (steps, out) in steps.step_by(STEPS).zip(out.chunks_mut(STEPS)) {
            let within = 32 * steps..self.k.min(32 * (steps + STEPS));
            for (i, row) in rows.clone().enumerate() {
                let values = &self.values[row * self.k..][within.clone()];
                let out = out.iter_mut().map(|step| &mut step[half].0[i]);
                self.kernels.copy(values, ahead, out);
            }
        }
    }
}

/// Activations as `T` bf16 terms, in groups of the height of a tile; within a group, word by word.
struct PackedRows<const T: usize> {
    words: Vec<u32>,
    /// Words of a token, all terms counted.
    width: usize,
    groups: Vec<Group>,
}

struct Group {
    rows: Range<usize>,
    /// Tokens that the tile has room for: 4, 8 or [`ROWS`].
    height: usize,
}

impl Group {
    fn new(rows: Range<usize>) -> Self {
        Self { height: rows.len().next_multiple_of(4), rows }
    }
}

impl<const T: usize> PackedRows<T> {
    fn new(x: &[f32], k: usize, kernels: Avx512Bf16) -> Self {
        let (n, width) = (x.len() / k, k.div_ceil(2) * T);
        let groups: Vec<Group> =
            (0..n).step_by(ROWS).map(|row| Group::new(row..(row + ROWS).min(n))).collect();
        let mut words = vec![0; groups.iter().map(|g| g.height * width).sum()];
        let chunks = words.par_chunks_mut(ROWS * width).zip(&groups);
        chunks.for_each(|(out, group)| {
            let rows = &x[group.rows.start * k..group.rows.end * k];
            match group.height {
                4 => kernels.pack_x::<4, T>(rows, k, out.as_chunks_mut().0.as_chunks_mut().0),
                8 => kernels.pack_x::<8, T>(rows, k, out.as_chunks_mut().0.as_chunks_mut().0),
                _ => kernels.pack_x::<ROWS, T>(rows, k, out.as_chunks_mut().0.as_chunks_mut().0),
            }
        });
        Self { words, width, groups }
    }

    /// Multiplies words `depth` of a group by as many of a panel.
    fn multiply(
        &self,
        group: &Group,
        w: &[PanelWord],
        depth: Range<usize>,
        kernels: Avx512Bf16,
        sums: &mut [[f32; COLS]; ROWS],
    ) {
        let (start, step) = (group.rows.start * self.width, group.height * T);
        let words = &self.words[start + depth.start * step..start + depth.end * step];
        match group.height {
            4 => kernels.tile::<4, T>(words.as_chunks().0.as_chunks().0, w, sums),
            8 => kernels.tile::<8, T>(words.as_chunks().0.as_chunks().0, w, sums),
            _ => kernels.tile::<ROWS, T>(words.as_chunks().0.as_chunks().0, w, sums),
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::testing::seeded;

    fn bytes(values: &[f32]) -> Vec<[u8; 2]> {
        values.iter().map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
    }

    fn rounded(values: &[f32]) -> Vec<f32> {
        values.iter().map(|v| bf16::from_f32(*v).to_f32()).collect()
    }

    /// Sum of products in f64, and the sum of their magnitudes, the yardstick for its error.
    fn naive(x: &[f32], w: &[f32], k: usize) -> Vec<(f64, f64)> {
        let products = |x: &[f32], w: &[f32]| {
            let products = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
            products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()))
        };
        x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| products(x, w))).collect()
    }

    #[test]
    fn products_equal_the_naive_reference() {
        // Rows of x, rows of the weight, K: tails of every tile, depth and word.
        let cases = [
            (1, 1, 1),
            (1, 33, 32),
            (2, 7, 65),
            (3, 130, 2048),
            (5, 64, 31),
            (7, 3, 97),
            (8, 17, 1281),
            (9, 1, 1),
            (9, 31, 2),
            (12, 32, 64),
            (13, 33, 63),
            (17, 129, 1283),
            (24, 70, 2600),
            (31, 257, 40),
            (4097, 2, 3),
        ];
        for (n, rows, k) in cases {
            let x = seeded(n * k, 1);
            let w = rounded(&seeded(rows * k, 2));
            let stored = bytes(&w);
            let matrix = |precision| Bf16Matrix::new(&stored, k, precision);
            let (Some(split), Some(one)) =
                (matrix(ActivationPrecision::Split), matrix(ActivationPrecision::Bf16))
            else {
                eprintln!("this processor has no bf16 products");
                return;
            };
            let check = |y: &[f32], expected: Vec<(f64, f64)>, tolerance: f64, what: &str| {
                for (i, (y, (expected, size))) in y.iter().zip(expected).enumerate() {
                    let error = (f64::from(*y) - expected).abs();
                    assert!(
                        error <= tolerance * size,
                        "{what} n {n} rows {rows} K {k} at {i}: {error}, {size}"
                    );
                }
            };
            // With tiles where there are any, and without.
            for amx in [None, split.amx] {
                let exact = Bf16Matrix { amx, ..split }.matmul(&x, n, Addends::default());
                let short = Bf16Matrix { amx, ..one }.matmul(&x, n, Addends::default());
                check(&exact, naive(&x, &w, k), f64::exp2(-16.0) + 1e-6, "two terms");
                if n <= FEW {
                    assert_eq!(exact, short);
                    continue;
                }
                // Exactly the rounding of x, and therefore within half a step of it.
                check(&short, naive(&rounded(&x), &w, k), 2e-6, "one term");
                check(&short, naive(&x, &w, k), f64::exp2(-8.0) + 2e-6, "one term against f32");
            }
        }
    }

    #[test]
    fn values_that_are_not_finite_stay_so() {
        for n in [1, FEW + 1] {
            let w = bytes(&[1.0; 40]);
            let Some(matrix) = Bf16Matrix::new(&w, 40, ActivationPrecision::Split) else { return };
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = vec![1.0; n * 40];
                x[39] = bad;
                let y = matrix.matmul(&x, n, Addends::default());
                assert!(!y[0].is_finite() && y[1..].iter().all(|y| *y == 40.0), "{n} {bad}: {y:?}");
            }
        }
    }

    #[test]
    fn no_rows_give_no_output() {
        let w = bytes(&[1.0; 6]);
        if let Some(matrix) = Bf16Matrix::new(&w, 3, ActivationPrecision::Split) {
            assert!(matrix.matmul(&[], 0, Addends::default()).is_empty());
        }
    }
}
