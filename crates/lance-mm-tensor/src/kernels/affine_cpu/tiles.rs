//! Many rows of activations on AMX: whole tiles of codes and activations are multiplied at once, and scaled as
//! everywhere else while the next ones are.

use std::ops::Range;

use super::LINE;
use super::activations::Activations;
use super::matmul::{Scaling, Tile};
use super::simd::{Kernel, Simd};
use crate::kernels::amx::{Amx, Int8, Split, Sums, Tiles};

/// Adds the products of a tile with rows `rows` of activations to its sums.
pub(super) struct Multiply<'a, const NIBBLES: bool, const T: usize> {
    pub(super) amx: Amx,
    pub(super) x: &'a Activations<T>,
    pub(super) tile: &'a mut Tile,
    pub(super) rows: Range<usize>,
}

impl<const NIBBLES: bool, const T: usize> Kernel for Multiply<'_, NIBBLES, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { amx, x, tile, rows } = self;
        let split = Split::new(x.n);
        let mut tiles = Tiles::new(amx, split.rows, LINE / 2 / x.per_line);
        // Two sets of sums: one is scaled while the other is made.
        let mut sums = [[Sums::default(); T]; 2];
        let mut before: Option<Place> = None;
        let mut set = 0;
        for (l, line) in tile.lines.clone().enumerate() {
            for g in 0..x.per_line {
                for start in rows.clone().step_by(split.pair()) {
                    let end = (start + split.pair()).min(rows.end);
                    let place =
                        Place { l, g, at: x.at(start, line), out: start - rows.start..end - rows.start };
                    place.multiply::<NIBBLES, T>(&mut tiles, split, x, tile, &mut sums[set]);
                    set = 1 - set;
                    if let Some(before) = before.replace(place) {
                        before.scale(simd, split, x, &sums[set], tile);
                    }
                }
            }
        }
        if let Some(last) = before {
            last.scale(simd, split, x, &sums[1 - set], tile);
        }
    }
}

/// A group of a line against two parts of the rows.
struct Place {
    /// Line of the tile.
    l: usize,
    /// Group of the line.
    g: usize,
    /// Where the first row's line lies among the activations.
    at: usize,
    /// Where the rows' sums lie.
    out: Range<usize>,
}

impl Place {
    /// Sums of products in whole numbers, for each byte of the activations.
    #[inline(always)]
    fn multiply<const NIBBLES: bool, const T: usize>(
        &self,
        tiles: &mut Tiles,
        split: Split,
        x: &Activations<T>,
        tile: &Tile,
        sums: &mut [Sums<i32>; T],
    ) {
        let x_bytes = x.bytes()[self.at..][..split.pair()].as_flattened().as_flattened();
        let codes = tile.codes[self.l].0.as_flattened().as_flattened();
        let half = LINE / 2 / x.per_line;
        // Even codes and odd ones, or a group's first half and its second.
        let (x_parts, w_parts, w_stride) = match NIBBLES {
            true => {
                ([self.g * half, LINE / 2 + self.g * half], [2 * self.g * half, 2 * self.g * half + 4], 256)
            }
            false => (
                [2 * self.g * half, (2 * self.g + 1) * half],
                [2 * self.g * half, (2 * self.g + 1) * half],
                128,
            ),
        };
        // A step of four codes is 128 bytes.
        let w = w_parts.map(|code| &codes[code / 4 * 128..]);
        for (t, sums) in sums.iter_mut().enumerate() {
            let x = x_parts.map(|byte| &x_bytes[t * LINE + byte..]);
            tiles.int8(Int8 { x, x_stride: T * LINE, w, w_stride }, sums);
        }
    }

    /// Adds the scaled sums to those of the tile.
    #[inline(always)]
    fn scale<S: Simd, const T: usize>(
        &self,
        simd: S,
        split: Split,
        x: &Activations<T>,
        sums: &[Sums<i32>; T],
        tile: &mut Tile,
    ) {
        let factors = self.l * x.per_line + self.g;
        let (scales, biases) = (&tile.scales[factors], &tile.biases[factors]);
        let of_rows = self.at * x.per_line..(self.at + self.out.len()) * x.per_line;
        let x_factors =
            x.scales[of_rows.clone()].chunks_exact(x.per_line).zip(x.sums[of_rows].chunks_exact(x.per_line));
        let mut rows = tile.out[self.out.clone()].iter_mut().zip(x_factors);
        for a in 0..2 {
            for i in 0..split.rows {
                let Some((out, (x_scales, x_sums))) = rows.next() else { return };
                let scaling =
                    Scaling { x_scale: simd.splat(x_scales[self.g]), x_sum: simd.splat(x_sums[self.g]) };
                for m in 0..2 {
                    let whole: [_; T] = std::array::from_fn(|t| simd.load_ints(&sums[t].0[a][m][i]));
                    let [scale, bias] = [simd.load_floats(&scales[m]), simd.load_floats(&biases[m])];
                    scaling.add(simd, whole, scale, bias, &mut out[m]);
                }
            }
        }
    }
}
