//! Many rows of activations: a tile of 32 weight rows is rearranged once, line by line, and used for all.

use rayon::prelude::*;

use super::activations::Activations;
use super::simd::{Isa, Kernel, Simd};
use super::{Affine, CHUNK, Codes, LINE, unpack_line};

/// Rows of activations that share a rearranged tile.
pub(super) const BLOCK: usize = 512;
/// Weight rows of a tile.
const TILE: usize = 32;
/// Steps of four codes in a line.
const STEPS: usize = LINE / 4;

/// `out[i · R + r] = w[r] · x[i]`.
pub(super) fn rows<const T: usize>(isa: Isa, w: &Affine<'_>, x: &Activations<T>, out: &mut [f32]) {
    assert_eq!(out.len(), x.n * w.rows, "one value for each pair of rows");
    let columns = Columns { at: out.as_mut_ptr(), rows: w.rows, n: x.n };
    (0..w.rows.div_ceil(TILE)).into_par_iter().for_each_init(Scratch::default, |scratch, tile| {
        let first = tile * TILE;
        match w.codes() {
            Codes::Nibbles => isa.run(Tile::<true, T> { w, x, first, scratch }),
            Codes::Bytes => isa.run(Tile::<false, T> { w, x, first, scratch }),
        }
        let count = TILE.min(w.rows - first);
        for (i, row) in scratch.out.iter().enumerate() {
            columns.write(i, first, &row.as_flattened()[..count]);
        }
    });
}

/// The output, into which tiles write columns of their own.
struct Columns {
    at: *mut f32,
    rows: usize,
    n: usize,
}

// SAFETY: the pointer is used only to write ranges that no two threads share: see `write`.
#[expect(unsafe_code, reason = "tiles write disjoint columns of one matrix")]
unsafe impl Sync for Columns {}

impl Columns {
    /// Writes columns from `first` on of row `i`. Each tile has a `first` of its own, `TILE` apart, and writes
    /// no more than `TILE` values.
    #[expect(unsafe_code, reason = "tiles write disjoint columns of one matrix")]
    fn write(&self, i: usize, first: usize, values: &[f32]) {
        assert!(i < self.n && first + values.len() <= self.rows && values.len() <= TILE);
        // SAFETY: the range lies in the slice of n · rows values that `at` was made from and that outlives
        // the loop over tiles; it is disjoint from what other tiles write, as `first` is a multiple of TILE.
        unsafe {
            let to = self.at.add(i * self.rows + first);
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
        }
    }
}

/// What one thread needs for a tile.
#[derive(Default)]
struct Scratch {
    /// Products so far of each row of activations with the tile's rows.
    out: Vec<[[f32; 16]; 2]>,
    /// Codes of a line: by step of four columns, then row.
    codes: Box<Line>,
    /// Scales and biases by group, then row.
    scales: Vec<[[f32; 16]; 2]>,
    biases: Vec<[[f32; 16]; 2]>,
}

#[repr(align(64))]
struct Line([[[u8; 64]; 2]; STEPS]);

impl Default for Line {
    fn default() -> Self {
        Self([[[0; 64]; 2]; STEPS])
    }
}

struct Tile<'a, const NIBBLES: bool, const T: usize> {
    w: &'a Affine<'a>,
    x: &'a Activations<T>,
    first: usize,
    scratch: &'a mut Scratch,
}

impl<const NIBBLES: bool, const T: usize> Kernel for Tile<'_, NIBBLES, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { w, x, first, scratch } = self;
        scratch.out.clear();
        scratch.out.resize(x.n, [[0.0; 16]; 2]);
        scratch.scales.resize(CHUNK * x.per_line, [[0.0; 16]; 2]);
        scratch.biases.resize(CHUNK * x.per_line, [[0.0; 16]; 2]);
        for line in 0..x.lines {
            if line % CHUNK == 0 {
                let groups = line * x.per_line;
                widen(simd, w, w.scales, first, groups, &mut scratch.scales);
                widen(simd, w, w.biases, first, groups, &mut scratch.biases);
            }
            unpack::<S, NIBBLES>(simd, w, first, line, &mut scratch.codes.0);
            let steps = STEPS / x.per_line;
            for g in 0..x.per_line {
                let at = line % CHUNK * x.per_line + g;
                let (scales, biases) = (&scratch.scales[at], &scratch.biases[at]);
                let group = Group {
                    codes: &scratch.codes.0,
                    steps: g * steps..(g + 1) * steps,
                    x,
                    line,
                    g,
                    scales: [simd.load_floats(&scales[0]), simd.load_floats(&scales[1])],
                    biases: [simd.load_floats(&biases[0]), simd.load_floats(&biases[1])],
                };
                let mut i = 0;
                macro_rules! blocks {
                    ($($count:literal)*) => {
                        $(while x.n - i >= $count {
                            group.add::<$count, NIBBLES>(simd, i, &mut scratch.out[i..i + $count]);
                            i += $count;
                        })*
                    };
                }
                if T == 2 {
                    blocks!(4 2 1);
                } else {
                    blocks!(12 4 2 1);
                }
            }
        }
    }
}

/// Scales, or biases, of the tile from group `first` of each row on: by group, then row.
#[inline(always)]
fn widen<S: Simd>(
    simd: S,
    w: &Affine<'_>,
    stored: &[u8],
    row: usize,
    first: usize,
    out: &mut [[[f32; 16]; 2]],
) {
    let groups = w.cols / w.group;
    for (i, out) in out.chunks_mut(16).enumerate() {
        let first = first + 16 * i;
        if first >= groups {
            break;
        }
        for m in 0..2 {
            let mut rows = [simd.load(&[0; 64]); 16];
            for (r, out) in rows.iter_mut().enumerate() {
                // Rows past the end repeat the last one; they are not written.
                let row = (row + 16 * m + r).min(w.rows - 1);
                *out = simd.floats_to_bytes(w.widen(simd, stored, row, first));
            }
            simd.transpose(&mut rows);
            for (out, column) in out.iter_mut().zip(rows) {
                simd.store_floats(simd.bytes_to_floats(column), &mut out[m]);
            }
        }
    }
}

/// One line of the tile's rows as bytes, by step of four codes, then row.
#[inline(always)]
fn unpack<S: Simd, const NIBBLES: bool>(
    simd: S,
    w: &Affine<'_>,
    first: usize,
    line: usize,
    codes: &mut [[[u8; 64]; 2]; STEPS],
) {
    for m in 0..2 {
        let row = |r: usize| w.row((first + 16 * m + r).min(w.rows - 1));
        if NIBBLES {
            let mut rows = [simd.load(&[0; 64]); 16];
            for (r, out) in rows.iter_mut().enumerate() {
                let words = row(r);
                *out = match words.as_chunks::<64>().0.get(line) {
                    Some(whole) => {
                        // The same line of the next tile.
                        simd.prefetch(whole.as_ptr().wrapping_add(TILE * words.len()));
                        simd.load(whole)
                    }
                    None => {
                        let mut rest = [0; 64];
                        unpack_line(words, w.bits, line, &mut rest);
                        simd.load(&rest)
                    }
                };
            }
            simd.transpose(&mut rows);
            for (j, row) in rows.into_iter().enumerate() {
                let [low, high] = simd.nibbles(row);
                simd.store(low, &mut codes[2 * j][m]);
                simd.store(high, &mut codes[2 * j + 1][m]);
            }
        } else {
            let mut lines = [[0; LINE]; 16];
            for (r, line_of_row) in lines.iter_mut().enumerate() {
                unpack_line(row(r), w.bits, line, line_of_row);
            }
            for half in 0..2 {
                let mut rows = [simd.load(&[0; 64]); 16];
                for (row, line) in rows.iter_mut().zip(&lines) {
                    *row = simd.load(&line.as_chunks::<64>().0[half]);
                }
                simd.transpose(&mut rows);
                for (j, row) in rows.into_iter().enumerate() {
                    simd.store(row, &mut codes[16 * half + j][m]);
                }
            }
        }
    }
}

/// One group of the tile's rows against rows of activations.
struct Group<'a, S: Simd, const T: usize> {
    codes: &'a [[[u8; 64]; 2]; STEPS],
    steps: std::ops::Range<usize>,
    x: &'a Activations<T>,
    line: usize,
    g: usize,
    scales: [S::Floats; 2],
    biases: [S::Floats; 2],
}

impl<S: Simd, const T: usize> Group<'_, S, T> {
    /// Adds the products with `N` rows of activations from row `first` on.
    #[inline(always)]
    fn add<const N: usize, const NIBBLES: bool>(&self, simd: S, first: usize, out: &mut [[[f32; 16]; 2]]) {
        let at = self.x.at(first, self.line);
        let x: &[[[u8; LINE]; T]; N] = self.x.bytes[at..][..N].as_array().expect("N lines");
        let mut sums = [[[simd.zero_ints(); 2]; T]; N];
        for step in self.steps.clone() {
            let codes = [simd.load(&self.codes[step][0]), simd.load(&self.codes[step][1])];
            // Where the four activations of this step are: even ones first for nibbles.
            let four = if NIBBLES { 16 * (step % 2) + step / 2 } else { step };
            for i in 0..N {
                for t in 0..T {
                    let x = simd.splat_four(x[i][t].as_chunks::<4>().0[four]);
                    for m in 0..2 {
                        let sum = &mut sums[i][t][m];
                        *sum = match NIBBLES {
                            true => simd.dot::<false>(*sum, codes[m], x),
                            false => simd.dot::<true>(*sum, codes[m], x),
                        };
                    }
                }
            }
        }
        let out: &mut [[[f32; 16]; 2]; N] = out.as_mut_array().expect("N rows");
        for i in 0..N {
            let place = (at + i) * self.x.per_line + self.g;
            let scale = simd.splat(self.x.scales[place]);
            let sum = simd.splat(self.x.sums[place]);
            for m in 0..2 {
                let mut whole = sums[i][0][m];
                for lower in &sums[i][1..] {
                    whole = simd.add_ints(simd.times_256(whole), lower[m]);
                }
                let product = simd.mul(simd.mul(simd.to_floats(whole), scale), self.scales[m]);
                let y = simd.add(simd.load_floats(&out[i][m]), product);
                simd.store_floats(simd.add(y, simd.mul(sum, self.biases[m])), &mut out[i][m]);
            }
        }
    }
}
