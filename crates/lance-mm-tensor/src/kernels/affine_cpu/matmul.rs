//! More than eight tokens without AMX: a tile of 32 weight rows is rearranged once, a chunk of lines at a time, and used
//! for all tokens.
//!
//! ```text
//! a tile's codes       line 0: step 0 | step 1 | .. | step 31       a step: two registers of 64 bytes
//!                      register 0: rows 0 .. 15, register 1: rows 16 .. 31; four columns of each row in its four bytes
//!
//! a block of products  12 tokens x 32 rows: 24 registers of i32 sums, 2 of codes, 1 of four activations, of 32 in all
//! a group done         sums · scale · x scale + bias · x sum, added to f32 sums (tokens, 32 rows) in the first-level cache
//! ```
//!
//! Loops, outermost first: chunk of lines, tiles side by side, part of the tokens, line, group, block of tokens, step.

use std::cell::RefCell;
use std::ops::Range;

use super::CHUNK;
use super::activations::Activations;
use super::panel::{LANES, Sixteen, add_scaled, factors, transposed};
use crate::kernels::affine_matrix::{Affine, Codes, LINE, row_bytes};
use crate::kernels::output_columns::{Columns, Part};
use crate::kernels::vector::{Isa, Kernel, Simd};

/// Tokens that share a rearranged tile.
// Bounds memory: of 11008 columns their rounded activations are 5.6 MB. Blocks of 128 to
// 1024 of 1024 x 2048 x 2048 took 22 to 27 ms on a noisy machine: no difference to see.
pub(super) const BLOCK: usize = 512;
/// Weight rows of a tile.
// Two registers of lanes: each load of four activations serves both.
pub(super) const TILE: usize = 32;
/// Tiles side by side in the output.
// Their rows of the output are 512 bytes, eight whole cache lines. Deeper or fewer tiles are as fast on Zen 5.
const TILES: usize = 4;
/// Steps of four codes in a line.
const STEPS: usize = LINE / 4;
/// Most tokens of one block of products.
// 12 x 2 sums, two registers of codes and one of activations leave five of 32 registers free.
const MOST: usize = 12;
/// Tokens whose sums with a tile are kept together.
// 96 x 32 f32 are 12 kB, which stay in a first-level cache of 32 kB beside a line of the tile, 4 kB, and activations.
const NEAR: usize = 96;

/// Codes of a tile are nibbles of the weight, so that even columns come first in activations.
const NIBBLES: u8 = 0;
/// They are bytes of at most 127, columns in order.
const BYTES: u8 = 1;
/// They are bytes of at most 255.
const WIDE: u8 = 2;

/// `out[i · R + r] = w[r] · x[i]`.
pub(super) fn rows(isa: Isa, w: &Affine<'_>, x: &Activations, out: &mut [f32]) {
    for first in (0..x.lines).step_by(CHUNK) {
        let lines = first..(first + CHUNK).min(x.lines);
        Columns::new(out, w.rows).in_parallel(TILE, usize::MAX / TILE, |columns| match w.codes() {
            Codes::Nibbles => multiply::<NIBBLES>(isa, w, x, lines.clone(), columns),
            Codes::Bytes if w.bits == 8 => multiply::<WIDE>(isa, w, x, lines.clone(), columns),
            Codes::Bytes => multiply::<BYTES>(isa, w, x, lines.clone(), columns),
        });
    }
}

/// Adds the products over some lines to some columns of the output; the first lines overwrite it.
fn multiply<const CODES: u8>(
    isa: Isa,
    w: &Affine<'_>,
    x: &Activations,
    lines: Range<usize>,
    columns: &mut Part<'_>,
) {
    let firsts: Vec<usize> = columns.range().step_by(TILE).collect();
    // Nothing in here runs other work of the pool on this thread.
    SCRATCH.with_borrow_mut(|tiles| {
        for firsts in firsts.chunks(TILES) {
            tiles.resize_with(TILES, Tile::default);
            for (first, tile) in firsts.iter().zip(&mut *tiles) {
                tile.set_up(lines.clone(), x.per_line);
                isa.run(Rearrange { w, first: *first, tile });
            }
            for start in (0..x.n).step_by(NEAR) {
                let rows = start..(start + NEAR).min(x.n);
                for (first, tile) in firsts.iter().zip(&mut *tiles) {
                    match lines.start {
                        0 => tile.out[..rows.len()].fill([[0.0; 16]; 2]),
                        _ => read_rows(columns, &rows, *first, tile),
                    }
                    // The last tokens prefetch the words of the tiles after these into the second-level cache.
                    let next = (rows.end == x.n).then(|| Sixteen::new(w, *first));
                    isa.run(Multiply::<CODES> { x, tile, rows: rows.clone(), next });
                }
                write_rows(columns, &rows, firsts, tiles);
            }
        }
    });
}

thread_local! {
    /// Tiles of this thread: less than half a megabyte.
    static SCRATCH: RefCell<Vec<Tile>> = const { RefCell::new(Vec::new()) };
}

/// Reads the sums of earlier lines into a tile.
fn read_rows(columns: &mut Part<'_>, rows: &Range<usize>, first: usize, tile: &mut Tile) {
    let range = first..(first + TILE).min(columns.range().end);
    for (row, out) in rows.clone().zip(&mut tile.out) {
        let row = columns.row(row, range.clone());
        out.as_flattened_mut()[..row.len()].copy_from_slice(row);
    }
}

/// Writes the sums of tiles side by side, token by token.
fn write_rows(columns: &mut Part<'_>, rows: &Range<usize>, firsts: &[usize], tiles: &[Tile]) {
    let end = columns.range().end;
    for (i, row) in rows.clone().enumerate() {
        for (first, tile) in firsts.iter().zip(tiles) {
            let (row, out) = (columns.row(row, *first..(first + TILE).min(end)), tile.out[i].as_flattened());
            match row.as_mut_array::<TILE>() {
                // Of a known length: a few instructions instead of a call.
                Some(row) => row.copy_from_slice(out),
                None => row.copy_from_slice(&out[..row.len()]),
            }
        }
    }
}

/// A tile of the weight, rearranged for use by many tokens, and their sums.
pub(super) struct Tile {
    /// Lines of the weight's rows that are in `codes`.
    pub(super) lines: Range<usize>,
    /// Codes by line, then step of four columns, then row.
    pub(super) codes: Vec<Line>,
    /// Scales and biases by group of these lines, then row.
    pub(super) scales: Vec<[[f32; 16]; 2]>,
    pub(super) biases: Vec<[[f32; 16]; 2]>,
    /// Sums of some tokens with the tile's rows.
    pub(super) out: [[[f32; 16]; 2]; NEAR],
}

#[derive(Clone)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [[[u8; 64]; 2]; STEPS]);

impl Default for Tile {
    fn default() -> Self {
        Self {
            lines: 0..0,
            codes: Vec::new(),
            scales: Vec::new(),
            biases: Vec::new(),
            out: [[[0.0; 16]; 2]; NEAR],
        }
    }
}

impl Tile {
    /// Makes room for some lines.
    fn set_up(&mut self, lines: Range<usize>, per_line: usize) {
        self.codes.resize(lines.len(), Line([[[0; 64]; 2]; STEPS]));
        self.scales.resize(CHUNK * per_line, [[0.0; 16]; 2]);
        self.biases.resize(CHUNK * per_line, [[0.0; 16]; 2]);
        self.lines = lines;
    }
}

/// Reads 32 rows of the weight into a tile.
struct Rearrange<'a> {
    w: &'a Affine<'a>,
    first: usize,
    tile: &'a mut Tile,
}

impl Kernel for Rearrange<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { w, first, tile } = self;
        let groups = tile.lines.start * (LINE / w.group);
        widen(simd, w, w.scales, first, groups, &mut tile.scales);
        widen(simd, w, w.biases, first, groups, &mut tile.biases);
        let lines = tile.lines.clone().zip(&mut tile.codes);
        macro_rules! unpack {
            ($($bits:literal $width:literal)*) => {
                match w.bits {
                    $($bits => for (line, codes) in lines {
                        unpack::<S, $width>(simd, w, first, line, &mut codes.0);
                    })*
                    4 => {
                        let rows = [Sixteen::new(w, first), Sixteen::new(w, first + LANES)];
                        for (line, codes) in lines {
                            unpack_nibbles(simd, &rows, line, &mut codes.0);
                        }
                    }
                    bits => unreachable!("{bits} bits are not 2, 3, 4, 5, 6 or 8"),
                }
            };
        }
        unpack!(2 32 3 48 5 80 6 96 8 128);
    }
}

/// Adds the products of a tile with the tokens `rows` to its sums.
struct Multiply<'a, const CODES: u8> {
    x: &'a Activations,
    tile: &'a mut Tile,
    rows: Range<usize>,
    /// The tile's rows of the weight, if those of the next tiles are to be prefetched.
    next: Option<Sixteen<'a>>,
}

impl<const CODES: u8> Kernel for Multiply<'_, CODES> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, tile, rows, next } = self;
        let steps = STEPS / x.per_line;
        // Spread over the blocks of tokens: a core has only so many cache lines under way.
        let at_once = TILE.div_ceil(rows.len().div_ceil(MOST));
        for (l, line) in tile.lines.clone().enumerate() {
            for g in 0..x.per_line {
                let at = l * x.per_line + g;
                let (scales, biases) = (&tile.scales[at], &tile.biases[at]);
                let group = Group {
                    codes: &tile.codes[l].0,
                    steps: g * steps..(g + 1) * steps,
                    x,
                    line,
                    g,
                    scales: [simd.load_floats(&scales[0]), simd.load_floats(&scales[1])],
                    biases: [simd.load_floats(&biases[0]), simd.load_floats(&biases[1])],
                };
                let mut i = 0;
                macro_rules! blocks {
                    ($($count:tt)*) => {
                        $(while rows.len() - i >= $count {
                            if let Some(tile) = next.as_ref().filter(|_| CODES == NIBBLES && g == 0) {
                                for r in (0..at_once).map(|r| i / MOST * at_once + r) {
                                    tile.prefetch(simd, line, TILES * TILE + r);
                                }
                            }
                            group.add::<$count, CODES>(simd, rows.start + i, &mut tile.out[i..i + $count]);
                            i += $count;
                        })*
                    };
                }
                blocks!(MOST 8 4 2 1);
            }
        }
    }
}

/// Widens scales, or biases, of the tile from group `first` of each row on: by group, then row.
#[inline(always)]
fn widen<S: Simd>(
    simd: S,
    w: &Affine<'_>,
    stored: &[u8],
    row: usize,
    first: usize,
    out: &mut [[[f32; LANES]; 2]],
) {
    let groups = first..w.cols / w.group;
    for (group, out) in groups.step_by(16).zip(out.chunks_mut(16)) {
        for m in 0..2 {
            let factors = factors(simd, w, stored, row + LANES * m, group);
            for (out, factors) in out.iter_mut().zip(factors) {
                out[m] = factors;
            }
        }
    }
}

/// Unpacks one line of the tile's rows to bytes, by step of four codes, then row.
#[inline(always)]
fn unpack_nibbles<S: Simd>(
    simd: S,
    rows: &[Sixteen<'_>; 2],
    line: usize,
    codes: &mut [[[u8; 64]; 2]; STEPS],
) {
    for (m, rows) in rows.iter().enumerate() {
        let lines = rows.line(line);
        for (quarter, codes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let both = transposed(simd, &lines, quarter);
            for (both, codes) in both.into_iter().zip(codes.as_chunks_mut::<2>().0) {
                let [low, high] = simd.nibbles(both);
                simd.store(low, &mut codes[0][m]);
                simd.store(high, &mut codes[1][m]);
            }
        }
    }
}

/// Unpacks codes of other widths, whose lines have `WIDTH` bytes; see [`unpack_nibbles`].
#[inline(always)]
fn unpack<S: Simd, const WIDTH: usize>(
    simd: S,
    w: &Affine<'_>,
    first: usize,
    line: usize,
    codes: &mut [[[u8; 64]; 2]; STEPS],
) {
    for m in 0..2 {
        let mut halves = [[simd.load(&[0; 64]); 16]; 2];
        for r in 0..LANES {
            let words = w.row((first + LANES * m + r).min(w.rows - 1));
            [halves[0][r], halves[1][r]] = row_bytes::<S, WIDTH>(simd, words, line);
        }
        for (rows, codes) in halves.iter_mut().zip(codes.as_chunks_mut::<16>().0) {
            simd.transpose(rows);
            for (row, codes) in rows.iter().zip(codes) {
                simd.store(*row, &mut codes[m]);
            }
        }
    }
}

/// One group of the tile's rows.
struct Group<'a, S: Simd> {
    codes: &'a [[[u8; 64]; 2]; STEPS],
    steps: std::ops::Range<usize>,
    x: &'a Activations,
    line: usize,
    g: usize,
    scales: [S::Floats; 2],
    biases: [S::Floats; 2],
}

/// `body` for every `i < N`, up to twelve of them, written out.
// A loop over sums keeps them in memory: 512 x 11008 x 2048 took 17.8 ms, and takes 16.2 (two threads of Zen 5).
macro_rules! written_out {
    ($i:ident < $n:ident, $body:block) => { written_out!(@ $i $n $body 0 1 2 3 4 5 6 7 8 9 10 11) };
    (@ $i:ident $n:ident $body:block $($k:literal)*) => {
        $(if $k < $n {
            let $i: usize = $k;
            $body
        })*
    };
}

impl<S: Simd> Group<'_, S> {
    /// Adds the products with `N` tokens from token `first` on.
    #[inline(always)]
    fn add<const N: usize, const CODES: u8>(&self, simd: S, first: usize, out: &mut [[[f32; 16]; 2]]) {
        let at = self.x.at(first, self.line);
        let x: &[[[u8; LINE]; 2]; N] = self.x.bytes()[at..][..N].as_array().expect("N lines");
        let mut sums = [[simd.zero_ints(); 2]; N];
        self.add_bytes::<N, CODES>(simd, x, 0, &mut sums);
        written_out!(i < N, {
            sums[i] = sums[i].map(|sum| simd.times_256(sum));
        });
        let groups = at * self.x.per_line..(at + N) * self.x.per_line;
        if self.x.fine[groups].iter().skip(self.g).step_by(self.x.per_line).any(|fine| *fine) {
            self.add_bytes::<N, CODES>(simd, x, 1, &mut sums);
        }
        let out: &mut [[[f32; 16]; 2]; N] = out.as_mut_array().expect("N rows");
        written_out!(i < N, {
            let place = (at + i) * self.x.per_line + self.g;
            let (x_scale, x_sum) = (simd.splat(self.x.scales[place]), simd.splat(self.x.sums[place]));
            for m in 0..2 {
                let factors = [self.scales[m], self.biases[m]];
                add_scaled(simd, sums[i][m], [x_scale, x_sum], factors, &mut out[i][m]);
            }
        });
    }

    /// Adds the products with the high bytes of `N` tokens, or the low ones.
    #[inline(always)]
    fn add_bytes<const N: usize, const CODES: u8>(
        &self,
        simd: S,
        x: &[[[u8; LINE]; 2]; N],
        byte: usize,
        sums: &mut [[S::Ints; 2]; N],
    ) {
        for step in self.steps.clone() {
            let codes = [simd.load(&self.codes[step][0]), simd.load(&self.codes[step][1])];
            // Index of this step's four activations; for nibbles even columns come first.
            let four = if CODES == NIBBLES { 16 * (step % 2) + step / 2 } else { step };
            written_out!(i < N, {
                let x = simd.splat_four(x[i][byte].as_chunks::<4>().0[four]);
                for m in 0..2 {
                    sums[i][m] = if CODES == WIDE {
                        simd.dot::<true>(sums[i][m], codes[m], x)
                    } else {
                        simd.dot::<false>(sums[i][m], codes[m], x)
                    };
                }
            });
        }
    }
}
