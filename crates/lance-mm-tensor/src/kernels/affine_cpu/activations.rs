//! Rows of activations as whole numbers, in the order in which the codes of a weight come out of its words.

use rayon::prelude::*;

use super::CHUNK;
use crate::kernels::affine_matrix::{Codes, LINE};
use crate::kernels::vector::{Isa, Kernel, Simd};

/// Rounded rows: `x ≈ scale · q` with one scale for each group of the weight. `q` is one signed byte, 127 steps
/// to either side of zero, or two, 32,639 steps: `T` of them.
pub(super) struct Activations<const T: usize> {
    /// Rows.
    pub(super) n: usize,
    /// Lines of [`LINE`] values in a row, the last filled up with zeros.
    pub(super) lines: usize,
    /// Groups in a line.
    pub(super) per_line: usize,
    order: Order,
    /// Lines from one row to the next, in [`Order::Rows`]: whole chunks; rows from one line to the next, in
    /// [`Order::Lines`]: as many as that says.
    stride: usize,
    /// What [`bytes`](Self::bytes) are read from, after `skipped` ones: lines begin where cache lines do.
    stored: Vec<u8>,
    skipped: usize,
    /// Scales, `per_line` for each line.
    pub(super) scales: Vec<f32>,
    /// Sums of each group, as `scales`: of the rounded values, so that an error of rounding is multiplied with the
    /// weight and not with the code alone.
    pub(super) sums: Vec<f32>,
}

/// Bytes of a cache line, and of a load: one that lies in two cache lines takes twice as long.
const ALIGNMENT: usize = 64;

/// Lines of a row that are read together when those of all rows become neighbours: memory is read best in order.
const TOGETHER: usize = 4;

/// Which lines are neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Those of one row.
    Rows,
    /// Those of all rows at one place, and of rows of zeros after them: so many in all.
    Lines(usize),
}

impl<const T: usize> Activations<T> {
    /// Rounds `n` rows of whole groups of `group`.
    pub(super) fn new(isa: Isa, x: &[f32], n: usize, group: usize, codes: Codes, order: Order) -> Self {
        let k = x.len() / n;
        let (lines, per_line) = (k.div_ceil(LINE), LINE / group);
        // What is rounded at once: a whole row, or some lines of all rows.
        let (pieces, stride, at_once) = match order {
            Order::Rows => (n, lines.next_multiple_of(CHUNK), 1),
            Order::Lines(rows) => (lines, rows, TOGETHER),
        };
        let count = pieces * stride;
        let mut stored = vec![0; count * T * LINE + ALIGNMENT];
        let skipped = stored.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let bytes = stored[skipped..].as_chunks_mut::<LINE>().0.as_chunks_mut::<T>().0;
        let mut scales = vec![0.0; count * per_line];
        let mut sums = scales.clone();
        let pieces = bytes
            .par_chunks_mut(at_once * stride)
            .zip(scales.par_chunks_mut(at_once * stride * per_line))
            .zip(sums.par_chunks_mut(at_once * stride * per_line));
        // A row or two are rounded before another thread has begun.
        let least = if n <= 2 { usize::MAX } else { 1 };
        pieces.enumerate().with_min_len(least).for_each(|(i, ((bytes, scales), sums))| {
            // Rows and lines of the piece, and how far these lie apart in it.
            let (rows, of_piece, apart) = match order {
                Order::Rows => (i..i + 1, 0..lines, [0, 1]),
                Order::Lines(_) => (0..n, i * TOGETHER..lines.min((i + 1) * TOGETHER), [1, stride]),
            };
            for row in rows {
                for (l, line) in of_piece.clone().enumerate() {
                    let at = row * apart[0] + l * apart[1];
                    let x = &x[row * k..][..k];
                    let x = &x[line * LINE..k.min((line + 1) * LINE)];
                    let groups = at * per_line..(at + 1) * per_line;
                    let (scales, sums) = (&mut scales[groups.clone()], &mut sums[groups]);
                    isa.run(Round { x, codes, bytes: &mut bytes[at], scales, sums });
                }
            }
        });
        Self { n, lines, per_line, order, stride, stored, skipped, scales, sums }
    }

    /// Bytes of all lines, those of higher value first: `q = bytes[0]` or `q = 256 · bytes[0] + bytes[1]`.
    #[inline(always)]
    pub(super) fn bytes(&self) -> &[[[u8; LINE]; T]] {
        self.stored[self.skipped..].as_chunks().0.as_chunks().0
    }

    /// Where the line `line` of row `row` lies.
    #[inline(always)]
    pub(super) fn at(&self, row: usize, line: usize) -> usize {
        match self.order {
            Order::Rows => row * self.stride + line,
            Order::Lines(_) => line * self.stride + row,
        }
    }
}

/// Rounds up to [`LINE`] values, group by group; the rest of the line counts as zero.
struct Round<'a, const T: usize> {
    x: &'a [f32],
    codes: Codes,
    bytes: &'a mut [[u8; LINE]; T],
    scales: &'a mut [f32],
    sums: &'a mut [f32],
}

impl<const T: usize> Kernel for Round<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, codes, bytes, scales, sums } = self;
        let steps = const {
            match T {
                1 => 127.0,
                2 => 127.0 * 256.0 + 127.0,
                _ => panic!("one or two bytes"),
            }
        };
        let mut filled = [0.0; LINE];
        let values: &[f32; LINE] = match x.as_array() {
            Some(whole) => whole,
            None => {
                filled[..x.len()].copy_from_slice(x);
                &filled
            }
        };
        let values: &[[f32; 16]; SIXTEENS] = values.as_chunks().0.as_array().expect("a line");
        let mut q = [simd.zero_ints(); SIXTEENS];
        let per_group = SIXTEENS / scales.len();
        for (g, (scale, sum)) in scales.iter_mut().zip(sums).enumerate() {
            let group = g * per_group..(g + 1) * per_group;
            let (mut largest, mut poison) = (simd.splat(0.0), simd.splat(0.0));
            for i in group.clone() {
                let size = simd.abs(simd.load_floats(&values[i]));
                largest = simd.larger(size, largest);
                poison = simd.add(poison, simd.mul(size, simd.splat(0.0)));
            }
            let largest = folded(simd, largest, |a, b| if b > a { b } else { a });
            let poison = folded(simd, poison, |a, b| a + b);
            // Below 1e-30, steps / largest would overflow.
            let some = largest > 1e-30 && largest.is_finite();
            let inverse = if some { steps / largest } else { 0.0 };
            let mut total = simd.zero_ints();
            for i in group {
                q[i] = simd.nearest(simd.mul(simd.load_floats(&values[i]), simd.splat(inverse)));
                total = simd.add_ints(total, q[i]);
            }
            let mut lanes = [0; 16];
            simd.store_ints(total, &mut lanes);
            let total = lanes.into_iter().fold(0, i32::wrapping_add);
            *scale = if some { largest / steps } else { 0.0 };
            // Poison is zero, unless a value is not finite: then the whole product is not a number.
            *sum = *scale * total as f32 + poison;
        }
        for (t, bytes) in bytes.iter_mut().enumerate() {
            let mut part = q;
            if t + 1 < T {
                // The lower byte is signed, so the upper one takes what rounding it leaves.
                for i in 0..SIXTEENS {
                    part[i] = simd.upper_byte(q[i]);
                }
            }
            let [a, b, c, d, e, f, g, h] = part;
            let mut halves = [simd.low_bytes([a, b, c, d]), simd.low_bytes([e, f, g, h])];
            if codes == Codes::Nibbles {
                halves = simd.even_and_odd(halves);
            }
            for (half, bytes) in halves.into_iter().zip(bytes.as_chunks_mut().0) {
                simd.store(half, bytes);
            }
        }
    }
}

/// Registers of sixteen values in a line.
const SIXTEENS: usize = LINE / 16;

/// All lanes joined, halves onto halves: few steps, one after another.
#[inline(always)]
fn folded<S: Simd>(simd: S, values: S::Floats, join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 16];
    simd.store_floats(values, &mut lanes);
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] = join(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}
